"""SQL Server as a target: what is its alone, against a TDS server. Judge: the driver's plain cursor."""

import sqlite3
from contextlib import closing

import pyarrow as pa
import pytest

from skylift.connectors import open_source, open_target
from skylift.connectors.sqlserver_ddl import column_name, column_types, key_sql
from skylift.connectors.sqlserver_types import MAX_LENGTH
from skylift.engine.pool import copy_tables
from skylift.errors import CopyError, SetupError, ValueRefused
from skylift.losses import Losses
from skylift.model import CopyTask, Digest, Table, TargetName
from tests.connectors.labs import migrate
from tests.connectors.labs.sqlite import SqliteLab
from tests.connectors.labs.sqlserver import SqlServerTargetLab
from tests.connectors.relay import Relay
from tests.connectors.test_conformance import ITEM, KEY, insert, simple, successful


@pytest.fixture
def source(tmp_path):
    return SqliteLab(tmp_path)


@pytest.fixture
def target():
    return SqlServerTargetLab()


T = Table("t", pa.schema([("id", pa.int64()), ("v", pa.string())]), ("id",))
ROWS = pa.RecordBatch.from_pydict({"id": [1, 2], "v": ["a", None]}, schema=T.schema)
NAME = TargetName("", "t")


def test_rows_of_a_chunk_and_its_ledger_row_come_or_go_together(target):
    writer = open_target(target.url)
    with writer.transaction() as t:
        t.create(NAME, T)
    for fails in (True, False):
        try:
            with writer.transaction() as t:
                t.insert(NAME, T, [ROWS])
                t.chunk_done(NAME, "c", 0, Digest(2, 3, 4))
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass

        assert target.rows("t").total() == (0 if fails else 2)
        assert writer.chunks_done(NAME, "c") == ({} if fails else {0: Digest(2, 3, 4)})
    writer.close()


def test_what_a_transaction_makes_is_not_there_before_it_commits_nor_after_it_failed(target):
    writer = open_target(target.url)
    with pytest.raises(ZeroDivisionError), writer.transaction() as t:
        t.create(NAME, T)
        t.insert(NAME, T, [ROWS])
        assert pa.Table.from_batches(t.read(NAME, T)).num_rows == 2
        assert "t" not in target.names()
        1 / 0  # noqa: B018

    assert [name for name in target.names() if "ledger" not in name and name not in ("_skylift_tables", "_skylift_copies")] == []
    writer.close()


def test_what_a_killed_run_leaves_is_dropped_by_the_next(source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 3)))
    migrate(source.url, target.url, "c1")
    target.execute("create table dbo._skylift_tmp_left_0 (a int)")

    migrate(source.url, target.url, "c2")

    assert "_skylift_tmp_left_0" not in target.names()


def test_keys_that_only_case_or_blanks_tell_apart_arrive_and_change_each_for_itself(source, target):
    keys = ["a", "A", "a ", "ä", "", " "]
    source.execute(source.ddl("t", {"k": "text", "v": "int"}, ("k",)), insert("t", [(key, i) for i, key in enumerate(keys)]))
    successful(migrate(source.url, target.url, "c1"))
    source.execute("update t set v = 99 where k = 'A'", "delete from t where k = 'a '", insert("t", [("  ", 7)]))

    result = migrate(source.url, target.url, "c2")["t"]

    assert result.error is None and (result.inserted, result.updated, result.deleted) == (1, 1, 1)
    assert target.rows("t") == source.rows("t")


def test_a_table_gets_the_primary_key_of_its_source(source, target):
    source.execute(source.ddl("small", ITEM, KEY), insert("small", simple(0, 3)), source.ddl("large", ITEM, KEY),
                   insert("large", simple(0, 3000)))

    successful(migrate(source.url, target.url, "c1", chunk_rows=1000))

    for table in ("small", "large"):
        assert target.fetch(f"""
            select col_name(c.object_id, c.column_id) from sys.indexes i
            join sys.index_columns c on c.object_id = i.object_id and c.index_id = i.index_id
            where i.is_primary_key = 1 and object_name(i.object_id) = '{table}' order by c.key_ordinal""") == [("no",), ("line",)], table


def test_companies_are_schemas_whatever_their_names(source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 3)))
    reader, writer = open_source(source.url), open_target(target.url)
    [table] = reader.tables()
    names = [TargetName("CRONUS International Ltd_", "t"), TargetName("fabrikam 100% & süd", "t")]

    done = list(copy_tables([CopyTask(n.schema, "t", table, n) for n in names], reader, writer, copy_id="c", consumer="t", workers=2))

    assert [str(p.error) for p in done if p.error] == []
    assert {len(list(target.rows("t", name.schema))) for name in names} == {3}
    writer.close()
    reader.close()


@pytest.mark.parametrize(("obstacle", "words"), [
    ("create table child (id int references dbo.t (id))", "the foreign key"), ("create index by_v on t (v)", "the index by_v"),
])
def test_a_table_is_not_replaced_where_something_would_be_lost_with_it(source, target, obstacle, words):
    source.execute(source.ddl("t", {"id": "int", "v": "int"}, ("id",)), insert("t", [(1, 1)]))
    migrate(source.url, target.url, "c1")
    if "references" in obstacle:
        obstacle = obstacle.replace("int references", "bigint references")
    target.execute(obstacle)

    error = migrate(source.url, target.url, "c2", full=True)["t"].error

    assert isinstance(error, CopyError) and words in error.message
    assert target.rows("t") == source.rows("t")
    if "child" in obstacle:
        target.execute("drop table child")


def test_a_float_that_is_no_number_is_refused_by_key_or_becomes_null_where_that_is_accepted(source, target):
    source.execute(source.ddl("t", {"id": "int", "v": "double"}, ("id",)), insert("t", [(1, 0.5), (2, float("inf"))]))

    error = migrate(source.url, target.url, "c1")["t"].error
    assert isinstance(error, ValueRefused) and "t.v, key (2,): the value is infinite" in error.message

    losses = Losses("infinity")
    reader, writer = open_source(source.url, losses), open_target(target.url, losses)
    [done] = [p for p in copy_tables([CopyTask("", "t", t, NAME) for t in reader.tables()], reader, writer, copy_id="c2", consumer="t",
                                     workers=1) if p.status.name == "SUCCESSFUL"]
    assert done.losses.startswith("v: 1 ") and sorted(target.fetch("select id, v from t")) == [(1, 0.5), (2, None)]
    writer.close()
    reader.close()


def test_columns_are_declared_as_long_as_their_source_lets_them_be_and_named_within_the_limit():
    def field(name, kind, length=None):
        return pa.field(name, kind, metadata={MAX_LENGTH: str(length).encode()} if length else None)

    schema = pa.schema([field("k", pa.string(), 20), field("free", pa.string()), field("v", pa.string(), 20),
                        field("long", pa.string(), 5000),
                        field("b", pa.binary(), 16), field("blob", pa.binary()), field("c" * 200, pa.uint64())])
    table = Table("t", schema, ("k", "free"))

    assert list(column_types(table).values()) == ["nvarchar(20)", "nvarchar(4000)", "nvarchar(20)", "nvarchar(max)", "varbinary(16)",
                                                  "varbinary(max)", "decimal(20,0)"]
    name = list(column_types(table))[-1]
    assert len(name) == 128 and name.startswith("ccc") and column_name("c" * 200) == name
    with pytest.raises(ValueRefused, match=r"t\.x: SQL Server has no exact type for list"):
        column_types(Table("t", pa.schema([("x", pa.list_(pa.int8()))])))
    assert "primary key clustered" in key_sql(NAME, {"k": "nvarchar(450)"}, ["k"], "PK")
    assert "primary key nonclustered" in key_sql(NAME, {"k": "nvarchar(451)"}, ["k"], "PK")


def test_a_target_lost_in_mid_copy_is_found_again_and_nothing_is_lost_or_doubled(source, target):
    source.execute(source.ddl("t", {"id": "int", "v": "note"}, ("id",)), insert("t", [(i, "v" * 200) for i in range(6000)]))
    relay = Relay(target.address.host, target.address.port)
    address = target.address.set(host="127.0.0.1", port=relay.port).render_as_string(hide_password=False)
    try:
        relay.cut_after(60_000)
        result = migrate(source.url, address, "c1", chunk_rows=500)["t"]
    finally:
        relay.close()

    assert relay.cuts >= 2 and result.error is None, result.error
    assert target.rows("t") == source.rows("t")


def test_a_missing_right_is_named(target):
    """A login that may connect and no more."""
    try:
        target.execute("create login skylift_poor with password = 'Poor_12345'", "create user skylift_poor for login skylift_poor")
    except Exception as error:
        pytest.skip(f"the server makes no login: {error}")
    try:
        with pytest.raises(SetupError) as raised:
            open_target(target.address.set(username="skylift_poor", password="Poor_12345").render_as_string(hide_password=False))
        assert "CREATE TABLE" in raised.value.message and raised.value.code == "Permission"
        assert raised.value.hint == 'grant create table to "skylift_poor"'
    finally:
        target.execute("drop user skylift_poor", "drop login skylift_poor")


def test_the_file_is_what_the_target_holds_after_many_small_runs(source, target):
    """Small tables travel packed: their tables are made, filled, read back and renamed a hundred at a time."""
    with closing(sqlite3.connect(source.path)) as connection, connection:
        for i in range(120):
            connection.execute(f"create table t{i} (id integer primary key, v text)")
            connection.executemany(f"insert into t{i} values (?, ?)", [(n, f"{i}-{n}") for n in range(i % 7)])

    successful(migrate(source.url, target.url, "c1"))

    for i in (0, 3, 6, 119):
        assert target.rows(f"t{i}") == source.rows(f"t{i}")
