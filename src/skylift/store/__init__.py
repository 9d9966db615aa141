"""The store: skylift's own state, on SQLite (one file, WAL) or PostgreSQL, behind two kinds of transaction."""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from skylift.errors import SetupError, Transient, redact
from skylift.store import deadline

SCHEMA = "0016"                   # the newest file in migrations/versions
BUSY_MS = 30_000                  # how long a writer waits for another one (SQLite)
MOST_ASKED = 200                  # questions to the outside world for which a transaction is begun anew; others are asked inside it
_SCHEMA_LOCK = 7_048_001          # PostgreSQL advisory lock that is held while the schema is made

Row = TypeVar("Row")
T = TypeVar("T")


class AskFirst(BaseException):
    """Ends a `together` that needs something of the outside world: `ask` is to be called without it, and all done anew."""

    def __init__(self, question: Any, ask: Callable[[], Any]) -> None:
        self.question, self.ask = question, ask


class Known:
    """What the outside world has answered, question by question in their order: what `Store.outside` needs when all is done anew."""

    def __init__(self) -> None:
        self._answers: list[tuple[Any, Any, Exception | None]] = []
        self._asked = 0

    def ask(self, first: AskFirst) -> None:
        self._asked += 1
        try:
            self._answers.append((first.question, first.ask(), None))
        except Exception as error:
            self._answers.append((first.question, None, error))

    def answer(self, place: int, question: Any, ask: Callable[[], Any]) -> Any:
        """Raises AskFirst if the question at `place` has been another one, or none."""
        if place >= len(self._answers) or self._answers[place][0] != question:
            if self._asked >= MOST_ASKED:
                return ask()
            del self._answers[place:]
            raise AskFirst(question, ask)
        _, answer, error = self._answers[place]
        if error is not None:
            raise error
        return answer


class Together:
    """The transaction that the blocks of one thread join. `commits`: how often it was committed before its end."""

    def __init__(self, connection: sa.Connection, known: Known | None) -> None:
        self.connection = connection
        self.commits = 0
        self.afterwards: list[Callable[[], None]] = []      # to be called when it has been committed
        self.known = known
        self.asked = 0


class Store:
    """The open store. Safe to use from several threads.

    Each `with` block is one transaction on a connection of its own; inside `together` it is a savepoint of the one around it.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._readers = engine
        self._writers = engine.execution_options(skylift_writes=True)
        self._thread = threading.local()
        # SQLite lets one writer in at a time and makes the others poll; threads of this process wait for each other here instead.
        self._turn = threading.RLock() if engine.dialect.name == "sqlite" else nullcontext()
        self._watch: sqlite3.Connection | None = None

    def version(self) -> int | None:
        """A number that is another one whenever anybody has committed a change since; None where that cannot be told cheaply.

        Source: https://www.sqlite.org/pragma.html#pragma_data_version. Only for one thread, such as that of an event loop.
        """
        if self._readers.dialect.name != "sqlite":
            return None
        if self._watch is None:
            path = Path(str(self._readers.url.database)).absolute()
            self._watch = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, check_same_thread=False)
        try:
            return int(self._watch.execute("pragma data_version").fetchone()[0])
        except sqlite3.OperationalError:               # busy, for a moment
            return None

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads. Raises Transient if the store is busy or away."""
        with self._transaction(self._readers) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that may write, committed at the end of the block. On SQLite it holds the one write lock throughout."""
        with self._alone(), self._transaction(self._writers) as connection:
            yield connection

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if isinstance(self._turn, nullcontext):
            yield
            return
        while not self._turn.acquire(timeout=min(max(deadline.left_s(), 0), threading.TIMEOUT_MAX)):
            deadline.check()
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def together(self, *, writes: bool = True, known: Known | None = None) -> Iterator[Together]:
        """What this thread reads and writes inside the block, as one transaction over one snapshot; an error takes all of it back.

        With `writes` it is alone: other verbs wait for its end, on PostgreSQL as on SQLite, for what they read must not be
        older than what they wait for. Raises Transient if the store is busy or away, or cannot commit; with `known`, AskFirst.
        """
        if (outer := self._together) is not None:
            yield outer
            return
        engine = self._writers if writes else self._readers
        if engine.dialect.name == "postgresql":
            engine = engine.execution_options(isolation_level="REPEATABLE READ", skylift_alone=writes)
        with self._alone() if writes else nullcontext(), _told(), engine.connect() as connection:
            self._thread.together = together = Together(connection, known)
            try:
                yield together
                connection.commit()
            finally:
                self._thread.together = None
        _call_all(together)

    def commit(self) -> None:
        """Inside `together`: what was done so far stays, whatever follows. Elsewhere nothing, for each block commits by itself."""
        if (together := self._together) is not None:
            with _told():
                try:
                    together.connection.commit()
                except BaseException:
                    together.connection.rollback()
                    raise
            together.commits += 1
            _call_all(together)

    def then(self, call: Callable[[], None]) -> None:
        """Call it once what this thread has written is committed: now, or inside `together` at its end; never if that is taken back."""
        if (together := self._together) is None:
            call()
        else:
            together.afterwards.append(call)

    def outside(self, question: Any, ask: Callable[[], T]) -> T:
        """What `ask` gets from the outside world, which nobody who waits for the store waits for too: it is called outside of `together`.

        `question`: what it depends on. Only what was committed inside a `together` cannot be done anew; then it is called there.
        """
        together = self._together
        if together is None or together.known is None or together.commits:
            return ask()
        together.asked += 1
        return cast(T, together.known.answer(together.asked - 1, question, ask))

    @property
    def _together(self) -> Together | None:
        return getattr(self._thread, "together", None)

    @contextmanager
    def _transaction(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        deadline.check()
        with _told():
            if (together := self._together) is None:
                with engine.begin() as connection:
                    yield connection
            elif engine is self._readers and engine.dialect.name == "sqlite":
                yield together.connection                       # a query that fails leaves the transaction as it was
            else:
                with together.connection.begin_nested():        # begins the transaction around it where there is none
                    yield together.connection

    def close(self) -> None:
        self._readers.dispose()
        if self._watch is not None:
            self._watch.close()


def _call_all(together: Together) -> None:
    calls, together.afterwards = together.afterwards, []
    for call in calls:
        call()


def open_store(url: str, statement_s: float = 0) -> Store:
    """The store at `url`, made or brought to today's schema if need be (two processes may do so at once).

    `statement_s`: where PostgreSQL breaks a statement off by itself, for services whose work has a deadline; 0 = never.
    Raises SetupError if the URL is none, the database cannot be used, or a newer skylift has written it.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise SetupError(f"store '{redact(url)}' is not a URL", hint="write sqlite:///path or postgresql://host/database",
                         code="Store") from None
    engine = _engine(parsed, statement_s)
    try:
        with _told(), engine.execution_options(skylift_writes=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("set local statement_timeout = 0")
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
            _upgrade(connection)
    except Transient as error:
        engine.dispose()
        raise SetupError(f"store {redact(url)} cannot be opened: {error.message}",
                         hint="check that it exists, can be written and is a skylift store", code="Store") from None
    except BaseException:
        engine.dispose()
        raise
    return Store(engine)


def to_row(kind: type[Row], row: Mapping[Any, Any]) -> Row:
    """The columns of `row` that the model class `kind` has, as that class."""
    return kind(**{f.name: row[f.name] for f in fields(kind) if f.name in row})  # type: ignore[arg-type]


def _engine(url: URL, statement_s: float = 0) -> sa.Engine:
    if url.get_backend_name() == "postgresql":
        engine = sa.create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True, max_overflow=30)

        @sa.event.listens_for(engine, "connect")
        def limit(connection: Any, _: Any) -> None:
            if statement_s:
                connection.autocommit = True
                connection.execute(f"set statement_timeout = {math.ceil(statement_s * 1000)}")
                connection.autocommit = False

        @sa.event.listens_for(engine, "begin")
        def begin_alone(connection: sa.Connection) -> None:
            if connection.get_execution_options().get("skylift_alone"):      # before the first query, which fixes the snapshot
                connection.exec_driver_sql("lock table migration, change_counter in exclusive mode")

        return engine
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        raise SetupError(f"a store is not kept at '{redact(url.render_as_string(hide_password=True))}'",
                         hint="write sqlite:///path or postgresql://host/database", code="Store")
    try:
        Path(url.database).absolute().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"the folder of the store {url.database} cannot be made: {error.strerror}",
                         hint="choose another home folder", code="Store") from None
    engine = sa.create_engine(url.set(drivername="sqlite"), max_overflow=30)

    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None          # the module's own BEGIN would come too late: ours is below
        connection.execute(f"pragma busy_timeout = {BUSY_MS}")
        _use_wal(connection)
        connection.execute("pragma foreign_keys = on")
        connection.set_progress_handler(deadline.over, 100_000)      # every few milliseconds of a statement
        for name, function in (("lower", str.lower), ("upper", str.upper)):      # SQLite's own know ASCII only
            connection.create_function(name, 1, lambda text, function=function: text and function(text), deterministic=True)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("skylift_writes")
        connection.exec_driver_sql("begin immediate" if writes else "begin")

    return engine


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to the write-ahead log. SQLite does not wait here while another process opens the new file: it says "locked" at once."""
    until = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            connection.execute("pragma journal_mode = wal")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)


def _upgrade(connection: sa.Connection) -> None:
    """Bring the schema to SCHEMA, inside the caller's transaction."""
    found = None
    if sa.inspect(connection).has_table("alembic_version"):
        found = connection.scalar(sa.text("select version_num from alembic_version"))
    if found == SCHEMA:
        return
    if found is not None and found > SCHEMA:
        raise SetupError(f"the store has schema {found}, this skylift knows {SCHEMA}", hint="use the newer skylift", code="Store")
    from alembic import command  # slow to import, and not needed when the store is up to date
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "skylift.store:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextmanager
def _told() -> Iterator[None]:
    """The database's errors as ours; what would be a bug of skylift (a constraint, a statement) stays as it is."""
    try:
        yield
    except DBAPIError as error:
        if not isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError) and not error.connection_invalidated:
            if isinstance(error, sa.exc.DatabaseError) and type(error) is sa.exc.DatabaseError:
                raise SetupError(f"the store is damaged or not a database: {error.orig}", hint="restore it", code="Store") from None
            raise
        deadline.check()
        raise Transient(f"the store did not answer: {str(error.orig).strip()}",
                        hint="it may be locked, full or away: try again", code="Store") from None
