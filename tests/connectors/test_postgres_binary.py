"""Binary COPY to Arrow and back. Judge: psycopg's own loaders and dumpers, which share no code with either way."""

import uuid
from datetime import UTC, date, datetime, time
from decimal import Context, Decimal

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from skylift.connectors.postgres import connect
from skylift.connectors.postgres_binary import Decoder
from skylift.connectors.postgres_load import column_type, copy_in, fit, on_the_wire
from skylift.connectors.postgres_receive import copy_out
from skylift.errors import CopyError, ValueRefused
from skylift.losses import Losses
from skylift.model import Table

CONTEXT = Context(prec=50)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
TIMES = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999))


def integers(bits, signed=True):
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else st.integers(0, 2**bits - 1)


def decimals(precision, scale):
    return st.integers(-(10**precision) + 1, 10**precision - 1).map(lambda n: Decimal(n).scaleb(-scale, CONTEXT))


COLUMNS = {
    "b": (pa.bool_(), st.booleans()),
    "i8": (pa.int8(), integers(8)),
    "i16": (pa.int16(), integers(16)),
    "i32": (pa.int32(), integers(32)),
    "i64": (pa.int64(), integers(64)),
    "u8": (pa.uint8(), integers(8, False)),
    "u16": (pa.uint16(), integers(16, False)),
    "u32": (pa.uint32(), integers(32, False)),
    "u64": (pa.uint64(), integers(64, False)),
    "f32": (pa.float32(), st.floats(width=32)),
    "f64": (pa.float64(), st.floats()),
    "d38_20": (pa.decimal128(38, 20), decimals(38, 20)),
    "d38_38": (pa.decimal128(38, 38), decimals(38, 38)),
    "d38": (pa.decimal128(38, 0), decimals(38, 0)),
    "d7_3": (pa.decimal128(7, 3), decimals(7, 3)),
    "t": (pa.string(), TEXT),
    "x": (pa.binary(), st.binary(max_size=12)),
    "day": (pa.date32(), st.dates()),
    "clock": (pa.time64("us"), st.times()),
    "at": (pa.timestamp("us"), TIMES),
    "at_utc": (pa.timestamp("us", "UTC"), TIMES.map(lambda t: t.replace(tzinfo=UTC))),
    "guid": (pa.uuid(), st.uuids()),
}
TABLE = Table("t", pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()]))
WIRE = Table("t", on_the_wire(TABLE.schema))
ROWS = st.lists(st.tuples(*(st.none() | values for _, values in COLUMNS.values())), max_size=5)


@pytest.fixture(scope="module")
def server(postgres_url):
    with connect(make_url(postgres_url)) as connection:
        connection.execute("set timezone = 'UTC'")
        connection.execute(f"create temp table t ({', '.join(f'{name} {column_type(kind)}' for name, (kind, _) in COLUMNS.items())})")
        yield connection


def arrow(rows):
    return pa.RecordBatch.from_arrays([pa.array([r[i] for r in rows], f.type) for i, f in enumerate(TABLE.schema)], schema=TABLE.schema)


def shown(rows):
    """Floats by their text, since no NaN is equal to itself; GUIDs alike whichever way they came."""
    return [tuple(repr(v) if isinstance(v, float) else uuid.UUID(bytes=v) if isinstance(v, bytes) and f.type == pa.uuid() else v
                  for v, f in zip(row, TABLE.schema, strict=True)) for row in rows]


def edge(**values):
    return [tuple(values.get(name) for name in COLUMNS)]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
@example(rows=[])
@example(rows=edge(f64=-0.0, f32=-0.0, d38_20=Decimal(0), t="", x=b"", at=datetime(1, 1, 1), day=date(9999, 12, 31), clock=time.max))
@example(rows=edge(f64=float("nan"), f32=float("inf"), d38=Decimal(10**38 - 1), d38_38=Decimal(1 - 10**38).scaleb(-38, CONTEXT)))
def test_every_value_of_every_type_goes_in_and_comes_out_as_it_was(server, rows):
    server.execute("truncate t")
    copy_in(server, "t", TABLE, [arrow(rows)] if rows else [])

    judged = server.execute(f"select {', '.join(f'{name}::float8' if name == 'f32' else name for name in COLUMNS)} from t").fetchall()
    found = [Decoder(WIRE).decode(batch).cast(TABLE.schema) for batch in copy_out(server, "select * from t")]

    assert shown(judged) == shown(rows)
    assert shown(row.values() for batch in found for row in batch.to_pylist()) == shown(rows)


def test_what_psycopg_puts_in_is_read_as_arrow(server):
    row = (True, -128, -(2**15), 2**31 - 1, -(2**63), 255, 65_535, 2**32 - 1, 2**64 - 1, 0.5, -0.0, Decimal("-0.00000000000000000001"),
           Decimal("0.5"), Decimal("12345678901234567890123456789012345678"), Decimal("-0.125"), "Ä€😀", b"\0\xff", date(1, 1, 1),
           time(23, 59, 59, 999999), datetime(1753, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999, UTC), uuid.uuid4())
    server.execute("truncate t")
    server.execute(f"insert into t values ({', '.join(['%s'] * len(row))})", row)

    [batch] = [Decoder(WIRE).decode(batch).cast(TABLE.schema) for batch in copy_out(server, "select * from t")]

    assert shown(found.values() for found in batch.to_pylist()) == shown([row])


@pytest.mark.parametrize(("value", "kind", "words"), [
    ("'NaN'::numeric(38,20)", pa.decimal128(38, 20), "not a number"),
    ("'infinity'::timestamp", pa.timestamp("us"), "infinite"),
    ("'-infinity'::timestamptz", pa.timestamp("us", "UTC"), "infinite"),
    ("'infinity'::date", pa.date32(), "infinite"),
    ("'294250-01-01'::timestamp", pa.timestamp("us"), "does not fit"),
    ("'24:00:00'::time", pa.time64("us"), "does not fit"),
    ("0.005::numeric", pa.decimal128(10, 2), "does not fit"),
    ("1e40::numeric", pa.decimal128(38, 0), "does not fit"),
    ("-1e-30::numeric", pa.decimal128(38, 20), "does not fit"),
    ("170141183460469231731687303715884105728::numeric", pa.decimal128(38, 0), "does not fit"),
])
def test_a_value_that_arrow_cannot_hold_is_refused_by_column_and_key(server, value, kind, words):
    table = Table("t", pa.schema([("id", pa.int32()), ("v", kind)]), ("id",))
    [batch] = copy_out(server, f"select 1, null::{value.split('::')[1]} union all select 7, {value} order by 1")

    with pytest.raises(ValueRefused, match=rf"t\.v, key \(7,\): .*{words}"):
        Decoder(table).decode(batch)


def test_a_column_of_another_type_is_an_error_not_a_wrong_value(server):
    [batch] = copy_out(server, "select 1::bigint as id")
    with pytest.raises(CopyError, match="no longer"):
        Decoder(Table("t", pa.schema([("id", pa.int32())]))).decode(batch)
    with pytest.raises(CopyError, match="2 columns"):
        Decoder(Table("t", pa.schema([("a", pa.int64()), ("b", pa.int64())]))).decode(batch)


def test_rows_come_in_batches_whole_and_in_order_and_an_error_is_raised(server):
    batches = [Decoder(Table("t", pa.schema([("n", pa.int32()), ("x", pa.string())]))).decode(b) for b in copy_out(
        server, "select n, repeat('ä', n % 50) from generate_series(1, 10000) n order by n", batch_bytes=10_000)]
    assert len(batches) > 50
    assert pa.Table.from_batches(batches).to_pylist() == [{"n": n, "x": "ä" * (n % 50)} for n in range(1, 10_001)]

    with pytest.raises(psycopg.errors.DivisionByZero):
        list(copy_out(server, "select 1 / (n - 500) from generate_series(1, 10000) n"))
    assert server.execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize("rows", ["select n, 'x' from generate_series(1, 0) n", "select n, '' from generate_series(1, 150000) n",
                                  "select n, repeat('y', n * 4000) from generate_series(0, 9) n",
                                  "select n, repeat('z', 20000 - n * 4000) from generate_series(0, 5) n"],
                         ids=["none", "more than a batch counts", "larger and larger than a batch", "the first larger than a batch"])
def test_rows_of_any_number_and_size_are_those_that_psycopg_reads(server, rows):
    with server.cursor() as cursor, cursor.copy(f"copy ({rows}) to stdout (format binary)") as copy:
        copy.set_types(["int4", "text"])
        expected = list(copy.rows())

    batches = [Decoder(Table("t", pa.schema([("n", pa.int32()), ("x", pa.string())]))).decode(b) for b in copy_out(server, rows, 5_000)]

    assert [(row["n"], row["x"]) for batch in batches for row in batch.to_pylist()] == expected


def test_a_server_process_that_is_ended_in_mid_copy_is_an_error_and_one_that_is_left_has_its_connection_closed(server, postgres_url):
    endless = "select n, repeat('x', 1000) from generate_series(1, 100000000) n"
    for leave in (True, False):
        own = connect(make_url(postgres_url))
        batches = copy_out(own, endless)
        next(batches)
        if leave:
            batches.close()
        else:
            server.execute("select pg_terminate_backend(%s)", [own.info.backend_pid])
            with pytest.raises(psycopg.OperationalError):          # AdminShutdown, or none of its own where the goodbye found no room
                list(batches)
        assert own.closed


FITTED = Table("t", pa.schema([("id", pa.int64()), ("s", pa.string()), ("ns", pa.timestamp("ns")), ("us", pa.timestamp("us"))]), ("id",))


def fitted(row, accepted=""):
    losses = Losses(accepted)
    batch = pa.RecordBatch.from_arrays([pa.array([1, row[0]])] + [pa.array([None, v]).cast(f.type) for v, f in zip(
        row[1:], list(FITTED.schema)[1:], strict=True)], schema=FITTED.schema)
    return fit(batch.slice(1), FITTED, losses), losses.taken("t")


def test_nul_and_ticks_are_refused_by_name_or_removed_and_counted_where_accepted():
    with pytest.raises(ValueRefused, match=r"t\.s, key \(7,\): .*NUL"):
        fitted((7, "a\0b", None, None))
    with pytest.raises(ValueRefused, match=r"t\.ns, key \(7,\): .*finer than a microsecond"):
        fitted((7, "", -1, None))
    with pytest.raises(ValueRefused, match=r"t\.us, key \(7,\): .*4714 BC"):
        fitted((7, "", 1000, -(2**62)))

    batch, told = fitted((7, "\0a\0b\0", -1, 1), "nul ticks")

    assert batch.column(1).to_pylist() == ["ab"] and batch.column(2).cast(pa.int64()).to_pylist() == [-1000]
    assert "s: 1 NUL" in told and "ns: 1 times" in told
    assert fitted((7, "no\1ne", 1000, 0))[1] == ""
