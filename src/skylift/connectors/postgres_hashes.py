"""What PostgreSQL's own hashes of rows add up to, on both sides: asked of the server, and worked out of the rows that were sent.

A server that hashes the rows it holds (hash_record_extended, from version 14 on) takes a fourth of what handing them out takes, and
nothing has to be read and decoded here. Both sums, modulo 2^64, are equal where the same rows stand there. The loops below work out
of Arrow's values what the server works out of its own (src/backend/access/hash/hashfunc.c, src/common/hashfn.c, hash_numeric_extended
and hash_record_extended), so they prove the encoder as well. Numeric's hash leaves the sign out: whether a value is less than zero
is hashed beside the row. And a row's hash is linear in those of its values, so that values which have changed places would leave the
sum as it is: what is added up are hashes of the rows' hashes.

Sums that differ prove nothing: a server of another byte order, or one that hashes in another way, has other ones. Then the rows are
read back, and what was read decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numba as nb
import numpy as np
import pyarrow as pa

from skylift.connectors import Transaction
from skylift.connectors.postgres import column_name
from skylift.connectors.postgres_ddl import table_sql
from skylift.connectors.postgres_load import column_type, on_the_wire
from skylift.connectors.sql import quote
from skylift.model import ARROW, Table, TargetName

if TYPE_CHECKING:
    from skylift.connectors.postgres_target import PostgresTarget

ASKED_TOGETHER = 100               # small tables
PART_BYTES = 256 * 2**20           # of a table that are hashed by one statement, so that a run which is stopped ends soon
SMALL_BYTES = 2**20                # are not worth a statement of their own
SINCE = 140000

U = np.uint64
_LOW = 0xFFFFFFFF
_BEGIN = 0x9E3779B9 + 3923095
_US_TO_2000, _DAYS_TO_2000 = 946_684_800_000_000, 10_957
_NONE = np.zeros(0, np.uint8)
_ROW = "_skylift_row"              # what a table is called where its rows are hashed


class PostgresHashes:
    """Of one server (connectors/__init__.py, Hashes)."""

    def __init__(self, target: PostgresTarget) -> None:
        self._target = target

    def of(self, table: Table) -> Callable[[pa.RecordBatch], int] | None:
        """What adds up the hashes of a batch's rows; None where the server is too old, or rows pass without being looked into."""
        if table.format != ARROW or not len(table.schema) or self._target.version < SINCE:
            return None
        wire = on_the_wire(table.schema)
        return lambda batch: sum_of(batch if batch.schema.types == wire.types else batch.cast(wire))

    def within(self, transaction: Transaction, tables: Mapping[TargetName, Table]) -> dict[TargetName, tuple[int, int]]:
        """Rows and sum of hashes of tables that stand there, or were made in the transaction."""
        found: dict[TargetName, tuple[int, int]] = {}
        names = [*tables]
        for start in range(0, len(names), ASKED_TOGETHER):
            some = names[start:start + ASKED_TOGETHER]
            sums = transaction.execute(" union all ".join(
                f"select {i}, {_sums(tables[name])} from {table_sql(name)} {_ROW}" for i, name in enumerate(some)))
            found |= {some[i]: (rows, int(total or 0) % 2**64) for i, rows, total in sums}
        return found

    def committed(self, name: TargetName, table: Table, workers: int, check: Callable[[], None]) -> tuple[int, int]:
        """Rows and sum of hashes of a table; `check` is called now and then, and may raise."""
        def part(where: str) -> tuple[int, int]:
            check()
            [(rows, total)] = self._target.rows(f"select {_sums(table)} from {table_sql(name)} {_ROW} where {where}")
            return rows, int(total or 0)

        ranges = self._target.page_ranges(name, lambda size: min(size // SMALL_BYTES, max(workers, -(-size // PART_BYTES))))
        with ThreadPoolExecutor(workers) as pool:
            parts = [*pool.map(part, ranges)]
        return sum(rows for rows, _ in parts), sum(total for _, total in parts) % 2**64


def _sums(table: Table) -> str:
    signs = [f"{_ROW}.{quote(column_name(f.name))} < 0" for f in table.schema if (column_type(f.type) or "").startswith("numeric")]
    hashed = f"row({_ROW}, {', '.join(signs)})" if signs else _ROW
    return f"count(*), sum(hash_record_extended(row(int8send(hash_record_extended({hashed}, 0))), 0))"


def sum_of(batch: pa.RecordBatch) -> int:
    """Of a batch whose types are those on the wire. Raises TypeError for a type that is none of them."""
    rows = np.zeros(batch.num_rows, U)
    for column in batch.columns:
        _add(rows, column)
    for column in batch.columns:
        if pa.types.is_decimal128(column.type):
            _add_signs(rows, _words(column, 2), *_validity(column))
    return int(_finish(rows))


def warm_up() -> None:
    """Compile the loops, or load them."""
    kinds = (pa.int32(), pa.int64(), pa.float64(), pa.string(), pa.decimal128(5, 2), pa.uuid())
    sum_of(pa.RecordBatch.from_arrays([pa.nulls(1, kind) for kind in kinds], names=[str(kind) for kind in kinds]))


def _add(rows: np.ndarray, column: pa.Array) -> None:
    """Each row's hash, and this column's behind it."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):      # pa.uuid()
        column, kind = column.storage, kind.storage_type
    valid, offset = _validity(column)
    if pa.types.is_decimal128(kind):
        _add_numerics(rows, _words(column, 2), kind.scale, valid, offset)
    elif pa.types.is_floating(kind):
        _add_floats(rows, _words(column.cast(pa.float64()), 1) if kind != pa.float64() else _words(column, 1), *_validity(column))
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        _, ends, data = column.buffers()
        ends = np.frombuffer(ends, np.int32)[column.offset:column.offset + len(column) + 1].astype(U) if ends else np.zeros(1, U)
        _add_bytes(rows, ends, _read_only(np.frombuffer(data, np.uint8) if data is not None and data.size else _NONE), valid, offset)
    elif pa.types.is_fixed_size_binary(kind):
        data = np.frombuffer(column.buffers()[1], np.uint8) if len(column) else _NONE
        ends = (np.arange(len(column) + 1, dtype=np.int64) + column.offset) * kind.byte_width
        _add_bytes(rows, ends.astype(U), _read_only(data), valid, offset)
    elif kind == pa.int64() or pa.types.is_time64(kind) or pa.types.is_timestamp(kind):
        _add_longs(rows, _words(column, 1), U(_US_TO_2000 if pa.types.is_timestamp(kind) else 0), valid, offset)
    elif pa.types.is_date32(kind) or kind in (pa.int16(), pa.int32(), pa.bool_()):
        numbers = (column.view(pa.int32()) if pa.types.is_date32(kind) else column).cast(pa.int64())
        _add_ints(rows, _words(numbers, 1), U(_DAYS_TO_2000 if pa.types.is_date32(kind) else 0), *_validity(numbers))
    else:
        raise TypeError(f"PostgreSQL's hash of a value of type {kind} is not known here")


def _validity(column: pa.Array) -> tuple[np.ndarray, int]:
    """Arrow's bitmap, empty where there are no nulls, and where in it the column begins."""
    return (_read_only(np.frombuffer(column.buffers()[0], np.uint8)) if column.null_count else _NONE), column.offset


def _words(column: pa.Array, width: int) -> np.ndarray:
    """The values as words of 64 bits: uint64 of shape (rows * width,)."""
    if not len(column):
        return np.zeros(0, U)
    return _read_only(np.frombuffer(column.buffers()[1], U)[column.offset * width:(column.offset + len(column)) * width])


def _read_only(array: np.ndarray) -> np.ndarray:
    """Numba compiles a loop for either."""
    array.flags.writeable = False
    return array


# ------------------------------------------------------------------ the server's hashes, with the seed 0


@nb.njit(nogil=True, cache=True, inline="always")
def _rot(x, bits):
    return (x << U(bits) | x >> U(32 - bits)) & U(_LOW)


@nb.njit(nogil=True, cache=True, inline="always")
def _mix(a, b, c):
    a = (a - c) & U(_LOW) ^ _rot(c, 4)
    c = (c + b) & U(_LOW)
    b = (b - a) & U(_LOW) ^ _rot(a, 6)
    a = (a + c) & U(_LOW)
    c = (c - b) & U(_LOW) ^ _rot(b, 8)
    b = (b + a) & U(_LOW)
    a = (a - c) & U(_LOW) ^ _rot(c, 16)
    c = (c + b) & U(_LOW)
    b = (b - a) & U(_LOW) ^ _rot(a, 19)
    a = (a + c) & U(_LOW)
    c = (c - b) & U(_LOW) ^ _rot(b, 4)
    b = (b + a) & U(_LOW)
    return a, b, c


@nb.njit(nogil=True, cache=True, inline="always")
def _final(a, b, c):
    c = ((c ^ b) - _rot(b, 14)) & U(_LOW)
    a = ((a ^ c) - _rot(c, 11)) & U(_LOW)
    b = ((b ^ a) - _rot(a, 25)) & U(_LOW)
    c = ((c ^ b) - _rot(b, 16)) & U(_LOW)
    a = ((a ^ c) - _rot(c, 4)) & U(_LOW)
    b = ((b ^ a) - _rot(a, 14)) & U(_LOW)
    c = ((c ^ b) - _rot(b, 24)) & U(_LOW)
    return b << U(32) | c


@nb.njit(nogil=True, cache=True, inline="always")
def _hash_uint32(word):
    begin = U((_BEGIN + 4) & _LOW)
    return _final((begin + word) & U(_LOW), begin, begin)


@nb.njit(nogil=True, cache=True, inline="always")
def _eight(data, p):
    return (U(data[p]) | U(data[p + U(1)]) << U(8) | U(data[p + U(2)]) << U(16) | U(data[p + U(3)]) << U(24)
            | U(data[p + U(4)]) << U(32) | U(data[p + U(5)]) << U(40) | U(data[p + U(6)]) << U(48) | U(data[p + U(7)]) << U(56))


@nb.njit(nogil=True, cache=True)
def _hash_bytes(data, p, end):
    """hash_bytes_extended of data[p:end]."""
    a = b = c = (U(_BEGIN) + (end - p)) & U(_LOW)
    size = U(data.shape[0])
    while p + U(12) <= end:
        word = _eight(data, p)
        last = U(data[p + U(8)]) | U(data[p + U(9)]) << U(8) | U(data[p + U(10)]) << U(16) | U(data[p + U(11)]) << U(24)
        a, b, c = _mix((a + word) & U(_LOW), (b + (word >> U(32))) & U(_LOW), (c + last) & U(_LOW))
        p += U(12)
    left = end - p
    word = U(0)
    if left >= U(8):
        word = _eight(data, p)
        for k in range(left - U(8)):
            c += U(data[p + U(8) + U(k)]) << U(8) * (U(k) + U(1))
    elif p + U(8) <= size:         # one load and a mask instead of a loop over the last bytes
        word = _eight(data, p) & ((U(1) << U(8) * left) - U(1))
    else:
        for k in range(left):
            word |= U(data[p + U(k)]) << U(8) * U(k)
    return _final((a + word) & U(_LOW), (b + (word >> U(32))) & U(_LOW), c & U(_LOW))


@nb.njit(nogil=True, cache=True, inline="always")
def _is_null(valid, i):
    return valid.shape[0] > 0 and not (valid[i >> 3] >> (i & 7)) & 1


@nb.njit(nogil=True, cache=True)
def _add_ints(rows, values, shift, valid, offset):
    for i in range(rows.shape[0]):
        value = U(0) if _is_null(valid, i + offset) else _hash_uint32((values[i] - shift) & U(_LOW))
        rows[i] = rows[i] * U(31) + value


@nb.njit(nogil=True, cache=True)
def _add_longs(rows, values, shift, valid, offset):
    for i in range(rows.shape[0]):
        value = U(0)
        if not _is_null(valid, i + offset):
            whole = values[i] - shift
            high = whole >> U(32)
            value = _hash_uint32((whole & U(_LOW)) ^ (high if whole >> U(63) == U(0) else high ^ U(_LOW)))
        rows[i] = rows[i] * U(31) + value


@nb.njit(nogil=True, cache=True)
def _add_floats(rows, values, valid, offset):
    eight = np.empty(8, np.uint8)
    for i in range(rows.shape[0]):
        value, word = U(0), values[i]
        if not _is_null(valid, i + offset) and word << U(1) != U(0):      # zero, also a negative one, has the hash 0
            if word & U(0x7FFFFFFFFFFFFFFF) > U(0x7FF0000000000000):      # every NaN is the same
                word = U(0x7FF8000000000000)
            for k in range(8):
                eight[k] = word >> U(8 * k) & U(255)
            value = _hash_bytes(eight, U(0), U(8))
        rows[i] = rows[i] * U(31) + value


@nb.njit(nogil=True, cache=True)
def _add_bytes(rows, ends, data, valid, offset):
    for i in range(rows.shape[0]):
        value = U(0) if _is_null(valid, i + offset) else _hash_bytes(data, ends[i], ends[i + 1])
        rows[i] = rows[i] * U(31) + value


@nb.njit(nogil=True, cache=True, inline="always")
def _divided(high, low, by):
    """A number of 128 bits by one of at most 32: quotient in two words, and remainder. Quick where `by` is a constant."""
    rest, q = U(0), U(0)
    if high != U(0):
        word = high >> U(32)
        q = word // by
        rest = word - q * by
        word = rest << U(32) | high & U(_LOW)
        last = word // by
        rest = word - last * by
        high = q << U(32) | last
        word = rest << U(32) | low >> U(32)
        q = word // by
        rest = word - q * by
        word = rest << U(32) | low & U(_LOW)
        last = word // by
        return high, q << U(32) | last, word - last * by
    q = low // by
    return U(0), q, low - q * by


@nb.njit(nogil=True, cache=True)
def _add_numerics(rows, words, scale, valid, offset):
    """The value's digits to the base 10,000, most significant first, without zeros at either end, and the place of the first (weight)."""
    digits = np.zeros(16, U)
    odd, places = scale % 4, (scale + 3) // 4
    for i in range(rows.shape[0]):
        value, low, high = U(0), words[2 * i], words[2 * i + 1]
        if _is_null(valid, i + offset):
            pass
        elif low == U(0) and high == U(0):
            value = U(0xFFFFFFFFFFFFFFFF)
        else:
            if high >> U(63) != U(0):
                low = ~low + U(1)
                high = ~high + (U(1) if low == U(0) else U(0))
            count = 0
            if odd == 1:
                high, low, rest = _divided(high, low, U(10))
                digits[0] = rest * U(1000)
                count = 1
            elif odd == 2:
                high, low, rest = _divided(high, low, U(100))
                digits[0] = rest * U(100)
                count = 1
            elif odd == 3:
                high, low, rest = _divided(high, low, U(1000))
                digits[0] = rest * U(10)
                count = 1
            while low != U(0) or high != U(0):
                high, low, rest = _divided(high, low, U(100_000_000))
                digits[count + 1] = rest // U(10_000)
                digits[count] = rest - digits[count + 1] * U(10_000)
                count += 2
            while digits[count - 1] == U(0):
                count -= 1
            first = 0
            while digits[first] == U(0):
                first += 1
            weight = count - 1 - places
            a = b = c = (U(_BEGIN) + U(2 * (count - first))) & U(_LOW)
            while count - first >= 6:
                a, b, c = _mix((a + (digits[count - 1] | digits[count - 2] << U(16))) & U(_LOW),
                               (b + (digits[count - 3] | digits[count - 4] << U(16))) & U(_LOW),
                               (c + (digits[count - 5] | digits[count - 6] << U(16))) & U(_LOW))
                count -= 6
            left = count - first
            if left > 0:
                a += digits[count - 1]
            if left > 1:
                a += digits[count - 2] << U(16)
            if left > 2:
                b += digits[count - 3]
            if left > 3:
                b += digits[count - 4] << U(16)
            if left > 4:
                c += digits[count - 5] << U(8)
            value = _final(a & U(_LOW), b & U(_LOW), c & U(_LOW)) ^ U(np.int64(weight))
        rows[i] = rows[i] * U(31) + value


@nb.njit(nogil=True, cache=True)
def _finish(rows):
    """The sum of the hashes of the hashes, as eight bytes, most significant first."""
    total, begin = U(0), U((_BEGIN + 8) & _LOW)
    for h in rows:
        h = (h & U(0x00FF00FF00FF00FF)) << U(8) | h >> U(8) & U(0x00FF00FF00FF00FF)
        h = (h & U(0x0000FFFF0000FFFF)) << U(16) | h >> U(16) & U(0x0000FFFF0000FFFF)
        total += _final((begin + (h >> U(32))) & U(_LOW), (begin + (h & U(_LOW))) & U(_LOW), begin)
    return total


@nb.njit(nogil=True, cache=True)
def _add_signs(rows, words, valid, offset):
    for i in range(rows.shape[0]):
        value = U(0) if _is_null(valid, i + offset) else _hash_uint32(words[2 * i + 1] >> U(63))
        rows[i] = rows[i] * U(31) + value
