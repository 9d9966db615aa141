"""A PostgreSQL database as it stands, as a source or a target: in read-only transactions, so that the server sees to it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager

from sqlalchemy.engine import URL

from skylift.connectors import SWEEP, TableState, Target
from skylift.connectors.looks import Forecast, Remark, SourceLook, StandingColumn, TargetLook
from skylift.connectors.postgres import DEFAULT_SCHEMA, READ_ONLY, Connection, arrow_type, connect, told
from skylift.connectors.postgres_ddl import lacking as lacking_schemas
from skylift.connectors.postgres_ddl import standing
from skylift.connectors.postgres_feeds import STATE
from skylift.connectors.postgres_slot import MAY_REPLICATE
from skylift.connectors.postgres_source import PostgresSource, open_source
from skylift.connectors.postgres_target import PostgresTarget, lacking, ledger_tables
from skylift.connectors.sql import GIVE_WAY, not_replaced, quote
from skylift.model import Table, TargetName
from skylift.runs import Severity

SETUP_S = 0.001                    # a table
_LENGTH = re.compile(r"character(?: varying)?\((\d+)\)")
_COLUMNS = """
select n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod), not a.attnotnull, exists (select from pg_index i
    where i.indrelid = c.oid and i.indisprimary and a.attnum = any (i.indkey::int2[]))
from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_attribute a on a.attrelid = c.oid
where c.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped
    and (n.nspname, c.relname) in (select * from unnest(%s::text[], %s::text[])) order by 1, 2, a.attnum"""


def look_at_source(url: URL) -> SourceLook:
    return PostgresSourceLook(url)


def look_at_target(url: URL) -> TargetLook:
    return PostgresTargetLook(url)


def _read_only(url: URL) -> URL:
    return url.update_query_dict({READ_ONLY: "yes"})


def _server(connection: Connection) -> str:
    return f"PostgreSQL {(connection.info.parameter_status('server_version') or '').partition(' ')[0]}"


class PostgresSourceLook:
    source: PostgresSource

    def __init__(self, url: URL) -> None:
        source = open_source(_read_only(url))
        assert isinstance(source, PostgresSource)
        self.source = source
        with source.connection() as connection:
            self.server = _server(connection)
        with closing(connect(url.difference_update_query(["feed"]))) as connection:      # as it is for whoever writes
            _, self._refuses, self._may_create = connection.execute(STATE).fetchall()[0]
            self._wal, self._kept, self._replicates, self._slots = connection.execute(f"""
                select current_setting('wal_level'), current_setting('max_slot_wal_keep_size', true), {MAY_REPLICATE},
                    current_setting('max_replication_slots')::int - (select count(*) from pg_replication_slots)""").fetchall()[0]

    def remarks(self, tables: Sequence[Table]) -> list[Remark]:
        """Rights to read are told where a table is measured."""
        if not any(forecast.feed == "slot" for forecast in self.feeds(tables).values()):
            return []
        if self._kept in (None, "-1"):
            return [Remark("FeedKeepsLog", Severity.INFORMATION, "the replication slot keeps the server's write-ahead log until a run has "
                           "confirmed it, and no limit is set: a migration that rests fills the disk", "run regularly, pause with "
                           "skylift disable, or set max_slot_wal_keep_size")]
        return [Remark("FeedExpires", Severity.INFORMATION, "the replication slot is lost, and its tables are copied whole, once more "
                       f"than {self._kept} of write-ahead log was written between two runs (max_slot_wal_keep_size)", "run often enough")]

    def feeds(self, tables: Sequence[Table]) -> Mapping[str, Forecast]:
        return {table.path: self._feed(table) for table in tables}

    def _feed(self, table: Table) -> Forecast:
        facts, feeds = self.source.facts(table), self.source.feed
        if why := feeds.why_none(facts, self._refuses, self._may_create, otherwise=""):
            return Forecast(SWEEP, f"source and target are compared in each run: {why}",
                            "skylift grants prints what the user must be allowed")
        user = quote(self.source.url.username or "")
        hindrances = {
            ("the URL forbids a replication slot", "leave out feed=triggers"): "slot" not in feeds.allowed,
            (f"the server's wal_level is {self._wal}", "alter system set wal_level = logical, then restart"): self._wal != "logical",
            (f"user {user} lacks the right REPLICATION", f"alter role {user} replication"): not self._replicates,
            ("no replication slot is free", "raise max_replication_slots"): self._slots < 1,
            ("it has no replica identity", "give it a primary key, or alter table .. replica identity full"): not facts.identified}
        for (why, fix), holds in hindrances.items():
            if holds:
                return Forecast("change_log", f"triggers are made on it to log what changes: {why}", fix, setup_s=SETUP_S)
        return Forecast("slot", setup_s=SETUP_S)

    def close(self) -> None:
        self.source.close()


class PostgresTargetLook(PostgresTarget):
    def __init__(self, url: URL) -> None:
        super().__init__(_read_only(url))
        self._written = url
        with self._connections.connection() as connection:
            self.server = _server(connection)

    def states(self) -> dict[TargetName, TableState]:
        with self._connections.connection() as connection, told(self.url):
            allowed = connection.execute("select has_schema_privilege('public', 'usage')").fetchall()[0][0]
            there = allowed and ledger_tables(connection)["_skylift_tables"]
        return super().states() if there else {}

    def remarks(self, names: Sequence[TargetName]) -> list[Remark]:
        with closing(connect(self._written)) as connection:
            read_only = connection.execute("select pg_is_in_recovery() or current_setting('transaction_read_only')::bool").fetchall()[0][0]
        found = [Remark("ReadOnly", Severity.BLOCKING, "the server is read-only", "name the primary server, and see "
                        "default_transaction_read_only of database and role")] if read_only else []
        with self._connections.connection() as connection, told(self.url):
            database, user = connection.execute("select current_database(), current_user").fetchall()[0]
            rights = [(f"user '{user}' lacks the right {right}", grant) for right, grant in lacking(connection, database, user)]
            rights += lacking_schemas(connection, names)
            standing_there = standing(connection, names)
        found += [Remark("Permission", Severity.BLOCKING, text, grant) for text, grant in dict.fromkeys(rights)]
        by_place = {(name.schema or DEFAULT_SCHEMA, name.table): name for name in names}
        found += [Remark("Obstacle", Severity.BLOCKING, not_replaced(f"{schema}.{table}", obstacles), GIVE_WAY,
                         str(by_place[schema, table])) for schema, table, obstacles, _ in standing_there if obstacles]
        return found

    def reserved(self, schema: str) -> bool:
        return schema.startswith("pg_") or schema in ("information_schema", "_skylift")

    def standing(self, names: Sequence[TargetName]) -> Mapping[TargetName, Sequence[StandingColumn]]:
        by_place = {(name.schema or DEFAULT_SCHEMA, name.table): name for name in names}
        found: dict[TargetName, list[StandingColumn]] = {}
        for schema, table, column, declared, nullable, in_key in self.rows(_COLUMNS, [s for s, _ in by_place], [t for _, t in by_place]):
            match = _LENGTH.fullmatch(declared)
            found.setdefault(by_place[schema, table], []).append(
                StandingColumn(column, declared, arrow_type(declared), int(match[1]) if match else None, nullable, in_key))
        return found

    def free_bytes(self) -> int | None:
        return None                                # the server does not tell

    @contextmanager
    def scratch(self, allowed: bool) -> Iterator[Target | None]:
        if not allowed:
            yield None
            return
        target = PostgresTarget(self._written)     # its ledger is not made: nothing will be committed
        target.losses = self.losses
        try:
            yield target
        finally:
            target.close()
