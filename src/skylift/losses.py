"""Changes to values that somebody has accepted by name: made in one place, and counted.

Whatever a source cannot hand out or a target cannot hold exactly is refused (ValueRefused). Only what the setting `accept` names
is changed instead, and each changed value counts for its table and column, so that a run says what it did.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

from skylift.errors import SetupError

KINDS = {
    "nul": "NUL characters removed from text",
    "ticks": "times cut to the microsecond",
    "surrogates": "lone surrogates replaced by U+FFFD",
    "zero-dates": "zero dates set to null",
    "infinity": "infinite dates and numbers set to null",
    "nan": "NaN set to null",
}


class Losses:
    """What is accepted, and how often it happened in which column; shared by source and target, and by their threads."""

    def __init__(self, accepted: str | Iterable[str] = ()) -> None:
        """`accepted`: names of KINDS, as one text separated by blanks or as several. Raises SetupError for an unknown name."""
        self.accepted = frozenset(accepted.split() if isinstance(accepted, str) else accepted)
        if unknown := sorted(self.accepted - KINDS.keys()):
            raise SetupError(f"no loss is called {', '.join(unknown)}", code="Settings",
                             hint="what can be accepted: " + "; ".join(f"{kind} ({text})" for kind, text in KINDS.items()))
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()

    def count(self, kind: str, table: str, column: str, values: int) -> None:
        """`values` values of a column of the table with this path have been changed; the kind must be an accepted one."""
        assert kind in self.accepted
        with self._lock:
            self._counts[table, column, kind] += values

    def taken(self, table: str) -> str:
        """What has been changed in the table since it was last asked, as a sentence; '' if nothing."""
        with self._lock:
            found = sorted(key for key in self._counts if key[0] == table)
            return "; ".join(f"{column}: {self._counts.pop((path, column, kind)):,} {KINDS[kind]}" for path, column, kind in found)


def taken(table: str, *several: Losses) -> str:
    """What has been changed in the table, as several of these have counted it; one that is there twice says it once."""
    return "; ".join(filter(None, (losses.taken(table) for losses in dict.fromkeys(several))))
