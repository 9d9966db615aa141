"""A result set of MySQL's text protocol -> Arrow batches, without a Python object a row or a cell.

mysqlclient sends the statement; the rows are then taken from the client library that it is built on by its public C interface
(mysql_use_result, mysql_fetch_row, mysql_fetch_lengths), in one compiled loop that runs outside the interpreter lock. The library
hands out pointers into its network buffer; each cell is parsed or copied from there into the buffer that Arrow keeps. Measured with
50 columns: 1.2 us of CPU a row, where 50 bytes objects a row took 2 us before anything was parsed, and a text line a row that the
server renders (concat_ws) cost the server 0.6 us more than it saved here.

What a cell may be is what the server writes for its type, exactly; anything else, zero dates first of all, is a Misfit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
import pyarrow as pa
from MySQLdb import _mysql

from skylift.connectors.mysql_connection import Connection, cut_off
from skylift.connectors.native import addresses, at, call

BATCH_ROWS = 16_384
BATCH_BYTES = 12 * 2**20            # of text and binary values in one batch
FIRST_BYTES = 64 * 2**10            # for each such column of the first batch, whose widths nobody knows yet

_library = ctypes.CDLL(_mysql.__file__)     # finds what the module itself is linked with, under whatever name that lies on the disk
_use_result, _free_result = _library.mysql_use_result, _library.mysql_free_result
_use_result.argtypes, _use_result.restype = [ctypes.c_void_p], ctypes.c_void_p
_free_result.argtypes, _free_result.restype = [ctypes.c_void_p], None
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.argtypes, _pointer_of.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
_FETCH = addresses(_library, ("mysql_fetch_row", "mysql_fetch_lengths"))

# How a cell's text is parsed.
BYTES, INTEGER, DECIMAL, TIMESTAMP, DATE, TIME = range(6)
_END, _FULL, _MISFIT = -1, -2, 0    # why the loop stopped; _MISFIT + the column's number

U = np.uint64


class Misfit(Exception):
    """The cell in `column` is no value of the type it is read as; `cells` is its row."""

    def __init__(self, column: int, cells: list[bytes | None]) -> None:
        super().__init__(column, cells)
        self.column, self.cells = column, cells


@dataclass(slots=True)
class _Widths:
    """Bytes that the next batch sets aside for each column, learnt from the batch before."""

    caps: np.ndarray
    rows: int = BATCH_ROWS

    def learn(self, used: np.ndarray, rows: int, wanted: np.ndarray) -> None:
        """`used` bytes a column in `rows` rows; `wanted`: what the row needs that did not fit any more."""
        if rows:
            each = used / rows
            self.rows = int(np.clip(BATCH_BYTES / max(1.0, each.sum()), 1, BATCH_ROWS))
            self.caps = (each * self.rows * 1.25).astype(np.int64) + 4096 * (used > 0) + 256
        self.caps = np.maximum(self.caps, wanted)


def warm_up() -> None:
    """Compile the loop, or load it: no row is asked for."""
    words, bytes_, numbers = np.zeros((0, 0), np.uint64), np.zeros(0, np.uint8), np.zeros(0, np.int64)
    _fill(_FETCH, U(0), U(0), numbers, numbers, words, numbers, numbers, bytes_, np.zeros((0, 1), np.int32), np.zeros((0, 0), np.uint8),
          numbers, numbers)


def read_result(connection: Connection, sql: str, kinds: Sequence[pa.DataType], zero_is_null: Sequence[bool] = (),
                zeros: np.ndarray | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a select, column i as `kinds[i]`: text, binary, (u)int64, decimal128, timestamp[us], time64[us] or date32.

    `zero_is_null`: in which columns a zero date is null, and `zeros` counts them (int64 a column). Raises Misfit, and the driver's
    error. One that is left before its end takes the connection with it, since the rows on their way would have to be read.
    """
    connection.query(sql)
    handle = _pointer_of(connection._get_native_connection(), b"_mysql.connection.native_connection")
    result = _use_result(handle)
    if not result:
        raise _mysql.OperationalError(connection.errno(), connection.error())
    try:
        yield from _batches(connection, result, list(kinds), zero_is_null, np.zeros(len(kinds), np.int64) if zeros is None else zeros)
    except BaseException:
        cut_off(connection)
        raise
    finally:
        _free_result(result)


def _batches(connection: Connection, result: int, kinds: list[pa.DataType], zero_is_null: Sequence[bool],
             zeros: np.ndarray) -> Iterator[pa.RecordBatch]:
    parse = np.array([_parse(kind) for kind in kinds], np.int64)
    option = np.array([kind.scale if pa.types.is_decimal(kind) else 0 for kind in kinds], np.int64)
    option[:len(zero_is_null)] += np.array(zero_is_null, np.int64)
    widths = _Widths(np.where(parse == BYTES, FIRST_BYTES, 0).astype(np.int64))
    row, names = U(0), [str(i) for i in range(len(kinds))]
    while True:
        starts = np.cumsum(widths.caps) - widths.caps
        arena = np.empty(int(widths.caps.sum()), np.uint8)
        words = np.empty((len(kinds), 2 * widths.rows), np.uint64)
        ends = np.zeros((len(kinds), widths.rows + 1), np.int32)
        valid = np.empty((len(kinds), widths.rows), np.uint8)
        nulls = np.zeros(len(kinds), np.int64)
        with connection.watched():
            rows, row, why = _fill(_FETCH, U(result), U(row), parse, option, words, starts, widths.caps, arena, ends, valid, nulls, zeros)
        if why >= _MISFIT:
            raise Misfit(why - _MISFIT, _cells(row, len(kinds), result))
        if rows:
            done = [pa.RecordBatch.from_arrays(
                [_array(kind, rows, words[i], arena[starts[i]:starts[i] + ends[i, rows]], ends[i], valid[i], int(nulls[i]))
                 for i, kind in enumerate(kinds)], names=names)]
            del arena                              # whoever takes the batch lets go of it, which may be a value of 50 MB
            yield done.pop()
        if why == _END:
            if connection.errno():                 # the server is gone, or has ended the statement
                raise _mysql.OperationalError(connection.errno(), connection.error())
            return
        wanted = _lengths(result)[:len(kinds)] if row else [0] * len(kinds)
        connection.swollen |= sum(wanted) > BATCH_BYTES
        widths.learn(ends[:, rows], rows, np.where(parse == BYTES, wanted, 0))


def _parse(kind: pa.DataType) -> int:
    if pa.types.is_integer(kind):
        return INTEGER
    if pa.types.is_decimal(kind):
        return DECIMAL
    if pa.types.is_time(kind):
        return TIME
    return TIMESTAMP if pa.types.is_timestamp(kind) else DATE if pa.types.is_date(kind) else BYTES


def _array(kind: pa.DataType, rows: int, words: np.ndarray, data: np.ndarray, ends: np.ndarray, valid: np.ndarray, nulls: int) -> pa.Array:
    bits = pa.py_buffer(np.packbits(valid[:rows], bitorder="little")) if nulls else None
    if _parse(kind) == BYTES:
        return pa.Array.from_buffers(kind, rows, [bits, pa.py_buffer(ends[:rows + 1]), pa.py_buffer(data)], nulls)
    if pa.types.is_date(kind):
        return pa.Array.from_buffers(kind, rows, [bits, pa.py_buffer(words[:rows].astype(np.int32))], nulls)
    return pa.Array.from_buffers(kind, rows, [bits, pa.py_buffer(words[:rows * kind.bit_width // 64])], nulls)


def _cells(row: np.uint64, columns: int, result: int) -> list[bytes | None]:
    """The cells of the row that stands at this address."""
    lengths = _lengths(result)
    cells = ctypes.cast(int(row), ctypes.POINTER(ctypes.c_void_p))
    return [ctypes.string_at(cells[i], lengths[i]) if cells[i] else None for i in range(columns)]


def _lengths(result: int) -> Any:
    """Of the cells of the row that was fetched last, null: 0. A C array without bounds."""
    fetch_lengths = _library.mysql_fetch_lengths
    fetch_lengths.argtypes, fetch_lengths.restype = [ctypes.c_void_p], ctypes.POINTER(ctypes.c_ulong)
    return fetch_lengths(result)


# ------------------------------------------------------------------ compiled


@nb.njit(nogil=True, cache=True)
def _fill(fetch, result, row, parse, option, words, starts, caps, arena, ends, valid, nulls, zeros):
    """Rows into the buffers until they end or one does not fit; (rows, address of the row that is still to be dealt with, why)."""
    columns = parse.shape[0]
    for n in range(valid.shape[1]):
        if row == U(0):
            row = call(fetch[0], result)           # type: ignore[call-arg]
        if row == U(0):
            return n, row, _END
        cells = nb.carray(at(row), (columns,), np.uint64)     # type: ignore[call-arg]
        lengths = nb.carray(at(call(fetch[1], result)), (columns,), np.uint64)
        for c in range(columns):
            if parse[c] == BYTES and ends[c, n] + np.int64(lengths[c]) > caps[c]:
                return n, row, _FULL
        for c in range(columns):
            length = lengths[c]
            if cells[c] == U(0):
                null = True
            else:
                null = False
                text = nb.carray(at(cells[c]), (length,), np.uint8)
                if parse[c] == BYTES:
                    _copy(arena, U(starts[c]) + U(ends[c, n]), text, length)
                elif parse[c] == INTEGER:
                    fits, words[c, n] = _integer(text, length)
                    if not fits:
                        return n, row, _MISFIT + c
                elif parse[c] == DECIMAL:
                    fits, words[c, 2 * n], words[c, 2 * n + 1] = _decimal(text, length, option[c])
                    if not fits:
                        return n, row, _MISFIT + c
                elif parse[c] == TIME:
                    fits, words[c, n] = _clock(text, length, 0)
                    if not fits:
                        return n, row, _MISFIT + c
                else:
                    fits, words[c, n] = _moment(text, length, parse[c] == TIMESTAMP)
                    if not fits:
                        if not (option[c] and _has_zero(text, length)):
                            return n, row, _MISFIT + c
                        null = True
                        zeros[c] += 1
            valid[c, n] = not null
            if null:
                nulls[c] += 1
                words[c, n if parse[c] != DECIMAL else 2 * n] = U(0)
                if parse[c] == DECIMAL:
                    words[c, 2 * n + 1] = U(0)
                length = U(0)
            ends[c, n + 1] = ends[c, n] + np.int32(length)
        row = U(0)
    return valid.shape[1], row, _FULL


@nb.njit(nogil=True, cache=True, inline="always")
def _copy(arena, at, text, length):
    for i in range(length):
        arena[at + i] = text[i]


@nb.njit(nogil=True, cache=True)
def _integer(text, length):
    """(whether it is one, its two's complement)"""
    i = U(1) if length > U(0) and text[0] == 45 else U(0)
    if i == length:
        return False, U(0)
    value = U(0)
    for k in range(i, length):
        digit = U(text[k]) - U(48)
        if digit > U(9):
            return False, U(0)
        value = value * U(10) + digit
    return True, U(0) - value if i else value


@nb.njit(nogil=True, cache=True)
def _decimal(text, length, scale):
    """(whether it is one of at most this scale, low half, high half of the unscaled two's complement)"""
    i = U(1) if length > U(0) and text[0] == 45 else U(0)
    negative, low, high = i == U(1), U(0), U(0)
    part, power, digits, fraction = U(0), U(1), 0, -1
    if i == length:
        return False, low, high
    for k in range(i, length):
        digit = U(text[k]) - U(48)
        if digit > U(9):
            if text[k] != 46 or fraction >= 0:
                return False, low, high
            fraction = 0
            continue
        part, power = part * U(10) + digit, power * U(10)
        digits += 1
        fraction += fraction >= 0
        if power == U(10**18):
            low, high = _times_plus(low, high, power, part)
            part, power = U(0), U(1)
    fraction = max(fraction, 0)
    if fraction > scale or digits + scale - fraction > 39:
        return False, low, high
    low, high = _times_plus(low, high, power, part)
    for _ in range(scale - fraction):
        low, high = _times_plus(low, high, U(10), U(0))
    if negative:
        low, high = ~low + U(1), ~high + U(low == U(0))
    return True, low, high


@nb.njit(nogil=True, cache=True, inline="always")
def _times_plus(low, high, factor, addend):
    """(high:low) * factor + addend, modulo 2^128"""
    mask = U(0xFFFFFFFF)
    a, b, c, d = low & mask, low >> U(32), factor & mask, factor >> U(32)
    ac, bc, ad, bd = a * c, b * c, a * d, b * d
    middle = (ac >> U(32)) + (bc & mask) + (ad & mask)
    product = (ac & mask) | (middle << U(32))
    carry = bd + (bc >> U(32)) + (ad >> U(32)) + (middle >> U(32))
    total = product + addend
    return total, high * factor + carry + U(total < product)


@nb.njit(nogil=True, cache=True)
def _moment(text, length, with_time):
    """(whether it is a date, or a date and time, that the calendar has; days or microseconds since 1970)"""
    if length < U(10) or (not with_time and length != U(10)) or text[4] != 45 or text[7] != 45:
        return False, U(0)
    year, month, day = _number(text, 0, 4), _number(text, 5, 7), _number(text, 8, 10)
    if year < 0 or month < 1 or month > 12 or day < 1:
        return False, U(0)
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if day > (29 if leap else 28) if month == 2 else day > 30 + (month + (month >> 3)) % 2:
        return False, U(0)
    y = year - (month <= 2)                        # http://howardhinnant.github.io/date_algorithms.html#days_from_civil
    era = (y if y >= 0 else y - 399) // 400
    of_era = y - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    days = era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468
    if not with_time:
        return True, U(days)
    if length < U(12) or text[10] != 32:
        return False, U(0)
    fits, microseconds = _clock(text, length, 11)
    return fits, U(days * 86_400_000_000) + microseconds


@nb.njit(nogil=True, cache=True)
def _clock(text, length, at):
    """(whether the text goes on with a time of day from `at` to its end, its microseconds)"""
    rest = np.int64(length) - at
    if rest < 8 or rest == 9 or rest > 15 or text[at + 2] != 58 or text[at + 5] != 58:
        return False, U(0)
    hour, minute, second = _number(text, at, at + 2), _number(text, at + 3, at + 5), _number(text, at + 6, at + 8)
    if hour < 0 or hour > 23 or minute < 0 or minute > 59 or second < 0 or second > 59:
        return False, U(0)
    fraction = np.int64(0)
    if rest > 8:
        fraction = _number(text, at + 9, at + rest)
        if text[at + 8] != 46 or fraction < 0:
            return False, U(0)
        for _ in range(15 - rest):
            fraction *= 10
    return True, U(((hour * 60 + minute) * 60 + second) * 1_000_000 + fraction)


@nb.njit(nogil=True, cache=True, inline="always")
def _number(text, start, stop):
    """The digits there as a number, -1 if there is anything else."""
    value = np.int64(0)
    for i in range(start, stop):
        digit = np.int64(text[i]) - 48
        if digit < 0 or digit > 9:
            return -1
        value = value * 10 + digit
    return value


@nb.njit(nogil=True, cache=True)
def _has_zero(text, length):
    """Whether it is a date, or a date and time, whose month or day is zero."""
    return length >= U(10) and (_number(text, 5, 7) == 0 or _number(text, 8, 10) == 0)
