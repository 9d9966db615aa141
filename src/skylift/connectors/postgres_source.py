"""PostgreSQL 13 and later as a source. `?feed=triggers` forbids the replication slot, `?feed=none` whatever would be written to it.

Everything is read by binary COPY in one exported snapshot: what all workers read is one picture of the database, as it stood at the
watermark. Feeds, best first: a logical replication slot (postgres_slot.py), a change log kept by triggers (postgres_log.py), a sweep.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql
from sqlalchemy.engine import URL

from skylift.connectors import Batches, Source
from skylift.connectors.fed import FedSource
from skylift.connectors.postgres import Connection, pool, selected, told, where
from skylift.connectors.postgres_binary import Decoder
from skylift.connectors.postgres_catalog import Facts, read_catalogue
from skylift.connectors.postgres_feeds import Feeds
from skylift.connectors.postgres_receive import copy_out
from skylift.connectors.sql import quote
from skylift.errors import CopyError, SetupError, SourceChanged, SourceFailed
from skylift.losses import Losses
from skylift.model import ARROW, KeyRange, Table

FEEDS = {"": ("slot", "change_log"), "triggers": ("change_log",), "none": ()}     # allowed by the URL's parameter feed
COUNTED_PAGES = 2_000              # a table up to this large is counted where statistics are missing, a larger one sampled
SAMPLED_PAGES = 40                 # of a chunk, and
SAMPLED_ROWS = 200                 # rows of a chunk: sampled to find where it ends
_LOSSES = {"decimal": ("nan", "{c} = 'NaN'"), "time": ("infinity", "not isfinite({c})"), "": None}
_WHOLE = re.compile(r"smallint|integer|bigint")


def open_source(url: URL) -> Source:
    """The database at `url`. Raises SetupError if it cannot be reached, or the URL asks for what there is not."""
    asked = url.query.get("feed", "")
    if not isinstance(asked, str) or asked not in FEEDS:
        raise SetupError(f"{where(url)}: feed is neither 'triggers' nor 'none'", hint="leave it out for the best feed that can be had")
    url = url.difference_update_query(["feed"])
    return PostgresSource(url, FEEDS[asked])


def grants(url: URL) -> str:
    user, database = quote(url.username or "skylift"), quote(url.database or "")
    script = f"""-- in the database {database}, by an administrator of it
create role {user} login password '<password>';
grant connect on database {database} to {user};
do $$ declare s name; begin
  for s in select nspname from pg_namespace where nspname !~ '^(pg_|_skylift)' and nspname <> 'information_schema' loop
    execute format('grant usage on schema %I to {_inside(user)}', s);
    execute format('grant select on all tables in schema %I to {_inside(user)}', s);
  end loop;
end $$;
"""
    if url.query.get("feed") == "none":
        return script
    return script + f"""-- What tells which rows have changed; with ?feed=none in the URL all this is not needed, and tables are compared.
-- A schema of its own, _skylift:
grant create on database {database} to {user};
-- Logical decoding, where the server's wal_level is logical; without it, or with ?feed=triggers, triggers are made:
alter role {user} replication;
-- Only who belongs to the owner of a table may publish it or make triggers on it:
do $$ declare o name; begin
  for o in select distinct pg_get_userbyid(relowner) from pg_class c join pg_namespace n on n.oid = relnamespace
      where relkind in ('r', 'p') and nspname !~ '^(pg_|_skylift)' and nspname <> 'information_schema' loop
    execute format('grant %I to {_inside(user)}', o);
  end loop;
end $$;
"""


def _inside(name: str) -> str:
    """A quoted name within a text that `format` reads."""
    return name.replace("'", "''").replace("%", "%%")


class PostgresSource(FedSource):
    """One database. Connections are pooled; a table that is tracked is read in the snapshot of its watermark."""

    feed: Feeds
    losses = Losses()

    def __init__(self, url: URL, feeds: Sequence[str]) -> None:
        self.url = url
        self.name = str(url.database)
        self._connections = pool(url, SourceFailed)
        self._facts: dict[str, Facts] = {}
        self._lock = threading.Lock()
        self.feed = Feeds(self, feeds)

    # -------------------------------------------------------------- catalogue

    def notes(self) -> list[str]:
        return []

    def tables(self) -> list[Table]:
        with self._connections.connection() as connection, told(self.url):
            found = read_catalogue(connection)
        with self._lock:
            self._facts = {table.path: facts for table, facts in found}
        return [table for table, _ in found]

    def refresh(self, connection: psycopg.Connection, tables: Sequence[Table]) -> dict[str, Facts]:
        """What the catalogue says of these tables now; of one that is gone, what it said last."""
        found = {table.path: facts for table, facts in read_catalogue(connection, tables)}
        with self._lock:
            self._facts |= found
        return {table.path: self.facts(table) for table in tables}

    def known(self) -> list[Facts]:
        return list(self._facts.values())

    def facts(self, table: Table) -> Facts:
        if table.path not in self._facts:
            self.tables()
        if table.path not in self._facts:
            raise CopyError(f"{table.path}: the source no longer has this table")
        return self._facts[table.path]

    def _readable(self, table: Table) -> Facts:
        """Raises CopyError naming the right that is missing."""
        facts, user = self.facts(table), quote(self.url.username or "")
        if facts.lacking:
            raise CopyError(f"{table.path}: user {user} lacks the right {facts.lacking}", code="Permission",
                            hint=f"alter role {user} bypassrls" if facts.lacking == "BYPASSRLS" else f"grant {facts.lacking} to {user}")
        return facts

    def measure(self, table: Table) -> Table:
        """From the statistics, scaled to the pages that there are now, as PostgreSQL's own planner does."""
        facts = self._readable(table)
        with self.connection(table.path) as connection:
            pages, known_pages, known_rows, size_bytes = self.row(connection, """
                select coalesce(sum(pg_relation_size(oid)), 0)::int8 / current_setting('block_size')::int8, sum(greatest(relpages, 0)),
                    sum(greatest(reltuples, 0))::float8, coalesce(sum(pg_table_size(oid)), 0)::int8
                from pg_class where oid = any (%s::oid[]) and relkind <> 'p'""", list(facts.oids))
            if pages is None or not facts.local:   # no partitions, or some on another server
                pages, known_pages = COUNTED_PAGES, 0
            if known_pages and known_rows:
                rows = known_rows / known_pages * pages
            elif pages <= COUNTED_PAGES:
                [rows] = self.row(connection, f"select count(*) from {facts.sql}")
            else:
                share = COUNTED_PAGES / pages
                [rows] = self.row(connection, f"select count(*) from {facts.sql} tablesample system ({100 * share}) repeatable (1)")
                rows = rows / share
        return replace(table, rows=round(rows), size_bytes=size_bytes)

    def split(self, table: Table, rows: int, size_bytes: int) -> list[KeyRange]:
        """By key; without one by place in the table, which holds within one snapshot."""
        total, facts = table.rows or 0, self.facts(table)
        chunks = max(-(-total // rows), -(-(table.size_bytes or 0) // size_bytes), 1)
        if chunks == 1:
            return [KeyRange()]
        with self.connection(table.path) as connection:
            if not table.key:
                return _ranges(self._places(connection, facts, chunks))
            if len(table.key) == 1 and _WHOLE.fullmatch(_declared(table, table.key[0])):
                key = quote(table.key[0])
                first, last = self.row(connection, f"select min({key}), max({key}) from {facts.sql}")
                if first is not None and last - first < 2 * total:       # dense: divide the numbers
                    step = max(1, (last - first + 1) // chunks)
                    return _ranges([(str(value),) for value in range(first + step, last + 1, step)])
            return _ranges(self._sampled(connection, table, facts, chunks))

    def _places(self, connection: psycopg.Connection, facts: Facts, chunks: int) -> list[tuple[Any, ...]]:
        """Page numbers, each beside the file that they are in. Before version 14 each range would scan the whole table."""
        pages, file = self.row(connection, """select pg_relation_size(%s::oid::regclass) / current_setting('block_size')::int8,
                                           pg_relation_filenode(%s::oid)::int8""", facts.oid, facts.oid)
        if facts.partitioned or connection.info.server_version < 140000:
            return []
        step = max(1, -(-pages // chunks))
        return [(page, file) for page in range(step, pages, step)]

    def _sampled(self, connection: psycopg.Connection, table: Table, facts: Facts, chunks: int) -> list[tuple[Any, ...]]:
        """Evenly spaced keys of a sample, in the order that the key's own index has, as text."""
        keys = ", ".join(map(quote, table.key))
        pages = max(1, (table.size_bytes or 0) // 8192)
        percent = min(100.0, 100 * max(SAMPLED_PAGES * chunks / pages, SAMPLED_ROWS * chunks / (table.rows or 1)))
        texts = ", ".join(f"{quote(k)}::text" for k in table.key)
        return self.rows(connection, f"""
            select {texts} from (select {keys}, row_number() over (order by {keys}) as place_, count(*) over () as all_
                from {facts.sql} tablesample system ({percent}) repeatable (1)) s
            where place_ * {chunks} / all_ > (place_ - 1) * {chunks} / all_ and place_ < all_ order by place_""")

    # -------------------------------------------------------------- rows

    def read(self, table: Table, keys: KeyRange) -> Batches:
        facts = self._readable(table)
        with self.reading(table) as connection:
            yield from self.batches(connection, table, f"from {facts.sql} where {_range_sql(table, keys)}")
            bound = keys.lo or keys.hi
            if not table.key and bound:            # the query's lock stands: the file is the one that was read
                [file] = self.row(connection, "select pg_relation_filenode(%s::oid)::int8", facts.oid)
                if file != bound[1]:
                    raise SourceChanged(f"{table.path}: the table was rewritten while it was read, and has no primary key")
            self.feed.check(connection, table.path)

    def batches(self, connection: Connection, table: Table, tail: str) -> Batches:
        """The rows of `select ... <tail>`, all values in it quoted, in the table's format."""
        columns = dict(zip(table.schema.names, map(quote, table.schema.names), strict=True))
        with told(self.url, table.path):
            if table.format != ARROW:              # the other PostgreSQL holds whatever this one does
                yield from copy_out(connection, f"select {', '.join(columns.values())} {tail}")
                return
            columns = {name: selected(name, declared) for name, declared in zip(columns, table.source_types, strict=True)}
            lost = {f.name: loss for f in table.schema if f.name not in table.key and (loss := self._accepted(f.type))}
            if lost:
                counts = ", ".join(f"count(*) filter (where {misfit.format(c=columns[name])})" for name, (_, misfit) in lost.items())
                for (name, (kind, _)), count in zip(lost.items(), self.row(connection, f"select {counts} {tail}"), strict=True):
                    if count:
                        self.losses.count(kind, table.path, name, count)
            for name, (_, misfit) in lost.items():
                columns[name] = f"case when not ({misfit.format(c=columns[name])}) then {columns[name]} end"
            yield from map(Decoder(table).decode, copy_out(connection, f"select {', '.join(columns.values())} {tail}"))

    def _accepted(self, kind: pa.DataType) -> tuple[str, str] | None:
        """Of values that the type has in PostgreSQL and not in Arrow: the loss that is accepted, and what tells them."""
        loss = _LOSSES["decimal" if pa.types.is_decimal(kind) else "time" if pa.types.is_date(kind) or pa.types.is_timestamp(kind) else ""]
        return loss if loss and loss[0] in self.losses.accepted else None

    # -------------------------------------------------------------- connections

    @contextmanager
    def reading(self, table: Table) -> Iterator[Connection]:
        """A connection in a read-only transaction that sees the table as its watermark does; else as it is now."""
        with self._connections.connection() as connection, told(self.url, table.path):
            self.feed.begin(connection, table.path)
            yield connection
            connection.execute("commit")

    @contextmanager
    def connection(self, path: str = "") -> Iterator[Connection]:
        """A connection in autocommit mode; errors are about the table of this path."""
        with self._connections.connection() as connection, told(self.url, path):
            yield connection

    def rows(self, connection: psycopg.Connection, query: str, *params: Any) -> list[tuple[Any, ...]]:
        return connection.execute(query, params or None).fetchall()

    def row(self, connection: psycopg.Connection, query: str, *params: Any) -> tuple[Any, ...]:
        return self.rows(connection, query, *params)[0]

    def close(self) -> None:
        self.feed.close()
        self._connections.close()


def _declared(table: Table, column: str) -> str:
    return table.source_types[table.schema.get_field_index(column)]


def _ranges(bounds: Sequence[tuple[Any, ...]]) -> list[KeyRange]:
    return [KeyRange(lo, hi) for lo, hi in zip([None, *bounds], [*bounds, None], strict=True)]


def _range_sql(table: Table, keys: KeyRange) -> str:
    """Row-wise comparison in the order of the key's index: https://www.postgresql.org/docs/current/functions-comparisons.html"""
    columns = f"({', '.join(map(quote, table.key))})" if table.key else "ctid"
    parts = ["true"]
    for bound, sign in ((keys.lo, ">="), (keys.hi, "<")):
        if bound is not None and table.key:
            parts.append(f"{columns} {sign} ({', '.join(typed(v, _declared(table, k)) for v, k in zip(bound, table.key, strict=True))})")
        elif bound is not None:
            parts.append(f"{columns} {sign} '({int(bound[0])},0)'::tid")
    return " and ".join(parts)


def typed(text: str, declared: str) -> str:
    """A value written as text, quoted, of a declared type."""
    return f"{sql.Literal(text).as_string()}::{declared}"
