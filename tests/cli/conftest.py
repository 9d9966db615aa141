"""Commands, called in this process on a home of their own, and a Business Central database to call them with."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from skylift.cli import app
from skylift.sample import BASE, create_sample

COMPANY = "CRONUS International Ltd_"
EXAMPLES = Path(__file__).parents[2] / "examples"
PACK = str(EXAMPLES / "credit-limits")
ENTRIES = f'"{COMPANY}$G_L Entry${BASE}"'


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "bc.db"
    create_sample(path, companies=2, rows=200, tables=12)
    return path


@pytest.fixture
def source(sample, tmp_path):
    shutil.copy(sample, tmp_path / "bc.db")
    return tmp_path / "bc.db"


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Call a command on a home of its own: (exit code, stdout, stderr); a document instead of stdout with --json."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKYLIFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SKYLIFT_POLL_S", "0.05")

    def call(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, json.loads(result.stdout) if "--json" in arguments else result.stdout, result.stderr

    return call


@pytest.fixture
def ready(call, source):
    """A source that is connected, both companies created."""
    assert call("setup", "--product", "DynamicsBCLast", "--source", f"sqlite:///{source}")[0] == 0
    assert call("companies", "--mark-all", "--create")[0] == 0
    return source
