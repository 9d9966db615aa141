"""DuckDB as a target: `duckdb:///path/to/file.duckdb`.

No primary keys are built: DuckDB's ART indexes must fit in memory and slow bulk loads down, and nothing here needs them
(changes are applied by a join over the key columns). Key columns are NOT NULL.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from sqlalchemy.engine import URL

from skylift.connectors import Batches, CopyPlan, Hashes, TableState, Target
from skylift.connectors.duckdb_engine import ENOUGH, KEYS, LARGE_ROW, LARGE_VALUES, NEW_TABLE, Share, engine, need
from skylift.connectors.ledger import STATES, digest_of, mark_of, mark_text, states_of
from skylift.connectors.sql import quote
from skylift.errors import CopyError, SetupError, SkyliftError, TargetFailed, Transient, ValueRefused
from skylift.losses import Losses
from skylift.model import ARROW, Digest, Table, TargetName

READ_ROWS = 16_384
LARGE_BATCH = 32 * 2**20          # bytes of rows with large values that are read at a time
FINDERS = 2                       # threads that look for a few rows among many

# A transaction that fills a row group (122,880 rows) writes it compressed while it loads; a smaller one goes through the write-ahead
# log and is compressed at the next checkpoint: 8.1 s of CPU against 12.9 s (1 M rows x 50 columns, two workers).
CHUNK_ROWS = 131_072

_TYPES = {"bool": "BOOLEAN", "int8": "TINYINT", "int16": "SMALLINT", "int32": "INTEGER", "int64": "BIGINT", "uint8": "UTINYINT",
          "uint16": "USMALLINT", "uint32": "UINTEGER", "uint64": "UBIGINT", "float": "REAL", "double": "DOUBLE", "string": "VARCHAR",
          "binary": "BLOB", "date32[day]": "DATE", "time64[us]": "TIME", "time64[ns]": "TIME_NS",
          "timestamp[us]": "TIMESTAMP", "timestamp[us, tz=UTC]": "TIMESTAMPTZ", "timestamp[ns]": "TIMESTAMP_NS",
          str(pa.uuid()): "UUID"}

_LEDGER = """
create table if not exists _skylift_tables (schema_name varchar, table_name varchar, rows bigint, digest varchar,
    watermark varchar, columns varchar, copied_at timestamptz default now());
create table if not exists _skylift_copies (schema_name varchar, table_name varchar, copy_id varchar, watermark varchar, ranges varchar);
create table if not exists _skylift_ledger (schema_name varchar, table_name varchar, copy_id varchar, chunk_id integer, rows bigint,
    digest varchar, loaded_at timestamptz default now());
"""


def open_target(url: URL) -> Target:
    """The database file at `url`, created if missing. Raises SetupError if it cannot be written, Transient if it is locked."""
    if not url.database or url.database == ":memory:":
        raise SetupError("the DuckDB target names no file", hint="write duckdb:///relative/path.duckdb")
    if url.query:
        raise SetupError(f"duckdb:///{url.database}: unknown option {', '.join(url.query)}")
    path = Path(url.database).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = DuckDBTarget(path)
    except duckdb.IOException as error:
        if "lock" in str(error).lower():
            raise Transient(f"DuckDB file {path} is in use by another program", hint="close it; DuckDB allows one writer") from None
        raise SetupError(f"DuckDB file {path} cannot be written: {first_line(error)}", hint="check the path and its permissions") from None
    except (OSError, duckdb.Error) as error:
        raise SetupError(f"DuckDB file {path} cannot be opened: {first_line(error)}",
                         hint="check that the folder can be written and the file is a DuckDB database") from None
    return target


def grants(url: URL) -> str:
    return (f"-- The account that skylift runs under needs the rights to read and write {url.database} and to make, rename and delete\n"
            "-- files in its folder.\n")


class DuckDBTarget:
    """One DuckDB file; every transaction runs on a connection of its own."""

    max_name_bytes = 1 << 16
    chunk_rows = CHUNK_ROWS
    formats: Container[str] = (ARROW,)
    losses = Losses()
    dialect = "duckdb"
    holds_values = True
    hashes: Hashes | None = None

    def __init__(self, path: Path) -> None:
        """Raises what DuckDB raises."""
        self.path = path
        self._engine = engine()
        self._name = self._engine.attach(path)
        try:
            with self._cursor() as cursor:
                cursor.execute(_LEDGER)
        except BaseException:
            self.close()
            raise

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        try:
            return self._engine.cursor(self._name)
        except duckdb.CatalogException:
            raise TargetFailed(f"DuckDB file {self.path} has been closed", hint="run again: what has arrived stays") from None

    def declares(self, table: Table) -> dict[str, str]:
        return declares(table)

    def fit(self, batch: pa.RecordBatch, table: Table) -> pa.RecordBatch:
        return batch                                # every value that a source hands out

    @contextmanager
    def transaction(self) -> Iterator[DuckDBTransaction]:
        with self._told(), self._engine.memory.share() as memory, self._cursor() as cursor:
            cursor.execute("begin")
            try:
                yield DuckDBTransaction(cursor, memory)
                cursor.execute("commit")
            except BaseException:
                with suppress(duckdb.Error):       # a failed commit has rolled back already
                    cursor.execute("rollback")
                raise

    def states(self) -> dict[TargetName, TableState]:
        return states_of(self._rows(f"select {STATES} from _skylift_tables"))

    def copies(self, copy_id: str) -> dict[TargetName, CopyPlan]:
        rows = self._rows("select schema_name, table_name, watermark, ranges from _skylift_copies where copy_id = ?", copy_id)
        return {TargetName(schema, table): CopyPlan(mark_of(mark), ranges) for schema, table, mark, ranges in rows}

    def chunks_done(self, build: TargetName, copy_id: str) -> dict[int, Digest]:
        rows = self._rows("select chunk_id, rows, digest from _skylift_ledger where schema_name = ? and table_name = ? and copy_id = ?",
                          build.schema, build.table, copy_id)
        return {chunk: digest_of(count, digest) for chunk, count, digest in rows}

    def read_parts(self, name: TargetName, table: Table, parts: int) -> list[Batches]:
        if any(column.lower() == "rowid" for column in self._names(f"from {_table(name)} limit 0")):    # it hides the row ids
            return [self._whole(name, table.schema)]
        [(last,)] = self._rows(f"select coalesce(max(rowid), 0) from {_table(name)}")
        if last < parts * READ_ROWS:
            parts = 1
        bounds = [(last + 1) * i // parts for i in range(parts + 1)]
        return [self._part(name, table, lo, hi) for lo, hi in itertools.pairwise(bounds)]

    def _whole(self, name: TargetName, schema: pa.Schema) -> Batches:
        with self._told(), self._engine.memory.share() as memory, self._cursor() as cursor:
            memory.at_least(need(schema))
            yield from _read(cursor, f"select {_columns(schema)} from {_table(name)}", schema)

    def _part(self, name: TargetName, table: Table, first: int, end: int) -> Batches:
        """The rows with these row ids. A scan has the values of 2,048 rows in memory together; where that is too much, fewer are asked for
        at a time, which DuckDB then reads alone.
        """
        schema = pa.schema([*table.schema, pa.field("rowid", pa.int64())])
        row_bytes = (table.size_bytes or 0) // max(1, table.rows or 0)
        span = most = end - first if row_bytes < LARGE_ROW else max(1, LARGE_BATCH // row_bytes)
        with self._told(), self._engine.memory.share() as memory, self._cursor() as cursor:
            memory.at_least(need(table.schema) + (row_bytes if row_bytes > LARGE_ROW else 0))
            while first < end:
                until = min(end, first + span)
                rows = f"where rowid >= {first} and rowid < {until}"
                try:
                    for batch in _read(cursor, f"select {_columns(table.schema)}, rowid from {_table(name)} {rows}", schema):
                        yield batch.select(table.schema.names)
                        first = batch.column(batch.num_columns - 1)[-1].as_py() + 1
                        del batch
                except (OSError, duckdb.OutOfMemoryException) as error:
                    if "Out of Memory" not in str(error):
                        raise
                    if span == 1 and memory.taken >= ENOUGH:
                        raise
                    if span == 1:                  # one row alone needs more
                        memory.at_least(memory.taken + LARGE_BATCH // 4)
                    span = max(1, span // 16)
                else:
                    first, span = until, min(most, 2 * span)

    def discard_copies(self, keep: str) -> None:
        for schema, table in self._rows("select schema_name, table_name from _skylift_copies where copy_id <> ?", keep):
            with self.transaction() as transaction:
                transaction.drop(TargetName(schema, table))

    def _rows(self, sql: str, *params) -> list[tuple]:
        with self._told(), self._cursor() as cursor:
            return cursor.execute(sql, list(params)).fetchall()

    def _names(self, sql: str) -> list[str]:
        """The columns of a query. Its catalogue (duckdb_columns) would list those of all tables at each question: 8 ms of 300 tables."""
        with self._told(), self._cursor() as cursor:
            return [column for column, *_ in cursor.execute(sql).description or ()]

    @contextmanager
    def _told(self) -> Iterator[None]:
        """DuckDB's errors as ours, by what they mean for the run."""
        try:
            yield
        except SkyliftError:
            raise
        except (duckdb.IOException, duckdb.FatalException, duckdb.InternalException, duckdb.ConnectionException) as error:
            self._engine.broken |= isinstance(error, duckdb.FatalException | duckdb.InternalException)
            raise TargetFailed(f"DuckDB file {self.path}: {first_line(error)}",
                               hint="free space or restore access, then run again: what has arrived stays") from None
        except (duckdb.OutOfMemoryException, OSError) as error:        # OSError: what Arrow makes of an error while it reads
            if self._engine.memory.allow_more():
                raise Transient(f"DuckDB file {self.path}: {first_line(error)}") from None
            raise TargetFailed(f"DuckDB file {self.path}: {first_line(error)}", hint="free disk space for DuckDB to spill to") from None
        except duckdb.TransactionException as error:
            if re.search("failed to pin|could not allocate", str(error)) and self._engine.memory.allow_more():     # memory for a commit
                raise Transient(f"DuckDB file {self.path}: {first_line(error)}") from None
            if not re.search("onflict|another transaction", str(error)):     # a commit that could not be written
                raise TargetFailed(f"DuckDB file {self.path}: {first_line(error)}",
                                   hint="free space or restore access, then run again: what has arrived stays") from None
            raise Transient(f"DuckDB file {self.path}: {first_line(error)}") from None
        except (duckdb.ConversionException, duckdb.InvalidInputException, duckdb.OutOfRangeException,
                duckdb.ConstraintException) as error:
            raise ValueRefused(f"DuckDB refused a value: {first_line(error)}") from None
        except duckdb.Error as error:
            raise CopyError(f"DuckDB file {self.path}: {first_line(error)}") from None

    def close(self) -> None:
        self._engine.detach(self.path)


class DuckDBTransaction:
    def __init__(self, cursor: duckdb.DuckDBPyConnection, memory: Share) -> None:
        self._cursor = cursor
        self._memory = memory
        self._written: set[TargetName] = set()

    def create(self, name: TargetName, table: Table) -> None:
        columns = [f"{quote(column)} {kind}{' not null' if column in table.key else ''}" for column, kind in declares(table).items()]
        if name.schema:
            self._cursor.execute(f"create schema if not exists {quote(name.schema)}")
        self._cursor.execute(f"create or replace table {_table(name)} ({', '.join(columns)})")

    def insert(self, name: TargetName, table: Table, batches: Iterable[pa.RecordBatch]) -> None:
        failure: list[BaseException] = []
        self._written.add(name)
        columns = need(table.schema) + NEW_TABLE * len(self._written)
        self._memory.at_least(columns)             # until the commit, which needs it again

        def guarded() -> Iterator[pa.RecordBatch]:
            large = 0                              # bytes of large values, which the commit has in memory together
            try:
                for batch in batches:
                    if batch.nbytes > LARGE_ROW * batch.num_rows:
                        large += batch.nbytes
                        self._memory.keep_room(batch.nbytes)
                    self._memory.at_least(columns + LARGE_VALUES * batch.nbytes + large)
                    yield batch
                    del batch
            except BaseException as error:         # DuckDB would turn it into text: keep it and raise it again below
                failure.append(error)
                raise

        _skylift_batches = pa.RecordBatchReader.from_batches(table.schema, guarded())   # found like the keys
        try:
            self._cursor.execute(f"insert into {_table(name)} select * from _skylift_batches")
        except duckdb.Error:
            if failure:
                raise failure[0] from None
            raise

    def delete(self, name: TargetName, keys: pa.Table) -> None:
        self._memory.at_least(KEYS * keys.nbytes)
        _skylift_keys = keys      # DuckDB finds the variable by its name; registering a view costs 0.5 ms
        matches = " and ".join(f"t.{quote(k)} = k.{quote(k)}" for k in keys.column_names)
        self._cursor.execute(f"delete from {_table(name)} t using _skylift_keys k where {matches}")

    def read(self, name: TargetName, table: Table, keys: pa.Table | None = None) -> Batches:
        schema = table.schema
        if keys is None:
            self._memory.at_least(need(schema))
            yield from _read(self._cursor, f"select {_columns(schema)} from {_table(name)}", schema)
            return
        self._memory.at_least(FINDERS * need(schema) + KEYS * keys.nbytes)
        self._cursor.register("_skylift_keys", keys)
        using = ", ".join(map(quote, keys.column_names))
        self._cursor.execute(f"set threads={FINDERS}")
        yield from _read(self._cursor, f"select {_columns(schema)} from {_table(name)} semi join _skylift_keys using ({using})", schema)
        self._cursor.unregister("_skylift_keys")

    def count(self, name: TargetName) -> int:
        return self._cursor.execute(f"select count(*) from {_table(name)}").fetchall()[0][0]

    def swap(self, build: TargetName, name: TargetName) -> None:
        self._cursor.execute(f"drop table if exists {_table(name)}")
        self._cursor.execute(f"alter table {_table(build)} rename to {quote(name.table)}")

    def drop(self, name: TargetName) -> None:
        self._cursor.execute(f"drop table if exists {_table(name)}")
        self._forget(name, "_skylift_tables", "_skylift_copies", "_skylift_ledger")

    def begin_copy(self, build: TargetName, name: TargetName, copy_id: str, plan: CopyPlan) -> None:
        self._cursor.execute("insert into _skylift_copies values (?, ?, ?, ?, ?)",
                             [build.schema, build.table, copy_id, mark_text(plan.watermark), plan.ranges])

    def chunk_done(self, build: TargetName, copy_id: str, chunk: int, digest: Digest) -> None:
        self._cursor.execute("insert into _skylift_ledger (schema_name, table_name, copy_id, chunk_id, rows, digest)"
                             " values (?, ?, ?, ?, ?, ?)",
                             [build.schema, build.table, copy_id, chunk, digest.rows, str(digest)])

    def end_copy(self, build: TargetName) -> None:
        self._forget(build, "_skylift_copies", "_skylift_ledger")

    def set_states(self, states: Mapping[TargetName, TableState]) -> None:
        _skylift_states = pa.table({             # found like the keys
            "schema_name": [n.schema for n in states], "table_name": [n.table for n in states],
            "rows": [s.digest.rows for s in states.values()], "digest": [str(s.digest) for s in states.values()],
            "watermark": [mark_text(s.watermark) for s in states.values()], "columns": [s.columns for s in states.values()]})
        self._cursor.execute("delete from _skylift_tables t using _skylift_states s"
                             " where t.schema_name = s.schema_name and t.table_name = s.table_name")
        self._cursor.execute("insert into _skylift_tables by name select * from _skylift_states")

    def execute(self, sql: str, params: Sequence[Any] = (), limit_s: float = 0) -> list[tuple]:
        overrun = threading.Timer(limit_s, self._cursor.interrupt) if limit_s else None
        if overrun:
            overrun.start()
        try:
            cursor = self._cursor.execute(sql, list(params))
            return cursor.fetchall() if cursor.description else []
        finally:
            if overrun:
                overrun.cancel()

    def standing(self, schema: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for table, column in self.execute("select table_name, column_name from duckdb_columns() where database_name = current_database()"
                                          " and schema_name = ? and not internal order by 1, column_index", [schema or "main"]):
            found.setdefault(table, []).append(column)
        return found

    def table_sql(self, name: TargetName) -> str:
        return _table(name)

    def column_sql(self, column: str) -> str:
        return quote(column)

    def _forget(self, name: TargetName, *ledgers: str) -> None:
        for ledger in ledgers:
            self._cursor.execute(f"delete from {ledger} where schema_name = ? and table_name = ?", [name.schema, name.table])


def _read(cursor: duckdb.DuckDBPyConnection, sql: str, schema: pa.Schema) -> Batches:
    reader = cursor.sql(sql).to_arrow_reader(READ_ROWS)
    for batch in reader:
        yield batch if batch.schema.types == schema.types else batch.cast(schema)
        del batch                                   # before the next one is read: a value may be large


def declares(table: Table) -> dict[str, str]:
    """How DuckDB declares the columns. Raises ValueRefused for a type that has no exact counterpart."""
    kinds = {}
    for field, declared in table.declared():
        kind = _type(field.type)
        if kind is None:
            raise ValueRefused(f"{table.path}.{field.name}: DuckDB has no exact type for {declared or field.type}")
        kinds[field.name] = kind
    return kinds


def _type(kind: pa.DataType) -> str | None:
    return f"DECIMAL({kind.precision},{kind.scale})" if pa.types.is_decimal128(kind) else _TYPES.get(str(kind))


def _table(name: TargetName) -> str:
    return f"{quote(name.schema or 'main')}.{quote(name.table)}"


def _columns(schema: pa.Schema) -> str:
    return ", ".join(map(quote, schema.names))


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
