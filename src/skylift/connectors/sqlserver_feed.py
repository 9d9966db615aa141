"""How a SQL Server source tells what changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from skylift.connectors import SWEEP, Changes
from skylift.errors import SourceChanged
from skylift.model import Table, Watermark

if TYPE_CHECKING:
    from skylift.connectors.sqlserver_source import SqlServerSource


class Feeds:
    def __init__(self, source: SqlServerSource) -> None:
        self._source = source

    def track(self, tables: Sequence[Table]) -> dict[str, Watermark]:
        return {table.path: Watermark(SWEEP, 0, "") for table in tables}

    def usable(self, table: Table, since: Watermark) -> str:
        return f"the feed of the last copy, {since.feed}, is not there any more"

    def changed(self, since: Mapping[str, Watermark]) -> set[str]:
        return set()

    @contextmanager
    def changes(self, table: Table, since: Watermark) -> Iterator[Changes]:
        raise SourceChanged(f"{table.path}: no feed says what changed")
        yield
