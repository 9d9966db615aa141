"""One caster: batches as a driver hands them out -> batches of the table's schema, exactly or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from skylift.errors import ValueRefused
from skylift.model import Table


def cast_batch(batch: pa.RecordBatch, table: Table) -> pa.RecordBatch:
    """`batch` with the types of `table.schema`. pyarrow's safe casts are exact or raise; text must be UTF-8.

    Raises ValueRefused naming table, column, key and value.
    """
    columns = []
    for column, field in zip(batch.columns, table.schema, strict=True):
        try:
            if _may_be_malformed(column):
                column.validate(full=True)
            columns.append(column if column.type == field.type else column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise _refusal(batch, table, field, column, error) from None
    return pa.RecordBatch.from_arrays(columns, schema=table.schema)


def key_of(batch: pa.RecordBatch, table: Table, row: int) -> tuple[Any, ...]:
    """The key of a row, for messages; a time that Python does not know as text. Columns that the batch lacks are left out."""
    found = []
    for column in (batch.column(name)[row] for name in table.key if name in batch.schema.names):
        try:
            found.append(column.as_py())
        except (OverflowError, ValueError):
            found.append(column.cast(pa.string()).as_py())
    return tuple(found)


def _may_be_malformed(column: pa.Array) -> bool:
    """Only text with a byte over 127 can be malformed UTF-8; looking for one is ten times cheaper than validating all."""
    if not pa.types.is_string(column.type) or column.buffers()[2] is None:
        return False
    data = np.frombuffer(column.buffers()[2], np.int8)
    return data.size > 0 and data.min() < 0


def _refusal(batch: pa.RecordBatch, table: Table, field: pa.Field, column: pa.Array, error: Exception) -> ValueRefused:
    low, high = 0, len(column)                     # halve until the first value that fails stands alone
    while high - low > 1:
        middle = (low + high) // 2
        try:
            column.slice(low, middle - low).validate(full=True)
            column.slice(low, middle - low).cast(field.type)
            low = middle
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            high = middle
    key = key_of(batch, table, low)
    try:
        value = repr(column[low].as_py())[:80]
        text = f"value {value} does not fit {field.type}"
    except UnicodeDecodeError:
        text = "the text is not valid UTF-8"
    return ValueRefused(f"{table.name}.{field.name}, key {key}: {text}",
                        hint="correct the row at the source, or declare the column with a type that holds it")
