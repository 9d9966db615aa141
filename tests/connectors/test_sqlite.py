"""What only SQLite does: any cell may hold any type, whatever its column says."""

import re
import sqlite3
from contextlib import closing

import duckdb
import pytest

from skylift.errors import ValueRefused
from skylift.runs import TableStatus
from tests.connectors.labs import DuckDBLab, SqliteLab, migrate
from tests.connectors.test_conformance import ITEM, KEY, insert, simple, successful


@pytest.fixture
def source(tmp_path):
    return SqliteLab(tmp_path)


@pytest.fixture
def target(tmp_path):
    return DuckDBLab(tmp_path)


def values(target, table):
    with duckdb.connect(str(target.path), read_only=True) as connection:
        return connection.execute(f"select * from main.{table}").fetchall()


def test_columns_without_a_type_move_as_what_their_cells_are(source, target):
    source.execute("create table p (id integer primary key, price real)", "insert into p values (1, 1234567.89), (2, 0.1)",
                   "create table report as select id, price * 1.19 as gross, price + 0 as net, id || '' as words,"
                   " 4611686018427387904 + id as big, x'00ff' as raw, null as empty from p")

    successful(migrate(source.url, target.url, "c1"))

    with closing(sqlite3.connect(source.path)) as judge:
        expected = judge.execute("select * from report").fetchall()
    assert values(target, "report") == expected


@pytest.mark.parametrize("many", [0, 20_000])         # within the batch that the driver takes types from, and after it
@pytest.mark.parametrize(("declared", "usual", "odd"), [
    ("blob", "x'00'", "1.5"), ("blob", "x'00'", "'text'"), ("", "'mixed'", "7"), ("integer", "7", "'many'"), ("integer", "7", "1.5"),
    ("double", "1.5", "x'00'"), ("", "1.5", "9007199254740993")])
def test_a_cell_of_another_type_than_its_column_fails_the_table_by_key(source, target, declared, usual, odd, many):
    source.execute(f"create table t (id integer primary key, c {declared})",
                   f"insert into t values (-1, {usual}), ({many + 1}, {odd})",
                   f"with recursive n(i) as (select 2 union all select i + 1 from n where i < {many})"
                   f" insert into t select i, {usual} from n where {many}")

    error = migrate(source.url, target.url, "c1")["t"].error

    assert isinstance(error, ValueRefused) and re.search(rf"t\.c, key \(({many + 1}|-1),\)", str(error)), error


def test_declared_decimals_that_sqlite_stores_as_doubles_arrive_exactly_or_not_at_all(source, target):
    source.execute("create table t (id integer primary key, price numeric(10,2))", "insert into t values (1, 0.99), (2, 5), (3, 1e3)")
    successful(migrate(source.url, target.url, "c1"))
    assert [str(price) for _, price in values(target, "t")] == ["0.99", "5.00", "1000.00"]
    source.execute("insert into t values (4, 0.1 + 0.2)")

    error = migrate(source.url, target.url, "c2")["t"].error

    assert isinstance(error, ValueRefused) and "t.price, key (4,)" in str(error) and "0.3000000000000000" in str(error)


def test_keys_that_may_be_null_are_no_keys_when_one_is(source, target):
    source.execute("create table t (id text primary key, v text)", "insert into t values ('a', 'x'), (null, 'y'), (null, 'y')")
    successful(migrate(source.url, target.url, "c1"))
    assert target.rows("t") == source.rows("t") and target.rows("t").total() == 3


def test_a_damaged_page_is_told_with_a_way_out(source, target):
    source.execute("create table t (id integer primary key, v text)",
                   ("insert into t values (?, ?)", [(i, "x" * 500) for i in range(2_000)]))
    source.execute("pragma wal_checkpoint(truncate)")
    damaged = bytearray(source.path.read_bytes())
    damaged[200_000:260_000] = b"\xa5" * 60_000
    source.path.write_bytes(damaged)

    error = migrate(source.url, target.url, "c1")["t"].error

    assert "malformed" in str(error) and "backup" in error.hint


def test_a_value_that_does_not_fit_fails_its_table_by_name_and_key_and_no_other(source, target):
    source.execute(
        source.ddl("good", ITEM, KEY),
        insert("good", simple(0, 10)),
        source.ddl("bad", ITEM, KEY),
        insert("bad", simple(0, 10)),
        "update bad set amount = '1.000000000000000000001' where line = 7",
    )

    results = migrate(source.url, target.url, "c1")

    assert results["good"].status is TableStatus.SUCCESSFUL
    assert isinstance(results["bad"].error, ValueRefused)
    for word in ("bad.amount", "N000007", "1.000000000000000000001"):
        assert word in str(results["bad"].error)
    assert "bad" not in target.names()


def test_a_failed_copy_leaves_the_rows_of_the_copy_before(source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 10)))
    migrate(source.url, target.url, "c1")
    before = target.rows("t")
    source.execute("update t set amount = 'much' where line = 7")

    assert migrate(source.url, target.url, "c2")["t"].status is TableStatus.FAILED
    assert migrate(source.url, target.url, "c3", full=True)["t"].status is TableStatus.FAILED
    assert target.rows("t") == before

    source.execute("update t set amount = '8' where line = 7")
    successful(migrate(source.url, target.url, "c4"))
    assert target.rows("t").total() == 10
