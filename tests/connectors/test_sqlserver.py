"""What is SQL Server's alone, against a TDS server. Judges: the driver's plain cursor, and casts made by the server."""

import threading
from datetime import date, datetime, time
from decimal import Decimal
from uuid import UUID

import pytest

from skylift.connectors import open_source
from skylift.connectors.sqlserver_source import SqlServerSource
from skylift.connectors.sqlserver_types import REFUSED
from skylift.errors import SetupError, ValueRefused
from skylift.losses import Losses
from skylift.model import KeyRange
from tests.connectors.labs import migrate
from tests.connectors.labs.duckdb import DuckDBLab
from tests.connectors.labs.sqlserver import SqlServerLab
from tests.connectors.relay import Relay
from tests.connectors.test_conformance import successful


@pytest.fixture
def lab():
    return SqlServerLab()


@pytest.fixture
def target(tmp_path):
    return DuckDBLab(tmp_path)


def rows_of(lab, name, losses=None):
    source = open_source(lab.url, losses)
    try:
        [table] = [table for table in source.tables() if table.name == name]
        return [row for batch in source.read(table, KeyRange()) for row in batch.to_pylist()]
    finally:
        source.close()


# What each type holds at its edges, as T-SQL writes it, and the value that is handed out.
VALUES = [
    ("bit", "1", True), ("bit", "0", False), ("tinyint", "255", 255), ("smallint", "-32768", -(2**15)), ("int", "-2147483648", -(2**31)),
    ("bigint", "-9223372036854775808", -(2**63)),
    ("decimal(38,20)", "-999999999999999999.99999999999999999999", Decimal("-999999999999999999.99999999999999999999")),
    ("numeric(5,0)", "-99999", Decimal("-99999")), ("decimal(38,38)", "0.00000000000000000000000000000000000001", Decimal(10) ** -38),
    ("money", "-922337203685477.5808", Decimal("-922337203685477.5808")), ("smallmoney", "214748.3647", Decimal("214748.3647")),
    ("real", "3.4028234663852886e38", 3.4028234663852886e38), ("float", "5e-324", 5e-324), ("float(24)", "0.1", 0.10000000149011612),
    ("date", "'0001-01-01'", date(1, 1, 1)), ("date", "'9999-12-31'", date(9999, 12, 31)),
    ("time(3)", "'23:59:59.999'", time(23, 59, 59, 999000)),
    ("smalldatetime", "'2079-06-06 23:59:00'", datetime(2079, 6, 6, 23, 59)),
    ("datetime", "'1753-01-01 00:00:00.003'", datetime(1753, 1, 1, 0, 0, 0, 3000)),
    ("datetime", "'9999-12-31 23:59:59.997'", datetime(9999, 12, 31, 23, 59, 59, 997000)),
    ("datetime2(0)", "'0001-01-01 00:00:01'", datetime(1, 1, 1, 0, 0, 1)), ("datetime2(6)", "'2026-01-02 03:04:05.000001'",
                                                                            datetime(2026, 1, 2, 3, 4, 5, 1)),
    ("uniqueidentifier", "'01020304-0506-0708-090A-0B0C0D0E0F10'", UUID("01020304-0506-0708-090a-0b0c0d0e0f10")),
    ("char(5)", "'ab'", "ab   "), ("nchar(3)", "N'Ä'", "Ä  "), ("varchar(10)", "'a€ '", "a€ "), ("nvarchar(5)", "N'😀 '", "😀 "),
    ("varchar(max)", "replicate('ä', 3)", "äää"), ("nvarchar(max)", "N''", ""), ("text", "'plain'", "plain"), ("ntext", "N'😀'", "😀"),
    ("xml", "'<a b=\"1\">&lt;</a>'", '<a b="1">&lt;</a>'),
    ("binary(4)", "0x0102", b"\1\2\0\0"), ("varbinary(4)", "0x", b""), ("varbinary(max)", "0x00FF", b"\0\xff"), ("image", "0xFF", b"\xff"),
]


def test_every_type_hands_out_what_the_server_holds(lab):
    columns = ", ".join(f"c{i} {declared}" for i, (declared, _, _) in enumerate(VALUES))
    lab.execute(f"create table t (id int not null primary key, {columns})",
                f"insert into t values (1, {', '.join(value for _, value, _ in VALUES)})",
                "insert into t (id) values (2)")

    full, nulls = sorted(rows_of(lab, "t"), key=lambda row: row["id"])

    assert {f"c{i} {declared}": full[f"c{i}"] for i, (declared, _, _) in enumerate(VALUES)} == {
        f"c{i} {declared}": expected for i, (declared, _, expected) in enumerate(VALUES)}
    assert {value for column, value in nulls.items() if column != "id"} == {None}


def test_a_rowversion_and_computed_columns_arrive_as_values(lab, target):
    lab.execute("create table t (id int not null primary key, twice as (id * 2) persisted, rv rowversion)", "insert into t (id) values (7)")

    successful(migrate(lab.url, target.url, "c1"))

    [(id, twice, version)] = target.fetch("select * from t")
    assert (id, twice) == (7, 14) and lab.fetch("select rv from t") == [(version,)]


def test_a_column_without_an_exact_form_is_named_and_the_other_tables_go_on(lab, target):
    lab.execute("create table odd (id int not null primary key, v sql_variant)", "create table even (id int not null primary key)")
    source = open_source(lab.url)
    odd = next(table for table in source.tables() if table.name == "odd")
    source.close()

    results = migrate(lab.url, target.url, "c1")

    assert odd.schema.field("v").type == REFUSED
    assert isinstance(results["odd"].error, ValueRefused) and "odd.v: a column of type sql_variant" in results["odd"].error.message
    assert results["even"].error is None


KEYS = [
    ("uniqueidentifier", [str(UUID(int=(i * 2654435761) % 2**32 << 96 | i)) for i in range(40)]),
    ("datetime2(6)", [f"2026-01-01 00:00:00.{i:06}" for i in range(40)]), ("datetime", [f"2026-01-01 00:00:{i:02}.003" for i in range(40)]),
    ("date", [f"2026-01-{i + 1:02}" for i in range(28)]), ("time(3)", [f"01:02:03.{i:03}" for i in range(40)]),
    ("decimal(20,10)", [f"{i - 20}.{i:010}" for i in range(40)]), ("float", [repr(i / 7) for i in range(40)]),
    ("varbinary(8)", [bytes([i]) * 3 for i in range(40)]), ("bit", [0, 1]), ("tinyint", list(range(40))),
    ("money", [f"{i}.0001" for i in range(40)]), ("char(3)", [f"{i:02}" for i in range(40)]),
]


@pytest.mark.parametrize(("declared", "keys"), KEYS, ids=[declared for declared, _ in KEYS])
def test_ranges_of_every_kind_of_key_cover_each_row_once(lab, declared, keys):
    lab.execute(f"create table t (a int not null, k {declared} not null, primary key (k, a))",
                *((f"insert into t values (?, cast(? as {declared}))", [(i, key)]) for i, key in enumerate(keys)))
    source = open_source(lab.url)
    [table] = source.tables()
    table = source.measure(table)

    ranges = source.split(table, 3, 10**9)
    found = [row["a"] for keys_ in ranges for batch in source.read(table, keys_) for row in batch.to_pylist()]
    source.close()

    assert len(ranges) == -(-len(keys) // 3) and sorted(found) == list(range(len(keys)))


def test_rows_with_long_values_arrive_once_whatever_their_key(lab):
    texts = {i: "x" * size for i, size in enumerate((0, 3_999, 4_000, 4_001, 8_000, 8_001, 200_000, 5_000_000))}
    lab.execute("create table t (k decimal(20,3) not null, d datetime not null, v nvarchar(max), b varbinary(max), primary key (k, d))",
                *(("insert into t values (?, '2026-01-01 00:00:00.007', ?, ?)", [(Decimal(i) / 8, text, text.encode())])
                  for i, text in texts.items()))

    found = {int(row["k"] * 8): (row["v"], row["b"]) for row in rows_of(lab, "t")}

    assert found == {i: (text, text.encode()) for i, text in texts.items()}


def test_a_row_version_tells_inserts_updates_and_deletes(lab, target):
    lab.execute("create table t (id int not null primary key, v nvarchar(20), rv rowversion)",
                "insert into t (id, v) select top (50) row_number() over (order by object_id), N'x' from sys.all_columns")
    if successful(migrate(lab.url, target.url, "c1")) and feeds(lab) != {"row_version"}:
        pytest.skip("the server has no MIN_ACTIVE_ROWVERSION")
    migrate(lab.url, target.url, "c2")
    assert migrate(lab.url, target.url, "c3")["t"].mode == "unchanged"

    lab.execute("delete from t where id < 6", "update t set v = N'new' where id between 10 and 12", "update t set id = 1000 where id = 20",
                "insert into t (id, v) values (99, N'late')")
    result = migrate(lab.url, target.url, "c4")["t"]

    assert (result.mode, result.error) == ("incremental", None)
    assert (result.inserted, result.updated, result.deleted) == (2, 3, 6)
    assert target.rows("t") == lab.rows("t")

    lab.execute("delete from t where id > 40")
    assert migrate(lab.url, target.url, "c5")["t"].deleted == lab_deleted(50, 20) and target.rows("t") == lab.rows("t")
    assert migrate(lab.url, target.url, "c6")["t"].mode == "unchanged"


def lab_deleted(rows, moved):
    """41 to 50, the one that was inserted as 99, and the one that became 1000."""
    return (rows - 40) + 2


def feeds(lab):
    source = open_source(lab.url)
    try:
        return {mark.feed for mark in source.track(source.tables(), "tests").values()}
    finally:
        source.close()


@pytest.mark.parametrize("snapshots", [True, False])
def test_target_equals_source_while_others_write(lab, target, snapshots, monkeypatch):
    """Inserts, updates, key changes and deletes by a second connection during every run, and a last run when all is quiet."""
    if not snapshots:
        monkeypatch.setattr(SqlServerSource, "_allows_snapshots", lambda self, session: False)
    lab.execute("create table t (id int not null primary key, v int, note nvarchar(max), rv rowversion)",
                "create table plain (id int not null primary key, v int)",
                "insert into t (id, v) select top (3000) row_number() over (order by (select 1)), 0 from sys.all_columns",
                "insert into plain select id, v from t")
    stop, failed = threading.Event(), []

    def write():
        connection = lab.connect()
        cursor = connection.cursor()
        n = 0
        while not stop.is_set():
            n += 1
            try:
                for table in ("t", "plain"):
                    cursor.execute(f"update {table} set v = v + 1 where id % 97 = {n % 97}")
                    cursor.execute(f"delete from {table} where id = {n * 7 % 3000}")
                    cursor.execute(f"insert into {table} (id, v) values ({10_000 + n}, 1)")
                    cursor.execute(f"update {table} set id = {20_000 + n} where id = {n * 13 % 3000}")
                connection.commit()
            except Exception as error:                # a deadlock's victim
                failed.append(error)
                connection.rollback()
        connection.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        runs = [migrate(lab.url, target.url, f"c{i}", chunk_rows=500) for i in range(4)]
    finally:
        stop.set()
        writer.join()
    runs.append(migrate(lab.url, target.url, "last"))

    assert [str(p.error) for run in runs for p in run.values() if p.error] == []
    assert target.rows("t") == lab.rows("t") and target.rows("plain") == lab.rows("plain")


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(("change", "code", "words"), [
    ({"password": "wrong"}, "18456", "ogin"), ({"username": "nobody", "password": "x"}, "18456", "ogin"),
    ({"database": "no_such_database"}, "4060", "no_such_database"), ({"port": 1}, "1225", "1"),
])
def test_what_is_wrong_with_an_address_or_a_login_is_told_without_the_password(lab, change, code, words):
    with pytest.raises(SetupError, match=words) as raised:
        open_source(lab.address.set(**change).update_query_dict({"connect_timeout": "2"}).render_as_string(hide_password=False))

    assert raised.value.code == code and raised.value.hint
    assert str(lab.address.password) not in str(raised.value)


def test_a_certificate_that_is_not_trusted_is_named(lab):
    with pytest.raises(SetupError, match="certificate") as raised:
        open_source(lab.address.update_query_dict({"trust_server_certificate": "no"}).render_as_string(hide_password=False))

    assert raised.value.code == "TLS" and "TrustServerCertificate=yes" in raised.value.hint


def test_a_server_that_is_too_old_says_so(lab):
    genuine = lab.fetch("select cast(serverproperty('ProductVersion') as nvarchar(40))")[0][0]
    if int(genuine.split(".")[0]) >= 13:
        pytest.skip(f"the server is new enough: {genuine}")

    with pytest.raises(SetupError) as raised:
        open_source(lab.address.difference_update_query(["check_version"]).render_as_string(hide_password=False))

    assert raised.value.code in ("50001", "50017")


def test_a_connection_lost_in_mid_copy_is_made_again_and_the_run_ends_well(lab, target):
    lab.execute("create table t (id int not null primary key, v nvarchar(100))",
                "insert into t select top (6000) row_number() over (order by (select 1)), replicate(N'v', 60) "
                "from sys.all_columns a cross join (select top (10) 1 as x from sys.all_columns) b")
    relay = Relay(lab.address.host, lab.address.port)
    address = lab.address.set(host="127.0.0.1", port=relay.port).render_as_string(hide_password=False)
    try:
        relay.cut_after(400_000)
        result = migrate(address, target.url, "c1", chunk_rows=1000)["t"]
    finally:
        relay.close()

    assert relay.cuts >= 2 and result.error is None
    assert target.rows("t") == lab.rows("t")


def test_values_that_are_too_fine_or_half_characters_are_refused_or_accepted_by_name(lab, tmp_path):
    """Only a server that holds steps of 100 ns can be asked for them."""
    lab.execute("create table t (id int not null primary key, v datetime2(7))", "insert into t values (1, '2026-01-02 03:04:05.1234567')")
    if lab.fetch("select datepart(nanosecond, v) from t") != [(123456700,)]:
        pytest.skip("the server keeps no steps of 100 ns")

    [row] = rows_of(lab, "t")
    assert row["v"].value == 1_767_323_045_123_456_700
    [row] = rows_of(lab, "t", Losses("ticks"))
    assert row["v"] == datetime(2026, 1, 2, 3, 4, 5, 123456)
