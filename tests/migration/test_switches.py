"""Switches of single tables: include, leave out, preserve, replace, unblock."""

import duckdb
import pytest

from skylift.errors import CopyError, SetupError, StateError
from skylift.migration import runner
from skylift.model import Progress, Scope
from skylift.runs import MigrationState, ReplicationType, RunStatus, TableStatus, UpgradeStatus
from tests.migration.lab import ANY
from tests.migration.test_parts import CONTOSO, failing
from tests.migration.test_replication import CRONUS, CUSTOMER

TAGS = "Upgrade Tags$63ca2fa4-4f03-4f2b-a480-172fef340d3f"


def switch(lab, name, company="", **values):
    return lab.migration.change_table(lab.switch(name, company).id, values, ANY)


def edit_target(lab, *statements):
    with duckdb.connect(str(lab.migration.settings.home / "target.duckdb")) as database:
        for statement in statements:
            database.execute(statement)


def test_a_table_that_is_left_out_is_not_copied_not_compared_and_holds_nothing_up(ready, monkeypatch):
    failing(monkeypatch, CUSTOMER)
    ready.run()
    monkeypatch.undo()
    for company in (CRONUS, CONTOSO):
        switch(ready, CUSTOMER, company, replicate=False)

    ready.in_source(f'update "{CRONUS}${CUSTOMER}" set "Name" = \'new\'')
    run = ready.run()

    assert not any(name == CUSTOMER for _, name in ready.tables(run))
    ready.migration.run_data_upgrade()
    ready.work()
    assert ready.state is MigrationState.UPGRADED
    ready.migration.complete_cloud_migration()
    told = f"2 tables were left out: {CRONUS} {CUSTOMER}, {CONTOSO} {CUSTOMER}."
    assert ready.runs[0].details == f"The cloud migration has been completed. {told}"
    assert [event.why for event in ready.events if event.event == "disable"] == [ready.runs[0].details]


def test_a_table_that_is_included_again_gets_what_it_missed(ready):
    ready.run()
    switch(ready, CUSTOMER, CRONUS, replicate=False)
    ready.in_source(f'delete from "{CRONUS}${CUSTOMER}"')
    ready.run()
    switch(ready, CUSTOMER, CRONUS, replicate=True)
    run = ready.run()

    assert ready.tables(run)[CRONUS, CUSTOMER].mode == "incremental"
    assert ready.in_target(f'select count(*) from "{CRONUS}"."{CUSTOMER}"') == [(0,)]
    assert [(e.event, e.actor) for e in ready.events if e.subject == f"table {CRONUS} {CUSTOMER}"] == [
        ("leave_out", "tester"), ("include", "tester")]


def test_a_switch_that_changes_nothing_is_not_logged(ready):
    before = ready.dump()

    assert switch(ready, CUSTOMER, CRONUS, replicate=True, preserve=False).replicate
    assert ready.dump() == before


def test_a_preserved_table_keeps_what_the_target_holds_and_says_how_many_rows(ready):
    ready.run()
    switch(ready, "Feature Key", preserve=True)
    edit_target(ready, """update "Feature Key" set "Enabled" = 77 where "ID" in (select min("ID") from "Feature Key")""",
                """insert into "Feature Key" select * replace ('THEIRS' as "ID") from "Feature Key" limit 1""")
    ready.in_source("""insert into "Feature Key" (timestamp, "ID", "Enabled") values (1, 'NEW', 0)""",
                    'update "Feature Key" set "Enabled" = 5', """delete from "Feature Key" where "ID" = (select max("ID") from "Feature Key"
                     where "ID" <> 'NEW')""")
    run = ready.run()

    table = ready.tables(run)["", "Feature Key"]
    assert (table.status, table.mode, table.inserted, table.updated, table.deleted) == (TableStatus.SUCCESSFUL, "incremental", 1, 0, 0)
    assert table.orphans == 1 and table.kept > 0
    assert "1 rows of the target are not in the source and stay" in table.errors
    assert ready.in_target("""select count(*) from "Feature Key" where "ID" in ('THEIRS', 'NEW') or "Enabled" = 77""") == [(3,)]
    ready.migration.run_data_upgrade()                  # which does not take others' rows for damage
    ready.work()
    assert ready.state is MigrationState.UPGRADED
    ready.migration.complete_cloud_migration()


def test_a_full_run_preserves_too_until_somebody_asks_to_replace(ready):
    ready.run()
    switch(ready, "Feature Key", preserve=True)
    edit_target(ready, """insert into "Feature Key" select * replace ('THEIRS' as "ID") from "Feature Key" limit 1""")
    ready.run(kind=ReplicationType.FULL)
    theirs = """select count(*) from "Feature Key" where "ID" = 'THEIRS'"""
    assert ready.in_target(theirs) == [(1,)]

    switch(ready, "Feature Key", preserve=False)
    run = ready.run()
    assert ready.tables(run)["", "Feature Key"].mode == "full"
    assert ready.in_target(theirs) == [(0,)]


@pytest.mark.parametrize(("name", "company", "preserve", "code"), [
    (CUSTOMER, CRONUS, True, "PerCompany"), (TAGS, "", True, "Protected"), ("Tenant Media", "", False, "Protected")])
def test_what_cannot_be_preserved_or_replaced_is_refused_by_name(ready, name, company, preserve, code):
    before = ready.dump()

    with pytest.raises(SetupError) as raised:
        switch(ready, name, company, preserve=preserve)
    assert raised.value.code == code and name in raised.value.message and raised.value.hint
    assert ready.dump() == before


def test_media_are_preserved_from_the_beginning(ready):
    assert ready.switch("Tenant Media").preserve and not ready.switch("Feature Key").preserve
    ready.run()
    edit_target(ready, """delete from "Tenant Media" where "Description" is null""",
                """insert into "Tenant Media" select * replace ('theirs' as "ID") from "Tenant Media" limit 1""")

    ready.run(kind=ReplicationType.FULL)

    assert ready.in_target("""select count(*) from "Tenant Media" where "ID" = 'theirs'""") == [(1,)]


def test_what_was_decided_about_a_table_outlives_its_absence_from_the_source(ready):
    ready.run()
    switch(ready, "Feature Key", preserve=True)
    ready.in_source('alter table "Feature Key" rename to "Feature Key away"')
    gone = ready.run()
    assert ready.tables(gone)["", "Feature Key"].error_code == "50004"
    ready.in_source('alter table "Feature Key away" rename to "Feature Key"')
    edit_target(ready, """insert into "Feature Key" select * replace ('THEIRS' as "ID") from "Feature Key" limit 1""")
    ready.run()

    assert ready.switch("Feature Key").preserve
    assert ready.in_target("""select count(*) from "Feature Key" where "ID" = 'THEIRS'""") == [(1,)]


def test_an_unblocked_table_holds_up_nothing_and_is_tried_again(ready, monkeypatch):
    failing(monkeypatch, CUSTOMER)
    run = ready.run()
    monkeypatch.undo()
    assert ready.switch(CUSTOMER, CRONUS).blocked

    unblocked = ready.migration.unblock_table(ready.switch(CUSTOMER, CRONUS).id)

    assert not unblocked.blocked
    table = ready.tables(run)[CRONUS, CUSTOMER]
    assert (table.status, table.error_code) == (TableStatus.SUCCESSFUL, "Unblocked")
    assert table.errors == "Unblocked by tester, not copied: cannot be copied"
    with pytest.raises(StateError, match=f"1 table has failed: {CONTOSO} Customer"):
        ready.migration.run_data_upgrade()
    ready.migration.unblock_table(ready.switch(CUSTOMER, CONTOSO).id)
    ready.migration.run_data_upgrade()
    ready.work()
    assert ready.state is MigrationState.UPGRADED
    with pytest.raises(StateError, match="2 tables are not in the target"):      # accepted for the upgrade; completion looks itself
        ready.migration.complete_cloud_migration()


def test_the_next_run_copies_an_unblocked_table(ready, monkeypatch):
    failing(monkeypatch, CUSTOMER)
    ready.run()
    monkeypatch.undo()
    for company in (CRONUS, CONTOSO):
        ready.migration.unblock_table(ready.switch(CUSTOMER, company).id)

    table = ready.tables(ready.run())[CRONUS, CUSTOMER]
    assert (table.status, table.mode, table.error_code) == (TableStatus.SUCCESSFUL, "full", "")


def test_a_reset_asks_for_unblocked_tables_again(ready, monkeypatch):
    failing(monkeypatch, CUSTOMER)
    ready.run()
    for company in (CRONUS, CONTOSO):
        ready.migration.unblock_table(ready.switch(CUSTOMER, company).id)
    ready.migration.reset_cloud_data()

    with pytest.raises(StateError, match="yet to be copied"):
        ready.migration.run_data_upgrade()


def test_the_last_table_to_be_unblocked_lets_the_upgrade_follow_a_run_that_failed(ready, monkeypatch):
    """§5.10: no failures left, then the last row is UpgradePending and the companies Pending."""
    monkeypatch.setattr(runner, "copy_tables", lambda tasks, source, target, **options: (
        Progress(task, TableStatus.FAILED, error=CopyError("nothing goes")) for task in tasks))
    run = ready.run(scope=Scope(companies=(CRONUS,), tables=("Customer",)))
    assert (run.status, ready.state) == (RunStatus.FAILED, MigrationState.READY)
    for name in (CUSTOMER, f"{CUSTOMER}$ext"):
        assert ready.state is MigrationState.READY
        ready.migration.unblock_table(ready.switch(name, CRONUS).id)

    assert (ready.state, ready.migration.get(type(run), run.id).status) == (MigrationState.UPGRADE_PENDING, RunStatus.UPGRADE_PENDING)
    assert ready.companies[0].upgrade_status is UpgradeStatus.PENDING


def test_only_a_blocked_table_can_be_unblocked(ready):
    ready.run()

    with pytest.raises(StateError, match="is not blocked") as raised:
        ready.migration.unblock_table(ready.switch(CUSTOMER, CRONUS).id)
    assert raised.value.code == "NotBlocked"
