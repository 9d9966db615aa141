"""A copy that the server itself finds to be whole, and one that it does not. Judge: the server, which hashes what it holds."""

from datetime import UTC, date, datetime, time
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings

from skylift.connectors import open_source, open_target, postgres_hashes
from skylift.connectors.postgres_load import copy_in
from skylift.connectors.postgres_target import PostgresTarget, PostgresTransaction
from skylift.engine.copy import Copier, build_name
from skylift.errors import NotVerified
from skylift.model import CopyTask, TargetName
from tests.connectors.labs import PostgresTargetLab, SqliteLab, migrate
from tests.connectors.test_conformance import ITEM, KEY, insert, simple, successful
from tests.connectors.test_postgres_binary import ROWS, TABLE, arrow, edge, server  # noqa: F401

NAME = TargetName("", "t")


@pytest.fixture
def source(tmp_path):
    return SqliteLab(tmp_path)


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
    real = postgres_hashes.sum_of
    monkeypatch.setattr(postgres_hashes, "sum_of", lambda batch: real(batch) + 1)     # a server that hashes in another way
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
