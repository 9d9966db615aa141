"""One picture of a PostgreSQL database that any number of connections read in."""

from __future__ import annotations

import secrets

import psycopg
from sqlalchemy.engine import URL

from skylift.connectors.postgres import connect, told

# How PostgreSQL says, depending on its version, that nobody holds the snapshot any more.
GONE = (psycopg.errors.InvalidParameterValue, psycopg.errors.UndefinedObject, psycopg.errors.ObjectNotInPrerequisiteState)


class Snapshot:
    """An exported snapshot, held by a connection of its own (https://www.postgresql.org/docs/current/functions-admin.html).

    `position`: whatever a transaction with a lower number did is in the picture, and whatever is not in it will have been done by a
    transaction with this number or a higher one. Sequence numbers and log positions say neither: their order is not that of commits.
    """

    def __init__(self, url: URL) -> None:
        self._connection = connect(url)
        with told(url):
            self._connection.execute("begin isolation level repeatable read, read only")
            [(self.id, self.position, self._end)] = self._connection.execute("""
                select pg_export_snapshot(), pg_snapshot_xmin(s)::text::int8, pg_snapshot_xmax(s)::text::int8
                from pg_current_snapshot() s""").fetchall()
            # Taken afterwards: what the snapshot sees was written before this place in the write-ahead log.
            [(self.lsn,)] = self._connection.execute(
                "select case when not pg_is_in_recovery() then pg_current_wal_insert_lsn()::text end").fetchall()
        self.token = secrets.token_hex(8)

    def number(self, transaction: int) -> int:
        """The number whose lower 32 bits these are: the one that lies nearest."""
        return self._end + (transaction - self._end + 2**31) % 2**32 - 2**31

    def join(self, connection: psycopg.Connection) -> None:
        """Begin a transaction that sees the picture. Raises one of GONE."""
        connection.execute(f"begin isolation level repeatable read, read only; set transaction snapshot '{self.id}'")

    def stands(self) -> bool:
        """Is it still held?"""
        try:
            self._connection.execute("select 1")
        except psycopg.Error:
            return False
        return True

    def close(self) -> None:
        self._connection.close()
