"""One table, brought up to date: the steps of a full and of an incremental copy, each one transaction of the target.

    small tables   one transaction for many: create, insert, read back and compare, catch up, ledger
    large tables   begin (build table + plan) -> chunks (rows + ledger row) -> finish (read back and compare, catch up, swap)
    changed rows   one transaction: delete the touched keys, insert their rows, read back and compare, ledger

Nothing here is undone by hand: a step that is stopped anywhere has not happened, and calling it again does it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from skylift.connectors import Batches, Changes, CopyPlan, Source, TableState, Target, Transaction
from skylift.engine.hashing import HashedStream, digest, digest_all
from skylift.errors import NotVerified, SourceChanged
from skylift.model import Chunk, CopyTask, Digest, KeyRange, Progress, Table, TargetName, Watermark
from skylift.runs import TableStatus

CHUNK_BYTES = 256 * 2**20


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

    # -------------------------------------------------------------- small tables, many to a transaction

    def copy_small(self, tasks: Sequence[CopyTask], watermark: Watermark) -> list[Progress]:
        """Copy whole tables in one transaction; what they replace stays visible until it commits."""
        done: list[Progress] = []
        with self.target.transaction() as t:
            states: dict[TargetName, TableState] = {}
            for task in tasks:
                stream = HashedStream(self._until_stopped(self.source.read(task.table, KeyRange())))
                t.create(task.target, task.table)
                t.insert(task.target, task.table.schema, stream)
                if self.verify:
                    compare(task.table.name, stream.digest, digest_all(t.read(task.target, task.table.schema)))
                states[task.target] = TableState(stream.digest, watermark, columns_of(task.table))
                done.append(Progress(task, TableStatus.SUCCESSFUL, rows=stream.digest.rows, size_bytes=stream.size_bytes, mode="full"))
            changed = self.source.changed({task.table.name: watermark for task in tasks})
            for i, task in enumerate(tasks):
                if task.table.name in changed:
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
            ranges = self.source.split(task.table, -(-rows // (-(-rows // self.target.chunk_rows // workers) * workers or 1)), CHUNK_BYTES)
            plan = CopyPlan(watermark, json.dumps({
                "columns": columns_of(task.table), "ranges": [[_to_json(keys.lo), _to_json(keys.hi)] for keys in ranges]}))
            with self.target.transaction() as t:
                t.drop(build)
                t.create(build, task.table)
                t.begin_copy(build, self.copy_id, plan)
        chunks = [Chunk(i, KeyRange(_from_json(lo), _from_json(hi))) for i, (lo, hi) in enumerate(json.loads(plan.ranges)["ranges"])]
        loaded = self.target.chunks_done(build, self.copy_id)
        return plan, [chunk for chunk in chunks if chunk.id not in loaded]

    def copy_chunk(self, task: CopyTask, chunk: Chunk) -> tuple[int, int]:
        """Load one chunk; returns its rows and Arrow bytes. Rows and ledger row are one transaction."""
        build = build_name(task.target)
        with self.target.transaction() as t:
            stream = HashedStream(self._until_stopped(self.source.read(task.table, chunk.keys)))
            t.insert(build, task.table.schema, stream)
            t.chunk_done(build, self.copy_id, chunk.id, stream.digest)
        return stream.digest.rows, stream.size_bytes

    def finish(self, task: CopyTask, plan: CopyPlan, workers: int) -> Progress:
        """Read the build table back, compare, apply what changed meanwhile, swap it in: readers see all of it or nothing."""
        build, table = build_name(task.target), task.table
        expected = sum(self.target.chunks_done(build, self.copy_id).values(), Digest())
        if self.verify:
            parts = self.target.read_parts(build, table.schema, workers)
            with ThreadPoolExecutor(len(parts)) as pool:
                found = sum(pool.map(lambda part: digest_all(self._until_stopped(part)), parts), Digest())
            compare(table.name, expected, found)
        state = TableState(expected, plan.watermark, columns_of(table))
        progress = Progress(task, TableStatus.SUCCESSFUL, rows=expected.rows, mode="full")
        changed = self.source.changed({table.name: plan.watermark})
        with self.target.transaction() as t:
            if changed:
                state, progress = self._apply(t, task, build, state, progress)
            t.swap(build, task.target)
            t.end_copy(build)
            t.set_states({task.target: state})
        return replace(progress, total_rows=state.digest.rows, digest=state.digest, watermark=state.watermark)

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
        schema = task.table.schema
        with self.source.changes(task.table, state.watermark) as changes:
            before, existing = _digest_and_keys(t.read(name, schema, changes.keys), changes.keys.schema)
            stream = HashedStream(self._until_stopped(changes.rows))
            t.delete(name, changes.keys)
            t.insert(name, schema, stream)
            watermark = changes.seal()
        after, present = _digest_and_keys(t.read(name, schema, changes.keys), changes.keys.schema)
        compare(task.table.name, stream.digest, after)
        if before.rows > len(changes.keys):
            raise NotVerified(f"{task.table.name}: the target holds {before.rows} rows for {len(changes.keys)} keys",
                              hint="copy it afresh: skylift run --kind full")
        total = state.digest - before + after
        _check_count(task.table.name, changes, total.rows, t, name)
        updated = len(existing.join(present, existing.column_names, join_type="inner")) if len(existing) and len(present) else 0
        return (TableState(total, watermark, state.columns),
                replace(progress, rows=progress.rows + after.rows, size_bytes=progress.size_bytes + stream.size_bytes,
                        inserted=after.rows - updated, updated=updated, deleted=before.rows - updated))

    def _until_stopped(self, batches: Batches) -> Iterator[pa.RecordBatch]:
        with closing(batches):                     # at once: an open statement keeps its connection from closing
            for batch in batches:
                if self.stopping():
                    raise Stopped
                yield batch


def compare(table: str, source: Digest, target: Digest) -> None:
    """Raises NotVerified unless counts and hashes agree."""
    if source != target:
        raise NotVerified(f"{table}: source and target differ: {source.rows} rows with hash {source} were read, "
                          f"{target.rows} rows with hash {target} were found in the target",
                          hint="skylift verify names the rows; skylift run copies the table again")


def columns_of(table: Table) -> str:
    """Names, order and types of a table's columns, and its key, as the text that the ledger keeps."""
    return json.dumps({"columns": {field.name: str(field.type) for field in table.schema}, "key": table.key})


def build_name(name: TargetName) -> TargetName:
    """Where a large table is built, beside the one it will replace."""
    return TargetName(name.schema, "_skylift_new_" + hashlib.blake2b(name.table.encode(), digest_size=8).hexdigest())


def _check_count(table: str, changes: Changes, rows: int, t: Transaction, name: TargetName) -> None:
    """Every touched key has been brought up to date, so equal counts prove that no delete went unseen (libraries.md §4)."""
    if changes.rows_now is not None and not rows == changes.rows_now == t.count(name):
        raise SourceChanged(f"{table}: the change log lacks deletes (INSERT OR REPLACE over a unique index): "
                            f"{rows} rows by the log, {changes.rows_now} in the source")


def _digest_and_keys(batches: Iterable[pa.RecordBatch], keys: pa.Schema) -> tuple[Digest, pa.Table]:
    total, found = Digest(), []
    for batch in batches:
        total += digest(batch)
        found.append(batch.select(keys.names))
    return total, pa.Table.from_batches(found, keys)


def _to_json(key: tuple[Any, ...] | None) -> list[Any] | None:
    return None if key is None else [{"bytes": base64.b64encode(v).decode()} if isinstance(v, bytes) else v for v in key]


def _from_json(key: list[Any] | None) -> tuple[Any, ...] | None:
    return None if key is None else tuple(base64.b64decode(v["bytes"]) if isinstance(v, dict) else v for v in key)
