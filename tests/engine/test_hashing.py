"""The row hash against a second implementation, written from its docstring with Python integers."""

import struct
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skylift.connectors import mysql_rows, postgres_binary, postgres_receive
from skylift.engine import buckets, hashing
from skylift.engine.hashing import HashedStream, digest, digest_all, row_hashes
from skylift.engine.warm import warm_up
from skylift.model import Digest

MASK = 2**64 - 1
COLUMNS = {
    "i": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "s": (pa.string(), st.text(max_size=40)),
    "b": (pa.binary(), st.binary(max_size=40)),
    "d": (pa.decimal128(38, 20), st.decimals(-(10**17), 10**17, places=20)),
    "f": (pa.float64(), st.floats()),
    "l": (pa.bool_(), st.booleans()),
    "t": (pa.timestamp("us"), st.integers(-62135596800000000, 253402300799999999)),
    "y": (pa.date32(), st.integers(-700_000, 2_900_000)),
}
ROWS = st.lists(st.fixed_dictionaries({name: st.none() | values for name, (_, values) in COLUMNS.items()}), max_size=12)


def batch_of(rows, names=tuple(COLUMNS)):
    return pa.RecordBatch.from_arrays([pa.array([row[n] for row in rows], COLUMNS[n][0]) for n in names], names=list(names))


def words(value, kind):
    if value is None:
        return [0x9E6C63D0676A9A99]
    if isinstance(value, (str, bytes)):
        raw = value.encode() if isinstance(value, str) else value
        return [len(raw)] + [int.from_bytes(raw[i : i + 8].ljust(8, b"\0"), "little") for i in range(0, len(raw), 8)]
    if isinstance(value, Decimal):
        unscaled = int(value.scaleb(20, context=__import__("decimal").Context(prec=60))) % 2**128
        return [unscaled & MASK, unscaled >> 64]
    if isinstance(value, float):
        return [struct.unpack("<Q", struct.pack("<d", value))[0]] if value == value else [0x7FF8000000000000]
    return [int(value) & MASK]


def reference(rows):
    total = Digest()
    for row in rows:
        a = b = 0
        for index, name in enumerate(COLUMNS):
            seed = (index + 1) * 0xD6E8FEB86659FD93 & MASK
            a, b = (a + seed) & MASK, b ^ seed
            for word in words(row[name], COLUMNS[name][0]):
                a, b = (a ^ word) * 0x9E3779B97F4A7C15 & MASK, (b ^ word) * 0xC2B2AE3D27D4EB4F & MASK
                a, b = a ^ a >> 32, b ^ b >> 29
        total += Digest(1, *(finish(x) for x in (a, b)))
    return total


def finish(x):
    x = (x ^ x >> 33) * 0xFF51AFD7ED558CCD & MASK
    x = (x ^ x >> 33) * 0xC4CEB9FE1A85EC53 & MASK
    return x ^ x >> 33


@settings(deadline=None)
@given(ROWS)
def test_the_compiled_hash_is_the_documented_one(rows):
    assert digest(batch_of(rows)) == reference(rows)


@settings(deadline=None)
@given(ROWS, st.randoms(), st.integers(0, 12))
def test_order_batch_bounds_and_slices_do_not_matter(rows, random, cut):
    shuffled = random.sample(rows, len(rows))
    whole, padded = batch_of(rows), batch_of([*rows[:1], *rows])

    assert digest(batch_of(shuffled)) == digest(whole)
    assert digest_all([whole.slice(0, cut), whole.slice(cut)]) == digest(whole)
    assert digest(padded.slice(min(1, len(rows)))) == digest(whole)


def test_what_differs_hashes_differently():
    def of(array):
        return digest(pa.RecordBatch.from_arrays([array], names=["c"]))

    pairs = [
        (pa.array([None], pa.string()), pa.array([""])),
        (pa.array([""]), pa.array(["\0"])),
        (pa.array(["a"]), pa.array(["a\0"])),
        (pa.array([0.0]), pa.array([-0.0])),
        (pa.array([0]), pa.array([None], pa.int64())),
        (pa.array(["A"]), pa.array(["a"])),
        (pa.array([1, 1]), pa.array([1])),
        (pa.array([Decimal("1.10")]), pa.array([Decimal("1.11")])),
    ]
    for left, right in pairs:
        assert of(left) != of(right)
    x, y = pa.array(["x"]), pa.array(["y"])
    assert digest(pa.RecordBatch.from_arrays([x, y], names=["a", "b"])) != digest(pa.RecordBatch.from_arrays([y, x], names=["a", "b"]))


def test_the_width_in_which_a_database_returns_a_value_does_not_matter():
    for narrow, wide in (
        (pa.array([1, -2], pa.int8()), pa.array([1, -2])),
        (pa.array(["é"]), pa.array(["é"], pa.large_string())),
        (pa.array(["é" * 9]), pa.array(["é" * 9], pa.string_view())),
        (pa.array([0.5], pa.float32()), pa.array([0.5])),
        (pa.array(["k"]).dictionary_encode(), pa.array(["k"])),
        (pa.array([b"12"], pa.binary(2)), pa.array([b"12"])),
    ):
        assert digest(pa.RecordBatch.from_arrays([narrow], names=["c"])) == digest(pa.RecordBatch.from_arrays([wide], names=["c"]))


def test_a_type_without_an_encoding_is_refused_by_name():
    with pytest.raises(TypeError, match="list<item: int64>"):
        digest(pa.RecordBatch.from_arrays([pa.array([[1]])], names=["c"]))


def test_digests_subtract_and_a_stream_counts_what_passes():
    rows = batch_of([{"i": i, "s": str(i), "b": b"", "d": Decimal(i), "f": 0.0, "l": True, "t": i, "y": i} for i in range(100)])
    stream = HashedStream([rows.slice(0, 60), rows.slice(60)])

    assert sum(b.num_rows for b in stream) == 100
    assert stream.digest - digest(rows.slice(60)) == digest(rows.slice(0, 60))
    assert stream.size_bytes > 0
    assert len(set(zip(*row_hashes(rows), strict=True))) == 100


def test_loops_are_compiled_once_whoever_made_the_buffers_and_warming_up_has_done_it():
    loops = (hashing._fold_fixed, hashing._fold_bytes, hashing._finish, buckets._add, postgres_binary._survey, postgres_binary._fill,
             postgres_receive._take, mysql_rows._fill)
    warm_up("postgresql://", "mysql://", "duckdb:///x")
    buckets.warm_up()
    valid, words, ends, text = b"\x05", struct.pack("<3q", 1, 0, 3), struct.pack("<4i", 0, 1, 1, 2), b"xy"

    digests = {digest(pa.RecordBatch.from_arrays([
        pa.Array.from_buffers(pa.int64(), 3, [pa.py_buffer(kind(valid)), pa.py_buffer(kind(words))]),
        pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(kind(ends)), pa.py_buffer(kind(text))])], names=["a", "b"]))
        for kind in (bytes, bytearray)}

    assert len(digests) == 1
    assert {loop.py_func.__qualname__: len(loop.signatures) for loop in loops} == {loop.py_func.__qualname__: 1 for loop in loops}
