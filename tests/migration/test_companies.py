import duckdb
import pytest
import sqlalchemy as sa

from skylift.errors import StateError
from skylift.migration.service import company_row
from skylift.model import Company
from skylift.query import Query
from skylift.runs import CompanyInit, CompanySetupStatus, MigrationState
from skylift.store.tables import companies
from tests.migration.lab import ADD_COMPANY, ANY


@pytest.fixture
def enabled(lab):
    lab.migration.create_setup(lab.values)
    return lab


def mark(lab, n, replicate=True):
    return lab.migration.change_company(lab.companies[n].id, {"replicate": replicate}, ANY)


def test_marking_answers_the_company_as_it_is_now_and_is_logged_once(enabled):
    assert mark(enabled, 0).replicate
    assert mark(enabled, 0).replicate
    assert not mark(enabled, 0, False).replicate

    assert [event.event for event in enabled.events if event.subject.startswith("company")] == ["include", "leave_out"]


def test_a_created_company_has_the_whole_name_and_its_display_name(enabled):
    long = "A company whose name has exactly fifty characters."
    enabled.in_source(f"update Company set Name = '{long}', \"Display Name\" = 'Shown' where Name like 'CRONUS%'")
    enabled.migration.change_setup(enabled.setup.id, {}, ANY)
    mark(enabled, 0)
    assert enabled.companies[0].status is CompanySetupStatus.NONE
    enabled.migration.create_companies(enabled.companies[0].id)
    assert enabled.companies[0].status is CompanySetupStatus.IN_PROGRESS

    enabled.work()

    company = enabled.companies[0]
    assert (company.created, company.status, company.init_status) == (True, CompanySetupStatus.COMPLETED, CompanyInit.NOT_INITIALIZED)
    names = {(c.name, c.display_name) for c in enabled.migration.select(Company, Query())}
    assert names == {("CRONUS", "CRONUS"), (long.replace(".", "_"), "Shown")}
    assert enabled.state is MigrationState.READY


def test_creating_again_creates_what_is_new_and_does_not_touch_initialised_ones(enabled):
    mark(enabled, 0)
    enabled.migration.create_companies(enabled.companies[0].id)
    enabled.work()
    enabled.migration.initialize_company(enabled.companies[0].id)
    enabled.work()
    mark(enabled, 1)

    enabled.migration.create_companies(enabled.companies[0].id)
    enabled.work()

    assert [company.init_status for company in enabled.companies] == [CompanyInit.INITIALIZED, CompanyInit.NOT_INITIALIZED]


def test_with_no_company_to_create_it_is_over_at_once(enabled):
    enabled.migration.create_companies(enabled.companies[0].id)

    assert enabled.state is MigrationState.READY


def test_a_pending_upgrade_stays_pending_when_there_is_no_company_to_create(ready):
    ready.run()

    ready.migration.create_companies(ready.companies[0].id)

    assert ready.state is MigrationState.UPGRADE_PENDING


def test_a_company_that_cannot_be_created_is_told_and_can_be_tried_again(enabled):
    mark(enabled, 0)
    with enabled.store.write() as connection:
        row = company_row("cronus international LTD.", "", enabled.runs[0].started_at)
        connection.execute(companies.insert().values(row))
    enabled.migration.create_companies(enabled.companies[0].id)
    enabled.work()

    assert enabled.state is MigrationState.CREATION_FAILED
    assert enabled.companies[0].status is CompanySetupStatus.ERROR
    with pytest.raises(StateError, match=r"creating companies failed: the environment already has a company 'cronus international LTD\.'"):
        enabled.migration.run_replication()

    with enabled.store.write() as connection:
        connection.execute(companies.delete().where(companies.c.id == row["id"]))
    enabled.migration.create_companies(enabled.companies[0].id)
    enabled.work()
    assert (enabled.state, enabled.companies[0].status) == (MigrationState.READY, CompanySetupStatus.COMPLETED)


def test_creation_that_was_cut_off_by_disabling_is_not_done_later(enabled):
    mark(enabled, 0)
    enabled.migration.create_companies(enabled.companies[0].id)
    enabled.migration.disable_replication()

    enabled.work()

    assert (enabled.state, enabled.companies[0].created) == (MigrationState.DISABLED, False)


def test_only_a_created_company_can_be_initialised_and_only_once_at_a_time(ready):
    company = ready.companies[0]
    ready.migration.initialize_company(company.id)
    with pytest.raises(StateError, match=r"the initialisation of company 'CRONUS International Ltd_' is still to come"):
        ready.migration.initialize_company(company.id)
    ready.work()

    assert ready.companies[0].init_status is CompanyInit.INITIALIZED
    ready.migration.initialize_company(company.id)


def test_a_company_that_was_never_created_cannot_be_initialised(enabled):
    with pytest.raises(StateError, match="has not been created"):
        enabled.migration.initialize_company(enabled.companies[0].id)


def test_a_failed_initialisation_has_its_own_error_and_does_not_block_a_run(ready):
    ready.migration.initialize_company(ready.companies[0].id)
    with ready.store.write() as connection:
        connection.execute(companies.delete().where(companies.c.name == ready.companies[0].name))
    ready.work()

    company = ready.companies[0]
    assert company.init_status is CompanyInit.INITIALIZATION_FAILED
    assert company.init_error == "the environment has no company 'CRONUS International Ltd_'"
    assert ready.state is MigrationState.READY
    ready.migration.run_replication()


def test_a_run_needs_a_marked_company_and_each_marked_one_created(ready):
    for n in (0, 1):
        mark(ready, n, False)
    with pytest.raises(StateError, match="no company is marked for replication") as raised:
        ready.migration.run_replication()
    assert raised.value.code == "50003"

    ready.in_source(ADD_COMPANY)
    ready.migration.change_setup(ready.setup.id, {}, ANY)
    mark(ready, 2)
    with pytest.raises(StateError, match="marked, but not created yet: New"):
        ready.migration.run_replication()


def test_the_environment_keeps_its_own_company_under_its_setting(lab):
    with lab.store.read() as connection:
        assert connection.scalars(sa.select(companies.c.name)).all() == ["CRONUS"]


def test_initialising_a_company_makes_sure_that_the_target_can_hold_it(ready):
    ready.migration.initialize_company(ready.companies[0].id)
    ready.work()

    assert ready.companies[0].init_status is CompanyInit.INITIALIZED
    assert ready.in_target("select count(*) from duckdb_schemas() where schema_name like 'CRONUS%'") == [(1,)]
    assert ready.in_target("select count(*) from duckdb_tables() where table_name like '%try%'") == [(0,)]


def test_a_target_that_cannot_hold_a_company_is_that_companys_own_error(ready):
    target = ready.migration.settings.home / "target.duckdb"
    with duckdb.connect(str(target)) as holder:
        holder.execute("create table held (a int)")
        target.rename(target.with_suffix(".away"))
    target.mkdir()
    ready.migration.initialize_company(ready.companies[0].id)
    ready.work()
    target.rmdir()
    target.with_suffix(".away").rename(target)

    first, second = ready.companies
    assert (first.init_status, second.init_status) == (CompanyInit.INITIALIZATION_FAILED, CompanyInit.NOT_INITIALIZED)
    assert "target.duckdb" in first.init_error and ready.state is MigrationState.READY
    ready.migration.initialize_company(first.id)
    ready.work()
    assert (ready.companies[0].init_status, ready.companies[0].init_error) == (CompanyInit.INITIALIZED, "")
    assert ready.run().tables_failed == 0


def test_a_name_that_the_target_must_cut_is_told_at_set_up(enabled, monkeypatch):
    monkeypatch.setattr("skylift.connectors.duckdb.DuckDBTarget.max_name_bytes", 20)
    enabled.migration.change_setup(enabled.setup.id, {}, ANY)

    assert "In the target, whose names are shorter, 'CRONUS International Ltd_' is 'CRONUS" in enabled.runs[0].details
