"""Text is UTF-8 or refused; the judge is Python's own decoder."""

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skylift.connectors.casting import cast_batch
from skylift.errors import ValueRefused
from skylift.model import Table

PIECES = st.sampled_from([b"a", b"abcdefgh", "é".encode(), "€".encode(), "😀".encode(), b"\x80", b"\xc3", b"\xe2\x82",
                          b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xff", b"\0", b"\xf0\x9f\x98"])


@settings(deadline=None, max_examples=300)
@given(st.lists(st.none() | st.lists(PIECES, max_size=4).map(b"".join), max_size=9), st.integers(0, 3))
@example([b"\xc3", b"\xa9"], 0)                       # valid only when laid end to end
@example([b"x\xe2\x82", b"\xac"], 0)
def test_text_is_refused_exactly_when_it_is_not_utf8(values, skipped):
    column = pa.array([b"ok"] * skipped + values, pa.binary()).view(pa.string()).slice(skipped)
    batch = pa.RecordBatch.from_arrays([column, pa.array(range(len(values)), pa.int64())], names=["s", "k"])
    table = Table("t", pa.schema([("s", pa.string()), ("k", pa.int64())]), ("k",))
    broken = [i for i, value in enumerate(values) if value is not None and not decodes(value)]

    if broken:
        with pytest.raises(ValueRefused, match=rf"t\.s, key \({broken[0]},\)"):
            cast_batch(batch, table)
    else:
        assert cast_batch(batch, table).equals(batch)


def decodes(value):
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
