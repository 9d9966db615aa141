"""What the ledger writes down of a table's columns, and when they count as changed."""

from dataclasses import replace

import pyarrow as pa
import pytest

from skylift.engine.columns import columns_of, schema_change, table_of
from skylift.model import Table

KINDS = (pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint64(), pa.float32(), pa.float64(), pa.string(),
         pa.binary(), pa.date32(), pa.time64("us"), pa.time64("ns"), pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("us", "UTC"),
         pa.decimal128(38, 20), pa.decimal128(5, 0), pa.uuid())
SCHEMA = pa.schema([(str(kind), kind) for kind in KINDS])
TABLE = Table("t", SCHEMA, ("int64",), source_types=("",) * len(KINDS))
NATIVE = replace(TABLE, source_types=tuple(map(str, KINDS)), format="native")


@pytest.mark.parametrize("table", [TABLE, NATIVE])
def test_the_ledgers_words_for_columns_become_the_same_columns_again(table):
    assert table_of("t", columns_of(table)) == table


def test_declared_types_count_only_where_rows_move_in_their_native_format():
    other = replace(NATIVE, source_types=("different", *NATIVE.source_types[1:]))

    assert schema_change(TABLE, replace(TABLE, source_types=other.source_types)) is None
    assert schema_change(NATIVE, NATIVE) is None
    assert "changed the type of ['bool']" in str(schema_change(NATIVE, other))
    assert schema_change(NATIVE, TABLE) is None        # another format is no change of the columns


@pytest.mark.parametrize(("now", "words"), [
    (replace(TABLE, schema=SCHEMA.append(pa.field("new", pa.int8())), source_types=("",) * (len(KINDS) + 1)), "added ['new']"),
    (replace(TABLE, schema=pa.schema(list(SCHEMA)[:-1]), source_types=("",) * (len(KINDS) - 1)), "removed"),
    (replace(TABLE, key=("int32",)), "key or order"),
    (replace(TABLE, schema=pa.schema(list(SCHEMA)[::-1])), "key or order"),
])
def test_a_change_of_the_columns_is_told_by_name(now, words):
    assert words in str(schema_change(TABLE, now))
