import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="the README's walk through the API is written with curl, which is not installed")
def test_commands_of_the_readme_do_what_it_says_when_they_are_pasted(tmp_path):
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Without the two commands of the first screen and the set-up, which lead here; nothing is left running if one fails.
    script = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + "".join(blocks[2:]).replace("7048", port)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    pasted = subprocess.run(["bash", "-em", "-o", "pipefail", "-c", script], cwd=tmp_path, env=environment, capture_output=True,
                            text=True, timeout=400, check=False)

    assert pasted.returncode == 0, pasted.stdout + pasted.stderr
    assert "source and target are equal" in pasted.stdout
    assert '"headline":"The data upgrade is pending."' in pasted.stdout and '"tableName":"Customer$' in pasted.stdout
    assert '"sqlConnectionString":""' in pasted.stdout or '"sqlConnectionString":"sqlite' in pasted.stdout
    for home in (".skylift", "served"):
        with duckdb.connect(str(tmp_path / home / "target.duckdb"), read_only=True) as target:
            [(rows,)] = target.sql('select count(*) from "CRONUS International Ltd_"."G_L Entry$437dbf0e-84ff-417a-965d-ed2bb9650972"'
                                   ).fetchall()
        assert rows > 15_000


def test_links_of_the_readme_lead_to_files_and_its_commands_exist():
    from skylift.cli import app

    text = (ROOT / "README.md").read_text("utf-8")
    names = {command.name for command in app.registered_commands} | {"token"}

    assert {path for path in re.findall(r"\]\(([^)]+)\)", text) if not (ROOT / path).exists()} == set()
    assert set(re.findall(r"skylift ([a-z]+) ", text)) <= names
    assert {script for script in re.findall(r"scripts/\w+", text) if not os.access(ROOT / script, os.X_OK)} == set()
