"""DuckDB as a source: `duckdb:///path/to/file.duckdb`, opened read-only, so that nothing is ever written there.

DuckDB lets nobody write to a file while it is read: all reads of a run see one state of it, and whoever holds it for writing keeps
skylift out. Whether anything at all has changed since a watermark is told by the file itself (`_state`); where it has, source
and target are compared.

A file that has not changed keeps the row ids of its rows, so tables are cut by row id, with or without a key.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy.engine import URL

from skylift.connectors import STATE, Batches, Changes, Source
from skylift.connectors.duckdb import first_line
from skylift.connectors.duckdb_engine import engine, need
from skylift.connectors.sql import quote
from skylift.errors import CopyError, SetupError, SkyliftError, SourceChanged, Transient, ValueRefused
from skylift.losses import Losses
from skylift.model import KeyRange, Table, Watermark

BATCH_ROWS = 2048                  # a vector: what DuckDB has in memory at once in any case
BATCH_BYTES = 8 * 2**20
SAMPLE_ROWS = 200
TICK_S = 0.02                      # two changes of a file may have one time if they are nearer to each other: the kernel's clock ticks

# Type -> what it moves as, and the expression that makes it so. What is not here by its whole name goes by its beginning.
_PLAIN, _TEXT = "{c}", "{c}::varchar"
_TYPES = {
    "BOOLEAN": (pa.bool_(), _PLAIN),
    "TINYINT": (pa.int8(), _PLAIN), "SMALLINT": (pa.int16(), _PLAIN), "INTEGER": (pa.int32(), _PLAIN), "BIGINT": (pa.int64(), _PLAIN),
    "UTINYINT": (pa.uint8(), _PLAIN), "USMALLINT": (pa.uint16(), _PLAIN), "UINTEGER": (pa.uint32(), _PLAIN),
    "UBIGINT": (pa.uint64(), _PLAIN),
    "HUGEINT": (pa.decimal128(38, 0), "{c}::decimal(38,0)"), "UHUGEINT": (pa.decimal128(38, 0), "{c}::decimal(38,0)"),
    "BIGNUM": (pa.string(), _TEXT), "FLOAT": (pa.float32(), _PLAIN), "DOUBLE": (pa.float64(), _PLAIN),
    "VARCHAR": (pa.string(), _PLAIN), "JSON": (pa.string(), _TEXT), "BIT": (pa.string(), _TEXT), "INTERVAL": (pa.string(), _TEXT),
    "BLOB": (pa.binary(), _PLAIN), "UUID": (pa.uuid(), _PLAIN),
    "DATE": (pa.date32(), _PLAIN), "TIME": (pa.time64("us"), _PLAIN), "TIME_NS": (pa.time64("ns"), _PLAIN),
    "TIME WITH TIME ZONE": (pa.string(), _TEXT),
    "TIMESTAMP": (pa.timestamp("us"), _PLAIN), "TIMESTAMP_S": (pa.timestamp("us"), "{c}::timestamp"),
    "TIMESTAMP_MS": (pa.timestamp("us"), "{c}::timestamp"), "TIMESTAMP_NS": (pa.timestamp("ns"), _PLAIN),
    "TIMESTAMP WITH TIME ZONE": (pa.timestamp("us", "UTC"), _PLAIN), "TIMESTAMPTZ_NS": (pa.string(), _TEXT),
}
_BY_BEGINNING = {"ENUM(": (pa.string(), _TEXT), "STRUCT(": (pa.string(), _TEXT), "MAP(": (pa.string(), _TEXT),
                 "UNION(": (pa.string(), _TEXT), "TUPLE(": (pa.string(), _TEXT), "GEOMETRY": (pa.binary(), "st_aswkb({c})")}
_UNKNOWN = (pa.null(), _PLAIN)      # its table is refused by name
_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
_DAY = {pa.time64("us"): 86_400_000_000, pa.time64("ns"): 86_400_000_000_000}

_CATALOGUE = """
select t.schema_name, t.table_name, list(c.column_name order by c.column_index), list(c.data_type order by c.column_index),
    list(c.column_name) filter (not c.is_nullable), (select list(k.constraint_column_names order by k.constraint_type, k.constraint_index)
     from duckdb_constraints() k where k.table_oid = t.table_oid and k.database_oid = t.database_oid
         and k.constraint_type in ('PRIMARY KEY', 'UNIQUE'))
from duckdb_tables() t join duckdb_columns() c on c.table_oid = t.table_oid and c.database_oid = t.database_oid
where t.database_name = current_database() and not t.internal and not t.temporary and t.table_name not like '\\_skylift%' escape '\\'
group by t.schema_name, t.table_name, t.table_oid, t.database_oid order by t.schema_name, t.table_name
"""


def open_source(url: URL) -> Source:
    """The database file at `url`. Raises SetupError if there is none, somebody writes to it, or it is not a DuckDB database."""
    if not url.database or url.database == ":memory:":
        raise SetupError("the DuckDB source names no file", hint="write duckdb:///relative/path.duckdb or duckdb:////absolute/path.duckdb")
    if url.query:
        raise SetupError(f"duckdb:///{url.database}: unknown option {', '.join(url.query)}")
    path = Path(url.database).absolute()
    if not path.is_file():
        raise SetupError(f"there is no DuckDB file {path}", hint="check the path")
    try:
        return DuckDBSource(path)
    except (duckdb.IOException, duckdb.BinderException) as error:
        if "lock" in str(error).lower() or "already attached" in str(error):
            raise SetupError(f"DuckDB file {path} is open in another program that may write to it: {first_line(error)}",
                             hint="close it there: DuckDB lets others read a file only while nobody has it open for writing") from None
        raise SetupError(f"DuckDB file {path} cannot be read: {first_line(error)}", hint="check that it can be read, is undamaged and is "
                         "no newer than skylift's own DuckDB") from None
    except duckdb.Error as error:
        raise SetupError(f"DuckDB file {path} cannot be opened: {first_line(error)}") from None


def grants(url: URL) -> str:
    return (f"-- The account that skylift runs under needs the right to read {url.database} and, where there is one, {url.database}.wal.\n"
            "-- Nothing is written there.\n")


class DuckDBSource:
    """One DuckDB file; every read runs on a connection of its own."""

    losses = Losses()

    def __init__(self, path: Path) -> None:
        """Raises what DuckDB raises."""
        self.path = path
        self.name = path.stem
        self._mark = Watermark(STATE, 1, _state(path))         # before anything is read; from now on nobody can write
        self._engine = engine()
        self._attached = self._engine.attach(path, read_only=True)

    # -------------------------------------------------------------- catalogue

    def notes(self) -> list[str]:
        return []

    def tables(self) -> list[Table]:
        found = []
        for namespace, name, columns, types, filled, unique in self._rows(_CATALOGUE):
            schema = pa.schema([(column, moves_as(kind)[0]) for column, kind in zip(columns, types, strict=True)])
            key = next((tuple(names) for names in unique or () if set(names) <= set(filled or ())), ())
            found.append(Table(name, schema, key, source_types=tuple(types), namespace="" if namespace == "main" else namespace))
        return found

    def measure(self, table: Table) -> Table:
        width = "+".join(f"coalesce({_width(kind).format(c=quote(name))}, 0)"
                         for name, kind in zip(table.schema.names, table.source_types, strict=True))
        [(rows, row_bytes)] = self._rows(f"select (select count(*) from {_name(table)}), (select avg({width}) from "
                                         f"(select * from {_name(table)} limit {SAMPLE_ROWS}))")
        return replace(table, rows=rows, size_bytes=int(rows * (row_bytes or 0)))

    def split(self, table: Table, rows: int, size_bytes: int) -> list[KeyRange]:
        """Ranges of row ids."""
        total = table.rows or 0
        per_chunk = max(1, min(rows, size_bytes // _row_bytes(table)))
        if total <= per_chunk or any(name.lower() == "rowid" for name in table.schema.names):    # a column of that name hides the row ids
            return [KeyRange()]
        [(last,)] = self._rows(f"select max(rowid) from {_name(table)}")
        step = max(1, per_chunk * (last + 1) // total)
        bounds = [(bound,) for bound in range(step, last + 1, step)]
        return [KeyRange(lo, hi) for lo, hi in zip([None, *bounds], [*bounds, None], strict=True)]

    # -------------------------------------------------------------- rows

    def read(self, table: Table, keys: KeyRange) -> Batches:
        for field, declared in zip(table.schema, table.source_types, strict=True):
            if field.type == pa.null():
                raise ValueRefused(f"{table.path}.{field.name}: skylift knows no exact form of the type {declared}",
                                   hint="leave the table out, or change the column's type")
        columns = ", ".join(f"{reading_sql(name, kind)} as {quote(name)}"
                            for name, kind in zip(table.schema.names, table.source_types, strict=True))
        where = " and ".join(f"rowid {sign} {int(bound[0])}" for sign, bound in ((">=", keys.lo), ("<", keys.hi)) if bound) or "true"
        sql = f"select {columns} from {_name(table)} where {where}"
        try:
            with closing(self._batches(table, sql)) as batches:
                for batch in batches:
                    yield self._finite(batch, table)
        except duckdb.ConversionException as error:
            raise self._refusal(table, where, error) from None

    def _batches(self, table: Table, sql: str) -> Batches:
        """A vector of large values may need more memory than the columns alone: the query gets it, and begins anew."""
        passed = False
        with self._told(table.path), self._engine.memory.share() as memory:
            memory.at_least(need(table.schema))
            while True:
                try:
                    with self._engine.cursor(self._attached) as cursor:
                        for batch in cursor.sql(sql).to_arrow_reader(max(1, min(BATCH_ROWS, BATCH_BYTES // _row_bytes(table)))):
                            passed = True
                            yield batch
                    return
                except duckdb.OutOfMemoryException as error:
                    if memory.taken > _MEMORY:
                        raise
                    memory.at_least(4 * memory.taken)
                    if passed:
                        raise Transient(f"DuckDB file {self.path}: {table.path}: {first_line(error)}") from None

    def _finite(self, batch: pa.RecordBatch, table: Table) -> pa.RecordBatch:
        """Refuses infinite dates and 24:00:00, which no other database has; null in place of infinite ones where that is accepted."""
        columns = batch.columns
        for i, field in enumerate(table.schema):
            if field.type in _DAY:
                low, high = -1, _DAY[field.type]
            elif pa.types.is_date32(field.type) or pa.types.is_timestamp(field.type):
                high = 2**31 - 1 if pa.types.is_date32(field.type) else 2**63 - 1
                low = -high
            else:
                continue
            numbers = columns[i].view(pa.int32() if pa.types.is_date32(field.type) else pa.int64())
            bounds = pc.min_max(numbers)
            if bounds["min"].as_py() is None or (low < bounds["min"].as_py() and bounds["max"].as_py() < high):
                continue
            wrong = pc.fill_null(pc.or_(pc.less_equal(numbers, low), pc.greater_equal(numbers, high)), False)
            if field.type in _DAY or field.name in table.key or "infinity" not in self.losses.accepted:
                row = pc.index(wrong, True).as_py()
                what = "24:00:00 is no time" if field.type in _DAY else "an infinite time"
                key = tuple(str(columns[table.schema.get_field_index(k)][row]) for k in table.key)
                raise ValueRefused(f"{table.path}.{field.name}, key {key}: {what} that other databases have",
                                   hint="correct the row at the source" + ("" if field.type in _DAY else
                                        ", or set 'accept' to infinity: then it becomes null, and is counted"))
            self.losses.count("infinity", table.path, field.name, pc.sum(wrong).as_py())
            columns[i] = pc.if_else(wrong, pa.scalar(None, columns[i].type), columns[i])
        return pa.RecordBatch.from_arrays([column if column.type == field.type else column.cast(field.type)
                                           for column, field in zip(columns, table.schema, strict=True)], schema=table.schema)

    def _refusal(self, table: Table, where: str, error: Exception) -> CopyError:
        """Which cell cannot become what its column moves as."""
        for name, kind in zip(table.schema.names, table.source_types, strict=True):
            if (made := reading_sql(name, kind)) == quote(name):
                continue
            keys = ", ".join(f"{quote(k)}::varchar" for k in table.key) or "'-'"
            hit = self._rows(f"select {quote(name)}::varchar, {keys} from {_name(table)} where {where} and {quote(name)} is not null"
                             f" and try({made}) is null limit 1")
            if hit:
                value, *key = hit[0]
                return ValueRefused(f"{table.path}.{name}, key {tuple(key)}: value {value[:80]} does not fit "
                                    f"{table.schema.field(name).type}", hint="correct the row at the source")
        return CopyError(f"{table.path}: {first_line(error)}")

    # -------------------------------------------------------------- changes

    def track(self, tables: Sequence[Table], consumer: str) -> dict[str, Watermark]:
        return {table.path: self._mark for table in tables}

    def usable(self, table: Table, since: Watermark) -> str:
        return "" if since == self._mark else "the source file has changed meanwhile"

    def changed(self, since: Mapping[str, Watermark]) -> set[str]:
        return set()                               # within one opening of the file; between them there is no feed

    def changes(self, table: Table, since: Watermark) -> AbstractContextManager[Changes]:
        raise SourceChanged(f"{table.path}: DuckDB keeps no log of changes")

    def confirm(self, consumer: str, positions: Mapping[str, int]) -> None:
        return

    def untrack(self, consumer: str) -> None:
        return

    # -------------------------------------------------------------- connections

    def _rows(self, sql: str) -> list[tuple]:
        with self._told(""), self._engine.memory.share() as memory:
            while True:
                try:
                    with self._engine.cursor(self._attached) as cursor:
                        return cursor.execute(sql).fetchall()
                except duckdb.OutOfMemoryException:
                    if memory.taken > _MEMORY:
                        raise
                    memory.at_least(4 * memory.taken or 64 * 2**20)

    @contextmanager
    def _told(self, path: str) -> Iterator[None]:
        """DuckDB's errors as ours; a value that cannot be cast is left to who knows the table."""
        where = f"DuckDB file {self.path}{': ' + path if path else ''}"
        try:
            yield
        except (SkyliftError, duckdb.ConversionException):
            raise
        except duckdb.OutOfMemoryException as error:
            raise CopyError(f"{where}: {first_line(error)}", hint="DuckDB reads 2,048 rows at once: give the machine memory for as many "
                            "values of the table's largest columns") from None
        except duckdb.Error as error:
            raise CopyError(f"{where}: {first_line(error)}", hint="check that the file is undamaged") from None

    def close(self) -> None:
        self._engine.detach(self.path, read_only=True)


def moves_as(declared: str) -> tuple[pa.DataType, str]:
    if declared.endswith("]"):                     # a list or an array of anything
        return pa.string(), _TEXT
    if declared.startswith("DECIMAL("):
        precision, scale = declared[8:-1].split(",")
        return pa.decimal128(int(precision), int(scale)), _PLAIN
    return _TYPES.get(declared) or next((made for start, made in _BY_BEGINNING.items() if declared.startswith(start)), _UNKNOWN)


def reading_sql(column: str, declared: str) -> str:
    """The expression that reads a column as what it moves as."""
    return moves_as(declared)[1].format(c=quote(column))


def _width(declared: str) -> str:
    """The expression that says how many bytes a value has."""
    if declared in ("VARCHAR", "JSON"):
        return "strlen({c})"
    return "octet_length({c})" if declared == "BLOB" else "16" if moves_as(declared)[1] != _TEXT else "strlen({c}::varchar)"


def _row_bytes(table: Table) -> int:
    return (table.size_bytes or 0) // max(1, table.rows or 0) + 1


def _name(table: Table) -> str:
    return f"{quote(table.namespace or 'main')}.{quote(table.name)}"


def _state(path: Path) -> str:
    """What is another text whenever the database is another one: inode, size and times of the file and of its write-ahead log.

    The time of change is the kernel's, no program can set it: whatever is written, or put in the file's place, has another one. The
    file itself is not opened: closing it again would let go of the locks that DuckDB holds in this process (fcntl(2)).
    """
    stats = [part.stat() for part in (path, Path(f"{path}.wal")) if part.exists()]
    if abs(time.time() - max(stat.st_ctime for stat in stats)) < TICK_S:
        time.sleep(TICK_S)                         # what is written after this has been read has another time
    return " ".join(f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}" for stat in stats)
