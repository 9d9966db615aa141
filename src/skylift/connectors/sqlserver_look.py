"""A SQL Server database as it stands, as a source or a target. Only questions to the catalogue are asked, and tables read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from sqlalchemy.engine import URL

from skylift.connectors import SWEEP, TableState, Target
from skylift.connectors.ledger import STATES, states_of
from skylift.connectors.looks import Forecast, Remark, SourceLook, StandingColumn, TargetLook
from skylift.connectors.pooling import Pool
from skylift.connectors.sql import GIVE_WAY, not_replaced, quote
from skylift.connectors.sqlserver import DEFAULT_SCHEMA, Session, alive, look, source_name
from skylift.connectors.sqlserver_bulk import fit
from skylift.connectors.sqlserver_ddl import column_types, obstacles
from skylift.connectors.sqlserver_feed import VERSIONED
from skylift.connectors.sqlserver_source import SqlServerSource
from skylift.connectors.sqlserver_target import SqlServerTarget, lacking
from skylift.connectors.sqlserver_types import field_of, spelt
from skylift.errors import CopyError, TargetFailed
from skylift.losses import Losses
from skylift.model import Table, TargetName
from skylift.runs import Severity

AT_ONCE = 200                      # names that one statement asks about
# What cannot be the name of a schema, for one of that name is there and belongs to the server.
_RESERVED = re.compile(r"(?i)sys|information_schema|guest|db_\w+")
_MAY_SELECT = """select schema_name(o.schema_id), o.name from sys.tables o where o.is_ms_shipped = 0
and has_perms_by_name(quotename(schema_name(o.schema_id)) + '.' + quotename(o.name), 'OBJECT', 'SELECT') = 0"""
_COLUMNS = """select schema_name(o.schema_id), o.name, c.name, t.name, cast(c.max_length as int), cast(c.precision as int),
cast(c.scale as int), cast(c.is_nullable as int), case when exists (select 1 from sys.indexes i join sys.index_columns x
on x.object_id = i.object_id and x.index_id = i.index_id where i.is_primary_key = 1 and i.object_id = c.object_id
and x.column_id = c.column_id) then 1 else 0 end
from sys.tables o join sys.columns c on c.object_id = o.object_id join sys.types t on t.user_type_id = c.system_type_id
where {places} order by 1, 2, c.column_id"""


def look_at_source(url: URL) -> SourceLook:
    return SqlServerSourceLook(url)


def look_at_target(url: URL) -> TargetLook:
    return SqlServerTargetLook(url)


class SqlServerSourceLook:
    def __init__(self, url: URL) -> None:
        self.source = SqlServerSource(url)
        self.server = self.source.server.text

    def remarks(self, tables: Sequence[Table]) -> list[Remark]:
        source, user = self.source, quote(self.source.url.username or "")
        found = []
        paths = {(table.namespace or DEFAULT_SCHEMA, table.name): table for table in tables}
        with source.sessions.connection() as session:
            denied = session.run(_MAY_SELECT)
            [(state,)] = session.run("select has_perms_by_name(null, 'DATABASE', 'VIEW DATABASE STATE')")
        for place in denied:
            if table := paths.get((place[0], place[1])):
                found.append(Remark("Permission", Severity.BLOCKING, f"user {user} lacks the right SELECT on it",
                                    f"grant select on {source_name(table)} to {user}", table.path))
        if state == 0:
            found.append(Remark("Permission", Severity.INFORMATION, f"user {user} lacks the right VIEW DATABASE STATE: sizes are estimates",
                                f"grant view database state to {user}"))
        if days := source.feed.retention_days():
            found.append(Remark("FeedExpires", Severity.INFORMATION, f"change tracking keeps {days:.3g} days of changes: a table that is "
                                "not replicated within that time is copied whole", "run at least that often, or let it keep more: alter "
                                "database .. set change_tracking (change_retention = 14 days)"))
        return found

    def feeds(self, tables: Sequence[Table]) -> Mapping[str, Forecast]:
        marks = self.source.feed.forecast(tables)
        return {table.path: _forecast(table, marks[table.path].feed, marks[table.path].why) for table in tables}

    def close(self) -> None:
        self.source.close()


def _forecast(table: Table, feed: str, why: str) -> Forecast:
    track = f"alter table {source_name(table)} enable change_tracking" if table.key else "give it a primary key"
    if feed == SWEEP:
        return Forecast(feed, f"source and target are compared in each run: {why}", track, "50020" if table.key else "ChangeFeed")
    if feed == VERSIONED:
        return Forecast(feed, "changes are told by its rowversion column, and deletes by comparing all keys", track)
    return Forecast(feed)


class SqlServerTargetLook:
    max_name_bytes, chunk_rows, formats = SqlServerTarget.max_name_bytes, SqlServerTarget.chunk_rows, SqlServerTarget.formats

    def __init__(self, url: URL) -> None:
        self.url = url
        self.losses = Losses()
        self.sessions: Pool[Session] = Pool(lambda: Session(url), TargetFailed, alive)
        with self.sessions.connection() as session:
            self._about = look(session, url)
        self.server = self._about.text

    def declares(self, table: Table) -> dict[str, str]:
        return column_types(table, self._about.genuine)

    def fit(self, batch: pa.RecordBatch, table: Table) -> pa.RecordBatch:
        return fit(batch, table, self.losses)

    def states(self) -> dict[TargetName, TableState]:
        there = self._rows("select 1 from sys.tables where schema_id = schema_id('dbo') and name = '_skylift_tables'")
        return states_of(self._rows(f"select {STATES} from dbo._skylift_tables")) if there else {}

    def _rows(self, sql: str, *params: Any) -> list[tuple]:
        with self.sessions.connection() as session:
            return session.run(sql, *params)

    def remarks(self, names: Sequence[TargetName]) -> list[Remark]:
        found = []
        with self.sessions.connection() as session:
            missing = any(session.run("select schema_id(?)", schema) == [(None,)] for schema in {n.schema for n in names if n.schema})
            found += [Remark("Permission", Severity.BLOCKING, text, grant) for text, grant in lacking(session, self.url, schemas=missing)]
            for some in (names[i:i + AT_ONCE] for i in range(0, len(names), AT_ONCE)):
                found += [Remark("Obstacle", Severity.BLOCKING, not_replaced(str(name), lost), GIVE_WAY, str(name))
                          for name, lost in obstacles(session, some, self._about.genuine) if lost]
        return found

    def reserved(self, schema: str) -> bool:
        return _RESERVED.fullmatch(schema) is not None

    def standing(self, names: Sequence[TargetName]) -> Mapping[TargetName, Sequence[StandingColumn]]:
        by_place = {((name.schema or DEFAULT_SCHEMA).casefold(), name.table.casefold()): name for name in names}
        found: dict[TargetName, list[StandingColumn]] = {}
        for some in (names[i:i + AT_ONCE] for i in range(0, len(names), AT_ONCE)):
            places = " or ".join(["o.schema_id = schema_id(?) and o.name = ?"] * len(some))
            for schema, table, column, kind, length, precision, scale, nullable, in_key in self._rows(
                    _COLUMNS.format(places=places), *(part for name in some for part in (name.schema or DEFAULT_SCHEMA, name.table))):
                declared = spelt(kind, length, precision, scale)
                match = re.fullmatch(r"n?(?:var)?char\((\d+)\)", declared)
                found.setdefault(by_place[schema.casefold(), table.casefold()], []).append(StandingColumn(
                    column, declared, field_of(column, declared).type, int(match[1]) if match else None, bool(nullable), bool(in_key)))
        return found

    def free_bytes(self) -> int | None:
        """Of Azure SQL, whose databases have a greatest size."""
        if not self._about.azure:
            return None
        try:
            [(most, used)] = self._rows("select cast(databasepropertyex(db_name(), 'MaxSizeInBytes') as bigint), "
                                        "(select sum(cast(fileproperty(name, 'SpaceUsed') as bigint)) * 8192 from sys.database_files "
                                        "where type = 0)")
        except CopyError:
            return None
        return None if most is None or used is None or most < 0 else most - used

    @contextmanager
    def scratch(self, allowed: bool) -> Iterator[Target | None]:
        if not allowed:
            yield None
            return
        target = SqlServerTarget(self.url, ledger=False)
        target.losses = self.losses
        try:
            yield target
        finally:
            target.close()

    def close(self) -> None:
        self.sessions.close()
