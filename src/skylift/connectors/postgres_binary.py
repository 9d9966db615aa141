"""Rows of PostgreSQL's binary COPY, as they stand or as Arrow record batches, exactly; no row becomes a Python object.

A row is a count of fields, each a length (-1 = null) and the bytes that its type's send function writes, big-endian
(https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format"). Numba decodes a batch in one pass, without the
interpreter lock. ADBC's reader hands numeric out as text and took five times the CPU (measured, 300,000 rows x 50 columns);
and as pgpq encodes what a target gets, encoder and decoder share no code: each proves the other.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import pyarrow as pa

from skylift.buffers import U, spans
from skylift.connectors.casting import key_of
from skylift.connectors.native import copy
from skylift.errors import CopyError, SkyliftError, ValueRefused
from skylift.model import Table

_DAY_US, _DAYS_TO_2000, _US_TO_2000 = 86_400_000_000, 10_957, 946_684_800_000_000    # Arrow counts from 1970, PostgreSQL from 2000

_BOOL, _INT16, _INT32, _INT64, _DATE, _TIME, _TIMESTAMP, _NUMERIC, _UUID, _BYTES = range(10)
# Arrow type -> how a field is decoded: kind, bytes on the wire (-1 = any number), bytes of an Arrow value.
_DECODED = {"bool": (_BOOL, 1, 0), "int16": (_INT16, 2, 2), "int32": (_INT32, 4, 4), "int64": (_INT64, 8, 8), "float": (_INT32, 4, 4),
            "double": (_INT64, 8, 8), "string": (_BYTES, -1, 4), "binary": (_BYTES, -1, 4), "date32[day]": (_DATE, 4, 4),
            "time64[us]": (_TIME, 8, 8), "timestamp[us]": (_TIMESTAMP, 8, 8), "timestamp[us, tz=UTC]": (_TIMESTAMP, 8, 8),
            str(pa.uuid()): (_UUID, 16, 16)}
_RETYPED, _NO_NUMBER, _TOO_LARGE = 1, 2, 3
_REFUSALS = {_NO_NUMBER: "the value is infinite or not a number, and has no counterpart as", _TOO_LARGE: "the value does not fit"}


def warm_up() -> None:
    """Compile the loops, or load them."""
    row = pa.RecordBatch.from_arrays([pa.array([b"\0\1\0\0\0\1x"])], names=["row"])
    Decoder(Table("t", pa.schema([("a", pa.string())]))).decode(row)


class Decoder:
    """Turns batches of ROW into batches of a table's schema; each field was selected as that type (postgres.selected)."""

    def __init__(self, table: Table) -> None:
        self._table = table
        kinds = [(_NUMERIC, -1, 16) if pa.types.is_decimal128(f.type) else _DECODED[str(f.type)] for f in table.schema]
        self._kinds, self._wire, self._out = np.array(kinds, np.int64).reshape(-1, 3).T.copy()
        self._scales = np.array([f.type.scale if pa.types.is_decimal128(f.type) else 0 for f in table.schema], np.int64)

    def decode(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Raises ValueRefused naming table, column and key of a value that the schema's type cannot hold."""
        data, ends = spans(batch.column(0))
        columns, error = self._columns(data, ends)
        if error[0]:
            raise self._refusal(data, ends, *error)
        return columns

    def _columns(self, data: np.ndarray, ends: np.ndarray) -> tuple[pa.RecordBatch, tuple[int, int, int]]:
        """The decoded batch, and the first value that could not be: (reason or 0, row, column)."""
        rows, schema = len(ends) - 1, self._table.schema
        sizes, nulls = np.zeros(len(schema), np.int64), np.zeros(len(schema), np.int64)
        if not _survey(data, ends, sizes, nulls):
            raise CopyError(f"{self._table.path}: the server sends rows that are no binary COPY of {len(schema)} columns")
        # Of each column: bitmap of what is there (if anything is not), values or ends, text; all in one piece of memory.
        is_text = self._kinds == _BYTES
        parts = np.stack([np.where(nulls > 0, (rows + 7) // 8, 0),
                          np.where(self._kinds == _BOOL, (rows + 7) // 8, self._out * (rows + is_text)),
                          np.where(is_text, sizes, 0)], axis=1)
        ends_of = np.cumsum((parts + 15) // 16 * 16, axis=None).reshape(parts.shape)
        starts = ends_of - (parts + 15) // 16 * 16
        memory = np.zeros(int(ends_of[-1, -1]) if len(schema) else 0, np.uint8)
        places = starts[:, 1] // np.clip(self._out, 1, 8)      # counted in values, of decimals in halves
        error = _fill(data, ends, self._kinds, self._wire, self._scales, starts.astype(U), places.astype(U), nulls > 0,
                      memory, memory.view(np.uint16), memory.view(np.uint32), memory.view(U))
        buffer = pa.py_buffer(memory)
        arrays = []
        for i, field in enumerate(schema):
            valid, values, text = (buffer.slice(int(start), int(size)) for start, size in zip(starts[i], parts[i], strict=True))
            storage = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
            buffers = [valid if nulls[i] else None, values, *([text] if is_text[i] else [])]
            array = pa.Array.from_buffers(storage, rows, buffers, int(nulls[i]))
            arrays.append(array if storage is field.type else pa.ExtensionArray.from_storage(field.type, array))
        return pa.RecordBatch.from_arrays(arrays, schema=schema), error

    def _refusal(self, data: np.ndarray, ends: np.ndarray, reason: int, row: int, column: int) -> SkyliftError:
        field = self._table.schema.field(column)
        if reason == _RETYPED:
            return CopyError(f"{self._table.path}.{field.name}: its type in the database is no longer the one that it is read as")
        one, _ = self._columns(data, ends[row:row + 2])
        return ValueRefused(f"{self._table.path}.{field.name}, key {key_of(one, self._table, 0)}: {_REFUSALS[reason]} {field.type}",
                            hint="correct the row, or give the column a type that holds it")


@nb.njit(nogil=True, cache=True, inline="always")
def _uint16(data, p):
    return U(data[p]) << U(8) | U(data[p + U(1)])


@nb.njit(nogil=True, cache=True, inline="always")
def _uint32(data, p):
    return _uint16(data, p) << U(16) | _uint16(data, p + U(2))


@nb.njit(nogil=True, cache=True, inline="always")
def _uint64(data, p):
    return _uint32(data, p) << U(32) | _uint32(data, p + U(4))


@nb.njit(nogil=True, cache=True)
def _survey(data, ends, sizes, nulls):
    """Adds up bytes and nulls of each column; False unless every row is whole."""
    for i in range(ends.shape[0] - 1):
        p, end = U(ends[i]), U(ends[i + 1])
        if end - p < U(2) or end < p or _uint16(data, p) != U(sizes.shape[0]):
            return False
        p += U(2)
        for c in range(sizes.shape[0]):
            if p + U(4) > end:
                return False
            length = _uint32(data, p)
            p += U(4)
            if length == U(0xFFFFFFFF):
                nulls[c] += 1
            else:
                sizes[c] += length
                p += length
                if p > end:
                    return False
        if p != end:
            return False
    return True


@nb.njit(nogil=True, cache=True)
def _numeric(data, p, scale):
    """(reason or 0, low, high) of a numeric as 128-bit two's complement in units of 10^-scale.

    Layout: numeric_send in PostgreSQL's numeric.c: count of digits, weight of the first, sign, display scale, digits to the base 10,000.
    """
    digits, weight, sign = int(_uint16(data, p)), int(np.int16(_uint16(data, p + U(2)))), _uint16(data, p + U(4))
    low, high = U(0), U(0)
    if sign != U(0) and sign != U(0x4000):
        return _NO_NUMBER, low, high
    if digits == 0:
        return 0, low, high
    groups = (scale + 3) // 4                      # digits behind the point
    spare = 1
    for _ in range(4 * groups - scale):            # of the last one, so much is finer than the scale
        spare *= 10
    if digits > weight + groups + 1 or weight > 10:
        return _TOO_LARGE, low, high
    for k in range(weight + groups + 1):
        digit = _uint16(data, p + U(8 + 2 * k)) if k < digits else U(0)
        factor = U(10_000)
        if k == weight + groups:
            if digit % U(spare) != U(0):
                return _TOO_LARGE, low, high
            digit //= U(spare)
            factor //= U(spare)
        if high and high >= U(2**63) // factor:
            return _TOO_LARGE, low, high
        bottom = (low & U(0xFFFFFFFF)) * factor + digit
        top = (low >> U(32)) * factor + (bottom >> U(32))
        low = top << U(32) | bottom & U(0xFFFFFFFF)
        high = high * factor + (top >> U(32))
    if sign != U(0):
        high = ~high + U(low == U(0))
        low = ~low + U(1)
    return 0, low, high


@nb.njit(nogil=True, cache=True)
def _fill(data, ends, kinds, wire, scales, starts, places, has_nulls, m8, m16, m32, m64):
    """Decode every field into its place; `starts` (columns, 3): where bitmap, values and text of each column begin in the memory
    that `m8` to `m64` are views of; `places`: the same of its values, counted in values. Returns the first value that cannot be
    decoded: (reason or 0, row, column).
    """
    reason, row, column = 0, 0, 0
    told = np.zeros(kinds.shape[0], U)             # bytes of text so far
    memory, origin = U(m8.ctypes.data), U(data.ctypes.data)
    for i in range(ends.shape[0] - 1):
        p = U(ends[i]) + U(2)
        for c in range(kinds.shape[0]):
            kind, place, failed = kinds[c], places[c], 0
            length = _uint32(data, p)
            p += U(4)
            if length == U(0xFFFFFFFF):
                if kind == _BYTES:
                    m32[place + U(i + 1)] = told[c]
                continue
            if has_nulls[c]:
                m8[starts[c, 0] + U(i >> 3)] |= np.uint8(1 << (i & 7))
            if wire[c] >= 0 and length != U(wire[c]):
                failed = _RETYPED
            elif kind == _BYTES:
                copy(memory + starts[c, 2] + told[c], origin + p, length)      # type: ignore[call-arg]
                told[c] += length
                m32[place + U(i + 1)] = told[c]
            elif kind == _INT64:
                m64[place + U(i)] = _uint64(data, p)
            elif kind == _NUMERIC:
                failed, low, high = _numeric(data, p, scales[c])
                m64[place + U(2 * i)] = low
                m64[place + U(2 * i + 1)] = high
            elif kind == _INT32:
                m32[place + U(i)] = _uint32(data, p)
            elif kind == _INT16:
                m16[place + U(i)] = _uint16(data, p)
            elif kind == _TIMESTAMP:
                us = np.int64(_uint64(data, p))
                if us == 2**63 - 1 or us == -(2**63):
                    failed = _NO_NUMBER
                elif us > 2**63 - 1 - _US_TO_2000:
                    failed = _TOO_LARGE
                m64[place + U(i)] = U(us + _US_TO_2000)
            elif kind == _TIME:                    # 24:00:00 is one of PostgreSQL's, and none of Arrow's
                us = np.int64(_uint64(data, p))
                failed = _TOO_LARGE if us >= _DAY_US else 0
                m64[place + U(i)] = U(us)
            elif kind == _DATE:
                days = np.int32(_uint32(data, p))
                failed = _NO_NUMBER if days == 2**31 - 1 or days == -(2**31) else 0
                m32[place + U(i)] = np.uint32(days + _DAYS_TO_2000)
            elif kind == _BOOL:
                if data[p]:
                    m8[place + U(i >> 3)] |= np.uint8(1 << (i & 7))
            else:                                  # _UUID
                for k in range(16):
                    m8[starts[c, 1] + U(16 * i + k)] = data[p + U(k)]
            if failed and not reason:
                reason, row, column = failed, i, c
            p += length
    return reason, row, column

