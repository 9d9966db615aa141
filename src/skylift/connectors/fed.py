"""Sources whose feed of changes is an object of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from skylift.connectors import Changes
from skylift.model import Table, Watermark


class Feed(Protocol):
    """What `Source` says of these methods."""

    def track(self, tables: Sequence[Table], consumer: str) -> dict[str, Watermark]: ...
    def usable(self, table: Table, since: Watermark) -> str: ...
    def changed(self, since: Mapping[str, Watermark]) -> set[str]: ...
    def changes(self, table: Table, since: Watermark) -> AbstractContextManager[Changes]: ...
    def confirm(self, consumer: str, positions: Mapping[str, int]) -> None: ...
    def untrack(self, consumer: str) -> None: ...


class FedSource:
    """The part of a Source that its feed answers."""

    feed: Feed

    def track(self, tables: Sequence[Table], consumer: str) -> dict[str, Watermark]:
        return self.feed.track(tables, consumer)

    def usable(self, table: Table, since: Watermark) -> str:
        return self.feed.usable(table, since)

    def changed(self, since: Mapping[str, Watermark]) -> set[str]:
        return self.feed.changed(since)

    def changes(self, table: Table, since: Watermark) -> AbstractContextManager[Changes]:
        return self.feed.changes(table, since)

    def confirm(self, consumer: str, positions: Mapping[str, int]) -> None:
        self.feed.confirm(consumer, positions)

    def untrack(self, consumer: str) -> None:
        self.feed.untrack(consumer)
