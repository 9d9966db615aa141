"""Upgrading, pausing, disabling and completing from the command line."""

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
