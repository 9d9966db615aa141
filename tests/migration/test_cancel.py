"""A run that is cancelled at any moment stops soon, says truly how far it came, and the next run goes on from there."""

import threading
import time

import pytest
import sqlalchemy as sa

from skylift.connectors.duckdb import DuckDBTransaction
from skylift.connectors.sqlite import SqliteSource
from skylift.errors import StateError, Transient
from skylift.migration import coordinator, runner
from skylift.migration.progress import rows_per_s
from skylift.model import Run
from skylift.runs import MigrationState, ReplicationType, RunStatus, TableStatus, UpgradeStatus
from skylift.sample import BASE
from skylift.store.tables import migration, source_companies
from tests.migration.test_coordinator import coordinating, until
from tests.migration.test_replication import CRONUS, CUSTOMER

ENTRIES = (CRONUS, f"G_L Entry${BASE}")
S = TableStatus
SOON_S = 5.0


@pytest.fixture
def reads(monkeypatch):
    """Chunks of ten rows, each read after a moment; which key ranges of the G/L entries were read."""
    monkeypatch.setattr("skylift.connectors.duckdb.DuckDBTarget.chunk_rows", 10)
    honest, seen = SqliteSource.read, []

    def slowly(self, table, keys):
        if table.name == f"{CRONUS}${ENTRIES[1]}":
            seen.append(keys)
        time.sleep(0.02)
        return honest(self, table, keys)

    monkeypatch.setattr(SqliteSource, "read", slowly)
    return seen


def state_of(lab, run):
    return lab.migration.get(Run, run.id)


def moving(lab, run):
    """Whether some, and not all, of the G/L entries have arrived."""
    table = lab.tables(run).get(ENTRIES)
    return table is not None and table.status is S.IN_PROGRESS and table.records_copied > 0


def cancelled_midway(lab, **options):
    with coordinating(lab):
        run = lab.migration.run_replication(**options)
        until(lambda: moving(lab, run))
        began = time.monotonic()
        lab.migration.as_actor("Ada").cancel_replication(run.id, "the line is needed")
        until(lambda: state_of(lab, run).ended_at)
        assert time.monotonic() - began < SOON_S
    return state_of(lab, run)


def rows(lab, key, in_target=False):
    company, name = key
    if in_target:
        return lab.in_target(f'select count(*) from "{company}"."{name}"')[0][0]
    return lab.in_source(f'select count(*) from "{company}${name}"')[0][0][0]


def test_a_cancelled_run_stops_soon_and_says_truly_how_far_it_came(ready, reads):
    run = cancelled_midway(ready)

    assert (run.status, ready.state) == (RunStatus.FAILED, MigrationState.READY)
    tables = ready.tables(run)
    done = {key for key, table in tables.items() if table.status is S.SUCCESSFUL}
    assert run.details == (f"The run was cancelled by Ada: the line is needed. {len(done)} of {len(tables)} tables "
                           f"{'was' if len(done) == 1 else 'were'} done; the next run goes on with the others.")
    assert run.tables_remaining == 0 and tables[ENTRIES].status is S.FAILED
    for key, table in tables.items():
        assert table.ended_at and (key in done or (table.status, table.error_code) == (S.FAILED, "Cancelled"))
        assert key[0] == "" or key not in done or rows(ready, key, in_target=True) == rows(ready, key) == table.target_rows
    assert [e.why for e in ready.events if e.event == "cancel"] == ["the line is needed", "cancelled by Ada: the line is needed"]


def test_the_run_after_a_cancelled_one_loads_only_the_chunks_that_are_missing(ready, reads):
    run = cancelled_midway(ready)
    loaded = ready.tables(run)[ENTRIES].records_copied
    ready.in_source(f'update "{CRONUS}${ENTRIES[1]}" set Description = \'changed\' where "Entry No_" = 1')
    reads.clear()

    after = ready.run()

    table = ready.tables(after)[ENTRIES]
    assert loaded <= table.resumed < table.records_copied == 301 and ready.tables(run)[ENTRIES].resumed == 0     # one has changed
    assert float(rows_per_s(table)) * (table.ended_at - table.started_at).total_seconds() == pytest.approx(301 - table.resumed, rel=0.05)
    assert after.status is RunStatus.UPGRADE_PENDING and after.tables_failed == 0
    assert 0 < len(reads) <= (300 - loaded) // 10 + 1                        # and not all thirty
    description = ready.in_target(f'select Description from "{CRONUS}"."{ENTRIES[1]}" where "Entry No_" = 1')
    assert description == [("changed",)] and rows(ready, ENTRIES, in_target=True) == 300


def test_a_full_run_that_is_asked_for_uses_nothing_of_a_cancelled_one(ready, reads):
    cancelled_midway(ready)
    reads.clear()

    ready.run(kind=ReplicationType.FULL)

    assert len(reads) == 30


def test_a_cancelled_full_run_leaves_old_rows_until_the_next_run_has_copied_the_rest(ready, reads):
    ready.run()
    ready.in_source(f'update "{CRONUS}${ENTRIES[1]}" set Description = \'new\'')
    run = cancelled_midway(ready, kind=ReplicationType.FULL)

    assert ready.in_target(f'select count(*) from "{CRONUS}"."{ENTRIES[1]}" where Description = \'new\'') == [(0,)]
    assert ready.state is MigrationState.READY and state_of(ready, ready.runs[1]).status is RunStatus.COMPLETED
    with pytest.raises(StateError):
        ready.migration.run_data_upgrade()
    after = ready.run()
    assert ready.tables(after)[ENTRIES].mode == "full" and after.status is RunStatus.UPGRADE_PENDING
    assert ready.in_target(f'select count(*) from "{CRONUS}"."{ENTRIES[1]}" where Description = \'new\'') == [(300,)]
    assert run.replication_type is ReplicationType.FULL


def test_a_cancel_during_a_swap_lets_the_swap_end_or_not_happen_and_tells_which(ready, monkeypatch, reads):
    swapping, go_on, honest = threading.Event(), threading.Event(), DuckDBTransaction.swap

    def held(self, build, name):
        if name.table == ENTRIES[1]:
            swapping.set()
            assert go_on.wait(20)
        honest(self, build, name)

    monkeypatch.setattr(DuckDBTransaction, "swap", held)
    with coordinating(ready):
        run = ready.migration.run_replication()
        assert swapping.wait(20)
        ready.migration.cancel_replication(run.id)
        time.sleep(0.3)
        go_on.set()
        until(lambda: state_of(ready, run).ended_at)

    table = ready.tables(run)[ENTRIES]
    assert (table.status, table.target_rows) == (S.SUCCESSFUL, 300)          # swapped in before anybody could look
    assert rows(ready, ENTRIES, in_target=True) == 300
    assert state_of(ready, run).status is RunStatus.FAILED
    after = ready.run()
    assert (after.tables_failed, ready.tables(after)[ENTRIES].mode) == (0, "unchanged")


def test_a_run_that_was_cancelled_before_anybody_took_it_up_needs_neither_source_nor_target(ready):
    run = ready.migration.run_replication()
    ready.migration.cancel_replication()
    assert state_of(ready, run).status is RunStatus.IN_PROGRESS              # nobody works
    assert state_of(ready, run).details == "The run is being cancelled by tester."
    away = ready.source.rename(ready.source.with_suffix(".away"))

    ready.work()

    away.rename(ready.source)
    run = state_of(ready, run)
    assert (run.status, run.details) == (RunStatus.FAILED, "The run was cancelled by tester. Nothing had been done.")
    assert ready.run().status is RunStatus.UPGRADE_PENDING


def test_a_cancel_that_comes_when_everything_is_done_changes_nothing(ready, monkeypatch):
    real = runner.copy_tables

    def then_cancel(*arguments, **options):
        yield from real(*arguments, **options)
        ready.migration.cancel_replication()

    monkeypatch.setattr(runner, "copy_tables", then_cancel)
    run = ready.run()

    assert (run.status, run.tables_failed) == (RunStatus.UPGRADE_PENDING, 0)
    assert run.details.endswith("copied and verified.")


def test_a_run_whose_coordinator_died_while_it_was_cancelled_is_ended_by_the_next_one(ready, reads):
    run = ready.migration.run_replication()
    ready.work(stop=lambda: moving(ready, run))
    ready.migration.cancel_replication()
    reads.clear()

    ready.work()

    assert state_of(ready, run).status is RunStatus.FAILED and reads == []
    assert ready.tables(run)[ENTRIES].error_code == "Cancelled"


def test_a_run_that_waits_to_be_tried_again_can_be_cancelled(ready, monkeypatch):
    monkeypatch.setattr(coordinator, "TRIES", 100)
    tried = threading.Event()

    def busy(*arguments):
        tried.set()
        raise Transient("in use by another program")

    monkeypatch.setattr("skylift.connectors.open_target", busy)
    with coordinating(ready):
        run = ready.migration.run_replication()
        assert tried.wait(20)
        time.sleep(3.2)                                                      # now it pauses for four seconds and more
        began = time.monotonic()
        ready.migration.cancel_replication()
        until(lambda: state_of(ready, run).ended_at)
        assert time.monotonic() - began < 2.0


def test_cancelling_again_or_when_there_is_nothing_to_cancel(ready):
    with pytest.raises(StateError, match="no run is in progress") as raised:
        ready.migration.cancel_replication()
    assert raised.value.code == "NoRun" and raised.value.hint
    ended = ready.run()
    run = ready.migration.run_replication()
    with pytest.raises(StateError, match="this run has ended"):
        ready.migration.cancel_replication(ended.id)
    first = ready.migration.cancel_replication(run.id, "why")
    before = ready.dump()
    again = ready.migration.cancel_replication(run.id, "another why")

    assert again == first and ready.dump() == before
    assert first.cancelled == "cancelled by tester: why"


def test_a_cancelled_diagnostic_run_leaves_no_failed_tables_and_a_pending_upgrade_pending(ready):
    ready.run()
    run = ready.migration.run_replication(kind=ReplicationType.DIAGNOSTIC)
    ready.work(stop=lambda: bool(ready.tables(run)))
    ready.migration.cancel_replication()
    ready.work()

    assert {table.status for table in ready.tables(run).values()} <= {S.SUCCESSFUL, S.WARNING}
    assert state_of(ready, run).details.startswith("Diagnostic run - The run was cancelled by tester.")
    assert ready.state is MigrationState.UPGRADE_PENDING
    ready.migration.run_data_upgrade()


def test_a_reason_is_kept_without_the_password_in_it(ready):
    ready.migration.run_replication()
    run = ready.migration.cancel_replication(reason="see postgresql://sa:geheim@host/db")

    assert "geheim" not in repr(run) + repr(ready.events) + repr(ready.dump())


def test_companies_that_were_copied_before_a_cancelled_run_keep_their_pending_upgrade(ready, monkeypatch):
    ready.run()

    def cancelled(*arguments, **options):
        ready.migration.cancel_replication()
        time.sleep(0.3)                                 # until the coordinator has seen it
        return iter(())

    with monkeypatch.context() as patch:
        patch.setattr(runner, "copy_tables", cancelled)
        assert ready.run().status is RunStatus.FAILED

    with ready.store.read() as connection:
        assert set(connection.scalars(sa.select(source_companies.c.upgrade_status))) == {UpgradeStatus.PENDING}
        assert connection.scalar(sa.select(migration.c.state)) is MigrationState.READY
    assert CUSTOMER in {name for _, name in ready.tables(ready.run())}


@pytest.mark.parametrize("kind", [ReplicationType.NORMAL, ReplicationType.FULL])
def test_a_run_that_is_cancelled_before_it_has_begun_leaves_the_pending_upgrade_and_every_copy_as_they_were(ready, kind):
    waiting = ready.run()
    before = {table.id: table.synced_version for table in ready.tables_of(ready.companies[0].name) + ready.tables_of("")}
    ready.migration.run_replication(kind=kind)
    ready.migration.cancel_replication()
    ready.work()

    assert ready.runs[0].status is RunStatus.FAILED and ready.runs[0].details.endswith("Nothing had been done.")
    assert ready.state is MigrationState.UPGRADE_PENDING and ready.migration.get(Run, waiting.id).status is RunStatus.UPGRADE_PENDING
    assert {table.id: table.synced_version for table in ready.tables_of(ready.companies[0].name) + ready.tables_of("")} == before
    ready.migration.run_data_upgrade(waiting.id)
    ready.work()
    assert ready.state is MigrationState.UPGRADED


def test_a_run_whose_source_is_out_of_reach_leaves_the_pending_upgrade_as_it_was(ready):
    waiting = ready.run()
    away = ready.source.rename(ready.source.with_name("away.db"))
    failed = ready.run()
    away.rename(ready.source)

    assert failed.status is RunStatus.FAILED and ready.state is MigrationState.UPGRADE_PENDING
    ready.migration.run_data_upgrade(waiting.id)
    ready.work()
    assert ready.state is MigrationState.UPGRADED
