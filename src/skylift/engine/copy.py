"""One table, brought up to date: the steps of a full and of an incremental copy, each one transaction of the target.

    small tables   one transaction for many: create, insert, read back and compare, catch up, ledger
    large tables   begin (build table + plan) -> chunks (rows + ledger row) -> finish (read back and compare, catch up, swap)
    changed rows   one transaction: delete the touched keys, insert their rows, read back and compare, ledger
    no feed        hash both sides (engine/buckets.py), then one transaction for the rows of the buckets that differ

Nothing here is undone by hand: a step that is stopped anywhere has not happened, and calling it again does it. Nor is one done twice:
where the connection is lost in a commit, only the target knows whether it happened, so a step that is called again looks there first.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from skylift.connectors import Batches, Changes, CopyPlan, Source, TableState, Target, Transaction
from skylift.connectors.ahead import read_ahead
from skylift.engine.buckets import bucket_count, bucket_sums, differing, hashes, rows_of, sum_of
from skylift.engine.columns import columns_of
from skylift.engine.hashing import HashedStream, digest, digest_all
from skylift.errors import CopyError, NotVerified, SourceChanged
from skylift.model import ARROW, Chunk, CopyTask, Digest, KeyRange, Progress, Table, TargetName, Watermark
from skylift.runs import TableStatus

CHUNK_BYTES = 256 * 2**20
LARGE_ROW_BYTES = 2**17             # a table whose rows are larger on average goes in smaller chunks, one at a time: each value is held
LARGE_CHUNK_BYTES = 16 * 2**20      # several times on its way, and some targets hold those of a transaction together
HASHED_ROWS = 2_000                 # of a table, from which on its target is asked for hashes: planning that takes as long as reading fewer
SWEPT_SHARE = 0.1                   # of a table's rows in differing buckets, above which a sweep gives way to a full copy
SWEPT_ROWS = 10_000                 # but so many are always swept


def has_large_rows(table: Table) -> bool:
    """As far as it has been measured."""
    return (table.size_bytes or 0) > LARGE_ROW_BYTES * (table.rows or 0)


def chunk_bytes(table: Table) -> int:
    return LARGE_CHUNK_BYTES if has_large_rows(table) else CHUNK_BYTES


class Stopped(Exception):
    """The caller asked to stop; the open transaction rolls back."""


@dataclass(frozen=True, slots=True)
class Copier:
    """What every step needs. `copy_id` names the run: the same one continues what was begun under it."""

    source: Source
    target: Target
    copy_id: str
    consumer: str
    stopping: Callable[[], bool]
    verify: bool = True             # False only for measuring what verification costs
    target_sums: dict[tuple[TargetName, int], int] = field(default_factory=dict)    # of chunks by table and id, as far as they passed here

    # -------------------------------------------------------------- small tables, many to a transaction

    def copy_small(self, tasks: Sequence[CopyTask], watermarks: Mapping[str, Watermark]) -> list[Progress]:
        """Copy whole tables in one transaction; what they replace stays visible until it commits."""
        done: list[Progress] = []
        with self.target.transaction() as t:
            states: dict[TargetName, TableState] = {}
            for task in tasks:                     # all at once: a target may send them in one round trip
                t.create(task.target, task.table)
            sums: dict[TargetName, int] = {}
            for task in tasks:
                stream = self.stream(task, KeyRange())
                t.insert(task.target, task.table, stream)
                if stream.target_sum is not None:
                    sums[task.target] = stream.target_sum
                states[task.target] = TableState(stream.digest, watermarks[task.table.path], columns_of(task.table))
                done.append(Progress(task, TableStatus.SUCCESSFUL, rows=stream.digest.rows, size_bytes=stream.size_bytes, mode="full"))
            if self.verify:
                there = self.target.hashes.within(t, {k.target: k.table for k in tasks if k.target in sums}) if self.target.hashes else {}
                for task in tasks:
                    name, expected = task.target, states[task.target].digest
                    if name not in there or there[name] != (expected.rows, sums[name]):
                        compare(task.table.path, expected, digest_all(t.read(name, task.table)))
            changed = self.source.changed({task.table.path: watermarks[task.table.path] for task in tasks})
            for i, task in enumerate(tasks):
                if task.table.path in changed:
                    states[task.target], done[i] = self._apply(t, task, task.target, states[task.target], done[i])
            t.set_states(states)
        return [replace(p, total_rows=states[p.task.target].digest.rows, digest=states[p.task.target].digest,
                        watermark=states[p.task.target].watermark) for p in done]

    # -------------------------------------------------------------- large tables, in chunks

    def begin(self, task: CopyTask, watermark: Watermark, workers: int) -> tuple[CopyPlan, list[Chunk]]:
        """The plan of a full copy and the chunks that are still to be loaded; a plan begun under this copy id goes on.

        Chunks are equal and their number is a multiple of the workers', so that all end at the same time.
        """
        build = build_name(task.target)
        plan = self.target.copies(self.copy_id).get(build)
        if plan and (self.source.usable(task.table, plan.watermark) or json.loads(plan.ranges)["columns"] != columns_of(task.table)):
            plan = None             # the source is not what it was when the copy began
        if plan is None:
            rows = task.table.rows or 0
            ranges = self.source.split(task.table, -(-rows // (-(-rows // self.target.chunk_rows // workers) * workers or 1)),
                                       chunk_bytes(task.table))
            plan = CopyPlan(watermark, json.dumps({
                "columns": columns_of(task.table), "ranges": [[_to_json(keys.lo), _to_json(keys.hi)] for keys in ranges]}))
            with self.target.transaction() as t:
                t.drop(build)
                t.create(build, task.table)
                t.begin_copy(build, task.target, self.copy_id, plan)
        chunks = [Chunk(i, KeyRange(_from_json(lo), _from_json(hi))) for i, (lo, hi) in enumerate(json.loads(plan.ranges)["ranges"])]
        loaded = self.target.chunks_done(build, self.copy_id)
        return plan, [chunk for chunk in chunks if chunk.id not in loaded]

    def copy_chunk(self, task: CopyTask, chunk: Chunk) -> tuple[int, int]:
        """Load one chunk unless it has arrived; returns its rows and Arrow bytes. Rows and ledger row are one transaction."""
        build = build_name(task.target)
        if arrived := self.target.chunks_done(build, self.copy_id).get(chunk.id):
            return arrived.rows, 0
        with self.target.transaction() as t:
            stream = self.stream(task, chunk.keys)
            t.insert(build, task.table, stream)
            t.chunk_done(build, self.copy_id, chunk.id, stream.digest)
            if stream.target_sum is not None:
                self.target_sums[build, chunk.id] = stream.target_sum
        return stream.digest.rows, stream.size_bytes

    def finish(self, task: CopyTask, plan: CopyPlan, workers: int) -> Progress:
        """Read the build table back, compare, apply what changed meanwhile, swap it in: readers see all of it or nothing."""
        build, table = build_name(task.target), task.table
        if build not in self.target.copies(self.copy_id):
            state = self.target.states()[task.target]
            return Progress(task, TableStatus.SUCCESSFUL, rows=state.digest.rows, mode="full", total_rows=state.digest.rows,
                            digest=state.digest, watermark=state.watermark)
        arrived = self.target.chunks_done(build, self.copy_id)
        if lost := len(json.loads(plan.ranges)["ranges"]) - len(arrived):
            raise NotVerified(f"{table.path}: the target has lost {lost} chunks that it had committed",
                              hint="run again: it is copied afresh")
        expected = sum(arrived.values(), Digest())
        if self.verify and not self._holds(task, arrived, workers):
            parts = self.target.read_parts(build, table, 1 if has_large_rows(table) else workers)
            with ThreadPoolExecutor(len(parts)) as pool:
                found = sum(pool.map(lambda part: digest_all(self.until_stopped(part)), parts), Digest())
            compare(table.path, expected, found)
        if task.preserve and is_there(self.target, task.target):     # it was not when this copy began
            raise CopyError(f"{table.path}: somebody has made the table {task.target} in the target meanwhile",
                            hint="run the replication again: what is there stays, and what it lacks is added")
        state = TableState(expected, plan.watermark, columns_of(table))
        progress = Progress(task, TableStatus.SUCCESSFUL, rows=expected.rows, mode="full")
        changed = self.source.changed({table.path: plan.watermark})
        with self.target.transaction() as t:
            if changed:
                state, progress = self._apply(t, task, build, state, progress)
            t.swap(build, task.target)
            t.end_copy(build)
            t.set_states({task.target: state})
        return replace(progress, total_rows=state.digest.rows, digest=state.digest, watermark=state.watermark)

    def _holds(self, task: CopyTask, arrived: Mapping[int, Digest], workers: int) -> bool:
        """Whether the build table's rows are those of its chunks by the target's own hashes; False where that is not known."""
        build = build_name(task.target)
        sums = [self.target_sums.get((build, chunk)) for chunk in arrived]
        if self.target.hashes is None or None in sums:
            return False
        there = self.target.hashes.committed(build, task.table, workers, self.check_stopped)
        return there == (sum(digest.rows for digest in arrived.values()), sum(filter(None, sums)) % 2**64)

    def discard(self, task: CopyTask) -> None:
        with self.target.transaction() as t:
            t.drop(build_name(task.target))

    # -------------------------------------------------------------- changes

    def apply(self, task: CopyTask, state: TableState) -> Progress:
        """Bring a table from its watermark to now: inserts, updates and deletes, and the watermark, in one transaction."""
        with self.target.transaction() as t:
            state, progress = self._apply(t, task, task.target, state, Progress(task, TableStatus.SUCCESSFUL, mode="incremental"))
            t.set_states({task.target: state})
        return replace(progress, total_rows=state.digest.rows, digest=state.digest, watermark=state.watermark)

    def _apply(self, t: Transaction, task: CopyTask, name: TargetName, state: TableState,
               progress: Progress) -> tuple[TableState, Progress]:
        table = task.table
        with self.source.changes(table, state.watermark) as changes, read_ahead(changes.rows) as rows:
            before, existing = _digest_and_keys(t, name, table, changes.keys)
            stream = HashedStream(self.fitted(table, rows))
            t.delete(name, changes.keys)
            t.insert(name, table, stream)
            after, present = _digest_and_keys(t, name, table, changes.keys)
            compare(table.path, stream.digest, after)
            if before.rows > len(changes.keys):
                raise NotVerified(f"{table.path}: the target holds {before.rows} rows for {len(changes.keys)} keys",
                                  hint="copy it afresh: skylift run --kind full")
            total, gone = state.digest - before + after, 0
            if changes.keys_now and total.rows != changes.rows_now:
                dropped = self._delete_gone(t, name, table, changes.keys_now)
                total, gone = total - dropped, dropped.rows
            watermark = changes.seal()
        _check_count(table.path, changes, total.rows, t, name)
        updated = len(existing.join(present, existing.column_names, join_type="inner")) if len(existing) and len(present) else 0
        return (TableState(total, watermark, state.columns),
                replace(progress, rows=progress.rows + after.rows, size_bytes=progress.size_bytes + stream.size_bytes,
                        inserted=after.rows - updated, updated=updated, deleted=before.rows - updated + gone))

    def _delete_gone(self, t: Transaction, name: TargetName, table: Table, keys_now: Callable[[], Batches]) -> Digest:
        """Delete the rows whose keys the source does not have; what the target held of them. Keeps the keys of differing buckets."""
        keys = replace(table, schema=pa.schema([table.schema.field(k) for k in table.key]), format=ARROW)
        count = bucket_count(t.count(name))
        wanted = differing(*(bucket_sums([self.until_stopped(side)], table.key, count, 1) for side in (keys_now(), t.read(name, keys))))
        here, there = ([*rows_of(self.until_stopped(side), table.key, wanted)] for side in (keys_now(), t.read(name, keys)))
        known = np.concatenate([hashes(batch) for batch in here]) if here else np.zeros(0, "V16")
        gone = pa.Table.from_batches([batch.filter(pa.array(~np.isin(hashes(batch), known))) for batch in there], keys.schema)
        dropped = digest_all(t.read(name, table, gone))
        t.delete(name, gone)
        return dropped

    def sweep(self, task: CopyTask, state: TableState, watermark: Watermark, workers: int) -> Progress:
        """Bring a table without a feed up to date: hash both sides, and replace the rows of the buckets that differ, in one transaction.

        Raises SourceChanged where so much differs that a full copy is cheaper.
        """
        table, key = task.table, task.table.key
        ranges = self.source.split(table, self.target.chunk_rows, CHUNK_BYTES)
        count = bucket_count(max(table.rows or 0, state.digest.rows))

        def source() -> list[Iterator[pa.RecordBatch]]:
            return [self.fitted(table, self.source.read(table, keys)) for keys in ranges]

        here = bucket_sums(source(), key, count, workers)
        parts = self.target.read_parts(task.target, table, workers)
        there = bucket_sums([self.until_stopped(part) for part in parts], key, count, workers)
        wanted = differing(here, there)
        touched = int(max(here[wanted, 0].sum(), there[wanted, 0].sum()))
        if touched > max(SWEPT_ROWS, SWEPT_SHARE * int(here[:, 0].sum())):
            raise SourceChanged(f"{table.path}: {touched} rows lie where source and target differ, more than a sweep is worth")
        total, progress = sum_of(there), Progress(task, TableStatus.SUCCESSFUL, mode="incremental" if touched else "unchanged")
        with self.target.transaction() as t:
            if touched:
                total, progress = self._replace(t, task, source(), wanted, total, progress)
            t.set_states({task.target: TableState(total, watermark, state.columns)})
        return replace(progress, total_rows=total.rows, digest=total, watermark=watermark)

    def _replace(self, t: Transaction, task: CopyTask, source: Iterable[Iterator[pa.RecordBatch]], wanted: np.ndarray, total: Digest,
                 progress: Progress) -> tuple[Digest, Progress]:
        table, key = task.table, list(task.table.key)
        old, new, arrived = _Seen(key), _Seen(key), Digest()
        for batch in rows_of(t.read(task.target, table), key, wanted):
            old.add(batch)
        t.delete(task.target, old.keys(table))
        stream = HashedStream(new.passing(rows_of((batch for reader in source for batch in reader), key, wanted)))
        t.insert(task.target, table, stream)
        arrived = digest_all(t.read(task.target, table, new.keys(table)))
        compare(table.path, stream.digest, arrived)
        inserted, updated, deleted = old.turned_into(new)
        return total - old.digest + arrived, replace(progress, rows=inserted + updated, size_bytes=stream.size_bytes, inserted=inserted,
                                                     updated=updated, deleted=deleted)

    def stream(self, task: CopyTask, keys: KeyRange) -> HashedStream:
        """The source's rows of a full copy, on their way."""
        worth_it = self.verify and (task.table.rows or 0) >= HASHED_ROWS
        hashes = self.target.hashes.of(task.table) if worth_it and self.target.hashes else None
        return HashedStream(self.fitted(task.table, self.source.read(task.table, keys)), hashes)

    def fitted(self, table: Table, batches: Batches) -> Batches:
        """The source's rows as the target can hold them."""
        with closing(batches):                     # at once: an open statement keeps its connection from closing
            for batch in self.until_stopped(batches):
                yield self.target.fit(batch, table)
                del batch                          # before the next one is read, here and wherever else batches pass: a value may be large

    def until_stopped(self, batches: Batches) -> Iterator[pa.RecordBatch]:
        with closing(batches):
            for batch in batches:
                self.check_stopped()
                yield batch
                del batch

    def check_stopped(self) -> None:
        if self.stopping():
            raise Stopped


def compare(table: str, source: Digest, target: Digest) -> None:
    """Raises NotVerified unless counts and hashes agree."""
    if source != target:
        raise NotVerified(f"{table}: source and target differ: {source.rows} rows with hash {source} were read, "
                          f"{target.rows} rows with hash {target} were found in the target",
                          hint="skylift verify names the rows; skylift run copies the table again")


def is_there(target: Target, name: TargetName) -> bool:
    """Whether the target has a table of that name, whoever made it."""
    try:
        with target.transaction() as t:
            t.count(name)
    except CopyError:
        return False
    return True


def build_name(name: TargetName) -> TargetName:
    """Where a large table is built, beside the one it will replace."""
    return TargetName(name.schema, "_skylift_new_" + hashlib.blake2b(name.table.encode(), digest_size=8).hexdigest())


def _check_count(table: str, changes: Changes, rows: int, t: Transaction, name: TargetName) -> None:
    """Every touched key has been brought up to date, so equal counts prove that no delete went unseen (libraries.md §4)."""
    if changes.rows_now is not None and not changes.moving and not rows == changes.rows_now == t.count(name):
        raise SourceChanged(f"{table}: the change log lacks deletes (a table emptied, or rows replaced, without a word to it): "
                            f"{rows} rows by the log, {changes.rows_now} in the source")


def _digest_and_keys(t: Transaction, name: TargetName, table: Table, keys: pa.Table) -> tuple[Digest, pa.Table]:
    """Of the rows with these keys: their digest, and which of the keys there are."""
    if not len(keys):
        return Digest(), keys
    if table.format != ARROW:                      # whole rows in one value: the keys are asked for by themselves
        existing = [*t.read(name, replace(table, schema=keys.schema, format=ARROW), keys)]
        return digest_all(t.read(name, table, keys)), pa.Table.from_batches(existing, keys.schema)
    total, found = Digest(), []
    for batch in t.read(name, table, keys):
        total += digest(batch)
        found.append(batch.select(keys.schema.names))
    return total, pa.Table.from_batches(found, keys.schema)


class _Seen:
    """What has passed of one side of a sweep: its digest, and of each row the key and the hashes of key and row."""

    def __init__(self, key: list[str]) -> None:
        self._key = key
        self._keys: list[pa.RecordBatch] = []
        self._hashes: list[tuple[np.ndarray, np.ndarray]] = []
        self.digest = Digest()

    def add(self, batch: pa.RecordBatch) -> None:
        self._keys.append(batch.select(self._key))
        self._hashes.append((hashes(self._keys[-1]), hashes(batch)))
        self.digest += digest(batch)

    def passing(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            self.add(batch)
            yield batch

    def keys(self, table: Table) -> pa.Table:
        return pa.Table.from_batches(self._keys, pa.schema([table.schema.field(k) for k in self._key]))

    def turned_into(self, new: _Seen) -> tuple[int, int, int]:
        """How many rows were inserted, updated and deleted."""
        (k0, r0), (k1, r1) = ([np.concatenate([pair[i] for pair in side._hashes] or [np.zeros(0, "V16")]) for i in (0, 1)]
                              for side in (self, new))
        kept, same = np.isin(k1, k0).sum(), np.isin(r1, r0).sum()
        return int(len(k1) - kept), int(kept - same), int(len(k0) - kept)


def _to_json(key: tuple[Any, ...] | None) -> list[Any] | None:
    return None if key is None else [{"bytes": base64.b64encode(v).decode()} if isinstance(v, bytes) else v for v in key]


def _from_json(key: list[Any] | None) -> tuple[Any, ...] | None:
    return None if key is None else tuple(base64.b64decode(v["bytes"]) if isinstance(v, dict) else v for v in key)
