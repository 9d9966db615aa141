"""Validation as verbs: what may be asked for, what it has found, and whether that fails the migration. Source: behaviour.md §7.

What takes long is the coordinator's (migration/validator.py): a validation is a row that it goes through, as it does a run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID, uuid4

import sqlalchemy as sa

from skylift.errors import NotFound, SetupError, StateError
from skylift.migration.changes import note
from skylift.migration.scope import list_tables, look_up
from skylift.migration.service import IfMatch, Service, Verb
from skylift.migration.warnings import settle
from skylift.model import Scope, Validation, ValidationResult, ValidationSuite, ValidationTest
from skylift.runs import ValidationStatus, WarningType
from skylift.settings import Settings
from skylift.store import to_row
from skylift.store.tables import (
    registry,
    runs,
    source_companies,
    validation_ignored,
    validation_progress,
    validation_results,
    validations,
)
from skylift.validation.expectations import find_suites
from skylift.validation.suites import Suite


class ValidationVerbs(Service):
    def validate(self, *, suites: Sequence[str] = (), companies: Sequence[str] = (), force: bool = False) -> Validation:
        """Ask for a validation; the coordinator does it. What was validated without a finding since the last run counts as done.

        `suites`: their ids, empty = all; `companies`: marked ones, empty = all, what they share always. `force`: what was found before
        is deleted, and everything validated anew. Raises NotFound for an unknown suite or company, StateError while something is going
        on or nothing has been copied, SetupError for a suite that cannot be read.
        """
        known = {suite.id: suite for suite in self.suites()}
        if unknown := sorted(set(suites) - known.keys()):
            raise NotFound(f"there is no validation suite '{unknown[0]}'", hint=f"there are: {', '.join(known)}", code="SuiteNotFound")
        with self.verb(commits=True, once=True) as verb:
            verb.permit("validate")
            part = look_up(verb, Scope(companies=tuple(companies)))
            under_way = pending(verb.connection)
            if under_way and not force:
                raise StateError("a validation is in progress", hint="wait until it has ended, or begin anew with force",
                                 code="ValidationInProgress")
            if verb.connection.execute(sa.select(registry.c.id).where(registry.c.synced_version > 0).limit(1)).first() is None:
                raise StateError("nothing has been copied yet, so there is nothing to validate", code="NothingCopied",
                                 hint="run the replication first (skylift run; API: runReplication)")
            return request(verb, list(suites) or list(known), sorted(part.companies or ()), force=force)

    def suites(self) -> list[Suite]:
        """Every suite that there is. Raises SetupError naming what is wrong with a file."""
        return all_suites(self.settings)

    def ignore_test(self, id: str, ignored: bool) -> ValidationTest:
        """Have a test log nothing from now on, and forget what it has found; or have it log again, with the next validation."""
        test = next((test for test in self.validation_tests() if test.id == id), None)
        if test is None:
            raise NotFound(f"there is no ValidationTest with the key {id}")
        with self.verb() as verb:
            one = sa.and_(validation_ignored.c.suite == test.suite, validation_ignored.c.test == test.test)
            verb.connection.execute(validation_ignored.delete().where(one))
            if ignored:
                verb.connection.execute(validation_ignored.insert().values(suite=test.suite, test=test.test))
                _forget_test(verb.connection, test.suite, test.test)
            verb.log(f"validation test {test.suite}/{test.test}", "ignore" if ignored else "heed")
        return next(found for found in self.validation_tests() if found.id == id)

    def change_validation_test(self, id: str, values: Mapping[str, bool], if_match: IfMatch) -> ValidationTest:
        """`values`: {"ignored": bool}."""
        found = next((test for test in self.validation_tests() if test.id == id), None)
        if found is None:
            raise NotFound(f"there is no ValidationTest with the key {id}")
        if_match(found)
        wanted = values.get("ignored", found.ignored)
        return found if wanted == found.ignored else self.ignore_test(id, wanted)

    def validated(self, id: UUID) -> int:
        """How many (company, suite, table) a validation has gone through."""
        with self.store.read() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(validation_progress).where(
                validation_progress.c.validation_id == id)) or 0

    def not_compared(self, suites: Sequence[str]) -> dict[str, list[str]]:
        """Why tables were not compared, with the tables: a sentence -> texts of suite, company and table."""
        row = validation_progress.c
        found: dict[str, list[str]] = {}
        with self.store.read() as connection:
            for each in connection.execute(sa.select(row.suite, row.company_name, row.table_name, row.note).where(
                    row.note != "", row.suite.in_(suites)).order_by(row.note, row.suite, row.company_name, row.table_name)):
                found.setdefault(each.note, []).append(" ".join(filter(None, each[:3])))
        return found

    def validation_suites(self) -> list[ValidationSuite]:
        with self.store.read() as connection:
            rows = connection.execute(sa.select(
                validation_progress.c.suite, sa.func.sum(validation_progress.c.errors), sa.func.sum(validation_progress.c.warnings))
                .group_by(validation_progress.c.suite)).all()
        found = {suite: (int(errors), int(warnings)) for suite, errors, warnings in rows}
        return [ValidationSuite(suite.id, suite.description, suite.automatic, suite.errors_should_fail_migration,
                                *found.get(suite.id, (0, 0))) for suite in self.suites()]

    def validation_tests(self) -> list[ValidationTest]:
        with self.store.read() as connection:
            ignored = ignored_tests(connection)
            counts: Counter[tuple[str, str]] = Counter()
            for suite, text in connection.execute(sa.select(validation_progress.c.suite, validation_progress.c.counts).where(
                    validation_progress.c.counts != "")):
                for test, numbers in json.loads(text).items():
                    counts[suite, test] += sum(numbers)
        return [ValidationTest(f"{suite.id}.{test.id}", suite.id, test.id, test.entity, test.description,
                               counts[suite.id, test.id], test.ignored or (suite.id, test.id) in ignored)
                for suite in self.suites() for test in suite.tests]


def all_suites(settings: Settings) -> list[Suite]:
    return find_suites(settings.validation_suites.split(), settings.home)


def request(verb: Verb, suites: Sequence[str], companies: Sequence[str], *, force: bool = False) -> Validation:
    """A new validation, in the place of one that is under way."""
    connection = verb.connection
    _replace(verb)
    if force:
        for table in (validation_results, validation_progress):
            there = [table.c.suite.in_(suites), table.c.company_name.in_(["", *companies]) if companies else sa.true()]
            if table is validation_results:
                note(connection, ValidationResult, sa.select(table.c.id).where(*there), deleted=True)
            connection.execute(table.delete().where(*there))
    asked = Validation(uuid4(), verb.now, verb.actor, ValidationStatus.IN_PROGRESS, "\n".join(suites), "\n".join(companies), force)
    note(connection, Validation, [asked.id], created=True)
    connection.execute(validations.insert().values({c.name: getattr(asked, c.name) for c in validations.columns if hasattr(asked, c.name)}))
    verb.log("validation", "validate", "", asked.status, ", ".join(suites))
    return asked


def validate_automatically(verb: Verb, settings: Settings) -> None:
    """After a run or an upgrade, where the setting says so: the automatic suites go through what has changed."""
    if settings.validation == "automatic":
        try:
            suites = [suite.id for suite in all_suites(settings) if suite.automatic]
        except SetupError as error:                    # a file that cannot be read must not undo the end of a run
            verb.log("validation", "not_validated", why=str(error))
            settle(verb, WarningType.MIGRATION_VALIDATOR, f"nothing is validated after a run: {error}")
            return
        request(verb, suites, ())


def pending(connection: sa.Connection) -> Validation | None:
    row = connection.execute(sa.select(validations).where(validations.c.status == ValidationStatus.IN_PROGRESS)).mappings().first()
    return to_row(Validation, row) if row else None


def ignored_tests(connection: sa.Connection) -> set[tuple[str, str]]:
    return {(suite, test) for suite, test in connection.execute(sa.select(validation_ignored))}


def last_change(connection: sa.Connection) -> datetime | None:
    """When the target last changed, as far as runs and upgrades tell."""
    return connection.scalar(sa.select(sa.func.max(runs.c.ended_at)))


def refuse_invalid(connection: sa.Connection) -> None:
    """Raises StateError while a validation is under way, or where one has found errors that fail the migration, in what takes part."""
    if pending(connection):
        raise StateError("a validation is in progress", hint="wait until it has ended (skylift validate goes on with it)",
                         code="ValidationInProgress")
    row, marked = validation_progress.c, sa.select(source_companies.c.name).where(source_companies.c.replicate)
    left_out = sa.exists().where(registry.c.company_name == row.company_name, registry.c.table_name == row.table_name,
                                 ~registry.c.replicate)
    found = connection.execute(sa.select(row.company_name, row.table_name, row.suite, row.errors).where(
        row.fails_migration, row.errors > 0, sa.or_(row.company_name == "", row.company_name.in_(marked)), ~left_out,
    ).order_by(row.company_name, row.table_name, row.suite)).all()
    if found:
        errors = sum(each.errors for each in found)
        places = list_tables([(each.company_name, f"{each.table_name} (suite {each.suite})".strip()) for each in found])
        raise StateError(f"validation has found {errors:,} error{'' if errors == 1 else 's'}: {places}", code="ValidationFailed",
                         hint="have the tables copied whole again (skylift run --kind full --table NAME), or correct the rows, and "
                              "validate again (skylift validate --force); or have it ignore a test that is wrong "
                              "(skylift validate --ignore SUITE/TEST)")


def forget_validations(verb: Verb) -> None:
    """Nothing of this target has been validated."""
    _replace(verb)
    note(verb.connection, ValidationResult, sa.select(validation_results.c.id), deleted=True)
    for table in (validation_results, validation_progress):
        verb.connection.execute(table.delete())


def _replace(verb: Verb) -> None:
    """What is under way ends for another one."""
    under_way = validations.c.status == ValidationStatus.IN_PROGRESS
    note(verb.connection, Validation, sa.select(validations.c.id).where(under_way))
    verb.connection.execute(validations.update().where(under_way).values(status=ValidationStatus.REPLACED, ended_at=verb.now))


def _forget_test(connection: sa.Connection, suite: str, test: str) -> None:
    there = [validation_results.c.suite == suite, validation_results.c.test == test]
    note(connection, ValidationResult, sa.select(validation_results.c.id).where(*there), deleted=True)
    connection.execute(validation_results.delete().where(*there))
    row = validation_progress.c
    for found in connection.execute(sa.select(validation_progress).where(row.suite == suite, row.counts != "")).all():
        counts: Mapping[str, list[int]] = {name: numbers for name, numbers in json.loads(found.counts).items() if name != test}
        connection.execute(validation_progress.update().where(
            row.company_name == found.company_name, row.suite == suite, row.table_name == found.table_name).values(
            counts=json.dumps(counts) if counts else "", errors=sum(numbers[0] for numbers in counts.values()),
            warnings=sum(numbers[1] for numbers in counts.values())))
