"""While a migration runs nobody but skylift's user writes to what it replicates, where the set-up says so; its end lifts that."""

import psycopg
import pytest
from sqlalchemy.engine import make_url

from skylift.connectors import locking
from skylift.connectors.sql import quote
from skylift.errors import SetupError, SkyliftError
from skylift.migration import Migration, runner
from skylift.runs import MigrationState, ReplicationType, RunStatus
from skylift.settings import Settings
from skylift.store.tables import migration
from tests.migration.lab import ANY, Lab
from tests.migration.test_replication import CRONUS, CUSTOMER

PLACE = f'"{CRONUS}"."{CUSTOMER}"'
NOTES = {"insert into": "default values", "update": "set \"Name\" = 'x'", "delete from": "", "truncate": ""}


@pytest.fixture
def locked(lab, postgres_database):
    """A migration to PostgreSQL whose target is to be locked; `clerk` is another user there, who may write everywhere."""
    settings = Settings(home=lab.migration.settings.home, poll_s=0.02, target=postgres_database)
    lab = Lab(Migration(lab.store, settings, "tester"), lab.source)
    lab.url = postgres_database
    with psycopg.connect(lab.url, autocommit=True) as connection:
        connection.execute("do $$ begin create role clerk login; exception when duplicate_object then null; end $$")
        connection.execute("alter default privileges grant all on tables to clerk")
    lab.prepare(lock_target=True)
    return lab


def grant(lab):
    with psycopg.connect(lab.url, autocommit=True) as connection:
        connection.execute(f'grant usage on schema {quote(CRONUS)} to clerk')


def as_clerk(lab, statement):
    url = make_url(lab.url).set(username="clerk", password=None).render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else cursor.rowcount


def refused(lab):
    """Every kind of write."""
    for verb, rest in NOTES.items():
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=f"skylift is migrating to table {CRONUS}") as raised:
            as_clerk(lab, f"{verb} {PLACE} {rest}")
        assert "skylift complete, disable or abandon" in raised.value.diag.message_hint
    return as_clerk(lab, f"select count(*) from {PLACE}")[0][0]


def triggers(lab):
    with psycopg.connect(lab.url) as connection:
        return connection.execute("select count(*) from pg_trigger where tgname = '_skylift_lock'").fetchall()[0][0]


def row_of(lab):
    with lab.store.read() as connection:
        return connection.execute(migration.select()).one()


def test_others_read_and_do_not_write_until_the_migration_is_completed_whatever_runs_do(locked):
    locked.run()
    grant(locked)
    assert refused(locked) == 20
    assert triggers(locked) == len(locked.tables(locked.runs[0]))

    locked.in_source(f'delete from "{CRONUS}${CUSTOMER}" where "No_" = (select max("No_") from "{CRONUS}${CUSTOMER}")')
    assert locked.tables(locked.run())[CRONUS, CUSTOMER].mode == "incremental"
    assert refused(locked) == 19
    full = locked.run(kind=ReplicationType.FULL)
    assert {row.mode for row in locked.tables(full).values()} == {"full"}                # every table is another one now
    assert refused(locked) == 19

    locked.migration.run_data_upgrade()
    locked.work()
    assert locked.state is MigrationState.UPGRADED and refused(locked) == 19
    locked.migration.complete_cloud_migration()
    assert (triggers(locked), row_of(locked).locked) == (0, False)
    assert as_clerk(locked, f"delete from {PLACE}") == 19
    assert [(e.from_state, e.to_state) for e in locked.events if e.subject == "target"] == [("Unlocked", "Locked"), ("Locked", "Unlocked")]


def test_large_tables_that_are_swapped_in_are_locked_too(locked, monkeypatch):
    monkeypatch.setattr("skylift.connectors.postgres_target.CHUNK_ROWS", 7)
    monkeypatch.setattr("skylift.connectors.postgres_target.PostgresTarget.chunk_rows", 7)
    assert locked.run().status is RunStatus.UPGRADE_PENDING
    grant(locked)
    assert refused(locked) == 20
    locked.run(kind=ReplicationType.FULL)
    assert refused(locked) == 20


@pytest.mark.parametrize("end", ["disable_replication", "abandon"])
def test_disabling_and_abandoning_lift_it_and_pausing_does_not(locked, end):
    locked.run()
    grant(locked)
    locked.migration.pause()
    assert refused(locked) == 20
    getattr(locked.migration, end)()
    assert triggers(locked) == 0 and as_clerk(locked, f"delete from {PLACE}") == 20


def test_a_target_that_is_away_is_unlocked_by_the_next_try(locked, monkeypatch):
    locked.run()

    def away(url):
        raise SkyliftError("it does not answer")

    with monkeypatch.context() as patch:
        patch.setattr("skylift.migration.ending.unlock", away)
        locked.migration.disable_replication()
    assert "The target is still locked: it does not answer. Disable once more when the target is back." in locked.runs[0].details
    assert triggers(locked) > 0 and row_of(locked).locked
    locked.migration.disable_replication()
    assert triggers(locked) == 0 and not row_of(locked).locked


def test_a_coordinator_that_is_killed_while_it_locks_leaves_nothing_that_is_not_lifted(locked, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(url):
        locking.lock(url)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(runner, "lock", killed)
        locked.migration.run_replication()
        with pytest.raises(Killed):
            locked.work()
    assert row_of(locked).locked
    locked.work()
    assert triggers(locked) == len(locked.tables(locked.runs[0]))
    locked.migration.disable_replication()
    assert triggers(locked) == 0


def test_a_set_up_without_it_lifts_it_and_one_with_it_locks_what_is_there(locked):
    locked.run()
    locked.migration.change_setup(locked.setup.id, {"lock_target": False}, ANY)
    assert triggers(locked) == 0 and not row_of(locked).locked
    locked.run()
    assert triggers(locked) == 0
    locked.migration.change_setup(locked.setup.id, {"lock_target": True}, ANY)
    locked.run()
    assert triggers(locked) == len(locked.tables(locked.runs[0]))


def test_another_target_leaves_the_old_one_unlocked(locked, tmp_path):
    locked.run()
    lab = Lab(Migration(locked.store, Settings(home=locked.migration.settings.home, target=f"duckdb:///{tmp_path}/o.duckdb"), "x"),
              locked.source)
    with pytest.raises(SetupError, match="duckdb cannot be locked") as raised:
        lab.migration.change_setup(locked.setup.id, {}, ANY)
    assert raised.value.code == "NotLockable"
    assert triggers(locked) > 0
    lab.migration.change_setup(locked.setup.id, {"lock_target": False}, ANY)
    assert triggers(locked) == 0


def test_without_being_asked_for_nothing_is_locked(lab, postgres_database):
    settings = Settings(home=lab.migration.settings.home, poll_s=0.02, target=postgres_database)
    lab = Lab(Migration(lab.store, settings, "tester"), lab.source)
    lab.url = postgres_database
    lab.prepare()
    lab.run()
    assert triggers(lab) == 0


def test_a_target_without_users_is_not_locked_and_says_so_at_set_up(lab):
    with pytest.raises(SetupError, match="a target of the kind duckdb cannot be locked"):
        lab.prepare(lock_target=True)
    assert lab.state is MigrationState.NOT_SET_UP
