"""Many tasks at once on a pool of threads, behind one function that streams what the target has committed.

Large tables are cut into chunks that any thread may load; small ones travel packed, so that two thousand of them are not
two thousand transactions. Threads are enough: reading, casting, hashing and loading all run outside the interpreter lock.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

from skylift.connectors import STATE, SWEEP, CopyPlan, Source, TableState, Target
from skylift.engine.columns import filled_from, schema_change, table_of
from skylift.engine.copy import CHUNK_BYTES, Copier, Stopped, build_name, chunk_bytes, has_large_rows, is_there
from skylift.engine.preserve import add_changed, add_missing
from skylift.errors import CopyError, SkyliftError, SourceChanged, Transient
from skylift.losses import taken
from skylift.model import ARROW, Chunk, CopyTask, Progress, Step, Table, TargetName, Watermark
from skylift.runs import TableStatus

PACK_TABLES = 100
PACK_BYTES = 32 * 2**20
ATTEMPTS = 5                      # of a step that failed for a passing reason, with growing pauses
RECOPIES = 3                      # of a table that was edited while it was read and has no key to catch up by


def copy_tables(tasks: Sequence[CopyTask], source: Source, target: Target, *, copy_id: str, consumer: str, workers: int,
                stop: Callable[[], bool] = lambda: False, verify: bool = True) -> Iterator[Progress]:
    """Bring every task's table up to date; yield after each commit. The last Progress of a task is Successful or Failed.

    Calling again with the same `copy_id` continues what a killed call has left. Returns early when `stop()` turns true, after what
    was committed until then has been told.
    A table that fails is a Progress with its error and the others go on. Raises SourceFailed or TargetFailed when one side as a
    whole is unusable, and whatever the source raises before the first table.
    """
    cancelled = threading.Event()
    copier = Copier(source, target, copy_id, consumer, lambda: cancelled.is_set() or stop(), verify)
    work = _Work(copier, workers, cancelled)
    try:
        work.start(tasks)
        while not work.finished():
            try:
                item = work.results.get(timeout=0.2)
            except queue.Empty:
                if stop():
                    break
                continue
            if isinstance(item, BaseException):
                raise item
            yield work.note(item)
    finally:
        cancelled.set()
        work.pool.shutdown(wait=True, cancel_futures=True)
    while not work.results.empty():                     # committed while the others were stopping
        item = work.results.get()
        if isinstance(item, BaseException):
            raise item
        yield work.note(item)
    if not stop():
        work.confirm()


class _Work:
    """What is under way. Units of work run on the pool and put Progress, or the error that ends everything, into `results`."""

    def __init__(self, copier: Copier, workers: int, cancelled: threading.Event) -> None:
        self.copier = copier
        self.workers = workers
        self.results: queue.Queue[Progress | BaseException] = queue.Queue()
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="copy")
        self._cancelled = cancelled
        self.large_rows = threading.Lock()              # who holds it loads large values
        self._lock = threading.Lock()
        self._open = 0                                  # units submitted and not ended
        self._reasons: dict[TargetName, str] = {}
        self._watermarks: dict[str, Watermark] = {}     # by path of the source table
        self._positions: dict[tuple[TargetName, str], int] = {}     # of every task that holds data: target, table -> position

    def finished(self) -> bool:
        with self._lock:
            return self._open == 0 and self.results.empty()

    def start(self, tasks: Sequence[CopyTask]) -> None:
        copier = self.copier
        self._patiently(lambda: copier.target.discard_copies(keep=copier.copy_id))
        states = self._patiently(copier.target.states)
        self._track([task.table for task in tasks])
        whole: list[CopyTask] = []
        same: list[tuple[CopyTask, TableState]] = []
        incremental: list[tuple[CopyTask, TableState]] = []
        for task in map(self._agreed, tasks):
            state = states.get(task.target)
            if state:
                self._positions[task.target, task.table.path] = state.watermark.position
            reason = _why_whole(copier, task, state, self._watermarks[task.table.path])
            if isinstance(reason, CopyError):
                self.results.put(_failed(task, reason))
            elif state is None or reason:
                self._reasons[task.target] = reason
                whole.append(task)
            elif _is_same_state(state.watermark, self._watermarks[task.table.path]):
                same.append((task, state))
            elif _is_swept(state.watermark, self._watermarks[task.table.path]):
                if why := _why_swept(self._watermarks[task.table.path]):
                    self._reasons[task.target] = why
                if task.preserve:
                    whole.append(task)
                else:
                    self._submit(self._sweep, task, state)
            else:
                incremental.append((task, state))
        # One source table may fill several targets, each with a watermark of its own: the oldest says what may have changed.
        oldest = {task.table.path: state.watermark for task, state in
                  sorted(incremental, key=lambda pair: pair[1].watermark.position, reverse=True)}
        changed: set[str] = self._patiently(lambda: copier.source.changed(oldest)) if oldest else set()
        self._submit(self._unchanged, [*same, *(pair for pair in incremental if pair[0].table.path not in changed)])
        for task, state in incremental:
            if task.table.path in changed:
                self._submit(self._incremental, task, state)
        if whole:
            self._submit(self._measure, whole)

    def _track(self, tables: Sequence[Table]) -> None:
        """Take the watermarks that stand before any row of these tables is read."""
        self._watermarks |= self._patiently(lambda: self.copier.source.track(tables, self.copier.consumer))

    def _agreed(self, task: CopyTask) -> CopyTask:
        """In a format that both sides speak; columns are looked into by a sweep, and where rows are preserved."""
        native = (task.table.format in self.copier.target.formats and not _is_swept(self._watermarks[task.table.path])
                  and not task.preserve)
        return task if native else replace(task, table=replace(task.table, format=ARROW))

    def note(self, progress: Progress) -> Progress:
        if progress.watermark:
            self._positions[progress.task.target, progress.task.table.path] = progress.watermark.position
        return self._counted(progress) if progress.status is TableStatus.SUCCESSFUL else progress

    def confirm(self) -> None:
        """Nothing of a table before the oldest watermark that stands for it is needed at the source any more."""
        oldest: dict[str, int] = {}
        for (_, table), position in self._positions.items():
            oldest[table] = min(position, oldest.get(table, position))
        self._patiently(lambda: self.copier.source.confirm(self.copier.consumer, oldest))

    # -------------------------------------------------------------- units of work

    def _unchanged(self, pairs: list[tuple[CopyTask, TableState]]) -> None:
        """The feed holds nothing for these tables: only their watermarks move on, all in one transaction."""
        if not pairs:
            return

        def keep() -> None:
            with self.copier.target.transaction() as t:
                t.set_states({task.target: replace(state, watermark=self._watermarks[task.table.path]) for task, state in pairs})

        self._patiently(keep)
        for task, state in pairs:
            rows = state.digest.rows
            self.results.put(Progress(task, TableStatus.SUCCESSFUL, total_rows=rows, mode="unchanged", digest=state.digest,
                                      watermark=self._watermarks[task.table.path]))

    def _incremental(self, task: CopyTask, state: TableState) -> None:
        self._changed("changes", task, state,
                      lambda state: add_changed(self.copier, task, state) if task.preserve else self.copier.apply(task, state))

    def _changed(self, name: str, task: CopyTask, state: TableState, step: Callable[[TableState], Progress]) -> None:
        self.results.put(Progress(task, TableStatus.IN_PROGRESS, total_rows=state.digest.rows, mode="incremental"))
        known: list[TableState] = [state]

        def attempt() -> Progress:                      # again: with what the target says by then
            return step(known.pop() if known else self.copier.target.states()[task.target])

        began = time.time_ns()
        try:
            progress = self._patiently(attempt)
        except SourceChanged as error:                  # the feed cannot do it: copy whole, and say so
            self._reasons[task.target] = error.message
            self._track([task.table])
            self._submit(self._measure, [task])
            return
        except (CopyError, Transient) as error:
            self.results.put(_failed(task, error))
            return
        self.results.put(self._explained(_with_step(progress, name, began)))

    def _sweep(self, task: CopyTask, state: TableState) -> None:
        copier, watermark = self.copier, self._watermarks[task.table.path]
        self._changed("sweep", task, state, lambda state: copier.sweep(
            replace(task, table=copier.source.measure(task.table)), state, watermark, self.workers))

    def _measure(self, tasks: list[CopyTask]) -> None:
        """Sort tables by size: the large ones begin first, the small ones are packed."""
        source, target = self.copier.source, self.copier.target
        pack: list[CopyTask] = []
        packed_bytes = 0
        for task in tasks:
            if self.copier.stopping():
                return
            try:
                measured = self._patiently(lambda task=task: source.measure(task.table))
            except (CopyError, Transient) as error:
                self.results.put(_failed(task, error))
                continue
            sized = replace(task, table=measured)
            if task.preserve and self._patiently(lambda task=task: is_there(target, task.target)):
                self._submit(self._preserved, sized)
                continue
            rows, size = measured.rows or 0, measured.size_bytes or 0
            if rows > target.chunk_rows or size > (chunk_bytes(measured) if target.holds_values else CHUNK_BYTES):
                self.results.put(self._explained(Progress(sized, TableStatus.IN_PROGRESS, total_rows=rows, mode="full")))
                self._submit(self._large, sized)
                continue
            if pack and (len(pack) == PACK_TABLES or packed_bytes + size > PACK_BYTES):
                self._submit(self._small, pack)
                pack, packed_bytes = [], 0
            pack.append(sized)
            packed_bytes += size
        if pack:
            self._submit(self._small, pack)

    def _preserved(self, task: CopyTask) -> None:
        self.results.put(self._explained(Progress(task, TableStatus.IN_PROGRESS, total_rows=task.table.rows or 0, mode="full")))
        began = time.time_ns()
        try:
            done = self._patiently(lambda: add_missing(self.copier, task, self._watermarks[task.table.path], self.workers))
        except (CopyError, Transient) as error:
            self.results.put(_failed(task, error))
        else:
            self.results.put(self._explained(_with_step(done, "preserve", began)))

    def _small(self, tasks: list[CopyTask], attempt: int = 1) -> None:
        if len(tasks) < PACK_TABLES // 2:               # a full pack is over before a person has read its names
            for task in tasks:
                self.results.put(self._explained(Progress(task, TableStatus.IN_PROGRESS, total_rows=task.table.rows or 0, mode="full")))
        began = time.time_ns()
        try:
            done = self._patiently(lambda: self.copier.copy_small(tasks, self._watermarks))
        except (CopyError, Transient) as error:
            if len(tasks) > 1:                          # one of them failed: each for itself
                for task in tasks:
                    self._submit(self._small, [task])
            elif isinstance(error, SourceChanged) and attempt < RECOPIES:
                self._track([tasks[0].table])
                self._small(tasks, attempt + 1)
            else:
                self.results.put(_failed(tasks[0], error))
            return
        for progress in done:
            self.results.put(self._explained(_with_step(progress, "pack", began)))

    def _large(self, task: CopyTask, attempt: int = 1) -> None:
        began = time.time_ns()
        try:
            plan, chunks = self._patiently(lambda: self.copier.begin(task, self._watermarks[task.table.path], self.workers))
        except (CopyError, Transient) as error:
            self.results.put(_failed(task, error))
            return
        self.results.put(self._explained(Progress(task, TableStatus.IN_PROGRESS, total_rows=task.table.rows or 0, mode="full",
                                                  steps=(Step("begin", began, time.time_ns()),))))
        copy = _LargeCopy(self, task, plan, len(chunks), attempt)
        for chunk in chunks:
            self._submit(copy.chunk, chunk)
        if not chunks:
            self._submit(copy.finish)

    # -------------------------------------------------------------- plumbing

    def _submit(self, unit: Callable[..., None], *args: object) -> None:
        with self._lock:
            self._open += 1

        def run() -> None:
            try:
                if not self._cancelled.is_set():
                    unit(*args)
            except Stopped:
                pass
            except BaseException as error:              # not about one table: it ends everything
                self._cancelled.set()
                self.results.put(error)
            finally:
                with self._lock:
                    self._open -= 1

        try:
            self.pool.submit(run)
        except RuntimeError:                            # the pool is shutting down
            with self._lock:
                self._open -= 1

    def _patiently(self, step: Callable):
        """The result of `step`, tried again after growing pauses while it fails for a passing reason."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return step()
            except Transient:
                if attempt == ATTEMPTS:
                    raise
                for _ in range(2**attempt):
                    if self.copier.stopping():
                        raise Stopped from None
                    time.sleep(0.1)
        raise AssertionError("unreachable")

    def _explained(self, progress: Progress) -> Progress:
        """With the reason for not following a feed."""
        return replace(progress, reason=self._reasons.get(progress.task.target, ""))

    def _counted(self, progress: Progress) -> Progress:
        """With the accepted changes to values."""
        copier = self.copier
        return replace(progress, losses=taken(progress.task.table.path, copier.source.losses, copier.target.losses))


class _LargeCopy:
    """The chunks of one table on their way; the last one to arrive finishes it, the first one to fail ends it."""

    def __init__(self, work: _Work, task: CopyTask, plan: CopyPlan, chunks: int, attempt: int) -> None:
        self._work, self._task, self._plan, self._attempt = work, task, plan, attempt
        self._left = chunks
        self._lock = threading.Lock()
        self._failed = False
        done = work.copier.target.chunks_done(build_name(task.target), work.copier.copy_id)
        self._rows = self._resumed = sum(digest.rows for digest in done.values())
        self._bytes = 0

    def chunk(self, chunk: Chunk) -> None:
        if self._failed:
            return
        began = time.time_ns()
        try:
            with self._work.large_rows if has_large_rows(self._task.table) else nullcontext():
                rows, size_bytes = self._work._patiently(lambda: self._work.copier.copy_chunk(self._task, chunk))
        except (CopyError, Transient) as error:
            self._fail(error)
            return
        step = Step("chunk", began, time.time_ns(), rows, size_bytes, chunk.id)
        with self._lock:
            self._left -= 1
            self._rows += rows
            self._bytes += size_bytes
            progress = Progress(self._task, TableStatus.IN_PROGRESS, rows=self._rows, resumed=self._resumed, size_bytes=self._bytes,
                                mode="full", total_rows=max(self._rows, self._task.table.rows or 0), steps=(step,))
            last = self._left == 0
        self._work.results.put(self._work._explained(progress))
        if last:
            self.finish()

    def finish(self) -> None:
        began = time.time_ns()
        try:
            progress = self._work._patiently(lambda: self._work.copier.finish(self._task, self._plan, self._work.workers))
        except (CopyError, Transient) as error:
            self._fail(error)
            return
        progress = replace(progress, steps=(Step("finish", began, time.time_ns()),))
        self._work.results.put(self._work._explained(replace(progress, size_bytes=progress.size_bytes + self._bytes,
                                                                resumed=self._resumed)))

    def _fail(self, error: SkyliftError) -> None:
        with self._lock:
            if self._failed:
                return
            self._failed = True
        work, task = self._work, self._task
        work.copier.discard(task)
        if isinstance(error, SourceChanged) and self._attempt < RECOPIES:
            work._track([task.table])
            work._submit(work._large, task, self._attempt + 1)
        else:
            work.results.put(_failed(task, error))


def _failed(task: CopyTask, error: SkyliftError) -> Progress:
    """The last Progress of a task. Its error goes without the frames that it came through: they may hold statements open."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return Progress(task, TableStatus.FAILED, error=error)


def _with_step(progress: Progress, name: str, began_ns: int) -> Progress:
    """With the one step that all of it was."""
    return replace(progress, steps=(Step(name, began_ns, time.time_ns(), progress.rows, progress.size_bytes),))


def _is_swept(*watermarks: Watermark) -> bool:
    """Whether rows have to be compared to find what has changed."""
    return any(watermark.feed in (SWEEP, STATE) for watermark in watermarks)


def _is_same_state(before: Watermark, now: Watermark) -> bool:
    return now.feed == STATE and before == now


def _why_swept(watermark: Watermark) -> str:
    """Why a table is compared row by row, where its source has said so."""
    return f"compared row by row: {watermark.why}" if watermark.feed == SWEEP and watermark.why else ""


def _why_whole(copier: Copier, task: CopyTask, state: TableState | None, watermark: Watermark) -> str | CopyError:
    """Why a table is copied whole, '' if it need not be; an error if an incremental copy was asked for and cannot be had."""
    if state is None:
        return "first copy"
    table, kept = task.table, table_of(task.table.path, state.columns)
    if task.preserve and (changed := schema_change(kept, table)):         # a copy afresh would not keep the target's rows
        changed.hint = f"make the columns of {task.target} in the target like the source's, or replace it (skylift tables --replace NAME)"
        return changed
    if task.full:
        return "a full copy was asked for"
    if (path := filled_from(state.columns)) not in ("", table.path):      # a mapping has changed: its feed says nothing of these rows
        return f"it was filled from '{path}' before"
    if changed := schema_change(kept, table):
        return changed
    if kept.format != table.format:
        return f"it was copied as {kept.format} and now is as {table.format}"
    if _is_same_state(state.watermark, watermark):
        return ""
    if _is_swept(state.watermark, watermark):
        return "" if table.key else "the source cannot tell what changed in it, and it has no primary key"
    return copier.source.usable(table, state.watermark)
