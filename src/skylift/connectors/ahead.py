"""Reading ahead: one thread fetches what another will want next."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from skylift.connectors import Batches

_END = object()


@contextmanager
def read_ahead(batches: Batches, depth: int = 2) -> Iterator[Batches]:
    """`batches`, fetched by a thread of its own that is at most `depth` + 1 batches ahead.

    What the reader raises is raised where its batch would have come. The thread has ended and `batches` is closed when the block ends.
    """
    waiting: queue.Queue[object] = queue.Queue(depth)
    stopping = threading.Event()

    def put(item: object) -> bool:
        while not stopping.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def fetch() -> None:
        try:
            for batch in batches:
                if not put(batch):
                    break
            else:
                put(_END)
        except BaseException as error:
            put(error)
        finally:
            batches.close()

    def passed_on() -> Batches:
        while (item := waiting.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            assert isinstance(item, pa.RecordBatch)
            yield item

    thread = threading.Thread(target=fetch, name="read-ahead", daemon=True)
    thread.start()
    try:
        yield passed_on()
    finally:
        stopping.set()
        thread.join()
