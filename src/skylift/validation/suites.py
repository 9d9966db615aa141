"""The suites that come with skylift, for any source: row counts, sets of keys, aggregates and census of every column, companion rows.

A table that the data upgrade has changed is not compared with the source any more, only its companion rows are; of a table whose rows
the target keeps (preserved), only what the source has must be there. Expected and actual values are always texts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

import pyarrow as pa

from skylift.connectors import Batches, Source, TableState, Target
from skylift.connectors.asking import Asker, source_sql
from skylift.engine.columns import upgraded_as
from skylift.engine.verify import source_readers
from skylift.errors import CopyError
from skylift.model import ARROW, CopyTask, Table
from skylift.validation.census import Census, Question, asked, combined, needs_rows, shown, streamed
from skylift.validation.keys import KeyDifference, Keys, compare_keys
from skylift.validation.report import Report, Test

COMPANION = "$ext"                # at the end of the name of a table whose rows belong to another one's
NAMED = 200                       # keys of a kind that are looked up by name
SMALL_ROWS = 5_000                # a table up to this is asked for together with others, and read once for all suites
SMALL_BYTES = 2**20               # of its rows, if they are to be kept


@dataclass(frozen=True, slots=True)
class Suite:
    """`check` is called for each table; None: the suite is expectations in SQL (expectations.py)."""

    id: str
    description: str
    tests: tuple[Test, ...]
    automatic: bool = True
    errors_should_fail_migration: bool = True
    check: Callable[[Pair, Report], None] | None = None


@dataclass
class Sides:
    """Source and target of a validation, each with its two ways in: the connector, and questions in SQL (None where there is none)."""

    source: Source
    target: Target
    source_asker: Asker | None
    target_asker: Asker | None
    limit_s: float                # of a question
    workers: int
    exact: bool                   # no setting lets values change on their way: the source's own SQL says what the target must hold


@dataclass
class Pair:
    """One table on both sides. What is read for one suite is kept for the next."""

    task: CopyTask
    state: TableState | None      # as the target's ledger has it; None: it was never copied
    sides: Sides
    others: Mapping[tuple[str, str], CopyTask]         # every table that takes part, by company and name
    stop: Callable[[], bool] = lambda: False
    _censuses: dict[tuple[bool, bool], Census] = field(default_factory=dict)       # of the source? with its rows read?
    _counts: dict[bool, int] = field(default_factory=dict)                          # of rows, as SQL says; of the source?
    _rows: dict[bool, list[pa.RecordBatch] | None] = field(default_factory=dict)    # None: not to be kept; of the source?

    @cached_property
    def table(self) -> Table:
        """As its source measures it; rows are compared whatever they were copied as."""
        return self.sides.source.measure(replace(self.task.table, format=ARROW))

    @property
    def upgraded(self) -> bool:
        return self.state is not None and upgraded_as(self.state.columns) is not None

    @property
    def target_place(self) -> str:
        assert self.sides.target_asker
        return self.sides.target_asker.table_sql(self.task.target.schema, self.task.target.table)

    @property
    def small(self) -> bool:
        return self.state is not None and self.state.digest.rows <= SMALL_ROWS

    def source_parts(self, columns: Sequence[str] = ()) -> list[Batches]:
        """Streams of all rows as the target can hold them; `columns`: only these."""
        return self._parts(True, columns, lambda table: source_readers(table, self.sides.source, self.sides.target)())

    def target_parts(self, columns: Sequence[str] = ()) -> list[Batches]:
        return self._parts(False, columns, lambda table: self.sides.target.read_parts(self.task.target, table, self.sides.workers))

    def _parts(self, source: bool, columns: Sequence[str], read: Callable[[Table], list[Batches]]) -> list[Batches]:
        if source not in self._rows:
            self._rows[source] = self._kept(read) if self.small and (self.table.size_bytes or 0) <= SMALL_BYTES else None
        wanted = _only(self.table, columns)
        rows = self._rows[source]
        if rows is None and source:                    # which is read by its key, so that it cannot be left out
            parts = [_selected(part, wanted.schema.names) for part in read(_only(self.table, [*wanted.schema.names, *self.table.key]))]
        else:
            parts = read(wanted) if rows is None else [_selected(rows, wanted.schema.names)]
        return [self._until_stopped(part) for part in parts]

    def _kept(self, read: Callable[[Table], list[Batches]]) -> list[pa.RecordBatch] | None:
        """All rows, None if they are more than what was copied and too many."""
        rows: list[pa.RecordBatch] = []
        for part in read(self.table):
            with closing(part):
                for batch in part:
                    rows.append(batch)
                    if sum(each.nbytes for each in rows) > SMALL_BYTES:
                        return None
        return rows

    def source_rows(self) -> int:
        return self._count(True, self.sides.source_asker, self.source_parts)

    def target_rows(self) -> int:
        return self._count(False, self.sides.target_asker, self.target_parts)

    def _count(self, source: bool, asker: Asker | None, parts: Callable[[Sequence[str]], list[Batches]]) -> int:
        if source not in self._counts:
            if asker:
                [census] = asked(asker, [replace(self.question(source), measured=False)], self.sides.limit_s)
                self._counts[source] = census.rows
            else:
                self._counts[source] = sum(batch.num_rows for part in parts(self._narrowest()) for batch in part)
        return self._counts[source]

    def question(self, source: bool) -> Question:
        """What the SQL of source or target is to say, which both say of what the target must hold."""
        if source:
            assert self.sides.source_asker
            return Question(source_sql(self.sides.source_asker, self.table), self.table, True, self.sides.exact)
        native = self.task.table.format != ARROW
        return Question(self.target_place, self.task.table if native else self.table, native)

    def told(self, source: bool, census: Census, measured: bool) -> None:
        """What SQL has said of it together with other tables."""
        self._counts[source] = census.rows
        if measured:
            self._censuses[source, False] = census

    def source_census(self, measures: Sequence[str]) -> Census:
        return self._census(True, measures, self.sides.source_asker if self.sides.exact else None, self.source_parts)

    def target_census(self, measures: Sequence[str]) -> Census:
        return self._census(False, measures, self.sides.target_asker, self.target_parts)

    def _census(self, source: bool, measures: Sequence[str], asker: Asker | None,
                parts: Callable[[Sequence[str]], list[Batches]]) -> Census:
        """By SQL, and of the columns of which that does not say all, by their rows; what is known already is not read again."""
        known = self._censuses.get((source, True)) or self._censuses.get((source, False))
        if known is None:
            known = asked(asker, [self.question(source)], self.sides.limit_s)[0] if asker else Census()
            self._censuses[source, False] = known
        columns = needs_rows(self.table, known, measures)
        if not columns:
            return known
        read = streamed(parts(columns), _only(self.table, columns).schema, self.sides.workers)
        both = combined(known, read)
        both.columns = known.columns | both.columns
        self._censuses[source, True] = both
        return both

    def _narrowest(self) -> tuple[str, ...]:
        return self.table.key or (self.table.schema.names[0],)

    def _until_stopped(self, batches: Batches) -> Batches:
        with closing(batches):
            for batch in batches:
                if self.stop():
                    raise Stopped
                yield batch


class Stopped(Exception):
    """The validation is to end; what it was at is not done."""


def ask_together(pairs: Sequence[Pair], suites: Collection[str]) -> None:
    """Have SQL say beforehand what it can of small tables that are compared, of many in one query, as far as these suites want it.

    Where it cannot, each table is asked alone when its turn comes, which then tells what is wrong with it.
    """
    measured = not {"columns", "census"}.isdisjoint(suites)
    if not measured and "rows" not in suites:
        return
    pairs = [pair for pair in pairs if pair.small and not pair.upgraded and not pair.task.preserve]
    for source in (True, False) if pairs else ():
        sides = pairs[0].sides
        if asker := sides.source_asker if source else sides.target_asker:
            with suppress(CopyError):
                questions = [pair.question(source) for pair in pairs]
                questions = [replace(question, measured=measured and question.measured) for question in questions]
                for pair, question, census in zip(pairs, questions, asked(asker, questions, sides.limit_s), strict=True):
                    pair.told(source, census, question.measured)


def _only(table: Table, columns: Sequence[str]) -> Table:
    if not columns:
        return table
    kept = [(f, declared) for f, declared in table.declared() if f.name in columns]
    return replace(table, schema=pa.schema([f for f, _ in kept]), source_types=tuple(declared for _, declared in kept))


def _comparable(pair: Pair, report: Report, *, preserved: bool = False) -> bool:
    """Whether the target is to hold the source's rows; what does not is reported or noted. `preserved`: also of a preserved table."""
    if pair.upgraded:
        report.note = "changed by the data upgrade, no longer compared with the source"
    elif pair.task.preserve and not preserved:
        report.note = "the target keeps rows of its own (preserved)"
    elif pair.state is None:
        report.add("table", "", "exists", "does not exist", "the target holds no finished copy of this table")
    else:
        return True
    return False


_TABLE = Test("table", "The target holds the table.")


def _check_rows(pair: Pair, report: Report) -> None:
    if _comparable(pair, report, preserved=True):
        here, there = pair.source_rows(), pair.target_rows()
        if there < here if pair.task.preserve else there != here:
            report.add("count", "", f"at least {here}" if pair.task.preserve else str(here), str(there))


def _check_keys(pair: Pair, report: Report) -> None:
    if not pair.task.table.key:
        report.note = "the table has no primary key"
        return
    if not _comparable(pair, report, preserved=True):
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
        if not _comparable(pair, report):
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
    return compare_keys(names, rows, lambda: [_selected(part, names) for part in parts(base, names)],
                        lambda: [renamed(part) for part in parts(companion, others)], base.sides.workers, NAMED)


def _selected(batches: Iterable[pa.RecordBatch], names: list[str]) -> Batches:
    for batch in batches:
        yield batch.select(names)


SUITES = (
    Suite("rows", "As many rows as in the source, counted by each database.", (_TABLE, Test("count", "The number of rows.")),
          check=_check_rows),
    Suite("keys", "The keys of the source, each once.",
          (_TABLE, Test("missing", "A key of the source that the target lacks."),
           Test("extra", "A key of the target that the source lacks."),
           Test("repeated", "A key that more than one row of the target has.")),
          check=_check_keys),
    Suite("columns", "Aggregates of the values of each column.",
          (_TABLE, Test("sum", "The exact sum of numbers, booleans and times."), Test("least", "The least number or time."),
           Test("greatest", "The greatest number or time."), Test("checksum", "A sum over every text, binary, float or UUID value.")),
          check=_compare_columns(("sum", "least", "greatest", "checksum"))),
    Suite("census", "How many values are null, and how long they are.",
          (_TABLE, Test("nulls", "The number of nulls."), Test("shortest", "The shortest text or binary value."),
           Test("longest", "The longest text or binary value."), Test("length", "The length of all values together.")),
          check=_compare_columns(("nulls", "shortest", "longest", "length"))),
    Suite("companions", "Companion rows and base rows belong together, in Business Central databases.",
          (_TABLE, Test("orphan", "A companion row without its base row."),
           Test("invisible", "A base row without its companion row: Business Central does not show it.")), check=_check_companions),
)
