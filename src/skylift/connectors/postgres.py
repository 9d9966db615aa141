"""PostgreSQL 13 and later, what its source and its target share: URLs, connections, errors, names and types.

`postgresql://user:password@host:port/database?sslmode=require`; any other parameter of libpq may follow
(https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import errors as pg
from psycopg.abc import RV, PQGen
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow
from psycopg.waiting import Wait
from sqlalchemy.engine import URL

from skylift.connectors import silence
from skylift.connectors.pooling import LIMIT, Pool
from skylift.connectors.sql import fit, quote
from skylift.errors import CopyError, SetupError, SkyliftError, SourceFailed, TargetFailed, Transient, ValueRefused

DEFAULT_SCHEMA = "public"          # of tables whose namespace, or whose target's schema, is ''
PG_BINARY = "pg_binary"            # format: one binary column, each value a row as it stands in binary COPY, without header and trailer
MAX_NAME_BYTES = 63                # PostgreSQL cuts longer names with no more than a NOTICE

# A peer that is gone without a word is found out within about a minute, whether skylift reads or writes.
_PARAMETERS = {"connect_timeout": "10", "keepalives": "1", "keepalives_idle": "20", "keepalives_interval": "10", "keepalives_count": "4",
               "tcp_user_timeout": "60000", "application_name": "skylift", "client_encoding": "UTF8"}
# Whatever the server, database or role prefers: values are spelt one way, waiting for locks ends, work does not, and policies that
# would hide rows are an error.
_SETTINGS = """set timezone = 'UTC'; set datestyle = 'ISO, YMD'; set intervalstyle = 'iso_8601'; set bytea_output = 'hex';
set extra_float_digits = 1; set lock_timeout = '30s'; set statement_timeout = 0; set search_path = public;
set idle_in_transaction_session_timeout = 0; set client_min_messages = warning; set row_security = off"""
READ_ONLY = "skylift_read_only"    # parameter of a URL: whatever would write is refused by the server
_LATER_SETTINGS = {140000: "set idle_session_timeout = 0", 170000: "set transaction_timeout = 0"}

# What a column moves as between databases of different kinds: by its type as format_type() spells it, without the modifier.
# Everything else (json, arrays, intervals, enums, ranges, network addresses, numeric without precision ...) moves as the
# text that `::text` makes of it. docs/types.md says the same in words.
_TYPES = {"boolean": pa.bool_(), "smallint": pa.int16(), "integer": pa.int32(), "bigint": pa.int64(), "real": pa.float32(),
          "double precision": pa.float64(), "text": pa.string(), "character varying": pa.string(), "character": pa.string(),
          "bytea": pa.binary(), "date": pa.date32(), "time without time zone": pa.time64("us"), "uuid": pa.uuid(),
          "timestamp without time zone": pa.timestamp("us"), "timestamp with time zone": pa.timestamp("us", "UTC")}
_NUMERIC = re.compile(r"numeric\((\d+),(-?\d+)\)")
_MODIFIER = re.compile(r"\(\d+\)")


def arrow_type(declared: str) -> pa.DataType:
    """What a column moves as; `declared` is format_type()'s spelling, such as 'numeric(38,20)' or 'timestamp(3) without time zone'."""
    if match := _NUMERIC.fullmatch(declared):
        precision, scale = int(match[1]), int(match[2])
        return pa.decimal128(precision, scale) if precision <= 38 and 0 <= scale <= precision else pa.string()
    return _TYPES.get(_MODIFIER.sub("", declared), pa.string())


def selected(column: str, declared: str) -> str:
    """The expression that reads a column as what it moves as, exactly."""
    plain = _MODIFIER.sub("", declared) in _TYPES or pa.types.is_decimal(arrow_type(declared))
    return quote(column) if plain else f"{quote(column)}::text"


def column_name(name: str) -> str:
    """What a column is called in PostgreSQL: its name, cut where it is too long, the same way each time."""
    return fit(name, MAX_NAME_BYTES)


# ------------------------------------------------------------------ connections


def where(url: URL) -> str:
    """The database in words, without user and password."""
    return f"PostgreSQL database '{url.database}' on {url.host or 'the local socket'}{f':{url.port}' if url.port else ''}"


def connect(url: URL) -> Connection:
    """A new connection in autocommit mode. Raises SetupError saying what is wrong, Transient where it may pass by itself."""
    if not url.database:
        raise SetupError("the PostgreSQL URL names no database", hint="write postgresql://user:password@host:5432/database")
    query = {name: value if isinstance(value, str) else ",".join(value) for name, value in url.query.items()}
    read_only = query.pop(READ_ONLY, "")
    parts = {"host": url.host, "port": url.port, "user": url.username, "password": url.password, "dbname": url.database}
    given = {name: str(value) for name, value in parts.items() if value is not None}
    try:
        conninfo = make_conninfo(**(_PARAMETERS | query | given))
    except psycopg.ProgrammingError as error:
        raise SetupError(f"{where(url)}: {_first_line(error)}", hint="see the parameters of libpq") from None
    try:
        connection = Connection.connect(conninfo, autocommit=True, prepare_threshold=None)
        connection.conninfo = conninfo
        if connection.info.server_version < 130000:
            connection.close()
            raise SetupError(f"{where(url)}: the server is version {connection.info.server_version // 10000}",
                             hint="skylift needs PostgreSQL 13 or later")
        version = connection.info.server_version
        connection.execute("; ".join([_SETTINGS, *(setting for since, setting in _LATER_SETTINGS.items() if version >= since),
                                      *(["set default_transaction_read_only = on"] if read_only else [])]))
        return connection
    except psycopg.Error as error:
        raise _connect_error(url, error) from None


def _connect_error(url: URL, error: psycopg.Error) -> SkyliftError:
    """libpq hands out no SQLSTATE here, only words, in the server's language: what is not understood is told as it is."""
    text = _first_line(error).removeprefix("connection failed: ")
    if re.search(r"too many (clients|connections)|connection slots are reserved", text):
        return Transient(f"{where(url)}: {text}", code=LIMIT,
                         hint="raise the server's connection limit, or close other connections")
    if re.search(r"starting up|shutting down|in recovery mode|not yet accepting connections", text):
        return Transient(f"{where(url)}: {text}", hint="it is tried again")
    hint = "check host, port, network and that the server is running"
    if re.search(r"password|authentication|pg_hba|role .* does not exist|not permitted to log in", text):
        hint = "check user and password, and the server's pg_hba.conf"
    elif re.search(r"database .* does not exist", text):
        hint = "create the database first"
    elif "permission denied for database" in text:
        hint = f"grant connect on database {quote(url.database or '')} to {quote(url.username or '')}"
    elif re.search(r"SSL|certificate", text):
        hint = "check sslmode and sslrootcert"
    return SetupError(f"{where(url)}: {text}", hint=hint)


class Connection(psycopg.Connection[TupleRow]):
    """One that does not wait without end for a server that no longer runs, though its machine still takes what is sent.

    A step of any length is waited for as long as the server is there; TCP's own timers see to a machine that is gone.
    """

    conninfo = ""
    swollen = False                   # has received a value so large that libpq's buffer, which never shrinks, is in the way

    def wait(self, gen: PQGen[RV], *args: Any, **options: Any) -> RV:
        return super().wait(self._watched(gen), *args, **options)

    def until_readable(self) -> None:
        """Returns when the server has sent something."""

        def readable() -> PQGen[None]:
            while not (yield Wait.R):
                pass

        self.wait(readable())

    def _watched(self, gen: PQGen[RV]) -> PQGen[RV]:
        """Passes on what psycopg's generator and its poll loop tell each other, which is 0 each 0.1 s where nothing happens."""
        asked = time.monotonic()
        try:
            state = next(gen)
            while True:
                ready = yield state
                if ready:
                    asked = time.monotonic()
                elif time.monotonic() - asked > silence.SILENT_S:
                    self.ask_server()
                    asked = time.monotonic()
                state = gen.send(ready)
        except StopIteration as end:
            return end.value

    def ask_server(self) -> None:
        """Raises OperationalError, and closes the connection, if the server gives a new connection no answer at all."""
        try:
            psycopg.connect(self.conninfo).close()
        except pg.ConnectionTimeout:
            self.close()
            raise psycopg.OperationalError(silence.said_nothing(silence.SILENT_S)) from None
        except psycopg.Error:                      # such as too many connections: an answer
            pass


def pool(url: URL, failed: type[SourceFailed] | type[TargetFailed]) -> Pool[Connection]:
    return Pool(lambda: connect(url), failed, _alive, worth_keeping=lambda connection: not connection.swollen)


def _alive(connection: Connection) -> bool:
    try:
        connection.execute("select 1")
        return True
    except psycopg.Error:
        return False


# ------------------------------------------------------------------ errors


@contextmanager
def told(url: URL, table: str = "") -> Iterator[None]:
    """PostgreSQL's errors as ours, by what they mean for the run (https://www.postgresql.org/docs/current/errcodes-appendix.html)."""
    try:
        yield
    except psycopg.Error as error:
        raise explained(error, url, table) from None


def explained(error: psycopg.Error, url: URL, table: str = "") -> SkyliftError:
    state, place = error.sqlstate or "", table or where(url)
    text = ". ".join(filter(None, (_first_line(error), error.diag.message_detail)))
    if not state and isinstance(error, psycopg.DataError):
        return ValueRefused(f"{place}: {text}")
    if is_lost(error) or state[:2] == "08" or state in ("57P01", "57P02", "57P03", "57P05"):
        return Transient(f"{where(url)}: the connection was lost: {text}", hint="it is tried again")
    if state in ("40001", "40P01", "55P03", "55006"):
        return Transient(f"{place}: {text}", hint="it is tried again")
    if state == "25006":
        return TargetFailed(f"{where(url)}: it is read-only: {text}",
                            hint="name the primary server, and see default_transaction_read_only of database and role")
    if state[:2] in ("53", "58") or state in ("57P04", "XX001", "XX002"):
        return TargetFailed(f"{where(url)}: {text}", hint="free space or restore access, then run again: what has arrived stays")
    if state[:2] == "22":
        return ValueRefused(f"{place}: {text}", hint="correct the row at the source")
    if state == "42501":
        return CopyError(f"{place}: user '{url.username}' lacks a right: {text}", hint="grant it, then run again")
    return CopyError(f"{place}: {text}", hint=error.diag.message_hint or "")


def is_lost(error: psycopg.Error) -> bool:
    """Told by libpq, not by the server, which would give a code; what psycopg knows as nothing more special than an error is libpq's."""
    return not error.sqlstate and (isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
                                   or type(error) is psycopg.DatabaseError)


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0].strip() if lines else type(error).__name__
