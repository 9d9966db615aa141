"""Logical decoding as the feed of a PostgreSQL source: one publication and one slot for each consumer.

The slot is read by `pg_logical_slot_peek_binary_changes` over a plain connection, as often as needed, and moved on when the target has
committed. Only keys are taken from it. A slot keeps the write-ahead log that it has not confirmed: a consumer that stops without `untrack`
fills the server's disk, unless max_slot_wal_keep_size limits it; then the slot is lost, which is noticed, and its tables are copied whole.

A publication makes PostgreSQL refuse updates of tables whose rows it could not identify: only tables with a replica identity are in it.
Messages: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html, version 1.
"""

from __future__ import annotations

import secrets
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg
from psycopg import errors as pg

from skylift.connectors.postgres_catalog import Facts
from skylift.connectors.postgres_snapshot import Snapshot
from skylift.errors import SourceChanged

if TYPE_CHECKING:
    from skylift.connectors.postgres_source import PostgresSource

WAIT_S = 20                        # how long to wait for transactions that were running when a slot is made or a table joins it
KEPT_WAL_BYTES = 4 * 2**30         # that tables which no run asks for any more may hold back
MAX_KEYS = 2_000_000               # of one table: more are not kept in memory, the table is copied whole
MAY_REPLICATE = """(select rolsuper or rolreplication or exists (select from pg_roles where rolname in ('rds_replication', 'rds_superuser',
    'azure_pg_admin', 'cloudsqlsuperuser') and pg_has_role(oid, 'member')) from pg_roles where rolname = current_user)"""
_REFUSED = (pg.InsufficientPrivilege, pg.ConfigurationLimitExceeded, pg.ObjectNotInPrerequisiteState, pg.QueryCanceled, pg.LockNotAvailable,
            pg.FeatureNotSupported, pg.ObjectInUse)


class Slot:
    def __init__(self, source: PostgresSource) -> None:
        self._source = source
        self._name = ""
        self._told: Told | None = None
        self._lock = threading.Lock()
        self.trouble = ""          # why the tables of this consumer are copied whole

    # -------------------------------------------------------------- which tables

    def join(self, connection: psycopg.Connection, consumer: str, tables: Sequence[Facts], known: Mapping[int, str]) -> dict[int, str]:
        """Generations of the tables that the consumer's slot feeds from now on, by object id; none if there can be no slot.

        '' for a table that has just joined and is still being written by who began before.
        """
        [(self._name, possible, state, published)] = connection.execute(f"""
            select '_skylift_' || substr(md5(concat(d.oid, '/', %s::text)), 1, 12), current_setting('wal_level') = 'logical' and
                {MAY_REPLICATE} and has_database_privilege(d.oid, 'create'), s.wal_status, p.oid is not null
            from pg_database d
                left join pg_replication_slots s on s.slot_name = '_skylift_' || substr(md5(concat(d.oid, '/', %s::text)), 1, 12)
                left join pg_publication p on p.pubname = '_skylift_' || substr(md5(concat(d.oid, '/', %s::text)), 1, 12)
            where d.datname = current_database()""", (consumer, consumer, consumer)).fetchall()
        if not possible or not (tables or known):
            return {}
        alive = published and state not in (None, "lost")
        if known and not alive:
            self.trouble = ("the replication slot was lost: more had been written than max_slot_wal_keep_size lets it keep"
                            if state == "lost" else "the replication slot or its publication is gone")
        try:
            joined = self._publish(connection, tables)
            known = {oid: generation for oid, generation in known.items() if alive and oid not in joined}
            if not alive:
                self._drop_slot(connection)
                connection.execute(f"set statement_timeout = '{WAIT_S}s'")
                connection.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", (self._name,))
                connection.execute("set statement_timeout = 0")
        except _REFUSED:
            self.drop(connection)
            return {}
        settled = self._settled(connection, [oid for facts in tables if facts.oid not in known for oid in facts.oids])
        return {facts.oid: known.get(facts.oid) or (secrets.token_hex(8) if settled else "") for facts in tables}

    def _publish(self, connection: psycopg.Connection, tables: Sequence[Facts]) -> set[int]:
        """Make these tables members of the publication; who has joined. Those that would make an application's updates fail leave it."""
        if not connection.execute("select from pg_publication where pubname = %s", (self._name,)).fetchall():
            connection.execute(f"create publication {self._name} with (publish = 'insert, update, delete',"
                               " publish_via_partition_root = true)")
        members: dict[int, str] = dict(connection.execute("""
            select prrelid::int8, format('%%I.%%I', nspname, relname) from pg_publication_rel join pg_class c on c.oid = prrelid
                join pg_namespace n on n.oid = relnamespace join pg_publication p on p.oid = prpubid
            where pubname = %s""", (self._name,)).fetchall())
        unfit = set(members) - {facts.oid for facts in tables}
        for oid in unfit & {facts.oid for facts in self._source.known() if not facts.identified}:
            connection.execute(f"alter publication {self._name} drop table only {members[oid]}")
        new = [facts for facts in tables if facts.oid not in members]
        if new:
            connection.execute(f"alter publication {self._name} add table {', '.join(facts.sql for facts in new)}")
        return {facts.oid for facts in new}

    def _settled(self, connection: psycopg.Connection, oids: Sequence[int]) -> bool:
        """Wait for whoever wrote to these tables before they were published: no feed has those rows, so a snapshot must see them.

        Waiting takes no lock, so applications do not wait. False if it takes too long.
        """
        def writers() -> set[str]:
            return {number for (number,) in connection.execute("""
                select distinct virtualtransaction from pg_locks where locktype = 'relation' and relation = any (%s::oid[]) and granted
                    and database = (select oid from pg_database where datname = current_database())
                    and mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')""", (list(oids),))}

        until, waited_for = time.monotonic() + WAIT_S, writers()
        while waited_for := waited_for & writers():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def advance(self, connection: psycopg.Connection, consumer: str, positions: Mapping[int, int]) -> None:
        """Let go of the write-ahead log that no table of the consumer needs any more."""
        if self._told is None:
            return
        held: dict[int, int] = dict(connection.execute(
            "select oid, position from _skylift.consumers where consumer = %s and feed = 'slot'", (consumer,)).fetchall())
        [(kept,)] = connection.execute("select coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)), 0)::int8"
                                       " from pg_replication_slots where slot_name = %s", (self._name,)).fetchall()
        if kept > KEPT_WAL_BYTES and (idle := held.keys() - positions.keys()):       # copied whole when they are asked for again
            connection.execute("delete from _skylift.consumers where consumer = %s and oid = any (%s)", (consumer, list(idle)))
            held = {oid: position for oid, position in held.items() if oid in positions}
        place = self._told.place_before(min(held.values(), default=self._told.snapshot.position))
        if place:
            with suppress(pg.ObjectNotInPrerequisiteState, pg.UndefinedObject):     # it stands there already; it is gone
                connection.execute("select pg_replication_slot_advance(%s, %s)", (self._name, place))

    def drop(self, connection: psycopg.Connection, consumer: str = "") -> None:
        if consumer:
            [(self._name,)] = connection.execute("select '_skylift_' || substr(md5(concat(oid, '/', %s::text)), 1, 12)"
                                                 " from pg_database where datname = current_database()", (consumer,)).fetchall()
        connection.execute("set statement_timeout = 0")
        self._drop_slot(connection)
        connection.execute(f"drop publication if exists {self._name}")

    def _drop_slot(self, connection: psycopg.Connection) -> None:
        connection.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = %s", (self._name,))
        self._told = None

    # -------------------------------------------------------------- what was touched

    def told(self, snapshot: Snapshot) -> Told:
        """What the slot holds of all transactions that the snapshot sees, perhaps of some more; read once for each snapshot.

        It does no harm to hear of more: their keys are read as the snapshot sees them, and once more when their turn has come.
        """
        with self._lock:
            if self._told is None or self._told.snapshot is not snapshot:
                told = Told(snapshot, {facts.oid: [name for name, _ in facts.key] for facts in self._source.known()})
                with self._source.connection() as connection:
                    try:
                        with connection.transaction(), connection.cursor("peek", binary=True) as cursor:
                            cursor.itersize = 5000
                            cursor.execute("select data from pg_logical_slot_peek_binary_changes(%s, %s, null, 'proto_version', '1',"
                                           " 'publication_names', %s)", (self._name, snapshot.lsn, self._name))
                            for (message,) in cursor:
                                told.take(message)
                    except (pg.UndefinedObject, pg.ObjectNotInPrerequisiteState) as error:   # the publication or the slot is gone
                        self.trouble = f"the replication slot cannot be read: {error.diag.message_primary}"
                        told.untellable = self.trouble
                        self._drop_slot(connection)
                self._told = told
            return self._told


class Told:
    """What a slot tells: of each table the touched keys as text, each with the number of the last transaction that touched it."""

    def __init__(self, snapshot: Snapshot, keyed: Mapping[int, Sequence[str]]) -> None:
        self.snapshot = snapshot
        self._keyed = keyed                        # names of the key's columns
        self.untellable = ""                       # why nothing can be told
        self._keys: dict[int, dict[tuple[str, ...], int]] = {}
        self._blind: dict[int, int] = {}           # tables of which not every key could be told, with the last such transaction
        self._ends: list[tuple[int, str]] = []     # transactions in the order of their commits, and the place after each
        self._columns: dict[int, list[int]] = {}   # places of the key's columns
        self._transaction = 0

    def touched(self, positions: Mapping[int, int]) -> set[int]:
        if self.untellable:
            return set(positions)
        return {oid for oid, position in positions.items() if self._blind.get(oid, -1) >= position or
                any(transaction >= position for transaction in self._keys.get(oid, {}).values())}

    def keys(self, oid: int, position: int) -> list[Sequence[str]] | None:
        """The keys touched since, as text; None if they cannot be told. Raises SourceChanged if nothing can."""
        if self.untellable:
            raise SourceChanged(self.untellable)
        if self._blind.get(oid, -1) >= position:
            return None
        return [key for key, transaction in self._keys.get(oid, {}).items() if transaction >= position]

    def place_before(self, position: int) -> str:
        """The place in the write-ahead log up to which all transactions have lower numbers; '' if there is none."""
        if self.untellable:
            return ""
        place = ""
        for transaction, end in self._ends:
            if transaction >= position:
                return place
            place = end
        return self.snapshot.lsn

    # -------------------------------------------------------------- messages

    def take(self, message: bytes) -> None:
        kind = message[0:1]
        if kind in b"IUD":
            self._touch(struct.unpack_from(">I", message, 1)[0], message)
        elif kind == b"B":
            [transaction] = struct.unpack_from(">I", message, 17)
            self._transaction = self.snapshot.number(transaction)
        elif kind == b"C":
            high, low = struct.unpack_from(">II", message, 10)
            self._ends.append((self._transaction, f"{high:X}/{low:X}"))
        elif kind == b"R":
            self._relation(message)

    def _relation(self, message: bytes) -> None:
        """Object id, schema, name, replica identity, columns: flags, name, type, modifier."""
        [oid] = struct.unpack_from(">I", message, 1)
        at = message.index(b"\0", message.index(b"\0", 5) + 1) + 2
        [count] = struct.unpack_from(">H", message, at)
        at, names = at + 2, []
        for _ in range(count):
            end = message.index(b"\0", at + 1)
            names.append(message[at + 1:end].decode())
            at = end + 9
        key = self._keyed.get(oid, ())
        self._columns[oid] = [names.index(name) for name in key] if set(key) <= set(names) else []

    def _touch(self, oid: int, message: bytes) -> None:
        """Note the key in each tuple of the message. An update has the old one only where the key is another."""
        at, found = 5, []
        while at < len(message):
            kind = message[at:at + 1]
            key, at = _key(message, at + 1, self._columns.get(oid, []), last=kind == b"N" or message[0:1] == b"D")
            if key:
                found.append(key)
            elif kind != b"N" or not found:        # a new tuple leaves out a large key that did not change: the old one has it
                self._blind[oid] = self._transaction
                return
        known = self._keys.setdefault(oid, {})
        for key in found:
            known[key] = self._transaction
        if len(known) > MAX_KEYS:
            known.clear()
            self._blind[oid] = self._transaction


def _key(message: bytes, at: int, places: Sequence[int], last: bool) -> tuple[tuple[str, ...] | None, int]:
    """The key in a tuple, None if it is not there, and where the next tuple begins (the end, if this is the last one)."""
    [count] = struct.unpack_from(">H", message, at)
    at += 2
    values: dict[int, str] = {}
    for place in range(count):
        if last and len(values) == len(places):
            break
        kind, at = message[at], at + 1             # n: null, u: unchanged, t: text
        if kind == 116:
            [length] = struct.unpack_from(">I", message, at)
            if place in places:
                values[place] = message[at + 4:at + 4 + length].decode()
            at += 4 + length
    return (tuple(values[place] for place in places) if places and len(values) == len(places) else None), len(message) if last else at
