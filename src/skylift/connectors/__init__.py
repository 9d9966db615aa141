"""Source, Target, and the one place where a URL scheme becomes a driver.

A connector is one file with two small classes. What differs between databases is data at the top of that file or one
short method; shared code never asks "which database?".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from skylift.connectors import sqlserver_url
from skylift.errors import SetupError
from skylift.losses import Losses
from skylift.model import Digest, KeyRange, Table, TargetName, Watermark

if TYPE_CHECKING:
    from skylift.connectors.looks import SourceLook, TargetLook

Batches = Generator[pa.RecordBatch, None, None]    # closed by who stops reading early, so that no statement stays open
# Batches of a table whose format is not ARROW have one binary column: each value is a whole row, as two databases of one kind exchange it.

SWEEP = "sweep"     # the feed of a table that has none: both sides are hashed, and where they differ rows are moved (engine/copy.py)
STATE = "state"     # a feed that tells only whether anything in the source has changed: equal watermarks say no, others make it a SWEEP


@dataclass(frozen=True, slots=True)
class Changes:
    """What one table's change feed holds since a watermark, read in one source snapshot.

    `keys`: the distinct keys touched (columns = the key); `rows`: those of them that exist now, whole rows, to be read once.
    A key without a row is a delete. `rows_now` counts the table in the same snapshot where the feed alone cannot vouch for
    every delete, else None; then `keys_now()`, if there is one, streams all keys of the table in that snapshot.
    `seal()`, called after the rows have been read, ends the snapshot and says where it stood. `moving`: the source has no
    snapshots, so `rows_now` may count rows that came or went while it was read; the next run brings them.
    """

    keys: pa.Table
    rows: Batches
    rows_now: int | None
    seal: Callable[[], Watermark]
    keys_now: Callable[[], Batches] | None = None
    moving: bool = False


class Source(Protocol):
    """A database to copy from; safe to call from several threads."""

    name: str            # of the database: the file's stem, or its name on the server
    losses: Losses       # what may be changed where a value cannot be handed out exactly

    def notes(self) -> list[str]:
        """What whoever sets a migration up should know of this source, a sentence each, with its code where it has one."""

    def tables(self) -> list[Table]:
        """Every user table, in one round trip to the catalogue; never skylift's own or the database's own tables."""

    def track(self, tables: Sequence[Table], consumer: str) -> dict[str, Watermark]:
        """Make sure that changes of `tables` are fed from now on; by path, the watermark that stands before any later read.

        `consumer` names the environment that reads the feed, so that what it has not read yet is kept. Each table gets the
        best feed that can be had; the watermark's `feed` says which. A table with the feed SWEEP or STATE is never `changed`.
        """

    def measure(self, table: Table) -> Table:
        """`table` with `rows` and `size_bytes` filled in, estimated where counting would cost a scan."""

    def split(self, table: Table, rows: int, size_bytes: int) -> list[KeyRange]:
        """Ranges of about `rows` rows or `size_bytes` bytes of a measured table, covering every possible key exactly once."""

    def read(self, table: Table, keys: KeyRange) -> Batches:
        """The rows of `keys` in the table's format: batches with its columns. Raises ValueRefused naming column and key."""

    def usable(self, table: Table, since: Watermark) -> str:
        """'' if the feed can bring `table` from `since` to now, else the reason why it must be copied whole."""

    def changed(self, since: Mapping[str, Watermark]) -> set[str]:
        """Paths of the tables that the feed says were touched since their watermark; cost follows what changed."""

    def changes(self, table: Table, since: Watermark) -> AbstractContextManager[Changes]:
        """What was touched since the watermark. Raises SourceChanged if the feed cannot tell the rows apart."""

    def confirm(self, consumer: str, positions: Mapping[str, int]) -> None:
        """The target has committed each table up to its position: the feed may forget what every consumer has confirmed."""

    def untrack(self, consumer: str) -> None:
        """Remove what `track` installed for this consumer; the last one leaves the source as it was found."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class TableState:
    """What the ledger says a finished target table reflects."""

    digest: Digest
    watermark: Watermark
    columns: str                    # fingerprint of the source columns it was copied with


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """A full copy that has begun: where its source stood before, and how it is cut (as text of engine/copy.py)."""

    watermark: Watermark
    ranges: str


class Transaction(Protocol):
    """One transaction of the target: committed when its `with` block ends, rolled back when the block raises."""

    def create(self, name: TargetName, table: Table) -> None:
        """An empty table of these columns, in place of whatever stands there."""

    def insert(self, name: TargetName, table: Table, batches: Iterable[pa.RecordBatch]) -> None:
        """Append rows in the table's format. Raises ValueRefused for a value that the target cannot hold."""

    def delete(self, name: TargetName, keys: pa.Table) -> None:
        """Delete the rows with these keys (columns = the key)."""

    def read(self, name: TargetName, table: Table, keys: pa.Table | None = None) -> Batches:
        """The rows, or those with these keys, in the table's format, as this transaction sees them, in no order.

        `table.schema` may be some of the columns only.
        """

    def count(self, name: TargetName) -> int: ...
    def swap(self, build: TargetName, name: TargetName) -> None:
        """Put `build` in the place of `name`."""

    def drop(self, name: TargetName) -> None:
        """Drop the table and what the ledger knows of it; nothing happens if it is not there."""

    def begin_copy(self, build: TargetName, name: TargetName, copy_id: str, plan: CopyPlan) -> None:
        """A large copy begins, to be swapped into the place of `name` once it is whole; a target that could not then says so now."""

    def chunk_done(self, build: TargetName, copy_id: str, chunk: int, digest: Digest) -> None: ...
    def end_copy(self, build: TargetName) -> None: ...
    def set_states(self, states: Mapping[TargetName, TableState]) -> None: ...

    # For upgrade steps, which speak the target's own SQL (`Target.dialect`).

    def execute(self, sql: str, params: Sequence[Any] = (), limit_s: float = 0) -> list[tuple]:
        """One statement and the rows of its result; each `?` is a parameter where there are some.

        One that takes longer than `limit_s` seconds (0 = any time) is ended with an error. A target without SQL refuses.
        """

    def standing(self, schema: str) -> dict[str, list[str]]:
        """The columns of every table that stands in this schema ('' = the default one)."""

    def table_sql(self, name: TargetName) -> str: ...
    def column_sql(self, column: str) -> str:
        """The quoted name that a source's column goes by in the target."""


class Destination(Protocol):
    """What can be asked of a target without writing to it; safe to call from several threads."""

    max_name_bytes: int
    chunk_rows: int                 # rows of a chunk that this database stores best
    formats: Container[str]         # that it reads and writes; ARROW is one of them
    losses: Losses                  # what may be changed where a value cannot be held exactly

    def declares(self, table: Table) -> dict[str, str]:
        """How each column would be declared, by its name there. Raises ValueRefused for a type that has no exact counterpart."""

    def fit(self, batch: pa.RecordBatch, table: Table) -> pa.RecordBatch:
        """`batch` as this database can hold it, before it is hashed. Raises ValueRefused for what no setting accepts to change."""

    def states(self) -> dict[TargetName, TableState]: ...


class Hashes(Protocol):
    """A database that hashes the rows it holds by itself: where its sum is that of the rows which were sent, they need not be read back.

    A sum is modulo 2^64. Sums that differ prove nothing; then the rows are read back, and what was read decides.
    """

    def of(self, table: Table) -> Callable[[pa.RecordBatch], int | None] | None:
        """What works out of the rows of a batch what the database's hashes of them add up to. None where they have to be read back: for
        the table's types, or, in place of a sum, for the batch's values.
        """

    def within(self, transaction: Transaction, tables: Mapping[TargetName, Table]) -> Mapping[TargetName, tuple[int, int]]:
        """Rows and sum of tables that were made in the transaction."""

    def committed(self, name: TargetName, table: Table, workers: int, check: Callable[[], None]) -> tuple[int, int]:
        """Rows and sum of a table; `check` is called every few seconds, and may raise."""


class Target(Destination, Protocol):
    """A database to copy to; safe to call from several threads. The ledger beside the data is the truth about what arrived."""

    dialect: str                    # of its SQL: the scheme of its URL; '' = it has none, and no transaction for statements
    holds_values: bool              # has the large values of a transaction in memory together
    hashes: Hashes | None           # None = rows are compared by reading them back

    def transaction(self) -> AbstractContextManager[Transaction]: ...
    def copies(self, copy_id: str) -> dict[TargetName, CopyPlan]:
        """The full copies that have begun under this id and not ended, by the table they build."""

    def chunks_done(self, build: TargetName, copy_id: str) -> dict[int, Digest]: ...
    def read_parts(self, name: TargetName, table: Table, parts: int) -> list[Batches]:
        """The committed rows as at most `parts` independent streams, each to be read by a thread of its own."""

    def discard_copies(self, keep: str) -> None:
        """Drop what full copies under other ids than `keep` have left behind."""

    def close(self) -> None: ...


_SOURCES = {"sqlite": "skylift.connectors.sqlite", "mysql": "skylift.connectors.mysql", "mariadb": "skylift.connectors.mysql",
            "postgresql": "skylift.connectors.postgres_source", "mssql": "skylift.connectors.sqlserver_source",
            "duckdb": "skylift.connectors.duckdb_source"}
_TARGETS = {"duckdb": "skylift.connectors.duckdb", "parquet": "skylift.connectors.lake", "delta": "skylift.connectors.lake",
            "postgresql": "skylift.connectors.postgres_target", "mssql": "skylift.connectors.sqlserver_target"}
_LOOKS = {scheme: f"skylift.connectors.{name}_look" for scheme, name in (
    ("sqlite", "sqlite"), ("mysql", "mysql"), ("mariadb", "mysql"), ("postgresql", "postgres"), ("mssql", "sqlserver"),
    ("duckdb", "duckdb"), ("parquet", "lake"), ("delta", "lake"))}
_COMPILED = {"postgresql": tuple(f"skylift.connectors.postgres_{part}" for part in ("receive", "binary", "hashes")),
             "mysql": ("skylift.connectors.mysql_rows",), "mariadb": ("skylift.connectors.mysql_rows",)}    # modules with a warm_up()
_PORTS = {"postgresql": 5432, "mssql": 1433}


def open_source(url: str, losses: Losses | None = None) -> Source:
    """The source at `url`. Raises SetupError naming what is wrong with the string, the file or the server."""
    parsed = parse_url(url)
    source: Source = _driver(parsed, "source", _SOURCES).open_source(parsed)
    source.losses = losses or Losses()
    return source


def open_target(url: str, losses: Losses | None = None) -> Target:
    """The target at `url`, created if missing. Raises SetupError if it cannot be written."""
    parsed = parse_url(url)
    target: Target = _driver(parsed, "target", _TARGETS).open_target(parsed)
    target.losses = losses or Losses()
    return target


@contextmanager
def opened(source_url: str, target_url: str, losses: Losses | None = None) -> Iterator[tuple[Source, Callable[[], Target]]]:
    """The source, and the target once it is asked for: it opens while the source's catalogue is read. Both are closed when the block ends.

    Raises what `open_source` raises; asking for the target raises what `open_target` raises.
    """
    check_apart(source_url, target_url)
    losses = losses or Losses()
    with ThreadPoolExecutor(1, "open-target") as pool:
        opening = pool.submit(open_target, target_url, losses)
        try:
            with closing(open_source(source_url, losses)) as source:
                yield source, opening.result
        finally:
            if opening.exception() is None:
                opening.result().close()


def look_at_source(url: str, losses: Losses | None = None) -> SourceLook:
    """The source at `url` as it stands; nothing is written there. Raises what `open_source` raises."""
    look: SourceLook = _driver(parse_url(url), "source", {scheme: _LOOKS[scheme] for scheme in _SOURCES}).look_at_source(parse_url(url))
    look.source.losses = losses or Losses()
    return look


def look_at_target(url: str, losses: Losses | None = None) -> TargetLook:
    """The target at `url` as it stands, or would be made; nothing is written there. Raises SetupError, Transient if it is in use."""
    look: TargetLook = _driver(parse_url(url), "target", {scheme: _LOOKS[scheme] for scheme in _TARGETS}).look_at_target(parse_url(url))
    look.losses = losses or Losses()
    return look


def load(*urls: str) -> None:
    """Import the drivers of these URLs and compile their loops, which takes seconds when it is done for the first time."""
    for scheme in (parse_url(url).get_backend_name() for url in urls):
        for module in (*(drivers[scheme] for drivers in (_SOURCES, _TARGETS) if scheme in drivers), *_COMPILED.get(scheme, ())):
            getattr(importlib.import_module(module), "warm_up", lambda: None)()


def grants(url: str, side: str) -> str:
    """What gives a user of the database at `url` the rights that skylift needs there, and no more; nothing is connected.

    `side`: 'source' or 'target'. A script for an administrator of the server, or for files a sentence, as comments.
    """
    parsed = parse_url(url)
    script: str = _driver(parsed, side, {"source": _SOURCES, "target": _TARGETS}[side]).grants(parsed)
    return script


def check_apart(source_url: str, target_url: str) -> None:
    """Raises SetupError if source and target are one file or one database: a run would replace the tables that it reads."""
    source, target = parse_url(source_url), parse_url(target_url)
    same = _place(source) == _place(target)
    if same and source.database:
        raise SetupError(f"source and target are the same {'database' if source.host else 'file'}: {source.database}", code="SamePlace",
                         hint="name another target (skylift setup --target URL)")


def place_of(target_url: str) -> str:
    """Which target a URL means, whoever signs in there: two URLs of one target have the same place."""
    url = parse_url(target_url)
    kind = url.get_backend_name()
    if not url.host and kind not in _PORTS:
        return f"{kind}:{Path(url.database or '').resolve()}"
    elsewhere = ",".join(str(url.query[name]) for name in ("endpoint", "host") if name in url.query)
    return f"{kind}://{(url.host or elsewhere).lower()}:{url.port or _PORTS.get(kind, '')}/{(url.database or '').strip('/')}" + (
        f"?{elsewhere}" if url.host and elsewhere else "")


def _place(url: URL) -> tuple[object, ...]:
    if not url.host and url.database:
        path = Path(url.database).resolve()
        return (path.stat().st_dev, path.stat().st_ino) if path.exists() else (path,)
    return url.get_backend_name(), (url.host or "").lower(), url.port or _PORTS.get(url.get_backend_name()), url.database


def parse_url(url: str) -> URL:
    """The URL that a URL, or a connection string of ADO.NET or ODBC, stands for. Raises SetupError 52072 saying what is wrong."""
    if sqlserver_url.has_keywords(url):
        return sqlserver_url.from_keywords(url)
    try:
        parsed = make_url(url.strip())
    except (ArgumentError, ValueError):
        raise SetupError("the connection string is not a URL", code="52072",   # not repeated: no telling where its password stands
                         hint="write it as sqlite:///path/to/file.db, postgresql://user@host/database or Server=..;Database=..") from None
    return sqlserver_url.from_url(parsed) if parsed.get_backend_name() in sqlserver_url.SCHEMES else parsed


def _driver(url: URL, side: str, drivers: Mapping[str, str]):
    """A dict maps URL scheme to file; the driver is imported only when it is asked for."""
    scheme = url.get_backend_name()
    if scheme not in drivers:
        raise SetupError(f"'{url.drivername}' is not a {side} that skylift knows", hint=f"known {side}s: {', '.join(drivers)}")
    return importlib.import_module(drivers[scheme])
