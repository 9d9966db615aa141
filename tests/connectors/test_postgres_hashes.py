"""A copy that the server itself finds to be whole, and one that it does not. Judge: the server, which hashes what it holds."""

from dataclasses import replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from types import SimpleNamespace
from uuid import UUID

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from skylift.connectors import open_source, open_target, postgres_hashes
from skylift.connectors.postgres import PG_BINARY
from skylift.connectors.postgres_load import copy_in
from skylift.connectors.postgres_receive import copy_out
from skylift.connectors.postgres_target import PostgresTarget, PostgresTransaction
from skylift.engine import copy
from skylift.engine.copy import Copier, build_name
from skylift.errors import NotVerified
from skylift.model import CopyTask, Table, TargetName
from tests.connectors.labs import PostgresLab, PostgresTargetLab, SqliteLab, migrate
from tests.connectors.test_conformance import ITEM, KEY, insert, simple, successful
from tests.connectors.test_postgres_binary import ROWS, TABLE, TEXT, TIMES, arrow, decimals, edge, integers, server  # noqa: F401

NAME = TargetName("", "t")


@pytest.fixture(autouse=True)
def small_tables_too(monkeypatch):
    monkeypatch.setattr(copy, "HASHED_ROWS", 0)


@pytest.fixture(params=[SqliteLab, PostgresLab])
def source(request, tmp_path):
    return request.param(tmp_path)


@pytest.fixture
def target(tmp_path):
    return PostgresTargetLab(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
@example(rows=[])
@example(rows=edge(f64=-0.0, f32=float("nan"), d38_20=Decimal(0), t="", x=b"", i64=-1))
@example(rows=edge(t="eleven byte", x=b"twelve bytes") + edge(t="Ä" * 40, x=bytes(13), d38_20=Decimal("1e-20"), d38=Decimal("-1e37")))
def test_the_server_hashes_every_value_of_every_type_as_it_was_foretold(server, rows):      # noqa: F811
    server.execute("truncate t")
    copy_in(server, "t", TABLE, [arrow(rows)] if rows else [])
    [(count, total)] = server.execute(f"select {postgres_hashes._sums(TABLE)} from t _skylift_row").fetchall()

    foretold = sum(postgres_hashes.sum_of(arrow(part).cast(postgres_hashes.on_the_wire(TABLE.schema))) for part in ([r] for r in rows))

    assert (count, int(total or 0) % 2**64) == (len(rows), foretold % 2**64)


def test_a_slice_of_a_batch_is_hashed_as_its_rows_are():
    batch = arrow([tuple(None if (i + n) % 5 == 0 else value for n, value in enumerate(ROW)) for i in range(20)])
    wire = batch.cast(postgres_hashes.on_the_wire(TABLE.schema))

    apart = sum(postgres_hashes.sum_of(wire.slice(i, 1)) for i in range(20))

    assert postgres_hashes.sum_of(wire) == apart % 2**64
    assert postgres_hashes.sum_of(wire.slice(3, 7)) == sum(postgres_hashes.sum_of(wire.slice(3 + i, 1)) for i in range(7)) % 2**64


NATIVE = {"b": "boolean", "i2": "smallint", "i4": "integer", "i8": "bigint", "d": "double precision", "n": "numeric", "n2": "numeric(9,2)",
          "t": "text", "v": "character varying(40)", "x": "bytea", "day": "date", "clock": "time without time zone", "u": "uuid",
          "at": "timestamp without time zone", "at3": "timestamp(3) without time zone", "utc": "timestamp with time zone"}
AS_THEY_STAND = Table("n", pa.schema([(name, pa.string()) for name in NATIVE]), source_types=tuple(NATIVE.values()), format=PG_BINARY)
NUMBERS = st.one_of(st.sampled_from([*map(Decimal, ("NaN", "Infinity", "-Infinity", "-0", "1e40", "-3e-30"))]),
                    st.decimals(allow_nan=False, allow_infinity=False, places=7), st.integers(-10**30, 10**30).map(Decimal))
NATIVE_ROWS = st.lists(st.tuples(*(st.none() | values for values in (
    st.booleans(), integers(16), integers(32), integers(64), st.floats(), NUMBERS, decimals(9, 2), TEXT, TEXT, st.binary(max_size=30),
    st.dates(), st.times(), st.uuids(), TIMES, TIMES, TIMES.map(lambda t: t.replace(tzinfo=UTC))))), max_size=5)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=NATIVE_ROWS)
def test_rows_that_pass_as_they_stand_are_hashed_alike(server, rows):      # noqa: F811
    server.execute(f"create temp table if not exists n ({', '.join(f'{name} {kind}' for name, kind in NATIVE.items())}); truncate n")
    for row in rows:
        server.execute(f"insert into n values ({', '.join(f'%s::{kind}' for kind in NATIVE.values())})", row)
    [(count, total)] = server.execute(f"select {postgres_hashes._sums(AS_THEY_STAND)} from n _skylift_row").fetchall()
    hashed = postgres_hashes.PostgresHashes(SimpleNamespace(version=150000)).of(AS_THEY_STAND)

    foretold = [hashed(batch.slice(i, 1)) for batch in copy_out(server, "select * from n") for i in range(batch.num_rows)]

    assert None in foretold or (count, int(total or 0) % 2**64) == (len(rows), sum(foretold) % 2**64)


def test_a_number_of_very_many_digits_and_a_type_with_another_hash_are_read_back(server):      # noqa: F811
    hashes = postgres_hashes.PostgresHashes(SimpleNamespace(version=150000))
    [batch] = copy_out(server, "select repeat('7', 300)::numeric")
    table = Table("t", pa.schema([("n", pa.string())]), source_types=("numeric",), format=PG_BINARY)

    assert hashes.of(table)(batch) is None
    assert hashes.of(replace(table, source_types=("character(9)",))) is None
    assert hashes.of(replace(table, source_types=("integer[]",))) is None


ROW = (True, -1, 300, 70_000, -(2**40), 255, 65_535, 2**32 - 1, 2**64 - 1, 0.5, -2.25, Decimal("-1.5"), Decimal("0.25"),
       Decimal(12345678901234567890), Decimal("-0.125"), "Ä€😀 and more than that", bytes(range(30)), date(1753, 1, 1), time(23, 59),
       datetime(1, 1, 1), datetime(9999, 12, 31, tzinfo=UTC), UUID(int=2**127 + 5))


# ------------------------------------------------------------------ in a copy


@pytest.fixture
def read_back(monkeypatch):
    """The tables that were read back."""
    seen = []
    within, parts = PostgresTransaction.read, PostgresTarget.read_parts
    monkeypatch.setattr(PostgresTransaction, "read", lambda self, name, *rest: (seen.append(name.table), within(self, name, *rest))[1])
    monkeypatch.setattr(PostgresTarget, "read_parts", lambda self, name, *rest: (seen.append(name.table), parts(self, name, *rest))[1])
    return seen


@pytest.mark.parametrize("chunk_rows", [1_000_000, 10])
def test_a_table_that_the_server_finds_whole_is_not_read_back(source, target, read_back, chunk_rows, monkeypatch):
    monkeypatch.setattr(PostgresTarget, "chunk_rows", chunk_rows)
    monkeypatch.setattr(postgres_hashes, "SMALL_BYTES", 8192)            # in parts that are hashed side by side
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 950)))

    assert successful(migrate(source.url, target.url, "c1")) == {"t": "full"}

    assert not read_back and target.rows("t") == source.rows("t")


@pytest.mark.parametrize("chunk_rows", [1_000_000, 10])
def test_where_the_sums_differ_what_is_read_back_decides(source, target, read_back, chunk_rows, monkeypatch):
    monkeypatch.setattr(PostgresTarget, "chunk_rows", chunk_rows)
    real = postgres_hashes._sums
    monkeypatch.setattr(postgres_hashes, "_sums", lambda table: f"{real(table)} + 1")     # a server that hashes in another way
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 95)))

    assert successful(migrate(source.url, target.url, "c1")) == {"t": "full"}

    assert read_back and target.rows("t") == source.rows("t")


def test_a_server_without_such_a_hash_is_read(source, target, read_back, monkeypatch):
    monkeypatch.setattr(postgres_hashes, "SINCE", 10**6)
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 20)))

    assert successful(migrate(source.url, target.url, "c1")) == {"t": "full"}

    assert read_back == ["t"]


CELLS = {"id": "int", "amount": "decimal", "at": "datetime", "name": "text"}
DAMAGE = {
    "a row is gone": "delete from {t} where id = 3",
    "a row is there twice": "insert into {t} select * from {t} where id = 3",
    "another row stands in its place": "update {t} set id = 99 where id = 3",
    "a sign": "update {t} set amount = -amount where id = 3",
    "two signs": "update {t} set amount = -amount where id in (3, 4)",
    "the last digit": "update {t} set amount = amount + 0.00000000000000000001 where id = 3",
    "a microsecond": "update {t} set at = at + interval '1 microsecond' where id = 3",
    "a letter": "update {t} set name = replace(name, 'n', 'N') where id = 3",
    "nothing for empty": "update {t} set name = null where id = 7",
    "two values have changed places": "update {t} set name = case id when 3 then 'n4' else 'n3' end where id in (3, 4)",
    "two columns have changed places": "update {t} set id = 5 - id, amount = 5 - amount where id in (0, 5)",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_between_the_chunks_and_the_end_is_found(source, target, damage):
    rows = [(i, str(Decimal(i)), f"2024-01-0{i + 1} 10:00:00", "" if i == 7 else f"n{i}") for i in range(8)]
    source.execute(source.ddl("t", CELLS, ()), insert("t", rows))
    reader, writer = open_source(source.url), open_target(target.url)
    [table] = reader.tables()
    task = CopyTask("", "t", reader.measure(table), NAME)
    copier = Copier(reader, writer, "c1", "tests", lambda: False)
    plan, chunks = copier.begin(task, reader.track([table], "tests")["t"], 1)
    for chunk in chunks:
        copier.copy_chunk(task, chunk)
    arrived = writer.chunks_done(build_name(NAME), "c1")
    assert copier._holds(task, arrived, 2)

    target.execute(DAMAGE[damage].format(t=f'"{build_name(NAME).table}"'))

    assert not copier._holds(task, arrived, 2)
    with pytest.raises(NotVerified, match="source and target differ"):
        copier.finish(task, plan, 2)
    writer.close()
    reader.close()
