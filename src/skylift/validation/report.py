"""What a suite has found: a row for each thing that is not as expected, up to a bound, and the exact number of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

HIDDEN = "***"                    # in place of a value that a test does not show
SHOWN = 400                       # characters of a value, or of a key, that are kept


@dataclass(frozen=True, slots=True)
class Test:
    """`redact`: neither expected nor actual values are kept. `ignored`: it logs nothing."""

    id: str
    description: str
    entity: str = ""              # what it is about, '' = each table
    is_warning: bool = False      # what it finds never fails a migration
    redact: bool = False
    ignored: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    test: str
    key: str
    expected: str
    actual: str
    is_warning: bool
    message: str = ""


@dataclass(slots=True)
class Report:
    """Filled by a suite for one table of one company. `room`: how many more rows of a test may be kept."""

    tests: Sequence[Test]
    room: Callable[[str], int] = lambda test: 1000
    ignored: Collection[str] = ()
    rows: list[Found] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)      # by test, all that was found
    warnings: Counter[str] = field(default_factory=Counter)    # of those, how many are warnings
    note: str = ""                # why something was not compared

    def add(self, test: str, key: str, expected: str, actual: str, message: str = "", *, warning: bool = False, count: int = 1) -> None:
        """Something is not as expected; `count` of them, where only the first is shown."""
        about = next(known for known in self.tests if known.id == test)
        if test in self.ignored or about.ignored:
            return
        warning |= about.is_warning
        self.counts[test] += count
        self.warnings[test] += count if warning else 0
        if sum(row.test == test for row in self.rows) < self.room(test):
            values = (HIDDEN, HIDDEN) if about.redact else (expected, actual)
            shown, one, other = (text[:SHOWN] for text in (key, *values))
            self.rows.append(Found(test, shown, one, other, warning, message))

    def add_all(self, test: str, keys: Sequence[str], count: int, expected: str, actual: str, message: str = "", *,
                warning: bool = False) -> None:
        """`count` things of which only these `keys` are at hand."""
        for key in keys:
            self.add(test, key, expected, actual, message, warning=warning)
        if count > len(keys):
            self.add(test, f"and {count - len(keys):,} more", expected, actual, message, warning=warning, count=count - len(keys))

    def soften(self, message: str) -> None:
        """All of it is no more than a warning, for this reason."""
        self.warnings = Counter(self.counts)
        self.rows = [Found(row.test, row.key, row.expected, row.actual, True, message) for row in self.rows]

    @property
    def errors(self) -> int:
        return self.counts.total() - self.warnings.total()


def neutral(value: Any) -> str:
    """A value spelt one way, whichever driver it comes from: no trailing zeros, ISO times, GUIDs and bytes in lower case, true as 1."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float | Decimal):
        number = Decimal(repr(value)) if isinstance(value, float) else Decimal(int(value)) if isinstance(value, bool | int) else value
        if not number.is_finite():
            return str(number).lower()
        text = f"{number:f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return "0" if text in ("-0", "") else text
    if isinstance(value, datetime):
        text = value.isoformat(sep=" ", timespec="microseconds")
        head, zone = (text[:26], text[26:])
        return head.rstrip("0").rstrip(".") + zone
    if isinstance(value, time):
        return value.isoformat(timespec="microseconds").rstrip("0").rstrip(".")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return f"0x{bytes(value).hex()}"
    return str(value).lower() if isinstance(value, UUID) else str(value)
