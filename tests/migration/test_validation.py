"""Validation as part of a migration: what is asked for, what is kept of it, who may complete then, and what happens when it is killed."""

import os
import signal
import subprocess
import sys
import time
from decimal import Decimal

import pytest

from skylift.errors import NotFound, StateError
from skylift.migration.coordinator import Worker
from skylift.model import App, MigrationWarning, Validation, ValidationResult
from skylift.query import Attribute, Order, Query
from skylift.runs import MigrationState, ReplicationType, ValidationStatus, WarningType
from skylift.validation import suites
from skylift.validation.suites import SUITES
from tests.migration.lab import ANY
from tests.migration.test_changes import owed, subscribe, tell
from tests.migration.test_replication import CRONUS, CUSTOMER
from tests.migration.validating import CONTOSO, EXACT, NUMBER, PLACE, found, progress, refused, results, set_up, validate, write_suite


@pytest.fixture
def copied(ready):
    ready.run()
    return ready


def test_what_was_copied_is_found_as_it_should_be_and_every_suite_has_gone_through_every_table(copied):
    ended = validate(copied)

    assert (ended.status, found(copied)) == (ValidationStatus.COMPLETED, [])
    assert ended.details.startswith("0 errors and 0 warnings in ")
    taking_part = {(t.company_name, t.table_name) for t in copied.tables(copied.runs[0]).values()}
    assert {(p.company_name, p.table_name) for p in progress(copied) if p.suite == "rows"} == taking_part
    assert ended.total == len(progress(copied)) == len(SUITES) * len(taking_part)
    assert {p.note for p in progress(copied)} == {"", "the table has no primary key", "the target keeps rows of its own (preserved)"}


def test_what_was_changed_behind_skylifts_back_is_a_row_with_place_expected_and_actual(copied):
    [(before,)] = copied.in_target(f"select sum({NUMBER}) from {PLACE}")
    copied.in_target(f"update {PLACE} set {NUMBER} = {NUMBER} + 1 where No_ = (select min(No_) from {PLACE})")
    ended = validate(copied)

    [row] = [row for row in results(copied) if row.test == "sum"]
    assert (row.company_name, row.table_name, row.suite, row.key) == (CRONUS, CUSTOMER, "columns", "Credit Limit (LCY)")
    assert not row.is_warning
    assert (Decimal(row.expected), EXACT.subtract(Decimal(row.actual), Decimal(row.expected))) == (before, 1)
    assert ended.status is ValidationStatus.COMPLETED and not ended.details.startswith("0 errors")


def test_an_error_holds_completion_up_until_it_is_mended_and_validated_again(copied):
    copied.migration.run_data_upgrade()
    copied.work()
    copied.in_target(f"delete from {PLACE} where No_ = (select min(No_) from {PLACE})")
    validate(copied, "rows")
    error = refused(copied, "ValidationFailed", rf"validation has found 1 error: {CRONUS} Customer\$.* \(suite rows\)")
    assert "skylift validate" in error.hint

    copied.in_source(f'delete from "{CRONUS}${CUSTOMER}" where "No_" = (select min("No_") from "{CRONUS}${CUSTOMER}")')
    validate(copied, "rows")                       # what was found is gone through again without force
    assert found(copied) == []
    refused(copied, "FeedLag")                     # the next condition


def test_completion_in_spite_of_errors_needs_a_reason_and_says_what_was_open(copied):
    copied.migration.run_data_upgrade()
    copied.work()
    copied.in_target(f"delete from {PLACE}")
    validate(copied)
    refused(copied, "ValidationFailed")

    copied.migration.complete_cloud_migration(force=True, reason="known")
    assert copied.state is MigrationState.DISABLED
    assert "Still open: validation has found" in copied.runs[0].details


def test_neither_warnings_nor_suites_that_should_not_fail_it_nor_what_takes_no_part_hold_completion_up(copied, tmp_path):
    suite = write_suite(tmp_path / "own", f"[[test]]\nid = 'some'\ntarget = 'select count(*) from {{{{{CUSTOMER}}}}}'\nexpected = -1",
                        errors_should_fail_migration=False)
    lab = set_up(copied, validation_suites=suite)
    lab.migration.run_data_upgrade()
    lab.work()
    lab.in_target(f"delete from {PLACE}")
    validate(lab)
    assert len([row for row in results(lab) if row.suite == "own"]) == 2
    for table in (CUSTOMER, f"{CUSTOMER}$ext"):
        lab.migration.change_table(lab.switch(table, CRONUS).id, {"replicate": False}, ANY)

    lab.migration.complete_cloud_migration()
    assert lab.state is MigrationState.DISABLED


def test_completion_waits_for_a_validation_under_way(copied):
    copied.migration.run_data_upgrade()
    copied.work()
    copied.migration.validate()
    refused(copied, "ValidationInProgress")


def test_a_source_that_has_changed_since_is_no_error_of_the_target(copied):
    copied.in_source(*(f'delete from "{CRONUS}${CUSTOMER}{end}"' for end in ("", "$ext")))
    validate(copied)

    assert found(copied)
    assert all(row.is_warning and "run the replication" in row.message for row in results(copied))
    copied.run()
    validate(copied)
    assert found(copied) == []


def test_only_what_may_have_changed_is_gone_through_again_unless_forced(copied, monkeypatch):
    validate(copied)
    checked = []
    honest = suites.Pair.target_rows
    monkeypatch.setattr(suites.Pair, "target_rows", lambda pair: checked.append(pair.task.table_name) or honest(pair))
    ended = validate(copied)
    assert (checked, ended.total) == ([], len(progress(copied)))

    copied.in_target(f"delete from {PLACE}")       # nobody knows of it
    validate(copied)
    assert (checked, found(copied)) == ([], [])
    validate(copied, "rows", force=True)
    assert len(checked) == len([p for p in progress(copied) if p.suite == "rows"])
    assert [row[2:4] for row in found(copied)] == [("rows", "count")]

    checked.clear()
    validate(copied)
    assert checked == [CUSTOMER]                   # what has a finding is looked at again
    copied.run()
    checked.clear()
    validate(copied, companies=[CONTOSO])
    assert len(checked) > 10                       # a run has been made since


def test_a_validation_of_one_company_leaves_what_was_found_in_others(copied):
    copied.in_target(f"delete from {PLACE}")
    copied.in_target(f'delete from "{CONTOSO}"."{CUSTOMER}"')
    validate(copied, "rows")
    validate(copied, "rows", companies=[CONTOSO], force=True)
    assert [row[0] for row in found(copied)] == [CRONUS, CONTOSO] or [row[0] for row in found(copied)] == [CONTOSO, CRONUS]


def test_a_suite_that_crashes_is_a_warning_and_the_others_go_on(copied, monkeypatch):
    def crash(pair):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(suites.Pair, "source_rows", crash)
    copied.in_target(f"delete from {PLACE}")
    ended = validate(copied)

    assert ended.status is ValidationStatus.COMPLETED
    rows = [row for row in results(copied) if row.suite == "rows"]
    assert {(row.test, row.is_warning, row.message) for row in rows} == {("", True, "ZeroDivisionError: a bug")}
    assert {row.suite for row in results(copied) if not row.is_warning} == {"keys", "columns", "census", "companions"}
    [warning] = [w for w in copied.migration.select(MigrationWarning, Query()) if w.type is WarningType.MIGRATION_VALIDATOR]
    assert warning.message == f"suite rows could not be carried out in {len(rows)} places, the first: ZeroDivisionError: a bug"

    monkeypatch.undo()
    validate(copied, force=True)
    assert WarningType.MIGRATION_VALIDATOR not in {w.type for w in copied.migration.select(MigrationWarning, Query())}


def test_tests_that_are_ignored_log_nothing_and_what_they_have_found_is_forgotten(copied):
    copied.in_target(f"delete from {PLACE}")
    validate(copied)
    [test] = [test for test in copied.migration.validation_tests() if (test.suite, test.test) == ("keys", "missing")]
    assert test.fail_count == 20 or test.fail_count > 0
    others = [row for row in found(copied) if row[2:4] != ("keys", "missing")]

    assert copied.migration.ignore_test(test.id, True).ignored
    assert found(copied) == others
    validate(copied, force=True)
    assert found(copied) == others
    [now] = [found for found in copied.migration.validation_tests() if found.id == test.id]
    assert (now.fail_count, now.ignored) == (0, True)

    assert not copied.migration.ignore_test(test.id, False).ignored
    validate(copied, force=True)
    assert ("keys", "missing") in {row[2:4] for row in found(copied)}
    with pytest.raises(NotFound):
        copied.migration.ignore_test("keys.nope", True)


def test_of_many_findings_some_are_kept_and_all_are_counted(copied):
    lab = set_up(copied, validation_rows=3)
    for company in (CRONUS, CONTOSO):
        lab.in_target(f'delete from "{company}"."{CUSTOMER}"')
    validate(lab, "keys")

    rows = [row for row in found(lab) if row[3] == "missing" and row[1] == CUSTOMER]
    assert len(rows) == 4                          # three, and one of each further table
    [test] = [test for test in lab.migration.validation_tests() if (test.suite, test.test) == ("keys", "missing")]
    [[count]] = lab.in_source(f'select (select count(*) from "{CRONUS}${CUSTOMER}") + (select count(*) from "{CONTOSO}${CUSTOMER}")')
    assert test.fail_count == count[0]
    assert sum(suite.error_count for suite in lab.migration.validation_suites()) == count[0]


def test_generic_suites_leave_alone_what_the_upgrade_has_changed_and_expectations_say_when_they_are_meant(copied, tmp_path):
    one = "[[test]]\nid = 'one'\ntarget = 'select 1'\nexpected = 2"
    folders = [write_suite(tmp_path / when, one, id=when, when=when) for when in ("copied", "upgraded", "always")]
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "pack.toml").write_text('name = "p"\nversion = "1"\n[[step]]\nid = "1"\nsql = "1.sql"')
    (pack / "1.sql").write_text('update {{Customer}} set "Name" = upper("Name") || 1')
    lab = set_up(copied, validation_suites=" ".join(folders))
    validate(lab)
    assert {row.suite for row in results(lab)} == {"copied", "always"}

    lab.migration.run_data_upgrade(packs=[str(pack)])
    lab.work()
    validate(lab)
    assert {row.suite for row in results(lab)} == {"upgraded", "always"}
    notes = {p.suite: p.note for p in progress(lab) if (p.company_name, p.table_name) == (CRONUS, CUSTOMER)}
    assert {notes[suite] for suite in ("rows", "keys", "columns", "census")} == {
        "changed by the data upgrade, no longer compared with the source"}


def test_where_the_setting_says_so_automatic_suites_follow_every_run_and_upgrade(copied, tmp_path):
    one = "[[test]]\nid = 'one'\ntarget = 'select 1'\nexpected = 1"
    folder = write_suite(tmp_path / "own", one, automatic=False)
    lab = set_up(copied, validation="automatic", validation_suites=folder)
    asked = lambda: lab.migration.select(Validation, Query(order=(Order(Attribute("requested_at")),)))  # noqa: E731
    lab.run()
    assert [(v.status, v.suites) for v in asked()] == [(ValidationStatus.COMPLETED, "rows\nkeys\ncolumns\ncensus\ncompanions\nreferences")]
    lab.run(kind=ReplicationType.DIAGNOSTIC)
    assert len(asked()) == 1
    lab.run()
    lab.migration.run_data_upgrade()
    lab.work()
    assert [v.status for v in asked()] == [ValidationStatus.COMPLETED] * 3
    lab.migration.complete_cloud_migration()


def test_a_run_does_not_wait_for_a_validation_which_goes_on_after_it(copied, monkeypatch):
    asked = copied.migration.validate()
    honest = suites.Pair.target_rows

    def slow(pair):
        if copied.state is MigrationState.READY or copied.state is MigrationState.UPGRADE_PENDING:
            copied.migration.run_replication()
        time.sleep(0.05)
        return honest(pair)

    monkeypatch.setattr(suites.Pair, "target_rows", slow)
    lease_free = copied.work
    stopped = []

    class Watched(Worker):
        def work(self):
            done = super().work()
            stopped.append((copied.state, copied.migration.get(Validation, asked.id).status))
            monkeypatch.setattr(suites.Pair, "target_rows", honest)
            return done

    monkeypatch.setattr("tests.migration.lab.Worker", Watched)
    lease_free()
    assert stopped[0] == (MigrationState.REPLICATING, ValidationStatus.IN_PROGRESS)
    assert stopped[1] == (MigrationState.UPGRADE_PENDING, ValidationStatus.IN_PROGRESS)
    assert stopped[-1][1] is ValidationStatus.COMPLETED and found(copied) == []


def test_a_coordinator_that_is_killed_is_replaced_and_goes_on_where_it_was(copied, tmp_path):
    copied.in_target(f"delete from {PLACE}")
    asked = copied.migration.validate()
    script = """if True:
        import sys, time
        from pathlib import Path
        from skylift.migration import Migration, validator
        from skylift.migration.coordinator import Worker
        from skylift.migration.lease import Lease
        from skylift.settings import Settings
        from skylift.store import open_store
        from skylift.validation import suites
        validator.FLUSH_S = 0
        honest = suites.Pair.target_rows
        def slow(pair):
            time.sleep(0.1)
            return honest(pair)
        suites.Pair.target_rows = slow
        settings = Settings(home=Path(sys.argv[1]), poll_s=0.02)
        store = open_store(settings.store)
        lease = Lease(store, 1)
        lease.take()
        with lease:
            Worker(Migration(store, settings, "other"), lease, lambda: False).work()
    """
    child = subprocess.Popen([sys.executable, "-c", script, str(copied.migration.settings.home)])
    until = time.monotonic() + 60
    while len(progress(copied)) < 20 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    before = {(p.company_name, p.suite, p.table_name): p.ended_at for p in progress(copied)}
    assert 20 <= len(before) < 100 and copied.migration.get(Validation, asked.id).status is ValidationStatus.IN_PROGRESS

    time.sleep(1.1)                                # until its lease has run out
    copied.work()
    after = {(p.company_name, p.suite, p.table_name): p.ended_at for p in progress(copied)}
    ended = copied.migration.get(Validation, asked.id)
    assert (ended.status, ended.total) == (ValidationStatus.COMPLETED, len(after))
    assert {unit: after[unit] for unit in before} == before            # nothing is done twice
    assert {row[2] for row in found(copied)} == {"rows", "keys", "columns", "census", "companions"}


def test_a_validation_that_cannot_reach_its_source_ends_as_failed_and_says_why(copied):
    asked = copied.migration.validate()
    copied.source.rename(copied.source.with_suffix(".away"))
    copied.work()
    ended = copied.migration.get(Validation, asked.id)
    assert ended.status is ValidationStatus.FAILED and "cannot be read" in ended.details and ended.ended_at


def test_asking_is_refused_for_what_there_is_not_and_while_something_is_going_on(lab):
    with pytest.raises(StateError, match="not set up"):
        lab.migration.validate()
    lab.prepare()
    with pytest.raises(StateError) as raised:
        lab.migration.validate()
    assert raised.value.code == "NothingCopied"
    lab.run()
    with pytest.raises(NotFound, match="no validation suite 'nope'"):
        lab.migration.validate(suites=["nope"])
    with pytest.raises(NotFound, match="no company 'nope'"):
        lab.migration.validate(companies=["nope"])
    first = lab.migration.validate()
    with pytest.raises(StateError) as raised:
        lab.migration.validate()
    assert raised.value.code == "ValidationInProgress"
    lab.migration.validate(force=True)
    assert lab.migration.get(Validation, first.id).status is ValidationStatus.REPLACED
    lab.migration.run_replication()
    with pytest.raises(StateError) as raised:
        lab.migration.validate(force=True)
    assert raised.value.code == "RunInProgress"


def test_mapped_tables_are_validated_where_the_mapping_puts_them(ready):
    [rental] = [app.id for app in ready.migration.select(App, Query()) if app.name == "Rental"]
    ready.migration.create_mapping({"app_id": rental, "table_name": "New Note", "source_table_name": "Legacy Note"})
    ready.run()
    validate(ready)
    assert found(ready) == []

    ready.in_target(f'delete from "{CRONUS}"."New Note${rental}"')
    validate(ready, "rows", force=True)
    assert [row[:4] for row in found(ready)] == [(CRONUS, f"New Note${rental}", "rows", "count")]
    assert "Legacy Note" not in {p.table_name for p in progress(ready)}


def test_tables_that_are_left_out_are_not_validated(copied):
    copied.migration.change_table(copied.switch(CUSTOMER, CRONUS).id, {"replicate": False}, ANY)
    copied.in_target(f"delete from {PLACE}")
    validate(copied)
    assert found(copied) == [] and (CRONUS, CUSTOMER) not in {(p.company_name, p.table_name) for p in progress(copied)}


def test_who_has_subscribed_is_told_of_validations_and_of_results_that_come_and_go(copied):
    validations, rows = subscribe(copied.store, Validation), subscribe(copied.store, ValidationResult)
    copied.in_target(f"delete from {PLACE}")
    asked = validate(copied, "rows")
    assert owed(copied.store, validations) == [(asked.id, "created")]
    [first] = results(copied)
    assert owed(copied.store, rows) == [(first.id, "created")]
    tell(copied.store, rows)
    validate(copied, "rows")                       # which goes through it again
    [second] = results(copied)
    assert set(owed(copied.store, rows)) == {(first.id, "deleted"), (second.id, "created")}


def test_another_target_has_nothing_of_what_was_found(copied, tmp_path):
    copied.in_target(f"delete from {PLACE}")
    validate(copied, "rows")
    lab = set_up(copied, target=f"duckdb:///{tmp_path}/other.duckdb")
    lab.migration.change_setup(lab.setup.id, lab.values, ANY)
    assert progress(lab) == [] and found(lab) == []
