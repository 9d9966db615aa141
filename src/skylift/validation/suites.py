"""The suites that come with skylift, for any source: row counts, sets of keys, aggregates and census of every column, companion rows,
foreign keys.

A table that the data upgrade has changed is not compared with the source any more, only its companion rows are; of a table whose rows
the target keeps (preserved), only what the source has must be there. Expected and actual values are always texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from skylift.connectors import Batches
from skylift.validation.census import shown
from skylift.validation.keys import KeyDifference, Keys, compare_keys
from skylift.validation.pair import TABLE, Pair, comparable, selected
from skylift.validation.references import check_references
from skylift.validation.report import Report, Test

COMPANION = "$ext"                # at the end of the name of a table whose rows belong to another one's
NAMED = 200                       # keys of a kind that are looked up by name


@dataclass(frozen=True, slots=True)
class Suite:
    """`check` is called for each table; None: the suite is expectations in SQL (expectations.py)."""

    id: str
    description: str
    tests: tuple[Test, ...]
    automatic: bool = True
    errors_should_fail_migration: bool = True
    check: Callable[[Pair, Report], None] | None = None


def _check_rows(pair: Pair, report: Report) -> None:
    if comparable(pair, report, preserved=True):
        here, there = pair.source_rows(), pair.target_rows()
        if there < here if pair.task.preserve else there != here:
            report.add("count", "", f"at least {here}" if pair.task.preserve else str(here), str(there))


def _check_keys(pair: Pair, report: Report) -> None:
    if not pair.task.table.key:
        report.note = "the table has no primary key"
        return
    if not comparable(pair, report, preserved=True):
        return
    key = list(pair.table.key)
    found = compare_keys(key, pair.table.rows or 0, lambda: pair.source_parts(key), lambda: pair.target_parts(key), pair.sides.workers,
                         NAMED)
    _tell(report, "missing", found.missing, "exists", "does not exist")
    _tell(report, "repeated", found.repeated, "occurs once", "occurs again")
    if not pair.task.preserve:
        _tell(report, "extra", found.extra, "does not exist", "exists")


def _tell(report: Report, test: str, keys: Keys, expected: str, actual: str, message: str = "", *, warning: bool = False) -> None:
    report.add_all(test, keys.some, keys.count, expected, actual, message, warning=warning)


def _compare_columns(measures: tuple[str, ...]) -> Callable[[Pair, Report], None]:
    def check(pair: Pair, report: Report) -> None:
        if not comparable(pair, report):
            return
        here, there = pair.source_census(measures), pair.target_census(measures)
        for column in pair.table.schema:
            for name in measures:
                expected, actual = (side.columns[column.name].get(name) for side in (here, there))
                if expected != actual:
                    report.add(name, column.name, shown(column.type, name, expected), shown(column.type, name, actual))

    return check


def _check_companions(pair: Pair, report: Report) -> None:
    """Of a companion table: each row has its base row, and each base row has its companion (behaviour.md §1)."""
    name = pair.task.table_name
    if not name.endswith(COMPANION):
        return
    base = pair.others.get((pair.task.company, name.removesuffix(COMPANION)))
    if base is None:
        report.note = "its base table takes no part"
        return
    if pair.state is None:
        report.add("table", "", "exists", "does not exist", "the target holds no finished copy of this table")
        return
    if not pair.task.table.key or len(pair.task.table.key) != len(base.table.key):
        report.note = "it has no key, or another one than its base table"
        return
    other = Pair(base, pair.state, pair.sides, pair.others, pair.stop)
    there = _companions(pair, other, lambda p, k: p.target_parts(k))
    if not (there.missing.count or there.extra.count):
        return
    here = _companions(pair, other, lambda p, k: p.source_parts(k))
    told = "so it is in the source"
    for test, found, known, expected, actual in (
            ("orphan", there.extra, here.extra, f"exists in {base.table_name}", "does not exist"),
            ("invisible", there.missing, here.missing, f"exists in {name}", "does not exist")):
        same = found.count <= known.count
        _tell(report, test, found, expected, actual, told if same else "", warning=same)


def _companions(companion: Pair, base: Pair, parts: Callable[[Pair, Sequence[str]], list[Batches]]) -> KeyDifference:
    """How the keys of the companion table differ from those of its base, on one side."""
    names, others = list(base.table.key), list(companion.table.key)

    def renamed(batches: Batches) -> Batches:
        for batch in batches:
            yield batch.select(others).rename_columns(names)

    rows = max(base.table.rows or 0, companion.table.rows or 0)
    return compare_keys(names, rows, lambda: [selected(part, names) for part in parts(base, names)],
                        lambda: [renamed(part) for part in parts(companion, others)], base.sides.workers, NAMED)


SUITES = (
    Suite("rows", "As many rows as in the source, counted by each database.", (TABLE, Test("count", "The number of rows.")),
          check=_check_rows),
    Suite("keys", "The keys of the source, each once.",
          (TABLE, Test("missing", "A key of the source that the target lacks."),
           Test("extra", "A key of the target that the source lacks."),
           Test("repeated", "A key that more than one row of the target has.")),
          check=_check_keys),
    Suite("columns", "Aggregates of the values of each column.",
          (TABLE, Test("sum", "The exact sum of numbers, booleans and times."), Test("least", "The least number or time."),
           Test("greatest", "The greatest number or time."), Test("checksum", "A sum over every text, binary, float or UUID value.")),
          check=_compare_columns(("sum", "least", "greatest", "checksum"))),
    Suite("census", "How many values are null, and how long they are.",
          (TABLE, Test("nulls", "The number of nulls."), Test("shortest", "The shortest text or binary value."),
           Test("longest", "The longest text or binary value."), Test("length", "The length of all values together.")),
          check=_compare_columns(("nulls", "shortest", "longest", "length"))),
    Suite("companions", "Companion rows and base rows belong together, in Business Central databases.",
          (TABLE, Test("orphan", "A companion row without its base row."),
           Test("invisible", "A base row without its companion row: Business Central does not show it.")), check=_check_companions),
    Suite("references", "Rows that a foreign key of the source refers to are there.",
          (TABLE, Test("dangling", "Rows whose reference leads nowhere, of which the source has another number.")), check=check_references),
)
