"""What only reading every row tells: values that do not fit, lengths, NULs, large values, code fields, companions without a base row.

Rows are read and fitted by the very code that copies them (engine/check.py). Changes that somebody might accept (losses.py) are all
made here, and so counted; whether the migration accepts them decides how severe they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from skylift.connectors import Batches, Destination, Source
from skylift.connectors.looks import Remark, StandingColumn, TargetLook
from skylift.engine.assess import Difference, Found, about, differences, of_error, written
from skylift.engine.check import check_tables
from skylift.engine.preserve import overlap
from skylift.engine.verify import source_readers
from skylift.errors import CopyError
from skylift.losses import KINDS, Losses
from skylift.model import ARROW, CopyTask, Table
from skylift.runs import Severity

LARGE_BYTES = 64 * 2**20           # of a value: more are told, for memory and time
CODES = {"nul": "Nul", "ticks": "Ticks", "surrogates": "Surrogates", "zero-dates": "ZeroDate", "infinity": "Infinity", "nan": "NaN"}
Key = tuple[str, str]


class CountingLosses(Losses):
    """Accepts everything, and keeps what was counted."""

    def __init__(self) -> None:
        super().__init__(KINDS)
        self.found: dict[tuple[str, str, str], int] = {}       # path, column, kind
        self._adding = threading.Lock()

    def count(self, kind: str, table: str, column: str, values: int) -> None:
        with self._adding:
            self.found[table, column, kind] = self.found.get((table, column, kind), 0) + values


@dataclass(frozen=True, slots=True)
class Scan:
    """What came of it: what was found, and which of the columns that catalogues call too short for their source are not."""

    found: list[Found]
    rows: int
    harmless: frozenset[tuple[str, str, str]]                  # company, table, column


class Census:
    """What is seen of one table's rows as they pass."""

    def __init__(self, task: CopyTask, wider: Sequence[Difference], not_null: Collection[str], codes: bool) -> None:
        self.task = task
        self._bounds = {difference.column: difference for difference in wider}
        self._longest = dict.fromkeys(self._bounds, 0)
        self._too_long = dict.fromkeys(self._bounds, 0)
        self._nulls = dict.fromkeys(not_null, 0)
        self._codes = {name: 0 for name in task.table.key if codes and pa.types.is_string(task.table.schema.field(name).type)}
        self._large: dict[str, tuple[int, int]] = {}           # how many, and the largest

    def see(self, batch: pa.RecordBatch) -> None:
        if batch.schema.names != self.task.table.schema.names:         # whole rows in one value, which the target takes as they are
            return
        for name, difference in self._bounds.items():
            lengths, standing = pc.utf8_length(batch.column(name)), difference.standing
            assert standing is not None
            self._longest[name] = max(self._longest[name], pc.max(lengths).as_py() or 0)
            self._too_long[name] += pc.sum(pc.greater(lengths, standing.most)).as_py() or 0
        for name in self._nulls:
            self._nulls[name] += batch.column(name).null_count
        for name in self._codes:
            column = batch.column(name)
            clean = pc.utf8_upper(pc.utf8_trim(column, " "))
            self._codes[name] += pc.sum(pc.not_equal(column, clean)).as_py() or 0
        if batch.nbytes > LARGE_BYTES:
            for field in batch.schema:
                if pa.types.is_string(field.type) or pa.types.is_binary(field.type):
                    sizes = pc.binary_length(batch.column(field.name))
                    if large := pc.sum(pc.greater(sizes, LARGE_BYTES)).as_py():
                        count, largest = self._large.get(field.name, (0, 0))
                        self._large[field.name] = count + large, max(largest, pc.max(sizes).as_py())

    def harmless(self) -> set[tuple[str, str, str]]:
        return {(self.task.company, self.task.table_name, name) for name, count in self._too_long.items() if not count}

    def found(self) -> Iterator[Found]:
        preserved = self.task.preserve
        for name, count in self._too_long.items():
            if count:
                difference = self._bounds[name]
                assert difference.standing is not None
                after = "" if preserved else "; the table is replaced, and then has the source's"
                yield about(self.task, Remark(
                    "50011", Severity.BLOCKING if preserved else Severity.WARNING,
                    f"source {difference.declared}, target {difference.standing.declared}: {count:,} values are longer than "
                    f"{difference.standing.most} characters, the longest has {self._longest[name]:,}{after}",
                    "widen the target's column, or let the table be replaced" if preserved else "", column=name, count=count), True)
        for name, count in self._nulls.items():
            if count:
                yield about(self.task, Remark("NullNotAllowed", Severity.BLOCKING, f"{count:,} rows have NULL where the target's column "
                                              "allows none", "correct the rows at the source, or let the target's column be NULL",
                                              column=name, count=count), True)
        for name, count in self._codes.items():
            if count:
                yield about(self.task, Remark("CodeField", Severity.WARNING, f"{count:,} codes have lower-case letters, or blanks around "
                                              "them", "the upgrade pack code-fields puts them right (setting packs)", column=name,
                                              count=count), True)
        for name, (count, largest) in self._large.items():
            yield about(self.task, Remark("LargeValue", Severity.WARNING, f"{count:,} values are larger than {LARGE_BYTES >> 20} MB, the "
                                          f"largest has {largest / 2**20:,.0f} MB: each needs several times its size in memory", "give the "
                                          "machine that memory, or make them smaller at the source", column=name, count=count), True)


def scan(tasks: Sequence[CopyTask], source: Source, target: TargetLook, *, accepted: Collection[str], codes: bool, workers: int,
         stop: Callable[[], bool] = lambda: False, tell: Callable[[int], None] = lambda rows: None) -> Scan | None:
    """Read every row of these tables; None if stopped. `source` and `target` have CountingLosses.

    `accepted`: kinds of losses.py that the migration accepts. `codes`: text in keys is that of Business Central's codes. `tell` is told
    how many rows have been read so far, often, by several threads.
    """
    standing = target.standing([task.target for task in tasks])
    censuses = {(task.company, task.table_name): _census(task, target, standing.get(task.target, ()), codes) for task in tasks}
    rows: dict[Key, int] = {}

    def see(task: CopyTask, batch: pa.RecordBatch, count: int) -> None:
        key = (task.company, task.table_name)
        censuses[key].see(batch)
        rows[key] = count
        tell(sum(tuple(rows.values())))

    found: list[Found] = []
    read = [replace(task, table=written(task, target)) for task in tasks]
    for progress in check_tables(read, source, _Stateless(target), workers=workers, stop=stop, see=see):
        if isinstance(progress.error, CopyError):
            found.append(of_error(progress.task, progress.error, True))
    if stop():
        return None
    by_path: dict[str, list[CopyTask]] = {}
    for task in tasks:
        by_path.setdefault(task.table.path, []).append(task)
    for losses in dict.fromkeys((source.losses, target.losses)):
        assert isinstance(losses, CountingLosses)
        for (path, column, kind), count in sorted(losses.found.items()):
            found += [_lost(task, column, kind, count // len(by_path[path]), kind in accepted) for task in by_path.get(path, ())]
    for census in censuses.values():
        found += census.found()
    if codes:
        for task in tasks:
            if stop():
                return None
            found += _orphans(task, tasks, source, target, workers)
    return Scan(found, sum(rows.values()), frozenset().union(*(census.harmless() for census in censuses.values())))


class _Stateless:
    """A target that has copied nothing: what it has copied is the business of engine/assess.py."""

    def __init__(self, target: Destination) -> None:
        self._target = target
        self.max_name_bytes, self.chunk_rows = target.max_name_bytes, target.chunk_rows
        self.formats, self.losses = target.formats, target.losses
        self.declares, self.fit = target.declares, target.fit

    def states(self) -> dict:
        return {}


def _census(task: CopyTask, target: TargetLook, standing: Sequence[StandingColumn], codes: bool) -> Census:
    try:
        wider = [d for d in differences(task, target.declares(written(task, target)), standing) if d.bounded] if standing else []
    except CopyError:
        wider = []                                     # told already
    names = {name.casefold(): name for name in task.table.schema.names}
    not_null = [names[c.name.casefold()] for c in standing if task.preserve and not c.nullable and c.name.casefold() in names]
    return Census(task, wider, not_null, codes)


def _lost(task: CopyTask, column: str, kind: str, count: int, accepted: bool) -> Found:
    if accepted:
        remark = Remark(CODES[kind], Severity.INFORMATION, f"{count:,} values will be changed, as the setting 'accept' allows: "
                        f"{KINDS[kind]}", column=column, count=count)
    else:
        remark = Remark(CODES[kind], Severity.BLOCKING, f"{count:,} values cannot move as they are ({kind})", "correct the rows at the "
                        f"source, or set 'accept' to {kind}: {KINDS[kind]}, and counted", column=column, count=count)
    return about(task, remark, True)


def _orphans(task: CopyTask, tasks: Sequence[CopyTask], source: Source, target: TargetLook, workers: int) -> Iterator[Found]:
    """Rows of a companion table without a row in its base table, and the other way round: by the hashes of their keys."""
    base = next((other for other in tasks if task.table_name == f"{other.table_name}$ext" and other.company == task.company), None)
    if base is None or not task.table.key or base.table.key != task.table.key:
        return

    def keys_of(table: Table) -> Table:
        fields = [table.schema.field(name) for name in table.key]
        types = tuple(table.source_types[table.schema.get_field_index(name)] for name in table.key) if table.source_types else ()
        return replace(table, schema=pa.schema(fields), source_types=types, format=ARROW)

    def readers(table: Table) -> Callable[[], list[Batches]]:
        made = source_readers(keys_of(table), source, target)
        return lambda: [_closing(batches) for batches in made()]

    try:
        both = overlap(keys_of(task.table), readers(task.table), readers(base.table), workers)
    except CopyError as error:
        yield of_error(task, error, True)
        return
    if both.missing:
        yield about(task, Remark("OrphanCompanion", Severity.WARNING, f"{both.missing:,} rows have no row in {base.table_name}, the first "
                                 f"with the key {both.samples[0]}: nobody sees them", "delete them at the source, if they are leftovers",
                                 count=both.missing), True)
    if both.orphans:
        yield about(base, Remark("CompanionMissing", Severity.WARNING, f"{both.orphans:,} rows have no row in {task.table_name}: the "
                                 "application does not see them", "the upgrade pack companions makes the missing rows (setting packs)",
                                 count=both.orphans), True)


def _closing(batches: Batches) -> Batches:
    with closing(batches):
        yield from batches
