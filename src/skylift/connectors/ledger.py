"""How the ledgers of SQL targets write down watermarks and digests, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from skylift.connectors import TableState
from skylift.model import Digest, TargetName, Watermark

STATES = "schema_name, table_name, rows, digest, watermark, columns"     # of _skylift_tables


def mark_text(mark: Watermark) -> str:
    return json.dumps([mark.feed, mark.position, mark.incarnation])


def mark_of(text: str) -> Watermark:
    return Watermark(*json.loads(text))


def digest_of(rows: int, text: str) -> Digest:
    """`text` is str(digest)."""
    return Digest(rows, int(text[16:], 16), int(text[:16], 16))


def states_of(rows: Iterable[Iterable[Any]]) -> dict[TargetName, TableState]:
    """`rows` of the columns STATES."""
    return {TargetName(schema, table): TableState(digest_of(count, digest), mark_of(mark), columns)
            for schema, table, count, digest, mark, columns in rows}
