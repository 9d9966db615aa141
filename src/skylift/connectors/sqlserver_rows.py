"""Rows of SQL Server as batches of a table's schema; values that the driver would change without a word are refused by key.

The driver cuts times to microseconds, and puts U+FFFD in the place of half a surrogate pair.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from skylift.connectors import Batches
from skylift.connectors.casting import cast_batch
from skylift.connectors.sql import quote
from skylift.connectors.sqlserver import Session, source_name
from skylift.connectors.sqlserver_types import (
    SHORT_BYTES,
    compared,
    is_long,
    read,
    read_short,
    too_fine,
    too_long,
    written,
    written_value,
)
from skylift.errors import ValueRefused
from skylift.model import Table

BATCH_ROWS = 8_192                # what the driver makes of a result at a time (libraries.md §1)
BATCH_BYTES = 8 * 2**20           # Arrow bytes of one batch
PARAMETERS = 2_000                # of a statement; the server takes 2,100

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


# ------------------------------------------------------------------ reading


def read_rows(session: Session, table: Table, name: str, tail: str, params: Sequence[Any], row_bytes: int, keyed: bool = False,
              checks: Checks | None = None) -> Batches:
    """The rows of `select .. <tail>`: those without a long value in bulk, then the others, as many at a time as fit a batch.

    A long value makes the driver fetch its whole row column by column, so it is kept out of the bulk. `name` is the table as SQL
    has it. With `keyed` the key columns follow once more, from columns named _skylift_k0 and so on, which are there where the row
    is not. Without `checks` every value is known to be one that the driver hands out as it is.
    """
    wanted = _with_keys(table) if keyed else table
    parts = list(zip(wanted.schema, wanted.source_types, strict=True))
    fine = [(field.name, condition) for field, declared in parts if checks and (condition := too_fine(field, declared))]
    long = [(field, declared) for field, declared in parts if is_long(declared)]
    # After the columns: for each one that may be too fine whether it is; for the long ones together how long they are, 0 if short.
    marks = [f"case when {condition} then 1 else 0 end" for _, condition in fine]
    if long:
        length = "+".join(f"cast(coalesce(datalength({read(*part)}),0) as bigint)" for part in long)
        marks.append(f"case when {' or '.join(too_long(*part) for part in long)} then {length} else 0 end")
    select = ", ".join([*(read_short(field, declared) for field, declared in parts), *marks])
    batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES // row_bytes))
    halves = HalfPairs(checks, tail, params) if checks else None
    sizes: list[int] = []
    keys: list[pa.RecordBatch] = []
    for batch in session.batches(f"select {select} {tail}", params, batch_rows, table.path):
        flags = batch.columns[len(parts):]
        batch = batch.select(list(range(len(parts))))
        for (column, _), flag in zip(fine, flags, strict=False):
            if checks and (count := pc.sum(flag).as_py()):
                checks.too_fine(column, count)
        if long and pc.max(flags[-1]).as_py():
            wide = pc.greater(flags[-1], 0)
            sizes += pc.filter(flags[-1], wide).to_pylist()
            keys.append(cast(batch.filter(wide), wanted).select(list(table.key)))
            batch = batch.filter(pc.invert(wide))
        rows = cast(batch, wanted)
        yield halves.passed(rows) if halves else rows
    if sizes:
        for batch in _read_long(session, table, name, tail, params, sizes, keys, checks):
            own_keys = [batch.column(key) for key in table.key] if keyed else []
            yield pa.RecordBatch.from_arrays([*batch.columns, *own_keys], schema=wanted.schema)


def _read_long(session: Session, table: Table, name: str, tail: str, params: Sequence[Any], sizes: list[int],
               keys: list[pa.RecordBatch], checks: Checks | None) -> Batches:
    """The rows with a long value, by their keys; of a table without a key, by that very condition."""
    parts = list(zip(table.schema, table.source_types, strict=True))
    select = "select " + ", ".join(read(field, declared) for field, declared in parts)
    if not table.key:
        condition = " or ".join(too_long(*part) for part in parts if is_long(part[1]))
        statements: Iterator[tuple[str, list[Any], int]] = iter(
            [(f"{tail} and ({condition})", list(params), max(1, BATCH_BYTES // max(sizes)))])
    else:
        rows_of = (zip(*batch.columns, strict=True) for batch in keys)
        statements = _by_keys(table, name, sizes, [tuple(map(written_value, row)) for rows in rows_of for row in rows])
    for statement, values, rows in statements:
        halves = HalfPairs(checks, statement, values) if checks else None
        for batch in session.batches(f"{select} {statement}", values, rows, table.path):
            found = cast(batch, table)
            yield halves.passed(found) if halves else found


def _by_keys(table: Table, name: str, sizes: list[int], keys: list[tuple]) -> Iterator[tuple[str, list[Any], int]]:
    """Statements that read these rows, each as many as fit a batch: (tail, parameters, rows)."""
    one = " and ".join(f"r.{quote(column)} = {compared(declared)}" for column, declared in zip(table.key, key_types(table), strict=True))
    begin = 0
    while begin < len(keys):
        end, size = begin + 1, sizes[begin]
        while end < len(keys) and size + sizes[end] <= BATCH_BYTES and (end - begin + 1) * len(table.key) <= PARAMETERS:
            size += sizes[end]
            end += 1
        tail = f"from {name} as r where " + " or ".join([f"({one})"] * (end - begin))
        yield tail, [value for key in keys[begin:end] for value in key], end - begin
        begin = end


def key_types(table: Table) -> list[str]:
    """How the key's columns are declared."""
    return [table.source_types[table.schema.get_field_index(column)] for column in table.key]


def _with_keys(table: Table) -> Table:
    keys = [table.schema.get_field_index(column) for column in table.key]
    fields = [pa.field(f"_skylift_k{i}", table.schema.field(key).type) for i, key in enumerate(keys)]
    return replace(table, schema=pa.schema([*table.schema, *fields]),
                   source_types=(*table.source_types, *(table.source_types[key] for key in keys)))


# ------------------------------------------------------------------ what the driver would change


@dataclass(frozen=True, slots=True)
class Checks:
    """Refuses, or counts where it is accepted, what the driver would change in the rows of a source's table."""

    source: SqlServerSource
    table: Table

    def too_fine(self, column: str, count: int) -> None:
        """Raises ValueRefused naming one of the times with steps of 100 ns in a column that moves in microseconds."""
        table, losses = self.table, self.source.losses
        if "ticks" in losses.accepted:
            losses.count("ticks", table.path, column, count)
            return
        i = table.schema.get_field_index(column)
        condition = too_fine(table.schema.field(i), table.source_types[i])
        keys = ", ".join(written(key, declared) for key, declared in zip(table.key, key_types(table), strict=True)) or "'-'"
        with self.source.sessions.connection() as session:     # another one: the result that is being read is still open
            found = session.run(f"select top (1) {keys} from {source_name(table)} where {condition}", table=table.path)
        raise ValueRefused(f"{table.path}.{column}, key {found[0] if found else '?'}: the value has steps of 100 ns, and the column moves "
                           "in microseconds because the table's first and last rows have none",
                           hint="accept that times are cut: accept=ticks")


class HalfPairs:
    """Refuses half surrogate pairs in the rows of one statement, of which the driver made U+FFFD, or counts them where that is accepted.

    That character may be in the data too: only where it is found is the column read once more, as its bytes.
    """

    def __init__(self, checks: Checks, tail: str, params: Sequence[Any]) -> None:
        self._source, self._table, self._tail, self._params = checks.source, checks.table, tail, params
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
