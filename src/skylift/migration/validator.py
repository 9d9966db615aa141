"""The coordinator's part of a validation: each suite goes through each table of each company, and what it finds is kept.

What one (company, suite, table) has found is written in one transaction with the note that it has been gone through, so a coordinator
that dies is replaced and goes on. A suite that cannot go through a table becomes a warning, and the rest goes on.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from skylift.connectors import SWEEP, TableState, opened
from skylift.connectors.asking import open_asker, source_sql
from skylift.errors import CopyError, SkyliftError, SourceFailed, TargetFailed, Transient, redact
from skylift.losses import Losses
from skylift.migration.changes import note
from skylift.migration.lease import LeaseLost
from skylift.migration.service import Service, get_migration
from skylift.migration.validation import all_suites, ignored_tests, last_change, pending
from skylift.migration.verification import taking_part
from skylift.migration.warnings import settle
from skylift.model import CopyTask, TargetName, Validation, ValidationResult
from skylift.products.naming import is_called
from skylift.products.registry import find_product
from skylift.runs import MigrationState, UpgradeStatus, ValidationStatus, WarningType
from skylift.store.tables import source_companies, upgrade_tags, validation_progress, validation_results, validations
from skylift.upgrades.pack import COMPANY
from skylift.validation.expectations import COPIED, UPGRADED, ExpectationSuite, check_expectation
from skylift.validation.pair import Pair, Sides, Stopped, ask_together
from skylift.validation.report import Found, Report
from skylift.validation.suites import Suite

FLUSH_S = 0.25                    # what was found is written at most this often
TOGETHER = 40                     # tables that SQL is asked of together, where they are small
_WORKING = (MigrationState.REPLICATING, MigrationState.UPGRADING)
_STALE = "the source has changed since it was copied: run the replication, then validate again"

_log = logging.getLogger("skylift.validation")

Check = Callable[[sa.Connection], None]


def go_through(service: Service, validation: Validation, stop: Callable[[], bool], check: Check) -> None:
    """Carry the validation out and end it. Returns early when stopped, when another one takes its place, or when a run begins.

    `check` raises inside each writing transaction if this coordinator's lease is lost. Raises SkyliftError for what ends it.
    """
    with _watching(service, validation) as overtaken:
        ending = lambda: stop() or overtaken()  # noqa: E731
        with service.store.read() as connection:
            row = get_migration(connection)
        known = {suite.id: suite for suite in all_suites(service.settings)}
        suites = [known[id] for id in validation.suites.splitlines() if id in known]
        source_url, target_url = service.box.open(row["source_url"]), service.box.open(row["target_url"])
        with opened(source_url, target_url, Losses(service.settings.accept)) as (source, open_target):
            target = open_target()
            tasks = taking_part(service, find_product(row["product_id"]).discover(source), source, target)
            chosen = {"", *validation.companies.splitlines()} if validation.companies else {"", *(task.company for task in tasks)}
            source_asker, target_asker = open_asker(source_url, is_source=True), open_asker(target_url, is_source=False)
            with closing(source_asker) if source_asker else nullcontext(), closing(target_asker) if target_asker else nullcontext():
                sides = Sides(source, target, source_asker, target_asker, service.settings.validation_query_s, service.settings.workers,
                              exact=not service.settings.accept.split())
                recorder = _Recorder(service, validation, check)
                _Turn(service, row, sides, tasks, suites, recorder, ending).go({*chosen})
                recorder.flush()
        if not ending():
            _end(service, validation, ValidationStatus.COMPLETED, check)


def fail(service: Service, validation: Validation, reason: str, check: Check) -> None:
    _end(service, validation, ValidationStatus.FAILED, check, reason)


def _end(service: Service, validation: Validation, status: ValidationStatus, check: Check, reason: str = "") -> None:
    with service.verb() as verb:
        check(verb.connection)
        row = validation_progress.c
        errors, warnings, units = verb.connection.execute(sa.select(
            sa.func.coalesce(sa.func.sum(row.errors), 0), sa.func.coalesce(sa.func.sum(row.warnings), 0), sa.func.count()).where(
            row.suite.in_(validation.suites.splitlines()))).one()
        details = redact(reason) or f"{int(errors):,} errors and {int(warnings):,} warnings in {int(units):,} checks"
        note(verb.connection, Validation, [validation.id])
        done = verb.connection.execute(validations.update().where(
            validations.c.id == validation.id, validations.c.status == ValidationStatus.IN_PROGRESS).values(
            status=status, ended_at=verb.now, details=details))
        if done.rowcount:
            verb.log("validation", "end_validation", ValidationStatus.IN_PROGRESS, status, details)
            settle(verb, WarningType.MIGRATION_VALIDATOR, f"the validation could not be carried out: {details}"
                   if status is ValidationStatus.FAILED else _crashes(verb.connection))


def _crashes(connection: sa.Connection) -> str:
    """Which suites could not be carried out somewhere, and why; '' if all could. Their results have neither key nor values (§7)."""
    row = validation_results.c
    found = connection.execute(sa.select(row.suite, sa.func.count(), sa.func.min(row.message)).where(
        row.is_warning, row.key == "", row.expected == "", row.actual == "").group_by(row.suite).order_by(row.suite)).all()
    return "; ".join(f"suite {suite} could not be carried out{f' in {count} places, the first' if count > 1 else ''}: {message}"
                     for suite, count, message in found)


@contextmanager
def _watching(service: Service, validation: Validation) -> Iterator[Callable[[], bool]]:
    """Says whether a run or an upgrade waits, or another validation has taken this one's place; a thread looks."""
    overtaken, ended = threading.Event(), threading.Event()

    def watch() -> None:
        while not overtaken.is_set() and not ended.wait(service.settings.poll_s):
            with suppress(Transient), service.store.read() as connection:
                now = pending(connection)
                if get_migration(connection)["state"] in _WORKING or now is None or now.id != validation.id:
                    overtaken.set()

    thread = threading.Thread(target=watch, name="validation-watch", daemon=True)
    thread.start()
    try:
        yield overtaken.is_set
    finally:
        ended.set()
        thread.join()


Unit = tuple[str, str, str]       # company, suite, table


@dataclass
class _Turn:
    """One way through the suites and tables, skipping what is done."""

    service: Service
    row: Mapping[str, Any]        # the migration's
    sides: Sides
    tasks: Sequence[CopyTask]
    suites: Sequence[Suite]
    recorder: _Recorder
    stop: Callable[[], bool]

    def go(self, companies: set[str]) -> None:
        states = self.sides.target.states()
        others = {(task.company, task.table_name): task for task in self.tasks}
        tasks = [task for task in self.tasks if task.company in companies]
        generic = [suite for suite in self.suites if suite.check]
        own = [suite for suite in self.suites if isinstance(suite, ExpectationSuite) and suite.product in ("", self.row["product_id"])]
        todo: list[tuple[Suite, str, CopyTask | None]] = [
            *((suite, task.company, task) for task in tasks for suite in generic),
            *((suite, company, None) for company in sorted(companies) for suite in own)]
        self.recorder.expect(todo)
        for pair in self._pairs(tasks, {suite.id for suite in generic}, states, others):
            for suite in generic:
                if not self._go(suite, pair.task.company, pair.task.table_name, partial(self._check, suite, pair)):
                    return
        for company in sorted(companies):
            for expected in own:
                if not self._go(expected, company, "", partial(self._expect, expected, company)):
                    return

    def _go(self, suite: Suite, company: str, table: str, check: Callable[[_Filled], None]) -> bool:
        """Have one suite go through one table, or one company, unless it has; False if it was stopped."""
        if self.stop():
            return False
        if not self.recorder.has((company, suite.id, table)):
            report = self.recorder.report(suite)
            try:
                check(report)
            except Stopped:
                return False
            self.recorder.add(suite, company, table, report)
        return True

    def _pairs(self, tasks: Sequence[CopyTask], suites: set[str], states: Mapping[TargetName, TableState],
               others: Mapping[tuple[str, str], CopyTask]) -> Iterator[Pair]:
        """The tables that some suite is still to go through. SQL is asked beforehand of many together."""
        todo = [task for task in tasks if any(not self.recorder.has((task.company, suite, task.table_name)) for suite in suites)]
        for start in range(0, len(todo), TOGETHER):
            pairs = [Pair(task, states.get(task.target), self.sides, others, self.stop) for task in todo[start:start + TOGETHER]]
            ask_together(pairs, suites)
            pairs.reverse()
            while pairs:
                yield pairs.pop()                  # which then goes, with what it keeps of the rows

    def _check(self, suite: Suite, pair: Pair, report: _Filled) -> None:
        assert suite.check
        try:
            suite.check(pair, report)
        except (Stopped, LeaseLost, Transient, SourceFailed, TargetFailed):
            raise
        except CopyError as error:
            if error.code in ("QueryRefused", "QueryOverrun"):
                report.crashed(error)
            else:
                report.unreadable(error)
        except Exception as error:
            _log.exception("suite %s, %s", suite.id, pair.task.table.path)
            report.crashed(error)
        if report.errors and self._has_moved(pair):
            report.soften(_STALE)

    def _has_moved(self, pair: Pair) -> bool:
        """Whether the source's feed says that the table was changed since it was copied: then it is not the target that is wrong."""
        if pair.state is None or self.row["state"] is MigrationState.DISABLED:     # without a feed, and it must not get one again
            return False
        source, table, mark = self.sides.source, pair.task.table, pair.state.watermark
        fed = source.track([table], str(self.row["consumer"]))[table.path].feed
        return SWEEP not in (fed, mark.feed) and not source.usable(table, mark) and table.path in source.changed({table.path: mark})

    def _expect(self, suite: ExpectationSuite, company: str, report: _Filled) -> None:
        """One expectation that cannot be carried out does not hold up the others."""
        upgraded = self._upgraded(company)
        if (suite.when == COPIED and upgraded) or (suite.when == UPGRADED and not upgraded):
            report.note = f"it is for {'before' if suite.when == COPIED else 'after'} the data upgrade"
            return
        for expectation in suite.expectations:
            if (expectation.scope == COMPANY) != bool(company) or self.recorder.is_ignored(suite.id, expectation.test.id):
                continue
            try:
                check_expectation(expectation, self.sides.source_asker, self.sides.target_asker, self.sides.limit_s,
                                  lambda name: self._named(company, name, source=True), lambda name: self._named(company, name), report)
            except (LeaseLost, Transient, SourceFailed, TargetFailed):
                raise
            except Exception as error:
                if not isinstance(error, SkyliftError):
                    _log.exception("suite %s, test %s", suite.id, expectation.test.id)
                report.crashed(error, expectation.test.id)

    def _named(self, company: str, name: str, *, source: bool = False) -> str:
        """The table that `{{name}}` stands for: of the company, else of those that all share."""
        for owner in dict.fromkeys((company, "")):
            tasks = [task for task in self.tasks if task.company == owner]
            hits = [task for task in tasks if task.table_name == name] or [
                task for task in tasks if is_called(task.table_name, name) and not task.table_name.endswith("$ext")]
            if len(hits) == 1:
                asker = self.sides.source_asker if source else self.sides.target_asker
                assert asker
                return source_sql(asker, hits[0].table) if source else asker.table_sql(hits[0].target.schema, hits[0].target.table)
            if hits:
                raise CopyError(f"{len(hits)} tables of {owner or 'all companies'} are called '{name}'",
                                hint=f"write the whole name of one: {', '.join(task.table_name for task in hits)}")
        raise CopyError(f"no table of {company or 'all companies'} that takes part is called '{name}'",
                        hint="see skylift tables for the names")

    def _upgraded(self, company: str) -> bool:
        with self.service.store.read() as connection:
            if company:
                status = connection.scalar(sa.select(source_companies.c.upgrade_status).where(source_companies.c.name == company))
                return status is UpgradeStatus.COMPLETED
            return connection.execute(sa.select(upgrade_tags.c.tag).where(upgrade_tags.c.company_name == "").limit(1)).first() is not None


class _Filled(Report):
    """A report that also takes what kept a suite from going through."""

    def __init__(self, suite: Suite, ignored: set[str], room: Callable[[str], int]) -> None:
        super().__init__(suite.tests, room, ignored)

    def crashed(self, error: BaseException, test: str = "") -> None:
        text = str(error) if isinstance(error, SkyliftError) else f"{type(error).__name__}: {error}"
        self._tell(test, text, warning=True)

    def unreadable(self, error: CopyError) -> None:
        self._tell("", str(error), warning=False)

    def _tell(self, test: str, text: str, *, warning: bool) -> None:
        self.counts[test] += 1
        self.warnings[test] += warning
        self.rows.append(Found(test, "", "", "", warning, redact(text)))


@dataclass
class _Done:
    unit: Unit
    report: _Filled
    fails: bool
    ended_at: datetime = field(default_factory=lambda: datetime.now(UTC))


class _Recorder:
    """Writes what was found, many units at a time."""

    def __init__(self, service: Service, validation: Validation, check: Check) -> None:
        self._service, self._validation, self._check = service, validation, check
        self._waiting: list[_Done] = []
        self._written = time.monotonic()
        with service.store.read() as connection:
            self._ignored = ignored_tests(connection)
            kept = validation_results.c
            self._rows = connection.execute(sa.select(kept.company_name, kept.suite, kept.unit, kept.test, sa.func.count().label("number"))
                                            .group_by(kept.company_name, kept.suite, kept.unit, kept.test)).all()
            row, changed = validation_progress.c, last_change(connection)
            rows = connection.execute(sa.select(row.company_name, row.suite, row.table_name, row.validation_id, row.ended_at, row.errors,
                                                row.warnings)).all()
        self._kept: Counter[tuple[str, str]] = Counter()
        self._clean = {tuple(each[:3]) for each in rows if not (each.errors or each.warnings) and (
            changed is None or each.ended_at > changed)}
        self._done = {tuple(each[:3]) for each in rows if each.validation_id == validation.id}
        self._standing = {tuple(each[:3]) for each in (*rows, *self._rows)}        # of which something stands in the store

    def expect(self, todo: Sequence[tuple[Suite, str, CopyTask | None]]) -> None:
        """These units are before it. What stands of suites and tables that there are no more is forgotten."""
        wanted = {(company, suite.id, task.table_name if task else "") for suite, company, task in todo}
        own = {suite.id for suite, _, task in todo if task is None}
        self._clean = {unit for unit in self._clean if unit[1] not in own}         # their queries may be others now
        self._done |= self._clean & wanted
        for row in self._rows:                         # those of the others go when theirs are written
            if tuple(row[:3]) in self._done or tuple(row[:3]) not in wanted:
                self._kept[row.suite, row.test] += row.number
        everything = not self._validation.companies
        with self._service.store.write() as connection:
            self._check(connection)
            suites = {suite.id for suite, *_ in todo}
            for unit in [tuple(row) for row in connection.execute(sa.select(
                    validation_progress.c.company_name, validation_progress.c.suite, validation_progress.c.table_name))]:
                if everything and unit[1] in suites and unit not in wanted:
                    _forget(connection, unit)
            note(connection, Validation, [self._validation.id])
            connection.execute(validations.update().where(validations.c.id == self._validation.id).values(total=len(wanted)))
            if already := self._done & wanted:         # it counts as gone through by this one
                here = _is(tuple(sa.bindparam(name) for name in ("company", "of_suite", "table")))
                connection.execute(validation_progress.update().where(*here).values(validation_id=self._validation.id), [
                    dict(zip(("company", "of_suite", "table"), unit, strict=True)) for unit in already])

    def has(self, unit: Unit) -> bool:
        return unit in self._done

    def is_ignored(self, suite: str, test: str) -> bool:
        return (suite, test) in self._ignored

    def report(self, suite: Suite) -> _Filled:
        most = self._service.settings.validation_rows
        return _Filled(suite, {test for owner, test in self._ignored if owner == suite.id},
                       lambda test: max(1, most - self._kept[suite.id, test]))

    def add(self, suite: Suite, company: str, table: str, report: _Filled) -> None:
        self._kept.update((suite.id, row.test) for row in report.rows)
        self._waiting.append(_Done((company, suite.id, table), report, suite.errors_should_fail_migration))
        if time.monotonic() - self._written >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            with self._service.store.write() as connection:
                self._check(connection)
                for done in self._waiting:
                    if done.unit in self._standing:
                        _forget(connection, done.unit)
                _write(connection, self._validation, self._waiting)
                connection.execute(validations.update().where(validations.c.id == self._validation.id).values(attempts=0))
            self._done |= {done.unit for done in self._waiting}
            self._standing |= self._done
            self._waiting.clear()
        self._written = time.monotonic()


def _write(connection: sa.Connection, validation: Validation, found: Sequence[_Done]) -> None:
    progress: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for done in found:
        (company, suite, table), report = done.unit, done.report
        counts = {test: [count - report.warnings[test], report.warnings[test]] for test, count in report.counts.items()}
        progress.append({"company_name": company, "suite": suite, "table_name": table, "validation_id": validation.id,
                         "ended_at": done.ended_at, "errors": report.errors, "warnings": report.warnings.total(),
                         "counts": json.dumps(counts) if counts else "", "note": report.note, "fails_migration": done.fails})
        results += [{"id": uuid4(), "suite": suite, "test": row.test, "company_name": company, "unit": table,
                     "table_name": table or next((test.entity for test in report.tests if test.id == row.test), ""), "key": row.key,
                     "expected": row.expected, "actual": row.actual, "is_warning": row.is_warning, "message": row.message,
                     "found_at": done.ended_at} for row in report.rows]
    connection.execute(validation_progress.insert(), progress)
    if results:
        note(connection, ValidationResult, [row["id"] for row in results], created=True)
        connection.execute(validation_results.insert(), results)


def _forget(connection: sa.Connection, unit: tuple) -> None:
    company, suite, table = unit
    connection.execute(validation_progress.delete().where(*_is(unit)))
    kept = validation_results.c
    there = [kept.company_name == company, kept.suite == suite, kept.unit == table]
    note(connection, ValidationResult, sa.select(kept.id).where(*there), deleted=True)
    connection.execute(validation_results.delete().where(*there))


def _is(unit: tuple) -> list[sa.ColumnElement[bool]]:
    return [column == value for column, value in zip(
        (validation_progress.c.company_name, validation_progress.c.suite, validation_progress.c.table_name), unit, strict=True)]
