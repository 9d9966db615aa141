"""Where two sets of rows differ, found without keeping them: rows fall into buckets by the hash of their key, and sums compare.

Both sides are read once for the sums and once more for the rows of the buckets that differ. The order in which a database
sorts its keys plays no part, so the two sides may be of any kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numba as nb
import numpy as np
import pyarrow as pa

from skylift.engine.hashing import row_hashes
from skylift.model import Digest

Readers = Sequence[Iterable[pa.RecordBatch]]      # independent streams of one table's rows, each read by a thread of its own


def bucket_sums(readers: Readers, key: Sequence[str], buckets: int, workers: int) -> np.ndarray:
    """Per bucket the rows and the sums of both hash lanes: uint64 of shape (buckets, 3)."""

    def sums_of(reader: Iterable[pa.RecordBatch]) -> None:
        for batch in reader:
            places, (h0, h1) = _places(batch, key, buckets), row_hashes(batch)
            with lock:
                _add(sums, places, h0, h1)

    lock, sums = Lock(), np.zeros((buckets, 3), np.uint64)
    if len(readers) == 1:
        sums_of(readers[0])
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(sums_of, readers))
    return sums


def warm_up() -> None:
    """Compile the loop, or load it."""
    bucket_sums([[pa.RecordBatch.from_arrays([pa.array([0])], names=["a"])]], ["a"], 1, 1)


def bucket_count(rows: int) -> int:
    """About four rows a bucket, so that one changed row makes few others move; at most 24 MiB of sums."""
    return 1 << min(20, max(12, (rows // 4).bit_length()))


def sum_of(sums: np.ndarray) -> Digest:
    rows, lo, hi = (int(n) for n in sums.sum(axis=0, dtype=np.uint64))
    return Digest(rows, lo, hi)


def differing(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Which buckets differ: bool of shape (buckets,)."""
    return (left != right).any(axis=1)


def rows_of(batches: Iterable[pa.RecordBatch], key: Sequence[str], wanted: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The rows that fall into the wanted buckets (bool of shape (buckets,)), batch by batch."""
    for batch in batches:
        hit = wanted[_places(batch, key, len(wanted))]
        if hit.any():
            yield batch if hit.all() else batch.filter(pa.array(hit))


def hashes(batch: pa.RecordBatch) -> np.ndarray:
    """One 16-byte value a row, made of both lanes, as something that numpy can look up."""
    return np.ascontiguousarray(np.stack(row_hashes(batch), axis=1)).view("V16").ravel()


def _places(batch: pa.RecordBatch, key: Sequence[str], buckets: int) -> np.ndarray:
    return (row_hashes(batch.select(list(key)))[0] % np.uint64(buckets)).astype(np.int64)


@nb.njit(nogil=True, cache=True)
def _add(sums, places, h0, h1):
    for i in range(places.shape[0]):
        row = sums[places[i]]
        row[0] += np.uint64(1)
        row[1] += h0[i]
        row[2] += h1[i]
