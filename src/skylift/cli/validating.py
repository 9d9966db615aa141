"""Validation suites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from skylift.cli.commands import find_company, list_companies
from skylift.cli.follow import equals, progress, wait
from skylift.cli.frame import FAILED, OK, Session, command
from skylift.errors import NotFound, SkyliftError, StateError
from skylift.model import Validation, ValidationResult, ValidationTest
from skylift.query import Attribute, Order, Query
from skylift.runs import ValidationStatus

Names = list[str] | None


@command("skylift validate --suite rows --suite keys --json", target=True)
def validate(
    session: Session,
    suite: Annotated[Names, typer.Option(metavar="ID", help="Only this suite (repeatable).")] = None,
    company: Annotated[Names, typer.Option(metavar="NAME", help="Only this company and what all share (repeatable).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Delete what was found before and validate everything anew.")] = False,
    suites: Annotated[bool, typer.Option("--list", help="List suites, tests and how much they have found; validate nothing.")] = False,
    ignore: Annotated[Names, typer.Option(metavar="SUITE/TEST", help="Have a test log nothing any more (repeatable).")] = None,
    heed: Annotated[Names, typer.Option(metavar="SUITE/TEST", help="Have an ignored test log again (repeatable).")] = None,
) -> int:
    """Go through the target with validation suites, and wait for it; goes on with a validation under way.

    A check is one suite's way through one table. Where that has found nothing since the last run, it is not gone again. Exit code 1 if
    there are errors.
    """
    migration = session.migration
    changed = [migration.ignore_test(_test(session, name), ignored) for names, ignored in ((ignore, True), (heed, False))
               for name in names or ()]
    for test in changed:
        session.say(f"{test.suite}/{test.test} is {'ignored, and what it had found is forgotten' if test.ignored else 'heeded again'}")
    if suites or changed:
        return _list(session, changed if not suites else None)
    known = list_companies(session) if company else []
    try:
        asked = migration.validate(suites=_suites(session, suite or ()), force=force,
                                   companies=[find_company(known, name).name for name in company or ()])
    except StateError as error:
        under_way = migration.select(Validation, Query(where=equals("status", ValidationStatus.IN_PROGRESS)))
        if error.code != "ValidationInProgress" or not under_way:
            raise
        session.note("a validation is under way already, going on with it")
        asked = under_way[0]
    ended = _wait(session, asked)
    if ended.status is not ValidationStatus.COMPLETED:
        raise SkyliftError(f"the validation could not be done: {ended.details or ended.status}", code="ValidationNotDone")
    return _show(session, ended)


def _wait(session: Session, asked: Validation) -> Validation:
    migration = session.migration

    def look() -> tuple[Validation, int]:
        return migration.get(Validation, asked.id), migration.validated(asked.id)

    def ended(state: tuple[Validation, int]) -> bool:
        return state[0].status is not ValidationStatus.IN_PROGRESS

    with progress(session, "checks") as told:
        def show(state: tuple[Validation, int]) -> None:
            validation, done = state
            told(f"validating: {done:,} of {validation.total:,} checks", done, done, validation.total, last=ended(state))

        return wait(session, look, ended, show)[0]


def _show(session: Session, ended: Validation) -> int:
    migration, suites = session.migration, ended.suites.splitlines()
    order = tuple(Order(Attribute(name)) for name in ("is_warning", "company_name", "table_name", "suite", "test", "key"))
    results = [row for row in migration.select(ValidationResult, Query(order=order)) if row.suite in suites]
    session.table(("", "company", "table", "suite", "test", "key", "expected", "actual", "message"), [
        ("warning" if row.is_warning else "error", row.company_name or "(all companies)", row.table_name, row.suite, row.test, row.key,
         row.expected, row.actual, row.message) for row in results])
    counts = {found.id: (found.error_count, found.warning_count) for found in migration.validation_suites() if found.id in suites}
    errors, warnings = (sum(count[side] for count in counts.values()) for side in (0, 1))
    notes = migration.not_compared(suites)
    for why, tables in notes.items():
        session.say(f"not compared, {len(tables):,} time{'' if len(tables) == 1 else 's'}: {why}")
    session.say(f"{ended.total:,} checks, each of a suite and a table or company: "
                f"{errors:,} error{'' if errors == 1 else 's'}, {warnings:,} warning{'' if warnings == 1 else 's'}")
    session.answer({"errors": errors, "warnings": warnings, "checks": ended.total, "results": results,
                    "suites": {id: {"errors": count[0], "warnings": count[1]} for id, count in counts.items()},
                    "not_compared": [{"why": why, "tables": tables} for why, tables in notes.items()]})
    return FAILED if errors else OK


def _list(session: Session, only: list[ValidationTest] | None = None) -> int:
    """`only`: tests that were just told; they answer for the list."""
    if only:
        session.answer({"tests": only})
        return OK
    suites, tests = session.migration.validation_suites(), session.migration.validation_tests()
    session.table(("suite", "test", "about", "found", "ignored", "what it looks at"), [
        (test.suite, test.test, test.entity or "each table", test.fail_count, "yes" if test.ignored else "", test.description)
        for test in tests])
    session.answer({"suites": suites, "tests": tests})
    return OK


def _suites(session: Session, names: Sequence[str]) -> list[str]:
    """The ids of suites, however they are spelt."""
    ids = {suite.id.casefold(): suite.id for suite in session.migration.suites()} if names else {}
    return [ids.get(name.casefold(), name) for name in names]


def _test(session: Session, name: str):
    known = session.migration.validation_tests()
    found = next((test for test in known if name.casefold() in (f"{test.suite}/{test.test}".casefold(), test.id.casefold())), None)
    if found is None:
        raise NotFound(f"there is no validation test '{name}'", hint="skylift validate --list names them as SUITE and TEST",
                       code="TestNotFound")
    return found.id
