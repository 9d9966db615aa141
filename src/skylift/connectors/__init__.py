"""Source, Target, and the one place where a URL scheme becomes a driver.

A connector is one file with two small classes. What differs between databases is data at the top of that file or one
short method; shared code never asks "which database?".
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from skylift.errors import SetupError, redact
from skylift.model import Chunk, Digest, KeyRange, Table, TargetName, Watermark


@dataclass(frozen=True, slots=True)
class Changes:
    """What one table's change feed holds since a watermark, read in one source snapshot.

    `keys`: the distinct keys touched (columns = the key); `rows`: those of them that exist now, whole rows.
    A key without a row is a delete. `watermark` is where the snapshot stands.
    """

    keys: pa.Table
    rows: pa.Table
    watermark: Watermark


class Source(Protocol):
    """A database to copy from; safe to call from several threads."""

    def tables(self) -> list[Table]:
        """Every user table, in one round trip to the catalogue; never skylift's own or the database's own tables."""

    def track(self, tables: Sequence[Table], consumer: str) -> Watermark:
        """Make sure that changes of `tables` are fed from now on; the watermark that stands before any later read.

        `consumer` names the environment that reads the feed, so that what it has not read yet is kept.
        """

    def split(self, table: Table, rows: int, size_bytes: int) -> list[KeyRange]:
        """Ranges of about `rows` rows or `size_bytes` bytes that together cover every possible key exactly once."""

    def read(self, table: Table, keys: KeyRange) -> Iterator[pa.RecordBatch]:
        """The rows of `keys`, in batches with the columns of `table.schema`. Raises ValueRefused naming column and key."""

    def usable(self, table: Table, since: Watermark) -> str:
        """'' if the feed can bring `table` from `since` to now, else the reason why it must be copied whole."""

    def changed(self, tables: Sequence[Table], since: Watermark) -> set[str]:
        """Names of those of `tables` that the feed says were touched since the watermark; cost follows what changed."""

    def changes(self, table: Table, since: Watermark) -> Changes:
        """What was touched since the watermark. Raises SourceChanged if the table has no key to tell rows apart."""

    def confirm(self, consumer: str, watermark: Watermark) -> None:
        """The target has committed up to `watermark`: the feed may forget what every consumer has confirmed."""

    def untrack(self, consumer: str) -> None:
        """Remove what `track` installed for this consumer; the last one leaves the source as it was found."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class TableState:
    """What the ledger says a finished target table reflects."""

    digest: Digest
    watermark: Watermark
    columns: str         # fingerprint of the source columns it was copied with


class Target(Protocol):
    """A database to copy to. The ledger beside the data is the truth about what has arrived."""

    max_name_bytes: int

    def states(self) -> dict[TargetName, TableState]: ...
    def plan(self, table: Table, name: TargetName, copy_id: str) -> tuple[Watermark, list[Chunk]] | None: ...
    def prepare(self, table: Table, name: TargetName, copy_id: str, watermark: Watermark, chunks: Sequence[Chunk]) -> None: ...
    def ledger(self, name: TargetName, copy_id: str) -> dict[int, Digest]: ...
    def drop(self, name: TargetName) -> None: ...
    def close(self) -> None: ...


_DRIVERS = {"sqlite": "skylift.connectors.sqlite", "duckdb": "skylift.connectors.duckdb"}


def open_source(url: str) -> Source:
    """The source at `url`. Raises SetupError naming what is wrong with the string, the file or the server."""
    parsed = parse_url(url)
    return _driver(parsed, "open_source")(parsed)


def open_target(url: str) -> Target:
    """The target at `url`, created if missing. Raises SetupError if it cannot be written."""
    parsed = parse_url(url)
    return _driver(parsed, "open_target")(parsed)


def parse_url(url: str) -> URL:
    try:
        return make_url(url.strip())
    except (ArgumentError, ValueError):
        raise SetupError(f"connection string '{redact(url)}' is not a URL",
                         hint="write it as sqlite:///path/to/file.db or duckdb:///path/to/file.duckdb") from None


def _driver(url: URL, opener: str):
    scheme = url.get_backend_name()
    module = importlib.import_module(_DRIVERS[scheme]) if scheme in _DRIVERS else None
    if not hasattr(module, opener):
        side = opener.removeprefix("open_")
        raise SetupError(f"'{url.drivername}' is not a {side} that skylift knows", hint=f"known schemes: {', '.join(_DRIVERS)}")
    return getattr(module, opener)


__all__ = ["Changes", "Digest", "Iterable", "KeyRange", "Source", "TableState", "Target", "open_source", "open_target", "parse_url"]
