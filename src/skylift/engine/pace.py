"""How long the first run will take, told from a sample that goes the very way that a copy goes.

Rows of the largest tables are read, fitted, hashed, loaded into a scratch table, read back, hashed and compared, by as many threads
as a run has; then some small tables, whose time is that of their making. Nothing stays. Where there is no scratch place, reading,
fitting and hashing are all that is measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import cycle, islice
from uuid import uuid4

import pyarrow as pa

from skylift.connectors import Destination, Source, Target
from skylift.engine.assess import written
from skylift.engine.copy import compare
from skylift.engine.hashing import HashedStream, digest_all, warm_up
from skylift.errors import CopyError
from skylift.model import CopyTask, KeyRange, TargetName

SAMPLE_ROWS = 100_000              # of a large table
SAMPLE_BYTES = 64 * 2**20          # Arrow bytes of a large table
LARGE = 3                          # tables
SMALL = 32                         # tables
SMALL_ROWS = 5_000                 # that a small table has at most


@dataclass(frozen=True, slots=True)
class Estimate:
    """The sizes are the source's own estimates."""

    tables: int
    rows: int
    size_bytes: int
    duration_s: float
    sampled_rows: int = 0
    loaded: bool = False           # into a scratch table, else the source's side is all that was measured
    setup_s: float = 0.0           # of duration_s: until the feeds are made


class _Undone(Exception):
    pass


def estimate(tasks: Sequence[CopyTask], source: Source, target: Destination, scratch: Target | None, workers: int,
             setup_s: float = 0.0) -> Estimate:
    """`tasks`: measured. A table that cannot be read is left out of the sample. `setup_s`: what making the feeds takes, which is known."""
    rows = sum(task.table.rows or 0 for task in tasks)
    size_bytes = sum(task.table.size_bytes or 0 for task in tasks)
    by_size = sorted(tasks, key=lambda task: -_bytes(task))
    small = [task for task in by_size if (task.table.rows or 0) <= SMALL_ROWS]
    large = [task for task in by_size if (task.table.rows or 0) > SMALL_ROWS]
    if not rows:
        return Estimate(len(tasks), rows, size_bytes, setup_s, setup_s=setup_s)
    warm_up()                                          # else the first hash would wait for the compiler
    sampler = _Sampler(source, target, scratch)
    duration_s, sampled = setup_s, 0
    if large:
        sample = large[:LARGE]
        read, seconds = sampler.take([[task] for task in islice(cycle(sample), max(len(sample), workers))], workers, SAMPLE_ROWS)
        if share := sum(_bytes(task) * count / (task.table.rows or 1) for task, count in read):
            duration_s += seconds / share * sum(map(_bytes, large))        # by the bytes that the source takes for its own
        sampled += sum(count for _, count in read)
    if some := small[::max(1, len(small) // SMALL)][:SMALL]:               # whose time is that of their making
        read, seconds = sampler.take([some[i::workers] for i in range(min(workers, len(some)))], workers, SMALL_ROWS)
        duration_s += seconds / max(1, len(read)) * len(small)
        sampled += sum(count for _, count in read)
    return Estimate(len(tasks), rows, size_bytes, duration_s, sampled, scratch is not None, setup_s)


def _bytes(task: CopyTask) -> int:
    """Of an estimate that may be 0 though there are rows."""
    return max(task.table.size_bytes or 0, task.table.rows or 0)


class _Sampler:
    def __init__(self, source: Source, target: Destination, scratch: Target | None) -> None:
        self._source, self._target, self._scratch = source, target, scratch

    def take(self, packs: Sequence[Sequence[CopyTask]], workers: int, most: int) -> tuple[list[tuple[CopyTask, int]], float]:
        """The first rows of each table, a pack in one transaction; how many were read of each, and how long all took."""
        began = time.monotonic()
        with ThreadPoolExecutor(workers, thread_name_prefix="sample") as pool:
            done = [*pool.map(lambda pack: self._pack(pack, most), packs)]
        return [pair for pack in done for pair in pack], time.monotonic() - began

    def _pack(self, tasks: Sequence[CopyTask], most: int) -> list[tuple[CopyTask, int]]:
        tasks = [replace(task, table=written(task, self._target)) for task in tasks]
        try:
            if self._scratch is None:
                return [(task, digest_all(self._rows(task, most)).rows) for task in tasks]
            return self._through(self._scratch, tasks, most)
        except CopyError:
            return []

    def _through(self, scratch: Target, tasks: Sequence[CopyTask], most: int) -> list[tuple[CopyTask, int]]:
        names = [TargetName("", f"_skylift_sample_{uuid4().hex[:12]}") for _ in tasks]
        read: list[tuple[CopyTask, int]] = []
        with suppress(_Undone), scratch.transaction() as t:
            for name, task in zip(names, tasks, strict=True):
                t.create(name, task.table)
            for name, task in zip(names, tasks, strict=True):
                stream = HashedStream(self._rows(task, most))
                t.insert(name, task.table, stream)
                compare(task.table.path, stream.digest, digest_all(t.read(name, task.table)))
                read.append((task, stream.digest.rows))
            raise _Undone                              # nothing of it stays
        return read

    def _rows(self, task: CopyTask, most: int) -> Iterator[pa.RecordBatch]:
        rows = size_bytes = 0
        with closing(self._source.read(task.table, KeyRange())) as batches:
            for batch in batches:
                part = batch.slice(0, most - rows)
                rows, size_bytes = rows + part.num_rows, size_bytes + part.nbytes
                yield self._target.fit(part, task.table)
                if rows >= most or size_bytes >= SAMPLE_BYTES:
                    return
