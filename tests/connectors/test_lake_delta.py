"""What is particular to Delta Lake tables: other programs read them, change them, compact them. The judge is the `deltalake` package."""

import json
import shutil

import deltalake
import duckdb
import pyarrow as pa
import pytest
from deltalake import DeltaTable, TableFeatures

from skylift.connectors import lake_delta, open_source, open_target
from skylift.engine.verify import compare_tables
from skylift.errors import CopyError, TargetFailed, ValueRefused
from skylift.model import CopyTask, Table, TargetName
from tests.connectors.labs import DeltaLab, SqliteLab, migrate, plain
from tests.connectors.test_conformance import ITEM, KEY, insert, simple, successful
from tests.connectors.test_lake import EVERY_TYPE, every_type


@pytest.fixture
def source(tmp_path):
    return SqliteLab(tmp_path)


@pytest.fixture
def target(tmp_path):
    return DeltaLab(tmp_path)


def query(table: DeltaTable, sql="select * from t"):
    return pa.table(deltalake.QueryBuilder().register("t", table).execute(sql))


def as_deltalake_reads_it(table: DeltaTable):
    return plain(tuple(row.values()) for row in query(table).to_pylist())


def test_deltas_own_engine_reads_the_same_rows_after_every_run(source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 300)))
    for change in ("select 1", "update t set name = 'new' where line % 3 = 0", "delete from t where line < 200",
                   insert("t", simple(900, 5))):
        source.execute(change)
        successful(migrate(source.url, target.url, str(change)[:30], chunk_rows=100))
        assert as_deltalake_reads_it(target.table("t")) == source.rows("t")


def test_each_run_is_one_version_that_can_be_travelled_back_to(source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 30)))
    migrate(source.url, target.url, "c0")
    first = source.rows("t")
    source.execute("delete from t where line < 20", insert("t", simple(100, 3)))
    migrate(source.url, target.url, "c1")
    source.execute("alter table t add column extra integer")
    successful(migrate(source.url, target.url, "c2", full=True))

    table = target.table("t")

    assert table.version() == 2 and [field.name for field in table.schema().fields] == [*ITEM, "extra"]
    assert table.metadata().name == "t"
    table.load_as_version(0)
    assert as_deltalake_reads_it(table) == first


def test_column_names_that_spark_refuses_are_mapped_to_themselves(source, target):
    columns = {"Entry No_": "int", "Amount (LCY)": "decimal", "plain": "text"}
    source.execute(source.ddl("t", columns, ("Entry No_",)), insert("t", [(1, "1.5", "x"), (2, None, "y")]))
    successful(migrate(source.url, target.url, "c0"))

    table = target.table("t")

    assert set(table.protocol().reader_features) == {"columnMapping"}
    assert table.metadata().configuration["delta.columnMapping.mode"] == "name"
    fields = {field.name: field.metadata for field in table.schema().fields}
    assert fields["Entry No_"] == {"delta.columnMapping.id": 1, "delta.columnMapping.physicalName": "Entry No_"}
    assert as_deltalake_reads_it(table) == source.rows("t") == target.rows("t")

    source.execute('alter table t drop column "Amount (LCY)"', 'alter table t add column "New (1)" text')
    successful(migrate(source.url, target.url, "c1", full=True))
    fields = {field.name: field.metadata["delta.columnMapping.id"] for field in target.table("t").schema().fields}
    assert fields == {"Entry No_": 1, "plain": 3, "New (1)": 4}       # a number is never given to another column
    assert as_deltalake_reads_it(target.table("t")) == source.rows("t")


def test_a_table_with_plain_names_and_types_needs_no_feature(source, target):
    source.execute(source.ddl("t", {"id": "int", "v": "text"}, ("id",)), insert("t", [(1, "x")]))
    successful(migrate(source.url, target.url, "c0"))

    protocol = target.table("t").protocol()

    assert (protocol.min_reader_version, protocol.min_writer_version) == (1, 2)
    assert target.table("t").to_pyarrow_table().to_pydict() == {"id": [1], "v": ["x"]}


def test_a_table_without_rows_has_its_columns(source, target):
    source.execute(source.ddl("t", {"id": "int", "v": "text"}, ("id",)))
    successful(migrate(source.url, target.url, "c0"))
    assert target.table("t").to_pyarrow_table().schema.names == ["id", "v"] and target.files("t") == []


def test_types_that_delta_lacks_are_held_by_the_stated_rule(target):
    table, batch = every_type()
    name, opened = TargetName("", "every"), open_target(target.url)
    with opened.transaction() as t:
        t.create(name, table)
        t.insert(name, table, iter([batch]))
    opened.close()

    types = {field.name: getattr(field.type, "type", "") for field in target.table("every").schema().fields}
    rows = query(target.table("every")).to_pydict()

    assert {k: types[k] for k in ("u8", "u16", "u32", "u64", "t6", "tn", "uuid", "ts", "tz", "dec")} == {
        "u8": "short", "u16": "integer", "u32": "long", "u64": "decimal(20,0)", "t6": "string", "tn": "string", "uuid": "string",
        "ts": "timestamp_ntz", "tz": "timestamp", "dec": "decimal(38,20)"}
    assert [str(v) for v in rows["u64"]] == ["0", str(2**64 - 1), "None"]
    assert rows["t6"] == ["00:00:00.000000", "23:59:59.999999", None]
    assert rows["t9"] == ["00:00:00.000000001", "23:59:59.999999999", None]
    assert rows["tn"] == ["1677-09-21 00:12:43.145224193", "2262-04-11 23:47:16.854775807", None]
    assert rows["uuid"] == ["00000000-0000-0000-0000-000000000000", "00010203-0405-0607-0809-0a0b0c0d0e0f", None]
    assert [str(v) for v in rows["ts"]] == ["0001-01-01 00:00:00", "9999-12-31 23:59:59.999999", "None"]
    assert EVERY_TYPE.keys() == rows.keys()


def test_column_names_that_differ_in_case_only_are_refused_by_name(target):
    opened = open_target(target.url)
    with pytest.raises(ValueRefused, match=r"t\.A: .*differ in case"), opened.transaction() as t:
        t.create(TargetName("", "t"), Table("t", pa.schema([("a", pa.int64()), ("A", pa.int64())])))
    opened.close()


# ------------------------------------------------------------------ other programs


def test_an_owner_may_compact_and_vacuum_between_runs(source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 300)))
    migrate(source.url, target.url, "c0", chunk_rows=100)
    target.table("t").optimize.compact()
    target.table("t").vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    source.execute("update t set name = 'new' where line % 7 = 0", "delete from t where line < 9", insert("t", simple(900, 5)))

    results = migrate(source.url, target.url, "c1")

    assert successful(results) == {"t": "incremental"}
    assert target.rows("t") == source.rows("t") == as_deltalake_reads_it(target.table("t"))


def test_verification_sees_what_others_have_changed(source, target):
    source.execute(source.ddl("t", {"id": "int", "v": "text"}, ("id",)), insert("t", [(i, f"v{i}") for i in range(50)]))
    migrate(source.url, target.url, "c0")
    target.table("t").delete("id = 7")
    target.table("t").update({"v": "'changed'"}, predicate="id = 9")
    reader, writer = open_source(source.url), open_target(target.url)

    [found] = compare_tables([CopyTask("", t.name, t, TargetName("", t.name)) for t in reader.tables()], reader, writer, writer.states())
    writer.close()
    reader.close()

    assert found.missing == ("(7,)",) and found.different == ("(9,): v",) and found.extra == ()


def test_a_commit_of_somebody_else_in_between_is_not_lost(source, target, monkeypatch):
    """Another program sets a table property just before skylift's commit: both stand."""
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 9)))
    migrate(source.url, target.url, "c0")
    source.execute("update t set name = 'new'")
    honest, done = lake_delta.DeltaForm._actions, []

    def interrupted(self, *arguments):
        actions = honest(self, *arguments)
        if not done:
            done.append(1)
            target.table("t").alter.set_table_properties({"delta.logRetentionDuration": "interval 5 days"})
        return actions

    monkeypatch.setattr(lake_delta.DeltaForm, "_actions", interrupted)
    successful(migrate(source.url, target.url, "c1"))

    table = target.table("t")
    assert table.version() == 2 and table.metadata().configuration["delta.logRetentionDuration"] == "interval 5 days"
    assert target.rows("t") == source.rows("t")


def test_features_that_skylift_does_not_write_are_refused_by_name(source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 9)))
    migrate(source.url, target.url, "c0")
    target.table("t").alter.add_feature(TableFeatures.RowTracking, allow_protocol_versions_increase=True)
    source.execute("update t set name = 'new'")

    error = migrate(source.url, target.url, "c1")["t"].error
    assert isinstance(error, CopyError) and "rowTracking" in str(error) and "delete its folder" in str(error)


def test_a_table_that_cannot_be_shown_keeps_no_other_one_back(source, target, monkeypatch):
    """Features arrive after the commit and before it is shown; the lake opens again, and the table alone says what is wrong."""
    source.execute(*(sql for name in "abc" for sql in (source.ddl(name, ITEM, KEY), insert(name, simple(0, 9)))))
    migrate(source.url, target.url, "c0")
    source.execute(*(f"update {name} set name = 'new'" for name in "abc"))
    honest = lake_delta.DeltaForm._actions

    def given_features(self, name, *arguments):
        if name.table == "b" and target.table("b").version() == 0:
            target.table("b").alter.add_feature(TableFeatures.RowTracking, allow_protocol_versions_increase=True)
        return honest(self, name, *arguments)

    monkeypatch.setattr(lake_delta.DeltaForm, "_actions", given_features)
    monkeypatch.setattr(lake_delta.DeltaForm, "current", lambda self, name, table: table)
    with pytest.raises(TargetFailed, match="rowTracking"):
        migrate(source.url, target.url, "c1")
    monkeypatch.undo()
    results = migrate(source.url, target.url, "c2")

    assert target.rows("a") == source.rows("a") and target.rows("c") == source.rows("c")
    assert results["a"].error is None and results["c"].error is None
    shutil.rmtree(target.path / "main" / "b")
    successful(migrate(source.url, target.url, "c3", full=True))
    assert target.rows("b") == source.rows("b")


def test_a_delta_table_that_is_gone_is_told_and_copied_afresh(source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 9)))
    migrate(source.url, target.url, "c0")
    shutil.rmtree(target.path / "main" / "t")
    source.execute("update t set name = 'new'")

    error = migrate(source.url, target.url, "c1")["t"].error

    assert isinstance(error, CopyError) and "is gone" in str(error)
    successful(migrate(source.url, target.url, "c2", full=True))
    assert target.rows("t") == source.rows("t")


def test_old_versions_are_gathered_and_their_log_stays_readable(source, target):
    source.execute(source.ddl("t", {"id": "int", "v": "int"}, ("id",)), insert("t", [(i, 0) for i in range(20)]))
    for run in range(12):
        source.execute(f"update t set v = {run}")
        successful(migrate(source.url, target.url, f"c{run}"))

    assert (target.path / "main/t/_delta_log/_last_checkpoint").exists()
    assert as_deltalake_reads_it(target.table("t")) == source.rows("t")


def test_statistics_are_those_of_the_rows(source, target):
    source.execute(source.ddl("t", {"id": "int", "v": "text"}, ("id",)), insert("t", [(i, f"v{i}") for i in range(100)]))
    migrate(source.url, target.url, "c0", chunk_rows=30)
    adds = [json.loads(line)["add"] for line in (target.path / "main/t/_delta_log/00000000000000000000.json").read_text().splitlines()
            if line.startswith('{"add"')]

    for add in adds:
        with duckdb.connect() as connection:
            row = connection.execute("select count(*), min(id), max(id) from read_parquet(?)", [str(target.path / "main/t" / add["path"])])
            rows, low, high = row.fetchone()
        assert json.loads(add["stats"]) == {"numRecords": rows, "minValues": {"id": low}, "maxValues": {"id": high}}
    assert sum(json.loads(add["stats"])["numRecords"] for add in adds) == 100
    assert query(target.table("t"), "select count(*) as n from t where id >= 95").to_pydict() == {"n": [5]}


def test_every_commit_names_the_lake_and_the_entry_that_it_came_from(source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 9)))
    migrate(source.url, target.url, "c0")
    opened = open_target(target.url)
    assert target.table("t").transaction_version(f"skylift-{opened._log.lake}") >= 1
    opened.close()
