"""How a migration ends: the gate before completion, pausing, abandoning, forcing; and two administrators who do not know of each other."""

import itertools
import subprocess
import sys
import textwrap

import duckdb
import pytest
import sqlalchemy as sa

from skylift.connectors import SWEEP
from skylift.connectors.sqlite import SqliteSource
from skylift.errors import Conflict, SetupError, SkyliftError, StateError
from skylift.migration import Migration, cutover, ending
from skylift.model import Run, Watermark
from skylift.runs import MigrationState, ReplicationType, RunStatus
from skylift.settings import Settings
from skylift.store import open_store
from skylift.store.tables import migration, runs
from tests.migration.lab import ANY, Lab
from tests.migration.test_replication import CRONUS, CUSTOMER
from tests.migration.test_setup import triggers


@pytest.fixture
def copied(lab):
    """A product without upgrade, everything copied: nothing but the gate stands before completion."""
    lab.in_source("create table note (id integer primary key, text)", "insert into note values (1, 'a'), (2, 'b')")
    lab.prepare(product_id="Custom")
    lab.run()
    return lab


@pytest.fixture
def upgraded(ready):
    ready.run()
    ready.migration.run_data_upgrade()
    ready.work()
    return ready


def edit_target(lab, sql):
    with duckdb.connect(str(lab.migration.settings.home / "target.duckdb")) as database:
        database.execute(sql)


def refused(lab, code, words):
    before = lab.dump()
    with pytest.raises(StateError, match=words) as raised:
        lab.migration.complete_cloud_migration()
    assert raised.value.code == code and raised.value.hint
    assert (lab.dump(), triggers(lab) > 0) == (before, True)


def row_of(lab):
    with lab.store.read() as connection:
        return connection.execute(sa.select(migration)).one()


def test_completion_waits_until_nothing_has_changed_in_the_source(copied):
    copied.in_source("insert into note values (3, 'c')", "update note set text = 'd' where id = 1")
    refused(copied, "FeedLag", r"1 table has changed in the source since: bc note")

    copied.run()
    copied.migration.complete_cloud_migration()
    assert (copied.state, row_of(copied).disabled_reason, triggers(copied)) == (MigrationState.DISABLED, "Completed", 0)


def test_an_upgraded_migration_is_told_that_later_changes_will_not_arrive(upgraded):
    upgraded.in_source(f'delete from "{CRONUS}${CUSTOMER}"')

    refused(upgraded, "FeedLag", "1 table has changed in the source since")
    with pytest.raises(StateError) as raised:
        upgraded.migration.complete_cloud_migration()
    assert "will not arrive" in raised.value.hint


def test_completion_is_refused_while_the_target_does_not_hold_what_was_copied(copied):
    edit_target(copied, "update bc.note set text = 'forged' where id = 2")
    refused(copied, "NotVerified", r"1 table holds other rows than were copied: bc note")

    edit_target(copied, "drop table bc.note")
    refused(copied, "NotVerified", "1 table holds other rows")


def test_another_target_than_the_copied_one_is_told(copied):
    (copied.migration.settings.home / "target.duckdb").unlink()

    refused(copied, "TablesNotCopied", r"\d+ tables are not in the target: bc ")


def test_a_source_whose_feed_cannot_tell_is_read_once_more(copied, monkeypatch):
    """One that knows no feed: equal rows are no lag, whatever happened in between."""
    honest = SqliteSource.track
    monkeypatch.setattr(SqliteSource, "track", lambda self, tables, consumer: {
        path: Watermark(SWEEP, 1, "") for path in honest(self, tables, consumer)})
    copied.in_source("update note set text = 'c' where id = 1")
    refused(copied, "FeedLag", "1 table has changed in the source since: bc note")

    copied.in_source("update note set text = 'a' where id = 1")
    copied.migration.complete_cloud_migration()


def test_a_disabled_migration_is_compared_row_by_row_and_gets_no_feed_again(copied):
    copied.migration.disable_replication()
    copied.in_source("insert into note values (3, 'c')")
    with pytest.raises(StateError, match="1 table has changed in the source since"):
        copied.migration.complete_cloud_migration()

    assert triggers(copied) == 0
    copied.in_source("delete from note where id = 3")
    copied.migration.complete_cloud_migration()
    assert row_of(copied).disabled_reason == "Completed"


def test_a_table_that_was_never_copied_holds_completion_up_unless_it_is_left_out(copied):
    copied.in_source("create table later (a integer primary key)")
    copied.migration.change_setup(copied.setup.id, {}, ANY)
    refused(copied, "TablesNotCopied", r"1 table is yet to be copied: bc later")

    copied.migration.change_table(copied.switch("later").id, {"replicate": False}, ANY)
    copied.migration.complete_cloud_migration()


def test_a_forced_completion_says_who_why_and_what_was_open(copied):
    copied.in_source("alter table note add column extra")
    copied.run()
    refused(copied, "TablesFailed", "1 table has failed: bc note")
    for reason in ("", "  "):
        with pytest.raises(SetupError, match="needs a reason") as raised:
            copied.migration.complete_cloud_migration(force=True, reason=reason)
        assert raised.value.code == "ReasonMissing"

    copied.migration.as_actor("Ada").complete_cloud_migration(force=True, reason="notes are archived")

    assert copied.runs[0].details == ("The cloud migration has been completed, forced by Ada: notes are archived "
                                      "Still open: 1 table has failed: bc note.")
    assert row_of(copied).disabled_reason == "Completed" and triggers(copied) == 0


def test_a_forced_completion_needs_no_source_and_says_what_was_left_there(upgraded, monkeypatch):
    monkeypatch.setattr(ending, "RETRY_S", 0)
    away = upgraded.source.rename(upgraded.source.with_suffix(".away"))
    with pytest.raises(SkyliftError, match="cannot be read"):
        upgraded.migration.complete_cloud_migration()

    upgraded.migration.complete_cloud_migration(force=True, reason="the server is gone")

    assert "could not be removed" in upgraded.runs[0].details and row_of(upgraded).still_tracked
    away.rename(upgraded.source)
    upgraded.migration.disable_replication()                                # removes it, and stays completed
    assert (row_of(upgraded).disabled_reason, row_of(upgraded).still_tracked, triggers(upgraded)) == ("Completed", False, 0)


def test_a_pending_upgrade_can_be_passed_over_by_force_only(ready):
    ready.run()
    with pytest.raises(StateError, match="the data upgrade is pending"):
        ready.migration.complete_cloud_migration()

    ready.migration.complete_cloud_migration(force=True, reason="an archive needs no upgrade")
    assert "Still open: the data has not been upgraded." in ready.runs[0].details


def test_a_run_that_was_made_while_both_sides_were_compared_is_a_conflict(copied, monkeypatch):
    honest = cutover.refuse_unproven

    def meanwhile(service, row, upgraded, reading):
        honest(service, row, upgraded, reading)
        copied.run()

    monkeypatch.setattr(ending, "refuse_unproven", meanwhile)
    with pytest.raises(Conflict, match="a run was made while source and target were compared"):
        copied.migration.complete_cloud_migration()

    monkeypatch.undo()
    assert copied.state is MigrationState.READY
    copied.migration.complete_cloud_migration()


def test_what_a_copy_that_never_ended_has_left_is_gone_with_completion(copied):
    edit_target(copied, "create table bc._skylift_new_x (a int);"
                "insert into _skylift_copies values ('bc', '_skylift_new_x', 'old', '[]', '')")

    copied.migration.complete_cloud_migration()

    assert copied.in_target("select count(*) from duckdb_tables() where table_name like '_skylift_new%'") == [(0,)]


def test_a_paused_migration_moves_only_changes_when_it_is_set_up_again(copied):
    copied.migration.pause("month-end closing; password=geheim")

    assert (row_of(copied).disabled_reason, triggers(copied) > 0) == ("Paused", True)
    assert copied.runs[0].details == "The migration has been paused. month-end closing; password=***"
    before = copied.dump()
    copied.migration.pause("again")
    assert copied.dump() == before
    with pytest.raises(StateError, match="the migration is disabled"):
        copied.migration.run_replication()

    copied.in_source("insert into note values (3, 'c')")
    copied.migration.change_setup(copied.setup.id, {}, ANY)
    copied.migration.complete_setup(copied.setup.id)
    run = copied.run()
    assert {table.mode for table in copied.tables(run).values()} == {"incremental", "unchanged"}
    assert row_of(copied).disabled_reason == ""


def test_a_paused_migration_can_be_abandoned_and_then_leaves_nothing_in_the_source(copied):
    copied.migration.pause()
    copied.migration.abandon("another product was chosen")

    assert (row_of(copied).disabled_reason, row_of(copied).still_tracked, triggers(copied)) == ("Abandoned", False, 0)
    assert copied.runs[0].details == "The migration has been abandoned. another product was chosen"
    with pytest.raises(StateError, match="the migration is disabled"):
        copied.migration.pause()
    after = copied.dump()
    copied.migration.abandon("twice")
    copied.migration.disable_replication()
    assert copied.dump() == after


def test_disabling_a_paused_migration_leaves_nothing_in_the_source(copied):
    copied.migration.pause()
    copied.migration.disable_replication()

    assert (row_of(copied).disabled_reason, row_of(copied).still_tracked, triggers(copied)) == ("", False, 0)
    assert copied.runs[0].details == "The migration has been disabled."


def test_a_completed_migration_cannot_be_abandoned(copied):
    copied.migration.complete_cloud_migration()

    with pytest.raises(StateError, match="the migration is completed"):
        copied.migration.abandon("too late")


@pytest.mark.parametrize("verb", ["disable_replication", "pause", "abandon", "complete_cloud_migration", "reset_cloud_data"])
def test_nothing_ends_a_migration_under_a_run(copied, verb):
    copied.migration.run_replication()
    before = copied.dump()

    with pytest.raises(StateError, match="a replication run is in progress") as raised:
        getattr(copied.migration, verb)()

    assert (raised.value.code, copied.dump()) == ("RunInProgress", before) and "skylift cancel" in raised.value.hint
    copied.work()
    assert copied.runs[0].status is RunStatus.COMPLETED


ADMINISTRATOR = """
    import sys
    from pathlib import Path
    from skylift.errors import SkyliftError
    from skylift.migration import Migration
    from skylift.settings import Settings
    from skylift.store import open_store
    home, store, name, verb = sys.argv[1:]
    migration = Migration(open_store(store), Settings(home=Path(home), store=store), name)
    print("ready", flush=True)
    input()
    try:
        eval(verb)
        print("ok")
    except SkyliftError as error:
        assert error.message and error.hint, error
        print(error.code)
"""
BOTH = [
    ("migration.run_replication()", "migration.run_replication()", {("ok", "RunInProgress"), ("RunInProgress", "ok")}),
    ("migration.run_replication()", "migration.disable_replication()", {("ok", "RunInProgress"), ("50016", "ok")}),
    ("migration.run_replication()", "migration.reset_cloud_data()", {("ok", "RunInProgress"), ("ok", "ok")}),
    ("migration.pause('a')", "migration.abandon('b')", {("ok", "ok"), ("50016", "ok")}),
    ("migration.complete_cloud_migration()", "migration.complete_cloud_migration()", {("ok", "ok")}),
    ("migration.complete_cloud_migration()", "migration.run_replication()", {("ok", "50016"), ("RunInProgress", "ok"), ("Changed", "ok")}),
    ("migration.cancel_replication()", "migration.disable_replication()", {("NoRun", "ok")}),
    ("migration.run_data_upgrade(packs=['mine'])", "migration.run_replication()", {("ok", "UpgradeInProgress"), ("RunInProgress", "ok")}),
    ("migration.run_data_upgrade(packs=['mine'])", "migration.run_data_upgrade(packs=['mine'])", {("ok", "UpgradeInProgress"),
                                                                                              ("UpgradeInProgress", "ok")}),
]


@pytest.mark.parametrize(("first", "second", "possible"), BOTH, ids=[f"{a} | {b}" for a, b, _ in BOTH])
def test_two_administrators_at_once_get_one_story(store_url, tmp_path, lab, first, second, possible):
    """Two processes on one store: whoever comes second is told, or finds it done. Every move follows the one before."""
    config = Settings(home=tmp_path / "two", store=store_url, poll_s=0.02)
    store = open_store(store_url)
    both = Lab(Migration(store, config), lab.source)
    both.in_source("create table note (id integer primary key, text)")
    pack = config.home / "packs" / "mine"
    pack.mkdir(parents=True)
    (pack / "pack.toml").write_text('name = "mine"\nversion = "1"\n[[step]]\nid = "one"\nsql = "one.sql"')
    (pack / "one.sql").write_text("update {{note}} set text = 'x'")
    both.prepare(product_id="Custom")
    both.run()
    before = len(both.events)
    children = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(ADMINISTRATOR), str(config.home), store_url, name, verb],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                for name, verb in (("Ada", first), ("Bob", second))]
    assert [child.stdout.readline() for child in children] == ["ready\n"] * 2
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    told = [child.communicate(timeout=60) for child in children]

    answers = tuple(out.strip() for out, _ in told)
    assert answers in possible, told
    moves = [event for event in both.events if event.subject == "migration" and event.to_state]
    assert all(after.from_state == earlier.to_state for earlier, after in itertools.pairwise(moves))
    assert {event.actor for event in both.events[before:]} <= {"Ada", "Bob"}
    with store.read() as connection:
        in_progress = connection.scalar(sa.select(sa.func.count()).select_from(runs).where(runs.c.status == RunStatus.IN_PROGRESS))
    assert in_progress == (both.state is MigrationState.REPLICATING)
    both.work()
    assert both.state in (MigrationState.READY, MigrationState.DISABLED, MigrationState.UPGRADED)
    if in_progress:
        run = both.migration.get(Run, both.runs[0].id)
        assert (run.status, run.tables_failed, run.replication_type in ReplicationType) == (RunStatus.COMPLETED, 0, True)
    store.close()
