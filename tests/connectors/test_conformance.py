"""What every pair of source and target does alike. Judges: the databases' own drivers, not skylift's."""

import itertools
import random
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skylift.connectors import open_source, open_target
from skylift.engine.pool import copy_tables
from skylift.errors import NotVerified, SchemaChanged
from skylift.model import ARROW, CopyTask, KeyRange, TargetName
from skylift.runs import TableStatus
from tests.connectors.labs import OTHER_FEEDS, OTHER_PLACES, SOURCES, TARGETS, Altering, migrate, quote

ITEM = {
    "no": "text",
    "line": "int",
    "amount": "decimal",
    "at": "datetime",
    "name": "text",
    "note": "note",
    "data": "blob",
    "ratio": "double",
}
KEY = ("no", "line")

EDGES = {
    "amount": [
        "0.00000000000000000000",
        "123456789012345678.12345678901234567891",
        "-999999999999999999.99999999999999999999",
        "0.00000000000000000001",
        "-0.00000000000000000001",
        None,
    ],
    "at": ["1753-01-01 00:00:00.000", "0001-01-01 00:00:00.000", "9999-12-31 23:59:59.997", "2026-02-28 12:00:00.003", None],
    "name": ["", " ", "Ä€😀 \u202e ‰", "nul \0 inside", "'; drop table x; --", "x" * 100, None],
    "note": ["y" * 70_000, "", "z" * 300_000, "😀" * 30_000, None],
    "data": [b"", b"\0", bytes(range(256)), b"\xff" * 65_536, b"\x01" * 65_537, b"b" * 2_000_000, None],
    "ratio": [0.1 + 0.2, -0.0, 5e-324, 1.7976931348623157e308, float("inf"), 1e22, None],
}


def edge_rows(*labs):
    """Decimals and times as text: every database takes them so. What one of the labs lacks is left out."""
    for i, (column, value) in enumerate((c, v) for c, values in EDGES.items() for v in values if not any(lab.lacks(v) for lab in labs)):
        row = {"no": f"É{i % 3}", "line": i, **{c: values[0] for c, values in EDGES.items()}, "note": "", "data": b"", column: value}
        yield tuple(row[c] for c in ITEM)


def insert(name, rows):
    rows = list(rows)
    return f"insert into {quote(name)} values ({','.join('?' * len(rows[0]))})", rows


def simple(first, count):
    return [(f"N{i:06}", i, f"{i}.{i:020}", "2026-01-01 00:00:00.000", f"name {i}", None, None, i / 7) for i in range(first, first + count)]


def successful(results):
    assert {name: str(p.error) for name, p in results.items() if p.error} == {}
    return {name: p.mode for name, p in results.items() if p.status is TableStatus.SUCCESSFUL}


def test_every_boundary_value_arrives_as_it_was(source, target):
    name = source.spelt('G/L "Entry"%[1]')
    source.execute(source.ddl(name, ITEM, KEY), insert(name, edge_rows(source, target)))

    results = migrate(source.url, target.url, "c1")

    assert successful(results) == {name: "full"}
    assert target.rows(name) == source.rows(name)


def test_tables_without_rows_without_key_and_with_200_columns_arrive(source, target):
    wide = {f"c{i}": "int" for i in range(200)}
    source.execute(
        source.ddl("empty", ITEM, KEY),
        source.ddl("keyless", {"a": "text", "b": "int"}),
        source.ddl("wide", wide, ("c0",)),
        insert("keyless", [("twin", 1), ("twin", 1), (None, None)]),
        insert("wide", [tuple(range(i, i + 200)) for i in range(50)]),
    )

    successful(migrate(source.url, target.url, "c1"))

    for name in ("empty", "keyless", "wide"):
        assert target.rows(name) == source.rows(name)
    assert target.rows("keyless").total() == 3


def test_a_large_table_is_copied_in_chunks_that_cover_every_key_once(source, target):
    keys = random.Random(5).sample(range(-(10**12), 10**12), 7_000)
    source.execute(
        source.ddl("sparse", {"id": "int", "v": "text"}, ("id",)),
        insert("sparse", [(k, f"v{k}") for k in keys]),
        source.ddl("textual", ITEM, KEY),
        insert("textual", simple(0, 7_000)),
        source.ddl("dense", {"id": "int", "v": "text"}, ("id",)),
        insert("dense", [(k, "") for k in range(1, 7_001)]),
    )

    successful(migrate(source.url, target.url, "c1", chunk_rows=1000))

    for name in ("sparse", "textual", "dense"):
        assert target.rows(name) == source.rows(name)
    assert not any(name.startswith("_skylift_new") for name in target.names())


@pytest.mark.parametrize("kind", sorted(SOURCES))
def test_split_ranges_are_a_partition_of_all_keys(tmp_path_factory, kind):
    texts = st.text("aB0Ä\0 ", max_size=3)

    @settings(max_examples=2 * SOURCES[kind].examples, deadline=None)
    @given(keys=st.sets(st.tuples(texts, st.integers(-5, 5)), min_size=1, max_size=60), rows=st.integers(1, 20))
    def check(keys, rows):
        lab = SOURCES[kind](tmp_path_factory.mktemp("split"))
        keys = {(lab.same_key(a), b): (a, b) for a, b in keys if not lab.lacks(a)}.values()
        lab.execute(lab.ddl("t", {"a": "text", "b": "int"}, ("a", "b")), insert("t", keys) if keys else "select 1")
        source = open_source(lab.url)
        [table] = source.tables()
        table = source.measure(replace(table, format=ARROW))

        batches = [batch for range_ in source.split(table, rows, 10**9) for batch in source.read(table, range_)]
        source.close()

        assert sorted(tuple(row.values()) for batch in batches for row in batch.to_pylist()) == sorted(keys)

    check()


def test_an_incremental_run_moves_inserts_updates_deletes_and_key_changes_only(source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 500)), source.ddl("still", ITEM, KEY), insert("still", simple(0, 5)))
    migrate(source.url, target.url, "c1")
    source.execute(
        "delete from t where line < 10",
        "update t set name = 'new' where line between 20 and 24",
        "update t set no = 'moved' where line = 30",
        insert("t", simple(500, 7)),
    )

    results = migrate(source.url, target.url, "c2")

    assert successful(results) == {"t": "incremental", "still": "unchanged"}
    assert (results["t"].inserted, results["t"].updated, results["t"].deleted) == (8, 5, 11)
    assert target.rows("t") == source.rows("t")


def test_a_rolled_back_change_and_an_emptied_table_are_seen_for_what_they_are(source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 50)))
    migrate(source.url, target.url, "c1")
    with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        source.execute("update t set name = 'never'", insert("t", simple(0, 1)))
    assert successful(migrate(source.url, target.url, "c2")) == {"t": "unchanged"}

    source.execute("delete from t")

    assert migrate(source.url, target.url, "c3")["t"].deleted == 50
    assert target.rows("t").total() == 0


def test_a_keyless_table_is_copied_again_only_when_it_was_touched(source, target):
    source.execute(source.ddl("t", {"a": "text"}), insert("t", [("x",), ("x",)]))
    assert successful(migrate(source.url, target.url, "c1")) == {"t": "full"}
    assert successful(migrate(source.url, target.url, "c2")) == {"t": "unchanged" if source.fed else "full"}
    source.execute(insert("t", [("y",)]), "delete from t where a = 'x'")

    results = migrate(source.url, target.url, "c3")

    assert successful(results) == {"t": "full"} and "primary key" in results["t"].reason
    assert target.rows("t") == source.rows("t")


def test_changed_columns_are_an_error_until_a_full_copy_is_asked_for(source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 10)))
    migrate(source.url, target.url, "c1")
    source.execute("alter table t add column extra integer", "alter table t drop column ratio")

    error = migrate(source.url, target.url, "c2")["t"].error

    assert isinstance(error, SchemaChanged) and "added ['extra']" in str(error) and "removed ['ratio']" in str(error)
    successful(migrate(source.url, target.url, "c3", full=True))
    assert target.rows("t") == source.rows("t")


def test_a_target_that_loses_or_alters_a_row_is_found_out(source, target):
    """Fault injection: the driver drops the last row of a batch, then swaps two values."""
    def altered(batch):
        values = batch.column(batch.num_columns - 1).to_pylist()
        if batch.num_columns == 1:                 # whole rows in their native form: the last byte of one
            values[0] = values[0][:-1] + b"\1"
        else:
            values[:2] = values[1::-1]
        return batch.set_column(batch.num_columns - 1, batch.schema.field(batch.num_columns - 1), pa.array(values, batch.schema.types[-1]))

    faults = {"lost": lambda b: b.slice(0, b.num_rows - 1), "altered": altered}
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 10)))
    for name, fault in faults.items():

        error = migrate(source.url, target.url, name, through=lambda target, fault=fault: Altering(target, fault))["t"].error

        assert isinstance(error, NotVerified), name
        assert "t" not in target.names()


CELL = st.one_of(st.none(), st.text(max_size=5).filter(lambda s: s.isprintable()))
STEP = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 15), CELL),
    st.tuples(st.just("del"), st.integers(0, 15), st.none()),
    st.tuples(st.just("move"), st.integers(0, 15), st.integers(0, 15)),
    st.tuples(st.just("run"), st.booleans(), st.none()),
    st.tuples(st.just("wipe"), st.none(), st.none()),
)


@pytest.mark.parametrize("source_kind, target_kind", [*itertools.product(sorted(SOURCES | OTHER_FEEDS), sorted(TARGETS)),
                                                      *itertools.product(["sqlite"], sorted(OTHER_PLACES))])
def test_whatever_happens_between_runs_target_equals_source_after_each(tmp_path_factory, source_kind, target_kind):

    labs = (SOURCES | OTHER_FEEDS)[source_kind], (TARGETS | OTHER_PLACES)[target_kind]

    @settings(max_examples=min(lab.examples for lab in labs), deadline=None)
    @given(steps=st.lists(STEP, max_size=25))
    def check(steps):
        folder = tmp_path_factory.mktemp("random")
        source, target = (lab(folder) for lab in labs)
        source.execute(source.ddl("t", {"id": "int", "v": "text", "u": "int"}, ("id",)), "create unique index u on t (u)")
        for number, (verb, a, b) in enumerate([*steps, ("run", False, None)]):
            match verb:
                case "put":  # over a second unique index
                    source.execute(source.put("t", ("id",), (a, b, (a * 7) % 5)))
                case "del":
                    source.execute(("delete from t where id = ?", [(a,)]))
                case "move":
                    source.execute(("delete from t where id = ?", [(b,)] if a != b else []),
                                   ("update t set id = ? where id = ?", [(b, a)]))
                case "wipe":
                    source.execute("delete from t")
                case "run":
                    successful(migrate(source.url, target.url, f"c{number}", full=a))
                    assert target.rows("t") == source.rows("t")

    check()


def test_one_source_table_fills_several_targets_each_from_its_own_watermark(source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 9)))

    def run(copy_id, *names):
        reader, writer = open_source(source.url), open_target(target.url)
        tasks = [CopyTask("", name, t, TargetName("", name)) for t in reader.tables() for name in names]
        done = list(copy_tables(tasks, reader, writer, copy_id=copy_id, consumer="tests", workers=2))
        writer.close()
        reader.close()
        return {p.task.table_name: p for p in done}

    run("c1", "a")
    source.execute("delete from t where line < 3")
    run("c2", "a", "b")
    source.execute("update t set name = 'new' where line > 6")
    results = run("c3", "a", "b")

    assert successful(results) == {"a": "incremental", "b": "incremental"}
    assert target.rows("a") == target.rows("b") == source.rows("t")


def test_key_range_of_nothing_reads_everything(source):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 10)))
    reader = open_source(source.url)
    [table] = reader.tables()

    assert sum(batch.num_rows for batch in reader.read(table, KeyRange())) == 10
    reader.close()
