"""How the ledgers of SQL targets write down watermarks and digests, and back."""

from __future__ import annotations

import json

from skylift.model import Digest, Watermark


def mark_text(mark: Watermark) -> str:
    return json.dumps([mark.feed, mark.position, mark.incarnation])


def mark_of(text: str) -> Watermark:
    return Watermark(*json.loads(text))


def digest_of(rows: int, text: str) -> Digest:
    """`text` is str(digest)."""
    return Digest(rows, int(text[16:], 16), int(text[:16], 16))
