"""The one DuckDB engine of this process, which opens database files, and how much memory it may take.

Starting an engine costs 12 to 20 ms (it fills a catalogue with its functions), attaching a file to a running one 1 ms, so a coordinator
starts it once. Attached files go by names of ours: DuckDB's own, the file's, would clash with a schema of that name.

DuckDB keeps the current block of every column in memory while it reads, appends or commits, and fails where its limit is below
that ("failed to pin block"). What is above that need only fills with pages that cost a page fault each. So the limit is the sum of
what the work under way needs, and work waits where the sum would be too much. Measured with tables of 200 and 500 columns: 0.35 MB
a column of fixed width and 0.7 MB a column of text, per thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import duckdb
import pyarrow as pa

IDLE = 24 * 2**20                 # catalogue, ledgers, key columns
ENOUGH = 2**30                    # where more is asked for than was measured, the limit is doubled up to this
MOST = 160 * 2**20                # under way at once, unless one table alone needs more
FIXED, VARIABLE = 384 * 2**10, 768 * 2**10
NEW_TABLE = 256 * 2**10           # of each table that a transaction has written to, until it commits
LARGE_ROW = 2**18                 # bytes of a row; the rows of a vector (2,048) that are larger are written to the log at once
LARGE_VALUES = 3                  # a batch with large values is held in vectors, blocks and the log at once
KEYS = 4                          # times the size of the keys that are looked for: a hash table of them

# What decides the speed here (measured, 1 M rows x 50 columns, two workers; docs/architecture.md):
# - by default a checkpoint merges short row groups and compresses them again (vacuum): 10.9 s of CPU against 8.1 s;
# - every worker loads through a connection of its own, so DuckDB's own threads only add work: 9.1 s of CPU with two.
# - Arrow's own types for what Arrow has a type for: a UUID is not handed out as text.
_SETTINGS = "set threads=1; set max_vacuum_tasks=0; set TimeZone='UTC'; set arrow_lossless_conversion=true"

_engine: Engine | None = None
_starting = threading.Lock()


def engine() -> Engine:
    """The engine of this process, started at the first call."""
    global _engine
    with _starting:
        if _engine is None or _engine.broken:
            _engine = Engine()
        return _engine


def need(schema: pa.Schema) -> int:
    """The bytes that one thread needs for reading or writing a table of these columns."""
    return sum(FIXED if pa.types.is_primitive(field.type) or pa.types.is_decimal(field.type) else VARIABLE for field in schema)


class Engine:
    """DuckDB with any number of files attached. A file that is attached twice is attached once, and stays until both let go."""

    def __init__(self) -> None:
        self._root = duckdb.connect(":memory:")
        self._root.execute(_SETTINGS)
        self.memory = Memory(self._root.cursor())
        self.broken = False             # DuckDB trusts an engine no more that met a fatal error: the next file gets another one
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._names: dict[tuple[Path, bool], tuple[str, int]] = {}     # file, read only? -> name, how many use it

    def attach(self, path: Path, *, read_only: bool = False) -> str:
        """The name under which the file is attached now. Raises what DuckDB raises."""
        with self._lock:
            name, users = self._names.get((path, read_only)) or (f"_skylift_{next(self._numbers)}", 0)
            if not users:
                quoted = str(path).replace("'", "''")
                if not read_only:
                    with suppress(duckdb.Error):   # it stays what it is once it has been used
                        self._root.execute(f"set temp_directory='{quoted}.tmp'")
                self._root.execute(f"attach '{quoted}' as {name}{' (read_only)' if read_only else ''}")
            self._names[path, read_only] = name, users + 1
            return name

    def detach(self, path: Path, *, read_only: bool = False) -> None:
        """Let go of the file; the last to do so writes its log into it and closes it."""
        with self._lock:
            name, users = self._names.pop((path, read_only), ("", 0))
            if not users:
                return
            if users > 1:
                self._names[path, read_only] = name, users - 1
                return
            with suppress(duckdb.IOException):     # no room to write the log into the file: the next opening reads it
                self._root.execute(f"detach {name}")
            if not self._names:
                self.memory.forget()

    def cursor(self, name: str) -> duckdb.DuckDBPyConnection:
        """A connection of its own, in the attached file."""
        with self._lock:
            cursor = self._root.cursor()
        cursor.execute(f"use {name}")
        return cursor


class Memory:
    """The engine's limit, shared by all that it does."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._limit = 0
        self._taken = 0
        self._idle = IDLE
        self._freed = threading.Condition()
        self._raise_to(self._idle)

    @contextmanager
    def share(self) -> Iterator[Share]:
        share = Share(self)
        try:
            yield share
        finally:
            self.give(-share.taken)

    def give(self, size: int, *, wait: bool = False) -> None:
        """Count `size` bytes more as taken; with `wait`, when they fit, or when nothing else is under way."""
        with self._freed:
            while wait and self._taken and self._taken + size > MOST:
                self._freed.wait()
            self._taken += size
            self._raise_to(self._idle + self._taken)
            if size < 0 and self._limit > MOST + IDLE:     # it was raised for large values: not kept for what comes
                self._lower_to(self._idle + self._taken)
            self._freed.notify_all()

    def keep_room(self, size: int) -> None:
        """For values of that size together: a commit may write the log into the file, and then has such a value in memory once more."""
        with self._freed:
            self._idle = max(self._idle, IDLE + size)

    def allow_more(self) -> bool:
        """After work that its limit was too low for: whether it may be tried again, with twice as much."""
        with self._freed:
            if self._limit > ENOUGH:
                return False
            self._idle += self._limit
            self._raise_to(self._idle + self._taken)
            return True

    def forget(self) -> None:
        """Nothing is open: begin low again."""
        with self._freed:
            self._idle = IDLE
            self._lower_to(self._idle + self._taken)

    def _raise_to(self, size: int) -> None:
        if size > self._limit:     # rarely lowered: DuckDB has to throw out blocks at once
            self._limit = size
            self._connection.execute(f"set memory_limit='{size >> 10}KiB'")

    def _lower_to(self, size: int) -> None:
        with suppress(duckdb.Error):                       # blocks that are in use
            self._connection.execute(f"set memory_limit='{size >> 10}KiB'")
            self._limit = size


class Share:
    """What one transaction or reader has taken. Only the first taking waits: two that wait for each other's would wait for ever."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.taken = 0

    def keep_room(self, size: int) -> None:
        self._memory.keep_room(size)

    def at_least(self, size: int) -> None:
        if size > self.taken:
            self._memory.give(size - self.taken, wait=not self.taken)
            self.taken = size
