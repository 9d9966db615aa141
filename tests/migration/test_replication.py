"""Runs as the coordinator carries them out, with the real engine, a real source file and a real target file."""

import sqlite3
from contextlib import closing

import pytest
import sqlalchemy as sa

from skylift.errors import SetupError, StateError, TargetFailed, Transient
from skylift.migration import runner
from skylift.migration.coordinator import TAKEOVERS, TRIES
from skylift.model import Event, Progress, RunTableProgress
from skylift.query import Query
from skylift.runs import MigrationState, ReplicationType, RunStatus, TableStatus, UpgradeStatus
from skylift.store.tables import registry, runs
from tests.migration.lab import ANY

CRONUS = "CRONUS International Ltd_"
CUSTOMER = "Customer$437dbf0e-84ff-417a-965d-ed2bb9650972"


def synced(lab):
    with lab.store.read() as connection:
        return set(connection.scalars(sa.select(registry.c.synced_version > 0)))


def test_the_first_run_is_full_and_the_next_moves_what_changed(ready):
    first = ready.run()
    ready.in_source(f'delete from "{CRONUS}${CUSTOMER}" where "No_" in (select "No_" from "{CRONUS}${CUSTOMER}" limit 3)')
    second = ready.run()

    assert (first.replication_type, second.replication_type) == (ReplicationType.FULL, ReplicationType.NORMAL)
    assert [run.status for run in (first, second)] == [RunStatus.UPGRADE_PENDING] * 2
    assert ready.migration.get(type(first), first.id).status is RunStatus.COMPLETED      # the second has taken its place
    changed = {key: table for key, table in ready.tables(second).items() if table.mode != "unchanged"}
    assert set(changed) == {(CRONUS, CUSTOMER)}
    table = changed[CRONUS, CUSTOMER]
    assert (table.mode, table.deleted, table.status) == ("incremental", 3, TableStatus.SUCCESSFUL)
    assert table.target_rows == table.total_records == ready.tables(first)[CRONUS, CUSTOMER].total_records - 3


def test_every_table_of_a_run_says_when_how_and_what(ready):
    run = ready.run()

    tables = ready.tables(run)
    assert run.details == f"All {len(tables)} tables were copied and verified."
    assert (run.tables_successful, run.tables_failed, run.tables_remaining) == (len(tables), 0, 0)
    for table in tables.values():
        assert run.started_at <= table.started_at <= table.ended_at <= run.ended_at
        assert (table.mode, table.reason, table.records_copied, table.target_rows) == (
            "full", "first copy", table.total_records, table.total_records)
        assert len(table.digest) == 32
    assert all(company.upgrade_status is UpgradeStatus.PENDING for company in ready.companies)
    assert synced(ready) == {True}


def test_only_marked_companies_and_what_all_share_are_copied(ready):
    ready.migration.change_company(ready.companies[1].id, {"replicate": False}, ANY)

    run = ready.run()

    assert {company for company, _ in ready.tables(run)} == {"", CRONUS}
    assert [company.upgrade_status for company in ready.companies] == [UpgradeStatus.PENDING, UpgradeStatus.NONE]


def test_a_full_run_and_a_reset_copy_everything_anew(ready):
    ready.run()
    full = ready.run(kind=ReplicationType.FULL)
    ready.migration.reset_cloud_data()
    assert synced(ready) == {False}
    after_reset = ready.run()

    for run in (full, after_reset):
        assert run.replication_type is ReplicationType.FULL
        assert {(table.mode, table.reason) for table in ready.tables(run).values()} == {("full", "a full copy was asked for")}


def test_a_diagnostic_run_writes_no_row_and_leaves_the_upgrade_pending(ready):
    pending = ready.run()
    ready.in_source(f'insert into "{CRONUS}$Legacy Note" select * from "{CRONUS}$Legacy Note" limit 0',
                    f'alter table "{CRONUS}${CUSTOMER}" add column extra')
    before = ready.in_target("select schema_name, table_name, estimated_size from duckdb_tables() order by all")

    run = ready.run(kind=ReplicationType.DIAGNOSTIC)

    assert run.status is RunStatus.COMPLETED and run.details.startswith("The diagnostic run has found errors. 1 of")
    failed = ready.tables(run)[CRONUS, CUSTOMER]
    assert (failed.status, failed.error_code, failed.records_copied) == (TableStatus.FAILED, "50005", 0)
    assert ready.in_target("select schema_name, table_name, estimated_size from duckdb_tables() order by all") == before
    assert ready.state is MigrationState.UPGRADE_PENDING
    with pytest.raises(StateError, match="1 table has failed"):
        ready.migration.run_data_upgrade(pending.id)


def test_a_table_that_fails_does_not_hold_up_the_others_and_is_cleared_by_a_later_success(ready):
    ready.run()
    ready.in_source(f'alter table "{CRONUS}${CUSTOMER}" add column extra')
    run = ready.run()

    failed = ready.tables(run)[CRONUS, CUSTOMER]
    assert (run.status, run.tables_failed) == (RunStatus.UPGRADE_PENDING, 1)
    count = len(ready.tables(run))
    assert run.details == f"1 of {count} tables has failed, its error says why; {count - 1} unchanged since they were."
    assert failed.total_records > failed.records_copied == 0                    # its size stays known
    assert failed.error_code == "50005" and "added ['extra']" in failed.errors and "skylift run --kind full" in failed.errors
    with pytest.raises(StateError, match=rf"1 table has failed: {CRONUS} Customer\$437d"):
        ready.migration.run_data_upgrade()

    ready.run(kind=ReplicationType.FULL)
    ready.migration.run_data_upgrade()


def test_a_failed_table_that_is_dropped_from_the_source_is_a_warning_and_no_obstacle(ready):
    ready.run()
    ready.in_source(f'alter table "{CRONUS}${CUSTOMER}" add column extra')
    ready.run()
    ready.in_source(f'drop table "{CRONUS}${CUSTOMER}"')
    run = ready.run()

    gone = ready.tables(run)[CRONUS, CUSTOMER]
    assert (gone.status, gone.error_code) == (TableStatus.WARNING, "50004")
    ready.migration.run_data_upgrade()


def test_a_table_that_is_new_in_the_source_joins_the_next_run(ready):
    ready.run()
    ready.in_source('create table "Feature Key$ext2" (a integer primary key)', 'create table "Brand New" (a integer primary key)')

    run = ready.run()

    assert ready.tables(run)["", "Brand New"].reason == "first copy"


def test_a_source_that_has_gone_ends_the_run_with_the_reason(ready):
    ready.source.unlink()

    run = ready.run()

    assert (run.status, ready.state) == (RunStatus.FAILED, MigrationState.READY)
    assert "cannot be read" in run.details and run.ended_at


def test_a_marked_company_that_has_gone_from_the_source_ends_the_run_with_the_reason(ready):
    ready.in_source("delete from Company where Name like 'Contoso%'")

    assert ready.run().details == (
        "marked, but no longer in the source: Contoso A_S _Nordic_ (leave these companies out)")


def test_a_target_that_is_held_by_another_program_is_tried_again_and_then_told(ready, monkeypatch):
    monkeypatch.setattr("skylift.migration.coordinator.pause", lambda seconds, stop: None)
    tries = []

    def busy(url, losses):
        tries.append(url)
        raise Transient("DuckDB file is in use by another program", hint="close it")

    monkeypatch.setattr("skylift.connectors.open_target", busy)
    run = ready.run()

    assert len(tries) == TRIES
    assert (run.status, run.details) == (RunStatus.FAILED, "DuckDB file is in use by another program (close it)")


def fake_engine(monkeypatch, behave):
    """Put `behave(tasks)`, a generator of Progress, in the place of the engine."""
    monkeypatch.setattr(runner, "copy_tables", lambda tasks, source, target, **options: behave(tasks))


def test_a_target_that_fails_ends_the_run_and_closes_every_table(ready, monkeypatch):
    def full_disk(tasks):
        yield Progress(tasks[0], TableStatus.SUCCESSFUL, rows=1, total_rows=1, mode="full")
        yield Progress(tasks[1], TableStatus.IN_PROGRESS, rows=1, total_rows=2, mode="full")
        raise TargetFailed("no space left", hint="free some")

    fake_engine(monkeypatch, full_disk)
    run = ready.run()

    assert (run.status, run.details) == (RunStatus.FAILED, "no space left (free some)")
    tables = ready.tables(run)
    assert (run.tables_successful, run.tables_remaining, run.tables_failed) == (0, 0, len(tables))
    assert {table.error_code for table in tables.values()} == {"NotReplicated"}
    assert all(table.ended_at for table in tables.values())


def test_a_run_in_which_every_table_failed_has_failed(ready, monkeypatch):
    fake_engine(monkeypatch, lambda tasks: (Progress(task, TableStatus.FAILED, error=SetupError("nothing goes", code="50007"))
                                            for task in tasks))
    run = ready.run()

    assert (run.status, ready.state) == (RunStatus.FAILED, MigrationState.READY)
    assert run.details == "No table could be copied. The first error: nothing goes"


def test_a_bug_ends_the_run_and_not_the_coordinator(ready, monkeypatch):
    def bug(tasks):
        raise ZeroDivisionError("division by zero at postgresql://sa:geheim@host/db")
        yield

    fake_engine(monkeypatch, bug)
    run = ready.run()

    assert run.status is RunStatus.FAILED
    assert run.details.startswith("skylift itself failed: ZeroDivisionError: division by zero")
    assert "geheim" not in repr([run, ready.migration.select(RunTableProgress, Query()), ready.migration.select(Event, Query())])
    monkeypatch.undo()
    assert ready.run().status is RunStatus.UPGRADE_PENDING


def test_a_long_error_is_cut_where_the_api_would_cut_it(ready, monkeypatch):
    fake_engine(monkeypatch, lambda tasks: (Progress(task, TableStatus.FAILED, error=SetupError("x" * 5000)) for task in tasks))
    run = ready.run()

    assert {len(table.errors) for table in ready.tables(run).values()} == {2048}


def test_a_stopped_run_stays_in_progress_and_goes_on_under_the_next_coordinator(ready, monkeypatch):
    run = ready.migration.run_replication()
    seen = []

    def until_one_is_done(*arguments, **options):
        for progress in real(*arguments, **options):
            seen.append(progress)
            yield progress

    real = runner.copy_tables
    monkeypatch.setattr(runner, "copy_tables", until_one_is_done)
    ready.work(stop=lambda: any(progress.status is TableStatus.SUCCESSFUL for progress in seen))
    monkeypatch.undo()
    stopped = ready.migration.get(type(run), run.id)
    done = {key: table for key, table in ready.tables(run).items() if table.status is TableStatus.SUCCESSFUL}
    assert (stopped.status, stopped.ended_at) == (RunStatus.IN_PROGRESS, None)
    assert done

    ready.work()

    ended, tables = ready.migration.get(type(run), run.id), ready.tables(run)
    assert (ended.status, ended.tables_successful) == (RunStatus.UPGRADE_PENDING, len(tables))
    for key, before in done.items():        # what was done before the stop is not forgotten, and not counted twice
        assert (tables[key].records_copied, tables[key].mode, tables[key].started_at) == (
            before.records_copied, before.mode, before.started_at)


def test_a_run_that_ends_every_coordinator_is_given_up(ready):
    run = ready.migration.run_replication()
    with ready.store.write() as connection:
        connection.execute(runs.update().where(runs.c.id == run.id).values(attempts=TAKEOVERS))

    ready.work()

    assert ready.runs[0].status is RunStatus.FAILED
    assert ready.runs[0].details.startswith(f"{TAKEOVERS} coordinators have ended while working on it, without getting on")


def test_rows_changed_by_a_company_that_was_left_out_arrive_when_it_is_back(ready):
    ready.run()
    ready.migration.change_company(ready.companies[0].id, {"replicate": False}, ANY)
    ready.in_source(f'delete from "{CRONUS}${CUSTOMER}"')
    ready.run()
    ready.migration.change_company(ready.companies[0].id, {"replicate": True}, ANY)
    ready.run()

    assert ready.in_target(f'select count(*) from "{CRONUS}"."{CUSTOMER}"') == [(0,)]


def test_the_target_equals_the_source_after_two_runs(ready):
    ready.run()
    ready.in_source(f'update "{CRONUS}${CUSTOMER}" set "Name" = \'Ünï\' where rowid % 3 = 0',
                    f'delete from "{CRONUS}${CUSTOMER}" where rowid % 5 = 0')
    ready.run()

    with closing(sqlite3.connect(ready.source)) as database:
        expected = database.execute(f'select "No_", "Name" from "{CRONUS}${CUSTOMER}" order by 1').fetchall()
    assert ready.in_target(f'select "No_", "Name" from "{CRONUS}"."{CUSTOMER}" order by 1') == expected
