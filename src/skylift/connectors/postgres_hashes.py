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

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numba as nb
import numpy as np
import pyarrow as pa

from skylift.buffers import U, bitmap, eight_bytes, is_null, spans, words
from skylift.connectors import Transaction
from skylift.connectors.postgres_ddl import declares, table_sql
from skylift.connectors.postgres_load import on_the_wire
from skylift.connectors.sql import quote
from skylift.model import ARROW, Table, TargetName

if TYPE_CHECKING:
    from skylift.connectors.postgres_target import PostgresTarget

ASKED_TOGETHER = 100               # small tables
PART_BYTES = 256 * 2**20           # of a table that are hashed by one statement, so that a run which is stopped ends soon
SMALL_BYTES = 2**20                # are not worth a statement of their own
SINCE = 140000

_LOW = 0xFFFFFFFF
_BEGIN = 0x9E3779B9 + 3923095
_US_TO_2000, _DAYS_TO_2000 = 946_684_800_000_000, 10_957
_DIGITS = 64                       # to the base 10,000, that are hashed here

_MODIFIER = re.compile(r"\(.*?\)")
# Types as they are declared, whose rows may pass as they stand. PostgreSQL's hash of `character` leaves spaces out.
_UNKNOWN, _INT, _LONG, _DOUBLE, _BYTES, _NUMERIC = range(6)
_NATIVE = {"boolean": _INT, "smallint": _INT, "integer": _INT, "date": _INT, "bigint": _LONG, "time without time zone": _LONG,
           "timestamp without time zone": _LONG, "timestamp with time zone": _LONG, "double precision": _DOUBLE, "text": _BYTES,
           "character varying": _BYTES, "bytea": _BYTES, "uuid": _BYTES, "numeric": _NUMERIC}
_ROW = "_skylift_row"              # what a table is called where its rows are hashed


class PostgresHashes:
    """Of one server (connectors/__init__.py, Hashes)."""

    def __init__(self, target: PostgresTarget) -> None:
        self._target = target

    def of(self, table: Table) -> Callable[[pa.RecordBatch], int | None] | None:
        """What adds up the hashes of a batch's rows; None where the server is too old, or has types whose hashes are not known here."""
        if not len(table.schema) or self._target.version < SINCE:
            return None
        if table.format != ARROW:
            kinds = np.array([_NATIVE.get(_MODIFIER.sub("", kind), _UNKNOWN) for kind in declares(table).values()], np.int64)
            return None if _UNKNOWN in kinds else lambda batch: native_sum_of(batch, kinds)
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
    signs = [f"{_ROW}.{quote(column)} < 0" for column, kind in declares(table).items() if kind.startswith("numeric")]
    hashed = f"row({_ROW}, {', '.join(signs)})" if signs else _ROW
    return f"count(*), sum(hash_record_extended(row(int8send(hash_record_extended({hashed}, 0))), 0))"


def sum_of(batch: pa.RecordBatch) -> int:
    """Of a batch whose types are those on the wire. Raises TypeError for a type that is none of them."""
    rows = np.zeros(batch.num_rows, U)
    for column in batch.columns:
        _add(rows, column)
    for column in batch.columns:
        if pa.types.is_decimal128(column.type):
            _add_signs(rows, words(column, 2), bitmap(column), column.offset)
    return int(_finish(rows))


def native_sum_of(batch: pa.RecordBatch, kinds: np.ndarray) -> int | None:
    """Of rows as they stand in binary COPY, whose columns are of these kinds; None where there is a number of very many digits."""
    data, ends = spans(batch.column(0))
    known, total = _sum_native(data, ends.astype(U), kinds)
    return int(total) if known else None


def warm_up() -> None:
    """Compile the loops, or load them."""
    kinds = (pa.int32(), pa.int64(), pa.float64(), pa.string(), pa.decimal128(5, 2), pa.uuid())
    sum_of(pa.RecordBatch.from_arrays([pa.nulls(1, kind) for kind in kinds], names=[str(kind) for kind in kinds]))
    native_sum_of(pa.RecordBatch.from_arrays([pa.array([b"\0\1\xff\xff\xff\xff"])], names=["row"]), np.array([_INT]))


def _add(rows: np.ndarray, column: pa.Array) -> None:
    """Each row's hash, and this column's behind it."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):      # pa.uuid()
        column, kind = column.storage, kind.storage_type
    if pa.types.is_decimal128(kind):
        _add_numerics(rows, words(column, 2), kind.scale, bitmap(column), column.offset)
    elif pa.types.is_floating(kind):
        wide = column.cast(pa.float64())
        _add_floats(rows, words(wide), bitmap(wide), wide.offset)
    elif pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
        column = column.cast(pa.binary()) if pa.types.is_fixed_size_binary(kind) else column
        data, ends = spans(column)
        _add_bytes(rows, ends.astype(U), data, bitmap(column), column.offset)
    elif kind == pa.int64() or pa.types.is_time64(kind) or pa.types.is_timestamp(kind):
        _add_longs(rows, words(column), U(_US_TO_2000 if pa.types.is_timestamp(kind) else 0), bitmap(column), column.offset)
    elif pa.types.is_date32(kind) or kind in (pa.int16(), pa.int32(), pa.bool_()):
        numbers = (column.view(pa.int32()) if pa.types.is_date32(kind) else column).cast(pa.int64())
        _add_ints(rows, words(numbers), U(_DAYS_TO_2000 if pa.types.is_date32(kind) else 0), bitmap(numbers), numbers.offset)
    else:
        raise TypeError(f"PostgreSQL's hash of a value of type {kind} is not known here")


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


@nb.njit(nogil=True, cache=True)
def _hash_bytes(data, p, end):
    """hash_bytes_extended of data[p:end]."""
    a = b = c = (U(_BEGIN) + (end - p)) & U(_LOW)
    size = U(data.shape[0])
    while p + U(12) <= end:
        word = eight_bytes(data, p)
        last = U(data[p + U(8)]) | U(data[p + U(9)]) << U(8) | U(data[p + U(10)]) << U(16) | U(data[p + U(11)]) << U(24)
        a, b, c = _mix((a + word) & U(_LOW), (b + (word >> U(32))) & U(_LOW), (c + last) & U(_LOW))
        p += U(12)
    left = end - p
    word = U(0)
    if left >= U(8):
        word = eight_bytes(data, p)
        for k in range(left - U(8)):
            c += U(data[p + U(8) + U(k)]) << U(8) * (U(k) + U(1))
    elif p + U(8) <= size:         # one load and a mask instead of a loop over the last bytes
        word = eight_bytes(data, p) & ((U(1) << U(8) * left) - U(1))
    else:
        for k in range(left):
            word |= U(data[p + U(k)]) << U(8) * U(k)
    return _final((a + word) & U(_LOW), (b + (word >> U(32))) & U(_LOW), c & U(_LOW))


@nb.njit(nogil=True, cache=True)
def _add_ints(rows, values, shift, valid, offset):
    for i in range(rows.shape[0]):
        value = U(0) if is_null(valid, i + offset) else _hash_uint32((values[i] - shift) & U(_LOW))
        rows[i] = rows[i] * U(31) + value


@nb.njit(nogil=True, cache=True)
def _add_longs(rows, values, shift, valid, offset):
    for i in range(rows.shape[0]):
        value = U(0) if is_null(valid, i + offset) else _hash_long(values[i] - shift)
        rows[i] = rows[i] * U(31) + value


@nb.njit(nogil=True, cache=True)
def _hash_double(word, eight):
    """`eight`: room for its bytes."""
    if word << U(1) == U(0):                       # zero, also a negative one
        return U(0)
    if word & U(0x7FFFFFFFFFFFFFFF) > U(0x7FF0000000000000):      # every NaN is the same
        word = U(0x7FF8000000000000)
    for k in range(8):
        eight[k] = word >> U(8 * k) & U(255)
    return _hash_bytes(eight, U(0), U(8))


@nb.njit(nogil=True, cache=True)
def _add_floats(rows, values, valid, offset):
    eight = np.empty(8, np.uint8)
    for i in range(rows.shape[0]):
        value = U(0) if is_null(valid, i + offset) else _hash_double(values[i], eight)
        rows[i] = rows[i] * U(31) + value


@nb.njit(nogil=True, cache=True)
def _add_bytes(rows, ends, data, valid, offset):
    for i in range(rows.shape[0]):
        value = U(0) if is_null(valid, i + offset) else _hash_bytes(data, ends[i], ends[i + 1])
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
def _hash_digits(digits, count, lowest):
    """Of `count` digits to the base 10,000, the least significant first, whose place is `lowest`: most significant first, without zeros at
    either end, and the place of the first of them."""
    while count > 0 and digits[count - 1] == U(0):
        count -= 1
    if count == 0:
        return U(0xFFFFFFFFFFFFFFFF)
    first = 0
    while digits[first] == U(0):
        first += 1
    weight = lowest + count - 1
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
    return _final(a & U(_LOW), b & U(_LOW), c & U(_LOW)) ^ U(np.int64(weight))


@nb.njit(nogil=True, cache=True)
def _add_numerics(rows, words, scale, valid, offset):
    digits = np.zeros(16, U)
    odd, places = scale % 4, (scale + 3) // 4
    for i in range(rows.shape[0]):
        value, low, high = U(0), words[2 * i], words[2 * i + 1]
        if is_null(valid, i + offset):
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
            value = _hash_digits(digits, count, -places)
        rows[i] = rows[i] * U(31) + value


@nb.njit(nogil=True, cache=True, inline="always")
def _hash_hash(h):
    """Of a hash as int8send writes it: eight bytes, most significant first."""
    begin = U((_BEGIN + 8) & _LOW)
    h = (h & U(0x00FF00FF00FF00FF)) << U(8) | h >> U(8) & U(0x00FF00FF00FF00FF)
    h = (h & U(0x0000FFFF0000FFFF)) << U(16) | h >> U(16) & U(0x0000FFFF0000FFFF)
    return _final((begin + (h >> U(32))) & U(_LOW), (begin + (h & U(_LOW))) & U(_LOW), begin)


@nb.njit(nogil=True, cache=True)
def _finish(rows):
    total = U(0)
    for h in rows:
        total += _hash_hash(h)
    return total


@nb.njit(nogil=True, cache=True, inline="always")
def _hash_long(whole):
    high = whole >> U(32)
    return _hash_uint32((whole & U(_LOW)) ^ (high if whole >> U(63) == U(0) else high ^ U(_LOW)))


@nb.njit(nogil=True, cache=True, inline="always")
def _big_endian(data, p, size):
    word = U(0)
    for k in range(size):
        word = word << U(8) | U(data[p + U(k)])
    return word


@nb.njit(nogil=True, cache=True)
def _sum_native(data, ends, kinds):
    """(whether all is known, sum of the hashes) of rows: a count of fields, each its length (-1 = null) and its bytes, big-endian."""
    digits, eight, total = np.zeros(_DIGITS, U), np.empty(8, np.uint8), U(0)
    for i in range(ends.shape[0] - 1):
        p = ends[i]
        if _big_endian(data, p, 2) != U(kinds.shape[0]):
            return False, U(0)
        p += U(2)
        h = signs = U(0)
        scale = U(1)
        for column in range(kinds.shape[0]):
            kind, length = kinds[column], _big_endian(data, p, 4)
            p += U(4)
            value = sign = U(0)
            if length != U(_LOW):
                if p + length > ends[i + 1]:
                    return False, U(0)
                if kind == _BYTES:
                    value = _hash_bytes(data, p, p + length)
                elif kind == _INT:
                    word = _big_endian(data, p, length)
                    if length == U(2) and word >= U(0x8000):
                        word |= U(0xFFFF0000)
                    value = _hash_uint32(word)
                elif kind == _LONG:
                    value = _hash_long(_big_endian(data, p, 8))
                elif kind == _DOUBLE:
                    value = _hash_double(_big_endian(data, p, 8), eight)
                else:
                    count, special = _big_endian(data, p, 2), _big_endian(data, p + U(4), 2)
                    if count > U(_DIGITS):
                        return False, U(0)
                    weight = np.int64(_big_endian(data, p + U(2), 2))
                    weight -= 0x10000 if weight >= 0x8000 else 0
                    if special in (U(0), U(0x4000)):           # else infinite or no number: 0
                        for k in range(count):
                            digits[count - U(1) - U(k)] = _big_endian(data, p + U(8) + U(2) * U(k), 2)
                        value = _hash_digits(digits, np.int64(count), weight - np.int64(count) + 1)
                    sign = _hash_uint32(U(1) if special in (U(0x4000), U(0xF000)) else U(0))
                p += length
            h = h * U(31) + value
            if kind == _NUMERIC:
                signs = signs * U(31) + sign
                scale *= U(31)
        total += _hash_hash(h * scale + signs)
    return True, total


@nb.njit(nogil=True, cache=True)
def _add_signs(rows, words, valid, offset):
    for i in range(rows.shape[0]):
        value = U(0) if is_null(valid, i + offset) else _hash_uint32(words[2 * i + 1] >> U(63))
        rows[i] = rows[i] * U(31) + value
