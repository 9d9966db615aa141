"""skylift assess: before and after set-up, for people and scripts."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import skylift
from skylift.engine.census import CODES
from skylift.errors import CopyError, SchemaChanged, ValueRefused
from skylift.migration import assessment
from tests.cli.conftest import COMPANY, ENTRIES


def test_another_product_or_source_than_the_one_set_up_is_looked_at_whole(call, source):
    fresh = call("assess", "--product", "Custom", "--source", f"sqlite:///{source}", "--json")[1]
    assert call("setup", "--product", "DynamicsBCLast", "--source", f"sqlite:///{source}")[0] == 0
    assert call("companies", "--mark", COMPANY, "--create")[0] == 0
    found = call("assess", "--product", "Custom", "--source", f"sqlite:///{source}", "--json")[1]

    assert fresh["estimate"]["tables"] > 20
    assert found["companies"] == fresh["companies"]


def spoil(source, *statements):
    with closing(sqlite3.connect(source)) as database, database:
        for statement in statements:
            database.execute(statement)


def test_an_administrator_is_shown_the_worst_first_and_each_finding_once(call, source):
    spoil(source, f"update {ENTRIES} set \"Amount\" = 'much' where \"Entry No_\" = 5")
    code, shown, _ = call("assess", "--product", "DynamicsBCLast", "--source", "sqlite:///bc.db", "--scan")

    assert code == 1
    lines = shown.splitlines()
    assert re.match(rf"BLOCKING +50011 +{COMPANY} G_L Entry.Amount: .*value 'much' does not fit", lines[0])
    assert lines[1].strip().startswith("-> correct the row")
    no_keys = [line for line in lines if " NoKey " in line]
    assert len(no_keys) == 1 and f"{COMPANY} Import Buffer, Contoso A_S _Nordic_ Import Buffer: it has no primary key" in no_keys[0]
    assert any(re.match(rf"{COMPANY} +\d+ +\d+ +[\d.]+$", line) for line in lines)
    assert "every row was read. The first run will take about" in lines[-2]
    assert lines[-1] == "3 findings: 1 blocking, 2 warning, 0 information; 1 to be mended or accepted first"


def test_the_whole_way_from_an_assessment_to_a_run(call, source):
    spoil(source, f"update {ENTRIES} set \"Amount\" = 'much' where \"Entry No_\" = 5")
    sides = ("--product", "DynamicsBCLast", "--source", "sqlite:///bc.db")
    assert call("assess", *sides, "--scan")[0] == 1
    assert call("setup", *sides)[0] == 0
    code, refused, _ = call("companies", "--mark-all", "--create", "--json")
    assert code == 3 and refused["error"]["code"] == "AssessmentBlocked"
    name = re.search(r"--accept '([^']*)'", refused["error"]["hint"])[1]

    assert call("assess", "--accept", name)[0] == 2                       # without a reason
    code, document, _ = call("assess", "--accept", name, "--reason", "one row, mended later", "--json")

    assert code == 0 and not document["blocked"]
    [accepted] = [finding for finding in document["findings"] if finding["accepted_by"]]
    assert (accepted["code"], accepted["accepted_by"], accepted["why"]) == ("50011", "cli", "one row, mended later")
    assert call("companies", "--create")[0] == 0
    assert call("run")[0] == 1                                            # and then it is that very table which fails
    assert call("assess", "--scan")[0] == 0                               # still accepted
    assert "accepted by cli" in call("assess", "--show")[1]
    spoil(source, f"update {ENTRIES} set \"Amount\" = '1' where \"Entry No_\" = 5")
    assert "50011" not in call("assess", "--scan")[1]


def test_a_script_gets_one_document(call, source):
    code, document, _ = call("assess", "--product", "DynamicsBCLast", "--source", "sqlite:///bc.db", "--json")

    assert code == 0 and document["blocked"] is False
    assert re.fullmatch(r"SQLite 3\.[\d.]+ with application version 25\.[\d.]+", document["source"])
    assert document["target"].startswith("DuckDB")
    assert {size["company"] for size in document["companies"]} == {"", COMPANY, "Contoso A_S _Nordic_"}
    estimate = document["estimate"]
    assert estimate["rows"] == sum(size["rows"] for size in document["companies"]) == document["assessment"]["rows"]
    assert estimate["tables"] == sum(size["tables"] for size in document["companies"]) and estimate["duration_s"] > 0
    assert {(finding["code"], finding["severity"]) for finding in document["findings"]} == {("NoKey", "Warning")}


@pytest.mark.parametrize(("arguments", "code", "error"), [
    (("assess",), 3, "NotSetUp"), (("assess", "--show"), 3, "NotAssessed"), (("assess", "--source", "sqlite:///bc.db"), 2, "52010"),
    (("assess", "--source", "sqlite:///none.db", "--product", "Custom"), 2, "SetupError"),
    (("assess", "--source", "sqlite:///bc.db", "--product", "None"), 2, "52010"),
    (("assess", "--source", "duckdb:///a.duckdb", "--target", "duckdb:///a.duckdb", "--product", "Custom"), 2, "SamePlace"),
    (("assess", "--accept", "50011", "--reason", "x"), 2, "FindingNotFound"), (("assess", "--reason", "x"), 2, "Usage"),
    (("assess", "--show", "--scan"), 2, "Usage"),
])
def test_what_cannot_be_done_is_told_with_a_code(call, source, arguments, code, error):
    got, document, _ = call(*arguments, "--json")
    assert (got, document["error"]["code"]) == (code, error)


def test_nobody_assesses_while_a_run_is_under_way(call, source):
    call("setup", "--product", "DynamicsBCLast", "--source", "sqlite:///bc.db")
    call("companies", "--mark-all", "--create")
    assert call("run", "--no-wait")[0] == 0
    code, document, _ = call("assess", "--json")
    assert (code, document["error"]["code"]) == (3, "RunInProgress")


def test_a_target_that_somebody_writes_to_is_not_now(call, source, tmp_path):
    from skylift.connectors import open_target

    with closing(open_target(f"duckdb:///{tmp_path}/busy.duckdb")):
        code, document, _ = call("assess", "--source", "sqlite:///bc.db", "--product", "DynamicsBCLast", "--target", "duckdb:///busy.duckdb",
                                 "--json")
    assert (code, document["error"]["code"]) == (3, "InUse")


def test_what_takes_longer_shows_rate_and_time_left(call, source, monkeypatch):
    monkeypatch.setattr("skylift.cli.follow.LINE_S", 0.0)
    _, _, shown = call("assess", "--product", "DynamicsBCLast", "--source", "sqlite:///bc.db", "--scan")
    assert re.search(r"\d+ of about \d+ rows read, [\d,]+ rows/s, about [\d,]+ s left", shown)


def test_the_page_lists_every_code_and_none_that_is_gone():
    source = Path(skylift.__file__).parent
    text = "\n".join(path.read_text() for path in source.rglob("*.py"))
    used = set(re.findall(r'Remark\(\s*"(\w+)"', text)) | set(CODES.values()) | assessment.FINDINGS
    used |= {error.code for error in (CopyError, SchemaChanged, ValueRefused)} | {"50004", "50020", "ChangeFeed"}
    page = (source.parents[1] / "docs" / "assess.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \|", page, re.M)
    assert sorted(listed) == sorted(used)
    assert all(code in text for code in listed)


def test_what_is_accepted_again_or_had_blocked_nothing_is_said_and_the_last_assessment_says_of_what_and_when_it_was(call, source):
    call("assess", "--product", "dynamicsbclast", "--source", "sqlite:///bc.db")
    shown = call("assess", "--show")[1].splitlines()
    assert any(re.match(r"assessed on \d{4}-\d\d-\d\d \d\d:\d\d UTC, as DynamicsBCLast: sqlite:.*bc.db to duckdb:.*target.duckdb", line)
               for line in shown)

    _, out, _ = call("assess", "--accept", "NoKey", "--reason", "it was so for years")
    assert "it has blocked nothing" in out and "in the place of" not in out
    _, out, _ = call("assess", "--accept", "NoKey", "--reason", "nobody reads it")
    assert "in the place of what cli gave as the reason: it was so for years" in out
