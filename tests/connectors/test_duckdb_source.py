"""What only DuckDB does as a source: its locks, its file, its types. Judge: DuckDB itself, on a connection of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skylift.connectors import check_apart, open_source, opened
from skylift.errors import SetupError, ValueRefused
from skylift.model import KeyRange
from tests.connectors.labs import DuckDBLab, DuckDBSourceLab, migrate
from tests.connectors.test_conformance import insert, successful


@pytest.fixture
def source(tmp_path):
    return DuckDBSourceLab(tmp_path)


@pytest.fixture
def target(tmp_path):
    return DuckDBLab(tmp_path)


def test_every_type_moves_by_its_rule(source, target):
    source.execute(
        "create type mood as enum ('glad', 'sad')",
        """create table t (id utinyint primary key, h hugeint, u uhugeint, bn bignum, bits bit, iv interval, j json, m mood, tz timetz,
            tn time_ns, tztn timestamptz_ns, s timestamp_s, ms timestamp_ms, ns timestamp_ns, l varchar[], a int[2],
            st struct(n int, t varchar), mp map(varchar, double), un union(n int, t varchar), g geometry,
            twice int generated always as (id * 2))""",
        """insert into t values (1, -99999999999999999999999999999999999999, 99999999999999999999999999999999999999,
            123456789012345678901234567890123456789012345678901234567890, '10110', interval '14 months 3 days 0.000001 seconds',
            '{"b": 1.10,  "a": null}', 'sad', '23:59:59.999999+05:30', '12:34:56.123456789', '2026-01-02 00:00:00.123456789+01',
            '1969-12-31 23:59:59', '2026-01-02 03:04:05.678', '2026-01-02 03:04:05.123456789', ['a, b', 'it''s', null, 'NULL', ''],
            [1, null], {'n': 1, 't': '}'}, map {'k': 0.1}, 'text'::union(n int, t varchar), 'POINT(1 2)')""",
        "insert into t (id) values (2)")

    successful(migrate(source.url, target.url, "c1"))

    # A nested value's text is what DuckDB itself makes the value of again.
    back = ("id, h::hugeint h, u::uhugeint u, bn::bignum bn, bits::bit bits, iv::interval iv, j::json j, m::varchar m, tz::timetz tz, tn,"
            " tztn::timestamptz_ns tztn, s::timestamp_s s, ms::timestamp_ms ms, ns, l::varchar[] l, a::int[2] a,"
            " st::struct(n int, t varchar) st, mp::map(varchar, double) mp, un::varchar un, st_geomfromwkb(g)::varchar g, twice")
    with duckdb.connect(str(target.path), read_only=True) as judge:
        judge.execute(f"attach '{source.path}' as origin (read_only)")
        there = f"select {back} from t"
        here = "select * replace (m::varchar as m, un::varchar as un, g::varchar as g) from origin.t"
        assert judge.sql(f"({here} except {there}) union all ({there} except {here})").fetchall() == []
        assert judge.sql(f"select count(*) from ({there} intersect {here})").fetchall() == [(2,)]
        kinds = dict(judge.sql("select column_name, data_type from duckdb_columns() where table_name = 't'").fetchall())
    assert kinds["h"] == "DECIMAL(38,0)" and kinds["g"] == "BLOB" and kinds["st"] == "VARCHAR" and kinds["tn"] == "TIME_NS"


@pytest.mark.parametrize(("declared", "value", "named"), [
    ("hugeint", "170141183460469231731687303715884105727", "170141183460469231731687303715884105727"),
    ("uhugeint", "340282366920938463463374607431768211455", "340282366920938463463374607431768211455"),
    ("date", "'infinity'", "infinit"), ("timestamp", "'-infinity'", "infinit"), ("timestamptz", "'infinity'", "infinit"),
    ("timestamp_ns", "'infinity'", "infinit"), ("time", "'24:00:00'", "24:00:00"), ("variant", "42", "VARIANT"),
])
def test_what_has_no_exact_form_is_refused_by_column_and_key(source, target, declared, value, named):
    source.execute(f"create table t (id int primary key, v {declared})", f"insert into t values (7, null), (8, {value})")

    error = migrate(source.url, target.url, "c1")["t"].error

    assert isinstance(error, ValueRefused) and "t.v" in error.message and named in error.message
    assert declared == "variant" or "'8'" in error.message or "8" in error.message.split("key")[1]
    assert "t" not in target.names()


def test_infinite_dates_become_null_where_that_is_accepted(source):
    source.execute("create table t (id int primary key, d date)", "insert into t values (1, 'infinity'), (2, '2026-01-02'), (3, null)")
    reader = open_source(source.url)
    reader.losses = type(reader.losses)("infinity")
    [table] = reader.tables()

    rows = [row for batch in reader.read(table, KeyRange()) for row in batch.to_pylist()]

    assert [str(row["d"]) for row in rows] == ["None", "2026-01-02", "None"]
    assert reader.losses.taken("t") == "d: 1 infinite dates and numbers set to null"
    reader.close()


def test_keys_are_the_primary_key_or_a_unique_one_without_nulls(source):
    source.execute("create table a (x int, y int, primary key (y, x))", "create table b (x int unique, y int not null unique)",
                   "create table c (x int unique)", "create schema s", "create table s.a (x int)", "create view v as select 1",
                   "create table _skylift_tables (x int)", "create temp table gone (x int)")
    reader = open_source(source.url)

    assert {table.path: table.key for table in reader.tables()} == {"a": ("y", "x"), "b": ("y",), "c": (), "s.a": ()}
    reader.close()


def test_a_table_whose_column_is_called_rowid_is_copied_and_verified(source, target):
    source.execute("create table t (rowid varchar, n int)", insert("t", [(f"r{i % 7}", i) for i in range(5_000)]))

    successful(migrate(source.url, target.url, "c1", chunk_rows=1_000))

    assert target.rows("t") == source.rows("t")


def test_a_large_table_is_cut_by_row_id_with_or_without_a_key(source):
    source.execute("create table t as select i as n from range(400_000) r(i)", "delete from t where n % 3 = 0")
    reader = open_source(source.url)
    [table] = map(reader.measure, reader.tables())

    parts = [[n for batch in reader.read(table, keys) for n in batch.column(0).to_pylist()] for keys in reader.split(table, 50_000, 2**40)]

    assert len(parts) > 4 and max(map(len, parts)) < 60_000
    assert sorted(n for part in parts for n in part) == [n for n in range(400_000) if n % 3]
    reader.close()


def test_values_that_need_more_memory_than_duckdb_was_given_are_read_all_the_same(source):
    source.execute("create table t (id int primary key, data blob)",
                   "insert into t select i, repeat('x', 2_000_000)::blob from range(200) r(i)")
    reader = open_source(source.url)
    [table] = reader.tables()
    rows = [row for batch in reader.read(table, KeyRange()) for row in batch.to_pylist()]
    reader.close()

    assert [row["id"] for row in rows] == list(range(200)) and {len(row["data"]) for row in rows} == {2_000_000}


# ------------------------------------------------------------------ the file and its lock


HOLD = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


def test_a_file_that_another_process_holds_is_refused_by_name_and_can_be_read_once_it_is_free(source):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(source.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"

        with pytest.raises(SetupError, match=r"source\.duckdb is open in another program.*close it there"):
            open_source(source.url)
    finally:
        holder.communicate()
    open_source(source.url).close()


def test_nobody_writes_to_a_file_while_it_is_read(source):
    reader = open_source(source.url)
    open_source(source.url).close()                # which must not let go of the lock of the first one
    held = subprocess.run([sys.executable, "-c", HOLD, str(source.path)], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    reader.close()

    assert held.returncode and "lock" in held.stderr
    assert subprocess.run([sys.executable, "-c", HOLD, str(source.path)], stdin=subprocess.DEVNULL).returncode == 0


def test_what_is_no_duckdb_file_is_refused_by_name(tmp_path):
    (tmp_path / "text").write_text("not a database" * 1000)

    for url, words in ((f"duckdb:///{tmp_path}/none", "there is no DuckDB file"), (f"duckdb:///{tmp_path}/text", "text cannot be"),
                       ("duckdb:///:memory:", "names no file"), (f"duckdb:///{tmp_path}/text?mode=ro", "unknown option mode")):
        with pytest.raises(SetupError, match=words):
            open_source(url)


def test_source_and_target_in_one_place_are_refused_by_name(source, tmp_path):
    os.link(source.path, tmp_path / "link")

    with pytest.raises(SetupError, match=r"the same file: .*source\.duckdb"), opened(source.url, f"duckdb:///{tmp_path}/link"):
        pass
    with pytest.raises(SetupError, match="the same database: sales"):
        check_apart("postgresql://me@host/sales", "postgresql://you:secret@HOST:5432/sales")
    check_apart("postgresql://me@host/sales", "postgresql://me@host/copy")
    check_apart("sqlite:///a.db", "duckdb:///a.duckdb")


def test_nothing_is_written_to_the_source_not_even_its_log_is_emptied(source, target):
    crash(source, "create table t (id int primary key)", "insert into t values (1)")
    files = [source.path, Path(f"{source.path}.wal")]
    before = [path.read_bytes() for path in files]

    successful(migrate(source.url, target.url, "c1"))

    assert [path.read_bytes() for path in files] == before
    assert target.rows("t") == source.rows("t")


def crash(lab, *statements):
    """Commits, and is gone before DuckDB tidies up: what was committed stands in the write-ahead log."""
    script = ("import duckdb, os, sys; c = duckdb.connect(sys.argv[1]); c.execute(\"set checkpoint_threshold='1GB'\")\n"
              "for s in sys.argv[2:]: c.execute(s)\nos._exit(0)")
    subprocess.run([sys.executable, "-c", script, str(lab.path), *statements], check=True)


ROW = st.integers(0, 30)
STEP = st.one_of(
    st.tuples(st.sampled_from(["insert", "update", "delete", "rekey"]), ROW, ROW),
    st.tuples(st.sampled_from(["truncate", "rolled back", "recreated", "backup", "restore", "checkpoint", "vacuum"]), st.none(), st.none()),
    st.tuples(st.just("crash"), ROW, ROW), st.tuples(st.just("run"), st.none(), st.none()))
SQL = {"insert": "insert into t select {a}, 'n', {b} where not exists (from t where id = {a})",
       "update": "update t set n = n + {b} + 1 where id <= {a}",
       "delete": "delete from t where id between {a} and {b}",
       "rekey": "update t set id = {b} + 100 where id = {a} and not exists (from t where id = {b} + 100)",
       "truncate": "truncate t", "checkpoint": "checkpoint", "vacuum": "vacuum"}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=20))
def test_whatever_happens_to_the_file_target_equals_source_after_every_run(tmp_path_factory, steps):
    """A run that finds nothing changed must be right about it; one after which nothing has happened must find so."""
    folder = tmp_path_factory.mktemp("random")
    source, target, backup = DuckDBSourceLab(folder), DuckDBLab(folder), folder / "backup.duckdb"
    source.execute("create table t (id int primary key, v varchar, n int)", "create table bare (n int)",
                   "insert into t select i, 'x', i from range(20) r(i)", "insert into bare values (1), (1)")
    source.execute("checkpoint")
    shutil.copy(source.path, backup)
    for number, (verb, a, b) in enumerate([*steps, ("run", None, None)]):
        if verb in SQL:
            source.execute(SQL[verb].format(a=a, b=b)) if verb not in ("checkpoint", "vacuum") else _alone(source, verb)
        elif verb == "crash":
            crash(source, SQL["insert"].format(a=a, b=b), SQL["update"].format(a=b, b=a), f"insert into bare values ({a})")
        elif verb == "rolled back":
            with duckdb.connect(str(source.path)) as connection:
                connection.execute("begin; delete from t; insert into bare values (9); rollback")
        elif verb == "recreated":
            source.execute("create table new as select id, v, n + 1 as n from t", "drop table t",
                           "create table t (id int primary key, v varchar, n int)", "insert into t from new", "drop table new")
        elif verb == "backup":
            _alone(source, "checkpoint")
            shutil.copy(source.path, backup)
        elif verb == "restore":
            Path(f"{source.path}.wal").unlink(missing_ok=True)
            shutil.copy(backup, source.path)
        else:
            successful(migrate(source.url, target.url, f"c{number}"))
            assert all(target.rows(name) == source.rows(name) for name in ("t", "bare"))
            again = successful(migrate(source.url, target.url, f"d{number}"))
            assert again == {"t": "unchanged", "bare": "unchanged"}


def _alone(lab, statement):
    with duckdb.connect(str(lab.path)) as connection:
        connection.execute(statement)
