"""One stable, order-independent 128-bit hash over one canonical row encoding, computed on Arrow buffers.

A row is the sequence of its columns, each value a sequence of 64-bit words:

    null                         one word, NULL
    integers, booleans           one word, sign-extended
    date32, time, timestamp      one word: the integer Arrow stores (days; units of the column's own unit)
    float                        one word: the bits of the double; every NaN is the same NaN, -0.0 is not 0.0
    decimal(p, s), p <= 38       two words: low and high half of the unscaled two's complement integer
    text (UTF-8), binary         the length in bytes, then the bytes as little-endian words, the last padded with zeros

Each of two lanes folds these words in with its own odd multiplier and a seed per column, and ends in a finaliser (the
one of MurmurHash3). The digest of a set of rows is, per lane, the sum modulo 2^64: order does not matter, duplicates
count, and digests of disjoint sets add up. The encoding does not depend on batch bounds, Arrow offsets, or the width in
which a database returns an integer. Changing anything here invalidates every digest kept in a ledger.

Numba compiles the three loops to machine code that runs without the interpreter lock; measured 2.1 us a row of 50 columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numba as nb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from skylift.buffers import U, bitmap, eight_bytes, is_null, spans, words
from skylift.model import Digest

_NULL = 0x9E6C63D0676A9A99


@nb.njit(nogil=True, cache=True, inline="always")
def _fold(h0, h1, word):
    h0 = (h0 ^ word) * U(0x9E3779B97F4A7C15)
    h1 = (h1 ^ word) * U(0xC2B2AE3D27D4EB4F)
    return h0 ^ (h0 >> U(32)), h1 ^ (h1 >> U(29))


@nb.njit(nogil=True, cache=True)
def _fold_fixed(h0, h1, words, width, valid, offset, seed):
    """Fold `width` words a row of `words` into the lanes; `valid` is Arrow's bitmap (empty = no nulls)."""
    for i in range(h0.shape[0]):
        a = h0[i] + seed
        b = h1[i] ^ seed
        if is_null(valid, i + offset):
            a, b = _fold(a, b, U(_NULL))
        else:
            for k in range(width):
                a, b = _fold(a, b, words[i * width + k])
        h0[i] = a
        h1[i] = b


@nb.njit(nogil=True, cache=True)
def _fold_bytes(h0, h1, ends, data, valid, offset, seed):
    """Fold a variable-length column: row i is data[ends[i]:ends[i + 1]]."""
    size = U(data.shape[0])
    for i in range(h0.shape[0]):
        a = h0[i] + seed
        b = h1[i] ^ seed
        if is_null(valid, i + offset):
            a, b = _fold(a, b, U(_NULL))
        else:
            p = ends[i]
            end = ends[i + 1]
            a, b = _fold(a, b, end - p)
            while p + U(8) <= end:
                a, b = _fold(a, b, eight_bytes(data, p))
                p += U(8)
            if p < end:
                if p + U(8) <= size:  # one load and a mask instead of a loop over the last bytes
                    word = eight_bytes(data, p) & ((U(1) << (U(8) * (end - p))) - U(1))
                else:
                    word = U(0)
                    for k in range(end - p):
                        word |= U(data[p + U(k)]) << (U(8) * U(k))
                a, b = _fold(a, b, word)
        h0[i] = a
        h1[i] = b


@nb.njit(nogil=True, cache=True)
def _finish(h0, h1):
    """Finalise both lanes in place and return their sums."""
    s0 = U(0)
    s1 = U(0)
    for i in range(h0.shape[0]):
        for lane in (h0, h1):
            x = lane[i]
            x = (x ^ (x >> U(33))) * U(0xFF51AFD7ED558CCD)
            x = (x ^ (x >> U(33))) * U(0xC4CEB9FE1A85EC53)
            lane[i] = x ^ (x >> U(33))
        s0 += h0[i]
        s1 += h1[i]
    return s0, s1


def row_hashes(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """The two finalised lanes of every row: uint64 arrays of shape (rows,)."""
    h0, h1 = _lanes(batch)
    _finish(h0, h1)
    return h0, h1


def digest(batch: pa.RecordBatch) -> Digest:
    """The digest of a batch's rows. Raises TypeError for a column type that has no canonical encoding."""
    s0, s1 = _finish(*_lanes(batch))
    return Digest(batch.num_rows, int(s0), int(s1))


def digest_all(batches: Iterable[pa.RecordBatch]) -> Digest:
    total = Digest()
    for batch in batches:
        total += digest(batch)
        del batch                                      # before the next one is read: a value may be large
    return total


def warm_up() -> None:
    """Compile the loops, or load them where that was done before (engine/warm.py)."""
    digest(pa.RecordBatch.from_arrays([pa.array([0]), pa.array(["x"])], names=["a", "b"]))


class HashedStream:
    """Batches on their way to the target; `digest` and `size_bytes` say what has passed.

    `target_sum`: of the target's own hashes of these rows, where `target_hash` works them out; None else.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch], target_hash: Callable[[pa.RecordBatch], int | None] | None = None) -> None:
        self._batches = batches
        self._target_hash = target_hash
        self.digest = Digest()
        self.size_bytes = 0
        self.target_sum = None if target_hash is None else 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._batches:
            self.digest += digest(batch)
            self.size_bytes += batch.nbytes
            if self._target_hash is not None and self.target_sum is not None:
                found = self._target_hash(batch)
                self.target_sum = None if found is None else (self.target_sum + found) % 2**64
            yield batch
            del batch


def _lanes(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    h0 = np.zeros(batch.num_rows, U)
    h1 = np.zeros(batch.num_rows, U)
    for index, column in enumerate(batch.columns):
        seed = U((index + 1) * 0xD6E8FEB86659FD93 % 2**64)
        column = _canonical(column)
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            data, ends = spans(column)
            _fold_bytes(h0, h1, ends.astype(U), data, bitmap(column), column.offset, seed)
        else:
            per_row = column.type.bit_width // 64
            _fold_fixed(h0, h1, words(column, per_row), per_row, bitmap(column), column.offset, seed)
    return h0, h1


def _canonical(column: pa.Array) -> pa.Array:
    """The column as int64-wide words, decimal128 or (large_)binary, without copying where it already is."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):     # pa.uuid() is one, and no pa.ExtensionType
        return _canonical(column.storage)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return column.view(pa.binary())
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return column.view(pa.large_binary())
    if pa.types.is_int64(kind) or pa.types.is_timestamp(kind) or pa.types.is_time64(kind) or pa.types.is_decimal128(kind):
        return column
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return column.view(pa.int64()) if pa.types.is_uint64(kind) else column.cast(pa.int64())
    if pa.types.is_date32(kind) or pa.types.is_time32(kind):
        return column.cast(pa.int32()).cast(pa.int64())
    if pa.types.is_floating(kind):
        wide = column.cast(pa.float64())
        return pc.if_else(pc.is_nan(wide), pa.scalar(float("nan")), wide)
    if pa.types.is_fixed_size_binary(kind) or pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return column.cast(pa.large_binary())
    if pa.types.is_dictionary(kind):
        return _canonical(column.dictionary_decode())
    if pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):
        return column.cast(pa.decimal128(38, kind.scale))
    raise TypeError(f"no canonical encoding for a column of type {kind}")
