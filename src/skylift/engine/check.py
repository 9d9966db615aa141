"""A diagnostic run: all that a copy would read is read, as the target could hold it, and nothing is written on either side (§5.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import replace

import pyarrow as pa

from skylift.connectors import Destination, Source, TableState
from skylift.engine.columns import schema_change, table_of
from skylift.engine.copy import CHUNK_BYTES
from skylift.errors import CopyError
from skylift.losses import taken
from skylift.model import ARROW, CopyTask, Progress
from skylift.runs import TableStatus

Seeing = Callable[[CopyTask, pa.RecordBatch, int], None]


def check_tables(tasks: Sequence[CopyTask], source: Source, target: Destination, *, workers: int,
                 stop: Callable[[], bool] = lambda: False, see: Seeing = lambda task, batch, rows: None) -> Iterator[Progress]:
    """One Progress a table, Successful or Failed, as they are done. Returns early when `stop()` turns true.

    `see` is shown each batch as the target could hold it, and how many rows of its table have been read by then, in the table's thread.
    """
    states = target.states()
    ending = False

    def check(task: CopyTask) -> Progress | None:
        return _check(task, states.get(task.target), source, target, see, lambda: ending or stop())

    with ThreadPoolExecutor(workers, thread_name_prefix="check") as pool:
        futures = [pool.submit(check, task) for task in tasks]
        try:
            for future in as_completed(futures):
                if (progress := future.result()) is not None:
                    yield progress
        finally:
            ending = True
            pool.shutdown(wait=False, cancel_futures=True)


def _check(task: CopyTask, state: TableState | None, source: Source, target: Destination, see: Seeing,
           stop: Callable[[], bool]) -> Progress | None:
    """None if stopped."""
    if stop():
        return None
    rows = 0                                           # read so far
    try:
        table = source.measure(task.table)
        if state and (changed := schema_change(table_of(table.path, state.columns), table)):
            raise changed
        if table.format not in target.formats:
            table = replace(table, format=ARROW)
        target.declares(table)
        for keys in source.split(table, target.chunk_rows, CHUNK_BYTES):
            with closing(source.read(table, keys)) as batches:
                for batch in batches:
                    if stop():
                        return None
                    fitted = target.fit(batch, table)
                    rows += fitted.num_rows
                    see(task, fitted, rows)
    except CopyError as error:
        return Progress(task, TableStatus.FAILED, mode="diagnostic", error=error)
    return Progress(task, TableStatus.SUCCESSFUL, total_rows=rows, mode="diagnostic",
                    losses=taken(table.path, source.losses, target.losses))
