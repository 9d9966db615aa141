"""The change log of MySQL and MariaDB: whatever writers do, and in whatever order they commit, nothing is missed."""

import random
import threading
from contextlib import closing

import MySQLdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skylift.connectors import open_source
from tests.connectors.labs import DuckDBLab, MySqlLab, migrate
from tests.connectors.test_conformance import ITEM, KEY, insert, simple, successful


@pytest.fixture
def source(tmp_path):
    return MySqlLab(tmp_path)


@pytest.fixture
def target(tmp_path):
    return DuckDBLab(tmp_path)


def logged(source):
    return [name for (name,) in source.fetch("select table_name from information_schema.tables where table_schema = database()"
                                             " and table_name like '_skylift%' union all select trigger_name from"
                                             " information_schema.triggers where trigger_schema = database()")]


def test_a_transaction_that_wrote_first_and_commits_last_is_not_missed(source, target):
    source.execute("create table t (id int primary key, v int)", "insert into t values (1, 0), (2, 0), (3, 0)")
    migrate(source.url, target.url, "c1")
    with closing(source.connect()) as early:
        early.cursor().execute("update t set v = 1 where id = 1")
        source.execute("update t set v = 2 where id = 2")

        assert successful(migrate(source.url, target.url, "c2")) == {"t": "incremental"}
        early.commit()

    results = migrate(source.url, target.url, "c3")

    assert successful(results) == {"t": "incremental"} and results["t"].updated == 1
    assert target.rows("t") == source.rows("t")
    assert successful(migrate(source.url, target.url, "c4")) == {"t": "unchanged"}


def test_a_transaction_that_is_open_while_the_table_is_copied_arrives_with_the_next_run(source, target):
    source.execute("create table t (id int primary key, v int)", "insert into t values (1, 0)", "create table other (id int primary key)")
    migrate(source.url, target.url, "c0", only={"other"})
    reader = open_source(source.url)
    reader.track(reader.tables(), "tests")       # the triggers are there, nothing has been copied
    reader.close()
    with closing(source.connect()) as writer:
        writer.cursor().execute("insert into t values (2, 0)")
        assert migrate(source.url, target.url, "c1")["t"].rows == 1
        writer.commit()

    assert successful(migrate(source.url, target.url, "c2"))["t"] == "incremental"
    assert target.rows("t") == source.rows("t")


def test_two_readers_at_once_each_get_every_change(source, tmp_path):
    """What one environment has seen and stamped is no other's business."""
    targets = {name: DuckDBLab(tmp_path / name) for name in ("a", "b")}
    source.execute("create table t (id int primary key, v int)", insert("t", [(i, 0) for i in range(100)]))

    def run(name, copy_id):
        from skylift.connectors import open_target
        from skylift.engine.pool import copy_tables
        from skylift.model import CopyTask, TargetName
        reader, writer = open_source(source.url), open_target(targets[name].url)
        tasks = [CopyTask("", t.name, t, TargetName("", t.name)) for t in reader.tables()]
        done = list(copy_tables(tasks, reader, writer, copy_id=copy_id, consumer=name, workers=2))
        writer.close()
        reader.close()
        return done[-1]

    for name in targets:
        run(name, "c1")
    for number in range(4):
        source.execute(f"update t set v = {number + 1} where id % 4 = {number}")
        readers = [threading.Thread(target=run, args=(name, f"c{number + 2}")) for name in list(targets)[:1 + number % 2]]
        for thread in readers:
            thread.start()
        for thread in readers:
            thread.join()
    modes = {run(name, "last").mode for name in targets}

    assert modes <= {"incremental", "unchanged"}
    assert targets["a"].rows("t") == targets["b"].rows("t") == source.rows("t")
    assert source.fetch("select count(*) from _skylift_log") == [(0,)]


@pytest.mark.slow
def test_writers_that_overlap_and_roll_back_while_runs_are_made_leave_nothing_behind(source, target):
    """Four writers with transactions of any length; runs are made all the time. When the writers rest, one run makes both sides equal."""
    source.execute("create table t (id int primary key, v varchar(20) not null, u int, unique (u))",
                   insert("t", [(i, "", i) for i in range(400)]), "create table k (a varchar(10) primary key, n int)")
    migrate(source.url, target.url, "first")
    resting, writing, faults = threading.Event(), [], []

    def write(seed):
        chance = random.Random(seed)
        with closing(source.connect()) as connection:
            cursor = connection.cursor()
            cursor.execute("set innodb_lock_wait_timeout = 1")
            while not resting.is_set():
                try:
                    for _ in range(chance.randrange(1, 6)):
                        n, m = chance.randrange(600), chance.randrange(600)
                        cursor.execute(*chance.choice([
                            ("replace into t values (%s, %s, %s)", (n, f"w{seed}", m)), ("delete from t where id = %s", (n,)),
                            ("update t set v = %s where id between %s and %s", (f"u{m}", n, n + 5)),
                            ("update t set id = %s where id = %s", (m, n)),
                            ("insert into t values (%s, '', %s) on duplicate key update v = 'dup'", (n, m)),
                            ("insert into k values (%s, 1) on duplicate key update n = n + 1", (f"K{n % 9}",)),
                            ("delete from k where a = %s", (f"K{n % 9}",))]))
                        if chance.random() < 0.3:
                            threading.Event().wait(chance.random() / 20)
                    connection.rollback() if chance.random() < 0.2 else connection.commit()
                except (MySQLdb.OperationalError, MySQLdb.IntegrityError):     # deadlocks and duplicates are part of it
                    connection.rollback()
                except Exception as error:
                    faults.append(error)
                    return

    for seed in range(4):
        writing.append(threading.Thread(target=write, args=(seed,)))
        writing[-1].start()
    modes = set()
    for number in range(25):
        modes |= set(successful(migrate(source.url, target.url, f"c{number}")).values())
    resting.set()
    for thread in writing:
        thread.join()
    modes |= set(successful(migrate(source.url, target.url, "last")).values())

    assert not faults and modes <= {"incremental", "unchanged"}
    assert target.rows("t") == source.rows("t") and target.rows("k") == source.rows("k")


def test_truncate_is_seen_although_no_trigger_fires(source, target):
    source.execute(*(f"create table {name} (id int primary key, v int)" for name in ("gone", "refilled", "same", "empty")),
                   *(insert(name, [(i, i) for i in range(50)]) for name in ("gone", "refilled", "same")))
    migrate(source.url, target.url, "c1")
    source.execute("truncate gone", "truncate refilled", insert("refilled", [(i, i) for i in range(25, 75)]),
                   "truncate same", insert("same", [(i, -i) for i in range(50)]))

    results = migrate(source.url, target.url, "c2")

    assert successful(results)["empty"] == "unchanged"
    assert (results["refilled"].deleted, results["gone"].deleted) == (25, 50)
    for name in ("gone", "refilled", "same"):
        assert target.rows(name) == source.rows(name)
    assert set(successful(migrate(source.url, target.url, "c3")).values()) == {"unchanged"}


def test_a_table_that_is_truncated_while_it_is_copied_arrives_as_it_ends(source, target, monkeypatch):
    from skylift.connectors.mysql import MySqlSource
    source.execute("create table t (id int primary key)", insert("t", [(i,) for i in range(50)]))
    honest = MySqlSource.read

    def read_then_truncate(self, table, keys):
        yield from honest(self, table, keys)
        source.execute("truncate t")

    monkeypatch.setattr(MySqlSource, "read", read_then_truncate)
    successful(migrate(source.url, target.url, "c1"))

    assert target.rows("t").total() == 0


def test_children_of_cascading_foreign_keys_are_compared_and_say_why(source, target):
    source.execute(
        "create table parent (id int primary key)", insert("parent", [(i,) for i in range(20)]),
        "create table child (id int primary key, p int references parent (id) on delete cascade on update cascade)",
        "create table orphan (id int primary key, p int, foreign key (p) references parent (id) on delete set null)",
        "create table plain (id int primary key, p int, foreign key (p) references parent (id))",
        insert("child", [(i, i % 20) for i in range(60)]), insert("orphan", [(i, i % 10) for i in range(30)]))
    assert set(successful(migrate(source.url, target.url, "c1")).values()) == {"full"}
    source.execute("delete from parent where id < 3", "update parent set id = 100 where id = 19")

    results = migrate(source.url, target.url, "c2")

    assert successful(results) == {"parent": "incremental", "child": "incremental", "orphan": "incremental", "plain": "unchanged"}
    assert "cascade" in results["child"].reason and "cascade" in results["orphan"].reason and not results["parent"].reason
    assert (results["child"].deleted, results["child"].updated, results["orphan"].updated) == (9, 3, 9)
    for name in results:
        assert target.rows(name) == source.rows(name)


@pytest.mark.parametrize(("ddl", "why"), [
    ("create table t (id int primary key, v int) engine=MyISAM", "MyISAM has no transactions"),
    ("create table t (id int primary key, v int) partition by range (id) (partition a values less than (10), partition b values less than"
     " maxvalue)", "partitioned"),
    ("create table t (id timestamp primary key, v int)", "its key has a type"),
    ("create table t (id int primary key, v int, age int as (year(curdate()) + v))", "depends on more than its row"),
])
def test_tables_whose_changes_triggers_would_not_all_see_are_compared(source, target, ddl, why):
    source.execute(ddl)
    id_of = (lambda i: f"2026-01-01 00:00:{i:02}") if "timestamp" in ddl else int
    source.execute(("insert into t (id, v) values (?, ?)", [(id_of(i), i) for i in range(30)]))
    migrate(source.url, target.url, "c1")
    source.execute("delete from t where v between 3 and 5", "update t set v = -1 where v = 20")
    if "partition" in ddl:
        source.execute("alter table t truncate partition b")

    results = migrate(source.url, target.url, "c2")

    assert successful(results) == {"t": "incremental"} and why in results["t"].reason
    columns = "count(*), min(v), max(v), sum(v)"
    assert target.fetch(f"select {columns} from t") == source.fetch(f"select {columns} from t")


def test_a_key_that_changes_only_in_case_or_blanks_is_another_key(source, target):
    source.execute("create table t (k varchar(10) character set utf8mb4 collate utf8mb4_general_ci primary key, v int)",
                   "insert into t values ('abc', 1), ('x', 2), ('é', 3)")
    migrate(source.url, target.url, "c1")
    source.execute("update t set k = 'ABC' where k = 'abc'", "update t set k = 'x ' where k = 'x'", "update t set k = 'E' where v = 3",
                   "update t set v = 9 where k = 'abc'")

    successful(migrate(source.url, target.url, "c2"))

    assert target.rows("t") == source.rows("t")


def test_keys_of_every_type_that_the_log_holds_follow_their_changes(source, target):
    types = {
        "a": ("bigint unsigned", [0, 2**64 - 1]), "b": ("decimal(20,3)", ["-1.500", "99999999999999999.999"]),
        "c": ("date", ["0001-01-01", "9999-12-31"]), "d": ("datetime(6)", ["2026-01-01 00:00:00.000001", "1000-01-01 00:00:00"]),
        "e": ("time(3)", ["00:00:00.001", "23:59:59.999"]), "f": ("year", [1901, 2155]), "g": ("binary(4)", [b"a\0\0\0", b"\0\xff\0\0"]),
        "h": ("varbinary(300)", [b"", b"\xff\0'\\"]), "i": ("char(9) character set latin1", ["é", "A"]),
        "j": ("varchar(20) character set cp1250", ["ř\\'\"%", ""]), "k": ("tinyint", [-128, 127]),
        "l": ("varchar(40) character set utf16", ["😀", "%s"]), "m": ("int zerofill", [7, 4294967295])}
    source.execute(*(f"create table {name} (k {kind} primary key, v int)" for name, (kind, _) in types.items()),
                   *(insert(name, [(key, 0) for key in keys]) for name, (_, keys) in types.items()))
    migrate(source.url, target.url, "c1")
    source.execute(*((f"update {name} set v = 1 where k = ?", [(keys[0],)]) for name, (_, keys) in types.items()),
                   *((f"delete from {name} where k = ?", [(keys[1],)]) for name, (_, keys) in types.items()))

    results = migrate(source.url, target.url, "c2")

    assert set(successful(results).values()) == {"incremental"}
    assert {name: (p.updated, p.deleted) for name, p in results.items()} == dict.fromkeys(types, (1, 1))
    for name in types.keys() - {"e"}:            # the drivers have different types for a time of day
        assert target.rows(name) == source.rows(name)
    assert [str(key) for key, _ in target.fetch("select * from e")] == ["00:00:00.001000"]


def test_replace_duplicates_loads_and_other_triggers_are_followed(source, target):
    source.execute("create table t (id int primary key, u int unique, v varchar(20))", insert("t", [(i, i, "") for i in range(10)]),
                   "create trigger upper before insert on t for each row set new.v = upper(new.v)",
                   "create table log (n int auto_increment primary key, what varchar(20))",
                   "create trigger noted after update on t for each row insert into log (what) values (new.v)")
    migrate(source.url, target.url, "c1")
    source.execute("replace into t values (1, 2, 'rep')", "insert into t values (3, 77, 'x') on duplicate key update v = 'dup', id = 30",
                   "insert into t values (40, 40, 'new')", "update t a join t b on a.id = b.id - 4 set a.v = 'joined'",
                   "delete a, b from t a join t b on a.id = b.id - 1 where a.id = 7")

    successful(migrate(source.url, target.url, "c2"))

    assert target.rows("t") == source.rows("t") and target.rows("log") == source.rows("log")
    assert source.fetch("select v from t where id = 40") == [("NEW",)]


@pytest.mark.parametrize("change", [
    ["drop table t", "create table t (id int primary key, v int)", "insert into t values (7, 7)"],
    ["create table n (id int primary key, v int)", "insert into n values (5, 5)", "rename table t to gone, n to t", "drop table gone"],
    ["drop trigger {delete}", "delete from t where id = 1"],
    ["alter table t drop column v, add column v int default 4, comment = 'the same columns with other values'"],
    ["alter table t modify v int not null"],
])
def test_a_table_that_was_recreated_renamed_or_altered_is_copied_whole_and_says_why(source, target, change):
    source.execute("create table t (id int primary key, v int)", insert("t", [(i, i) for i in range(20)]))
    migrate(source.url, target.url, "c1")
    threading.Event().wait(1.1)                  # creation times have seconds
    [trigger] = [name for name in logged(source) if "_delete_" in name]
    source.execute(*(statement.format(delete=trigger) for statement in change))

    results = migrate(source.url, target.url, "c2")

    assert successful(results) == {"t": "full"} and "recreated, altered or renamed" in results["t"].reason
    assert target.rows("t") == source.rows("t")
    source.execute("update t set v = 8")
    assert successful(migrate(source.url, target.url, "c3")) == {"t": "incremental"}


def test_a_backup_restored_from_before_the_last_copy_is_noticed(source, target):
    source.execute("create table t (id int primary key, v int)", insert("t", [(i, i) for i in range(20)]))
    migrate(source.url, target.url, "c1")
    before = source.fetch("select position, token from _skylift_tokens")
    source.execute("update t set v = 100")
    migrate(source.url, target.url, "c2")
    source.execute("update t set v = id", "delete from _skylift_log", "delete from _skylift_tokens",    # as they were in the backup
                   ("insert into _skylift_tokens values (?, ?)", before))

    results = migrate(source.url, target.url, "c3")

    assert successful(results) == {"t": "full"} and "backup" in results["t"].reason
    assert target.rows("t") == source.rows("t")


def test_untrack_leaves_the_source_as_it_was_found(source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 20)), "create trigger own after delete on t for each row set @a = 1")
    migrate(source.url, target.url, "c1")
    reader = open_source(source.url)
    reader.track(reader.tables(), "another environment")
    reader.untrack("tests")
    assert len(logged(source)) == 4 + 3 + 1
    reader.untrack("another environment")
    reader.untrack("another environment")
    reader.close()

    assert logged(source) == ["own"]
    source.execute("update t set name = 'still writable'")


def test_the_log_forgets_what_has_arrived_and_keeps_what_another_environment_has_not_read(source, target):
    source.execute("create table t (id int primary key, v int)", insert("t", [(i, i) for i in range(20)]))
    migrate(source.url, target.url, "c1")
    source.execute("update t set v = 1")
    migrate(source.url, target.url, "c2")
    assert source.fetch("select count(*) from _skylift_log") == [(0,)]
    reader = open_source(source.url)
    other = reader.track(reader.tables(), "other")
    source.execute("update t set v = 2")
    migrate(source.url, target.url, "c3")
    migrate(source.url, target.url, "c4")

    reader.track(reader.tables(), "other")
    with reader.changes(reader.tables()[0], other["t"]) as changes:
        assert len(changes.keys) == 20
    reader.close()


def test_a_table_held_by_an_open_transaction_is_compared_until_its_triggers_can_be_made(source, target, monkeypatch):
    monkeypatch.setattr("skylift.connectors.mysql_log.TRIGGER_WAIT_S", 1)
    source.execute("create table t (id int primary key)", "create table free (id int primary key)", "insert into t values (1)")
    with closing(source.connect()) as holder:
        holder.cursor().execute("insert into t values (2)")

        results = migrate(source.url, target.url, "c1")
        holder.commit()
    assert results["t"].watermark.feed == "sweep" and results["free"].watermark.feed == "change_log"

    successful(migrate(source.url, target.url, "c2"))
    assert target.rows("t") == source.rows("t")
    source.execute("insert into t values (3)")
    assert migrate(source.url, target.url, "c3")["t"].watermark.feed == "change_log"


WORD = st.sampled_from(["a", "A", "a ", "b", "Ä", "ä", "", "é", "e"])
STEP = st.one_of(
    st.tuples(st.just("put"), WORD, st.integers(0, 6)), st.tuples(st.just("del"), WORD, st.none()), st.tuples(st.just("move"), WORD, WORD),
    st.tuples(st.just("truncate"), st.none(), st.none()), st.tuples(st.just("undone"), WORD, st.integers(0, 6)),
    st.tuples(st.just("open"), WORD, st.integers(0, 6)), st.tuples(st.just("close"), st.booleans(), st.none()),
    st.tuples(st.just("run"), st.booleans(), st.none()))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=20))
def test_whatever_is_written_committed_late_undone_or_truncated_arrives(tmp_path_factory, steps):
    """Keys of a collation without case; a second transaction stays open over runs."""
    folder = tmp_path_factory.mktemp("random")
    source, target = MySqlLab(folder), DuckDBLab(folder)
    source.execute("create table t (k varchar(9) collate utf8mb4_general_ci primary key, u int unique, v int) engine=InnoDB",
                   "insert into t values ('first', 100, 0), ('second', 101, 0)")
    late = source.connect()
    late.cursor().execute("set innodb_lock_wait_timeout = 1, lock_wait_timeout = 1")

    def tried(connection, *statement):
        with closing(connection.cursor()) as cursor:
            try:
                cursor.execute(*statement)
            except (MySQLdb.OperationalError, MySQLdb.IntegrityError):
                connection.rollback()

    for number, (verb, a, b) in enumerate([*steps, ("close", True, None), ("run", False, None)]):
        with closing(source.connect()) as writer:
            tried(writer, "set innodb_lock_wait_timeout = 1, lock_wait_timeout = 1")
            match verb:
                case "put":
                    tried(writer, "replace into t values (%s, %s, %s)", (a, b, number))
                case "del":
                    tried(writer, "delete from t where k = %s", (a,))
                case "move":
                    tried(writer, "update t set k = %s where k = %s", (b, a))
                case "truncate":
                    tried(writer, "truncate t")
                case "undone":
                    tried(writer, "replace into t values (%s, %s, %s)", (a, b, number))
                    writer.rollback()
                case "open":
                    tried(late, "replace into t values (%s, %s, %s)", (a, b, number))
                case "close":
                    late.commit() if a else late.rollback()
                case "run":
                    successful(migrate(source.url, target.url, f"c{number}", full=a))
                    assert target.rows("t") == source.rows("t")
            writer.commit()
    late.close()
