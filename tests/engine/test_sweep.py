"""Sources that cannot tell what changed, or not what was deleted. The judge reads both databases with their own drivers."""

from contextlib import contextmanager
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skylift.connectors import SWEEP, open_source, open_target
from skylift.engine.pool import copy_tables
from skylift.model import CopyTask, KeyRange, TargetName, Watermark
from tests.connectors.labs import DuckDBLab, SqliteLab
from tests.connectors.test_conformance import ITEM, KEY, insert, simple, successful


class Feedless:
    """A source that can tell nothing of what changed."""

    def __init__(self, source):
        self._source = source

    def __getattr__(self, name):
        return getattr(self._source, name)

    def track(self, tables, consumer):
        return {table.path: Watermark(SWEEP, 1, "") for table in tables}

    def changed(self, since):
        return set()

    def usable(self, table, since):
        raise AssertionError("a sweep asks no feed")

    def confirm(self, consumer, positions):
        pass


class DeletesUnseen(Feedless):
    """A source whose feed knows rows that were inserted or updated, as a rowversion column does, but no deletes."""

    def track(self, tables, consumer):
        return self._source.track(tables, consumer)

    def changed(self, since):
        return self._source.changed(since)

    def usable(self, table, since):
        return self._source.usable(table, since)

    @contextmanager
    def changes(self, table, since):
        keys_only = replace(table, schema=pa.schema([table.schema.field(k) for k in table.key]), source_types=tuple(
            table.source_types[table.schema.get_field_index(k)] for k in table.key))
        with self._source.changes(table, since) as honest:
            there = pa.Table.from_batches(self._source.read(keys_only, KeyRange()), keys_only.schema)
            keys = honest.keys.join(there, list(table.key), join_type="inner") if len(honest.keys) else honest.keys
            yield replace(honest, keys=keys.select(list(table.key)), rows_now=len(there), keys_now=lambda: iter_all(there))


def iter_all(table):
    yield from table.to_batches()


def migrate(kind, source, target, copy_id):
    reader, writer = kind(open_source(source.url)), open_target(target.url)
    try:
        tasks = [CopyTask("", t.name, t, TargetName("", t.name)) for t in reader.tables()]
        return {p.task.table.name: p for p in copy_tables(tasks, reader, writer, copy_id=copy_id, consumer="tests", workers=2)}
    finally:
        writer.close()
        reader.close()


@pytest.mark.parametrize("kind", [Feedless, DeletesUnseen])
def test_inserts_updates_deletes_and_key_changes_arrive_without_a_feed_that_tells_them(kind, source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 3_000)), source.ddl("still", ITEM, KEY), insert("still", simple(0, 5)))
    migrate(kind, source, target, "c1")
    source.execute("delete from t where line between 100 and 119", "update t set name = 'new' where line between 20 and 24",
                   "update t set no = 'moved' where line = 30", insert("t", simple(3_000, 7)))

    results = migrate(kind, source, target, "c2")

    assert successful(results) == {"t": "incremental", "still": "unchanged"}
    assert (results["t"].inserted, results["t"].updated, results["t"].deleted) == (8, 5, 21)
    assert target.rows("t") == source.rows("t")


def test_a_sweep_of_a_table_that_is_mostly_different_gives_way_to_a_full_copy_and_says_so(source, target, monkeypatch):
    monkeypatch.setattr("skylift.engine.copy.SWEPT_ROWS", 10)
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 300)))
    migrate(Feedless, source, target, "c1")
    source.execute("update t set name = 'other'")

    results = migrate(Feedless, source, target, "c2")

    assert successful(results) == {"t": "full"} and "more than a sweep is worth" in results["t"].reason
    assert target.rows("t") == source.rows("t")


def test_a_table_without_key_and_feed_is_copied_whole_every_time(source, target):
    source.execute(source.ddl("t", {"a": "text"}), insert("t", [("x",), ("x",)]))
    migrate(Feedless, source, target, "c1")
    source.execute("delete from t where rowid = 1")

    results = migrate(Feedless, source, target, "c2")

    assert successful(results) == {"t": "full"} and "no primary key" in results["t"].reason
    assert target.rows("t") == source.rows("t")


STEP = st.tuples(st.sampled_from(["put", "del", "move", "run"]), st.integers(0, 30), st.integers(0, 30))


@pytest.mark.parametrize("kind", [Feedless, DeletesUnseen])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=25))
def test_whatever_happens_between_sweeps_target_equals_source_after_each(kind, tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("random")
    source, target = SqliteLab(folder), DuckDBLab(folder)
    source.execute(source.ddl("t", {"id": "int", "v": "int"}, ("id",)))
    for number, (verb, a, b) in enumerate([*steps, ("run", 0, 0)]):
        match verb:
            case "put":
                source.execute(("insert or replace into t values (?, ?)", [(a, b)]))
            case "del":
                source.execute(("delete from t where id = ?", [(a,)]))
            case "move":
                source.execute(("update or replace t set id = ? where id = ?", [(b, a)]))
            case "run":
                successful(migrate(kind, source, target, f"c{number}"))
                assert target.rows("t") == source.rows("t")
