"""The pages that describe the project name what there is."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_dependency_has_a_line_that_says_why():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *(name for names in project["optional-dependencies"].values() for name in names)]
    page = (ROOT / "docs" / "dependencies.md").read_text()
    explained = set(re.findall(r"^\| ([a-z][a-z0-9-]+) \|", page, re.M)) - {"package"}
    assert explained == {re.match(r"[\w-]+", name)[0] for name in declared}


def test_the_lock_file_names_versions_and_hashes_and_no_registry():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock and set(re.findall(r"--[\w-]+", lock)) == {"--hash"}
    for line in lock.splitlines():
        assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==\S+( ;.*)? \\$|    --hash=sha256:[0-9a-f]{64}( \\)?$", line), line


def test_the_architecture_page_names_every_package_and_nothing_that_is_gone():
    page = (ROOT / "docs" / "architecture.md").read_text()
    source = ROOT / "src" / "skylift"
    for folder in source.iterdir():
        if (folder / "__init__.py").exists():
            assert f"{folder.name}/" in page, folder.name
    for path in re.findall(r"`((?:api|migration|engine|store|connectors|products|tests|scripts)/[\w/]+(?:\.py)?)`", page):
        assert (source / path).exists() or (ROOT / path).exists(), path


def test_the_readme_names_every_kind_of_source_and_target():
    from skylift.connectors import _SOURCES, _TARGETS

    [table] = re.findall(r"(?s)\| database \|.*?\n\n", (ROOT / "README.md").read_text())
    assert {f"{scheme}://" for scheme in (*_SOURCES, *_TARGETS)} - {"mariadb://"} == set(re.findall(r"`(\w+://)", table))
