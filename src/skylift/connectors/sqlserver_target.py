"""SQL Server and Azure SQL as a target.

A company is a schema, made when its first table is; what companies share is in `dbo`. Text is Unicode and keeps the collation of the
database, so that what users compare and join behaves as elsewhere in it; where skylift itself looks rows up by their keys it compares
exactly, whatever the collation. The primary key is built when the rows are there; where the collation takes two keys for one, or
a key is longer than an index allows, the table goes without.

Rows are loaded by bulk copy on connections of their own (sqlserver_bulk.py). A table that a transaction makes is loaded under a
hidden name, committed as it comes, and takes its place when the transaction commits; chunks of a large table and their ledger row
are one transaction; rows that go into a table in use pass through a hidden one. What a killed transaction leaves is named
`_skylift_tmp_*` and is dropped when the next run begins.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pyarrow as pa
from sqlalchemy.engine import URL

from skylift.connectors import Batches, CopyPlan, Hashes, TableState, Target
from skylift.connectors.ledger import STATES, digest_of, mark_of, mark_text, states_of
from skylift.connectors.pooling import Pool
from skylift.connectors.sql import quote
from skylift.connectors.sqlserver import (
    DEFAULT_SCHEMA,
    MAX_NAME_BYTES,
    ServerError,
    Session,
    alive,
    granted_user,
    literal,
    login_script,
    look,
    where,
)
from skylift.connectors.sqlserver_bulk import Loader, fit
from skylift.connectors.sqlserver_ddl import (
    column_list,
    column_name,
    column_types,
    create_sql,
    declared_types,
    give_way,
    key_sql,
    swap,
    table_sql,
)
from skylift.connectors.sqlserver_lock import locked_for, trigger_sql
from skylift.connectors.sqlserver_rows import read_rows
from skylift.errors import CopyError, SetupError, SkyliftError, TargetFailed, Transient
from skylift.losses import Losses
from skylift.model import ARROW, Digest, Table, TargetName

CHUNK_ROWS = 131_072              # above 102,400 rows a bulk copy into a columnstore is compressed at once
HIDDEN = "_skylift_tmp_"
STATES_AT_ONCE = 100              # of finished tables are written in one statement
ROW_BYTES = 1024                  # assumed of a row that is read back
_NO_KEY = {1505, 1944, 1946}      # numbers of the errors about keys that are not unique in the collation, or too long for an index
_DUPLICATE = {2601, 2627}

# Without these nothing can be copied: right, what it is on, and what is to be granted. CREATE SCHEMA is asked for when it is needed.
_RIGHTS = (("CREATE TABLE", "db_name()", "DATABASE", "create table"), ("ALTER", "'dbo'", "SCHEMA", "alter on schema::dbo"),
           ("SELECT", "'dbo'", "SCHEMA", "select on schema::dbo"), ("INSERT", "'dbo'", "SCHEMA", "insert on schema::dbo"),
           ("DELETE", "'dbo'", "SCHEMA", "delete on schema::dbo"))

_NAMES = "nvarchar(128) collate Latin1_General_100_BIN2 not null"
_LEDGER = {
    "_skylift_tables": """rows bigint, digest varchar(32), watermark nvarchar(400), columns nvarchar(max),
        copied_at datetime2(3) default sysutcdatetime(), primary key (schema_name, table_name)""",
    "_skylift_copies": """copy_id nvarchar(64), watermark nvarchar(400), ranges nvarchar(max), key_columns nvarchar(max),
        primary key (schema_name, table_name)""",
    "_skylift_ledger": """copy_id nvarchar(64) not null, chunk_id int not null, rows bigint, digest varchar(32),
        loaded_at datetime2(3) default sysutcdatetime(), primary key (schema_name, table_name, copy_id, chunk_id)""",
}


def open_target(url: URL) -> Target:
    """The database at `url`, with its ledger. Raises SetupError naming what is wrong or which right is missing."""
    return SqlServerTarget(url)


def grants(url: URL) -> str:
    user = granted_user(url)
    return f"""{login_script(url)}-- companies become schemas, what they share and the ledger lie in dbo:
grant create schema to {user};
""" + "".join(f"grant {grant} to {user};\n" for *_, grant in _RIGHTS)


class SqlServerTarget:
    max_name_bytes = MAX_NAME_BYTES
    chunk_rows = CHUNK_ROWS
    formats: Container[str] = (ARROW,)
    dialect = "mssql"
    holds_values = False
    hashes: Hashes | None = None

    def __init__(self, url: URL, *, ledger: bool = True) -> None:
        """`ledger`: it is made where it is missing."""
        self.url = url
        self.losses = Losses()
        self.making_schemas = threading.Lock()
        self.locked_for = ""                       # sqlserver_lock.py
        self.sessions: Pool[Session] = Pool(lambda: Session(url), TargetFailed, alive)
        with self.sessions.connection() as session:
            self.genuine = look(session, url).genuine
            if ledger:
                _make_ledger(session, url)
                self.locked_for = locked_for(session)
        self.loaders: Pool[Loader] = Pool(self._loader, TargetFailed, alive)

    def _loader(self) -> Loader:
        with self.sessions.connection() as session:
            return Loader(session)

    def declares(self, table: Table) -> dict[str, str]:
        return column_types(table, self.genuine)

    def fit(self, batch: pa.RecordBatch, table: Table) -> pa.RecordBatch:
        return fit(batch, table, self.losses)

    @contextmanager
    def transaction(self) -> Iterator[SqlServerTransaction]:
        transaction = SqlServerTransaction(self)
        try:
            yield transaction
            transaction.commit()
        except BaseException:
            transaction.roll_back()
            raise

    def states(self) -> dict[TargetName, TableState]:
        return states_of(self._rows(f"select {STATES} from dbo._skylift_tables"))

    def copies(self, copy_id: str) -> dict[TargetName, CopyPlan]:
        rows = self._rows("select schema_name, table_name, watermark, ranges from dbo._skylift_copies where copy_id = ?", copy_id)
        return {TargetName(schema, table): CopyPlan(mark_of(mark), ranges) for schema, table, mark, ranges in rows}

    def chunks_done(self, build: TargetName, copy_id: str) -> dict[int, Digest]:
        rows = self._rows("select chunk_id, rows, digest from dbo._skylift_ledger where schema_name = ? and table_name = ? and copy_id = ?",
                          build.schema, build.table, copy_id)
        return {chunk: digest_of(count, digest) for chunk, count, digest in rows}

    def read_parts(self, name: TargetName, table: Table, parts: int) -> list[Batches]:
        return [self._part(name, table)]           # the driver makes Arrow of rows one thread at a time

    def _part(self, name: TargetName, table: Table) -> Batches:
        with self.sessions.connection() as session:
            self.build_key(session, name)          # of a table whose rows have all arrived: what follows finds them by it
            yield from _read(session, name, table)

    def build_key(self, session: Session, build: TargetName) -> None:
        """Give a large table that is being built its primary key, unless it has it. One that cannot have it goes without."""
        found = session.run("select key_columns from dbo._skylift_copies where schema_name = ? and table_name = ? and not exists "
                            "(select 1 from sys.tables o join sys.indexes i on i.object_id = o.object_id where i.is_primary_key = 1 "
                            "and o.schema_id = schema_id(?) and o.name = ?)",
                            build.schema, build.table, build.schema or DEFAULT_SCHEMA, build.table)
        for (key,) in found:
            if columns := json.loads(key):
                _add_keys(session, [key_sql(build, declared_types(session, build), columns, f"PK{build.table}_{secrets.token_hex(4)}")])

    def discard_copies(self, keep: str) -> None:
        for schema, table in self._rows("select schema_name, table_name from dbo._skylift_copies where copy_id <> ?", keep):
            with self.transaction() as transaction:
                transaction.drop(TargetName(schema, table))
        left = self._rows(f"select schema_name(schema_id), name from sys.tables where name like '{HIDDEN.replace('_', '[_]')}%'")
        self.drop_now([TargetName(schema, table) for schema, table in left])

    def drop_now(self, names: Iterable[TargetName]) -> None:
        """Drop hidden tables, outside of any transaction."""
        if dropped := "; ".join(f"drop table if exists {table_sql(name)}" for name in names):
            self._rows(dropped)

    def _rows(self, sql: str, *params: Any) -> list[tuple]:
        with self.sessions.connection() as session:
            return session.run(sql, *params)

    def close(self) -> None:
        self.loaders.close()
        self.sessions.close()


class SqlServerTransaction:
    """Begins on the first statement that needs it: on a session, or for a chunk alone on a loader."""

    def __init__(self, target: SqlServerTarget) -> None:
        self._target = target
        self._token = secrets.token_hex(6)
        self._hidden: list[TargetName] = []        # everything that was made under a hidden name
        self._made: dict[TargetName, tuple[TargetName, Table]] = {}    # to take its place: hidden name, table
        self._waiting: list[str] = []              # statements that make hidden tables
        self._dropped: list[TargetName] = []
        self._builds: set[TargetName] = set()      # of the made ones those that are to take another's place once they are whole
        self._keyed: set[TargetName] = set()       # of the made ones those that have their primary key
        self._touched: set[TargetName] = set()     # tables that the session has changed, and so locked
        self._session_block: Any = None
        self._session: Session | None = None       # in a transaction
        self._loader_block: Any = None
        self._loader: Loader | None = None         # in a transaction, of chunks only
        self._before: dict[int, TargetName] | None = None              # the tables that were there before steps of an upgrade
        self._keys: tuple[pa.Table, TargetName] | None = None          # the last keys that were sent, and the hidden table with them

    # -------------------------------------------------------------- tables

    def create(self, name: TargetName, table: Table) -> None:
        hidden = self._new_name(name.schema)
        self._waiting.append(create_sql(hidden, table, self._target.genuine))
        self._made[name] = hidden, table

    def drop(self, name: TargetName) -> None:
        self._made.pop(name, None)
        self._dropped.append(name)
        self._forget(name, *_LEDGER)

    def swap(self, build: TargetName, name: TargetName) -> None:
        session = self._begun()
        if build not in self._touched:
            with self._target.sessions.connection() as other:
                self._target.build_key(other, build)
        swap(session, {name: build}, self._target.genuine, self._locks([name]))

    def _locks(self, names: Iterable[TargetName]) -> list[str]:
        return trigger_sql(names, self._target.locked_for) if self._target.locked_for else []

    # -------------------------------------------------------------- rows

    def insert(self, name: TargetName, table: Table, batches: Iterable[pa.RecordBatch]) -> None:
        self._flush()
        stands = self._stands(name)
        if name in self._made and name not in self._touched:
            self._load(stands, table, batches)
        elif self._session is None:                # a chunk: it has a transaction to itself
            if self._loader is None:
                self._loader_block = self._target.loaders.connection()
                self._loader = self._loader_block.__enter__()
                self._loader.run("begin transaction")
            self._loader.load(table_sql(stands), table, batches)
        else:
            staged, columns = self._new_name(name.schema), column_list(table.schema.names)
            self._now(f"select top (0) {columns} into {table_sql(staged)} from {table_sql(stands)}")
            self._load(staged, table, batches)
            self._touched.add(name)
            self._run(f"insert into {table_sql(stands)} ({columns}) select {columns} from {table_sql(staged)}", table=table.path)

    def delete(self, name: TargetName, keys: pa.Table) -> None:
        if len(keys):
            matches = self._with_keys(name, keys)
            self._touched.add(name)
            self._run(f"delete r from {table_sql(self._stands(name))} as r join {matches}")

    def read(self, name: TargetName, table: Table, keys: pa.Table | None = None) -> Batches:
        if keys is not None and not len(keys):
            return
        self._flush()
        self._build_keys()
        session, made = self._begun(), column_types(self._made[name][1], self._target.genuine) if name in self._made else None
        yield from _read(session, self._stands(name), table, "" if keys is None else f"join {self._with_keys(name, keys)}", made)

    def count(self, name: TargetName) -> int:
        return self._run(f"select count_big(*) from {table_sql(self._stands(name))}")[0][0]

    def _stands(self, name: TargetName) -> TargetName:
        """Under which name the table stands until the transaction commits."""
        return self._made[name][0] if name in self._made else name

    # -------------------------------------------------------------- upgrade steps

    def execute(self, sql: str, params: Sequence[Any] = (), limit_s: float = 0) -> list[tuple]:
        if self._target.locked_for and self._before is None:
            self._before = self._user_tables()
        with self._begun().limited(limit_s):
            return self._run(sql, *params)

    def _user_tables(self) -> dict[int, TargetName]:
        """By their object ids."""
        return {number: TargetName(schema, table) for number, schema, table in self._run(
            "select object_id, schema_name(schema_id), name from sys.tables where name not like '[_]skylift[_]%'")}

    def standing(self, schema: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for table, column in self._run("select o.name, c.name from sys.tables o join sys.columns c on c.object_id = o.object_id "
                                       "where schema_name(o.schema_id) = ? order by o.name, c.column_id", schema or DEFAULT_SCHEMA):
            found.setdefault(table, []).append(column)
        return found

    def table_sql(self, name: TargetName) -> str:
        return table_sql(name)

    def column_sql(self, column: str) -> str:
        return quote(column_name(column))

    # -------------------------------------------------------------- ledger

    def begin_copy(self, build: TargetName, name: TargetName, copy_id: str, plan: CopyPlan) -> None:
        give_way(self._begun(), [name], self._target.genuine)
        self._builds.add(build)
        _, table = self._made[build]
        self._made[build] = self._made[build][0], replace(table, key=())        # its key is built when the rows are there
        self._run("insert into dbo._skylift_copies (schema_name, table_name, copy_id, watermark, ranges, key_columns) "
                  "values (?, ?, ?, ?, ?, ?)", build.schema, build.table, copy_id, mark_text(plan.watermark), plan.ranges,
                  json.dumps([*map(column_name, table.key)]))

    def chunk_done(self, build: TargetName, copy_id: str, chunk: int, digest: Digest) -> None:
        row = ("insert into dbo._skylift_ledger (schema_name, table_name, copy_id, chunk_id, rows, digest) values "
               f"({literal(build.schema)}, {literal(build.table)}, {literal(copy_id)}, {int(chunk)}, {int(digest.rows)}, '{digest}')")
        try:
            if self._loader:
                self._loader.run(row)
            else:
                self._run(row)
        except ServerError as error:
            if error.number in _DUPLICATE:         # by a connection that was given up for lost, and was not
                raise Transient(f"{build}: chunk {chunk} has arrived by another connection", hint="it is looked up again") from None
            raise

    def end_copy(self, build: TargetName) -> None:
        self._forget(build, "_skylift_copies", "_skylift_ledger")

    def set_states(self, states: Mapping[TargetName, TableState]) -> None:
        every = list(states.items())
        for some in (every[i:i + STATES_AT_ONCE] for i in range(0, len(every), STATES_AT_ONCE)):
            names = ", ".join(["(?, ?)"] * len(some))
            self._run(f"delete t from dbo._skylift_tables as t join (values {names}) as s (a, b) "
                      "on t.schema_name = s.a and t.table_name = s.b", *(part for name, _ in some for part in (name.schema, name.table)))
            self._run("insert into dbo._skylift_tables (schema_name, table_name, rows, digest, watermark, columns) values "
                      + ", ".join(["(?, ?, ?, ?, ?, ?)"] * len(some)),
                      *(part for name, state in some for part in (name.schema, name.table, state.digest.rows, str(state.digest),
                                                                  mark_text(state.watermark), state.columns)))

    def _forget(self, name: TargetName, *ledgers: str) -> None:
        for ledger in ledgers:
            self._run(f"delete from dbo.{ledger} where schema_name = ? and table_name = ?", name.schema, name.table)

    # -------------------------------------------------------------- ending

    def commit(self) -> None:
        self._flush()
        self._build_keys()
        for name in self._dropped:
            if name not in self._made:
                self._run(f"drop table if exists {table_sql(name)}")
        if self._made:
            swap(self._begun(), {name: hidden for name, (hidden, _) in self._made.items()}, self._target.genuine,
                 self._locks(self._made.keys() - self._builds))
        if self._before is not None:
            made = [name for number, name in self._user_tables().items() if number not in self._before and name not in self._made]
            self._run("; ".join(["select 1", *self._locks(made)]))
        try:
            if self._loader:
                self._loader.run("commit transaction")
            if self._session:
                self._session.run("commit transaction")
        except Transient as error:
            raise Transient(f"{where(self._target.url)}: the connection was lost while a transaction was committed", code="CommitUnknown",
                            hint="what has arrived is read from the ledger; it is tried again") from error
        self._end(None)
        self._clean_up()

    def roll_back(self) -> None:
        self._end(SkyliftError("rolled back"))     # a connection in a transaction is closed, which ends it
        self._clean_up()

    def _end(self, error: BaseException | None) -> None:
        for block in (self._loader_block, self._session_block):
            if block is not None:
                with suppress(SkyliftError):
                    block.__exit__(type(error) if error else None, error, None)
        self._loader_block = self._session_block = self._loader = self._session = None

    def _clean_up(self) -> None:
        hidden, self._hidden = self._hidden, []
        with suppress(SkyliftError):               # what is left is dropped when the next run begins
            self._target.drop_now(hidden)

    # -------------------------------------------------------------- plumbing

    def _new_name(self, schema: str) -> TargetName:
        name = TargetName(schema, f"{HIDDEN}{self._token}_{len(self._hidden)}")
        self._hidden.append(name)
        return name

    def _flush(self) -> None:
        """Make the hidden tables that wait, in one round trip, committed at once; and the schemas that they go to."""
        if not self._waiting:
            return
        with self._target.making_schemas, self._target.sessions.connection() as session:
            for schema in sorted({name.schema or DEFAULT_SCHEMA for name in self._hidden}):
                if session.run("select schema_id(?)", schema) == [(None,)]:
                    session.run(f"create schema {quote(schema)}")
        waiting, self._waiting = self._waiting, []
        self._now("; ".join(waiting))

    def _now(self, sql: str) -> None:
        """On a connection of its own, committed at once."""
        with self._target.sessions.connection() as session:
            session.run(sql)

    def _load(self, hidden: TargetName, table: Table, batches: Iterable[pa.RecordBatch]) -> None:
        with self._target.loaders.connection() as loader:
            loader.load(table_sql(hidden), table, batches)

    def _begun(self) -> Session:
        if self._session is None:
            assert self._loader is None, "a chunk has a transaction to itself"
            self._session_block = self._target.sessions.connection()
            self._session = self._session_block.__enter__()
            self._session.run("begin transaction")
        return self._session

    def _run(self, sql: str, *params: Any, table: str = "") -> list[tuple]:
        return self._begun().run(sql, *params, table=table)

    def _build_keys(self) -> None:
        """The primary keys of the tables that this transaction makes; nobody sees them yet."""
        waiting = {name: made for name, made in self._made.items() if made[1].key and name not in self._keyed | self._touched}
        if waiting:
            statements = [key_sql(hidden, column_types(table), [*map(column_name, table.key)], f"PK_{name.table[:100]}_{self._token}")
                          for name, (hidden, table) in waiting.items()]
            with self._target.sessions.connection() as session:
                _add_keys(session, statements)
            self._keyed |= waiting.keys()

    def _with_keys(self, name: TargetName, keys: pa.Table) -> str:
        """`<hidden table with these keys> as k on <they match>`; what has been sent last is not sent again."""
        self._begun()
        stands, columns = self._stands(name), [column_name(column) for column in keys.column_names]
        if self._keys is None or self._keys[0] is not keys:
            hidden = self._new_name(name.schema)
            named = ", ".join(f"{quote(column)} as _skylift_k{i}" for i, column in enumerate(columns))
            self._now(f"select top (0) {named} into {table_sql(hidden)} from {table_sql(stands)}")
            self._load(hidden, Table(str(name), keys.schema), keys.to_batches())
            self._keys = keys, hidden
        matches = " and ".join(_same(f"r.{quote(column)}", f"k._skylift_k{i}", field.type)
                               for i, (column, field) in enumerate(zip(columns, keys.schema, strict=True)))
        return f"{table_sql(self._keys[1])} as k on {matches}"


def _same(one: str, other: str, kind: pa.DataType) -> str:
    """Exactly the same value: `=` alone follows the collation, and pads with blanks, or binary values with zeros, to compare."""
    if pa.types.is_string(kind):
        return (f"{one} = {other} and datalength({one}) = datalength({other}) "
                f"and {one} collate Latin1_General_100_BIN2 = {other} collate Latin1_General_100_BIN2")
    return f"{one} = {other} and datalength({one}) = datalength({other})" if pa.types.is_binary(kind) else f"{one} = {other}"


def _add_keys(session: Session, statements: list[str]) -> None:
    """In one round trip; where one of the tables cannot have its key, each for itself."""
    try:
        session.run("; ".join(statements))
    except ServerError as error:
        if error.number not in _NO_KEY:
            raise
        for statement in statements if len(statements) > 1 else ():
            with suppress(ServerError):
                session.run(statement)


def _read(session: Session, name: TargetName, table: Table, tail: str = "", made: Mapping[str, str] | None = None) -> Batches:
    """The rows of a table as the types of `table.schema`, whatever its columns were made as; `made`: their types, where they are known."""
    standing_types = dict(made) if made else declared_types(session, name)
    declared = {name.lower(): kind for name, kind in standing_types.items()} | standing_types    # some servers keep no capitals
    columns = [column_name(field.name) for field in table.schema]
    declared |= {column: declared[column.lower()] for column in columns if column not in declared and column.lower() in declared}
    for column in columns:
        if column not in declared:
            raise CopyError(f"{table.path}.{column}: the target's column is gone", hint="copy the table afresh: skylift run --kind full")
    # Without a key: the collation may take two keys for one, so rows with long values are found by their length.
    standing = Table(table.path, pa.schema([field.with_name(column) for field, column in zip(table.schema, columns, strict=True)]),
                     source_types=tuple(declared[column] for column in columns))
    for batch in read_rows(session, standing, table_sql(name), f"from {table_sql(name)} as r {tail or 'where 1 = 1'}", (), ROW_BYTES):
        yield pa.RecordBatch.from_arrays(batch.columns, schema=table.schema)


def lacking(session: Session, url: URL, *, schemas: bool = False) -> Iterator[tuple[str, str]]:
    """Which rights the user lacks, in words, each with the statement that grants it; with `schemas` that to make schemas too."""
    for right, on, scope, grant in (*_RIGHTS, *([("CREATE SCHEMA", "db_name()", "DATABASE", "create schema")] if schemas else [])):
        if session.run(f"select has_perms_by_name({on}, '{scope}', '{right}')") == [(0,)]:
            yield (f"user '{url.username or ''}' lacks the right {right} on the {scope.lower()}",
                   f"grant {grant} to {quote(url.username or '')}")


def _make_ledger(session: Session, url: URL) -> None:
    """The ledger's tables where they are not yet. Raises SetupError naming the right that is missing."""
    for text, grant in lacking(session, url):
        raise SetupError(f"{where(url)}: {text}", code="Permission", hint=grant)
    try:
        found = session.run("select name from sys.tables where schema_id = schema_id('dbo') and name like '[_]skylift%'")
        for name in _LEDGER.keys() - {name for (name,) in found}:
            session.run(f"create table dbo.{name} (schema_name {_NAMES}, table_name {_NAMES}, {_LEDGER[name]})")
        session.run("select top (0) 1 from dbo._skylift_tables")
    except CopyError as error:
        raise SetupError(error.message, hint=error.hint, code=error.code) from None
