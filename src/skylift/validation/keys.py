"""Two sets of keys compared exactly, by their hashes, in bounded memory: which are only here, only there, and which occur twice there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pyarrow as pa

from skylift.engine.buckets import bucket_count, bucket_sums, differing, hashes, rows_of
from skylift.engine.preserve import passes

Readers = Callable[[], Sequence[Iterable[pa.RecordBatch]]]     # fresh streams of keys; the columns are the key


@dataclass
class Keys:
    """How many, and some of them as texts like `('C0001',)`."""

    count: int = 0
    some: list[str] = field(default_factory=list)


@dataclass
class KeyDifference:
    missing: Keys                 # here, not there
    extra: Keys                   # there, not here
    repeated: Keys                # rows there whose key an earlier row there has


def compare_keys(columns: Sequence[str], rows: int, here: Readers, there: Readers, workers: int, most: int) -> KeyDifference:
    """`rows`: about how many; at most `most` keys of a kind are named. Both sides are read once, and twice more where they differ."""
    count = bucket_count(rows)
    left, right = (bucket_sums(side(), columns, count, workers) for side in (here, there))
    found = KeyDifference(Keys(), Keys(), Keys())
    for wanted in passes(differing(left, right), np.maximum(left, right)[:, 0]):
        ours, theirs = (np.sort(_hashes(side(), columns, wanted)) for side in (here, there))
        first = np.concatenate([[True], theirs[1:] != theirs[:-1]]) if len(theirs) else np.zeros(0, bool)
        _name(found.missing, np.setdiff1d(ours, theirs), here(), columns, wanted, most)
        _name(found.extra, np.setdiff1d(theirs, ours), there(), columns, wanted, most)
        _name(found.repeated, np.unique(theirs[~first]), there(), columns, wanted, most)
        found.repeated.count += int((~first).sum()) - len(np.unique(theirs[~first]))
    return found


def _hashes(readers: Sequence[Iterable[pa.RecordBatch]], columns: Sequence[str], wanted: np.ndarray) -> np.ndarray:
    parts = [hashes(batch) for batch in rows_of(chain.from_iterable(readers), columns, wanted)]
    return np.concatenate([np.zeros(0, "V16"), *parts])


def _name(keys: Keys, those: np.ndarray, readers: Sequence[Iterable[pa.RecordBatch]], columns: Sequence[str], wanted: np.ndarray,
          most: int) -> None:
    keys.count += len(those)
    left = most - len(keys.some)
    if not len(those) or left <= 0:
        return
    for batch in rows_of(chain.from_iterable(readers), columns, wanted):
        hit = np.isin(hashes(batch), those)
        if hit.any():
            for row in batch.filter(pa.array(hit)).to_pylist():
                text = str(tuple(row.values()))
                if text not in keys.some:
                    keys.some.append(text)
                if len(keys.some) >= most:
                    return
