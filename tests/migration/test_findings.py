"""How findings are kept, block until they are mended or accepted, and what becomes of an assessment that is stopped."""

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from skylift.connectors.looks import Remark
from skylift.engine.assess import Found
from skylift.errors import NotFound, SetupError, StateError
from skylift.migration import assessment
from skylift.migration.assessment import record
from skylift.model import Assessment, Finding
from skylift.query import Query
from skylift.runs import AssessmentStatus, MigrationState, ReplicationType, RunStatus, Severity
from skylift.sample import BASE
from skylift.store.tables import source_companies
from tests.connectors.labs import DuckDBSourceLab
from tests.migration.assessing import bytes_of, findings_of, found, make, outcome_of
from tests.migration.lab import ANY

B, W, I = Severity.BLOCKING, Severity.WARNING, Severity.INFORMATION      # noqa: E741
CRONUS = "CRONUS International Ltd_"


def blocked_lab(lab):
    """A value that no copy accepts, found by a scan."""
    lab.in_source(f'update "{CRONUS}$G_L Entry${BASE}" set "Amount" = \'much\' where "Entry No_" = 5')


def scan(lab):
    return findings_of(lab.migration, lab.values["sql_connection_string"], lab.migration.settings.target, "DynamicsBCLast", with_scan=True)


def test_blocking_findings_hold_up_creation_and_the_first_run_until_they_are_accepted(lab):
    blocked_lab(lab)
    [row] = [row for row in scan(lab).values() if row.severity is B]
    assert (row.code, row.column_name) == ("50011", "Amount")
    setup = lab.migration.create_setup(lab.values)
    for company in lab.companies:
        lab.migration.change_company(company.id, {"replicate": True}, ANY)

    for verb in (lambda: lab.migration.complete_setup(setup.id), lambda: lab.migration.create_companies(lab.companies[0].id)):
        with pytest.raises(StateError, match=r"G_L Entry.*Amount") as refused:
            verb()
        assert refused.value.code == "AssessmentBlocked" and "skylift assess --accept '50011:G_L Entry" in refused.value.hint
    lab.force(MigrationState.READY)
    with lab.store.write() as connection:
        connection.execute(source_companies.update().values(created=True))
    with pytest.raises(StateError, match="stands in the way"):
        lab.migration.run_replication()
    with lab.store.write() as connection:
        connection.execute(source_companies.update().values(created=False))

    lab.migration.accept_finding(row.id, "it is mended on Sunday")

    lab.force(MigrationState.ENABLED)
    lab.migration.complete_setup(setup.id)
    lab.work()
    assert lab.state is MigrationState.READY and lab.migration.run_replication()
    accepted = lab.migration.get(Finding, row.id)
    assert (accepted.accepted_by, accepted.why) == ("tester", "it is mended on Sunday") and accepted.accepted_at
    [event] = [event for event in lab.events if event.event == "accept"]
    assert event.subject == f"finding 50011 {CRONUS} {row.table_name}.Amount" and event.why == "it is mended on Sunday"


def test_what_does_not_take_part_does_not_block_and_a_diagnostic_run_is_always_possible(lab):
    blocked_lab(lab)
    scan(lab)
    setup = lab.migration.create_setup(lab.values)
    other = next(company for company in lab.companies if company.name != CRONUS)
    lab.migration.change_company(other.id, {"replicate": True}, ANY)
    lab.migration.complete_setup(setup.id)              # of another company
    lab.work()
    for company in lab.companies:
        lab.migration.change_company(company.id, {"replicate": True}, ANY)
    with pytest.raises(StateError, match="stands in the way"):
        lab.migration.complete_setup(setup.id)
    table = next(t for t in lab.tables_of(CRONUS) if t.table_name.startswith("G_L Entry$") and not t.table_name.endswith("$ext"))

    lab.migration.change_table(table.id, {"replicate": False}, ANY)

    lab.migration.complete_setup(setup.id)
    lab.work()
    assert lab.run(kind=ReplicationType.DIAGNOSTIC).status is RunStatus.COMPLETED


def test_findings_about_another_source_block_nothing(lab, tmp_path):
    blocked_lab(lab)
    scan(lab)
    shutil.copy(lab.source, tmp_path / "other.db")
    setup = lab.migration.create_setup(lab.values | {"sql_connection_string": f"sqlite:///{tmp_path}/other.db"})
    lab.migration.change_company(lab.companies[0].id, {"replicate": True}, ANY)
    lab.migration.complete_setup(setup.id)


def test_an_accepted_finding_stays_accepted_as_long_as_it_is_the_same(files, tmp_path):
    source = DuckDBSourceLab(tmp_path)
    make(source.path, "create table t (id bigint primary key, d date)", "insert into t values (1, 'infinity'), (2, 'infinity')")

    def again(**options):
        rows = findings_of(files.migration, source.url, files.target.url, **options)
        return {key: row for key, row in rows.items() if row.code != "ChangeFeed"}

    [first] = again(with_scan=True).values()
    files.migration.accept_findings("infinity:t.D", "known")
    [second] = again(with_scan=True).values()
    assert (second.id, second.why) == (first.id, "known")
    [third] = again().values()                          # catalogues cannot tell, so it stays as the scan has found it
    assert (third.id, third.why, third.scanned) == (first.id, "known", True)
    make(source.path, "insert into t values (3, 'infinity')")
    [more] = again(with_scan=True).values()
    assert (more.id, more.count, more.accepted_at) == (first.id, 3, None)
    files.migration.accept_findings("infinity", "known")
    make(source.path, "delete from t where id = 3")
    [fewer] = again(with_scan=True).values()
    assert (fewer.id, fewer.count, fewer.why) == (first.id, 2, "known")
    make(source.path, "update t set d = null")
    assert again(with_scan=True) == {} and {row.code for row in files.migration.select(Finding, Query())} == {"ChangeFeed"}


def test_a_right_more_that_is_lacking_is_another_finding_and_what_stays_the_same_is_not_touched(files):
    files.source.execute("create table nokey (v TEXT)")
    [before] = found(files).values()
    [after] = found(files).values()
    assert after == before                              # its time too

    def recorded(*messages):
        outcome = outcome_of(files.migration, files.source.url, files.target.url)
        remarks = [Found(Remark("Permission", B, message)) for message in messages]
        return {row.code: row for row in record(files.migration, replace(outcome, found=assessment._merged(remarks)))}["Permission"]

    recorded("user lacks INSERT on 3 tables")
    files.migration.accept_findings("Permission", "is granted later")
    assert recorded("user lacks INSERT on 2 tables").accepted_at
    assert not recorded("user lacks INSERT on 2 tables", "user lacks DELETE").accepted_at


def test_accepting_takes_a_reason_and_a_name_that_something_has(files):
    files.source.execute("create table nokey (v TEXT)")
    found(files)
    with pytest.raises(SetupError, match="a reason is missing"):
        files.migration.accept_findings("NoKey", "  ")
    for name in ("NoKey:other", "50005", "NoKey:nokey.v"):
        with pytest.raises(NotFound):
            files.migration.accept_findings(name, "why not")
    assert [row.accepted_by for row in files.migration.accept_findings("NoKey", "why not")] == ["tester"]


# ------------------------------------------------------------------ the coordinator, and what is killed


def test_what_is_asked_for_is_done_by_the_coordinator(ready):
    asked = ready.migration.ask_assessment(scan=True)
    assert asked.status is AssessmentStatus.ASKED
    assert ready.migration.ask_assessment().scan            # asked twice: the deeper one
    ready.work()

    [done] = ready.migration.select(Assessment, Query())
    assert (done.status, done.scan, done.asked_by) == (AssessmentStatus.COMPLETED, True, "tester") and done.rows > 300
    assert done.duration_s > 0 and "every row was read" in done.details
    assert {row.code for row in ready.migration.select(Finding, Query())} == {"NoKey"}


def test_an_assessment_gives_way_to_a_run_and_is_done_afterwards(ready, monkeypatch):
    monkeypatch.setattr(assessment, "LOOK_S", 0.0)
    real = assessment.scan

    def asked_meanwhile(*arguments, **options):
        if ready.state is MigrationState.READY:
            ready.migration.run_replication()
        return real(*arguments, **options)

    monkeypatch.setattr(assessment, "scan", asked_meanwhile)
    ready.migration.ask_assessment(scan=True)
    ready.work()

    assert ready.runs[0].status is RunStatus.UPGRADE_PENDING
    [done] = ready.migration.select(Assessment, Query())
    assert done.status is AssessmentStatus.COMPLETED and done.ended_at > ready.runs[0].ended_at


def test_an_assessment_that_fails_says_why_and_one_that_ends_its_coordinators_is_given_up(ready):
    moved = ready.source.rename(ready.source.with_suffix(".away"))
    ready.migration.ask_assessment()
    ready.work()
    [failed] = ready.migration.select(Assessment, Query())
    assert failed.status is AssessmentStatus.FAILED and "cannot be read" in failed.details
    moved.rename(ready.source)

    ready.migration.ask_assessment()
    for _ in range(assessment.TAKEOVERS):               # each dies before it has recorded anything
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(assessment, "look", _die)
            ready.work()
    ready.work()
    [failed] = ready.migration.select(Assessment, Query())
    assert failed.status is AssessmentStatus.FAILED and "3 coordinators have ended" in failed.details


def _die(*arguments):
    raise KeyboardInterrupt


def test_a_process_that_is_killed_while_it_assesses_has_changed_nothing(files, sample_file):
    shutil.copy(sample_file, files.source.path)
    first = found(files, "DynamicsBCLast")
    kept = files.migration.select(Finding, Query())
    before = bytes_of(files.folder)
    home = files.migration.settings.home
    code = ("import time\nfrom skylift.engine import check\nreal = check._check\n"
            "def slow(*arguments):\n    open('begun', 'w')\n    time.sleep(0.2)\n    return real(*arguments)\n"
            "check._check = slow\nfrom skylift.cli import app\napp()")
    child = subprocess.Popen([sys.executable, "-c", code, "assess", "--home", str(home), "--product", "DynamicsBCLast", "--scan",
                              "--source", files.source.url, "--target", files.target.url], cwd=home, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (home / "begun").exists():
        assert time.monotonic() < end and child.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    child.kill()
    assert child.wait() == -9

    after = bytes_of(files.folder)                      # SQLite's own files, empty, go with the next who opens it
    assert {name: held for name, held in after.items() if not name.endswith(("-shm", "-wal"))} == before
    assert not Path(f"{files.source.path}-wal").read_bytes()
    assert files.migration.select(Finding, Query()) == kept and kept
    assert found(files, "DynamicsBCLast", with_scan=True).keys() == first.keys()


def test_nobody_assesses_while_a_run_writes(ready):
    ready.migration.run_replication()
    with pytest.raises(StateError, match="in progress"):
        ready.migration.ask_assessment()
    with pytest.raises(StateError, match="in progress"):
        assessment.sides_of(ready.migration)


def test_record_is_one_transaction(files, monkeypatch):
    files.source.execute("create table nokey (v TEXT)")
    before = found(files)
    outcome = outcome_of(files.migration, files.source.url, files.target.url)

    def full(*arguments, **options):
        raise RuntimeError("no room")

    monkeypatch.setattr(assessment, "_put", full)
    with pytest.raises(RuntimeError, match="no room"):
        record(files.migration, outcome)
    assert [row.id for row in files.migration.select(Finding, Query())] == [row.id for row in before.values()]
