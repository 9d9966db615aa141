from uuid import UUID

import pytest

from skylift.errors import Conflict, SetupError
from skylift.model import App, RunTableProgress
from skylift.query import Query
from skylift.runs import RunStatus, TableMappingType, TableStatus
from skylift.sample import REMOVED
from tests.migration.lab import ANY

CRONUS, CONTOSO = "CRONUS International Ltd_", "Contoso A_S _Nordic_"


@pytest.fixture
def apps(ready):
    return {app.name: app.id for app in ready.migration.select(App, Query())}


@pytest.fixture
def create(ready, apps):
    def create(app="Rental", **values):
        return ready.migration.create_mapping({"app_id": apps[app], **values})
    return create


def copied_to(lab, name):
    """Companies whose schema in the target has a table of that name."""
    return {row[0] for row in lab.in_target(f"select schema_name from duckdb_tables() where table_name = '{name}'")}


def test_a_mapping_is_answered_with_what_follows_from_it(create, ready, apps):
    mapping = create(table_name="New Note", source_table_name="[dbo].[CRONUS$Legacy Note]", table_id=50_001)

    assert (mapping.extension_name, mapping.source_table_name, mapping.per_company) == ("Rental", "Legacy Note", True)
    assert mapping in ready.mappings
    assert ready.events[-1].why == "Table: Legacy Note -> New Note of Rental"


def test_a_mapped_table_goes_to_its_new_name_in_every_company(create, ready, apps):
    create(table_name="New Note", source_table_name="Legacy Note")
    run = ready.run()

    name = f"New Note${apps['Rental']}"
    assert run.status is RunStatus.UPGRADE_PENDING
    assert copied_to(ready, name) == {CRONUS, CONTOSO}
    assert copied_to(ready, "Legacy Note") == set()
    [(rows,)], [(copied,)] = ready.in_source(f'select count(*) from "{CRONUS}$Legacy Note"')[0], ready.in_target(
        f'select count(*) from "{CRONUS}"."{name}"')
    assert rows == copied > 0


def test_a_table_that_takes_no_part_by_itself_takes_part_through_a_mapping(create, ready, apps):
    leftover = f"Payroll Leftover${REMOVED}"
    create(table_name="Rescued", source_table_name=f"[{leftover}]")

    run = ready.run()

    assert copied_to(ready, f"Rescued${apps['Rental']}") == {"main"}
    [[(rows,)]] = ready.in_source(f'select count(*) from "{leftover}"')
    assert ready.tables(run)["", f"Rescued${apps['Rental']}"].total_records == rows > 0


def test_the_record_links_go_to_their_buffer_by_default(ready):
    ready.run()

    assert copied_to(ready, "Replication Record Link Buffer$58623bfa-0559-4bc2-ae1c-0979c29fd9e0") == {"main"}
    assert copied_to(ready, "Record Link") == set()


def test_a_mapping_whose_source_table_is_not_there_is_a_warning(create, ready):
    create(table_name="New", source_table_name="Nowhere")
    run = ready.run()

    warnings = [table for table in ready.tables(run).values() if table.status is TableStatus.WARNING]
    assert {table.company_name for table in warnings} == {CRONUS, CONTOSO}
    assert {(table.error_code, table.errors) for table in warnings} == {("50004", "the source has no table 'Nowhere'")}
    assert (run.status, run.tables_failed) == (RunStatus.UPGRADE_PENDING, 0)
    assert " 2 tables have a warning: " in run.details
    assert f"{CRONUS} New$" in run.details and "the source has no table 'Nowhere'; " in run.details
    assert run.details.startswith(f"All {len(ready.tables(run)) - 2} tables were copied and verified.")


def test_a_table_extension_that_cannot_be_filled_yet_is_a_warning(create, ready):
    create("Base Application", target_table_type=TableMappingType.TABLE_EXTENSION, table_name="Customer Ext",
           source_table_name="Customer", table_id=-50_000)
    run = ready.run()

    warnings = [table for table in ready.tables(run).values() if table.status is TableStatus.WARNING]
    assert {table.error_code for table in warnings} == {"TableExtension"} and "copied with all its fields" in warnings[0].errors


@pytest.mark.parametrize("app, values, message", [
    ("Base Application", {"table_name": "Customer"}, "'Base Application' is an app of Microsoft, whose tables cannot be mapped"),
    ("Rental", {}, "a mapping needs tableName and sourceTableName"),
    ("Rental", {"table_name": "New", "source_table_name": ""}, "a mapping needs tableName and sourceTableName"),
    ("Rental", {"table_name": "New", "per_company": False}, "whether a table is there once per company follows from its source table"),
    ("Rental", {"table_name": "Import Buffer", "source_table_name": "Legacy Note"},
     "'Import Buffer' already gets its rows from the source's table of that name"),
    ("Rental", {"table_name": "IMPORT BUFFER", "source_table_name": "Legacy Note"}, "already gets its rows"),
])
def test_a_mapping_that_breaks_a_rule_is_refused(create, app, values, message):
    with pytest.raises(SetupError) as raised:
        create(app, **values)

    assert message in raised.value.message and raised.value.hint


def test_an_app_that_is_not_published_is_refused(ready):
    with pytest.raises(SetupError, match="app 00000000-0000-0000-0000-000000000007 is not published"):
        ready.migration.create_mapping({"app_id": UUID(int=7), "table_name": "X"})


def test_one_target_table_has_one_source_but_one_source_may_fill_several(create):
    create(table_name="New", source_table_name="Legacy Note", table_id=50_001)

    with pytest.raises(SetupError, match="'new' already gets its rows from 'Legacy Note'"):
        create(table_name="new", source_table_name="Other")
    create(table_name="Newer", source_table_name="legacy note")
    with pytest.raises(Conflict, match="table 50001 of app"):
        create(table_name="Newest", source_table_name="Other", table_id=50_001)


def test_another_app_clears_the_names_and_what_is_not_sent_stays(create, ready, apps):
    mapping = create(table_name="New", source_table_name="Legacy Note", table_id=50_001)
    assert ready.migration.change_mapping(mapping.id, {"table_id": 50_002}, ANY).table_name == "New"
    ready.run()
    assert ready.migration.change_mapping(mapping.id, {"table_id": 50_003}, ANY).source_table_name == "Legacy Note"

    with pytest.raises(SetupError, match="a mapping needs tableName"):
        ready.migration.change_mapping(mapping.id, {"app_id": UUID("58623bfa-0559-4bc2-ae1c-0979c29fd9e0")}, ANY)


def test_all_mappings_of_an_app_are_deleted_and_the_defaults_come_back(create, ready):
    first = create(table_name="New", source_table_name="Legacy Note")
    create(table_name="Newer", source_table_name="Other")
    [default] = [mapping for mapping in ready.mappings if mapping.extension_name == "Intelligent Cloud Base"]

    ready.migration.delete_all_for_extension(first.id)
    assert ready.mappings == [default]
    ready.migration.delete_mapping(default.id, ANY)
    assert ready.mappings == []

    again = create(table_name="New", source_table_name="Legacy Note")
    ready.migration.restore_defaults(again.id)
    assert [mapping.table_name for mapping in ready.mappings] == ["Replication Record Link Buffer"]


def test_removing_a_mapping_after_a_run_sends_the_table_home_again(create, ready):
    mapping = create(table_name="New Note", source_table_name="Legacy Note")
    ready.run()
    ready.migration.delete_mapping(mapping.id, ANY)

    run = ready.run()

    assert copied_to(ready, "Legacy Note") == {CRONUS, CONTOSO}
    gone: list[RunTableProgress] = [table for table in ready.tables(run).values() if table.table_name.startswith("New Note")]
    assert {(table.status, table.error_code) for table in gone} == {(TableStatus.WARNING, "50004")}
