"""How each database declares a column of a kind, takes a value, and says what it holds; by its own driver, not through skylift."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
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
        """`value` as a statement's parameter."""
        return value


class MySql(Dialect):
    """MariaDB takes no offset; sessions of the lab are in UTC."""

    def takes(self, kind: str, value: Any) -> Any:
        return f"{datetime.fromisoformat(value).astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}" if kind == "datetime with offset" else value


_TIMES = ("date", "datetime", "datetime with offset", "time")
_NUMBERS = ("decimal(38,20)", "decimal(18,2)", "numeric")

SOURCES: dict[str, Dialect] = {
    "duckdb": Dialect(
        {"boolean": "BOOLEAN", "int16": "SMALLINT", "int32": "INTEGER", "int64": "BIGINT", "uint8": "UTINYINT", "uint64": "UBIGINT",
         "decimal(38,20)": "DECIMAL(38,20)", "decimal(18,2)": "DECIMAL(18,2)", "float32": "REAL", "float64": "DOUBLE", "text": "VARCHAR",
         "binary": "BLOB", "date": "DATE", "datetime": "TIMESTAMP", "datetime with offset": "TIMESTAMPTZ", "time": "TIME", "guid": "UUID",
         "json": "JSON"},
        {**dict.fromkeys((*_TIMES, *_NUMBERS, "guid"), "{v}::varchar"),
         "datetime with offset": "({v} at time zone 'UTC')::varchar"}),
    "mysql": MySql(
        {"boolean": "BIT(1)", "int16": "SMALLINT", "int32": "INT", "int64": "BIGINT", "uint8": "TINYINT UNSIGNED",
         "uint64": "BIGINT UNSIGNED", "decimal(38,20)": "DECIMAL(38,20)",
         "decimal(18,2)": "DECIMAL(18,2)", "numeric": "DECIMAL(65,30)", "float32": "FLOAT",
         "float64": "DOUBLE", "text": "LONGTEXT", "binary": "LONGBLOB", "date": "DATE", "datetime": "DATETIME(6)",
         "datetime with offset": "TIMESTAMP(6)", "time": "TIME(6)", "guid": "CHAR(36)", "json": "JSON"},
        {**dict.fromkeys(_TIMES, "cast({v} as char)"), "boolean": "{v} + 0", "float32": "{v} * 1e0"}),
    "postgres": Dialect(
        {"boolean": "boolean", "int16": "smallint", "int32": "integer", "int64": "bigint", "decimal(38,20)": "numeric(38,20)",
         "decimal(18,2)": "numeric(18,2)", "numeric": "numeric", "float32": "real", "float64": "double precision", "text": "text",
         "binary": "bytea", "date": "date", "datetime": "timestamp", "datetime with offset": "timestamptz", "time": "time", "guid": "uuid",
         "json": "json"},
        {**dict.fromkeys((*_TIMES, *_NUMBERS, "guid", "json"), "{v}::text"), "float32": "{v}::float8",
         "datetime with offset": "({v} at time zone 'UTC')::text"}),
    "sqlite": Dialect(
        {"boolean": "BOOLEAN", "int16": "SMALLINT", "int32": "INT", "int64": "INTEGER", "decimal(38,20)": "DECIMALTEXT(38,20)",
         "decimal(18,2)": "DECIMALTEXT(18,2)", "numeric": "NUMERICTEXT", "float64": "DOUBLE", "text": "NTEXT", "binary": "BLOB",
         "date": "DATETEXT", "datetime": "DATETIMETEXT", "guid": "GUIDTEXT", "json": "JSONTEXT"}),
    "sqlserver": Dialect(
        {"boolean": "bit", "int16": "smallint", "int32": "int", "int64": "bigint", "uint8": "tinyint", "decimal(38,20)": "decimal(38,20)",
         "decimal(18,2)": "decimal(18,2)", "float32": "real", "float64": "float", "text": "nvarchar(max)", "binary": "varbinary(max)",
         "date": "date", "datetime": "datetime2(7)", "datetime with offset": "datetimeoffset(7)", "time": "time(7)",
         "guid": "uniqueidentifier"},
        {**dict.fromkeys(("date", "datetime", "time"), "convert(varchar(40), {v}, 126)"), "guid": "cast({v} as varchar(36))",
         "datetime with offset": "convert(varchar(40), {v}, 121)", "decimal(38,20)": "cast({v} as varchar(50))",
         "decimal(18,2)": "cast({v} as varchar(50))"}),
}
# What a target is asked: kinds whose driver values would lose digits are read as text.
_DUCKDB = Dialect({}, {**dict.fromkeys((*_TIMES, *_NUMBERS, "guid"), "{v}::varchar"),
                       "datetime with offset": "({v} at time zone 'UTC')::varchar"})
TARGETS: dict[str, Dialect] = {
    **dict.fromkeys(("delta", "duckdb", "parquet"), _DUCKDB),      # the files of a lake are read by DuckDB
    "sqlserver": Dialect({}, {**dict.fromkeys(("date", "datetime", "time"), "convert(varchar(40), {v}, 126)"),
                              **dict.fromkeys(_NUMBERS, "cast({v} as varchar(60))"), "guid": "cast({v} as varchar(36))",
                              "datetime with offset": "convert(varchar(40), {v}, 121)"}),
    "postgres": Dialect({}, {**dict.fromkeys((*_TIMES, *_NUMBERS, "guid", "json"), "{v}::text"),
                             "datetime with offset": "({v} at time zone 'UTC')::text", "float32": "{v}::float8"}),
}
