"""What a PostgreSQL source tells of its changes, whichever feed it has, while others write. Judge: psycopg, and DuckDB."""

import random
import threading
import time
from contextlib import contextmanager

import psycopg
import pytest

from skylift.connectors import open_source, open_target
from skylift.engine.pool import copy_tables
from skylift.model import CopyTask, TargetName
from tests.connectors.labs import DuckDBLab, PostgresLab, PostgresTriggersLab, migrate
from tests.connectors.test_conformance import insert, successful

LABS = {"slot": PostgresLab, "change_log": PostgresTriggersLab}
PAIRS = ("create table {t} (id int primary key, v text)", "insert into {t} select i, 'v' || i from generate_series(1, 100) i")


@pytest.fixture(params=LABS)
def source(request, tmp_path):
    lab = LABS[request.param](tmp_path)
    lab.feed = request.param
    return lab


@pytest.fixture
def target(tmp_path):
    return DuckDBLab(tmp_path)


def table(source, name="t"):
    source.execute(*(statement.format(t=name) for statement in PAIRS))


@contextmanager
def session(source):
    with psycopg.connect(source.database) as connection:
        yield connection


def feeds(source):
    reader = open_source(source.url)
    try:
        return {path: mark.feed for path, mark in reader.track(reader.tables(), "tests").items()}
    finally:
        reader.close()


def objects(source):
    """Everything that a client could find in the database."""
    return source.fetch("""
        select 'class', nspname || '.' || relname from pg_class join pg_namespace n on n.oid = relnamespace
        union all select 'trigger', tgname from pg_trigger union all select 'function', proname from pg_proc
        union all select 'schema', nspname from pg_namespace where nspname not like 'pg\\_t%'
        union all select 'publication', pubname from pg_publication
        union all select 'slot', slot_name from pg_replication_slots where database = current_database() order by 1, 2""")


def test_each_kind_of_lab_has_the_feed_that_it_is_named_after(source):
    table(source)
    source.execute("create table keyless (a int)", "create unlogged table loose (id int primary key)")

    assert feeds(source) == {"t": source.feed, "keyless": "change_log", "loose": "sweep"}


def test_a_change_that_began_before_the_watermark_and_committed_after_it_is_not_missed(source, target):
    table(source)
    migrate(source.url, target.url, "c1")
    with session(source) as late, session(source) as later:
        late.execute("update t set v = 'late' where id = 1")
        later.execute("insert into t values (0, 'later')")
        source.execute("update t set v = 'meanwhile' where id = 2")
        successful(migrate(source.url, target.url, "c2"))
        assert ("int", 2) in {row[0] for row in target.rows("t")} and source.rows("t") == target.rows("t")
        late.commit()
        successful(migrate(source.url, target.url, "c3"))
        assert source.rows("t") == target.rows("t")
        later.execute("delete from t where id = 3")
        later.commit()

    successful(migrate(source.url, target.url, "c4"))

    assert source.rows("t") == target.rows("t")


def test_a_table_that_is_written_by_a_transaction_of_before_its_feed_begins_loses_nothing(source, target, monkeypatch):
    monkeypatch.setattr("skylift.connectors.postgres_slot.WAIT_S", 1)
    monkeypatch.setattr("skylift.connectors.postgres_log.WAIT", "500ms")
    table(source, "other")
    migrate(source.url, target.url, "c0")              # the slot stands
    table(source)
    with session(source) as early:
        early.execute("insert into t values (0, 'early')")
        assert feeds(source)["t"] == "sweep"           # nobody can tell yet what that transaction does
        successful(migrate(source.url, target.url, "c1"))
        early.execute("update t set v = 'early too' where id = 1")
        early.commit()

    successful(migrate(source.url, target.url, "c2"))
    assert source.rows("t") == target.rows("t")
    assert feeds(source)["t"] == source.feed
    source.execute("update t set v = 'x' where id = 5")

    assert successful(migrate(source.url, target.url, "c3")) == {"other": "unchanged", "t": "incremental"}
    assert source.rows("t") == target.rows("t")


def test_a_writer_that_is_waited_for_does_not_stop_others_from_writing(source, target, monkeypatch):
    monkeypatch.setattr("skylift.connectors.postgres_slot.WAIT_S", 2)
    table(source, "other")
    migrate(source.url, target.url, "c0")
    table(source)
    with session(source) as early:
        early.execute("insert into t values (0, 'early')")
        run = threading.Thread(target=migrate, args=(source.url, target.url, "c1"))
        run.start()
        time.sleep(0.7)
        began = time.monotonic()
        source.execute("insert into t values (-1, 'impatient')")
        waited = time.monotonic() - began
        early.commit()
        run.join()

    assert waited < 3
    successful(migrate(source.url, target.url, "c2"))
    assert source.rows("t") == target.rows("t")


@pytest.mark.parametrize("full", [False, True])
def test_every_run_brings_one_consistent_picture_while_many_write(source, target, full):
    """Money moves between two tables in one transaction, so that the sum over both never changes for who looks at one moment."""
    source.execute(*(f"create table {t} (id int primary key, money int, v text)" for t in ("a", "b")),
                   *(f"insert into {t} select i, 100, repeat('x', 50) from generate_series(1, 3000) i" for t in ("a", "b")))
    migrate(source.url, target.url, "c0", chunk_rows=500)
    stop = threading.Event()

    def write(seed):
        chance = random.Random(seed)
        with psycopg.connect(source.database) as connection:
            while not stop.is_set():
                one, other, amount = chance.randint(1, 3000), chance.randint(1, 3000), chance.randint(1, 50)
                try:
                    connection.execute("update a set money = money - %s where id = %s", (amount, one))
                    time.sleep(chance.choice([0, 0, 0.02]))
                    changed = connection.execute("update b set money = money + %s where id = %s", (amount, other)).rowcount
                    if chance.random() < 0.1:          # a key that moves, with what is on it
                        connection.execute("update b set id = -id where id = %s", (other,))
                    if changed and connection.execute("select from a where id = %s", (one,)).fetchall() and chance.random() < 0.9:
                        connection.commit()
                    else:
                        connection.rollback()
                except psycopg.errors.Error:           # two of them wait for each other
                    connection.rollback()

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    for writer in writers:
        writer.start()
    try:
        for number in range(1, 6):
            successful(migrate(source.url, target.url, f"c{number}", full=full, chunk_rows=500))
            assert sum(money * count for t in "ab" for (_, (_, money), _), count in target.rows(t).items()) == 600_000, number
    finally:
        stop.set()
        for writer in writers:
            writer.join()

    results = migrate(source.url, target.url, "last")

    assert set(successful(results).values()) == {"incremental"}
    for t in "ab":
        assert source.rows(t) == target.rows(t)


def test_a_table_emptied_rewritten_or_recreated_is_copied_whole_and_says_why(source, target):
    for name in ("emptied", "rewritten", "recreated", "kept"):
        table(source, name)
    migrate(source.url, target.url, "c1")
    with psycopg.connect(source.database, autocommit=True) as connection:
        connection.execute("truncate emptied")
        connection.execute("insert into emptied values (1, 'new')")
        connection.execute("vacuum full rewritten")
        connection.execute("drop table recreated")
    table(source, "recreated")
    source.execute("alter table kept alter v set statistics 200")

    results = migrate(source.url, target.url, "c2")

    assert successful(results) == {"emptied": "full", "rewritten": "full", "recreated": "full", "kept": "unchanged"}
    assert all("recreated, emptied or rewritten" in results[name].reason for name in ("emptied", "rewritten", "recreated"))
    assert target.rows("emptied") == source.rows("emptied")
    assert set(successful(migrate(source.url, target.url, "c3")).values()) == {"unchanged"}


KEYS = {
    "date": ["2026-01-02", "0001-01-01"], "timestamptz": ["2026-01-02 03:04:05.678901+02"], "numeric(10,2)": ["1.50", "-1"],
    "numeric": ["1.50", "1.5000001"], "text": ["a'b\\\"{},;\n", "", "NULL", "ä😀"], "character(6)": ["ab", "  c"], "bytea": ["\\x00ff"],
    "uuid": ["01234567-89AB-CDEF-0123-456789ABCDEF"], "boolean": ["t"], "double precision": ["0.1", "-0", "Infinity"],
    "inet": ["10.0.0.1/8"], "interval": ["1 mon 2 days"], "int4range": ["[1,5)"], "integer[]": ["{1,2,NULL}"], '"char"': ["x"],
    "mood": ["so so"], "positive": ["7"], "name": ["n"], "jsonb": ['{"a": 1}'], "time": ["12:34:56.789"], "nocase": ["Ab"]}


@pytest.mark.parametrize("declared", KEYS)
def test_keys_of_every_type_are_followed_whatever_the_settings_of_the_application(source, target, declared):
    source.execute("create type mood as enum ('so so')", "create domain positive as int check (value > 0)",
                   "create collation ignorant (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
                   "create domain nocase as text collate ignorant")
    source.execute(f"create table t (k {declared} primary key, v int)", f"insert into t select null::{declared}, 0 limit 0")
    source.execute(*(("insert into t values (?, 1)", [(value,)]) for value in KEYS[declared]))
    migrate(source.url, target.url, "c1")
    with session(source) as application:
        application.execute("set datestyle = 'German'; set timezone = 'Asia/Tokyo'; set intervalstyle = 'sql_standard'; "
                            "set extra_float_digits = -3; set bytea_output = 'escape'; set search_path = pg_temp")
        application.execute("update public.t set v = 2")
        if declared == "nocase":
            application.execute("update public.t set k = 'AB'")        # equal for the index, another value all the same

    results = migrate(source.url, target.url, "c2")

    assert successful(results) == {"t": "incremental"}
    assert target.fetch("select distinct v, count(*) from t group by v") == [(2, len(KEYS[declared]))]
    if declared == "nocase":
        assert target.fetch("select k from t") == [("AB",)]
    source.execute("delete from t")
    assert migrate(source.url, target.url, "c3")["t"].deleted == len(KEYS[declared])
    assert target.fetch("select * from t") == []


def test_partitions_are_read_and_followed_through_their_parent(source, target):
    source.execute("create table p (id int primary key, v text) partition by range (id)",
                   "create table p1 partition of p for values from (0) to (100)",
                   "create table p2 partition of p for values from (100) to (1000) partition by range (id)",
                   "create table p21 partition of p2 for values from (100) to (500)",
                   "insert into p select i, 'v' from generate_series(0, 400) i")
    assert feeds(source) == {"p": source.feed}
    migrate(source.url, target.url, "c1", chunk_rows=50)
    assert source.rows("p") == target.rows("p") and "p1" not in target.names()
    source.execute("update p set v = 'parent' where id = 1", "update p1 set v = 'child' where id = 2", "delete from p21 where id = 200",
                   "update p set id = 450 where id = 3")

    results = migrate(source.url, target.url, "c2")

    assert successful(results) == {"p": "incremental"} and (results["p"].updated, results["p"].deleted, results["p"].inserted) == (2, 2, 1)
    assert source.rows("p") == target.rows("p")
    source.execute("alter table p detach partition p1")

    results = migrate(source.url, target.url, "c3")

    assert successful(results)["p"] == "full" and source.rows("p") == target.rows("p")


def test_rows_of_inheriting_tables_are_their_own_and_followed_also_through_the_parent(source, target):
    source.execute("create table parent (id int primary key, v text)", "create table child (primary key (id)) inherits (parent)",
                   "insert into parent values (1, 'p')", "insert into child values (2, 'c')")
    migrate(source.url, target.url, "c1")
    assert target.rows("parent").total() == target.rows("child").total() == 1
    source.execute("update parent set v = 'both'")

    assert successful(migrate(source.url, target.url, "c2")) == {"parent": "incremental", "child": "incremental"}
    assert set(target.rows("child")) == {(("int", 2), ("str", "both"))} and set(target.rows("parent")) == {(("int", 1), ("str", "both"))}


def test_upserts_merges_copies_cascades_and_savepoints_are_followed(source, target):
    table(source)
    source.execute("create table d (id int primary key, t int references t on delete cascade on update cascade, v text)",
                   "insert into d select i, i, 'd' from generate_series(1, 100) i")
    migrate(source.url, target.url, "c1")
    source.execute(
        "insert into t values (1, 'upserted'), (101, 'upserted') on conflict (id) do update set v = excluded.v",
        "delete from t where id = 2", "update t set id = 200 where id = 3",
        "savepoint s", "update t set v = 'never' where id = 4", "rollback to s", "update t set v = 'again' where id = 5",
        "with moved as (delete from t where id = 6 returning *) insert into t select 106, v from moved")
    with session(source) as connection, connection.cursor().copy("copy t from stdin") as copy:
        copy.write_row((300, "copied"))

    results = migrate(source.url, target.url, "c2")

    assert successful(results) == {"t": "incremental", "d": "incremental"}
    for name in ("t", "d"):
        assert source.rows(name) == target.rows(name)


def test_a_backup_restored_from_before_the_last_copy_is_noticed(source, target):
    table(source)
    migrate(source.url, target.url, "c1")
    tokens = source.fetch("select token, position from _skylift.tokens")
    source.execute("update t set v = 'lost' where id = 1")
    migrate(source.url, target.url, "c2")
    # As the restored database would have them: what was committed after the backup is gone.
    source.execute("delete from _skylift.tokens", ("insert into _skylift.tokens values (?, ?)", tokens),
                   "update t set v = 'v1' where id = 1")

    results = migrate(source.url, target.url, "c3")

    assert successful(results) == {"t": "full"} and "restored" in results["t"].reason
    assert source.rows("t") == target.rows("t")
    assert successful(migrate(source.url, target.url, "c4")) == {"t": "unchanged"}


def test_the_last_one_to_leave_takes_everything_along(source, target, tmp_path):
    table(source)
    source.execute("create table keyless (a text)")
    before = objects(source)
    readers = [open_source(source.url), open_source(source.url)]
    for reader, consumer in zip(readers, ("one", "two"), strict=True):
        reader.track(reader.tables(), consumer)
    assert objects(source) != before
    readers[0].untrack("one")
    source.execute("update t set v = 'x' where id = 1")
    reader = open_source(source.url)
    assert reader.track(reader.tables(), "two")["t"].feed == source.feed
    reader.close()

    for consumer in ("two", "never there"):
        readers[1].untrack(consumer)

    assert objects(source) == before
    for reader in readers:
        reader.close()


def test_each_consumer_has_read_what_is_forgotten(source, tmp_path):
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    one, two = DuckDBLab(tmp_path / "one"), DuckDBLab(tmp_path / "two")
    def run(lab, consumer, copy_id):
        reader, writer = open_source(source.url), open_target(lab.url)
        tasks = [CopyTask("", t.name, t, TargetName("", t.name)) for t in reader.tables()]
        done = {p.task.table.name: p for p in copy_tables(tasks, reader, writer, copy_id=copy_id, consumer=consumer, workers=2)}
        writer.close()
        reader.close()
        return successful(done)

    table(source)
    run(one, "one", "c1")
    run(two, "two", "c1")
    for number in range(3):
        source.execute(f"update t set v = '{number}' where id = {number + 1}", f"delete from t where id = {number + 50}")
        assert run(one, "one", f"c{number}") == {"t": "incremental"}

    assert run(two, "two", "c9") == {"t": "incremental"}
    assert one.rows("t") == two.rows("t") == source.rows("t")


def test_a_run_over_some_tables_keeps_what_the_others_still_need(source, target):
    table(source)
    table(source, "other")
    migrate(source.url, target.url, "c1")
    for number in range(3):
        source.execute(f"update t set v = 'x{number}'", f"update other set v = 'x{number}' where id < 10")
        assert successful(migrate(source.url, target.url, f"d{number}", only={"t"})) == {"t": "incremental"}

    assert successful(migrate(source.url, target.url, "c2")) == {"t": "unchanged", "other": "incremental"}
    assert source.rows("other") == target.rows("other")


def test_the_feed_forgets_what_is_confirmed(source, target):
    table(source)
    for number in range(4):
        successful(migrate(source.url, target.url, f"c{number}"))
        source.execute("update t set v = v || 'x'")
    successful(migrate(source.url, target.url, "c9"))

    if source.feed == "slot":
        [(waiting,)] = source.fetch("select count(*) from pg_replication_slots s, pg_logical_slot_peek_binary_changes(s.slot_name, null,"
                                    " null, 'proto_version', '1', 'publication_names', slot_name) where database = current_database()")
    else:
        [(waiting,)] = source.fetch("select count(*) from _skylift.log")
    assert waiting <= 100
    assert source.fetch("select count(*) from _skylift.tokens")[0][0] <= 2


def test_a_renamed_key_column_breaks_no_application_and_is_told(source, target):
    table(source)
    migrate(source.url, target.url, "c1")
    source.execute("alter table t rename column id to number", "update t set v = 'x' where number = 1", "insert into t values (500, 'y')")

    error = migrate(source.url, target.url, "c2")["t"].error

    assert "added ['number']" in str(error) and "removed ['id']" in str(error)
    successful(migrate(source.url, target.url, "c3", full=True))
    source.execute("update t set v = 'z' where number = 2")
    assert successful(migrate(source.url, target.url, "c4")) == {"t": "incremental"}
    assert source.rows("t") == target.rows("t")


def test_2000_changed_keys_of_two_columns_in_several_queries(source, target, monkeypatch):
    monkeypatch.setattr("skylift.connectors.postgres_feeds.KEYS_PER_QUERY", 300)
    source.execute("create table t (a text, b int, v int, primary key (a, b))", insert("t", [(f"k{i % 7}", i, 0) for i in range(5_000)]))
    migrate(source.url, target.url, "c1")
    source.execute("update t set v = 1 where b % 3 = 0", "delete from t where b % 11 = 0")

    results = migrate(source.url, target.url, "c2")

    assert successful(results) == {"t": "incremental"} and results["t"].deleted == 455
    assert source.rows("t") == target.rows("t")
