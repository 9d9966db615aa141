"""SQL text that several databases share."""

from __future__ import annotations


def quote(name: str) -> str:
    """An identifier in standard double quotes. The only place where names become SQL in the dialects that use them."""
    return '"' + name.replace('"', '""') + '"'
