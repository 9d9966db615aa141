"""Warnings after runs, and the checklist: by verb, command line and API v2.0."""

import json

import pytest
from typer.testing import CliRunner

from skylift.cli import app
from skylift.errors import NotFound, StateError
from skylift.migration.warnings import settle
from skylift.model import MigrationWarning
from skylift.query import Query
from skylift.runs import ChecklistStep, MigrationState, ReplicationType, RunStatus, WarningType
from tests.api.conftest import Client, open_client
from tests.migration.lab import ANY

BUFFER = '"Replication Record Link Buffer$58623bfa-0559-4bc2-ae1c-0979c29fd9e0"'
ROOT = "/api/skylift/cloudMigration/v2.0"


def warnings(lab):
    return {warning.type: warning for warning in lab.migration.select(MigrationWarning, Query())}


def delete_in_target(lab, *statements):
    import duckdb

    with duckdb.connect(str(lab.migration.settings.home / "target.duckdb")) as database:
        for statement in statements:
            database.execute(statement)


def test_record_links_in_their_buffer_are_warned_of_until_ignored_and_again_when_there_are_others(ready):
    [(count,)] = ready.in_source('select count(*) from "Record Link"')[0]
    ready.run(kind=ReplicationType.DIAGNOSTIC)
    assert warnings(ready) == {}
    ready.run()
    assert ready.in_target(f"select count(*) from {BUFFER}") == [(count,)]
    warning = warnings(ready)[WarningType.RECORD_LINK]
    assert warning.message.startswith(f"{count:,} record links")
    ready.migration.change_warning(warning.id, {"ignored": True}, ANY)

    ready.run()                                                       # the same links: nothing new to say
    assert warnings(ready)[WarningType.RECORD_LINK].ignored_by == "tester"
    ready.in_source('delete from "Record Link" where rowid = 1')
    ready.run()
    again = warnings(ready)[WarningType.RECORD_LINK]
    assert (again.ignored, again.message.split()[0]) == (False, f"{count - 1:,}")
    ready.in_source('delete from "Record Link"')
    ready.run()
    assert WarningType.RECORD_LINK not in warnings(ready)
    told = [(event.event, event.subject) for event in ready.events if event.subject == "warning RecordLink"]
    assert [event for event, _ in told] == ["warn", "ignore", "warn"]


def test_media_that_somebody_deleted_in_the_target_are_warned_of_once_and_an_unchanged_number_is_no_warning(ready):
    ready.run()
    ready.run()                                                       # as many as before
    assert WarningType.TENANT_MEDIA not in warnings(ready)
    [(name, before)] = ready.in_target("select table_name, estimated_size from duckdb_tables() where table_name like 'Tenant Media%'")
    delete_in_target(ready, f'delete from "{name}" where rowid < 2')
    ready.run()
    assert warnings(ready)[WarningType.TENANT_MEDIA].message.startswith(f"the target holds {before - 2} rows of media, 2 fewer")
    ready.run()
    assert WarningType.TENANT_MEDIA not in warnings(ready)


def test_a_failed_run_changes_no_warning_and_a_run_of_other_tables_neither(ready, monkeypatch):
    from skylift.migration import runner
    from skylift.model import Scope

    ready.run()
    before = warnings(ready)
    ready.in_source('delete from "Record Link"')
    ready.run(scope=Scope(tables=("Customer",)))
    assert warnings(ready) == before
    monkeypatch.setattr(runner, "end_run", lambda verb, run: runner.end_cancelled(verb, run) and RunStatus.FAILED)
    ready.run()
    assert warnings(ready) == before


def test_a_message_is_cut_where_the_api_would_cut_it(ready):
    with ready.migration.verb() as verb:
        settle(verb, WarningType.MIGRATION_VALIDATOR, "x" * 2000)
    assert len(warnings(ready)[WarningType.MIGRATION_VALIDATOR].message) == 1024


def test_ticking_a_step_ticks_it_in_every_company_and_the_end_ticks_itself(ready):
    items = ready.migration.checklist()
    assert len(items) == len(ChecklistStep) * len(ready.companies) == len({item.id for item in items})
    done = ready.migration.change_checklist(items[0].id, {"done": True}, ANY)
    assert (done.step, done.done_by) == (items[0].step, "tester") and done.done_at
    assert {(item.company_name, item.step) for item in ready.migration.checklist() if item.done} == {
        (company.name, items[0].step) for company in ready.companies}
    ready.migration.tick(items[0].step)                               # once more does nothing
    assert [event.event for event in ready.events if event.subject.startswith("checklist")] == ["tick"]
    ready.migration.tick(items[0].step, False)
    assert not any(item.done for item in ready.migration.checklist())

    with pytest.raises(StateError, match="ticked by itself"):
        ready.migration.tick(ChecklistStep.END)
    ready.migration.disable_replication()
    assert {item.step for item in ready.migration.checklist() if item.done} == {ChecklistStep.END}
    with pytest.raises(NotFound):
        ready.migration.change_checklist(ready.setup.id, {"done": True}, ANY)


def test_the_commands_show_and_change_both(ready, monkeypatch):
    ready.run()
    monkeypatch.setenv("SKYLIFT_HOME", str(ready.migration.settings.home))

    def call(*arguments, code=0):
        result = CliRunner().invoke(app, [*arguments, "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    [warning] = call("warnings")
    assert warning["type"] == "RecordLink"
    assert call("warnings", "--ignore", warning["id"][:8]) == []
    assert call("warnings", "--all")[0]["ignored_by"] == "cli"
    assert call("warnings", "--attend", "recordlink")[0]["ignored"] is False
    assert call("warnings", "--ignore", "nothing", code=2)["error"]["code"] == "WarningNotFound"
    assert {item["step"] for item in call("checklist", "--done", "usersout") if item["done"]} == {"UsersOut"}
    assert not any(item["done"] for item in call("checklist", "--undo", "UsersOut"))
    assert "FinalRun" in call("checklist", "--done", "Everything", code=2)["error"]["hint"]
    assert call("checklist", "--done", "EndMigration", code=3)["error"]["code"] == "TickedByItself"
    for command in ("warnings", "checklist"):                         # for people
        assert CliRunner().invoke(app, [command]).exit_code == 0


def test_the_api_shows_and_changes_both(ready):
    ready.run()
    api = open_client(ready.migration.settings.home)
    client = Client(api.http, api.token, ROOT)
    [warning] = client.rows("warnings?$filter=ignored eq false")
    assert warning["type"] == "RecordLink" and warning["message"].startswith("20 record links")
    changed = client.ask("PATCH", f"warnings({warning['id']})", {"ignored": True}, If_Match=warning["@odata.etag"])
    assert changed.status_code == 200 and changed.json()["ignoredBy"] == "admin"
    assert client.ask("PATCH", f"warnings({warning['id']})", {"ignored": False}, If_Match=warning["@odata.etag"]).status_code == 409

    items = client.rows("checklistItems?$filter=step eq 'UsersOut'")
    assert len(items) == len(ready.companies)
    assert client.ask("PATCH", f"checklistItems({items[0]['id']})", {"done": True}, If_Match="*").json()["done"] is True
    assert [item["done"] for item in client.rows("checklistItems?$filter=step eq 'UsersOut'")] == [True] * len(items)
    events = client.rows("events?$filter=subject eq 'checklist UsersOut'")
    assert [(event["event"], event["actor"]) for event in events] == [("tick", "admin")]
    assert events[0]["actorId"] != "00000000-0000-0000-0000-000000000000"
    assert client.as_role("reader", "r").ask("PATCH", f"warnings({warning['id']})", {"ignored": False}, If_Match="*").status_code == 403
    assert ready.state is MigrationState.UPGRADE_PENDING


def test_without_its_default_mapping_the_table_of_record_links_is_copied_like_any_other(ready):
    [mapping] = [mapping for mapping in ready.mappings if mapping.source_table_name == "Record Link"]
    ready.migration.delete_mapping(mapping.id, ANY)
    run = ready.run()
    assert ("", "Record Link") in ready.tables(run) and run.tables_failed == 0 and warnings(ready) == {}
    assert ready.in_target('select count(*) from "Record Link"') == ready.in_source('select count(*) from "Record Link"')[0]
