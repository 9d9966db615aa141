"""skylift verify."""

import re
import sqlite3
from contextlib import closing

import duckdb

from skylift.sample import BASE
from tests.cli.conftest import COMPANY, ENTRIES


def test_verify_finds_what_was_changed_behind_its_back(call, ready, tmp_path):
    ran = call("run")
    assert ran[0] == 0, ran
    with duckdb.connect(str(tmp_path / "home" / "target.duckdb")) as target:
        target.execute(f'update "{COMPANY}"."G_L Entry${BASE}" set Description = \'forged\' where "Entry No_" = 7')

    code, out, told = call("verify")
    assert code == 1, (out, told)
    assert "(7,): Description" in out
    assert "30 tables compared" in out and "1 table differs" in out and "skylift run will copy them again" in out
    code, verified, _ = call("verify", "--json")
    assert (code, verified["equal"]) == (1, False)
    [wrong] = [table for table in verified["tables"] if not table["equal"]]
    assert (wrong["company"], wrong["table"], wrong["different"]) == (COMPANY, f"G_L Entry${BASE}", ["(7,): Description"])

    assert verified["copied_again"]
    _, document, _ = call("run", "--json")
    assert [table["table_name"] for table in document["tables"] if table["mode"] == "full"] == [f"G_L Entry${BASE}"]
    assert document["run"]["details"] == "All 30 tables are up to date: 1 copied and verified, 29 unchanged since they were."
    assert call("verify")[0] == 0


def test_verify_of_what_was_never_copied_says_so(call, ready):
    code, out, error = call("verify")

    assert (code, out, "nothing has been copied yet" in error, "skylift run" in error) == (3, "", True, True)


def test_verify_says_how_far_it_is(call, ready, monkeypatch):
    assert call("run")[0] == 0
    monkeypatch.setattr("skylift.cli.follow.LINE_S", 0.0)
    _, out, told = call("verify")
    read, rows, rate = re.findall(r"tables? compared, ([\d,]+) of ([\d,]+) rows, ([\d,]+) rows/s", told)[-1]

    assert read == rows and f"{rows} rows: source and target are equal" in out
    assert int(rate.replace(",", "")) > 0


def test_verify_goes_on_after_a_table_that_cannot_be_read(call, ready):
    call("run")
    with closing(sqlite3.connect(ready)) as database, database:
        database.execute(f'update {ENTRIES} set Amount = \'not a number\' where "Entry No_" = 7')

    code, out, _ = call("verify")

    assert code == 1
    assert "not comparable: " in out and "not a number" in out
    assert "29 tables compared" in out and "1 table could not be compared" in out
    assert "will copy" not in out
