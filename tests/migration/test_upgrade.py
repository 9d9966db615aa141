import duckdb
import pytest
import sqlalchemy as sa

from skylift.errors import StateError
from skylift.runs import MigrationState, ReplicationType, RunStatus, UpgradeStatus
from skylift.store.tables import source_companies, upgrade_tags
from tests.migration.lab import ADD_COMPANY, ANY

CRONUS, CONTOSO = "CRONUS International Ltd_", "Contoso A_S _Nordic_"
CUSTOMER = "Customer$437dbf0e-84ff-417a-965d-ed2bb9650972"


@pytest.fixture
def copied(ready):
    ready.run()
    return ready


def tags(lab):
    with lab.store.read() as connection:
        return {(row.company_name, row.tag) for row in connection.execute(sa.select(upgrade_tags))}


def edit_target(lab, sql):
    with duckdb.connect(str(lab.migration.settings.home / "target.duckdb")) as database:
        database.execute(sql)


def test_the_upgrade_proves_each_company_and_records_it(copied):
    copied.migration.run_data_upgrade(copied.runs[0].id)
    assert (copied.state, copied.runs[0].status) == (MigrationState.UPGRADING, RunStatus.UPGRADE_IN_PROGRESS)
    copied.work()

    assert (copied.state, copied.runs[0].status) == (MigrationState.UPGRADED, RunStatus.COMPLETED)
    assert copied.runs[0].details == "The data upgrade has been completed."
    assert [company.upgrade_status for company in copied.companies] == [UpgradeStatus.COMPLETED] * 2
    assert tags(copied) == {(name, "DynamicsBCLast-25.5.30849.0-Verified") for name in ("", CRONUS, CONTOSO)}


def test_a_target_that_was_edited_fails_its_company_alone_and_the_rest_can_be_done_later(copied):
    edit_target(copied, f'create table kept as from "{CONTOSO}"."{CUSTOMER}"; delete from "{CONTOSO}"."{CUSTOMER}" where "No_" is not null')
    copied.migration.run_data_upgrade()
    copied.work()

    assert (copied.state, copied.runs[0].status) == (MigrationState.UPGRADE_FAILED, RunStatus.UPGRADE_FAILED)
    assert [company.upgrade_status for company in copied.companies] == [UpgradeStatus.COMPLETED, UpgradeStatus.FAILED]
    assert f"{CONTOSO}: {CONTOSO}.{CUSTOMER}: the target holds 0 rows with hash" in copied.runs[0].details

    edit_target(copied, f'insert into "{CONTOSO}"."{CUSTOMER}" from kept')
    copied.migration.run_data_upgrade()
    copied.work()
    assert copied.state is MigrationState.UPGRADED
    assert [event.subject for event in copied.events if event.event == "start_upgrade"] == [
        "company ", f"company {CRONUS}", f"company {CONTOSO}", f"company {CONTOSO}"]


def test_a_table_that_has_gone_from_the_target_fails_the_upgrade(copied):
    edit_target(copied, f'drop table "{CRONUS}"."{CUSTOMER}"')
    copied.migration.run_data_upgrade()
    copied.work()

    assert copied.state is MigrationState.UPGRADE_FAILED
    assert CRONUS in copied.runs[0].details and "does not exist" in copied.runs[0].details


def test_another_target_than_the_copied_one_fails_the_upgrade(copied):
    (copied.migration.settings.home / "target.duckdb").unlink()
    copied.migration.run_data_upgrade()
    copied.work()

    assert copied.state is MigrationState.UPGRADE_FAILED
    assert "the target holds 0 of" in copied.runs[0].details


def test_after_a_failed_upgrade_everything_can_be_copied_anew(copied):
    edit_target(copied, f'delete from "{CONTOSO}"."{CUSTOMER}"')
    copied.migration.run_data_upgrade()
    copied.work()
    with pytest.raises(StateError, match="the data upgrade has failed"):
        copied.migration.run_replication()

    copied.migration.reset_cloud_data()
    run = copied.run()
    copied.migration.run_data_upgrade()
    copied.work()

    assert run.replication_type is ReplicationType.FULL
    assert copied.state is MigrationState.UPGRADED


def test_an_upgrade_that_was_cut_off_goes_on_where_it_was(copied):
    copied.migration.run_data_upgrade()
    copied.work(stop=lambda: ("", "DynamicsBCLast-25.5.30849.0-Verified") in tags(copied))
    assert (copied.state, [c.upgrade_status for c in copied.companies][1]) == (MigrationState.UPGRADING, UpgradeStatus.PENDING)

    copied.work()

    assert copied.state is MigrationState.UPGRADED
    assert [event.subject for event in copied.events if event.event == "end_upgrade"].count("company ") == 1


def test_an_older_run_cannot_be_upgraded_and_a_diagnostic_one_is_no_newer(copied):
    older = copied.runs[0]
    newer = copied.run()
    copied.run(kind=ReplicationType.DIAGNOSTIC)

    with pytest.raises(StateError, match="there is a newer run than this one"):
        copied.migration.run_data_upgrade(older.id)
    with pytest.raises(StateError, match="this run does not wait for an upgrade") as refused:
        copied.migration.run_data_upgrade(copied.runs[0].id)
    assert refused.value.hint == f"name the one that does ({newer.id})"
    copied.migration.run_data_upgrade(newer.id)


def test_a_marked_company_that_was_not_copied_holds_the_upgrade_up(copied):
    copied.in_source(ADD_COMPANY)
    copied.migration.change_setup(copied.setup.id, {}, ANY)
    copied.migration.change_company(copied.companies[-1].id, {"replicate": True}, ANY)

    with pytest.raises(StateError, match="marked, but not copied: New"):
        copied.migration.run_data_upgrade()
    copied.migration.change_company(copied.companies[-1].id, {"replicate": False}, ANY)
    copied.migration.run_data_upgrade()


def test_a_product_without_upgrade_says_so(lab):
    lab.prepare(product_id="Custom")
    lab.run()

    with pytest.raises(StateError, match="Custom Migration needs no data upgrade"):
        lab.migration.run_data_upgrade()
    lab.migration.complete_cloud_migration()
    assert lab.state is MigrationState.DISABLED


def test_an_upgrade_before_any_run_is_refused(ready):
    with pytest.raises(StateError, match="there is nothing to upgrade"):
        ready.migration.run_data_upgrade()


@pytest.mark.parametrize("status", [UpgradeStatus.STARTED, UpgradeStatus.COMPLETED, UpgradeStatus.FAILED])
def test_a_company_that_the_upgrade_has_touched_is_not_copied_again(ready, status):
    with ready.store.write() as connection:
        connection.execute(source_companies.update().where(source_companies.c.name == CONTOSO).values(upgrade_status=status))

    with pytest.raises(StateError) as raised:
        ready.migration.run_replication()
    assert raised.value.message == f"the data upgrade has already touched {CONTOSO} ({status})"
    ready.migration.change_company(ready.companies[1].id, {"replicate": False}, ANY)
    ready.migration.run_replication()
