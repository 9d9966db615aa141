"""SQLite as a source: `sqlite:///path/to/file.db`, with `?mode=ro` for a file that must not be written at all.

Everything goes through the ADBC driver's own SQLite, never through the sqlite3 module: two copies of SQLite in one process
drop each other's file locks (https://www.sqlite.org/howtocorrupt.html, section 2.2.1).

The change log (connectors/sqlite_log.py) is installed in the file unless `mode=ro` forbids it. Without it, the state of
the file tells whether anything at all has changed.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote as url_quote

import adbc_driver_manager
import adbc_driver_sqlite.dbapi as adbc
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy.engine import URL

from skylift.connectors import Batches, Source
from skylift.connectors.casting import cast_batch
from skylift.connectors.fed import FedSource
from skylift.connectors.sql import quote
from skylift.connectors.sqlite_log import ChangeLog, Fingerprint
from skylift.errors import CopyError, SetupError, SkyliftError, Transient, ValueRefused
from skylift.losses import Losses
from skylift.model import KeyRange, Table

BATCH_ROWS = 16_384
BATCH_BYTES = 16 * 2**20          # Arrow bytes of one batch; what is in flight is a few of these per worker
_DAMAGED = "the source file is damaged: restore it from a backup, or rescue what can be read with sqlite3's .recover"
WIDE_BYTES = 64 * 2**10           # a larger value leaves the bulk query and is read a few rows at a time
COUNTED_ROWS = 10_000             # a key range up to this wide is counted, not sampled
BUSY_MS = 30_000                  # how long to wait for an application that is writing

# Declared type -> Arrow type, first match wins; what matches none of them goes by SQLite's affinity rule
# (https://www.sqlite.org/datatype3.html, section 3.1). GUIDs stay text: SQLite has no such type, and text keeps their case.
_DECLARED = (
    (re.compile(r"(?:DECIMAL|NUMERIC|MONEY)\w*\s*\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)"),
     lambda m: pa.decimal128(int(m[1]), int(m[2] or 0)) if 0 < int(m[1]) <= 38 and int(m[2] or 0) <= int(m[1]) else pa.string()),
    (re.compile(r"DATETIME|TIMESTAMP"), lambda m: pa.timestamp("us")),
    (re.compile(r"DATE(TEXT)?$"), lambda m: pa.date32()),
    (re.compile(r"BOOL"), lambda m: pa.int64()),
)
_AFFINITY = (("INT", "INTEGER"), ("CHAR", "TEXT"), ("CLOB", "TEXT"), ("TEXT", "TEXT"), ("BLOB", "BLOB"),
             ("REAL", "REAL"), ("FLOA", "REAL"), ("DOUB", "REAL"))
_BY_AFFINITY = {"INTEGER": pa.int64(), "TEXT": pa.string(), "BLOB": pa.binary(), "REAL": pa.float64(), "NUMERIC": pa.string()}


# Which cells of a column that moves as this type are none of its values; the driver stops at them.
_MISFIT = {"int64": "typeof({c}) not in ('null', 'integer')", "binary": "typeof({c}) not in ('null', 'blob')",
           "double": f"typeof({{c}}) not in ('null', 'real', 'integer') or typeof({{c}}) = 'integer' and abs({{c}} / 2) >= {2**52}"}


def open_source(url: URL) -> Source:
    """The database file at `url`. Raises SetupError if there is none, or it is not a SQLite database."""
    if not url.database or url.database == ":memory:":
        raise SetupError("the SQLite source names no file", hint="write sqlite:///relative/path.db or sqlite:////absolute/path.db")
    mode = url.query.get("mode", "rw")
    if mode not in ("ro", "rw") or set(url.query) - {"mode"}:
        raise SetupError(f"'{url.database}': a SQLite source takes no other option than mode=ro or mode=rw")
    path = Path(url.database).absolute()
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise SetupError(f"SQLite file {path} cannot be read: {error.strerror}", hint="check the path and its permissions") from None
    if head != b"SQLite format 3\0":
        raise SetupError(f"{path} is not a SQLite database", hint="it may be empty, encrypted, or another kind of file")
    return SqliteSource(path, read_only=mode == "ro")


def grants(url: URL) -> str:
    if url.query.get("mode") == "ro":
        return f"-- skylift reads {url.database} and its -wal and -shm: the account that it runs under needs the right to read them.\n"
    return (f"-- The account that skylift runs under needs the rights to read and write {url.database} and to make files in its folder:\n"
            "-- a log of changes is kept in the file. With ?mode=ro in the URL the right to read is enough.\n")


class SqliteSource(FedSource):
    """One SQLite file. Connections are pooled, since each parses the whole schema when it opens."""

    losses = Losses()

    def __init__(self, path: Path, read_only: bool) -> None:
        self.path = path
        self.name = path.stem
        self.read_only = read_only
        self._idle: list[adbc.Connection] = []
        self._lock = threading.Lock()
        self._row_bytes: dict[str, int] = {}
        self.feed = Fingerprint(path) if read_only else ChangeLog(self)
        with self.connection():
            pass                                   # an unreadable schema is told now

    # -------------------------------------------------------------- catalogue

    def notes(self) -> list[str]:
        return []

    def tables(self) -> list[Table]:
        rows = self.query("""
            select t.name, t.wr, c.name, c.type, c.pk, c."notnull"
            from pragma_table_list t join pragma_table_xinfo(t.name) c
            where t.schema = 'main' and t.type = 'table' and c.hidden <> 1
              and t.name not like 'sqlite\\_%' escape '\\' and t.name not like '\\_skylift\\_%' escape '\\'
            order by t.name, c.cid""")
        found: dict[str, list[tuple]] = {}
        for row in rows:
            found.setdefault(row[0], []).append(row)
        return [self._table(name, columns) for name, columns in found.items()]

    def _table(self, name: str, columns: list[tuple]) -> Table:
        schema = pa.schema([pa.field(column, arrow_type(declared) if declared else self._held_type(name, column))
                            for _, _, column, declared, _, _ in columns])
        keyed = sorted((pk, column, declared, notnull) for _, _, column, declared, pk, notnull in columns if pk)
        key = tuple(column for _, column, _, _ in keyed)
        rowid = len(keyed) == 1 and keyed[0][2].upper() == "INTEGER"
        # A primary key of an ordinary table may hold NULLs (https://www.sqlite.org/quirks.html#primary_keys_can_sometimes_contain_nulls),
        # and no range of values covers those: such a table has no usable key.
        if key and not rowid and not columns[0][1] and not all(notnull for *_, notnull in keyed):
            where = " or ".join(f"{quote(column)} is null" for column in key)
            if self.query(f"select 1 from {quote(name)} where {where} limit 1"):
                key = ()
        return Table(name, schema, key, source_types=tuple(row[3] for row in columns))

    def _held_type(self, table: str, column: str) -> pa.DataType:
        """The type of a column that declares none (as every `create table .. as select` makes them): what its cells are."""
        held = {kind for (kind,) in self.query(f"select distinct typeof({quote(column)}) from {quote(table)}")} - {"null"}
        if held <= {"integer", "real"} and "real" in held:
            return pa.float64()
        # Mixed cells have no common type: as binary, the first one that is no BLOB fails the table by name.
        return {"integer": pa.int64(), "text": pa.string(), "": pa.string()}.get("".join(held), pa.binary())

    def measure(self, table: Table) -> Table:
        width = "+".join(f"coalesce(octet_length({quote(c)}),0)" for c in table.schema.names) + f"+{8 * len(table.schema)}"
        bounds = self._bounds(table) if self._has_integer_key(table) else None
        found = self._sample(table, *bounds, width) if bounds and bounds[1] - bounds[0] > COUNTED_ROWS else None
        rows, row_bytes = found or self.query(f"select (select count(*) from {quote(table.name)}), "
                                              f"(select avg(w) from (select {width} w from {quote(table.name)} limit 200))")[0]
        self._row_bytes[table.name] = int(row_bytes or 0) + 1
        return replace(table, rows=rows, size_bytes=int(rows * (row_bytes or 0)))

    def _bounds(self, table: Table) -> tuple[int, int] | None:
        """Lowest and highest integer key, None without rows; two queries: only a lone min() or max() is answered from the tree's edge."""
        key, name = quote(table.key[0]), quote(table.name)
        [(first, last)] = self.query(f"select (select min({key}) from {name}), (select max({key}) from {name})")
        return None if first is None else (first, last)

    def _sample(self, table: Table, first: int, last: int, width: str) -> tuple[int, float] | None:
        """Rows and bytes per row of a table with an integer key, from eight places in it; None where keys are sparse."""
        key, name = quote(table.key[0]), quote(table.name)
        starts = [first + (last - first) * i // 8 for i in range(8)]
        [(rows, size_bytes)] = self.query("select sum(n), sum(w) from (" + " union all ".join(
            f"select * from (select count(*) n, sum({width}) w from {name} where {key} >= {start} and {key} < {start + 100})"
            for start in starts) + ")")
        return ((last - first + 1) * rows // 800, size_bytes / rows) if rows >= 400 else None

    def split(self, table: Table, rows: int, size_bytes: int) -> list[KeyRange]:
        per_chunk = max(1, min(rows, size_bytes // max(1, self._row_bytes.get(table.name, 1))))
        if not table.key or not table.rows or table.rows <= per_chunk:
            return [KeyRange()]
        keys = ",".join(map(quote, table.key))
        if self._has_integer_key(table) and (ends := self._bounds(table)) and ends[1] - ends[0] < 2 * table.rows:
            first, last = ends                     # dense: divide the numbers, do not walk them
            step = max(1, per_chunk * (last - first + 1) // table.rows)
            return _ranges([(value,) for value in range(first + step, last + 1, step)])
        bounds: list[tuple[Any, ...]] = []
        after: tuple[Any, ...] | None = None
        while True:                                # each step walks one chunk of the key's index
            where, params = _key_range_sql(table.key, KeyRange(after))
            step_to = self.query(f"select {keys} from {quote(table.name)} where {where} order by {keys} limit 1 offset {per_chunk}",
                                 params)
            if not step_to:
                return _ranges(bounds)
            after = step_to[0]
            bounds.append(after)

    # -------------------------------------------------------------- rows

    def read(self, table: Table, keys: KeyRange) -> Batches:
        where, params = _key_range_sql(table.key, keys)
        with self.connection() as connection:
            yield from self.read_sql(connection, table, f"from {quote(table.name)} where {where}", params)

    def read_sql(self, connection: adbc.Connection, table: Table, tail: str,
                 params: Sequence[Any] = ()) -> Batches:
        """The rows of `select ... <tail>`: in bulk those without a very large value, then the others a few at a time.

        ADBC infers a column's type from the first batch; a first row of typed constants settles it (libraries.md §5).
        """
        parts = list(zip(table.schema, table.source_types, strict=True))
        wide = " or ".join(f"octet_length({quote(f.name)}) > {WIDE_BYTES}" for f, declared in parts if _may_be_wide(f, declared))
        odd = " or ".join(_MISFIT["binary"].format(c=quote(f.name)) for f in table.schema if pa.types.is_binary(f.type))
        columns = [_exact(f, declared) for f, declared in parts]
        batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES // (self._row_bytes.get(table.name, 1024) + 1)))
        if not wide:
            yield from self._batches(connection, table, columns, "", tail, params, batch_rows)
            return
        bulk = [f"case when octet_length({quote(f.name)}) <= {WIDE_BYTES} then {c} end" if _may_be_wide(f, declared) else c
                for (f, declared), c in zip(parts, columns, strict=True)]
        mark = f"case {f'when {odd} then 2' if odd else ''} when {wide} then 1 else 0 end"
        found = 0
        for batch in self._batches(connection, table, bulk, mark, tail, params, batch_rows):
            marks = batch.column(batch.num_columns - 1)
            rows = batch.select(list(range(batch.num_columns - 1)))
            highest = pc.max(marks).as_py()
            if highest == 2:                       # the driver would hand out the text of a number as if it were a BLOB
                raise self._explain(connection, table, tail, params, TypeError("mismatch"))
            found += highest
            yield cast_batch(rows.filter(pc.equal(marks, 0)) if highest else rows, table)
        if found:
            source = f"(select * {tail}) where ({wide})"
            length = "+".join(f"coalesce(octet_length({quote(f.name)}),0)" for f in table.schema)
            [(largest,)] = self.run(connection, f"select max({length}) from {source}", params)
            yield from self._batches(connection, table, columns, "", f"from {source}", params, max(1, BATCH_BYTES // largest))

    def _batches(self, connection, table: Table, columns: list[str], mark: str, tail: str, params: Sequence[Any],
                 batch_rows: int) -> Batches:
        """Batches of the table's schema; with a `mark` (an integer per row) as the driver hands them out, the mark last."""
        typed = ",".join(f"{_sentinel(f.type)} {quote(f.name)}" for f in table.schema) + (", 0" if mark else "")
        selected = ",".join([*columns, mark] if mark else columns)
        with connection.cursor() as cursor:
            cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": batch_rows})
            with _told(self.path, table.name):
                cursor.execute(f"select {typed} union all select {selected} {tail}", list(params) or None)
                reader = cursor.fetch_record_batch()
            first = True
            while True:
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    return
                except (adbc_driver_manager.Error, pa.ArrowException, OSError) as error:
                    raise self._explain(connection, table, tail, params, error) from None
                if first:
                    batch, first = batch.slice(1), False
                if batch.num_rows:
                    yield batch if mark else cast_batch(batch, table)
                del batch                          # before the next one is read: it may be one value of 50 MB

    def _explain(self, connection, table: Table, tail: str, params: Sequence[Any], error: Exception) -> Exception:
        """The driver names a column's number at most: find the row whose value is not of its column's storage class."""
        text = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ").removeprefix("[SQLite] ")
        if "mismatch" not in text and "Mismatch" not in text:
            if "locked" in text or "busy" in text:
                return Transient(f"{table.name}: {text}")
            return CopyError(f"{table.name}: {text}", hint=_DAMAGED if "malformed" in text else "")
        keys = ",".join(map(quote, table.key)) or "rowid"            # only a table with a key may be without rowid
        for field in table.schema:
            misfit = _MISFIT.get(str(field.type), "0").format(c=quote(field.name))
            hit = self.run(connection, f"select typeof({quote(field.name)}), {keys} {tail} and ({misfit}) limit 1", params)
            if hit:
                kind, *key = hit[0]
                return ValueRefused(
                    f"{table.name}.{field.name}, {'key' if table.key else 'rowid'} {tuple(key)}: the cell holds a value of type "
                    f"{kind}, the column moves as {field.type}",
                    hint="correct the row at the source; SQLite does not check the types of its columns")
        return CopyError(f"{table.name}: {text}")

    # -------------------------------------------------------------- connections

    @contextmanager
    def connection(self) -> Iterator[adbc.Connection]:
        """A pooled connection in autocommit mode. One that saw an error is closed, not given back."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._connect()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            self._idle.append(connection)

    def _connect(self) -> adbc.Connection:
        with _told(self.path, ""):
            connection = adbc.connect(f"file:{url_quote(str(self.path))}?mode={'ro' if self.read_only else 'rw'}", autocommit=True)
            try:
                self.run(connection, f"pragma busy_timeout={BUSY_MS}")
                self.run(connection, "select count(*) from sqlite_schema")
            except CopyError as error:
                connection.close()
                raise SetupError(error.message, hint=error.hint) from None
            except BaseException:
                connection.close()
                raise
        return connection

    def query(self, sql: str, params: Sequence[Any] = ()) -> list[tuple]:
        """All rows of a small query."""
        with self.connection() as connection:
            return self.run(connection, sql, params)

    def run(self, connection: adbc.Connection, sql: str, params: Sequence[Any] = ()) -> list[tuple]:
        with _told(self.path, ""), connection.cursor() as cursor:
            cursor.execute(sql, list(params) or None)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def writing(self) -> Iterator[Callable[..., list[tuple]]]:
        """Runs statements inside `begin immediate` of one connection; committed when the block ends."""
        with self.connection() as connection:
            self.run(connection, "begin immediate")
            try:
                yield lambda sql, *params: self.run(connection, sql, params)
                self.run(connection, "commit")
            except BaseException:
                with suppress(SkyliftError):       # some errors have rolled back already
                    self.run(connection, "rollback")
                raise

    def close(self) -> None:
        with self._lock:
            while self._idle:
                self._idle.pop().close()

    def _has_integer_key(self, table: Table) -> bool:
        return len(table.key) == 1 and table.source_types[table.schema.get_field_index(table.key[0])].upper() == "INTEGER"


def affinity(declared: str) -> str:
    declared = declared.upper()
    return next((kind for word, kind in _AFFINITY if word in declared), "NUMERIC" if declared else "BLOB")


def arrow_type(declared: str) -> pa.DataType:
    for pattern, make in _DECLARED:
        if match := pattern.match(declared.strip().upper()):
            return make(match)
    return _BY_AFFINITY[affinity(declared)]


def _exact(field: pa.Field, declared: str) -> str:
    """The select expression that loses nothing: a REAL becomes text with 15 digits if that is it exactly, else with 17."""
    column = quote(field.name)
    if not declared and pa.types.is_floating(field.type):   # an integer that a double cannot hold becomes a BLOB, which is refused
        return f"case when typeof({column}) = 'integer' and abs({column} / 2) >= {2**52} then x'' else {column} end"
    if affinity(declared) != "NUMERIC" or not (pa.types.is_string(field.type) or pa.types.is_decimal(field.type)):
        return column
    return (f"case when typeof({column}) <> 'real' then {column} when cast(cast({column} as text) as real) = {column} "
            f"then cast({column} as text) else printf('%!.17g', {column}) end")


def _sentinel(kind: pa.DataType) -> str:
    return {"int64": "0", "double": "0.0", "binary": "x''"}.get(str(kind), "''")


def _may_be_wide(field: pa.Field, declared: str) -> bool:
    """Columns without a declared length. (SQLite does not enforce a declared one, but applications do.)"""
    return (pa.types.is_binary(field.type) or pa.types.is_string(field.type)) and "(" not in declared


def _key_range_sql(key: Sequence[str], keys: KeyRange) -> tuple[str, list[Any]]:
    """Row-value comparison: https://www.sqlite.org/rowvalue.html"""
    columns = "(" + ",".join(map(quote, key)) + ")"
    marks = "(" + ",".join("?" * len(key)) + ")"
    parts = ["1"]
    params: list[Any] = []
    for bound, sign in ((keys.lo, ">="), (keys.hi, "<")):
        if bound is not None:
            parts.append(f"{columns} {sign} {marks}")
            params += bound
    return " and ".join(parts), params


def _ranges(bounds: list[tuple[Any, ...]]) -> list[KeyRange]:
    return [KeyRange(lo, hi) for lo, hi in zip([None, *bounds], [*bounds, None], strict=True)]


@contextmanager
def _told(path: Path, table: str) -> Iterator[None]:
    """The driver's errors as ours: a lock is transient, everything else says which file and table."""
    try:
        yield
    except adbc_driver_manager.Error as error:
        where = f"{path}{': ' + table if table else ''}"
        text = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ").removeprefix("[SQLite] ")
        if "locked" in text or "busy" in text:
            raise Transient(f"{where}: the database is locked by another program", hint="it is tried again") from None
        if "malformed" in text:
            raise CopyError(f"{where}: {text}", hint=_DAMAGED) from None
        if "not a database" in text or "unable to open" in text or "readonly" in text:
            raise SetupError(f"{where}: {text}", hint="check that the file is an undamaged SQLite database that skylift may "
                             "write its change log to, or add ?mode=ro") from None
        raise CopyError(f"{where}: {text}") from None
