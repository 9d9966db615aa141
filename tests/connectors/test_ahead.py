"""A reader in a thread of its own: nothing lost, nothing left behind."""

import threading

import pyarrow as pa
import pytest

from skylift.connectors.ahead import read_ahead


def batches(count, closed, error=None):
    try:
        for i in range(count):
            yield pa.RecordBatch.from_pydict({"i": [i]})
        if error:
            raise error
    finally:
        closed.append(threading.current_thread().name)


@pytest.mark.parametrize("count", [0, 1, 50])
def test_everything_arrives_in_order(count):
    closed = []

    with read_ahead(batches(count, closed)) as ahead:
        assert [batch.to_pydict()["i"] for batch in ahead] == [[i] for i in range(count)]

    assert closed == ["read-ahead"]


def test_an_error_comes_where_its_batch_would_have_come():
    closed, seen = [], []
    with pytest.raises(ValueError, match="torn"), read_ahead(batches(3, closed, ValueError("torn"))) as ahead:
        seen.extend(batch.num_rows for batch in ahead)

    assert seen == [1, 1, 1] and closed


def test_a_consumer_that_stops_early_ends_the_reader():
    closed = []
    with read_ahead(batches(10**9, closed)) as ahead:
        next(ahead)

    assert closed and not any(thread.name == "read-ahead" for thread in threading.enumerate())
