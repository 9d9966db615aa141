"""PostgreSQL as a target. Rows travel as binary COPY; rows and their ledger row are committed together.

A company is a schema, made when its first table is; what companies share is in `public`. A table is replaced by dropping the old one:
its grants, further indexes and constraints are made again, and where views, foreign keys, triggers or the like hang on it, it is
refused by name (postgres_ddl.py). The primary key is built when the rows are there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import errors as pg
from sqlalchemy.engine import URL

from skylift.connectors import Batches, CopyPlan, Hashes, TableState, Target
from skylift.connectors.casting import cast_batch
from skylift.connectors.ledger import STATES, digest_of, mark_of, mark_text, states_of
from skylift.connectors.postgres import (
    DEFAULT_SCHEMA,
    MAX_NAME_BYTES,
    PG_BINARY,
    Connection,
    arrow_type,
    column_name,
    is_lost,
    pool,
    selected,
    told,
    where,
)
from skylift.connectors.postgres_binary import Decoder
from skylift.connectors.postgres_ddl import column_list, create_sql, declares, give_way, key_sql, missing_schemas, table_sql
from skylift.connectors.postgres_hashes import PostgresHashes
from skylift.connectors.postgres_load import copy_in, fit, held, on_the_wire
from skylift.connectors.postgres_lock import is_locked, trigger_sql
from skylift.connectors.postgres_receive import copy_out
from skylift.connectors.sql import fit as cut
from skylift.connectors.sql import quote
from skylift.errors import CopyError, SetupError, TargetFailed, Transient
from skylift.losses import Losses
from skylift.model import ARROW, Digest, Table, TargetName

CHUNK_ROWS = 131_072
PART_BYTES = 4 * 2**20             # of a table, that are worth a thread of their own when it is read back
_LOCK = 0x736B796C696674           # 'skylift': of the advisory lock under which the ledger is made

_LEDGER = """
create table if not exists public._skylift_tables (schema_name text, table_name text, rows bigint, digest text, watermark text,
    columns text, copied_at timestamptz default now(), primary key (schema_name, table_name));
create table if not exists public._skylift_copies (schema_name text, table_name text, copy_id text, watermark text, ranges text,
    key_columns text[], primary key (schema_name, table_name));
create table if not exists public._skylift_ledger (schema_name text, table_name text, copy_id text, chunk_id integer, rows bigint,
    digest text, loaded_at timestamptz default now(), primary key (schema_name, table_name, copy_id, chunk_id));
"""
_LEDGERS = ("_skylift_tables", "_skylift_copies", "_skylift_ledger")


def open_target(url: URL) -> Target:
    """The database at `url`, with its ledger. Raises SetupError naming what is wrong or which right is missing."""
    target = PostgresTarget(url)
    try:
        target.prepare()
    except BaseException:
        target.close()
        raise
    return target


def ledger_tables(connection: Connection) -> dict[str, bool]:
    return {name: bool(connection.execute("select to_regclass(%s)", [f"public.{name}"]).fetchall()[0][0]) for name in _LEDGERS}


def lacking(connection: Connection, database: str, user: str) -> Iterator[tuple[str, str]]:
    """The rights without which nothing can be copied, each with the statement that grants it."""
    asked = [("database", quote(database), "temporary", "has_database_privilege(current_database(), 'temporary')"),
             ("schema", "public", "usage", "has_schema_privilege('public', 'usage')")]
    there = ledger_tables(connection) if connection.execute(f"select {asked[1][3]}").fetchall()[0][0] else {}
    if not all(there.values()):
        asked.append(("schema", "public", "create", "has_schema_privilege('public', 'create')"))
    asked += [("table", f"public.{name}", right, f"has_table_privilege('public.{name}', '{right}')")
              for name, exists in there.items() if exists for right in ("select", "insert", "update", "delete")]
    for kind, name, right, test in asked:
        if not connection.execute(f"select {test}").fetchall()[0][0]:
            yield f"{right.upper()} on {kind} {name}", f"grant {right} on {kind} {name} to {quote(user)}"


def grants(url: URL) -> str:
    user, database = quote(url.username or "skylift"), quote(url.database or "")
    return f"""-- in the database {database}, by an administrator of it
create role {user} login password '<password>';
-- companies become schemas, what they share and the ledger lie in public:
grant connect, create, temporary on database {database} to {user};
grant usage, create on schema public to {user};
"""


class PostgresTarget:
    """One database; every transaction runs on a pooled connection of its own."""

    max_name_bytes = MAX_NAME_BYTES
    chunk_rows = CHUNK_ROWS
    formats: Container[str] = (ARROW, PG_BINARY)
    dialect = "postgresql"
    holds_values = False
    hashes: Hashes | None
    losses: Losses

    def __init__(self, url: URL) -> None:
        self.url = url
        self._connections = pool(url, TargetFailed)
        self.making_schemas = threading.Lock()
        self.locked = False                        # postgres_lock.py
        self.hashes = PostgresHashes(self)
        self.version = 0                           # of the server, as libpq has it

    def prepare(self) -> None:
        """The ledger is made if it is not there."""
        with self._connections.connection() as connection, told(self.url):
            database, user, read_only = connection.execute("select current_database(), current_user, pg_is_in_recovery()"
                                                           " or current_setting('transaction_read_only')::bool").fetchall()[0]
            if read_only:
                raise SetupError(f"{where(self.url)}: it is read-only", code="ReadOnly",
                                 hint="name the primary server, and see default_transaction_read_only of database and role")
            for right, grant in lacking(connection, database, user):
                raise SetupError(f"{where(self.url)}: user '{user}' lacks the right {right}", hint=grant, code="Permission")
            with connection.transaction():
                connection.execute("select pg_advisory_xact_lock(%s)", [_LOCK])
                if not all(ledger_tables(connection).values()):
                    connection.execute(_LEDGER)
            self.locked = is_locked(connection)
            self.version = connection.info.server_version

    def declares(self, table: Table) -> dict[str, str]:
        return declares(table)

    def fit(self, batch: pa.RecordBatch, table: Table) -> pa.RecordBatch:
        return batch if table.format != ARROW else fit(batch, table, self.losses)

    @contextmanager
    def transaction(self) -> Iterator[PostgresTransaction]:
        with self._connections.connection() as connection, told(self.url):
            transaction = PostgresTransaction(self, connection)
            yield transaction
            transaction.commit()

    def states(self) -> dict[TargetName, TableState]:
        return states_of(self.rows(f"select {STATES} from public._skylift_tables"))

    def copies(self, copy_id: str) -> dict[TargetName, CopyPlan]:
        rows = self.rows("select schema_name, table_name, watermark, ranges from public._skylift_copies where copy_id = %s", copy_id)
        return {TargetName(schema, table): CopyPlan(mark_of(mark), ranges) for schema, table, mark, ranges in rows}

    def chunks_done(self, build: TargetName, copy_id: str) -> dict[int, Digest]:
        rows = self.rows("select chunk_id, rows, digest from public._skylift_ledger"
                          " where schema_name = %s and table_name = %s and copy_id = %s", build.schema, build.table, copy_id)
        return {chunk: digest_of(count, digest) for chunk, count, digest in rows}

    def read_parts(self, name: TargetName, table: Table, parts: int) -> list[Batches]:
        with self._connections.connection() as connection, told(self.url, table.path):
            columns = _columns(connection, name, table)
        if self.version < 140000:                  # cannot scan a range of pages without reading all
            parts = 1
        return [self._part(f"select {columns} from {table_sql(name)} where {where}", table)
                for where in self.page_ranges(name, lambda size: min(parts, size // PART_BYTES))]

    def page_ranges(self, name: TargetName, parts: Callable[[int], int]) -> list[str]:
        """Conditions that divide the table's rows by the pages they lie in; `parts` of its size in bytes, at least one."""
        [(size, page)] = self.rows("select pg_relation_size(%s::regclass), current_setting('block_size')::bigint", table_sql(name))
        number = max(1, parts(size))
        bounds = [size // page * i // number for i in range(1, number)]
        return [f"ctid >= '({lo},0)'" + (f" and ctid < '({hi},0)'" if hi is not None else "")
                for lo, hi in zip([0, *bounds], [*bounds, None], strict=True)]

    def _part(self, sql: str, table: Table) -> Batches:
        with self._connections.connection() as connection, told(self.url, table.path):
            yield from _decoded(copy_out(connection, sql), table)

    def discard_copies(self, keep: str) -> None:
        for schema, table in self.rows("select schema_name, table_name from public._skylift_copies where copy_id <> %s", keep):
            with self.transaction() as transaction:
                transaction.drop(TargetName(schema, table))

    def rows(self, sql: str, *params: Any) -> list[tuple]:
        with self._connections.connection() as connection, told(self.url):
            return connection.execute(sql, params).fetchall()

    def close(self) -> None:
        self._connections.close()


class PostgresTransaction:
    """Statements that make and drop tables wait for the first that needs them, and go out together in one round trip."""

    def __init__(self, target: PostgresTarget, connection: Connection) -> None:
        self._target = target
        self._connection = connection
        self._begun = False
        self._waiting: list[tuple[TargetName, Table | None]] = []   # to be dropped, and made where there is a table
        self._made: dict[TargetName, Table] = {}                    # without their keys yet
        self._restoring: list[str] = []                             # what was dropped with tables that have been replaced
        self._keys: tuple[pa.Table, str] | None = None              # the last keys that were sent, and the temporary table with them
        self._sent = 0

    def create(self, name: TargetName, table: Table) -> None:
        self._waiting.append((name, table))
        self._made[name] = table

    def drop(self, name: TargetName) -> None:
        self._waiting.append((name, None))
        self._made.pop(name, None)

    def insert(self, name: TargetName, table: Table, batches: Iterable[pa.RecordBatch]) -> None:
        self._flush()
        with told(self._target.url, table.path):
            copy_in(self._connection, f"{table_sql(name)} ({column_list(table.schema.names)})", table, batches)

    def delete(self, name: TargetName, keys: pa.Table) -> None:
        if len(keys):
            self._execute(f"delete from {table_sql(name)} using {self._with_keys(name, keys)}")

    def read(self, name: TargetName, table: Table, keys: pa.Table | None = None) -> Batches:
        self._flush()
        if keys is not None and not len(keys):
            return
        with told(self._target.url, table.path):
            made = self._made.get(name)
            columns = column_list(table.schema.names) if made and made.format == table.format else _columns(self._connection, name, table)
            source = table_sql(name) if keys is None else f"{table_sql(name)}, {self._with_keys(name, keys)}"
            yield from _decoded(copy_out(self._connection, f"select {columns} from {source}"), table)

    def count(self, name: TargetName) -> int:
        return self._execute(f"select count(*) from {table_sql(name)}").fetchall()[0][0]

    def swap(self, build: TargetName, name: TargetName) -> None:
        [(key,)] = self._execute("select key_columns from public._skylift_copies where schema_name = %s and table_name = %s",
                                 [build.schema, build.table]).fetchall()
        restoring = give_way(self._connection, [name])
        self._add_keys([key_sql(build, key)] if key else [])       # before the old table is locked
        self._run(f"drop table if exists {table_sql(name)}", f"alter table {table_sql(build)} rename to {quote(name.table)}", *restoring,
                  *(trigger_sql([name]) if self._target.locked else ()))
        better = cut(f"{name.table}_pkey", MAX_NAME_BYTES)
        for (constraint,) in self._execute("select conname from pg_constraint where conrelid = %s::regclass and contype = 'p'"
                                           " and to_regclass(%s) is null",
                                           [table_sql(name), table_sql(TargetName(name.schema, better))]).fetchall():
            self._run(f"alter table {table_sql(name)} rename constraint {quote(constraint)} to {quote(better)}")

    def begin_copy(self, build: TargetName, name: TargetName, copy_id: str, plan: CopyPlan) -> None:
        key = [column_name(k) for k in self._made.pop(build).key]
        self._flush()
        give_way(self._connection, [name])
        self._execute("insert into public._skylift_copies values (%s, %s, %s, %s, %s, %s)",
                      [build.schema, build.table, copy_id, mark_text(plan.watermark), plan.ranges, key])

    def chunk_done(self, build: TargetName, copy_id: str, chunk: int, digest: Digest) -> None:
        try:
            self._execute("insert into public._skylift_ledger (schema_name, table_name, copy_id, chunk_id, rows, digest)"
                          " values (%s, %s, %s, %s, %s, %s)", [build.schema, build.table, copy_id, chunk, digest.rows, str(digest)])
        except pg.UniqueViolation:                 # by a connection that was given up for lost, and was not
            raise Transient(f"{build}: chunk {chunk} has arrived by another connection", hint="it is looked up again") from None

    def end_copy(self, build: TargetName) -> None:
        self._forget([build], "_skylift_copies", "_skylift_ledger")

    def set_states(self, states: Mapping[TargetName, TableState]) -> None:
        self._execute("insert into public._skylift_tables (schema_name, table_name, rows, digest, watermark, columns)"
                      " select * from unnest(%s::text[], %s::text[], %s::bigint[], %s::text[], %s::text[], %s::text[])"
                      " on conflict (schema_name, table_name) do update set (rows, digest, watermark, columns, copied_at)"
                      " = (excluded.rows, excluded.digest, excluded.watermark, excluded.columns, now())",
                      [[n.schema for n in states], [n.table for n in states], [s.digest.rows for s in states.values()],
                       [str(s.digest) for s in states.values()], [mark_text(s.watermark) for s in states.values()],
                       [s.columns for s in states.values()]])

    def execute(self, sql: str, params: Sequence[Any] = (), limit_s: float = 0) -> list[tuple]:
        with told(self._target.url):
            if limit_s:
                self._execute(f"set local statement_timeout = {max(1, round(limit_s * 1000))}")
            cursor = self._execute(sql.replace("%", "%%").replace("?", "%s"), params) if params else self._execute(sql)
            rows = cursor.fetchall() if cursor.description else []
            if limit_s:
                self._run("set local statement_timeout to default")
            return rows

    def standing(self, schema: str) -> dict[str, list[str]]:
        return dict(self.execute(
            "select relname, array_agg(attname::text order by attnum) from pg_class c join pg_attribute on attrelid = c.oid"
            " where relnamespace = (select oid from pg_namespace where nspname = ?) and relkind in ('r', 'p') and attnum > 0"
            " and not attisdropped group by 1", [schema or DEFAULT_SCHEMA]))

    def table_sql(self, name: TargetName) -> str:
        return table_sql(name)

    def column_sql(self, column: str) -> str:
        return quote(column_name(column))

    def commit(self) -> None:
        self._flush()
        self._add_keys([key_sql(name, [column_name(k) for k in table.key]) for name, table in self._made.items() if table.key])
        self._run(*self._restoring, *(trigger_sql(self._made) if self._target.locked else ()))
        try:
            self._run("commit")
        except psycopg.Error as error:
            if not is_lost(error):
                raise
            raise Transient(f"{where(self._target.url)}: the connection was lost while a transaction was committed", code="CommitUnknown",
                            hint="what has arrived is read from the ledger; it is tried again") from None

    # -------------------------------------------------------------- plumbing

    def _flush(self) -> None:
        """Begin, and send what waits. Schemas are committed at once where nothing has begun: others may need them as well."""
        waiting, self._waiting = self._waiting, []
        made = [name for name, table in waiting if table]
        if made:
            with self._target.making_schemas:
                self._run(*(f"create schema if not exists {quote(schema)}" for schema in missing_schemas(self._connection, made)))
        if not self._begun:
            self._run("begin")
            self._begun = True
        if made:
            self._restoring += give_way(self._connection, made)
        self._run(*(statement for name, table in waiting
                    for statement in (f"drop table if exists {table_sql(name)}", *(create_sql(name, table) if table else ()))))
        if dropped := [name for name, table in waiting if not table]:
            self._forget(dropped, *_LEDGERS)

    def _execute(self, sql: str, params: Sequence[Any] | None = None) -> psycopg.Cursor:
        self._flush()
        return self._connection.execute(sql, params)

    def _run(self, *statements: str) -> None:
        if statements:
            self._connection.execute("; ".join(statements))

    def _add_keys(self, statements: list[str]) -> None:
        """Primary keys; a table whose keys are too long for an index goes without one."""
        try:
            if statements:
                with self._connection.transaction():
                    self._run(*statements)
        except pg.ProgramLimitExceeded:
            for statement in statements:
                with suppress(pg.ProgramLimitExceeded), self._connection.transaction():
                    self._run(statement)

    def _with_keys(self, name: TargetName, keys: pa.Table) -> str:
        """`<temporary table with these keys> where <they match>`; what has been sent last is not sent again."""
        self._flush()
        declared = _declared(self._connection, name)
        of_target = [selected(column_name(k), declared[column_name(k)]) for k in keys.column_names]
        of_keys = [f"_skylift_k{i}" for i in range(len(of_target))]
        if self._keys is None or self._keys[0] is not keys:
            self._sent += 1
            self._keys = keys, f"pg_temp._skylift_keys{self._sent}"
            columns = ", ".join(f"{theirs} as {ours}" for theirs, ours in zip(of_target, of_keys, strict=True))
            self._run(f"create temporary table _skylift_keys{self._sent} on commit drop"
                      f" as select {columns} from {table_sql(name)} with no data")
            copy_in(self._connection, self._keys[1], Table(str(name), keys.schema), held(keys, self._target.losses).to_batches())
        matches = " and ".join(f"{theirs} = {ours}" for theirs, ours in zip(of_target, of_keys, strict=True))
        return f"{self._keys[1]} where {matches}"

    def _forget(self, names: Sequence[TargetName], *ledgers: str) -> None:
        for ledger in ledgers:
            self._connection.execute(f"delete from public.{ledger} where (schema_name, table_name) in (select * from"
                                     " unnest(%s::text[], %s::text[]))", [[n.schema for n in names], [n.table for n in names]])


def _declared(connection: Connection, name: TargetName) -> dict[str, str]:
    """Types of the columns that stand there, by name."""
    return dict(connection.execute("select attname, format_type(atttypid, atttypmod) from pg_attribute"
                                   " where attrelid = %s::regclass and attnum > 0 and not attisdropped", [table_sql(name)]).fetchall())


def _columns(connection: Connection, name: TargetName, table: Table) -> str:
    """What is selected to read a table's columns as the types of its schema, whatever they were made as."""
    if table.format != ARROW:
        return column_list(table.schema.names)
    declared, columns = _declared(connection, name), []
    for field in table.schema:
        column, kind = column_name(field.name), declared.get(column_name(field.name))
        if kind is None or (arrow_type(kind) == pa.string() and not pa.types.is_string(field.type)):
            raise CopyError(f"{table.path}.{field.name}: the target's column {'is gone' if kind is None else f'is {kind} now'}",
                            hint="copy the table afresh: skylift run --kind full")
        as_text = pa.types.is_string(field.type) and arrow_type(kind) != pa.string()
        columns.append(f"{quote(column)}::text" if as_text else selected(column, kind))
    return ", ".join(columns)


def _decoded(rows: Batches, table: Table) -> Batches:
    """Rows of binary COPY in the table's format."""
    if table.format != ARROW:
        yield from rows
        return
    wire = replace(table, schema=on_the_wire(table.schema))
    decoder = Decoder(wire)
    for decoded in map(decoder.decode, rows):      # nothing else holds the batch: a value may be large
        yield decoded if wire.schema.types == table.schema.types else cast_batch(decoded, table)
        del decoded
