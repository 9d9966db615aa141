"""SQL text that several databases share."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

_DIGEST_BYTES = 6  # 12 hex digits: one accidental collision is to be expected among 20 million cut names

GIVE_WAY = "drop that, run again, and make it again afterwards"


def not_replaced(table: str, obstacles: Iterable[str]) -> str:
    return f"the target's table {table} is not replaced, because {', '.join(obstacles)} would be lost"


def quote(name: str) -> str:
    """An identifier in standard double quotes. The only place where names become SQL in the dialects that use them."""
    return '"' + name.replace('"', '""') + '"'


def fit(name: str, max_bytes: int) -> str:
    """`name` kept whole up to `max_bytes` of UTF-8; a longer one becomes its first part, `~` and 12 hex digits.

    Source: libraries.md §5 (PostgreSQL cuts names at 63 bytes with only a NOTICE).
    """
    raw = name.encode()
    if len(raw) <= max_bytes:
        return name
    digest = blake2b(raw, digest_size=_DIGEST_BYTES).hexdigest()
    return raw[: max_bytes - len(digest) - 1].decode(errors="ignore") + "~" + digest
