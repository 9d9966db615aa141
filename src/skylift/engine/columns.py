"""A table's columns as the text that the ledger keeps, and back."""

from __future__ import annotations

import json
import re

import pyarrow as pa

from skylift.errors import SchemaChanged
from skylift.model import ARROW, Table


def columns_of(table: Table) -> str:
    """Its path in the source, names, order and types of its columns, its key, and its format unless that is Arrow."""
    native = {} if table.format == ARROW else {"format": table.format, "declared": table.source_types}
    return json.dumps({"columns": {field.name: str(field.type) for field in table.schema}, "key": table.key, "from": table.path, **native})


def table_of(name: str, columns: str) -> Table:
    """The table that `columns_of` wrote down, under a name for messages."""
    kept = json.loads(columns)
    return Table(name, pa.schema([(column, _type(text)) for column, text in kept["columns"].items()]), tuple(kept["key"]),
                 source_types=tuple(kept.get("declared", [""] * len(kept["columns"]))), format=kept.get("format", ARROW))


def filled_from(columns: str) -> str:
    """The path of the source table whose rows a target table holds; '' if that was not written down yet."""
    return json.loads(columns).get("from", "")


def mark_upgraded(columns: str, digest: str) -> str:
    """`columns`, saying that the data upgrade has changed the table and which digest it left; '' where its columns are others now."""
    return json.dumps({**json.loads(columns), "upgraded": digest})


def upgraded_as(columns: str) -> str | None:
    """What `mark_upgraded` wrote down; None if the table holds what was copied."""
    return json.loads(columns).get("upgraded")


def schema_change(kept: Table, now: Table) -> SchemaChanged | None:
    """How the columns of a source table differ from those that it was copied with, None if they do not.

    Declared types count where rows moved in their native format.
    """
    types, before = ({f.name: (f.type, declared if kept.format == now.format != ARROW else "") for f, declared in
                      zip(table.schema, table.source_types, strict=True)} for table in (now, kept))
    added, removed = types.keys() - before.keys(), before.keys() - types.keys()
    retyped = {name for name in types.keys() & before.keys() if types[name] != before[name]}
    same = kept.schema.names == now.schema.names and kept.key == now.key and not retyped
    return None if same else SchemaChanged(now.path, added, removed, retyped or {"key or order"} - added - removed)


def _type(text: str) -> pa.DataType:
    if match := re.fullmatch(r"decimal128\((\d+), (-?\d+)\)", text):
        return pa.decimal128(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"timestamp\[(\w+), tz=(.+)\]", text):
        return pa.timestamp(match[1], match[2])
    return pa.uuid() if text == str(pa.uuid()) else pa.type_for_alias(text)
