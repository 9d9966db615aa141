"""Upgrading, pausing, disabling and completing from the command line."""

import re
import sqlite3
from contextlib import closing

from tests.cli.conftest import ENTRIES


def test_an_upgrade_is_refused_while_the_source_holds_what_has_not_arrived(call, ready):
    assert call("run")[0] == 0
    with closing(sqlite3.connect(ready)) as database, database:
        database.execute(f'delete from {ENTRIES} where "Entry No_" = 7')
    code, _, error = call("upgrade")

    assert (code, "G_L Entry" in error, "has changed in the source since" in error) == (3, True, True)
    assert "skylift upgrade --force" in error
    assert call("run")[0] == 0
    assert call("upgrade")[0] == 0


def test_an_upgrade_without_the_last_changes_needs_force_and_so_does_its_completion(call, ready):
    assert call("run")[0] == 0
    with closing(sqlite3.connect(ready)) as database, database:
        database.execute(f'delete from {ENTRIES} where "Entry No_" = 7')

    assert call("upgrade", "--force")[0] == 0
    assert call("complete")[0] == 3
    assert call("complete", "--force", "--reason", "entry 7 was a test")[0] == 0


def test_after_a_pause_the_way_back_is_named_and_leads_on(call, ready):
    assert call("run")[0] == 0
    assert call("pause")[0] == 0
    code, _, error = call("run")

    assert (code, "skylift companies --create" in error) == (3, True)
    assert call("setup", "--product", "DynamicsBCLast")[0] == 0
    assert call("companies", "--create")[0] == 0
    assert call("run")[0] == 0


def test_disable_leaves_the_source_as_it_was_found(call, ready):
    call("run")

    code, out, _ = call("disable")

    assert (code, "state: Disabled" in out) == (0, True)
    with closing(sqlite3.connect(ready)) as database:
        assert not database.execute("select 1 from sqlite_master where name like '%skylift%'").fetchall()


def test_what_has_ended_before_is_said_to_be_so_already(call, ready):
    assert call("pause", "--reason", "holiday")[1].startswith("The migration has been paused. holiday")
    assert call("pause")[1].startswith("already so: The migration has been paused. holiday")
    assert call("abandon")[1].startswith("The migration has been abandoned.")
    assert call("complete", "--force", "--reason", "x")[1].startswith("The cloud migration has been completed")
    assert call("complete")[1].startswith("already so: The cloud migration has been completed")


def test_a_set_up_after_an_upgrade_says_that_what_was_upgraded_is_not_replicated_again(call, ready):
    for command in (("run",), ("upgrade",), ("complete",)):
        assert call(*command)[0] == 0
    code, out, _ = call("setup", "--product", "DYNAMICSBCLAST")
    assert code == 0 and "are upgraded and will not be replicated again: only other companies can still be migrated here" in out


def test_a_run_says_which_tables_keep_the_targets_rows_and_a_sample_what_of_it_does_not_move(call, source, tmp_path):
    out = call("sample", "new.db", "--companies", "1", "--rows", "50", "--tables", "8")[1]
    tables, rows, others, left = (int(number.replace(",", "")) for number in re.search(
        r"([\d,]+) tables, ([\d,]+) rows; of these ([\d,]+) tables with ([\d,]+) rows are the system's own", out).groups())
    call("setup", "--product", "DynamicsBCLast", "--source", "sqlite:///new.db")
    call("companies", "--mark-all", "--create")
    code, document, _ = call("run", "--json")
    sources = {table["table_name"]: table["total_records"] for table in document["tables"]}
    assert (code, len(sources), sum(sources.values())) == (0, tables - others, rows - left)
    assert "preserved, so that only rows are copied that the target lacks: Tenant Media" in call("status")[1]
