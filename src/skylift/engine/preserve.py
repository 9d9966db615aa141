"""Preserved tables: the target's rows stay as they are, rows whose key it lacks are added, and nothing is ever deleted (§5.2, §5.6).

Such a table is verified when for every row of the source the target holds that row, or another one under its key, which somebody
there has made or changed. What the target holds besides are orphans; both are counted and told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa

from skylift.connectors import Batches, TableState, Transaction
from skylift.connectors.ahead import read_ahead
from skylift.engine.buckets import bucket_count, bucket_sums, differing, rows_of, sum_of
from skylift.engine.columns import columns_of
from skylift.engine.copy import CHUNK_BYTES, Copier, compare
from skylift.engine.hashing import HashedStream, digest_all, row_hashes
from skylift.errors import CopyError
from skylift.model import CopyTask, Digest, Progress, Table, Watermark
from skylift.runs import TableStatus

PASS_ROWS = 2_000_000               # of the target that are held (32 bytes each) while the source's are looked up among them
SAMPLES = 20

Readers = Callable[[], Sequence[Iterable[pa.RecordBatch]]]


class HashSet:
    """128-bit hashes that can be looked up, sorted by their first lane."""

    def __init__(self, h0: np.ndarray, h1: np.ndarray) -> None:
        order = np.lexsort((h1, h0))
        self._h0, self._h1 = h0[order], h1[order]
        new = np.concatenate([[True], self._h0[1:] != self._h0[:-1], [True]]) if len(h0) else np.zeros(0, bool)
        self._longest = int(np.diff(np.flatnonzero(new)).max()) if len(h0) else 0     # run of equal first lanes
        self.distinct = int((new[:-1] | np.concatenate([[False], self._h1[1:] != self._h1[:-1]])).sum()) if len(h0) else 0

    def has(self, h0: np.ndarray, h1: np.ndarray) -> np.ndarray:
        """Which of the hashes are in it: bool of shape (len(h0),)."""
        found, at = np.zeros(len(h0), bool), np.searchsorted(self._h0, h0)
        for step in range(self._longest):
            there = np.minimum(at + step, len(self._h0) - 1)
            found |= (self._h0[there] == h0) & (self._h1[there] == h1)
        return found


class Held:
    """Rows of the target; `lacking` passes the rows of the source whose key none of them has, and counts the others."""

    def __init__(self, batches: Iterable[pa.RecordBatch], key: Sequence[str]) -> None:
        self._key = list(key)
        lanes = [(row_hashes(batch.select(self._key)), row_hashes(batch)) for batch in batches]
        keys, rows = ([np.concatenate([pair[side][lane] for pair in lanes] or [np.zeros(0, np.uint64)]) for lane in (0, 1)]
                      for side in (0, 1))
        self._keys, self._rows = HashSet(*keys), HashSet(*rows)
        self.matched = 0            # rows of the source whose key is here
        self.kept = 0               # of those, how many are another row here

    def lacking(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            here = self._keys.has(*row_hashes(batch.select(self._key)))
            self.matched += int(here.sum())
            self.kept += int((here & ~self._rows.has(*row_hashes(batch))).sum())
            if not here.all():
                yield batch.filter(pa.array(~here)) if here.any() else batch

    @property
    def orphans(self) -> int:
        """Keys here that no row of the source had."""
        return self._keys.distinct - self.matched


@dataclass(frozen=True, slots=True)
class Overlap:
    """How the two sides of a preserved table compare. The samples are texts like `('C0001',)`."""

    source: Digest
    target: Digest
    missing: int                    # rows of the source whose key the target lacks
    kept: int
    orphans: int
    samples: tuple[str, ...]        # keys of missing rows


def add_missing(copier: Copier, task: CopyTask, watermark: Watermark, workers: int) -> Progress:
    """Compare both sides by key and add what the target lacks, in one transaction. The table of `task` has been measured.

    Raises CopyError if the table has no primary key, or the target's table has other columns.
    """
    table, added, size_bytes = task.table, Digest(), 0
    here, there, passes = _compare_keys(table, lambda: _source_rows(copier, table), lambda: _target_rows(copier, task, workers), workers)
    kept = orphans = 0
    with _same_columns(task), copier.target.transaction() as t:
        for wanted in passes:
            held = Held(rows_of(copier.until_stopped(t.read(task.target, table)), table.key, wanted), table.key)
            for rows in _source_rows(copier, table):
                with closing(rows):
                    stream = _insert(t, task, held.lacking(rows_of(rows, table.key, wanted)))
                added += stream.digest
                size_bytes += stream.size_bytes
            kept, orphans = kept + held.kept, orphans + held.orphans
        state = TableState(there + added, watermark, columns_of(table))
        t.set_states({task.target: state})
    return Progress(task, TableStatus.SUCCESSFUL, rows=added.rows, total_rows=here.rows, size_bytes=size_bytes, mode="full",
                    inserted=added.rows, orphans=orphans, kept=kept, digest=state.digest, watermark=watermark)


def add_changed(copier: Copier, task: CopyTask, state: TableState) -> Progress:
    """Of the rows that the feed names, add those whose key the target lacks. Deleted ones stay and are counted as orphans."""
    table, name = task.table, task.target
    with _same_columns(task), copier.target.transaction() as t:
        with copier.source.changes(table, state.watermark) as changes, read_ahead(changes.rows) as rows:
            held = Held(t.read(name, table, changes.keys) if len(changes.keys) else [], table.key)
            stream = _insert(t, task, held.lacking(copier.fitted(table, rows)))
            watermark = changes.seal()
        done = TableState(state.digest + stream.digest, watermark, state.columns)
        t.set_states({name: done})
    return Progress(task, TableStatus.SUCCESSFUL, rows=stream.digest.rows, total_rows=done.digest.rows, size_bytes=stream.size_bytes,
                    mode="incremental", inserted=stream.digest.rows, orphans=held.orphans, kept=held.kept, digest=done.digest,
                    watermark=watermark)


def overlap(table: Table, source: Readers, target: Readers, workers: int) -> Overlap:
    """Compare without changing anything; both sides are read afresh, twice where they differ."""
    here, there, passes = _compare_keys(table, source, target, workers)
    missing = kept = orphans = 0
    samples: list[str] = []
    for wanted in passes:
        held = Held(rows_of(chain.from_iterable(target()), table.key, wanted), table.key)
        for batch in held.lacking(rows_of(chain.from_iterable(source()), table.key, wanted)):
            missing += batch.num_rows
            samples += [str(tuple(row.values())) for row in batch.select(table.key).slice(0, SAMPLES - len(samples)).to_pylist()]
        kept, orphans = kept + held.kept, orphans + held.orphans
    return Overlap(here, there, missing, kept, orphans, tuple(samples))


def _compare_keys(table: Table, source: Readers, target: Readers, workers: int) -> tuple[Digest, Digest, Iterator[np.ndarray]]:
    """The digests of both sides, and the buckets in which they differ, a few at a time."""
    if not table.key:
        raise CopyError(f"{table.path}: it has no primary key, so nothing tells which of its rows the target lacks",
                        hint="replace the target's rows (skylift tables --replace NAME), or leave the table out")
    count = bucket_count(table.rows or 0)
    here, there = (bucket_sums(side(), table.key, count, workers) for side in (source, target))
    return sum_of(here), sum_of(there), passes(differing(here, there), there[:, 0])


def passes(wanted: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """`wanted` (bool of shape (buckets,)) in parts that have about PASS_ROWS of `rows` (per bucket) each."""
    turn = np.cumsum(np.where(wanted, rows, 0)) // PASS_ROWS
    for n in np.unique(turn[wanted]):
        yield wanted & (turn == n)


def _source_rows(copier: Copier, table: Table) -> list[Batches]:
    ranges = copier.source.split(table, copier.target.chunk_rows, CHUNK_BYTES)
    return [copier.fitted(table, copier.source.read(table, keys)) for keys in ranges]


def _target_rows(copier: Copier, task: CopyTask, workers: int) -> list[Iterator[pa.RecordBatch]]:
    with _same_columns(task):
        return [_told(task, copier.until_stopped(part)) for part in copier.target.read_parts(task.target, task.table, workers)]


def _told(task: CopyTask, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    with _same_columns(task):
        yield from batches


def _insert(t: Transaction, task: CopyTask, batches: Iterator[pa.RecordBatch]) -> HashedStream:
    """Insert rows, read them back by their keys and compare; few enough that their keys can be held."""
    keys: list[pa.RecordBatch] = []

    def noted(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            keys.append(batch.select(task.table.key))
            yield batch

    first = next(batches, None)
    if first is None:
        return HashedStream(())
    stream = HashedStream(noted(chain([first], batches)))
    t.insert(task.target, task.table, stream)
    fields = pa.schema([task.table.schema.field(k) for k in task.table.key])
    compare(task.table.path, stream.digest, digest_all(t.read(task.target, task.table, pa.Table.from_batches(keys, fields))))
    return stream


@contextmanager
def _same_columns(task: CopyTask) -> Iterator[None]:
    """A table that somebody else has made may have other columns than the source's."""
    try:
        yield
    except pa.ArrowException as error:
        raise CopyError(f"{task.table.path}: the target's table {task.target} has other columns: {str(error).splitlines()[0]}",
                        hint="make its columns like the source's, or replace it (skylift tables --replace NAME)", code="50005") from None
