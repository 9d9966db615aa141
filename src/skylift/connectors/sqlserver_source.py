"""SQL Server as a source. Nothing is ever written to it, and nothing is read that is not committed (NOLOCK never).

Where the database allows snapshot isolation each statement sees one moment and blocks nobody. Where it does not, rows are read
committed, each as it was at some moment of the run, and what changes meanwhile is caught up with by the feed
(connectors/sqlserver_feed.py), at the latest in the next run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from sqlalchemy.engine import URL

from skylift.connectors import Batches, Source
from skylift.connectors.fed import FedSource
from skylift.connectors.pooling import Pool
from skylift.connectors.sql import quote
from skylift.connectors.sqlserver import DEFAULT_SCHEMA, Server, Session, alive, full_name, granted_user, login_script, look, source_name
from skylift.connectors.sqlserver_feed import Feeds
from skylift.connectors.sqlserver_rows import Checks, key_types, read_rows
from skylift.connectors.sqlserver_types import (
    REFUSED,
    compared,
    field_of,
    may_be_fine,
    refusal,
    spelt,
    written,
)
from skylift.errors import CopyError, SourceFailed, ValueRefused
from skylift.losses import Losses
from skylift.model import KeyRange, Table

SAMPLED_ROWS = 1_000              # of a table are looked at to see whether a column has steps of 100 ns
COUNTED_ROWS = 5_000_000          # a larger table is cut by the keys of a sample of its pages, not of all its rows
QUESTIONS = 100                   # small questions about as many tables travel in one statement


def open_source(url: URL) -> Source:
    """The database at `url`. Raises SetupError naming what is wrong with address, login, certificate, database or version."""
    return SqlServerSource(url)


def grants(url: URL) -> str:
    user = granted_user(url)
    return f"""{login_script(url)}grant select to {user};
-- exact sizes of tables; without it they are estimated:
grant view database state to {user};
-- which rows have changed, where change tracking is on; on each schema that has such tables:
declare @s nvarchar(max) = N'';
select @s = @s + N'grant view change tracking on schema::' + quotename(s.name) + N' to {user.replace("'", "''")};'
from sys.schemas s where exists (select 1 from sys.change_tracking_tables c join sys.tables t on t.object_id = c.object_id
    where t.schema_id = s.schema_id);
exec (@s);
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the catalogue says of a table beside its columns."""

    object_id: int
    in_memory: bool = False         # memory-optimised: cannot be read under snapshot isolation
    row_version: str = ""           # its rowversion column
    refused: str = ""               # why none of its rows can be trusted to arrive


class SqlServerSource(FedSource):
    feed: Feeds

    def __init__(self, url: URL) -> None:
        self.url = url
        self.name = str(url.database)
        self.losses = Losses()
        self._lock = threading.Lock()
        self._facts: dict[str, Facts] = {}
        self._tables: dict[str, Table] = {}
        self._sizes: dict[int, tuple[int, int]] | None = None
        self._row_bytes: dict[str, int] = {}
        self.snapshots = False
        self.sessions: Pool[Session] = Pool(self._connect, SourceFailed, alive)
        with self.sessions.connection() as session:
            self.server: Server = look(session, url)
            self.snapshots = self._allows_snapshots(session)
            session.run(self._isolation())
        self.feed = Feeds(self)

    def _connect(self) -> Session:
        session = Session(self.url)
        # Where two want the same rows, the application goes on and the copy tries again.
        session.run("set deadlock_priority low; " + self._isolation())
        return session

    def _allows_snapshots(self, session: Session) -> bool:
        [(state,)] = session.run("select snapshot_isolation_state from sys.databases where name = db_name()")
        return state == 1

    def _isolation(self) -> str:
        return f"set transaction isolation level {'snapshot' if self.snapshots else 'read committed'}"

    # -------------------------------------------------------------- catalogue

    def tables(self) -> list[Table]:
        """One query for all of them, and one more for each hundred columns that may have steps of 100 ns."""
        columns: dict[tuple[str, str], list[tuple]] = {}
        with self.sessions.connection() as session:
            for batch in session.batches(_catalogue(self.server)):
                for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    columns.setdefault(row[:2], []).append(row[2:])
            doubtful = [(*name, row[0], ", ".join(f"{quote(column)} desc" for column in _key(rows)))
                        for name, rows in columns.items() for row in rows if may_be_fine(spelt(*row[1:5]))]
            fine = set() if "ticks" in self.losses.accepted else _fine_columns(session, doubtful)
        tables = []
        for (schema, name), rows in columns.items():
            types = [spelt(*row[1:5]) for row in rows]
            fields = [field_of(row[0], declared, (schema, name, row[0]) in fine) for row, declared in zip(rows, types, strict=True)]
            table = Table(name, pa.schema(fields), _key(rows), source_types=tuple(types),
                          namespace="" if schema == DEFAULT_SCHEMA else schema)
            row_version = next((row[0] for row, declared in zip(rows, types, strict=True) if declared == "timestamp"), "")
            self._facts[table.path] = Facts(rows[0][6], bool(rows[0][7]), row_version, _why_refused(table, rows))
            self._tables[table.path] = table
            tables.append(table)
        return tables

    def table_of(self, path: str) -> Table:
        """The table of this path, as the catalogue was last read."""
        return self._tables[path]

    def notes(self) -> list[str]:
        return [*self._unseen(), *self.feed.notes()]

    def _unseen(self) -> list[str]:
        """The server lists no table that its user may not read."""
        with self.sessions.connection() as session:
            if not self.server.genuine or session.run("select has_perms_by_name(db_name(), 'DATABASE', 'SELECT')") != [(0,)]:
                return []
        return [f"user '{self.url.username or ''}' lacks the right SELECT on the database: tables that it may not read are not "
                f"seen (grant select to {granted_user(self.url)})"]

    def facts(self, table: Table) -> Facts:
        if table.path not in self._facts:
            self.tables()
        if table.path not in self._facts:
            raise CopyError(f"{table.path}: the source has no such table any more", code="50004")
        return self._facts[table.path]

    def measure(self, table: Table) -> Table:
        """Raises ValueRefused or CopyError for a table that cannot be copied exactly, naming the column or the right."""
        facts = self.facts(table)
        for field, declared in zip(table.schema, table.source_types, strict=True):
            if field.type == REFUSED:
                raise ValueRefused(f"{table.path}.{field.name}: a column of type {declared} does not move: {refusal(declared)}",
                                   hint="convert it to another type at the source, or copy a table without it")
        if facts.refused:
            raise CopyError(f"{table.path}: {facts.refused}", hint="grant what is missing, or leave the table out")
        rows, size_bytes = self._all_sizes().get(facts.object_id) or self._counted(table)
        self._row_bytes[table.path] = size_bytes // max(rows, 1) + 1
        return replace(table, rows=rows, size_bytes=size_bytes)

    def _all_sizes(self) -> Mapping[int, tuple[int, int]]:
        """Rows and bytes by object id, as the server keeps them; asked for once. Empty where it keeps none."""
        with self._lock:
            if self._sizes is None:
                self._sizes = {}
                for sql in _SIZES if self.server.genuine else ():
                    with self.sessions.connection() as session:
                        try:
                            self._sizes = {object_id: (rows, size) for object_id, rows, size in session.run(sql)}
                            break
                        except CopyError:          # VIEW DATABASE STATE is not granted: the catalogue knows nearly as much
                            continue
            return self._sizes

    def _counted(self, table: Table) -> tuple[int, int]:
        width = "+".join(f"coalesce(datalength({quote(name)}),0)" for name in table.schema.names)
        name = source_name(table)
        with self.sessions.connection() as session:
            [(rows, row_bytes)] = session.run(f"select (select count_big(*) from {name}), (select avg(cast(w as bigint)) from "
                                              f"(select top (200) {width} as w from {name}) as s)", table=table.path)
        return rows, rows * (row_bytes or 0)

    def split(self, table: Table, rows: int, size_bytes: int) -> list[KeyRange]:
        per_chunk = max(1, min(rows, size_bytes // max(1, self._row_bytes.get(table.path, 1))))
        if not table.key or not table.rows or table.rows <= per_chunk:
            return [KeyRange()]
        chunks = -(-table.rows // per_chunk)
        types = key_types(table)
        keys = ", ".join(map(quote, table.key))
        values = ", ".join(written(column, declared) for column, declared in zip(table.key, types, strict=True))
        sample = f" tablesample ({min(100.0, 100 * COUNTED_ROWS / table.rows):.6f} percent)" if table.rows > 2 * COUNTED_ROWS else ""
        # Row i of n begins a chunk where i * chunks / n passes a whole number.
        numbered = (f"select {keys}, row_number() over (order by {keys}) - 1 as i, count_big(*) over () as n "
                    f"from {source_name(table)}{sample}")
        with self.sessions.connection() as session:
            bounds = session.run(f"select {values} from ({numbered}) as s where i > 0 and i * {chunks} / n <> (i - 1) * {chunks} / n "
                                 "order by i", table=table.path)
        return [KeyRange(lo, hi) for lo, hi in zip([None, *bounds], [*bounds, None], strict=True)]

    # -------------------------------------------------------------- rows

    def read(self, table: Table, keys: KeyRange) -> Batches:
        condition, params = self._range(table, keys)
        with self.reading(table) as session:
            yield from self.read_sql(session, table, f"from {source_name(table)} as r where {condition}", params)

    @contextmanager
    def reading(self, table: Table) -> Iterator[Session]:
        """A session in a transaction, so that what is read in several statements is of one moment where there are snapshots."""
        with self.sessions.connection() as session:
            held = self.snapshots and not self.facts(table).in_memory
            if self.snapshots and not held:
                session.run("set transaction isolation level read committed")
            if held:
                session.run("begin transaction")
            yield session
            if held:
                session.run("commit transaction")
            elif self.snapshots:
                session.run(self._isolation())

    def read_sql(self, session: Session, table: Table, tail: str, params: Sequence[Any] = (), keyed: bool = False) -> Batches:
        """The rows of `select .. <tail>`; with `keyed` the key columns once more (sqlserver_rows.py)."""
        row_bytes = self._row_bytes.get(table.path, 1024)
        return read_rows(session, table, source_name(table), tail, params, row_bytes, keyed, Checks(self, table))

    def _range(self, table: Table, keys: KeyRange) -> tuple[str, list[Any]]:
        """`lo <= key < hi` in the server's own order, one column at a time: T-SQL compares no row values."""
        conditions, params = ["1 = 1"], []
        for bound, outer, inner, last in ((keys.lo, ">=", ">", ">="), (keys.hi, "<=", "<", "<")):
            if bound is not None:
                condition, values = _compare(list(zip(table.key, key_types(table), bound, strict=True)), outer, inner, last)
                conditions.append(condition)
                params += values
        return " and ".join(conditions), params

    def close(self) -> None:
        self.sessions.close()


# ------------------------------------------------------------------ T-SQL

# Rows and bytes of every table; the first needs VIEW DATABASE STATE, the second is there for whoever sees the tables.
_SIZES = (
    """select object_id, sum(case when index_id < 2 then row_count else 0 end), sum(case when index_id < 2 then used_page_count else 0 end)
       * 8192 from sys.dm_db_partition_stats group by object_id""",
    """select p.object_id, sum(case when a.type = 1 then p.rows else 0 end), sum(a.used_pages) * 8192 from sys.partitions p
       join sys.allocation_units a on a.container_id = case when a.type = 2 then p.partition_id else p.hobt_id end
       where p.index_id < 2 group by p.object_id""")


def _catalogue(server: Server) -> str:
    """Every column of every user table, with its type, its place in the primary key, and what forbids to trust what is read.

    External tables are not copied, nor are column sets, computed columns that are not deterministic, and the internals of graph
    tables. History tables are tables like others.
    """
    facts = {"memory": "0", "encrypted": "0", "masked": "0", "filtered": "0"}
    condition = ""
    if server.genuine:
        facts = {"memory": "cast(o.is_memory_optimized as int)",
                 "encrypted": "case when c.encryption_type is null then 0 else 1 end",
                 "masked": "case when c.is_masked = 1 and coalesce(has_perms_by_name(null, 'DATABASE', 'UNMASK'), 0) = 0 then 1 else 0 end",
                 "filtered": "case when exists (select 1 from sys.security_predicates f join sys.security_policies y "
                             "on y.object_id = f.object_id where f.target_object_id = o.object_id and f.predicate_type = 0 "
                             "and y.is_enabled = 1) then 1 else 0 end"}
        condition = "and o.is_external = 0 and (c.is_computed = 0 or columnproperty(c.object_id, c.name, 'IsDeterministic') = 1)"
        if server.major >= 14:                     # graph tables came with 2017: only $node_id, $edge_id, $from_id, $to_id can be read
            condition += " and (c.graph_type is null or c.graph_type in (2, 5, 8))"
    return f"""
        select s.name, o.name, c.name, t.name, cast(c.max_length as int), cast(c.precision as int), cast(c.scale as int),
               cast(k.key_ordinal as int), o.object_id, {facts['memory']}, {facts['encrypted']}, {facts['masked']}, {facts['filtered']}
        from sys.tables o
        join sys.schemas s on s.schema_id = o.schema_id
        join sys.columns c on c.object_id = o.object_id
        left join sys.types t on t.user_type_id = case when c.system_type_id = 240 then c.user_type_id else c.system_type_id end
        left join (select x.object_id, x.column_id, x.key_ordinal from sys.indexes i join sys.index_columns x
                   on x.object_id = i.object_id and x.index_id = i.index_id where i.is_primary_key = 1) k
               on k.object_id = o.object_id and k.column_id = c.column_id
        where o.is_ms_shipped = 0 and o.name not like '[_]skylift[_]%' and c.is_column_set = 0 {condition}
        order by s.name, o.name, c.column_id"""


def _why_refused(table: Table, rows: list[tuple]) -> str:
    encrypted, masked = ([row[0] for row in rows if row[i]] for i in (8, 9))
    if encrypted:
        return f"columns {', '.join(encrypted)} are encrypted with keys that the server does not have (Always Encrypted)"
    if masked:
        return f"columns {', '.join(masked)} are masked for this user, who lacks the right UNMASK"
    return "an enabled security policy filters its rows; switch it off for the copy" if rows[0][10] else ""


def _key(rows: list[tuple]) -> tuple[str, ...]:
    return tuple(column for _, column in sorted((row[5], row[0]) for row in rows if row[5]))


def _fine_columns(session: Session, columns: Sequence[tuple[str, str, str, str]]) -> set[tuple[str, str, str]]:
    """Which of these columns (schema, table, column, order from the end) have steps of 100 ns in their table's first and last rows."""

    def ask(some: Sequence[tuple[str, str, str, str]]) -> set[tuple[str, str, str]]:
        questions = [f"select {i} where exists (select 1 from (select top ({SAMPLED_ROWS}) {quote(column)} as v from "
                     f"{full_name(schema, table)}{end}) as s where datepart(nanosecond, v) % 1000 <> 0)"
                     for i, (schema, table, column, order) in enumerate(some)
                     for end in ("", *([f" order by {order}"] if order else []))]
        return {some[i][:3] for (i,) in session.run(" union all ".join(questions))}

    found: set[tuple[str, str, str]] = set()
    for begin in range(0, len(columns), QUESTIONS):
        found |= _each(columns[begin:begin + QUESTIONS], ask)
    return found


def _each(items: Sequence[Any], ask: Callable[[Sequence[Any]], set[Any]]) -> set[Any]:
    """The answers about all items together; where that fails, about each, leaving out those that cannot be asked about."""
    try:
        return ask(items)
    except CopyError:
        return set() if len(items) == 1 else set().union(*(_each([item], ask) for item in items))


def _compare(parts: list[tuple[str, str, Any]], outer: str, inner: str, last: str) -> tuple[str, list[Any]]:
    """a >= x and (a > x or (a = x and ..)): the first comparison alone lets the key's index be searched."""
    (column, declared, value), *rest = parts
    name, mark = f"r.{quote(column)}", compared(declared)
    if not rest:
        return f"{name} {last} {mark}", [value]
    condition, values = _compare(rest, outer, inner, last)
    return f"({name} {outer} {mark} and ({name} {inner} {mark} or ({name} = {mark} and {condition})))", [value, value, value, *values]
