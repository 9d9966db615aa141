"""One table of a validation, on both sides, and each side's two ways in: the connector's rows, and questions in SQL."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

import pyarrow as pa

from skylift.connectors import Batches, Source, TableState, Target
from skylift.connectors.asking import Asker, source_sql
from skylift.connectors.references import Reference, declared_references
from skylift.engine.columns import upgraded_as
from skylift.engine.verify import source_readers
from skylift.errors import CopyError
from skylift.model import ARROW, CopyTask, Table
from skylift.validation.census import Census, Question, asked, combined, needs_rows, streamed
from skylift.validation.report import Report, Test

SMALL_ROWS = 5_000                # a table up to this is asked for together with others, and read once for all suites
SMALL_BYTES = 2**20               # of its rows, if they are to be kept

TABLE = Test("table", "The target holds the table.")      # of every suite that compares


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

    @cached_property
    def references(self) -> dict[tuple[str, str], list[Reference]]:
        """The foreign keys that the source declares, by namespace and table in lower case."""
        return declared_references(self.source_asker, self.limit_s) if self.source_asker else {}


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
            parts = [selected(part, wanted.schema.names) for part in read(_only(self.table, [*wanted.schema.names, *self.table.key]))]
        else:
            parts = read(wanted) if rows is None else [selected(rows, wanted.schema.names)]
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


def comparable(pair: Pair, report: Report, *, preserved: bool = False) -> bool:
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


def selected(batches: Iterable[pa.RecordBatch], names: list[str]) -> Batches:
    for batch in batches:
        yield batch.select(names)
