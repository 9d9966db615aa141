"""How each database declares a column of a kind, takes a value, and says what it holds; by its own driver, not through skylift."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Dialect:
    """`types`: kind -> declared type, for kinds that the database has; `reads`: kind -> SQL that says what column v holds."""

    types: dict[str, str]
    reads: dict[str, str] = field(default_factory=dict)
    default_read: str = "{v}"

    def read(self, kind: str) -> str:
        return self.reads.get(kind, self.default_read).format(v='"v"')

    def takes(self, kind: str, value: Any) -> Any:
        return value


_TIMES = ("date", "datetime", "datetime with offset", "time")
_NUMBERS = ("decimal(38,20)", "decimal(18,2)", "numeric")

SOURCES: dict[str, Dialect] = {
    "sqlite": Dialect(
        {"boolean": "BOOLEAN", "int16": "SMALLINT", "int32": "INT", "int64": "INTEGER", "decimal(38,20)": "DECIMALTEXT(38,20)",
         "decimal(18,2)": "DECIMALTEXT(18,2)", "numeric": "NUMERICTEXT", "float64": "DOUBLE", "text": "NTEXT", "binary": "BLOB",
         "date": "DATETEXT", "datetime": "DATETIMETEXT", "guid": "GUIDTEXT", "json": "JSONTEXT"}),
}
# What a target is asked: kinds whose driver values would lose digits are read as text.
TARGETS: dict[str, Dialect] = {
    "duckdb": Dialect({}, {**dict.fromkeys((*_TIMES, *_NUMBERS, "guid"), "{v}::varchar"),
                           "datetime with offset": "({v} at time zone 'UTC')::varchar"}),
    "postgres": Dialect({}, {**dict.fromkeys((*_TIMES, *_NUMBERS, "guid"), "{v}::text"),
                             "datetime with offset": "({v} at time zone 'UTC')::text"}),
}
