"""Connections to MySQL 8 and MariaDB 10.6 or later: what the URL says, how a session is set up, the server's errors as ours.

`mysql://user:password@host:3306/database` or `mariadb://..`, with these options:

    mode=ro                    nothing is written and no trigger installed: what changed is found by comparing
    ssl_mode=REQUIRED          DISABLED, PREFERRED (the default), REQUIRED, VERIFY_CA or VERIFY_IDENTITY
    ssl_ca, ssl_cert, ssl_key  files
    unix_socket=/path          instead of host and port
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import MySQLdb
from MySQLdb import connections
from MySQLdb.converters import conversions
from sqlalchemy.engine import URL

from skylift.connectors.pooling import LIMIT
from skylift.connectors.silence import Wait, watched
from skylift.errors import CopyError, SetupError, SkyliftError, SourceChanged, Transient

SSL_MODES = ("DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY")
CONNECT_TIMEOUT_S = 10
LOCK_WAIT_S = 30                   # for rows and for tables that others have locked
_OPTIONS = {"mode", "ssl_mode", "ssl_ca", "ssl_cert", "ssl_key", "unix_socket"}

# Whatever server and administrator prefer: texts come as they are stored, times in UTC, a reader that waits for the target is not
# cut off, and no statement is cut short. Names that only one of the two servers knows stand in a comment that the other skips.
_SESSION = """set character_set_results = binary, sql_mode = 'STRICT_ALL_TABLES', time_zone = '+00:00', autocommit = 1,
    sql_select_limit = 18446744073709551615, sql_auto_is_null = 0, net_write_timeout = 3600, net_read_timeout = 600,
    wait_timeout = 28800, lock_wait_timeout = {wait}, innodb_lock_wait_timeout = {wait}"""
_MARIADB = "max_statement_time = 0, idle_transaction_timeout = 0"
_MYSQL = "max_execution_time = 0, information_schema_stats_expiry = 0"

_ENCODERS = {kind: encode for kind, encode in conversions.items() if not isinstance(kind, int)}     # values come back as bytes

_GONE = {1053, 1077, 1079, 1152, 1158, 1159, 1160, 1161, 1317, 1927, 2006, 2013, 2014, 2026, 2055, 3169, 4031}
_BUSY = {1020, 1205, 1213, 1637, 1969, 3024, 3572}
_LIMITS = {1040, 1203, 1226, 1041, 1135}
_ALTERED = {1051, 1054, 1146, 1412, 1615, 1932}
_RIGHTS = {1044, 1142, 1143, 1227, 1370, 1419}
_DAMAGED = {126, 127, 134, 144, 145, 1034, 1035, 1194, 1195, 1712, 1877}


def where(url: URL) -> str:
    """The database in words, without user and password."""
    return f"{'MariaDB' if url.get_backend_name() == 'mariadb' else 'MySQL'} database '{url.database}' on {_server(url)}"


def _server(url: URL) -> str:
    return str(url.query.get("unix_socket") or f"{url.host or '127.0.0.1'}:{url.port or 3306}")


def check(url: URL) -> None:
    """Raises SetupError if the URL is not complete, or asks for what there is not."""
    if not url.database:
        raise SetupError(f"the URL names no database on {_server(url)}", hint="write mysql://user:password@host:3306/database")
    if unknown := set(url.query) - _OPTIONS:
        raise SetupError(f"{where(url)}: unknown option {', '.join(sorted(unknown))}", hint=f"known: {', '.join(sorted(_OPTIONS))}")
    if url.query.get("mode", "rw") not in ("ro", "rw"):
        raise SetupError(f"{where(url)}: mode is ro or rw")
    if url.query.get("ssl_mode", "PREFERRED") not in SSL_MODES:
        raise SetupError(f"{where(url)}: ssl_mode is one of {', '.join(SSL_MODES)}")


class Connection(connections.Connection):
    """One that does not wait without end for a server that stands still."""

    swollen = False                   # has received a row so large that the client's buffer, which never shrinks, is in the way

    def __init__(self, url: URL, **options: Any) -> None:
        self._url = url
        super().__init__(**options)

    def watched(self) -> AbstractContextManager[Wait]:
        """The block waits for the server."""
        return watched(where(self._url), lambda: _answers(self._url), lambda: cut_off(self))

    def query(self, query: str | bytes) -> None:
        with self.watched():
            super().query(query)

    def store_result(self) -> Any:
        with self.watched():
            return super().store_result()

    def ping(self) -> None:
        with self.watched():
            super().ping()


def _answers(url: URL) -> bool:
    """Whether the server says anything at all to a new connection."""
    try:
        _opened(url, read_timeout=CONNECT_TIMEOUT_S).close()
    except (MySQLdb.Error, OSError) as error:
        return str(errno.ETIMEDOUT) not in str(error)
    return True


def _opened(url: URL, **more: Any) -> Connection:
    query: dict[str, Any] = dict(url.query)
    ssl = {name.removeprefix("ssl_"): query[name] for name in ("ssl_ca", "ssl_cert", "ssl_key") if name in query}
    given = {"unix_socket": query.get("unix_socket"), "ssl": ssl or None, "ssl_mode": query.get("ssl_mode")}
    return Connection(
        url, host=url.host or "127.0.0.1", port=url.port or 3306, user=url.username or "", password=str(url.password or ""),
        database=url.database, charset="utf8mb4", use_unicode=False, conv=_ENCODERS, autocommit=True, binary_prefix=True,
        connect_timeout=CONNECT_TIMEOUT_S, **more, **{name: value for name, value in given.items() if value})


def connect(url: URL) -> Connection:
    """A session in autocommit mode. Raises SetupError saying what is wrong, Transient where it may pass by itself."""
    query: dict[str, Any] = dict(url.query)
    try:
        connection = _opened(url)
    except (MySQLdb.Error, OSError) as error:
        raise _connect_error(url, error) from None
    try:
        _keep_alive(connection)
        connection.query(_SESSION.format(wait=LOCK_WAIT_S) + ", " + (_MARIADB if is_mariadb(connection) else _MYSQL))
        if query.get("ssl_mode", "").startswith(("REQUIRED", "VERIFY")) and run(connection, "show status like 'Ssl_cipher'")[0][1] == b"":
            raise SetupError(f"{where(url)}: the connection is not encrypted", hint="enable TLS at the server, or leave out ssl_mode")
        connection.query("set session transaction isolation level repeatable read"
                         + (", read only" if query.get("mode") == "ro" else ""))
        return connection
    except MySQLdb.Error as error:
        connection.close()
        raise _connect_error(url, error) from None
    except SetupError:
        connection.close()
        raise


def alive(connection: Connection) -> bool:
    try:
        connection.ping()
        return True
    except (MySQLdb.Error, Transient):
        return False


def is_mariadb(connection: Connection) -> bool:
    return "mariadb" in connection.get_server_info().lower()


def _keep_alive(connection: Connection) -> None:
    """A peer that is gone without a word is found out within a minute, however long a statement may take."""
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4), ("TCP_USER_TIMEOUT", 60_000)):
            if hasattr(socket, option):            # not every system has them all
                wire.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def cut_off(connection: Connection) -> None:
    """End the conversation at once; whatever is still to come from the server is not waited for."""
    with suppress(OSError, MySQLdb.Error), socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


def _connect_error(url: URL, error: Exception) -> SkyliftError:
    code, text = _parts(error)
    if code in _LIMITS:
        return Transient(f"{where(url)}: {text}", code=LIMIT, hint="raise max_connections or max_user_connections, or close others")
    if code in (1053, 1079):
        return Transient(f"{where(url)}: {text}", hint="it is tried again")
    if code in (1045, 1698, 1251, 1862, 1820, 3118, 4151, 1275):
        return SetupError(f"{where(url)}: the login was rejected: {text}",
                          hint="check user, password and from which hosts the user may come")
    if code == 1130:
        return SetupError(f"{where(url)}: {text}", hint="create the user for this host: create user name@'host'")
    if code == 1044:
        return SetupError(f"{where(url)}: {text}", hint=f"grant select on {quote(url.database or '')}.* to the user")
    if code == 1049:
        return SetupError(f"{where(url)}: there is no such database", hint="check its name, also upper and lower case")
    if code == 2026 or "ssl" in text.lower() or "certificate" in text.lower():
        return SetupError(f"{where(url)}: {text}", hint="check ssl_mode, ssl_ca, ssl_cert and ssl_key")
    return SetupError(f"{where(url)}: {text}", hint="check host, port, network and that the server is running")


# ------------------------------------------------------------------ statements


def quote(name: str) -> str:
    """An identifier in backticks. The only place where names become SQL; % is doubled, since every statement is formatted."""
    return "`" + name.replace("`", "``").replace("%", "%%") + "`"


def bound(connection: Connection, sql: str, params: Sequence[Any] = ()) -> str:
    """`sql` with each %s replaced by a value as the driver spells it for this connection (text, bytes, integer or None)."""
    return sql % tuple(connection.literal(value).decode("utf-8", "surrogateescape") for value in params)


def run(connection: Connection, sql: str, params: Sequence[Any] = ()) -> list[tuple[bytes | None, ...]]:
    """All rows of a small statement, as the server spells the values."""
    connection.query(bound(connection, sql, params).encode("utf-8", "surrogateescape"))
    result = connection.store_result()
    return list(result.fetch_row(0)) if result else []


def texts(rows: Sequence[tuple[bytes | None, ...]]) -> list[tuple[str, ...]]:
    """Rows of names and numbers as text, null as ''."""
    return [tuple((value or b"").decode() for value in row) for row in rows]


# ------------------------------------------------------------------ errors


@contextmanager
def told(url: URL, table: str = "") -> Iterator[None]:
    """The server's errors as ours, by what they mean for the run (https://mariadb.com/kb/en/mariadb-error-code-reference/)."""
    try:
        yield
    except (MySQLdb.Error, MySQLdb.Warning) as error:
        raise explained(error, url, table) from None


def explained(error: Exception, url: URL, table: str = "") -> SkyliftError:
    (code, text), place = _parts(error), table or where(url)
    if code in _GONE:
        return Transient(f"{where(url)}: the connection was lost: {text}", hint="it is tried again")
    if code in _BUSY:
        return Transient(f"{place}: {text}", hint="it is tried again")
    if code in _ALTERED:
        return SourceChanged(f"{place}: the table was altered during the run: {text}", hint="run again")
    if code in _RIGHTS:
        return CopyError(f"{place}: the user '{url.username}' lacks a right: {text}", hint="grant it, then run again")
    if code in _DAMAGED:
        return CopyError(f"{place}: {text}", hint="the table is damaged: check table, then repair it or restore a backup")
    return CopyError(f"{place}: {text}")


def lacks_right(error: Exception) -> bool:
    """Whether it says that the user, or a server that is read-only, forbids the statement."""
    return _parts(error)[0] in _RIGHTS | {1290, 1792, 1836, 3100}


def _parts(error: Exception) -> tuple[int, str]:
    code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    text = str(error.args[1]) if len(error.args) > 1 else str(error)
    return code, text.splitlines()[0] if text else type(error).__name__
