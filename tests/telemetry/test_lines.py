"""The log of events: every documented one, after the commit and never without, with its dimensions and without secrets."""

import json
import os
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from skylift import telemetry
from skylift.migration.validation import validate_automatically
from skylift.model import Event, TableSwitch
from skylift.query import Query
from skylift.runs import MigrationState, ReplicationType, SqlServerType
from skylift.settings import Settings
from skylift.telemetry.catalogue import DOCUMENTED, table
from skylift.telemetry.lines import MOST, Lines
from skylift.telemetry.metrics import table as metrics_table
from tests.migration.lab import ANY
from tests.migration.test_packs import CONTOSO, CRONUS, CUSTOMER, write_pack
from tests.telemetry.conftest import as_api, watched

COMMON = {"component", "componentVersion", "category", "environmentName"}
PAGE = Path(__file__).parents[2] / "docs" / "telemetry.md"


def test_every_documented_event_is_told_with_its_dimensions_or_has_a_reason_why_not(lab, tmp_path):
    api = as_api(lab)
    setup = api.create_setup({"product_id": "DynamicsBCLast", "sql_server_type": SqlServerType.SQL_SERVER})
    api.change_setup(setup.id, lab.values, ANY)
    for company in lab.companies:
        api.change_company(company.id, {"replicate": True}, ANY)
    api.complete_setup(setup.id)
    lab.in_source('drop table "Record Link"')                       # which a default mapping names
    lab.work()
    fleet = next(t for t in lab.migration.select(TableSwitch, Query()) if t.table_name.startswith("Rental Fleet"))
    api.change_table(fleet.id, {"preserve": True}, ANY)
    for value in (False, True):
        api.change_table(lab.switch(CUSTOMER, CRONUS).id, {"replicate": value}, ANY)
    api.run_replication()
    lab.work()
    lab.in_source(f'alter table "{CRONUS}${CUSTOMER}" add column extra')
    lab.run()                                                       # fails for that table
    lab.run(kind=ReplicationType.FULL)
    shared = write_pack(tmp_path / "shared", '[[step]]\nid = "one"\nscope = "shared"\npython = "one.py:go"',
                        one__py="def go(step):\n    step.execute('select * from nowhere')\n", name="shared")
    company = write_pack(tmp_path / "company", '[[step]]\nid = "one"\npython = "one.py:go"',
                         one__py="from pathlib import Path\n\ndef go(step):\n"
                                 f"    assert step.company != {CONTOSO!r} or Path({str(tmp_path)!r}, 'mended').exists(), 'not yet'\n")
    for packs in ([shared, company], [company, "companions"]):
        api.run_data_upgrade(packs=packs)
        lab.work()
        (tmp_path / "mended").touch()
    assert lab.state is MigrationState.UPGRADED, lab.runs[0].details
    with lab.migration.verb() as verb:
        for suites in ("", "nowhere.toml"):
            validate_automatically(verb, replace(lab.migration.settings, validation="automatic", validation_suites=suites))
    api.disable_replication()
    api.change_setup(setup.id, {}, ANY)
    api.complete_cloud_migration(force=True, reason="password=geheim")

    told = {}
    for line in lab.said():
        told.setdefault(line["eventId"], line)
    assert {id for id, event in DOCUMENTED.items() if not event.why_not} - told.keys() == set()
    assert {id for id, event in DOCUMENTED.items() if event.why_not} & told.keys() == set()
    for id, line in told.items():
        assert line.keys() >= {"time", "level", "event"} | COMMON
        assert id.startswith("skylift.") or line["dimensions"].keys() >= set(DOCUMENTED[id].dimensions), id
    assert told["AL0000JMN"]["actor"] == "robot" and UUID(told["AL0000JMN"]["actorId"]).int == 7
    assert told["AL0000K0I"]["dimensions"] == {
        "ReplicationType": "Data Replication", "RunType": "Normal", "SourceProduct": "DynamicsBCLast", "HasFailures": True,
        "NumberOfFailedTables": 1, "Tables": len(lab.tables(lab.runs[-3])), "RowsCopied": 0, "BytesCopied": 0,
        "Details": f"1 of {len(lab.tables(lab.runs[-3]))} tables: 50005"}
    assert "geheim" not in lab.log.read_text()


def test_what_is_taken_back_is_not_told(lab):
    with pytest.raises(ZeroDivisionError), lab.migration.verb() as verb:
        verb.log("migration", "taken_back")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), lab.store.together():
        with lab.migration.verb() as verb:
            verb.log("migration", "taken_back")
        raise ZeroDivisionError
    with lab.store.together():
        with lab.migration.verb(commits=True) as verb:
            verb.log("migration", "kept")
        with lab.migration.verb() as verb:
            verb.log("migration", "kept_too")
        while not lab.log.exists():                                   # the first is committed already, the second waits
            time.sleep(0.01)
        assert "kept_too" not in lab.log.read_text()

    assert [line["event"] for line in lab.said()] == ["migration.kept", "migration.kept_too"]
    assert [event.event for event in lab.migration.select(Event, Query())] == ["kept", "kept_too"]


def test_the_tables_of_a_run_are_told_with_what_became_of_them_and_no_value_of_a_row(ready):
    ready.run()
    ready.in_source(f'update "{CRONUS}${CUSTOMER}" set Name = ' "'Kundengeheimnis'", f'alter table "{CONTOSO}${CUSTOMER}" add extra')
    ready.run()

    tables = {(line["runId"], line["dimensions"]["CompanyName"], line["dimensions"]["TableName"]): line
              for line in ready.said() if line["event"] in ("table.copied", "table.failed")}
    newest, first = ready.runs[:2]
    for run in (newest, first):
        rows = ready.tables(run)
        assert {(run.run_id, *key) for key in rows} == {key for key in tables if key[0] == run.run_id}
        for key, row in rows.items():
            told = tables[run.run_id, *key]["dimensions"]
            assert (told["Status"], told.get("Mode", ""), told["RowsCopied"], told["RowsTotal"], told["BytesCopied"], told["Updated"]) == (
                row.status, row.mode, row.records_copied, row.total_records, row.size_bytes, row.updated)
    changed, failed = (tables[newest.run_id, company, CUSTOMER] for company in (CRONUS, CONTOSO))
    assert changed["dimensions"]["Mode"] == "incremental" and changed["dimensions"]["Updated"] > 0
    assert (failed["level"], failed["dimensions"]["ErrorCode"]) == ("error", "50005")
    assert "geheimnis" not in ready.log.read_text()


def test_a_run_does_not_wait_for_a_log_that_nobody_reads(tmp_path, sample_file):
    with watched(tmp_path / "lab", sample_file, telemetry_log=str(tmp_path / "pipe")) as lab:
        os.mkfifo(tmp_path / "pipe")                                  # whoever opens it waits for a reader
        lab.prepare()
        run = lab.run()
        began = time.monotonic()
        lab.migration.telemetry.close()

        assert run.tables_failed == 0 and time.monotonic() - began < telemetry.CLOSE_S + 1
        with open(tmp_path / "pipe", "rb"):                           # lets the thread go
            pass


def test_a_log_that_cannot_be_written_is_told_once_and_fails_nothing(tmp_path, sample_file, caplog):
    with watched(tmp_path / "lab", sample_file, telemetry_log=str(tmp_path)) as lab:
        lab.prepare()
        lab.migration.telemetry.close()

    assert [record.message.split(":")[0] for record in caplog.records] == [f"the telemetry log {tmp_path} cannot be written"]


def test_signals_that_do_not_fit_are_dropped_and_counted(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    lines = Lines(Settings(home=tmp_path, telemetry_log="pipe"))
    now = Event(1, datetime.now(UTC), "", "", "", "", "").at
    lines.emit([telemetry.Signal("first", now)])
    while not lines._waiting.empty():                                 # the thread has it, and waits for a reader
        time.sleep(0.01)
    lines.emit([telemetry.Signal("x", now)] * (MOST + 5))
    read = []
    reader = threading.Thread(target=lambda: read.extend(_lines_of(tmp_path / "pipe", MOST + 2)), daemon=True)
    reader.start()
    reader.join(20)

    assert [line["event"] for line in read if "event" in line] == ["first", *["x"] * MOST]
    assert [line["message"] for line in read if "event" not in line] == ["5 signals were dropped here"]
    lines.close(1)


def _lines_of(pipe, count):
    """`count` lines of a pipe that is closed and opened again by who writes it."""
    text = b""
    with open(pipe, "rb", buffering=0) as file:
        while text.count(b"\n") < count:
            text += file.read(65536) or b""
    return [json.loads(line) for line in text.splitlines()]


def test_a_log_that_is_moved_away_begins_anew(ready):
    while not ready.log.exists():
        time.sleep(0.01)
    ready.log.rename(ready.log.with_suffix(".old"))
    ready.run()

    assert "AL0000K0H" in ready.ids()


def test_the_page_lists_every_documented_event_and_every_figure():
    page = PAGE.read_text()
    assert table() in page
    assert metrics_table() in page
    assert len(DOCUMENTED) == 74                                      # ids in behaviour.md §10


def test_the_event_log_says_of_everything_that_is_to_be_audited_who_did_it_and_under_which_id(lab):
    """Set-up, run start and end, upgrade start, disable, complete, changes of mappings and switches (behaviour.md §10)."""
    api = as_api(lab)
    setup = api.create_setup(lab.values)
    for company in lab.companies:
        api.change_company(company.id, {"replicate": True}, ANY)
    api.complete_setup(setup.id)
    lab.work()
    api.delete_mapping(lab.mappings[0].id, ANY)
    api.change_table(lab.switch(CUSTOMER, CRONUS).id, {"replicate": False}, ANY)
    api.run_replication()
    lab.work()
    api.run_data_upgrade()
    lab.work()
    api.disable_replication()
    api.change_setup(setup.id, {}, ANY)
    api.complete_cloud_migration(force=True, reason="enough")

    said = {(event.subject.split()[0], event.event, event.actor, event.actor_id.int) for event in lab.events}
    assert said >= {(*what, "robot", 7) for what in (
        ("migration", "enable"), ("set-up", "complete"), ("run", "run_replication"), ("migration", "upgrade"), ("migration", "disable"),
        ("run", "disable"), ("run", "complete"), ("mapping", "delete"), ("table", "leave_out"), ("company", "include"))}
    assert ("run", "await_upgrade", "tester", 0) in said and ("company", "end_upgrade", "tester", 0) in said     # the coordinator's part
