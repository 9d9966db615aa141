"""Runs of a part: chosen companies, chosen tables, failed ones; and runs that check without writing."""

import pytest

from skylift.errors import CopyError, NotFound, StateError
from skylift.migration import runner
from skylift.model import Progress, Scope
from skylift.runs import MigrationState, ReplicationType, RunStatus, TableStatus, UpgradeStatus
from tests.migration.lab import ANY
from tests.migration.test_replication import CRONUS, CUSTOMER, synced

CONTOSO = "Contoso A_S _Nordic_"


def modes(lab, run):
    return {key: table.mode for key, table in lab.tables(run).items()}


def failing(monkeypatch, *names):
    """An engine that fails these tables and copies the others."""
    real = runner.copy_tables

    def some(tasks, source, target, **options):
        for task in tasks:
            if task.table_name in names:
                yield Progress(task, TableStatus.FAILED, error=CopyError("cannot be copied"))
        yield from real([task for task in tasks if task.table_name not in names], source, target, **options)

    monkeypatch.setattr(runner, "copy_tables", some)


def test_a_run_of_one_company_copies_it_and_what_all_share(ready):
    run = ready.run(scope=Scope(companies=("cronus international ltd_",)))

    assert {company for company, _ in ready.tables(run)} == {"", CRONUS}
    assert run.details.endswith(f"Only the companies that were asked for: {CRONUS}.")
    assert [company.upgrade_status for company in ready.companies] == [UpgradeStatus.PENDING, UpgradeStatus.NONE]
    with pytest.raises(StateError, match=r"\d+ tables are yet to be copied: Contoso") as raised:
        ready.migration.run_data_upgrade()
    assert raised.value.code == "TablesNotCopied"


def test_a_run_of_one_table_copies_it_with_its_companion_in_every_company(ready):
    run = ready.run(scope=Scope(tables=("Customer",)))

    assert set(ready.tables(run)) == {(company, name) for company in (CRONUS, CONTOSO) for name in (CUSTOMER, f"{CUSTOMER}$ext")}
    assert {table.status for table in ready.tables(run).values()} == {TableStatus.SUCCESSFUL}
    assert "Only the tables that were asked for: CRONUS International Ltd_ Customer$437d" in run.details and "and 1 more" in run.details


def test_a_full_run_of_a_part_copies_that_part_anew_and_nothing_else(ready):
    ready.run()
    run = ready.run(kind=ReplicationType.FULL, scope=Scope(companies=(CONTOSO,), tables=(CUSTOMER,)))

    assert run.replication_type is ReplicationType.FULL
    assert modes(ready, run) == {(CONTOSO, CUSTOMER): "full"}
    assert synced(ready) == {True}
    assert set(modes(ready, ready.run()).values()) == {"unchanged"}


def test_after_a_failure_a_run_can_go_through_the_failed_tables_only(ready, monkeypatch):
    failing(monkeypatch, CUSTOMER)
    ready.run()
    with pytest.raises(StateError, match="2 tables have failed") as raised:
        ready.migration.run_data_upgrade()
    assert "skylift run --failed" in raised.value.hint
    monkeypatch.undo()

    run = ready.run(scope=Scope(failed=True))

    assert modes(ready, run) == {(company, CUSTOMER): "full" for company in (CRONUS, CONTOSO)}
    assert "Only the tables that had failed" in run.details
    ready.migration.run_data_upgrade()


@pytest.mark.parametrize(("scope", "error", "code"), [
    (Scope(companies=("Nobody",)), NotFound, "CompanyNotFound"),
    (Scope(tables=("Nothing",)), NotFound, "TableNotFound"),
    (Scope(companies=(CONTOSO,), tables=("Feature Key",)), None, ""),      # what all share comes with every company
    (Scope(companies=(CRONUS,), tables=("Customer", "Nothing", "Nought")), NotFound, "TableNotFound"),
    (Scope(failed=True), StateError, "NothingFailed"),
])
def test_a_part_that_there_is_not_is_refused_by_name(ready, scope, error, code):
    before = ready.dump()
    if error is None:
        ready.migration.run_replication(scope=scope)
        return
    with pytest.raises(error) as raised:
        ready.migration.run_replication(scope=scope)
    assert (raised.value.code, ready.dump()) == (code, before) and raised.value.hint


def test_a_company_that_is_not_marked_is_no_part_of_a_run(ready):
    ready.migration.change_company(ready.companies[1].id, {"replicate": False}, ANY)

    with pytest.raises(StateError, match="is not marked for replication") as raised:
        ready.migration.run_replication(scope=Scope(companies=(CONTOSO,)))
    assert raised.value.code == "CompanyNotMarked" and "--mark" in raised.value.hint


def test_what_a_run_goes_through_is_settled_when_it_begins(ready, monkeypatch):
    """Marks that are changed while it is under way are for the next run, also where another coordinator takes it over."""
    run = ready.migration.run_replication(scope=Scope(tables=("Customer", "Feature Key")))
    ready.work(stop=lambda: bool(ready.tables(run)))
    ready.migration.change_company(ready.companies[1].id, {"replicate": False}, ANY)
    ready.in_source(f'create table "{CRONUS}$Customer$437dbf0e-84ff-417a-965d-ed2bb9650973" (a integer primary key)')

    ready.work()

    ended = ready.migration.get(type(run), run.id)
    assert (ended.status, ended.tables_successful, ended.tables_failed) == (RunStatus.UPGRADE_PENDING, 5, 0)


def test_a_diagnostic_run_reads_every_row_and_writes_none_on_either_side(ready):
    ready.in_source(f'update "{CRONUS}${CUSTOMER}" set "Credit Limit (LCY)" = \'much\' where "No_" in '
                    f'(select max("No_") from "{CRONUS}${CUSTOMER}")')
    before = ready.in_source("select count(*), sum(rootpage) from sqlite_schema", "pragma data_version")
    there = ready.in_target("select count(*) from duckdb_tables()")

    run = ready.run(kind=ReplicationType.DIAGNOSTIC)

    tables = ready.tables(run)
    failed = [key for key, table in tables.items() if table.status is TableStatus.FAILED]
    assert failed == [(CRONUS, CUSTOMER)] and "much" in tables[CRONUS, CUSTOMER].errors
    [[(rows,)]] = ready.in_source(f'select count(*) from "{CONTOSO}${CUSTOMER}"')
    assert tables[CONTOSO, CUSTOMER].total_records == rows > 0
    assert sum(table.records_copied for table in tables.values()) == 0
    assert ready.in_source("select count(*), sum(rootpage) from sqlite_schema", "pragma data_version") == before
    assert ready.in_target("select count(*) from duckdb_tables()") == there
    assert ready.state is MigrationState.READY and synced(ready) == {False}


def test_a_diagnostic_run_without_errors_does_not_clear_a_copy_that_failed(ready, monkeypatch):
    failing(monkeypatch, CUSTOMER)
    ready.run()
    ready.run(kind=ReplicationType.DIAGNOSTIC)

    with pytest.raises(StateError, match="2 tables have failed"):
        ready.migration.run_data_upgrade()


def test_after_a_reset_the_upgrade_waits_until_everything_is_copied_again(ready):
    ready.run()
    ready.migration.reset_cloud_data()

    with pytest.raises(StateError, match="yet to be copied"):
        ready.migration.run_data_upgrade()
    ready.run(scope=Scope(tables=("Customer",)))
    with pytest.raises(StateError, match="yet to be copied"):
        ready.migration.run_data_upgrade()
    ready.run()
    ready.migration.run_data_upgrade()
