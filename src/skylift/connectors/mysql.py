"""MySQL 8 and MariaDB 10.6 or later as a source: `mysql://user:password@host:3306/database`, options in mysql_connection.py.

Rows come as the server's text protocol has them, parsed outside the interpreter lock (mysql_rows.py); each statement is one
consistent read of InnoDB. What changed is told by a change log that triggers keep (mysql_log.py), else by comparing both sides.
Where nothing can be told, because the user may not write or the URL says mode=ro, all reads of a run share one snapshot if the user
has the right RELOAD: for a moment `flush tables with read lock` holds every writer while the snapshots are opened.
"""

from __future__ import annotations

import queue
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import MySQLdb
import numpy as np
import pyarrow as pa
from sqlalchemy.engine import URL

from skylift.connectors import SWEEP, Batches, Source
from skylift.connectors.casting import cast_batch
from skylift.connectors.fed import FedSource
from skylift.connectors.mysql_connection import Connection, alive, bound, check, connect, quote, run, texts, told, where
from skylift.connectors.mysql_log import TABLES, ChangeLog
from skylift.connectors.mysql_rows import Misfit, read_result
from skylift.connectors.mysql_types import (
    UNKNOWN,
    all_selected,
    arrow_type,
    bound_value,
    declared_of,
    equal_sql,
    is_integer,
    may_be_key,
    ordered_prefix,
    range_sql,
    read_as,
    selected,
)
from skylift.connectors.pooling import Pool
from skylift.errors import SetupError, SourceFailed, Transient, ValueRefused
from skylift.losses import Losses
from skylift.model import KeyRange, Table, Watermark

COUNTED_ROWS = 200_000             # up to so many rows are counted, which reads them all; more are taken from the server's estimate,
ESTIMATED_ROWS = 50_000            # and from so many on also what the numbers of the key bear out
SNAPSHOTS = 4                      # connections that share a snapshot, so many may read at once
SNAPSHOT_WAIT_S = 5                # how long writers may be held while it is taken

# Generated columns whose value depends on more than their row (MariaDB allows them): no trigger sees them change.
_VOLATILE = re.compile(r"\b(curdate|current_\w+|curtime|now|sysdate|utc_\w+|unix_timestamp|local\w*|rand|uuid\w*|user|\w+_user|"
                       r"connection_id|database|version)\b|@", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the catalogue says of a table besides its columns."""

    rows: int                      # estimate
    size_bytes: int                # estimate
    index: str                     # that holds the key, '' without one
    unseen: str                    # why triggers would not see every change, '' if they do
    created: str                   # when it was created or last rebuilt


def open_source(url: URL) -> Source:
    """The database at `url`. Raises SetupError saying what is wrong with it, Transient if the server grants no connection now."""
    check(url)
    return MySqlSource(url)


def grants(url: URL) -> str:
    """A script for the server's administrator. In a database's name _ and % are patterns unless escaped."""
    account = f"{_text(url.username or 'skylift')}@'%'"
    database = quote(url.database or "").replace("%%", "\\%").replace("_", "\\_")
    script = f"create user if not exists {account} identified by '<password>';\n"
    if url.query.get("mode") == "ro":
        return f"{script}grant select on {database}.* to {account};\n"
    logs = "".join(f"grant create, drop, insert, update, delete on {name} to {account};\n"
                   for name in (f"{quote(url.database or '').replace('%%', '%')}.`{table}`" for table in TABLES))
    return (f"{script}grant select, trigger on {database}.* to {account};\n"
            f"-- where triggers keep the keys of changed rows; with ?mode=ro in the URL neither this nor trigger is needed:\n{logs}")


class MySqlSource(FedSource):
    """One database of a server."""

    feed: ChangeLog
    losses = Losses()

    def __init__(self, url: URL) -> None:
        self.url = url
        self.name = url.database or ""
        self.read_only = url.query.get("mode") == "ro"
        self._pool = Pool(lambda: connect(url), SourceFailed, alive, worth_keeping=lambda connection: not connection.swollen)
        self._facts: dict[str, Facts] = {}
        self._snapshots: queue.Queue[Connection] | None = None
        self.feed = ChangeLog(self)

    # -------------------------------------------------------------- catalogue

    def notes(self) -> list[str]:
        return []

    def tables(self) -> list[Table]:
        of_schema = "where table_schema = database()"
        with self.connection() as c, told(self.url):
            about = texts(run(c, "select table_name, engine, table_rows, data_length, create_options, create_time"
                                 f" from information_schema.tables {of_schema} and table_type in ('BASE TABLE', 'SYSTEM VERSIONED')"))
            columns = texts(run(c, "select table_name, column_name, column_type, character_set_name, collation_name, generation_expression"
                                   f" from information_schema.columns {of_schema} order by table_name, ordinal_position"))
            indexed = texts(run(c, "select table_name, index_name, column_name, nullable, sub_part from information_schema.statistics"
                                   f" {of_schema} and non_unique = 0"
                                   " order by table_name, index_name <> 'PRIMARY', index_name, seq_in_index"))
            cascades = {name for (name,) in texts(run(c, "select table_name from information_schema.referential_constraints where"
                        " constraint_schema = database() and (delete_rule in ('CASCADE', 'SET NULL') or update_rule in ('CASCADE',"
                        " 'SET NULL'))"))}
        tables = []
        for name, engine, rows, size_bytes, options, created in sorted(about):
            if name.startswith("_skylift"):
                continue
            parts = [row[1:] for row in columns if row[0] == name]
            declared = {column: f"{kind} character set {letters} collate {collation}" if letters else kind
                        for column, kind, letters, collation, _ in parts}
            index, key = _key(declared, [row[1:] for row in indexed if row[0] == name])
            unseen = _unseen(engine, options, name in cascades, any(_VOLATILE.search(generated) for *_, generated in parts))
            self._facts[name] = Facts(int(rows or 0), int(size_bytes or 0), index, unseen, created)
            schema = pa.schema([(column, arrow_type(kind)) for column, kind in declared.items()])
            tables.append(Table(name, schema, key, source_types=tuple(declared.values())))
        return tables

    def facts(self, table: Table) -> Facts:
        if table.name not in self._facts:
            self.tables()
        return self._facts.get(table.name, Facts(0, 0, "", "the table is gone", ""))

    def measure(self, table: Table) -> Table:
        facts = self.facts(table)
        rows, size_bytes = facts.rows, facts.size_bytes
        if rows <= COUNTED_ROWS and not self._is_borne_out(table, rows):   # it may be many times too low, as after a load
            with self.connection() as c, told(self.url, table.path):
                [(counted,)] = run(c, f"select count(*) from (select 1 from {quote(table.name)} limit {COUNTED_ROWS + 1}) few")
            rows = max(rows, int(counted or 0)) if int(counted or 0) > COUNTED_ROWS else int(counted or 0)
        return replace(table, rows=rows, size_bytes=size_bytes)

    def _is_borne_out(self, table: Table, rows: int) -> bool:
        """Whether an estimate of many rows is at least half of what the numbers of the key leave room for."""
        if rows < ESTIMATED_ROWS or not _is_numbered(table):
            return False
        with self.connection() as c, told(self.url, table.path):
            first, last = self._ends(c, table)
        return first is not None and last is not None and int(last) - int(first) < 2 * rows

    def split(self, table: Table, rows: int, size_bytes: int) -> list[KeyRange]:
        total, width = table.rows or 0, ordered_prefix(table)
        row_bytes = (table.size_bytes or 0) // max(1, total) + 1
        per_chunk = max(1, min(rows, size_bytes // row_bytes))
        if not width or total <= per_chunk:
            return [KeyRange()]
        with self.connection() as c, told(self.url, table.path):
            bounds = self._numbers(c, table, per_chunk) if _is_numbered(table) else self._walk(c, table, width, per_chunk)
        self.feed.read_in_parts.add(table.name)
        return [KeyRange(lo, hi) for lo, hi in zip([None, *bounds], [*bounds, None], strict=True)]

    def _numbers(self, c: Connection, table: Table, per_chunk: int) -> list[tuple[Any, ...]]:
        """Bounds of ranges of an integer key: arithmetic where it is dense, else halved by the optimizer's estimates."""
        first, last = self._ends(c, table)
        if first is None or last is None:
            return []
        low, high, total = int(first), int(last), table.rows or 1
        if high - low < 2 * total:
            step = max(1, per_chunk * (high - low + 1) // total)
            return [(value,) for value in range(low + step, high + 1, step)]
        bounds, todo = [], [(low, high)]           # of inclusive ranges, the leftmost last
        while todo:
            low, high = todo.pop()
            if high > low and self._estimate(c, table, low, high) > per_chunk * 3 // 2:
                middle = (low + high) // 2
                todo += [(middle + 1, high), (low, middle)]
            elif todo:
                bounds.append((high + 1,))
        return bounds

    def _ends(self, c: Connection, table: Table) -> tuple[bytes | None, ...]:
        key = quote(table.key[0])
        [ends] = run(c, f"select min({key}), max({key}) from {quote(table.name)}")
        return ends

    def _estimate(self, c: Connection, table: Table, low: int, high: int) -> int:
        key = quote(table.key[0])
        c.query(bound(c, f"explain select 1 from {quote(table.name)} force index ({quote(self.facts(table).index)})"
                         f" where {key} between {low} and {high}"))
        result = c.store_result()
        [row] = result.fetch_row(0)
        return int(row[[name for name, *_ in result.describe()].index("rows")] or 0)

    def _walk(self, c: Connection, table: Table, width: int, per_chunk: int) -> list[tuple[Any, ...]]:
        """Bounds of ranges of any other key: each step walks one chunk of its index."""
        columns = table.key[:width]
        kinds = [declared_of(table, column) for column in columns]
        expressions = ", ".join(selected(quote(column), kind) for column, kind in zip(columns, kinds, strict=True))
        order = ", ".join(map(quote, columns))
        source = f"select {expressions} from {quote(table.name)} force index ({quote(self.facts(table).index)}) where"
        bounds: list[tuple[Any, ...]] = []
        after: tuple[Any, ...] | None = None
        while True:
            condition, params = range_sql(table, KeyRange(after))
            found = run(c, f"{source} {condition} order by {order} limit 1 offset {per_chunk}", params)
            if found and (same := self._bound(kinds, found[0])) and same == after:
                equal, values = equal_sql(table, same)     # more rows than a chunk has: go on behind them
                found = run(c, f"{source} {condition} and not ({equal}) order by {order} limit 1", [*params, *values])
            if not found or not (after := self._bound(kinds, found[0])):
                return bounds
            bounds.append(after)

    def _bound(self, kinds: Sequence[str], values: tuple[bytes | None, ...]) -> tuple[Any, ...] | None:
        """A key as ranges carry it; None for text that is none, which reading will refuse by its key."""
        with suppress(UnicodeDecodeError):
            return tuple(bound_value(kind, value) for kind, value in zip(kinds, values, strict=True))
        return None

    # -------------------------------------------------------------- rows

    def read(self, table: Table, keys: KeyRange) -> Batches:
        condition, params = range_sql(table, keys)
        shared = self._snapshots if table.name in self.feed.swept else None
        with self._borrowed(shared) if shared else self.connection() as connection:
            yield from self.rows(connection, table, all_selected(table), f"from {quote(table.name)} where {condition}", params)

    def rows(self, connection: Connection, table: Table, expressions: Sequence[str], tail: str, params: Sequence[Any] = ()) -> Batches:
        """The rows of `select <expressions> <tail>` as the columns of `table.schema`."""
        for field, declared in zip(table.schema, table.source_types, strict=True):
            if field.type == UNKNOWN:
                raise ValueRefused(f"{table.path}.{field.name}: skylift knows no exact form of the type {declared}",
                                   hint="leave the table out, or change the column's type")
        nullable = [field.name not in table.key and "zero-dates" in self.losses.accepted for field in table.schema]
        zeros = np.zeros(len(table.schema), np.int64)
        sql = bound(connection, f"select {', '.join(expressions)} {tail}", params)
        try:
            with told(self.url, table.path):
                for batch in read_result(connection, sql, [read_as(field.type) for field in table.schema], nullable, zeros):
                    named = pa.RecordBatch.from_arrays(
                        [_uuids(column) if isinstance(field.type, pa.UuidType) else column
                         for column, field in zip(batch.columns, table.schema, strict=True)], names=table.schema.names)
                    yield cast_batch(named, table)
                    del batch, named               # before the next one is read: a value may be large
        except Misfit as misfit:
            raise _refusal(table, misfit) from None
        finally:
            for column in np.flatnonzero(zeros):
                self.losses.count("zero-dates", table.path, table.schema.names[column], int(zeros[column]))

    # -------------------------------------------------------------- changes

    def track(self, tables: Sequence[Table], consumer: str) -> dict[str, Watermark]:
        marks = super().track(tables, consumer)
        if self._snapshots is None and any(mark.feed == SWEEP for mark in marks.values()):
            self._snapshots = self._common_snapshot()
        return marks

    # -------------------------------------------------------------- connections

    def connection(self) -> AbstractContextManager[Connection]:
        return self._pool.connection()

    def _common_snapshot(self) -> queue.Queue[Connection] | None:
        """Connections that see the database at one moment; None where the user may not hold the writers for it."""
        opened: list[Connection] = []
        try:
            opened += [connect(self.url) for _ in range(SNAPSHOTS)]
            with closing(connect(self.url)) as holder:         # the lock ends with its connection, whatever happens
                run(holder, f"set session lock_wait_timeout = {SNAPSHOT_WAIT_S}")
                run(holder, "flush tables with read lock")
                for connection in opened:
                    run(connection, "start transaction with consistent snapshot")
        except (MySQLdb.Error, Transient, SetupError):
            for connection in opened:
                connection.close()
            return None
        shared: queue.Queue[Connection] = queue.Queue()
        for connection in opened:
            shared.put(connection)
        return shared

    @contextmanager
    def _borrowed(self, shared: queue.Queue[Connection]) -> Iterator[Connection]:
        """One of the snapshot's connections. Where one is lost its snapshot is: then every read of the run is on its own."""
        connection = shared.get()
        if not connection.open:
            shared.put(connection)                 # for whoever else waits here
            raise Transient(f"{where(self.url)}: the snapshot was lost with its connection", hint="it is tried again")
        try:
            yield connection
        except BaseException:
            self._snapshots = None
            connection.close()
            shared.put(connection)
            raise
        shared.put(connection)

    def close(self) -> None:
        self._pool.close()
        if self._snapshots:
            while not self._snapshots.empty():
                self._snapshots.get().close()


def _is_numbered(table: Table) -> bool:
    return len(table.key) == 1 and is_integer(declared_of(table, table.key[0]))


def _key(declared: Mapping[str, str], indexed: Sequence[tuple[str, ...]]) -> tuple[str, tuple[str, ...]]:
    """The index that tells rows apart, and its columns: the primary key, else the first unique one without nulls."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for index, *part in indexed:
        found.setdefault(index, []).append(tuple(part))
    for index, parts in found.items():
        if all(may_be_key(declared.get(column, "")) and nullable != "YES" and not cut for column, nullable, cut in parts):
            return index, tuple(column for column, *_ in parts)
    return "", ()


def _unseen(engine: str, options: str, cascaded: bool, volatile: bool) -> str:
    if engine != "InnoDB":
        return f"its storage engine {engine} has no transactions, so a change log would not stay in step with it"
    if cascaded:
        return "foreign keys with cascade or set null change its rows without a trigger"
    if "partitioned" in options:
        return "it is partitioned, and whole partitions come and go without a trigger"
    return "a generated column depends on more than its row" if volatile else ""


def _uuids(column: pa.Array) -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.uuid(), column.cast(pa.binary(16)))


def _refusal(table: Table, misfit: Misfit) -> ValueRefused:
    names = table.schema.names
    shown = {name: (cell or b"").decode(errors="replace")[:80] for name, cell in zip(names, misfit.cells, strict=True)}
    field = table.schema.field(misfit.column)
    key = ", ".join(f"{column} {shown[column]!r}" for column in table.key) or "none"
    hint = "correct the row at the source"
    if pa.types.is_timestamp(field.type) or pa.types.is_date(field.type):
        hint += ", or set 'accept' to zero-dates: then a date without month or day becomes null, and is counted"
    return ValueRefused(f"{table.path}.{field.name}, key ({key}): value '{shown[field.name]}' does not fit {field.type}", hint=hint)


def _text(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
