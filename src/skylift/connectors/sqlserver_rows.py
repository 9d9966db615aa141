"""The driver's batches as batches of a table's schema, and the values that it would change without a word, refused by key.

The driver cuts times to microseconds, and puts U+FFFD in the place of half a surrogate pair.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from skylift.connectors.casting import cast_batch
from skylift.connectors.sql import quote
from skylift.connectors.sqlserver import source_name
from skylift.connectors.sqlserver_types import SHORT_BYTES, is_long, read, too_fine, written
from skylift.errors import ValueRefused
from skylift.model import Table

if TYPE_CHECKING:
    from skylift.connectors.sqlserver_source import SqlServerSource

_REPLACEMENT = re.compile("\N{REPLACEMENT CHARACTER}".encode())
# The server keeps the first three groups of a GUID in little-endian order, RFC 9562 all of it in big-endian order.
_RFC_ORDER = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15]


def cast(batch: pa.RecordBatch, table: Table) -> pa.RecordBatch:
    """`batch` with the names and types of `table.schema`. Raises ValueRefused naming table, column, key and value."""
    columns = [_guids(column) if field.type == pa.uuid() else column for field, column in zip(table.schema, batch.columns, strict=True)]
    return cast_batch(pa.RecordBatch.from_arrays(columns, names=table.schema.names), table)


def _guids(column: pa.Array) -> pa.Array:
    fixed = column.cast(pa.binary(16))
    data = np.frombuffer(fixed.buffers()[1], np.uint8).reshape(-1, 16)[fixed.offset:fixed.offset + len(fixed), _RFC_ORDER]
    valid = fixed.is_valid() if fixed.null_count else None
    storage = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(fixed), [_bitmap(valid), pa.py_buffer(np.ascontiguousarray(data))])
    return pa.ExtensionArray.from_storage(pa.uuid(), storage)


def _bitmap(valid: pa.BooleanArray | None) -> pa.Buffer | None:
    return None if valid is None else valid.buffers()[1]


def refuse_fine(source: SqlServerSource, table: Table, column: str, count: int) -> None:
    """Raises ValueRefused naming one of the times with steps of 100 ns in a column that moves in microseconds, or counts what was cut."""
    if "ticks" in source.losses.accepted:
        source.losses.count("ticks", table.path, column, count)
        return
    i = table.schema.get_field_index(column)
    condition = too_fine(table.schema.field(i), table.source_types[i])
    types = [table.source_types[table.schema.get_field_index(key)] for key in table.key]
    keys = ", ".join(written(key, declared) for key, declared in zip(table.key, types, strict=True)) or "'-'"
    with source.sessions.connection() as session:  # another one: the result that is being read is still open
        found = session.run(f"select top (1) {keys} from {source_name(table)} where {condition}", table=table.path)
    raise ValueRefused(f"{table.path}.{column}, key {found[0] if found else '?'}: the value has steps of 100 ns, and the column moves in "
                       "microseconds because the table's first and last rows have none", hint="accept that times are cut: accept=ticks")


class SurrogateCheck:
    """Refuses half surrogate pairs in the rows of one statement, of which the driver made U+FFFD, or counts them where that is accepted.

    That character may be in the data too: only where it is found is the column read once more, as its bytes.
    """

    def __init__(self, source: SqlServerSource, table: Table, tail: str, params: Sequence[Any]) -> None:
        self._source, self._table, self._tail, self._params = source, table, tail, params
        self._checked: set[int] = set()

    def passed(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """`rows`. Raises ValueRefused naming column and key."""
        for i, field in enumerate(self._table.schema):
            data = rows.column(i).buffers()[2] if pa.types.is_string(field.type) and i not in self._checked else None
            if data is not None and _REPLACEMENT.search(memoryview(data)):
                self._check(field, self._table.source_types[i])
                self._checked.add(i)
        return rows

    def _check(self, field: pa.Field, declared: str) -> None:
        table = self._table
        size = "max" if is_long(declared) else SHORT_BYTES
        columns = [f"cast(cast({read(field, declared)} as nvarchar(max)) as varbinary({size}))", *map(quote, table.key)]
        with self._source.sessions.connection() as session:
            for batch in session.batches(f"select {', '.join(columns)} {self._tail}", self._params, 1024, table.path):
                for row, utf16 in enumerate(batch.column(0).to_pylist()):
                    if _is_whole(utf16 or b""):
                        continue
                    if "surrogates" in self._source.losses.accepted:
                        self._source.losses.count("surrogates", table.path, field.name, 1)
                        continue
                    key = tuple(batch.column(j)[row].as_py() for j in range(1, batch.num_columns))
                    raise ValueRefused(f"{table.path}.{field.name}, key {key}: the text holds half a surrogate pair, which is no character",
                                       hint="correct the row at the source, or accept U+FFFD in its place: accept=surrogates")


def _is_whole(utf16: bytes) -> bool:
    try:
        utf16.decode("utf-16-le")
    except UnicodeDecodeError:
        return False
    return True
