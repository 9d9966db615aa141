from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
import sqlalchemy as sa

from skylift.connectors import place_of
from skylift.connectors.sql import quote
from skylift.errors import Conflict, SetupError, SkyliftError, StateError
from skylift.migration import Migration
from skylift.migration import setup as looking
from skylift.migration.assessment import assess, record, sides_of
from skylift.model import Scope
from skylift.runs import CompanyInit, MigrationState, ReplicationType, RunStatus, Severity, SqlServerType, UpgradeStatus
from skylift.settings import Settings
from skylift.store import open_store
from skylift.store.tables import companies, migration, registry, source_companies
from tests.migration.lab import ADD_COMPANY, ANY, Lab

CUSTOMER = "CRONUS International Ltd_$Customer$437dbf0e-84ff-417a-965d-ed2bb9650972"


def registered(lab):
    with lab.store.read() as connection:
        return {(row.company_name, row.table_name) for row in connection.execute(sa.select(registry))}


def test_a_new_environment_has_one_company_of_its_own_and_no_setup(lab):
    with lab.store.read() as connection:
        [company] = connection.execute(sa.select(companies)).all()

    assert (company.name, lab.state) == ("CRONUS", MigrationState.NOT_SET_UP)
    assert (lab.companies, lab.runs) == ([], [])
    Migration(lab.store, lab.migration.settings)
    with lab.store.read() as connection:
        assert connection.execute(sa.select(companies)).all() == [company]


def test_setting_up_reads_companies_tables_and_apps(lab):
    setup = lab.migration.create_setup(lab.values)

    assert setup.state is MigrationState.ENABLED
    assert [(company.name, company.replicate, company.created) for company in lab.companies] == [
        ("CRONUS International Ltd_", False, False), ("Contoso A_S _Nordic_", False, False)]
    assert {company for company, _ in registered(lab)} == {"", "CRONUS International Ltd_", "Contoso A_S _Nordic_"}
    [run] = lab.runs
    assert (run.status, run.source, run.ended_at) == (RunStatus.COMPLETED, "Dynamics 365 Business Central earlier versions", run.started_at)
    assert run.run_id == run.run_id.upper()
    assert run.details == f"The migration has been set up. The source has 2 companies and {len(registered(lab))} tables."


def test_the_source_is_known_from_then_on_and_never_shown(lab):
    lab.source = lab.source.rename(lab.source.with_name("geheim.db"))
    setup = lab.migration.create_setup(lab.values)

    assert lab.setup == replace(setup, sql_connection_string="")
    lab.migration.change_setup(setup.id, {}, ANY)
    assert b"geheim" not in Path(lab.migration.settings.store.removeprefix("sqlite:///")).read_bytes()
    assert "geheim" not in repr(lab.events) + repr(lab.runs) + repr(lab.setup)


def test_without_a_runtime_name_a_self_hosted_source_gets_an_agent_always_the_same(lab):
    asked = {"product_id": "DynamicsBCLast"}
    first = lab.migration.create_setup(asked)
    again = lab.migration.change_setup(first.id, {"sql_connection_string": lab.values["sql_connection_string"]}, ANY)

    assert first.runtime_name and len(first.runtime_key) >= 32
    assert (again.runtime_name, again.runtime_key) == (first.runtime_name, first.runtime_key)
    assert (first.state, again.state, lab.companies) == (MigrationState.AWAITING_AGENT, MigrationState.AWAITING_AGENT, [])
    assert (lab.setup.runtime_name, lab.setup.runtime_key) == ("", "")


def test_the_runtime_name_sent_back_connects_with_what_was_stored(lab):
    first = lab.migration.create_setup({**lab.values, "sql_server_type": SqlServerType.SQL_SERVER})
    assert first.state is MigrationState.AWAITING_AGENT

    with pytest.raises(SetupError, match="there is no integration runtime 'other'"):
        lab.migration.change_setup(first.id, {"runtime_name": "other"}, ANY)
    assert lab.migration.change_setup(first.id, {"runtime_name": first.runtime_name}, ANY).state is MigrationState.ENABLED


def test_an_installed_runtime_connects_too(lab):
    first = lab.migration.create_setup({**lab.values, "sql_server_type": SqlServerType.SQL_SERVER})

    lab.migration.installed_integration_runtime(first.id)

    assert lab.state is MigrationState.ENABLED


def test_an_installed_runtime_without_a_source_says_what_is_missing(lab):
    first = lab.migration.create_setup({"product_id": "Custom"})

    with pytest.raises(SetupError, match="the source is not named"):
        lab.migration.installed_integration_runtime(first.id)


@pytest.mark.parametrize("values, code, message", [
    ({"product_id": ""}, "52010", "productId is missing"),
    ({"product_id": "DynamicsAX"}, "52010", "'DynamicsAX' is not a source product"),
    ({"product_id": "DynamicsBC"}, "50018", "the source has version 25"),
    ({"product_id": "DynamicsGP"}, "50018", "cannot read the catalogue"),
    ({"sql_connection_string": ""}, "52072", "the source is not named"),
    ({"sql_connection_string": "Data Source=srv;Database=bc;User Id=sa;Password=geheim;Encrpt=yes"}, "52072", "'Encrpt' is no keyword"),
    ({"sql_connection_string": "Data Source=srv;User Id=sa;Password=geheim"}, "52072", "it names no database"),
    ({"sql_connection_string": "bc.db"}, "52072", "the connection string is not a URL"),
    ({"sql_connection_string": "oracle://sa:geheim@srv/bc"}, "SetupError", "'oracle' is not a source that skylift knows"),
    ({"sql_connection_string": "sqlite:////nowhere/bc.db"}, "SetupError", "cannot be read"),
])
def test_a_setup_that_cannot_work_is_refused_and_nothing_is_kept(lab, values, code, message):
    before = lab.dump()

    with pytest.raises(SetupError) as raised:
        lab.migration.create_setup({**lab.values, **values})

    assert raised.value.code == code and message in raised.value.message
    assert raised.value.hint and "geheim" not in str(raised.value)
    assert lab.dump() == before


def test_a_target_that_cannot_be_written_is_told_at_set_up(lab):
    lab.migration.settings.home.joinpath("target.duckdb").write_text("this is no DuckDB file" * 100)

    with pytest.raises(SetupError, match=r"target\.duckdb cannot be written"):
        lab.migration.create_setup(lab.values)
    assert lab.state is MigrationState.NOT_SET_UP


def test_a_source_company_named_as_the_environments_own_is_told_at_set_up(lab):
    lab.in_source("update Company set Name = 'Cronus' where Name like 'CRONUS%'")

    with pytest.raises(SetupError, match="the source's company 'Cronus' has the name of the environment's own company 'CRONUS'"):
        lab.migration.create_setup(lab.values)
    assert lab.companies == []


def test_set_up_a_second_time_is_refused_and_changing_it_reads_the_source_again(ready):
    with pytest.raises(StateError, match="the migration is set up already"):
        ready.migration.create_setup(ready.values)
    ready.in_source("delete from Company where Name like 'Contoso%'",
                    ADD_COMPANY)

    changed = ready.migration.change_setup(ready.setup.id, {}, ANY)

    assert changed.state is MigrationState.READY
    assert [(company.name, company.replicate, company.created) for company in ready.companies] == [
        ("CRONUS International Ltd_", True, True), ("Contoso A_S _Nordic_", False, True), ("New", False, False)]


def test_somebody_elses_change_is_a_conflict_and_changes_nothing(ready):
    before = ready.dump()

    def stale(row):
        raise Conflict("changed")

    with pytest.raises(Conflict):
        ready.migration.change_setup(ready.setup.id, {}, stale)
    with pytest.raises(Conflict):
        ready.migration.change_company(ready.companies[0].id, {"replicate": False}, stale)
    assert ready.dump() == before


def test_the_product_cannot_be_changed_once_a_company_is_upgraded(ready):
    with ready.store.write() as connection:
        connection.execute(source_companies.update().values(upgrade_status=UpgradeStatus.COMPLETED))

    with pytest.raises(StateError, match="already upgraded are CRONUS International Ltd_, Contoso"):
        ready.migration.change_setup(ready.setup.id, {"product_id": "Custom"}, ANY)


def target_of(lab):
    with lab.store.read() as connection:
        return lab.migration.box.open(connection.scalar(sa.select(migration.c.target_url)))


def test_the_target_stays_unless_a_process_is_told_another_one(ready, tmp_path):
    settings = ready.migration.settings
    elsewhere = f"duckdb:///{tmp_path}/other.duckdb"
    assert target_of(ready) == settings.target

    Migration(ready.store, Settings(home=settings.home, target=elsewhere)).change_setup(ready.setup.id, {}, ANY)
    assert target_of(ready) == elsewhere
    ready.migration.change_setup(ready.setup.id, {}, ANY)
    assert target_of(ready) == elsewhere


def test_in_another_target_nothing_is_created_or_copied_yet(ready, tmp_path):
    ready.run()
    elsewhere = Migration(ready.store, replace(ready.migration.settings, target=f"duckdb:///{tmp_path}/other.duckdb"))
    elsewhere.change_setup(ready.setup.id, {}, ANY)

    assert {(c.replicate, c.created, c.init_status, c.upgrade_status) for c in ready.companies} == {
        (True, False, CompanyInit.UNKNOWN, UpgradeStatus.NONE)}
    with pytest.raises(StateError, match="marked, but not created yet"):
        ready.migration.run_replication()
    ready.migration.complete_setup(ready.setup.id)
    ready.work()
    assert ready.run().replication_type is ReplicationType.FULL


def test_the_target_cannot_be_changed_once_a_company_is_upgraded(ready, tmp_path):
    with ready.store.write() as connection:
        connection.execute(source_companies.update().values(upgrade_status=UpgradeStatus.COMPLETED))
    elsewhere = Migration(ready.store, replace(ready.migration.settings, target=f"duckdb:///{tmp_path}/other.duckdb"))

    with pytest.raises(StateError, match="the target cannot be changed: already upgraded are"):
        elsewhere.change_setup(ready.setup.id, {}, ANY)


def test_completing_the_set_up_adds_the_default_mappings_once_and_creates_companies(lab):
    setup = lab.migration.create_setup(lab.values)
    lab.migration.change_company(lab.companies[0].id, {"replicate": True}, ANY)
    lab.migration.complete_setup(setup.id)
    assert (lab.state, len(lab.mappings)) == (MigrationState.CREATING_COMPANIES, 1)

    lab.work()
    lab.migration.complete_setup(setup.id)

    assert (lab.state, len(lab.mappings)) == (MigrationState.READY, 1)
    assert [company.created for company in lab.companies] == [True, False]


def triggers(lab):
    return lab.in_source("select count(*) from sqlite_schema where name like '\\_skylift%' escape '\\'")[0][0][0]


def test_disabling_removes_what_was_installed_in_the_source_and_twice_is_once(ready):
    ready.run()
    assert triggers(ready)

    ready.migration.disable_replication(ready.runs[0].id)
    after = ready.dump()
    ready.migration.disable_replication()

    assert (ready.state, triggers(ready)) == (MigrationState.DISABLED, 0)
    assert ready.runs[0].details == "The migration has been disabled."
    assert ready.dump() == after


def test_disabling_without_a_source_says_what_was_left_there_and_once_more_removes_it(ready):
    ready.run()
    away = ready.source.rename(ready.source.with_suffix(".away"))

    ready.migration.disable_replication()

    assert ready.state is MigrationState.DISABLED
    assert "What skylift installed in the source could not be removed: SQLite file" in ready.runs[0].details
    with pytest.raises(SetupError, match="cannot be read"):
        ready.migration.disable_replication()
    away.rename(ready.source)
    assert triggers(ready) > 0
    ready.migration.disable_replication()
    assert triggers(ready) == 0


def test_a_disabled_migration_that_is_set_up_again_goes_on(ready):
    ready.run()
    ready.migration.disable_replication()
    ready.migration.change_setup(ready.setup.id, {}, ANY)
    assert ready.state is MigrationState.ENABLED
    ready.migration.complete_setup(ready.setup.id)

    assert ready.run().status is RunStatus.UPGRADE_PENDING


def test_completing_asks_for_the_upgrade_and_for_tables_without_failure(ready):
    ready.run()
    with pytest.raises(StateError, match="the data upgrade is pending"):
        ready.migration.complete_cloud_migration()
    ready.migration.run_data_upgrade()
    ready.work()

    ready.migration.complete_cloud_migration(ready.runs[0].id)
    after = ready.dump()
    ready.migration.complete_cloud_migration()

    assert (ready.state, triggers(ready), ready.dump()) == (MigrationState.DISABLED, 0, after)
    assert ready.runs[0].details == "The cloud migration has been completed."


def test_completing_with_a_failed_table_is_refused(ready):
    setup = ready.migration.change_setup(ready.setup.id, {"product_id": "Custom"}, ANY)
    [company] = [company for company in ready.companies if company.name == "bc"]
    ready.migration.change_company(company.id, {"replicate": True}, ANY)
    for other in ready.companies:
        ready.migration.change_company(other.id, {"replicate": other.name == "bc"}, ANY)
    ready.migration.complete_setup(setup.id)
    ready.work()
    ready.run()
    ready.in_source('alter table "Company" add column extra')
    ready.run()

    with pytest.raises(StateError, match="1 table has failed: bc Company"):
        ready.migration.complete_cloud_migration()
    ready.run(kind=ReplicationType.FULL)
    ready.migration.complete_cloud_migration()


def test_completing_without_a_source_fails_and_leaves_the_migration_as_it_is(ready, monkeypatch):
    monkeypatch.setattr("skylift.migration.ending.RETRY_S", 0)
    ready.run()
    ready.migration.run_data_upgrade()
    ready.work()
    ready.source.unlink()

    with pytest.raises(SkyliftError, match="cannot be read"):
        ready.migration.complete_cloud_migration()
    assert ready.state is MigrationState.UPGRADED


def test_a_set_up_made_while_another_was_looking_at_the_source_is_not_overwritten(lab, monkeypatch):
    real = looking.discover

    def look_slowly(*arguments):
        monkeypatch.setattr(looking, "discover", real)
        lab.migration.create_setup(lab.values)
        return real(*arguments)

    monkeypatch.setattr(looking, "discover", look_slowly)
    with pytest.raises(StateError, match="the migration is set up already"):
        lab.migration.create_setup(lab.values)
    assert len(lab.runs) == 1


def test_the_first_run_replaces_nothing_that_another_migration_has_copied(ready, tmp_path):
    """Two SQLite files of one name fill one schema: the rows of a migration that is completed must not go."""
    ready.run()
    held = ready.in_target("select schema_name, table_name, rows, digest from _skylift_tables order by all")
    other = Settings(home=tmp_path / "other", store=f"sqlite:///{tmp_path}/other.db", target=ready.migration.target)
    second = Lab(Migration(open_store(other.store), other), ready.source)
    second.prepare()

    refused = second.run()

    assert refused.status is RunStatus.FAILED and "tables that another migration has copied" in refused.details
    assert ready.in_target("select schema_name, table_name, rows, digest from _skylift_tables order by all") == held
    for schema, table, *_ in held:
        ready.in_target(f'drop table {quote(schema or "main")}.{quote(table)}')
    assert second.run().status is RunStatus.UPGRADE_PENDING


def at(ready, target, home=""):
    """The same migration with another target, or with `home` another one of the same source."""
    settings = replace(ready.migration.settings, target=target)
    if not home:
        return Lab(Migration(ready.store, settings, "tester"), ready.source)
    settings = replace(settings, home=home, store=f"sqlite:///{home}/store.db")
    return Lab(Migration(open_store(settings.store), settings), ready.source)


def move(lab):
    lab.migration.change_setup(lab.setup.id, {}, ANY)
    lab.migration.complete_setup(lab.setup.id)
    lab.work()


def ledger(file):
    with duckdb.connect(str(file)) as database:
        return database.execute("select schema_name, table_name, rows, digest from _skylift_tables order by all").fetchall()


def mark(lab, name, marked):
    [company] = [company for company in lab.companies if company.name == name]
    lab.migration.change_company(company.id, {"replicate": marked}, ANY)


def test_after_a_change_of_target_nothing_is_replaced_that_another_migration_has_copied_there(ready, tmp_path):
    """Runs into the old target say nothing of the new one; back in the old one, the tables there are its own."""
    theirs = at(ready, f"duckdb:///{tmp_path}/theirs.duckdb", home=tmp_path / "theirs")
    theirs.prepare()
    theirs.run()
    held = ledger(tmp_path / "theirs.duckdb")
    ready.in_source(f'delete from "{CUSTOMER}"')
    mine = at(ready, f"duckdb:///{tmp_path}/mine.duckdb")
    move(mine)
    assert mine.run().status is RunStatus.UPGRADE_PENDING
    moved = at(ready, theirs.migration.settings.target)
    move(moved)

    refused = moved.run()

    assert refused.status is RunStatus.FAILED and "tables that another migration has copied" in refused.details
    assert ledger(tmp_path / "theirs.duckdb") == held
    found = record(moved.migration, assess(moved.migration, sides_of(moved.migration)))
    assert {finding.code for finding in found if finding.severity is Severity.BLOCKING} == {"TargetInUse"}
    with pytest.raises(StateError, match="TargetInUse") as blocked:
        moved.run()
    assert "accept" not in blocked.value.hint
    with pytest.raises(SetupError, match="cannot be accepted"):
        moved.migration.accept_findings("TargetInUse", "it is ours")
    move(mine)
    assert mine.run().status is RunStatus.UPGRADE_PENDING


def test_a_company_that_joins_later_replaces_nothing_that_another_migration_has_copied(ready, tmp_path):
    file = ready.migration.settings.home / "target.duckdb"
    theirs = at(ready, f"duckdb:///{file}", home=tmp_path / "theirs")
    theirs.prepare()
    second = ready.companies[1].name
    mark(ready, second, False)
    for run in (ready.run(), theirs.run(scope=Scope((second,), ("Customer",)))):
        assert run.status is RunStatus.UPGRADE_PENDING, run.details
    held = ledger(file)
    ready.in_source(f'delete from "{second}{CUSTOMER.removeprefix(ready.companies[0].name)}"')
    mark(ready, second, True)

    refused = ready.run()

    assert refused.status is RunStatus.FAILED and "tables that another migration has copied" in refused.details
    assert ledger(file) == held
    mark(ready, second, False)
    assert ready.run().status is RunStatus.UPGRADE_PENDING


def test_a_target_has_one_place_whoever_signs_in_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = [place_of(url) for url in (
        "postgresql://a:x@Host/db", "postgresql://b:y@host:5432/db?connect_timeout=3", "postgresql://host:5433/db", "duckdb:///t.duckdb",
        f"duckdb:///{tmp_path}/t.duckdb", "mssql://u:p@host/db", "parquet://k:s@bucket/p?endpoint=http://one", "parquet://bucket/p")]

    assert places[0] == places[1] and places[3] == places[4] and len(set(places)) == 6
