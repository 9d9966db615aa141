"""Full comparison of source and target at any time, from scratch: both sides are read and hashed, nothing kept is trusted.

Where a table differs, the comparison descends: rows fall into buckets by the hash of their key, only buckets whose digests
differ are read again, and in those the differing keys and columns are named. Memory is bounded by the buckets looked into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from skylift.connectors import Batches, Destination, Source, TableState, Target
from skylift.engine.buckets import bucket_sums, differing, rows_of
from skylift.engine.columns import table_of, upgraded_as
from skylift.engine.copy import CHUNK_BYTES
from skylift.engine.hashing import digest_all
from skylift.engine.preserve import overlap
from skylift.errors import CopyError
from skylift.model import ARROW, UNTOLD, CopyTask, Digest, KeyRange, Reading, Table, TargetName

BUCKETS = 4096
BUCKETS_READ = 16                 # differing buckets that are looked into
SAMPLES = 20                      # keys that are named, per kind of difference


@dataclass(frozen=True, slots=True)
class TableDifference:
    """How one table compares. The samples are texts like `('C0001',)` or `('C0001',): Name, Balance`."""

    task: CopyTask
    source: Digest | None                   # None: the source's table cannot be read
    target: Digest | None                   # None: the target has no such table
    missing: tuple[str, ...] = ()           # keys in the source only
    extra: tuple[str, ...] = ()             # keys in the target only
    different: tuple[str, ...] = ()         # keys in both, with the columns that differ
    note: str = ""
    covered: bool = False                   # a preserved table that lacks no key of the source
    upgraded: bool = False                  # the data upgrade has changed it: it is not compared

    @property
    def equal(self) -> bool:
        return self.upgraded or (self.source is not None and (self.source == self.target or self.covered))


def compare_tables(tasks: Sequence[CopyTask], source: Source, target: Target, states: Mapping[TargetName, TableState], *, workers: int = 2,
                   stop: Callable[[], bool] = lambda: False, reading: Reading = UNTOLD) -> Iterator[TableDifference]:
    """Compare every task's table, one after the other; returns early when `stop()` turns true.

    `states`: the target's. `reading` counts the source's rows.
    """
    reading.begin(sum(states[task.target].digest.rows if task.target in states else task.table.rows or 0 for task in tasks))
    with ThreadPoolExecutor(workers) as pool:
        for task in tasks:
            if stop():
                return
            try:
                yield _compare(task, states.get(task.target), source, target, pool, workers, reading)
            except CopyError as error:             # this table cannot be read; the others can
                yield TableDifference(task, None, None, note=str(error))


def _compare(task: CopyTask, state: TableState | None, source: Source, target: Target, pool: ThreadPoolExecutor,
             workers: int, reading: Reading) -> TableDifference:
    table = replace(task.table, format=ARROW)          # two sides are comparable whatever they were copied as
    task = replace(task, table=table)
    readers = source_readers(source.measure(table), source, target, reading)
    if state is None:
        return TableDifference(task, _total(pool, readers()), None, note="the target holds no finished copy of this table")
    kept = table_of(table.path, state.columns)
    if (kept.schema, kept.key) != (table.schema, table.key):
        return TableDifference(task, _total(pool, readers()), None, note="the source's columns have changed since the last copy")
    if upgraded_as(state.columns) is not None:
        return TableDifference(task, None, None, note="changed by the data upgrade, no longer compared with the source", upgraded=True)
    if task.preserve:
        return _preserved(task, readers, target, workers)
    total = _total(pool, readers())

    def parts() -> list[Batches]:
        return target.read_parts(task.target, table, workers)

    found = _total(pool, parts())
    return TableDifference(task, total, found) if total == found else _descend(task, total, found, readers, parts, workers)


def _preserved(task: CopyTask, source: Callable[[], list[Batches]], target: Target, workers: int) -> TableDifference:
    found = overlap(task.table, source, lambda: target.read_parts(task.target, task.table, workers), workers)
    told = [f"{count:,} rows are {what}" for count, what in ((found.orphans, "in the target only"),
                                                            (found.kept, "other ones than the source's")) if count]
    note = f"preserved: {' and '.join(told)}" if told else ""
    return TableDifference(task, found.source, found.target, found.samples, note=note, covered=not found.missing)


def source_readers(table: Table, source: Source, target: Destination,
                   reading: Reading = UNTOLD) -> Callable[[], list[Batches]]:
    """Makes readers of all rows of a source's table, which has been measured, as the target can hold them.

    `reading` is told what the first readers have read; when they are read again it is told nothing.
    """
    ranges = source.split(table, target.chunk_rows, CHUNK_BYTES)

    first = [reading]

    def fitted(keys: KeyRange, reading: Reading) -> Batches:
        with closing(source.read(table, keys)) as batches:
            for batch in batches:
                yield target.fit(batch, table)
                reading.passed(batch.num_rows)

    def readers() -> list[Batches]:
        told = first.pop() if first else UNTOLD
        return [fitted(keys, told) for keys in ranges]

    return readers


def _total(pool: ThreadPoolExecutor, readers: Iterable[Iterable[pa.RecordBatch]]) -> Digest:
    return sum(pool.map(digest_all, readers), Digest())


def _descend(task: CopyTask, total: Digest, found: Digest, source: Callable[[], Sequence[Iterable[pa.RecordBatch]]],
             target: Callable[[], Sequence[Iterable[pa.RecordBatch]]], workers: int) -> TableDifference:
    key = list(task.table.key) or task.table.schema.names
    wanted = differing(bucket_sums(source(), key, BUCKETS, workers), bucket_sums(target(), key, BUCKETS, workers))
    wanted[np.flatnonzero(wanted)[BUCKETS_READ:]] = False
    left, right = _rows_of(source(), key, wanted), _rows_of(target(), key, wanted)
    different = [f"{k}: {', '.join(name for name in left[k] if repr(left[k][name]) != repr(right[k][name]))}"   # repr: NaN is NaN
                 for k in left if k in right and repr(left[k]) != repr(right[k])]
    missing, extra = [str(k) for k in left if k not in right], [str(k) for k in right if k not in left]
    note = "" if missing or extra or different else "rows occur a different number of times"
    return TableDifference(task, total, found, tuple(missing[:SAMPLES]), tuple(extra[:SAMPLES]), tuple(different[:SAMPLES]), note)


def _rows_of(readers: Iterable[Iterable[pa.RecordBatch]], key: list[str], wanted: np.ndarray) -> dict[tuple, dict]:
    """The rows that fall into the wanted buckets, by key. Few rows: only here does a row become a Python object."""
    return {tuple(row[k] for k in key): row
            for reader in readers for batch in rows_of(reader, key, wanted) for row in batch.to_pylist()}
