"""docs/parity.md names nothing that is not there, and every row says what there is or why there is nothing."""

import re
from pathlib import Path

import pytest
import typer

from skylift.api.resources import V1
from skylift.api.resources_v2 import V2
from skylift.cli import app

PAGE = (Path(__file__).parent.parent / "docs" / "parity.md").read_text()
ROWS = [[cell.strip() for cell in line[1:-1].split("|")] for line in PAGE.splitlines()
        if line.startswith("| ") and not line.startswith("| page ")]
COMMANDS = sorted(set(re.findall(r"`(skylift [^`]+)`", PAGE)))
CALLS = sorted({(version, call) for row in ROWS for part in re.split(r"(?=\bv[12]\.0\b)", row[2])
                for version in re.findall(r"^v[12]\.0", part) for call in re.findall(r"`([^`]+)`", part)})


@pytest.mark.parametrize("text", COMMANDS)
def test_every_command_and_option_that_the_page_names_exists(text):
    command = typer.main.get_command(app)
    words = text.split()[1:]
    while words and not words[0].startswith("--"):
        command = command.commands[words.pop(0)]
    assert set(words) <= {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize(("version", "call"), CALLS)
def test_every_call_that_the_page_names_exists(version, call):
    method, _, path = call.rpartition(" ")
    name, _, action = path.partition("/")
    entity_set = {"v1.0": V1, "v2.0": V2}[version].by_alias[name]
    if method:
        assert method in {*entity_set.methods(single=True), *entity_set.methods(single=False)}
    assert not action or action in {a.name for a in entity_set.actions}


def test_every_row_says_what_there_is_or_why_there_is_nothing():
    assert len(ROWS) > 50 and len(COMMANDS) > 30 and len(CALLS) > 30
    for row in ROWS:
        assert len(row) == 4, row
        assert row[1] or row[2] or row[3], row
        assert all("`" not in cell or cell.count("`") % 2 == 0 for cell in row), row


def test_every_command_that_people_give_is_on_the_page():
    serving = {"serve", "coordinate", "sample", "webhook"}             # not the vendor's pages but skylift itself
    assert set(typer.main.get_command(app).commands) - serving <= {command.split()[1] for command in COMMANDS}
