"""A diagnostic run: all that a copy would read is read, as the target could hold it, and nothing is written on either side (§5.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import replace
from threading import Lock
from uuid import uuid4

from skylift.connectors import Source, TableState, Target
from skylift.engine.columns import schema_change, table_of
from skylift.engine.copy import CHUNK_BYTES
from skylift.errors import CopyError
from skylift.losses import taken
from skylift.model import ARROW, CopyTask, Progress
from skylift.runs import TableStatus


def check_tables(tasks: Sequence[CopyTask], source: Source, target: Target, *, workers: int,
                 stop: Callable[[], bool] = lambda: False) -> Iterator[Progress]:
    """One Progress a table, Successful or Failed, as they are done. Returns early when `stop()` turns true."""
    states = target.states()
    ending = False
    trying = Lock()                                    # two tables that are made in a new schema at once would both make it

    def check(task: CopyTask) -> Progress | None:
        return _check(task, states.get(task.target), source, target, trying, lambda: ending or stop())

    with ThreadPoolExecutor(workers, thread_name_prefix="check") as pool:
        futures = [pool.submit(check, task) for task in tasks]
        try:
            for future in as_completed(futures):
                if (progress := future.result()) is not None:
                    yield progress
        finally:
            ending = True
            pool.shutdown(wait=False, cancel_futures=True)


def _check(task: CopyTask, state: TableState | None, source: Source, target: Target, trying: Lock,
           stop: Callable[[], bool]) -> Progress | None:
    """None if stopped."""
    if stop():
        return None
    rows = 0
    try:
        table = source.measure(task.table)
        if state and (changed := schema_change(table_of(table.path, state.columns), table)):
            raise changed
        if table.format not in target.formats:
            table = replace(table, format=ARROW)
        with trying:
            _try_columns(replace(task, table=table), target)
        for keys in source.split(table, target.chunk_rows, CHUNK_BYTES):
            with closing(source.read(table, keys)) as batches:
                for batch in batches:
                    if stop():
                        return None
                    rows += target.fit(batch, table).num_rows
    except CopyError as error:
        return Progress(task, TableStatus.FAILED, mode="diagnostic", error=error)
    return Progress(task, TableStatus.SUCCESSFUL, total_rows=rows, mode="diagnostic",
                    losses=taken(table.path, source.losses, target.losses))


class _NotToBeKept(Exception):
    pass


def _try_columns(task: CopyTask, target: Target) -> None:
    """Make the table in the target, in a transaction that is rolled back."""
    scratch = replace(task.target, table=f"_skylift_try_{uuid4().hex[:12]}")
    try:
        with target.transaction() as transaction:
            transaction.create(scratch, task.table)
            raise _NotToBeKept
    except _NotToBeKept:
        pass
