"""SQL Server's types: what a column moves as, how it is read, and how the values of a key are written down and compared.

A type is spelt as T-SQL declares it: `nvarchar(20)`, `decimal(38,20)`, `datetime2(7)`. docs/types.md says the same in words.
Source: https://learn.microsoft.com/sql/t-sql/data-types/data-types-transact-sql
"""

from __future__ import annotations

import re
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa

from skylift.connectors.sql import quote

SHORT_BYTES = 8000                 # the longest binary value that travels in a fixed buffer; longer ones are read row by row
SHORT_TEXT_BYTES = 4000            # the same for text: 2,000 UTF-16 units, or where a server counts UTF-8, no more than fit the buffer
REFUSED = pa.null()                # the type of a column whose values skylift cannot move exactly
MAX_LENGTH = b"max_length"         # of a field's metadata: how many UTF-16 units (text) or bytes the source lets a value have

_TYPES: dict[str, pa.DataType] = {
    "bit": pa.bool_(), "tinyint": pa.uint8(), "smallint": pa.int16(), "int": pa.int32(), "bigint": pa.int64(),
    "money": pa.decimal128(19, 4), "smallmoney": pa.decimal128(10, 4), "real": pa.float32(), "float": pa.float64(),
    "date": pa.date32(), "datetime": pa.timestamp("us"), "smalldatetime": pa.timestamp("us"), "datetime2": pa.timestamp("us"),
    "time": pa.time64("us"), "datetimeoffset": pa.string(), "uniqueidentifier": pa.uuid(),
    "char": pa.string(), "varchar": pa.string(), "nchar": pa.string(), "nvarchar": pa.string(), "text": pa.string(), "ntext": pa.string(),
    "xml": pa.string(), "json": pa.string(), "hierarchyid": pa.string(),
    "binary": pa.binary(), "varbinary": pa.binary(), "image": pa.binary(), "timestamp": pa.binary(),
    "geometry": pa.binary(), "geography": pa.binary(),
}
# Why the others are refused.
_REASONS = {"sql_variant": "each of its values has a type of its own", "vector": "as text it would lose digits"}
_FINE = {pa.timestamp("us"): pa.timestamp("ns"), pa.time64("us"): pa.time64("ns")}    # of columns with steps of 100 ns

# How a value that may be longer than SHORT_BYTES becomes what it moves as.
_LONG = {"nvarchar(max)": "{}", "varchar(max)": "cast({} as nvarchar(max))", "text": "cast({} as nvarchar(max))",
         "ntext": "cast({} as nvarchar(max))", "xml": "cast({} as nvarchar(max))", "json": "cast({} as nvarchar(max))",
         "varbinary(max)": "{}", "image": "cast({} as varbinary(max))", "geometry": "cast({} as varbinary(max))",
         "geography": "cast({} as varbinary(max))"}
_READ = {"uniqueidentifier": "cast({} as binary(16))", "datetimeoffset": "convert(varchar(34), {}, 121)", "hierarchyid": "{}.ToString()"}

# A key's value as it is written into the plan of a copy (an integer, text or bytes), and back into a value to compare with.
_WRITTEN = {"decimal": "convert(varchar(48), {})", "numeric": "convert(varchar(48), {})", "money": "convert(varchar(48), {}, 2)",
            "smallmoney": "convert(varchar(48), {}, 2)", "float": "convert(varchar(48), {}, 3)", "real": "convert(varchar(48), {}, 3)",
            "uniqueidentifier": "cast({} as varchar(36))", "hierarchyid": "{}.ToString()",
            **dict.fromkeys(("date", "time", "datetime", "smalldatetime", "datetime2", "datetimeoffset"), "convert(varchar(48), {}, 126)")}
_COMPARED = {"timestamp": "cast(? as binary(8))", "datetime": "cast(convert(datetime2(7), ?, 126) as datetime)",
             "smalldatetime": "cast(convert(datetime2(7), ?, 126) as smalldatetime)", "hierarchyid": "cast(? as hierarchyid)"}


def spelt(name: str, max_length: int, precision: int, scale: int) -> str:
    """A column's type as T-SQL declares it, from what sys.columns says of it."""
    if name in ("nchar", "nvarchar", "char", "varchar", "binary", "varbinary"):
        size = max_length // 2 if name[0] == "n" and max_length > 0 else max_length
        return f"{name}({'max' if size < 0 else size})"
    if name in ("decimal", "numeric"):
        return f"{name}({precision},{scale})"
    return f"{name}({scale})" if name in ("datetime2", "datetimeoffset", "time") else name


def base(declared: str) -> str:
    return declared.partition("(")[0]


def field_of(name: str, declared: str, fine: bool = False) -> pa.Field:
    """What a column moves as; `fine`: some of its values have steps of 100 ns."""
    if match := re.fullmatch(r"(?:decimal|numeric)\((\d+),(\d+)\)", declared):
        return pa.field(name, pa.decimal128(int(match[1]), int(match[2])))
    kind = _TYPES.get(base(declared), REFUSED)
    if fine:
        kind = _FINE[kind]
    match = re.fullmatch(r"\w+\((\d+)\)", declared)
    sized = match and (pa.types.is_string(kind) or pa.types.is_binary(kind)) and base(declared) != "datetimeoffset"
    return pa.field(name, kind, metadata={MAX_LENGTH: match[1].encode()} if match and sized else None)


def refusal(declared: str) -> str:
    return _REASONS.get(base(declared), "skylift knows no exact form for it")


def may_be_fine(declared: str) -> bool:
    return declared in ("datetime2(7)", "time(7)")


def is_long(declared: str) -> bool:
    return declared in _LONG


def read(field: pa.Field, declared: str) -> str:
    """The expression that hands out a value as the driver can carry it exactly; of a long type, whatever its length."""
    column = quote(field.name)
    if declared in _LONG:
        return _LONG[declared].format(column)
    if pa.types.is_timestamp(field.type) and field.type.tz:     # in a target; a source's offsets move as text
        return column
    if field.type == pa.timestamp("ns"):            # the driver would cut it to microseconds
        return f"datediff_big(nanosecond, cast('19700101' as datetime2(7)), {column})"
    return _READ.get(base(declared), "{}").format(column)


def read_short(field: pa.Field, declared: str) -> str:
    """The same for the rows without a long value."""
    if declared not in _LONG:
        return read(field, declared)
    value, text = read(field, declared), pa.types.is_string(field.type)
    kind = f"nvarchar({SHORT_BYTES // 2})" if text else f"varbinary({SHORT_BYTES})"
    return f"case when datalength({value}) <= {SHORT_TEXT_BYTES if text else SHORT_BYTES} then cast({value} as {kind}) end"


def too_long(field: pa.Field, declared: str) -> str:
    """The condition under which a value does not travel with the others."""
    return f"datalength({read(field, declared)}) > {SHORT_TEXT_BYTES if pa.types.is_string(field.type) else SHORT_BYTES}"


def too_fine(field: pa.Field, declared: str) -> str:
    """The condition under which a value is no whole number of microseconds, though its column moves as such; '' = never."""
    return f"datepart(nanosecond, {quote(field.name)}) % 1000 <> 0" if may_be_fine(declared) and field.type in _FINE else ""


def written(column: str, declared: str) -> str:
    """The expression that writes down a key's value as an integer, text or bytes."""
    return _WRITTEN.get(base(declared), "{}").format(quote(column))


def compared(declared: str) -> str:
    """The expression that makes of a parameter, written down like that, a value of the key's type, so that an index is of use."""
    if base(declared) in _COMPARED:
        return _COMPARED[base(declared)]
    return f"convert({declared}, ?, 126)" if base(declared) in ("date", "time", "datetime2", "datetimeoffset") else f"cast(? as {declared})"


def written_value(scalar: pa.Scalar) -> Any:
    """The same for a value that has been read."""
    kind = scalar.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return _fine_text(scalar.value)
    if pa.types.is_time64(kind) and kind.unit == "ns":
        seconds, rest = divmod(scalar.value, 10**9)
        return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest // 100:07}"
    value = scalar.as_py()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    return value if isinstance(value, int | str | bytes) else str(value)


def _fine_text(nanoseconds: int) -> str:
    whole, rest = divmod(nanoseconds, 10**9)
    seconds = pa.scalar(whole, pa.timestamp("s")).as_py()
    return f"{seconds.isoformat()}.{rest // 100:07}"
