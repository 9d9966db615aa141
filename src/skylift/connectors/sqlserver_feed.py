"""How a SQL Server source tells what changed: by its own change tracking, or else by a rowversion column. Nothing is installed.

    change_tracking   position: the database's version. Inserts, updates and deletes, by key; kept for the database's retention
    row_version       position: the last rowversion below which nothing was uncommitted. Deletes are found by counting, and by all keys
    sweep             neither: both sides are compared (engine/buckets.py)

Only keys are taken from change tracking; the rows are read again. Positions are taken before anything is read. A watermark's
incarnation names the database, by its recovery fork where that can be seen, and the table, by its object id; for a row_version
also how many rows the table had: fewer with nothing newer means deletes.
Source: https://learn.microsoft.com/sql/relational-databases/track-changes/work-with-change-tracking-sql-server
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from skylift.connectors import SWEEP, Batches, Changes
from skylift.connectors.sql import quote
from skylift.connectors.sqlserver import Session, source_name
from skylift.errors import CopyError, SourceChanged
from skylift.model import Table, Watermark

if TYPE_CHECKING:
    from skylift.connectors.sqlserver_source import SqlServerSource

TRACKED, VERSIONED = "change_tracking", "row_version"
RETENTION_DAYS = 3                 # that change tracking should keep (behaviour.md §5.5)
QUESTIONS = 100                    # about as many tables travel in one statement

# The tables under change tracking: from which version on it is complete, and whether this login may ask for it.
_TRACKED = """
    select t.object_id, t.min_valid_version, has_perms_by_name(quotename(schema_name(o.schema_id)) + '.' + quotename(o.name), 'OBJECT',
    'VIEW CHANGE TRACKING') from sys.change_tracking_tables t join sys.objects o on o.object_id = t.object_id"""
_RETENTION = """
    select is_auto_cleanup_on, retention_period / case retention_period_units when 1 then 1440.0 when 2 then 24.0 else 1.0 end
    from sys.change_tracking_databases where database_id = db_id()"""
# What another database, or a restored one, does not share; the first that can be seen.
_IDENTITIES = (
    "select cast(recovery_fork_guid as varchar(36)) from sys.database_recovery_status where database_id = db_id()",
    "select convert(varchar(36), service_broker_guid) + convert(varchar(30), create_date, 126) from sys.databases where name = db_name()",
    "select convert(varchar(30), create_date, 126) from sys.databases where name = db_name()",
)


@dataclass(frozen=True, slots=True)
class _State:
    """What the server says of its feeds, as track found it."""

    database: str                  # its identity, as 16 hex digits
    version: int | None = None     # of change tracking; None: it is off
    row_version: int | None = None     # None: the server has no such thing
    tracked: Mapping[int, tuple[int, bool]] = field(default_factory=dict)    # object id -> first valid version, may be asked


class Feeds:
    def __init__(self, source: SqlServerSource) -> None:
        self._source = source
        self._state: _State | None = None
        self._marks: dict[str, Watermark] = {}                      # as track handed them out
        self._looks: dict[str, tuple[int, int]] = {}                # of tables with a row version, then: rows, highest version

    def notes(self) -> list[str]:
        """What is to be known about how changes will be found."""
        with self._source.sessions.connection() as session:
            rows = session.run(_RETENTION) if self._source.server.genuine else []
        if not rows:
            return ["50020: change tracking is off in the source database, so changes are found by rowversion columns, else by comparing "
                    "whole tables (alter database .. set change_tracking = on (change_retention = 3 days), and alter table .. enable "
                    "change_tracking)"]
        clean, days = rows[0]
        if clean and days < RETENTION_DAYS:
            return [f"50020: change tracking keeps only {float(days):.2g} days of changes, {RETENTION_DAYS} are advised; what is not "
                    "replicated within that time is copied whole"]
        return []

    def track(self, tables: Sequence[Table], consumer: str) -> dict[str, Watermark]:
        with self._source.sessions.connection() as session:
            self._state = state = self._look(session)
        marks = {table.path: self._mark(table, state) for table in tables}
        versioned = [table for table in tables if marks[table.path].feed == VERSIONED]
        self._looks |= self._look_at(versioned)
        for table in versioned:
            marks[table.path] = _counting(marks[table.path], self._looks[table.path][0])
        self._marks |= marks
        return marks

    def retention_days(self) -> float | None:
        """Of change tracking; None if it is off, or never forgets."""
        with self._source.sessions.connection() as session:
            rows = session.run(_RETENTION) if self._source.server.genuine else []
        return float(rows[0][1]) if rows and rows[0][0] else None

    def forecast(self, tables: Sequence[Table]) -> dict[str, Watermark]:
        """What `track` would hand out, without counting anything."""
        with self._source.sessions.connection() as session:
            state = self._look(session)
        return {table.path: self._mark(table, state) for table in tables}

    def usable(self, table: Table, since: Watermark) -> str:
        state, facts = self._known(), self._source.facts(table)
        database, _, rest = since.incarnation.partition(":")
        if database != state.database:
            return "the source is another database than at the last copy, or one restored from a backup"
        if rest.partition(":")[0] != str(facts.object_id):
            return "the table has been recreated at the source since the last copy"
        if since.feed == TRACKED:
            first, asked = state.tracked.get(facts.object_id, (None, False))
            if first is None:
                return "change tracking has been switched off for the table"
            if not asked:
                return "the right VIEW CHANGE TRACKING on the table has been taken away"
            if state.version is None or since.position > state.version:
                return "the source's change tracking is older than the last copy"
            return "" if since.position >= first else (f"change tracking has kept nothing before version {first}, and the last copy is of "
                                                       f"version {since.position}")
        if since.feed == VERSIONED:
            if not facts.row_version or state.row_version is None:
                return "the table has no rowversion column any more"
            return "" if since.position <= state.row_version else "the source's rowversions are older than the last copy"
        return f"the last copy was made by another feed, {since.feed}"

    def changed(self, since: Mapping[str, Watermark]) -> set[str]:
        paths = {mark: [path for path, one in since.items() if one.feed == mark] for mark in (TRACKED, VERSIONED)}
        return self._tracked_changes({path: since[path].position for path in paths[TRACKED]}) | self._versioned_changes(
            {path: since[path] for path in paths[VERSIONED]})

    @contextmanager
    def changes(self, table: Table, since: Watermark) -> Iterator[Changes]:
        source = self._source
        with source.sessions.connection() as session:
            state = self._look(session)             # before the snapshot: what is newer may be read, and is read again next time
        if since.feed == TRACKED and (reason := self._expired(table, since, state)):
            raise SourceChanged(f"{table.path}: {reason}")
        with source.reading(table) as session, tempfile.TemporaryFile() as file:
            keys = self._spool(session, table, since, file)
            counted = since.feed == VERSIONED
            rows_now = session.run(f"select count_big(*) from {source_name(table)}", table=table.path)[0][0] if counted else None
            if not table.key and (len(keys) or rows_now != _count_of(since)):
                raise SourceChanged(f"{table.path}: rows changed, and without a primary key nothing tells which")
            mark = self._mark(table, state)

            def seal() -> Watermark:
                return mark if rows_now is None else _counting(mark, rows_now)

            yield Changes(keys, _spooled(file), rows_now, seal, (lambda: self._keys_now(session, table)) if counted else None,
                          moving=not source.snapshots)

    # -------------------------------------------------------------- positions

    def confirm(self, consumer: str, positions: Mapping[str, int]) -> None:
        return                                     # the server forgets by its own retention

    def untrack(self, consumer: str) -> None:
        return                                     # nothing was installed

    def _known(self) -> _State:
        if self._state is None:
            with self._source.sessions.connection() as session:
                self._state = self._look(session)
        return self._state

    def _look(self, session: Session) -> _State:
        identity = ""
        for sql in _IDENTITIES:
            with suppress(CopyError):               # not there, or not to be seen by this login
                identity = identity or next((str(value) for (value,) in session.run(sql) if value), "")
        row_version, version, tracked = None, None, {}
        with suppress(CopyError):
            [(row_version,)] = session.run("select cast(min_active_rowversion() as bigint) - 1")
        if self._source.server.genuine:
            [(version,)] = session.run("select change_tracking_current_version()")
            tracked = {object_id: (first, bool(asked)) for object_id, first, asked in session.run(_TRACKED)}
        return _State(hashlib.blake2b(identity.encode(), digest_size=8).hexdigest(), version, row_version, tracked)

    def _mark(self, table: Table, state: _State) -> Watermark:
        """The best feed that the table has, and where it stands."""
        facts = self._source.facts(table)
        incarnation = f"{state.database}:{facts.object_id}"
        if state.version is not None and table.key and state.tracked.get(facts.object_id, (0, False))[1]:
            return Watermark(TRACKED, state.version, incarnation)
        if state.row_version is not None and facts.row_version:
            return Watermark(VERSIONED, state.row_version, incarnation)
        return Watermark(SWEEP, 0, incarnation, why=self._why_none(table, state))

    def _why_none(self, table: Table, state: _State) -> str:
        if not table.key:
            return "it has neither a primary key nor a column of type rowversion"
        if state.version is None:
            return "change tracking is off for the database, and it has no column of type rowversion"
        if self._source.facts(table).object_id not in state.tracked:
            return "change tracking is off for it, and it has no column of type rowversion"
        return "the login lacks the right VIEW CHANGE TRACKING on it, and it has no column of type rowversion"

    # -------------------------------------------------------------- what has changed

    def _expired(self, table: Table, since: Watermark, state: _State) -> str:
        first = state.tracked.get(self._source.facts(table).object_id, (None, False))[0]
        return "" if first is not None and since.position >= first else "its changes are no longer all kept by change tracking"

    def _tracked_changes(self, since: Mapping[str, int]) -> set[str]:
        if not since:
            return set()
        source, found = self._source, set()
        with source.sessions.connection() as session:
            [(version,)] = session.run("select change_tracking_current_version()")
            paths = [path for path, position in since.items() if position != version]
            for begin in range(0, len(paths), QUESTIONS):
                some = paths[begin:begin + QUESTIONS]
                asked = " union all ".join(
                    f"select {i} where exists (select 1 from changetable(changes {source_name(source.table_of(path))}, {since[path]}) as c)"
                    for i, path in enumerate(some))
                found |= {some[i] for (i,) in session.run(asked)}
        return found

    def _versioned_changes(self, since: Mapping[str, Watermark]) -> set[str]:
        """A table whose rows are as many and none of them newer. What track has seen is looked at again only to catch up with it."""
        again = [path for path, mark in since.items() if path not in self._looks or mark == self._marks.get(path)]
        looks = self._looks | self._look_at([self._source.table_of(path) for path in again])
        return {path for path, mark in since.items() if looks[path][1] > mark.position or looks[path][0] != _count_of(mark)}

    def _look_at(self, tables: Sequence[Table]) -> dict[str, tuple[int, int]]:
        """Of each table with a row version: its rows, and the highest version among them. One scan of the table."""
        looks: dict[str, tuple[int, int]] = {}
        with self._source.sessions.connection() as session:
            for begin in range(0, len(tables), QUESTIONS):
                some = tables[begin:begin + QUESTIONS]
                asked = " union all ".join(
                    f"select {i}, count_big(*), coalesce(cast(max({quote(self._source.facts(table).row_version)}) as bigint), 0) "
                    f"from {source_name(table)}" for i, table in enumerate(some))
                looks |= {some[i].path: (rows, version) for i, rows, version in session.run(asked)}
        return looks

    def _spool(self, session: Session, table: Table, since: Watermark, file) -> pa.Table:
        """Write the touched rows that exist into `file`, and return the touched keys: one statement tells both."""
        source, keys = self._source, []
        key_schema = pa.schema([table.schema.field(column) for column in table.key])
        tracked = since.feed == TRACKED
        if tracked:
            names = [f"_skylift_k{i}" for i in range(len(table.key))]
            touched = ", ".join(f"{quote(column)} as {name}" for column, name in zip(table.key, names, strict=True))
            same = " and ".join(f"r.{quote(column)} = c.{name}" for column, name in zip(table.key, names, strict=True))
            tail = (f"from (select {touched} from changetable(changes {source_name(table)}, {since.position}) as x) as c "
                    f"left join {source_name(table)} as r on {same}")
        else:
            tail = (f"from {source_name(table)} as r where r.{quote(source.facts(table).row_version)} > "
                    f"cast(cast({since.position} as bigint) as binary(8))")
        with pa.ipc.new_stream(file, table.schema) as writer:
            for batch in source.read_sql(session, table, tail, keyed=tracked):
                rows = batch
                if tracked:
                    keys.append(pa.RecordBatch.from_arrays(batch.columns[len(table.schema):], schema=key_schema))
                    rows = batch.filter(pc.is_valid(batch.column(table.key[0])))
                    rows = pa.RecordBatch.from_arrays(rows.columns[:len(table.schema)], schema=table.schema)
                elif table.key:
                    keys.append(batch.select(list(table.key)))
                else:
                    raise SourceChanged(f"{table.path}: rows changed, and without a primary key nothing tells which")
                writer.write_batch(rows)
        return pa.Table.from_batches(keys, key_schema)

    def _keys_now(self, session: Session, table: Table) -> Batches:
        schema = pa.schema([table.schema.field(column) for column in table.key])
        types = tuple(table.source_types[table.schema.get_field_index(column)] for column in table.key)
        keys = Table(table.name, schema, table.key, source_types=types, namespace=table.namespace)
        yield from self._source.read_sql(session, keys, f"from {source_name(table)} as r")


def _spooled(file) -> Batches:
    file.seek(0)
    with pa.ipc.open_stream(file) as reader:
        yield from reader


def _counting(mark: Watermark, rows: int) -> Watermark:
    return Watermark(mark.feed, mark.position, ":".join([*mark.incarnation.split(":")[:2], str(rows)])) if mark.feed == VERSIONED else mark


def _count_of(mark: Watermark) -> int:
    """The rows that the table had, -1 if it was not counted."""
    return int(mark.incarnation.split(":")[2]) if mark.incarnation.count(":") == 2 else -1
