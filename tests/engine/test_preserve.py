"""Preserved tables: whatever the target holds stays, and what it lacks is added. The judge reads both with their own drivers."""

import duckdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skylift.connectors import open_source, open_target
from skylift.engine.pool import copy_tables
from skylift.engine.preserve import HashSet
from skylift.engine.verify import compare_tables
from skylift.errors import NotVerified, SchemaChanged
from skylift.model import CopyTask, TargetName
from skylift.runs import TableStatus
from tests.connectors.labs import Altering, DuckDBLab, SqliteLab
from tests.engine.test_sweep import Feedless

T = {"id": "int", "v": "text"}
CREATE = 'create table t (id bigint not null, v varchar)'


def tasks_of(reader, full=False):
    return [CopyTask("", t.name, t, TargetName("", t.name), full, preserve=True) for t in reader.tables()]


def migrate(source, target, copy_id="c", *, kind=lambda source: source, through=lambda target: target, full=False):
    reader, writer = kind(open_source(source.url)), through(open_target(target.url))
    try:
        tasks = tasks_of(reader, full)
        return {p.task.table.name: p for p in copy_tables(tasks, reader, writer, copy_id=copy_id, consumer="tests", workers=2)}["t"]
    finally:
        writer.close()
        reader.close()


def fill(source, rows, key=("id",)):
    source.execute(source.ddl("t", T, key), *([("insert into t values (?, ?)", rows)] if rows else []))


def edit(target, *statements):
    with duckdb.connect(str(target.path)) as connection:
        for statement in statements:
            connection.execute(statement)


def rows(target):
    with duckdb.connect(str(target.path)) as connection:
        return dict(connection.execute("select id, v from t").fetchall())


def test_a_table_that_the_target_had_before_keeps_its_rows_and_gets_those_it_lacks(source, target):
    fill(source, [(n, f"source {n}") for n in range(100)])
    edit(target, CREATE, "insert into t select range, 'target ' || range from range(90, 120)", "insert into t values (5, 'source 5')")

    done = migrate(source, target)

    assert (done.status, done.error, done.mode, done.reason) == (TableStatus.SUCCESSFUL, None, "full", "first copy")
    assert (done.inserted, done.updated, done.deleted, done.kept, done.orphans, done.total_rows) == (89, 0, 0, 10, 20, 100)
    assert done.digest.rows == 120
    assert rows(target) == {n: f"source {n}" if n < 90 else f"target {n}" for n in range(120)}


def test_later_runs_add_what_is_new_and_apply_no_update_and_no_delete(source, target):
    fill(source, [(n, "a") for n in range(50)])
    first = migrate(source, target, "c1")
    edit(target, "update t set v = 'theirs' where id = 7", "insert into t values (500, 'theirs')")
    source.execute("update t set v = 'b' where id < 10", "delete from t where id >= 45", "insert into t values (60, 'new')")

    second = migrate(source, target, "c2")
    third = migrate(source, target, "c3")

    assert (first.mode, second.mode, third.mode) == ("full", "incremental", "unchanged")
    assert (second.inserted, second.kept, second.orphans) == (1, 10, 5)
    expected = dict.fromkeys(range(50), "a") | {7: "theirs", 500: "theirs", 60: "new"}
    assert rows(target) == expected

    whole = migrate(source, target, "c4", full=True)
    assert (whole.mode, whole.inserted, whole.kept, whole.orphans) == ("full", 0, 10, 6)
    assert rows(target) == expected


@pytest.mark.parametrize("pass_rows", [20, 10**9])
def test_whatever_the_sizes_of_passes_and_chunks_the_same_is_added(source, target, monkeypatch, pass_rows):
    monkeypatch.setattr("skylift.engine.preserve.PASS_ROWS", pass_rows)
    monkeypatch.setattr("skylift.connectors.duckdb.DuckDBTarget.chunk_rows", 7)
    fill(source, [(n, "a") for n in range(100)])
    edit(target, CREATE, "insert into t select range * 3, 'b' from range(60)")

    done = migrate(source, target)

    assert (done.inserted, done.kept, done.orphans) == (66, 34, 26)
    assert rows(target) == dict.fromkeys(range(100), "a") | {n * 3: "b" for n in range(60)}


def test_a_table_without_a_primary_key_cannot_be_preserved_once_it_has_rows(source, target):
    fill(source, [(1, "a")], key=())
    edit(target, CREATE, "insert into t values (9, 'theirs')")

    done = migrate(source, target)

    assert done.status is TableStatus.FAILED and "no primary key" in done.error.message and "--replace" in done.error.hint
    assert rows(target) == {9: "theirs"}


@pytest.mark.parametrize(("ddl", "insert"), [
    ("create table t (id bigint)", "values (9)"),
    ("create table t (id varchar, v varchar)", "values ('x', 'theirs')"),
    ("create table t (v varchar, id bigint)", "values ('theirs', 9)"),
    ("create table t (id bigint, v varchar, w int)", "values (9, 'theirs', 1)"),
])
def test_a_table_with_other_columns_fails_by_name_and_stays_as_it_is(source, target, ddl, insert):
    fill(source, [(1, "a"), (2, "b")])
    edit(target, ddl, f"insert into t {insert}")
    before = target.rows("t")

    done = migrate(source, target)

    assert done.status is TableStatus.FAILED and "t" in done.error.message
    assert target.rows("t") == before


def test_columns_that_change_in_the_source_are_told_and_nothing_is_replaced(source, target):
    fill(source, [(1, "a")])
    migrate(source, target, "c1")
    edit(target, "insert into t values (9, 'theirs')")
    source.execute("alter table t add column w integer")

    for full in (False, True):
        done = migrate(source, target, "c2", full=full)
        assert isinstance(done.error, SchemaChanged) and "--replace" in done.error.hint
    assert rows(target) == {1: "a", 9: "theirs"}


def test_a_row_that_does_not_arrive_as_it_was_fails_the_table_and_adds_nothing(source, target):
    fill(source, [(n, "a") for n in range(20)])
    edit(target, CREATE, "insert into t values (9, 'theirs')")

    def cut(batch):
        return batch.set_column(1, "v", batch.column(1).fill_null("").take(np.zeros(batch.num_rows, int))) if batch.num_rows else batch

    done = migrate(source, target, through=lambda target: Altering(target, lambda batch: cut(batch).slice(1)))

    assert isinstance(done.error, NotVerified)
    assert rows(target) == {9: "theirs"}


def test_a_table_that_somebody_makes_while_its_first_copy_is_under_way_is_not_replaced(source, target, monkeypatch):
    monkeypatch.setattr("skylift.connectors.duckdb.DuckDBTarget.chunk_rows", 10)
    fill(source, [(n, "a") for n in range(40)])
    reader, writer = open_source(source.url), open_target(target.url)
    results = []
    for progress in copy_tables(tasks_of(reader), reader, writer, copy_id="c", consumer="tests", workers=1):
        if progress.status is TableStatus.IN_PROGRESS and not results:
            writer._cursor().execute(CREATE + "; insert into t values (9, 'theirs')")
        results.append(progress)
    writer.close()

    assert results[-1].status is TableStatus.FAILED and "somebody has made the table t" in results[-1].error.message
    assert rows(target) == {9: "theirs"}
    assert migrate(source, target, "c2").inserted == 39
    assert rows(target) == dict.fromkeys(range(40), "a") | {9: "theirs"}


def test_verify_asks_that_nothing_is_missing_and_reports_the_rest(source, target):
    fill(source, [(n, "a") for n in range(30)])
    migrate(source, target)
    edit(target, "update t set v = 'theirs' where id < 3", "insert into t values (99, 'theirs')")

    def verify():
        reader, writer = open_source(source.url), open_target(target.url)
        [found] = compare_tables(tasks_of(reader), reader, writer, writer.states())
        writer.close()
        return found

    found = verify()
    assert found.equal and found.note == "preserved: 1 rows are in the target only and 3 rows are other ones than the source's"
    edit(target, "delete from t where id in (20, 21)")
    found = verify()
    assert not found.equal and sorted(found.missing) == ["(20,)", "(21,)"]


STEP = st.tuples(st.sampled_from(["put", "del", "their put", "their del", "run", "full"]), st.integers(0, 12), st.integers(0, 3))


@pytest.mark.parametrize("kind", [Feedless, lambda source: source], ids=["without feed", "with feed"])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=20), made=st.booleans())
def test_whatever_both_sides_do_the_target_is_what_it_was_and_what_it_lacked(kind, tmp_path_factory, steps, made):
    folder = tmp_path_factory.mktemp("random")
    source, target = SqliteLab(folder), DuckDBLab(folder)
    fill(source, [])
    here, there, touched, exists = {}, {}, set(), made
    if made:
        edit(target, CREATE)
    for number, (verb, n, v) in enumerate([*steps, ("run", 0, 0)]):
        match verb:
            case "put":
                source.execute(("insert or replace into t values (?, ?)", [(n, f"s{v}")]))
                here[n] = f"s{v}"
                touched.add(n)
            case "del":
                source.execute(("delete from t where id = ?", [(n,)]))
                here.pop(n, None)
                touched.add(n)
            case "their put" if exists:
                edit(target, f"delete from t where id = {n}", f"insert into t values ({n}, 't{v}')")
                there[n] = f"t{v}"
            case "their del" if exists:
                edit(target, f"delete from t where id = {n}")
                there.pop(n, None)
            case "run" | "full":
                done = migrate(source, target, f"c{number}", kind=kind, full=verb == "full")
                assert done.status is TableStatus.SUCCESSFUL, done.error
                looked_at = touched if done.mode == "incremental" else set() if done.mode == "unchanged" else here.keys()
                lacking = {k: here[k] for k in looked_at if k in here and k not in there}
                assert done.inserted in (len(lacking), 0 if not exists else len(lacking))     # a first copy inserts nothing apart
                there |= lacking
                touched.clear()
                exists = True
                assert rows(target) == there


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**64 - 1))), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3))))
def test_hashes_are_found_by_both_lanes(inside, asked):
    lanes = [np.array([pair[i] for pair in inside], np.uint64) for i in (0, 1)]
    asked += inside[::2]
    found, sought = HashSet(*lanes), [np.array([pair[i] for pair in asked], np.uint64) for i in (0, 1)]

    assert found.distinct == len(set(inside))
    assert found.has(*sought).tolist() == [pair in set(inside) for pair in asked]
