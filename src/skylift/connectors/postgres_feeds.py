"""Which feed a PostgreSQL source has for each table, and where each stands.

Whatever feed it is, it tells the keys of touched rows, and rows are read again from their table in the snapshot. Positions are transaction
numbers. A role that owns tables and may create a schema keeps this in the source, and nothing else:

    _skylift.tokens(token, position)               one for each snapshot that was copied: a restored backup lacks the newest
    _skylift.consumers(consumer, oid, feed, ..)    who reads which table's feed, and how far it has confirmed
    _skylift.tables, _skylift.log, triggers        postgres_log.py
    a publication and a slot for each consumer     postgres_slot.py
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import psycopg
import pyarrow as pa
from psycopg import sql
from psycopg.pq import TransactionStatus

from skylift.connectors import SWEEP, Batches, Changes
from skylift.connectors.postgres import Connection
from skylift.connectors.postgres_catalog import FILES, Facts
from skylift.connectors.postgres_log import ChangeLog
from skylift.connectors.postgres_slot import Slot
from skylift.connectors.postgres_snapshot import GONE, Snapshot
from skylift.connectors.sql import quote
from skylift.errors import SourceChanged
from skylift.model import ARROW, Table, Watermark

if TYPE_CHECKING:
    from skylift.connectors.postgres_source import PostgresSource

KEYS_PER_QUERY = 10_000
LOCK = 0x736B796C696674            # of the advisory lock that whoever changes the schema `_skylift` takes: 'skylift'
_NOT_NOW = "neither a replication slot nor triggers could be set up now"
# Which database it is, whether it takes no writes, and whether the schema _skylift can be made or is there to be used.
STATE = """
select (select system_identifier from pg_control_system()) || '-' || d.oid,
    pg_is_in_recovery() or current_setting('default_transaction_read_only') <> 'off',
    coalesce(has_schema_privilege(n.oid, 'create, usage'), has_database_privilege(d.oid, 'create'))
from pg_database d left join pg_namespace n on nspname = '_skylift' where datname = current_database()"""
_SCHEMA = """
create schema if not exists _skylift;
create table if not exists _skylift.tokens (token text primary key, position int8 not null);
create table if not exists _skylift.consumers (consumer text, oid int8, feed text not null, generation text not null,
    position int8 not null, primary key (consumer, oid));
"""


@dataclass(slots=True)
class Tracked:
    """A table's feed, and the snapshot that it is read in."""

    facts: Facts
    feed: str
    generation: str                # another one: the feed has not told everything since
    snapshot: Snapshot
    why: str = ""                  # there is no feed


class Feeds:
    def __init__(self, source: PostgresSource, allowed: Sequence[str]) -> None:
        self._source = source
        self.allowed = allowed
        self._log, self._slot = ChangeLog(source), Slot(source)
        self._tracked: dict[str, Tracked] = {}
        self._snapshots: list[Snapshot] = []
        self._tokens: set[str] = set()
        self._database = ""
        self._lock = threading.RLock()

    # -------------------------------------------------------------- from one run to the next

    def track(self, tables: Sequence[Table], consumer: str) -> dict[str, Watermark]:
        source = self._source
        with self._lock, source.connection() as connection:
            facts = source.refresh(connection, tables)
            [(self._database, read_only, may_create)] = connection.execute(STATE).fetchall()
            fed = [f for f in facts.values() if f.owned and f.permanent and f.local]
            feeds = self._install(connection, fed, consumer) if fed and not read_only and may_create and self.allowed else {}
            snapshot = self._snapshot(tables, facts, feeds)
            for table in tables:
                feed, generation = feeds.get(facts[table.path].oid, (SWEEP, snapshot.token))
                why = self.why_none(facts[table.path], read_only, may_create) if feed == SWEEP else ""
                self._tracked[table.path] = Tracked(facts[table.path], feed, generation, snapshot, why)
            if feeds:                              # what follows this moment is kept until it is confirmed
                connection.execute("""
                    insert into _skylift.consumers select %s, oid, feed, generation, %s
                    from unnest(%s::int8[], %s::text[], %s::text[]) u(oid, feed, generation)
                    on conflict (consumer, oid) do update set feed = excluded.feed, generation = excluded.generation, position =
                        case when consumers.generation = excluded.generation then consumers.position else excluded.position end""",
                    (consumer, snapshot.position, list(feeds), *map(list, zip(*feeds.values(), strict=True))))
                self._tokens = {token for (token,) in connection.execute("select token from _skylift.tokens")}
        return {table.path: self._watermark(self._tracked[table.path]) for table in tables}

    def why_none(self, facts: Facts, read_only: bool, may_create: bool, otherwise: str = _NOT_NOW) -> str:
        """Why a table has no feed, the right that is missing named; `otherwise` where nothing is known that stands in the way."""
        url = self._source.url
        reasons = {
            "the URL says feed=none": not self.allowed,
            "the server is read-only": read_only,
            f"user '{url.username}' lacks the right CREATE on database {url.database}": not may_create,
            f"user '{url.username}' does not belong to the owner of the table": not facts.owned,
            "it is unlogged": not facts.permanent,
            "it has a partition that is a foreign table": not facts.local}
        return next((why for why, holds in reasons.items() if holds), otherwise)

    def _install(self, connection: psycopg.Connection, fed: Sequence[Facts], consumer: str) -> dict[int, tuple[str, str]]:
        """Feed and generation of the tables that can have one, by object id; none where somebody else's `_skylift` stands."""
        connection.execute(f"select pg_advisory_lock({LOCK})")
        try:
            connection.execute(_SCHEMA)
            return self._feeds(connection, fed, consumer)
        except psycopg.errors.InsufficientPrivilege:
            connection.execute("rollback")
            return {}
        finally:
            if connection.info.transaction_status == TransactionStatus.IDLE:    # otherwise the connection is closed
                connection.execute(f"select pg_advisory_unlock({LOCK})")

    def _feeds(self, connection: psycopg.Connection, fed: Sequence[Facts], consumer: str) -> dict[int, tuple[str, str]]:
        known = {oid: (feed, generation) for oid, feed, generation in connection.execute(
            "select oid, feed, generation from _skylift.consumers where consumer = %s", (consumer,))}
        # A table keeps the feed that it has: another one would mean to copy it whole.
        by_slot = [f for f in fed if "slot" in self.allowed and f.identified and known.get(f.oid, ("slot",))[0] == "slot"]
        generations = self._slot.join(connection, consumer, by_slot, {oid: g for oid, (feed, g) in known.items() if feed == "slot"})
        feeds = {oid: ("slot", generation) for oid, generation in generations.items()}
        if "change_log" in self.allowed:
            logged = self._log.install(connection, [f for f in fed if f.oid not in feeds])
            feeds |= {oid: ("change_log", generation) for oid, generation in logged.items()}
        return {oid: feed for oid, feed in feeds.items() if feed[1]}

    def _snapshot(self, tables: Sequence[Table], facts: Mapping[str, Facts], feeds: Mapping[int, tuple[str, str]]) -> Snapshot:
        """The newest one if it still stands and nothing about these tables is new, else another: each holds a connection."""
        newest = self._snapshots[-1] if self._snapshots else None

        def unaltered(path: str) -> bool:
            now, before = facts[path], self._tracked.get(path)
            return bool(newest and before and before.snapshot is newest and before.facts.relation == now.relation
                        and feeds.get(now.oid, (SWEEP, newest.token)) == (before.feed, before.generation))

        if newest and all(unaltered(table.path) for table in tables) and newest.stands():
            return newest
        return self._take(bool(feeds))

    def _take(self, with_token: bool) -> Snapshot:
        """A new snapshot. Its token is committed afterwards, so that whoever has it has all that the snapshot sees."""
        snapshot = Snapshot(self._source.url)
        self._snapshots.append(snapshot)
        if with_token:                             # on disk, and with it every commit that the snapshot sees: the slot is read from there
            with self._source.connection() as connection:
                connection.execute(f"begin; set local synchronous_commit = local; "
                                   f"insert into _skylift.tokens values ('{snapshot.token}', {snapshot.position}); commit")
            self._tokens.add(snapshot.token)
        return snapshot

    def usable(self, table: Table, since: Watermark) -> str:
        now = self._tracked[table.path]
        if since.feed != now.feed:
            return f"the last copy was made with another feed, {since.feed}"
        if since.feed == SWEEP:                    # asked for a copy that was begun before
            return "" if since == self._watermark(now) else "the snapshot that it was read in is gone"
        database, relation, generation, token = since.incarnation.split("/")
        if database != self._database or token not in self._tokens:
            return "the source is another database than at the last copy, or a backup restored from before it"
        if relation != now.facts.relation:
            return "the table was recreated, emptied or rewritten since the last copy"
        if generation != now.generation:
            return self._slot.trouble or "the table's feed begins after the last copy (its triggers, key or publication were changed)"
        return ""

    def _watermark(self, tracked: Tracked) -> Watermark:
        snapshot = tracked.snapshot
        incarnation = "/".join((self._database, tracked.facts.relation, tracked.generation, snapshot.token))
        return Watermark(tracked.feed, snapshot.position, incarnation, why=tracked.why)

    def confirm(self, consumer: str, positions: Mapping[str, int]) -> None:
        with self._lock, self._source.connection() as connection:
            fed = {self._tracked[path].facts.oid: position for path, position in positions.items()
                   if path in self._tracked and self._tracked[path].feed != SWEEP}
            if fed:
                connection.execute("""
                    update _skylift.consumers c set position = u.position from unnest(%s::int8[], %s::int8[]) u(oid, position)
                    where c.oid = u.oid and consumer = %s""", (list(fed), list(fed.values()), consumer))
                connection.execute("delete from _skylift.consumers c where not exists (select from pg_class where oid = c.oid::oid)")
                self._log.prune(connection)
                self._slot.advance(connection, consumer, fed)
                connection.execute("delete from _skylift.tokens where position < (select min(position) from _skylift.consumers)")
        self.release()

    def untrack(self, consumer: str) -> None:
        self.release()
        with self._source.connection() as connection:
            self._slot.drop(connection, consumer)
            if not connection.execute("select to_regclass('_skylift.consumers')::oid").fetchall()[0][0]:
                return
            connection.execute("delete from _skylift.consumers where consumer = %s", (consumer,))
            if not connection.execute("select from _skylift.consumers limit 1").fetchall():
                self._log.remove(connection)
                connection.execute("drop schema if exists _skylift cascade")

    def release(self) -> None:
        with self._lock:
            self._tracked.clear()
            while self._snapshots:
                self._snapshots.pop().close()

    # -------------------------------------------------------------- within a run

    def begin(self, connection: psycopg.Connection, path: str) -> Snapshot | None:
        """Begin a transaction in the table's snapshot, which is returned; an untracked table is read as it is now.

        A server that was restarted has lost its snapshots. Tables whose feeds tell what was touched since the watermark are read
        on in a later one; for others that would be two pictures in one copy: raises SourceChanged.
        """
        tracked = self._tracked.get(path)
        if tracked is None:
            connection.execute("begin isolation level repeatable read, read only")
            return None
        snapshot = tracked.snapshot
        try:
            snapshot.join(connection)
        except GONE:
            connection.execute("rollback")
            if tracked.feed == SWEEP:
                raise SourceChanged(f"{path}: the snapshot that it was read in is gone: the server was restarted") from None
            with self._lock:
                if tracked.snapshot is snapshot:
                    later = self._take(with_token=True)
                    for other in self._tracked.values():
                        if other.snapshot is snapshot and other.feed != SWEEP:
                            other.snapshot = later
                snapshot = tracked.snapshot
            snapshot.join(connection)
        return snapshot

    def check(self, connection: psycopg.Connection, path: str) -> None:
        """After a table was read: raises SourceChanged where its snapshot may have shown it without rows that it had.

        TRUNCATE and what rewrites a table do that to older snapshots (https://www.postgresql.org/docs/current/mvcc-caveats.html).
        """
        if tracked := self._tracked.get(path):
            [(files,)] = connection.execute(FILES, {"oid": tracked.facts.oid}).fetchall()
            if files != tracked.facts.files:
                raise SourceChanged(f"{path}: the table was emptied or rewritten while it was read")

    def changed(self, since: Mapping[str, Watermark]) -> set[str]:
        found: set[str] = set()
        with self._source.connection() as connection:
            for (feed, snapshot), paths in self._groups(since).items():
                wanted = {self._tracked[path].facts.oid: path for path in paths}
                positions = {oid: since[path].position for oid, path in wanted.items()}
                if feed == "slot":
                    touched = self._slot.told(snapshot).touched(positions)
                else:
                    self.begin(connection, paths[0])
                    touched = self._log.touched(connection, positions)
                    connection.execute("commit")
                found |= {wanted[oid] for oid in touched}
        return found

    def _groups(self, paths: Iterable[str]) -> dict[tuple[str, Snapshot], list[str]]:
        groups: dict[tuple[str, Snapshot], list[str]] = defaultdict(list)
        for path in paths:
            tracked = self._tracked[path]
            if tracked.feed != SWEEP:
                groups[tracked.feed, tracked.snapshot].append(path)
        return groups

    @contextmanager
    def changes(self, table: Table, since: Watermark) -> Iterator[Changes]:
        tracked, source = self._tracked[table.path], self._source
        with source.reading(table) as connection:
            snapshot = tracked.snapshot
            if tracked.feed == "slot":
                keys = self._slot.told(snapshot).keys(tracked.facts.oid, since.position)
            else:
                keys = self._log.keys(connection, tracked.facts.oid, since.position)
            if keys is None:
                raise SourceChanged(f"{table.path}: what was touched cannot be told, as its key columns were altered meanwhile")
            if keys and not table.key:
                raise SourceChanged(f"{table.path}: rows changed, and without a primary key the feed cannot tell which")

            def seal() -> Watermark:
                self.check(connection, table.path)
                return self._watermark(tracked)

            yield Changes(self._keys(connection, table, keys), self._rows(connection, table, keys), None, seal)

    def _keys(self, connection: Connection, table: Table, keys: Sequence[Sequence[str]]) -> pa.Table:
        """The keys, given as text, with the types that they move as."""
        key = key_table(table)
        batches: list[pa.RecordBatch] = []
        for given in _slices(keys):
            columns = ", ".join(f"k{i}::{declared} as {quote(name)}" for i, (name, declared) in
                                enumerate(zip(key.schema.names, key.source_types, strict=True)))
            batches += self._source.batches(connection, key, f"from (select {columns} from {given}) k")
        return pa.Table.from_batches(batches, key.schema)

    def _rows(self, connection: Connection, table: Table, keys: Sequence[Sequence[str]]) -> Batches:
        """The rows that exist of these keys, each once: its key is compared as a value, for the index, and as text.

        Values that are equal may differ as text, where a collation ignores case or a number has zeros at its end.
        """
        key = key_table(table)
        same = " and ".join(f'r.{quote(name)} = k{i}::{declared} and concat(r.{quote(name)}) = k{i} collate "C"' for i, (name, declared) in
                            enumerate(zip(key.schema.names, key.source_types, strict=True)))
        rows = self._tracked[table.path].facts.sql
        for given in _slices(keys):
            yield from self._source.batches(connection, table, f"from (select r.* from {given} join {rows} r on {same}) r")

    def close(self) -> None:
        self.release()


def key_table(table: Table) -> Table:
    """The table as if it had its key columns only."""
    types = dict(zip(table.schema.names, table.source_types, strict=True))
    return replace(table, schema=pa.schema([table.schema.field(k) for k in table.key]), source_types=tuple(types[k] for k in table.key),
                   format=ARROW)


def _slices(keys: Sequence[Sequence[str]]) -> Iterator[str]:
    """The keys as tables k(k0, k1, ..) of text, a bounded number in each."""
    for first in range(0, len(keys), KEYS_PER_QUERY):
        columns = zip(*keys[first:first + KEYS_PER_QUERY], strict=True)
        arrays = [f"{sql.Literal(list(column)).as_string()}::text[]" for column in columns]
        yield f"unnest({', '.join(arrays)}) k({', '.join(f'k{i}' for i in range(len(arrays)))})"
