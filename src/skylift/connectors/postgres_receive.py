"""The rows of a COPY TO, taken from libpq without a Python object a row.

psycopg starts the COPY and ends it. What arrives in between is taken by libpq's public functions PQconsumeInput and PQgetCopyData
in one compiled loop that runs outside the interpreter lock and waits in poll(). Measured with rows of 800 bytes: 0.8 us of CPU a row,
half of it the kernel's, where a Python object a row took 1.3 us and held the lock for most of it.
"""

from __future__ import annotations

import ctypes
import importlib

import numba as nb
import numpy as np
import psycopg
import pyarrow as pa
from psycopg import generators, pq

from skylift.connectors import Batches
from skylift.connectors.native import addresses, call, call3, copy
from skylift.connectors.postgres import Connection

BATCH_BYTES = 8 * 2**20            # of rows as they come over the wire, that make one batch
BATCH_ROWS = 65_536
ROW = pa.schema([("row", pa.binary())])     # of batches in the format PG_BINARY
SIGNATURE = b"PGCOPY\n\xff\r\n\0"
_HEADER, _TRAILER = len(SIGNATURE) + 8, 2
_WAIT_MS = 100                     # for which the loop waits by itself; then psycopg does, which knows of servers that stand still

_FULL, _WAIT, _END, _FAILED = range(4)      # why the loop stopped

U = np.uint64


def _libpq() -> ctypes.CDLL:
    """The one that psycopg uses, in whichever of its implementations."""
    if pq.__impl__ == "python":
        return importlib.import_module("psycopg.pq._pq_ctypes").pq
    return ctypes.CDLL(importlib.import_module(f"psycopg_{pq.__impl__}.pq").__file__)


_library = _libpq()
_FUNCTIONS = np.concatenate([addresses(_library, ("PQgetCopyData", "PQconsumeInput", "PQfreemem")),
                             addresses(ctypes.CDLL(None), ("poll",))])


def warm_up() -> None:
    """Compile the loop, or load it: without a connection libpq says so."""
    _take(_FUNCTIONS, U(0), np.zeros(3, U), np.zeros(2, np.int32), np.zeros(0, np.uint8), np.zeros(1, np.int32), 0)


def copy_out(connection: Connection, sql: str, batch_bytes: int = BATCH_BYTES) -> Batches:
    """The rows of a query as they stand in binary COPY: batches of the schema ROW. Raises psycopg.Error.

    Stopping early closes the connection: that is how the server is told at once.
    """
    server, finished = connection.pgconn, False
    server.send_query(f"copy ({sql}) to stdout (format binary)".encode())
    [begun] = connection.wait(generators.execute(server))
    if begun.status != pq.ExecStatus.COPY_OUT:
        raise psycopg.errors.error_from_result(begun, encoding="utf-8")
    try:
        yield from _batches(connection, batch_bytes)
        results = connection.wait(generators.fetch_many(server))
        finished = True
        for result in results:
            if result.status != pq.ExecStatus.COMMAND_OK:
                raise psycopg.errors.error_from_result(result, encoding="utf-8")
    finally:
        if not finished:
            connection.close()


def _batches(connection: Connection, batch_bytes: int) -> Batches:
    server = connection.pgconn
    waiting = np.zeros(3, U)                       # address and size of a message that did not fit, and bytes before its row
    waiting[2] = _HEADER                           # which stands before the first row, or before the trailer
    address = U(server.pgconn_ptr)                 # type: ignore[attr-defined]
    polled = np.array([server.socket, 1], np.int32)         # struct pollfd of POLLIN, little-endian
    why = _FULL
    try:
        while why != _END:
            data, ends = np.empty(max(batch_bytes, int(waiting[1])), np.uint8), np.zeros(BATCH_ROWS + 1, np.int32)
            rows, why = 0, _WAIT
            if waiting[1] > batch_bytes:
                connection.swollen = True
            while why == _WAIT:
                rows, why = _take(_FUNCTIONS, address, waiting, polled, data, ends, rows)
                if why == _WAIT:
                    connection.until_readable()
            if why == _FAILED:
                raise psycopg.OperationalError(server.error_message.decode(errors="replace").strip())
            if rows:
                column = pa.Array.from_buffers(pa.binary(), rows, [None, pa.py_buffer(ends[:rows + 1]), pa.py_buffer(data[:ends[rows]])])
                done = [pa.RecordBatch.from_arrays([column], schema=ROW)]
                del data, ends, column             # whoever takes the batch lets go of it, which may be a value of 50 MB
                yield done.pop()
    finally:
        if waiting[0]:
            _library.PQfreemem(ctypes.c_void_p(int(waiting[0])))


@nb.njit(nogil=True, cache=True)
def _take(functions, connection, waiting, polled, data, ends, rows):
    """Rows into `data` behind those that are there, until one does not fit: (rows, why it stopped)."""
    get, consume, free, poll = functions[0], functions[1], functions[2], functions[3]
    slot, start = U(waiting.ctypes.data), U(data.ctypes.data)
    while True:
        if waiting[0] == U(0):
            size: int = call3(get, connection, slot, np.int32(1))  # type: ignore[call-arg]
            if size == 0:
                if call3(poll, U(polled.ctypes.data), U(1), np.int32(_WAIT_MS)) <= 0:      # type: ignore[call-arg]
                    return rows, _WAIT
                if call(consume, connection) & U(0xFFFFFFFF) == U(0):      # type: ignore[call-arg]
                    return rows, _FAILED
                continue
            if size < 0:
                return rows, _END if size == -1 else _FAILED
            waiting[1] = U(size)
        length = waiting[1] - waiting[2] if waiting[1] > waiting[2] else U(0)
        if length > U(_TRAILER):
            used = U(ends[rows])
            if rows + 1 == ends.shape[0] or used + length > U(data.shape[0]):
                return rows, _FULL
            copy(start + used, waiting[0] + waiting[2], length)    # type: ignore[call-arg]
            rows += 1
            ends[rows] = used + length
        call(free, waiting[0])                     # type: ignore[call-arg]
        waiting[0] = waiting[1] = waiting[2] = U(0)
