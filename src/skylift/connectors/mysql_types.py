"""What each type of MySQL and MariaDB moves as, and the expressions that read, compare and log its values exactly.

A column's declared type is its COLUMN_TYPE, and where it is a text the character set and collation after it, as in a definition:
'int(10) unsigned', 'varchar(20) character set latin1 collate latin1_swedish_ci'. docs/types.md says the same in words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from skylift.connectors.mysql_connection import quote
from skylift.model import KeyRange, Table

_SIGNED = {"tinyint": pa.int8(), "smallint": pa.int16(), "mediumint": pa.int32(), "int": pa.int32(), "bigint": pa.int64()}
_UNSIGNED = {"tinyint": pa.uint8(), "smallint": pa.uint16(), "mediumint": pa.uint32(), "int": pa.uint32(), "bigint": pa.uint64()}
_TEXTS = ("char", "varchar", "tinytext", "text", "mediumtext", "longtext")
_BINARIES = ("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob")
_TYPES: dict[str, pa.DataType] = {
    "year": pa.int16(), "float": pa.float32(), "double": pa.float64(), "date": pa.date32(), "datetime": pa.timestamp("us"),
    "timestamp": pa.timestamp("us", "UTC"), "time": pa.time64("us"), "uuid": pa.uuid(),
    **dict.fromkeys((*_TEXTS, "enum", "set", "json", "inet4", "inet6"), pa.string()),
    # A geometry moves as it is stored: four bytes of SRID, then WKB. A vector: 32-bit floats, little-endian.
    **dict.fromkeys((*_BINARIES, "geometry", "point", "linestring", "polygon", "multipoint", "multilinestring", "multipolygon",
                     "geometrycollection", "geomcollection", "vector"), pa.binary())}
UNKNOWN = pa.null()                # of a type that this list lacks: its table is refused by name

# Character sets whose every stored byte sequence becomes UTF-8 and back, so that nothing can be lost on the way. What claims to be
# UTF-8 is handed out as it is stored, and refused where it is none.
_UTF8 = ("utf8mb4", "utf8mb3", "utf8")
_TOTAL = ("latin1",)               # the server's latin1 is cp1252 with its five holes filled

# Types whose order in comparisons is the one of their index, and whose values can be written down: ranges of a key are made of these.
_ORDERED = (*_SIGNED, *_TEXTS, *_BINARIES, "decimal", "date", "datetime", "timestamp", "year")
# Types of which a key may consist: equal values are one text, and a text is one value.
_KEYS = (*_ORDERED, "time", "enum", "set", "uuid", "inet4", "inet6", "bit")
# Types whose key values the change log can hold: not those whose text depends on the session that writes (timestamp).
_LOGGED = (*_SIGNED, "char", "varchar", "binary", "varbinary", "decimal", "date", "datetime", "time", "year")


def base(declared: str) -> str:
    """The bare type: 'int' of 'int(10) unsigned'."""
    return re.split(r"[( ]", declared, maxsplit=1)[0]


def arrow_type(declared: str) -> pa.DataType:
    name = base(declared)
    if name in _SIGNED:
        return (_UNSIGNED if "unsigned" in declared else _SIGNED)[name]
    if match := re.match(r"decimal\((\d+),(\d+)\)", declared):
        return pa.decimal128(int(match[1]), int(match[2])) if int(match[1]) <= 38 else pa.string()
    if name == "bit":
        return pa.bool_() if declared == "bit(1)" else pa.uint64()
    return _TYPES.get(name, UNKNOWN)


def charset(declared: str) -> str:
    """'' for what has none."""
    return declared.rpartition(" character set ")[2].partition(" ")[0] if " character set " in declared else ""


def may_be_key(declared: str) -> bool:
    return base(declared) in _KEYS


def may_be_logged(declared: str) -> bool:
    return base(declared) in _LOGGED and not ("decimal" in declared and arrow_type(declared) == pa.string())


# ------------------------------------------------------------------ reading


def read_as(kind: pa.DataType) -> pa.DataType:
    """The type that the result set is parsed as; casting.cast_batch makes the column's type of it."""
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return pa.uint64() if kind == pa.uint64() else pa.int64()
    if isinstance(kind, pa.UuidType):
        return pa.binary()
    return pa.string() if pa.types.is_floating(kind) else kind


def selected(column: str, declared: str) -> str:
    """The expression that reads a column, given as SQL."""
    name, letters = base(declared), charset(declared)
    if name == "bit":
        return f"{column} + 0"
    if name == "float" or (name == "double" and "(" in declared):
        return f"{column} * 1e0"                   # else with six digits, or with the declared number of decimals
    if name == "uuid":
        return f"cast({column} as binary(16))"
    if not letters or letters in _UTF8:
        return column
    text = f"convert({column} using utf8mb4)"
    if letters in _TOTAL:
        return text
    # Where the way back does not lead to the same bytes, a byte is handed out that no UTF-8 has.
    return (f"if(cast(convert({text} using {letters}) as binary) = cast({column} as binary) or {column} is null,"
            f" cast({text} as binary), cast(x'FF' as binary))")


def all_selected(table: Table, alias: str = "") -> list[str]:
    """The expressions that read a table's columns; `alias`: what stands before each, with its dot."""
    return [selected(f"{alias}{quote(field.name)}", declared) for field, declared in zip(table.schema, table.source_types, strict=True)]


# ------------------------------------------------------------------ key ranges


def ordered_prefix(table: Table) -> int:
    """How many leading key columns ranges can be made of."""
    kinds = [base(declared_of(table, column)) in _ORDERED for column in table.key]
    return kinds.index(False) if False in kinds else len(kinds)


def is_integer(declared: str) -> bool:
    return base(declared) in _SIGNED


def declared_of(table: Table, column: str) -> str:
    return table.source_types[table.schema.get_field_index(column)]


def bound_value(declared: str, value: bytes | None) -> Any:
    """A key value as ranges carry it: integer, text or bytes. Raises UnicodeDecodeError for text that is none."""
    assert value is not None
    if is_integer(declared) or base(declared) == "year":
        return int(value)
    return value if base(declared) in _BINARIES else value.decode()


def _mark(declared: str) -> str:
    """What stands for such a value in a statement, so that it is compared as the column's type and not as a double."""
    name = base(declared)
    if name == "decimal":
        return f"cast(%s as {declared.split(')')[0]}))"
    return f"cast(%s as {name if name == 'date' else 'datetime(6)'})" if name in ("date", "datetime", "timestamp") else "%s"


def range_sql(table: Table, keys: KeyRange) -> tuple[str, list[Any]]:
    """The condition for a key range, over as many key columns as the bounds have.

    Spelled out column by column: neither server uses an index for (a, b) >= (1, 2)
    (https://dev.mysql.com/doc/refman/8.0/en/row-constructor-optimization.html).
    """
    parts, params = ["1"], []
    for values, sign, last in ((keys.lo, ">", ">="), (keys.hi, "<", "<")):
        if values is None:
            continue
        columns = [quote(column) for column in table.key[:len(values)]]
        marks = [_mark(declared_of(table, column)) for column in table.key[:len(values)]]
        if len(values) > 1:                        # says nothing new, but is what an index is good for
            parts.append(f"{columns[0]} {sign}= {marks[0]}")
            params.append(values[0])
        either = []
        for i, (column, mark) in enumerate(zip(columns, marks, strict=True)):
            equal = [f"{c} = {m}" for c, m in zip(columns[:i], marks[:i], strict=True)]
            either.append(" and ".join([*equal, f"{column} {last if i == len(values) - 1 else sign} {mark}"]))
            params += values[:i + 1]
        parts.append("(" + " or ".join(either) + ")")
    return " and ".join(parts), params


def equal_sql(table: Table, values: tuple[Any, ...]) -> tuple[str, list[Any]]:
    """The condition that the leading key columns have these values."""
    return " and ".join(f"{quote(column)} = {_mark(declared_of(table, column))}"
                        for column, _ in zip(table.key, values, strict=False)), list(values)


# ------------------------------------------------------------------ the change log


def logged_value(column: str, declared: str) -> str:
    """The expression over a column of the log (varbinary) that reads a key value, like `selected` over the table's column."""
    letters = charset(declared)
    return selected(f"convert({column} using {letters})", declared) if letters else column


def same_key(column: str, logged: str, declared: str) -> str:
    """The condition that a row's key column holds what was logged: by the index first, then exactly."""
    name = base(declared)
    if charset(declared):
        return (f"{column} = convert({logged} using {charset(declared)}) collate {declared.rpartition(' ')[2]}"
                f" and cast({column} as binary) = {logged}")
    if name in _SIGNED:
        return f"{column} = cast({logged} as {'unsigned' if 'unsigned' in declared else 'signed'})"
    if name == "decimal":
        return f"{column} = cast({logged} as {declared.split(')')[0]}))"
    if name in ("date", "datetime", "time"):
        return f"{column} = cast({logged} as {name if name == 'date' else name + '(6)'})"
    return f"{column} = cast({logged} as unsigned)" if name == "year" else f"{column} = {logged}"


def moved(key: Sequence[str]) -> str:
    """The condition of a trigger that an update has changed the key, in any letter."""
    return " or ".join(f"not (cast(old.{quote(k)} as binary) <=> cast(new.{quote(k)} as binary))" for k in key)
