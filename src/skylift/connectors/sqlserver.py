"""SQL Server 2016 SP1 and later and Azure SQL, what source and target share: connections, errors, names and types.

The driver is mssql-python, which carries Microsoft's ODBC driver. It hands out rows as Arrow record batches; it does not hand
out error numbers, so the session is asked for the number of its last error.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import mssql_python
import pyarrow as pa
from sqlalchemy.engine import URL

from skylift.connectors import silence
from skylift.connectors.pooling import LIMIT
from skylift.connectors.silence import Wait, new_wires, watched
from skylift.connectors.sql import quote
from skylift.connectors.sqlserver_url import driver_keywords
from skylift.errors import CopyError, SetupError, SkyliftError, TargetFailed, Transient, ValueRefused, redact
from skylift.model import Table

DEFAULT_SCHEMA = "dbo"             # of tables whose namespace, or whose target's schema, is ''
MAX_NAME_BYTES = 128               # the server allows 128 UTF-16 units, which are never more than these
OLDEST = (13, 0, 4001)             # 2016 SP1
OLDEST_LEVEL = 130                 # the compatibility level of 2016
LOGIN_TIMEOUT_S = 15
LOCK_TIMEOUT_MS = 30_000
OBEYS_S = 5                        # within which a server has ended a statement that it was asked to end

mssql_python.pooling(enabled=False)  # connections are pooled here, and closed where they saw an error

# Whatever server, database or login prefer: names stand in double quotes, errors are told in English, waiting for locks ends.
SETTINGS = ("set quoted_identifier on; set ansi_nulls on; set language us_english; set dateformat ymd; set nocount on; set xact_abort on; "
            f"set lock_timeout {LOCK_TIMEOUT_MS}")

# Error numbers by what they mean for the run. Source: https://learn.microsoft.com/sql/relational-databases/errors-events/database-engine-events-and-errors
_PASSING = {1204, 1205, 1222, 3960, 3961, 4221, 8645, 8651, 10928, 10929, 10936, 14355, 17197, 40197, 40501, 40613, 41301, 41302, 41305,
            41325, 41839, 49918, 49919, 49920}
_TARGET_FULL = {1101, 1105, 9002, 1827, 40544, 40551, 40552, 40553, 41823}
_TARGET_CLOSED = {3906, 3908, 926, 927, 942, 945, 978, 983, 3413, 21}
_DENIED = {229, 230, 262, 297, 300, 916, 2557, 2760, 4613, 15247, 15151, 22117}
_NO_ANSWER = "52073"
_LOST = re.compile(r"(?i)communication link failure|connection (is|was|has been) (closed|broken|lost|reset)|TCP Provider|not connected")
_VALUE = {220, 232, 241, 242, 245, 515, 517, 535, 2628, 8114, 8115, 8152, 9420, 9455}


def granted_user(url: URL) -> str:
    """The quoted name of the user that a script of rights is for."""
    return quote(url.username or "skylift")


def login_script(url: URL) -> str:
    """Begins a script of rights: makes login and user."""
    user, database = granted_user(url), quote(url.database or "")
    return f"""-- by an administrator of the server; on Azure SQL the first statement in master, the others in {database}, without use
create login {user} with password = '<password>';
use {database};
create user {user} for login {user};
"""


def literal(text: str) -> str:
    """A text constant, where no parameter can be bound: in DDL, and in arguments of system procedures."""
    return "N'" + text.replace("'", "''") + "'"


def full_name(schema: str, table: str) -> str:
    return f"{quote(schema or DEFAULT_SCHEMA)}.{quote(table)}"


def source_name(table: Table) -> str:
    return full_name(table.namespace, table.name)


def where(url: URL) -> str:
    """The database in words, without user and password."""
    instance = f"\\{url.query['instance']}" if "instance" in url.query else ""
    return f"SQL Server database '{url.database}' on {url.host}{instance}{f',{url.port}' if url.port else ''}"


# ------------------------------------------------------------------ connections


@dataclass(frozen=True, slots=True)
class Server:
    """What a server says of itself."""

    version: tuple[int, ...]
    azure: bool                    # Azure SQL Database, Managed Instance, Fabric: always of the newest version
    genuine: bool                  # False: another server that speaks TDS, as `check_version=no` says; only the common catalogue is used
    text: str = ""                 # version and compatibility level, for people

    @property
    def major(self) -> int:
        return 99 if self.azure else self.version[0]


class ServerError(CopyError):
    """What the server said about this table, with its number."""

    def __init__(self, message: str, *, number: int, hint: str = "", code: str = "") -> None:
        super().__init__(message, hint=hint, code=code)
        self.number = number


class StatementOverrun(CopyError):
    """The time that a statement was given is up. Its connection may be lost."""


class Session:
    """One connection in autocommit mode, for one statement at a time."""

    def __init__(self, url: URL) -> None:
        """Raises SetupError saying what is wrong, Transient where it may pass by itself."""
        self.url = url
        self._until = math.inf                     # of the statements under way
        with new_wires(url.port or (None if "instance" in url.query else 1433)) as self._wires:
            self._connection = _connected(url, int(str(url.query.get("connect_timeout", LOGIN_TIMEOUT_S))))
        try:
            self.run(SETTINGS)
        except BaseException:
            self.close()
            raise

    def run(self, sql: str, *params: Any, table: str = "") -> list[tuple]:
        """The rows of the first result that has any. `table` is what errors are about."""
        with self._cursor(table) as cursor:
            self._execute(cursor, sql, params)
            with self._fetching():
                while not cursor.description:
                    if not cursor.nextset():
                        return []
                return [tuple(row) for row in cursor.fetchall()]

    def batches(self, sql: str, params: Sequence[Any] = (), rows: int = 8192, table: str = "") -> Iterator[pa.RecordBatch]:
        """The result as the driver's Arrow batches of at most `rows` rows."""
        with self._cursor(table) as cursor:
            self._execute(cursor, sql, params)
            while True:
                with self._fetching():
                    batch = cursor.arrow_batch(rows)
                if not batch.num_rows:
                    return
                yield batch

    @contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """Statements within end after so many seconds, rounded up; 0 = never. Raises StatementOverrun.

        The driver asks the server to end one, and would wait minutes for one that does not: then the connection is cut.
        """
        if not seconds:
            yield
            return
        whole = math.ceil(seconds)
        until, cutting = time.monotonic() + whole, threading.Timer(whole + OBEYS_S, self._wires.cut)
        self._connection.timeout, self._until, cutting.daemon = whole, until + OBEYS_S, True
        cutting.start()
        try:
            yield
        except SkyliftError as error:
            if time.monotonic() < until:
                raise
            raise StatementOverrun(f"{where(self.url)}: a statement took longer than {seconds:g} s and was ended") from error
        finally:
            cutting.cancel()
            self._connection.timeout, self._until = 0, math.inf

    def _execute(self, cursor: Any, sql: str, params: Sequence[Any]) -> None:
        """A step of any length."""
        with watched_server(self.url, self._wires.cut):
            cursor.execute(sql, *params)

    @contextmanager
    def _fetching(self) -> Iterator[None]:
        """Rows on their way. Here the driver holds the interpreter's lock while it waits, so that nobody can look whether the server is
        there: the wait ends, and a new connection shows it. Each time that it was, the next wait may be longer.
        """
        begun, patience = time.monotonic(), _patience.get(where(self.url), silence.SILENT_S)
        limit = min(patience, max(self._until - begun, 1))
        self._wires.limit(limit)
        try:
            yield
        except (mssql_python.Error, RuntimeError):
            if time.monotonic() - begun >= limit:
                if limit == patience:
                    _patience[where(self.url)] = 4 * limit
                self._wires.cut()                  # or closing the cursor waits too
                raise Transient(f"{where(self.url)}: the connection was lost: the server has said nothing for {limit:.0f} s in the middle "
                                "of a result", hint="it is tried again") from None
            raise
        finally:
            self._wires.limit(0)

    @contextmanager
    def _cursor(self, table: str) -> Iterator[Any]:
        """A cursor whose errors are told as ours; closing it also ends a result that was not read to its end."""
        cursor = self._connection.cursor()
        try:
            yield cursor
        except (mssql_python.Error, RuntimeError) as error:
            raise explained(self.url, str(getattr(error, "ddbc_error", error)), self._number(error), table) from None
        finally:
            with suppress(mssql_python.Error, RuntimeError, Transient), self._fetching():
                cursor.close()

    def _number(self, error: Exception) -> int:
        """The server's number of its last error; -1 for a lost connection."""
        if _LOST.search(str(error)):
            return -1
        try:
            cursor = self._connection.cursor()
            self._execute(cursor, "select @@error", ())
            return int(cursor.fetchall()[0][0])
        except (mssql_python.Error, RuntimeError, Transient):
            return -1

    def core_context(self) -> dict[str, Any]:
        """How the driver's bulk copy logs in where this session has; with fresh tokens, where it needs some."""
        return self._connection.cursor()._build_pycore_context()

    def close(self) -> None:
        with suppress(mssql_python.Error, RuntimeError):
            self._connection.close()
        self._wires.close()


class SupportsRun(Protocol):
    def run(self, sql: str) -> object: ...


_patience: dict[str, float] = {}   # how long a server may say nothing in the middle of a result, where that is longer than SILENT_S


def _connected(url: URL, timeout_s: int) -> mssql_python.Connection:
    """A lost one is not made again behind our back, unless the URL says so."""
    keywords: dict[str, Any] = {"ConnectRetryCount": "0"} | driver_keywords(url)
    try:
        return mssql_python.connect("", autocommit=True, timeout=timeout_s, **keywords)
    except (mssql_python.Error, RuntimeError, ValueError) as error:
        raise _connect_error(url, error) from None


def watched_server(url: URL, cut: Callable[[], None]) -> AbstractContextManager[Wait]:
    """The block waits for this server, but not if it stands still."""

    def answers() -> bool:
        try:
            _connected(url, LOGIN_TIMEOUT_S).close()
        except SkyliftError as error:
            return error.code != _NO_ANSWER
        return True

    return watched(where(url), answers, cut)


def alive(connection: SupportsRun) -> bool:
    try:
        connection.run("select 1")
        return True
    except SkyliftError:
        return False


def look(session: Session, url: URL) -> Server:
    """What the server is. Raises SetupError 50001 for a database whose compatibility level is too low, 50017 for a server that is too old.

    `check_version=no` in the URL stands for another server that speaks TDS, and is not checked.
    """
    genuine = url.query.get("check_version") != "no"
    [(text, edition, level)] = session.run(
        "select cast(serverproperty('ProductVersion') as nvarchar(128)), cast(serverproperty('EngineEdition') as int), "
        "cast(compatibility_level as int) from sys.databases where name = db_name()")
    version = tuple(int(part) for part in re.findall(r"\d+", text or "")[:3]) or (0,)
    azure = edition in (5, 6, 8, 9, 11, 12)
    if genuine and level < OLDEST_LEVEL:
        raise SetupError(f"{where(url)}: its compatibility level is {level}; {OLDEST_LEVEL} is the lowest that can be used", code="50001",
                         hint=f"alter database {quote(str(url.database))} set compatibility_level = {OLDEST_LEVEL}")
    if genuine and not azure and version < OLDEST:
        raise SetupError(f"{where(url)}: the server has version {text}; 2016 SP1 (13.0.4001) is the oldest that can be used", code="50017",
                         hint="update the server; another server that speaks TDS can be tried with check_version=no")
    return Server(version, azure, genuine, f"{'Azure SQL' if azure else 'SQL Server'} {text}, compatibility level {level}")


def _connect_error(url: URL, error: Exception) -> SkyliftError:
    """What is wrong, by the SQLSTATE that the driver has turned into words and by the driver's own text."""
    state, text = getattr(error, "driver_error", ""), _clean(str(getattr(error, "ddbc_error", error)))
    if "Invalid authorization" in state or "Login failed" in text:
        return SetupError(f"{where(url)}: {text or 'login rejected'}", code="18456",
                          hint="check user and password, and that the server allows SQL authentication")
    if re.search(r"firewall|not allowed to access the server", text):
        return SetupError(f"{where(url)}: {text}", code="40615", hint="let the address through in the server's firewall rules")
    if re.search(r"(?i)cannot open database|database .*does not exist|requested by the login", text) or "rejected the connection" in state:
        return SetupError(f"{where(url)}: {text}", code="4060", hint="check the database's name, and that the login has a user in it")
    if re.search(r"SSL Provider|certificate", text):
        return SetupError(f"{where(url)}: TLS failed: {text}", code="TLS",
                          hint="trust the certificate: TrustServerCertificate=yes, or ServerCertificate=path of the file")
    if re.search(r"SSPI|Kerberos", text):
        return SetupError(f"{where(url)}: {text}", code="18456", hint="get a Kerberos ticket (kinit), or use SQL authentication")
    if "Instance Specified" in text:
        return SetupError(f"{where(url)}: {text}", code="1225",
                          hint="start the SQL Server Browser and let UDP 1434 through, or name the instance's port: host,port")
    if re.search(r"(?i)timeout", state + text):
        return SetupError(f"{where(url)}: {text}", code=_NO_ANSWER, hint="check the network, or allow more time: Connect Timeout=60")
    if re.search(r"(?i)resource id|maximum number of .*connections|too many (clients|connections)|user connections", text):
        return Transient(f"{where(url)}: {text}", code=LIMIT, hint="raise the server's connection limit, or close other connections")
    if re.search(r"recovery mode|shutting down|starting up|not yet accepting|in transition|not currently available|busy", text):
        return Transient(f"{where(url)}: {text}", hint="it is tried again")
    return SetupError(f"{where(url)}: {text or state}", code="1225",
                      hint="check host, port and firewall, that the server is running and that TCP/IP is enabled for it")


# ------------------------------------------------------------------ errors


def explained(url: URL, text: str, number: int, table: str = "") -> SkyliftError:
    """A server's error as ours, by what it means for the run; `number` -1: the connection is lost, 0: unknown."""
    text, place = _clean(text), table or where(url)
    if number == -1:
        return Transient(f"{where(url)}: the connection was lost: {text}", hint="it is tried again")
    if number in _PASSING:
        return Transient(f"{place}: {text}", hint="it is tried again", code=str(number))
    if number in _TARGET_FULL:
        return TargetFailed(f"{where(url)}: {text}", hint="free space or enlarge the database, then run again: what has arrived stays")
    if number in _TARGET_CLOSED:
        return TargetFailed(f"{where(url)}: {text}", hint="bring the database online for writing, then run again: what has arrived stays")
    if number in _DENIED or re.search(r"permission (was )?denied", text):
        return ServerError(f"{place}: user '{url.username or ''}' lacks a right: {text}", number=number, code=str(number),
                           hint="grant it, then run again")
    if number in _VALUE:
        return ValueRefused(f"{place}: {text}", hint="correct the row at the source")
    return ServerError(f"{place}: {text}", number=number)


def _clean(text: str) -> str:
    """Without the names of the driver's layers, and without a secret."""
    return redact(re.sub(r"^(\[[^\]]*\])+", "", text.strip()).strip())
