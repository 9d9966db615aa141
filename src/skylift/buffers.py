"""Arrow's buffers as arrays for compiled loops: views, no copies, and never writeable, whoever has made the buffer.

Numba would compile a loop once more for arrays that may be written.
"""

import numba as nb
import numpy as np
import pyarrow as pa

U = np.uint64
NO_BYTES = np.frombuffer(b"", np.uint8)


def bitmap(column: pa.Array) -> np.ndarray:
    """Which values are there, a bit each, the first at Arrow's offset: uint8; empty where there are no nulls."""
    return _view(column.buffers()[0], np.uint8) if column.null_count else NO_BYTES


def words(column: pa.Array, per_row: int = 1) -> np.ndarray:
    """Values of 64 bits times `per_row`: uint64 of shape (rows * per_row,)."""
    return _view(column.buffers()[1], U)[column.offset * per_row:(column.offset + len(column)) * per_row]


def spans(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a text or binary column, and where its values end: uint8, and int32 (large: int64) of shape (rows + 1,)."""
    kind = np.int64 if pa.types.is_large_binary(column.type) or pa.types.is_large_string(column.type) else np.int32
    _, ends, data = column.buffers()
    return _view(data, np.uint8), _view(ends if len(column) else pa.py_buffer(bytes(8)), kind)[column.offset:][:len(column) + 1]


def _view(buffer: pa.Buffer | None, kind: type) -> np.ndarray:
    array: np.ndarray = np.frombuffer(buffer if buffer is not None and buffer.size else b"", kind)
    array.flags.writeable = False
    return array


@nb.njit(nogil=True, cache=True, inline="always")
def eight_bytes(data, p):
    """Eight bytes at `p` as a word, little-endian. `p` is unsigned: Numba checks signed indices for wrap-around, which costs a third."""
    return (U(data[p]) | U(data[p + U(1)]) << U(8) | U(data[p + U(2)]) << U(16) | U(data[p + U(3)]) << U(24)
            | U(data[p + U(4)]) << U(32) | U(data[p + U(5)]) << U(40) | U(data[p + U(6)]) << U(48) | U(data[p + U(7)]) << U(56))


@nb.njit(nogil=True, cache=True, inline="always")
def is_null(valid, i):
    """Whether `bitmap` has no bit at `i`, counted from the beginning of the buffer."""
    return valid.shape[0] > 0 and not (valid[i >> 3] >> (i & 7)) & 1
