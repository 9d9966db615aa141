"""What an assessment finds between files, what it leaves untouched, and how good its estimate is."""

import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from skylift.connectors import look_at_target
from skylift.engine import assess as engine_assess
from skylift.engine import census
from skylift.errors import SetupError
from skylift.migration import Migration
from skylift.model import App
from skylift.query import Query
from skylift.runs import ReplicationType, RunStatus, Severity
from skylift.settings import Settings
from skylift.store import open_store
from tests.connectors.labs import DuckDBSourceLab, SqliteLab, migrate
from tests.connectors.test_conformance import insert
from tests.migration.assessing import bytes_of, findings_of, found, make, outcome_of
from tests.migration.lab import ANY

B, W, I = Severity.BLOCKING, Severity.WARNING, Severity.INFORMATION      # noqa: E741
CRONUS = "CRONUS International Ltd_"


# ------------------------------------------------------------------ what is found


def test_tables_that_simply_move_leave_nothing_to_say(files):
    files.source.execute(files.source.ddl("t", {"id": "int", "v": "text", "at": "datetime", "d": "decimal", "b": "blob"}, ("id",)),
                         insert("t", [(1, "a", "2026-01-01 00:00:00.000", "1.5", b"x")]))

    assert found(files) == {} and found(files, with_scan=True) == {}


def test_what_catalogues_tell_of_a_table_is_found_by_name(files):
    files.source.execute("create table nokey (v TEXT)", "create table free (id INTEGER PRIMARY KEY, v, w NUMERIC)",
                         'create table pk (a TEXT, b INTEGER, primary key (a, b))', "insert into pk values (NULL, 1)",
                         'create table odd (id INTEGER PRIMARY KEY, " v" TEXT)')

    rows = found(files)

    assert {key: row.severity for key, row in rows.items()} == {
        ("NoKey", "nokey", ""): W, ("NoKey", "pk", ""): W, ("NullKey", "pk", ""): W, ("TypeRule", "free", "v"): I,
        ("TypeRule", "free", "w"): I, ("ColumnName", "odd", " v"): W}
    assert "(a, b)" in rows["NullKey", "pk", ""].message
    assert "type NUMERIC moves as string, and is VARCHAR" in rows["TypeRule", "free", "w"].message


def test_a_value_of_another_type_and_text_that_is_none_are_found_by_a_scan_only(files):
    files.source.execute("create table a (id INTEGER PRIMARY KEY, n INTEGER)", "create table b (id INTEGER PRIMARY KEY, v TEXT)",
                         "insert into a values (7, 'seven')", "insert into b values (8, cast(x'ff41' as text))")

    assert found(files) == {}
    rows = found(files, with_scan=True)

    assert {key: row.severity for key, row in rows.items()} == {("50011", "a", "n"): B, ("50011", "b", "v"): B}
    assert "key (7,)" in rows["50011", "a", "n"].message and "not valid UTF-8" in rows["50011", "b", "v"].message


def test_large_values_are_told(files, monkeypatch):
    monkeypatch.setattr(census, "LARGE_BYTES", 2**20)
    files.source.execute("create table t (id INTEGER PRIMARY KEY, b BLOB)", "insert into t values (1, zeroblob(3000000)), (2, x'00')")

    rows = found(files, with_scan=True)

    assert [(key, row.count) for key, row in rows.items()] == [(("LargeValue", "t", "b"), 1)]


def test_infinite_times_are_counted_and_an_accepted_change_is_no_obstacle(files, tmp_path):
    source = DuckDBSourceLab(tmp_path)
    make(source.path, "create table t (id bigint primary key, d date)", "insert into t values (1, 'infinity'), (2, '-infinity'), (3, null)")

    row = findings_of(files.migration, source.url, files.target.url, with_scan=True)["Infinity", "t", "d"]
    assert (row.code, row.column_name, row.count, row.severity) == ("Infinity", "d", 2, B) and "set 'accept' to infinity" in row.fix

    lax = Migration(files.migration.store, Settings(home=files.migration.settings.home, accept="infinity"), "tester")
    row = findings_of(lax, source.url, files.target.url, with_scan=True)["Infinity", "t", "d"]
    assert (row.code, row.count, row.severity) == ("Infinity", 2, I)


def test_a_duckdb_source_says_that_it_has_no_log_and_types_that_do_not_move(files, tmp_path):
    source = DuckDBSourceLab(tmp_path)
    make(source.path, "create table t (id bigint primary key, v variant)", "create table u (id bigint primary key, i interval)")

    rows = findings_of(files.migration, source.url, files.target.url)

    assert rows["50011", "t", "v"].severity is B and "no exact type for VARIANT" in rows["50011", "t", "v"].message
    assert rows["ChangeFeed", "u", ""].severity is W and rows["TypeRule", "u", "i"].severity is I


def test_a_source_that_must_not_be_written_has_no_log_and_says_so(files):
    files.source.execute("create table t (id INTEGER PRIMARY KEY)")

    rows = findings_of(files.migration, files.source.url + "?mode=ro", files.target.url)

    assert [(key, row.severity) for key, row in rows.items()] == [(("ChangeFeed", "t", ""), W)]


def test_a_table_that_stands_in_the_target_is_compared_column_by_column(files):
    files.source.execute("create table t (id INTEGER PRIMARY KEY, v TEXT, n INTEGER, gone TEXT)")
    make(files.target.path, "create schema source", "create table source.t (id bigint, v integer, n bigint, extra varchar)",
         "create view source.w as select 1")
    files.source.execute("create table w (id INTEGER PRIMARY KEY)")

    rows = found(files)

    assert {key: row.severity for key, row in rows.items()} == {
        ("50005", "t", "v"): W, ("50005", "t", "gone"): W, ("50005", "t", "extra"): W, ("Obstacle", "w", ""): B}
    assert "source TEXT, target INTEGER" in rows["50005", "t", "v"].message
    assert "goes with the table that is replaced" in rows["50005", "t", "extra"].message


def test_names_that_the_target_cannot_tell_apart_or_keeps_for_itself_are_found(files, tmp_path):
    source = DuckDBSourceLab(tmp_path)
    make(source.path, 'create schema "temp2 "', 'create table "temp2 ".t (id bigint primary key)', 'create schema "system2"',
         "create table system2.t (id bigint primary key)")
    rows = findings_of(files.migration, source.url, files.target.url)
    assert rows["Blanks", "", ""].company_name == "temp2 "

    with closing(look_at_target(files.target.url)) as target:
        assert target.reserved("Information_Schema") and not target.reserved("CRONUS")


def test_what_is_wrong_with_the_source_itself_is_a_finding(files, sample_file):
    shutil.copy(sample_file, files.source.path)
    files.source.execute("""update "$ndo$tenantproperty" set applicationversion = '14.0.1.0'""")
    [row] = found(files, "DynamicsBCLast").values()
    assert (row.code, row.severity) == ("50017", B)

    files.source.execute("""update "$ndo$tenantproperty" set applicationversion = '29.0.1.0'""")
    [row] = found(files, "DynamicsBCLast").values()
    assert row.code == "50018" and "DynamicsBC" in row.fix

    files.source.execute("""update "$ndo$tenantproperty" set applicationversion = '25.0.1.0'""",
                         "insert into Company select 9, \"Name\" || char(10), 0, 'New', 'x', '' from Company limit 1")
    [row] = found(files, "DynamicsBCLast").values()
    assert row.code == "50021"

    files.source.execute("update Company set timestamp = 'x'")       # even its catalogue cannot be read
    [row] = found(files, "DynamicsBCLast").values()
    assert (row.code, row.severity) == ("50011", B) and "Company.timestamp" in row.message


@pytest.mark.parametrize(("statement", "product", "code"), [
    ("delete from Company", "DynamicsBCLast", "50003"), ("drop table Company", "DynamicsBCLast", "NotBusinessCentral"),
    ("update Company set Name = Name || hex(zeroblob(20))", "DynamicsBCLast", "CompanyName"),
    ("insert into Company select 9, replace(Name, '.', '_'), 0, 'x', 'x', '' from Company where Name like '%.'", "DynamicsBCLast",
     "NameCollision"),
])
def test_a_catalogue_of_business_central_that_cannot_be_migrated_is_a_finding(files, sample_file, statement, product, code):
    shutil.copy(sample_file, files.source.path)
    files.source.execute(statement)
    [row] = found(files, product).values()
    assert (row.code, row.severity, bool(row.fix)) == (code, B, True)


def test_an_empty_source_is_a_finding(files):
    files.source.execute("create view v as select 1 as a")
    assert [row.code for row in found(files).values()] == ["NoTables"]


def test_files_that_may_not_be_written_are_found(files, monkeypatch):
    files.source.execute("create table t (id INTEGER PRIMARY KEY)")
    make(files.target.path, "create table other (id integer)")
    monkeypatch.setattr("os.access", lambda path, mode: "data" not in str(path))       # root may write everywhere

    row = found(files)["Permission", "", ""]
    assert row.severity is B and str(files.source.path) in row.message and str(files.target.path) in row.message
    assert "?mode=ro" in row.fix
    row = findings_of(files.migration, files.source.url + "?mode=ro", f"delta:///{files.folder}/lake")["Permission", "", ""]
    assert str(files.source.path) not in row.message and "may not write" in row.message


def test_a_mapping_without_its_source_table_and_a_preserved_table_without_a_key_are_found(lab):
    lab.prepare()
    app = next(app.id for app in lab.migration.select(App, Query()) if app.publisher == "Contoso")
    lab.migration.create_mapping({"app_id": app, "table_name": "New Table", "source_table_name": "No Such Table"})
    lab.in_source('create table "Shared Buffer" (v TEXT)')
    lab.run(kind=ReplicationType.DIAGNOSTIC)            # which finds the new table
    lab.migration.change_table(lab.switch("Shared Buffer").id, {"preserve": True}, ANY)

    rows = findings_of(lab.migration, lab.values["sql_connection_string"], lab.migration.settings.target, "DynamicsBCLast")

    assert rows["NoKeyPreserved", "Shared Buffer", ""].severity is B
    assert "No Such Table" in next(row.message for key, row in rows.items() if key[0] == "50004")


def test_a_scan_finds_the_very_tables_that_a_copy_would_fail_at(files):
    files.source.execute(
        "create table good (id INTEGER PRIMARY KEY, v TEXT)", "insert into good values (1, 'a')",
        "create table deep (id INTEGER PRIMARY KEY, d DECIMALTEXT(10,2))", "insert into deep values (1, '1.005')",
        "create table late (id INTEGER PRIMARY KEY, at DATETIMETEXT)", "insert into late values (1, '12026-01-01'), (2, '2026-02-30')",
        "create table odd (id INTEGER PRIMARY KEY, n INTEGER)", "insert into odd values (1, 1.5)",
        "create table raw (id INTEGER PRIMARY KEY, v TEXT)", "insert into raw values (1, cast(x'c328' as text))",
        "create table fine (id INTEGER PRIMARY KEY, at DATETIMETEXT)", "insert into fine values (1, '1753-01-01 00:00:00.000')")

    told = {row.table_name for row in found(files, with_scan=True).values() if row.severity is B}
    copied = migrate(files.source.url, files.target.url, "c1")

    assert told == {name for name, progress in copied.items() if progress.error} == {"deep", "late", "odd", "raw"}


def test_a_source_that_cannot_be_reached_is_no_finding(files):
    with pytest.raises(SetupError, match="cannot be read"):
        outcome_of(files.migration, f"sqlite:///{files.folder}/nothing.db", files.target.url)


def test_code_fields_and_companions_of_business_central_are_counted(files, sample_file):
    shutil.copy(sample_file, files.source.path)
    companion = next(name for (name,) in files.source.fetch("select name from sqlite_schema where name like 'CRONUS%$ext'"))
    base = companion.removesuffix("$ext")
    key = files.source.fetch(f"select name from pragma_table_info('{base}') where pk = 1")[0][0]
    first, second, third = (row[0] for row in files.source.fetch(f'select "{key}" from "{base}" order by 1 limit 3'))
    with closing(sqlite3.connect(files.source.path)) as database, database:
        database.execute(f'delete from "{base}" where "{key}" = ?', [first])
        database.execute(f'delete from "{companion}" where "{key}" = ?', [second])
        for table in (base, companion):
            database.execute(f'update "{table}" set "{key}" = lower("{key}") || \' \' where "{key}" = ?', [third])
    short = base.removeprefix(f"{CRONUS}$")

    rows = found(files, "DynamicsBCLast", with_scan=True)

    mine = {key: row.count for key, row in rows.items() if row.company_name == CRONUS and key[1].startswith(short)}
    assert mine == {("CodeField", short, key): 1, ("CodeField", f"{short}$ext", key): 1, ("OrphanCompanion", f"{short}$ext", ""): 1,
                    ("CompanionMissing", short, ""): 1}
    assert str(first) in rows["OrphanCompanion", f"{short}$ext", ""].message


def test_rows_only_added_to_a_preserved_table_must_fit_what_stands_there(lab):
    lab.prepare()
    switch = next(table for table in lab.tables_of("") if table.preserve)
    columns = lab.in_source(f"select name, type from pragma_table_info('{switch.table_name}')")[0]
    make(lab.migration.settings.home / "target.duckdb",
         f'create table "{switch.table_name}" (' + ", ".join(f'"{name}" integer' for name, _ in columns[:2]) + ")")

    rows = findings_of(lab.migration, lab.values["sql_connection_string"], lab.migration.settings.target, "DynamicsBCLast")

    blocking = {key for key, row in rows.items() if row.severity is B}
    assert {("50005", switch.table_name, name) for name, _ in columns[2:]} <= blocking


def test_tables_of_another_migration_are_found_before_the_first_run_would_refuse_them(lab, tmp_path):
    lab.prepare()
    assert lab.run().status is RunStatus.UPGRADE_PENDING
    assert not [row for row in findings_of(lab.migration, lab.values["sql_connection_string"], lab.migration.settings.target,
                                           "DynamicsBCLast").values() if row.code == "TargetInUse"]
    store = open_store(Settings(home=tmp_path / "other").store)
    other = Migration(store, Settings(home=tmp_path / "other", target=lab.migration.settings.target), "tester")

    rows = findings_of(other, lab.values["sql_connection_string"], lab.migration.settings.target, "DynamicsBCLast")

    store.close()
    assert {row.severity for row in rows.values() if row.code == "TargetInUse"} == {B}
    assert len([row for row in rows.values() if row.code == "TargetInUse"]) > 10


def test_a_full_disk_blocks_before_the_copy_finds_it(files, monkeypatch):
    files.source.execute("create table t (id INTEGER PRIMARY KEY, b BLOB)", "insert into t values (1, zeroblob(100000))")
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr("skylift.connectors.duckdb_look.shutil.disk_usage", lambda path: usage)

    assert found(files)["Space", "", ""].severity is B
    usage.free = 120_000
    assert found(files)["Space", "", ""].severity is W
    monkeypatch.setattr(engine_assess, "SPACE", 1.0)
    assert found(files) == {}


# ------------------------------------------------------------------ nothing is written


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_neither_side_changes_by_a_byte_and_no_file_appears(files, sample_file, journal):
    shutil.copy(sample_file, files.source.path)
    files.source.execute(f"pragma journal_mode={journal}")
    make(files.target.path, "create table t (id integer)")
    before = bytes_of(files.folder)

    for options in ({}, {"with_scan": True}):
        assert outcome_of(files.migration, files.source.url, files.target.url, "DynamicsBCLast", **options)

    assert bytes_of(files.folder) == before
    assert files.source.fetch("select count(*) from sqlite_schema where name like '%skylift%'") == [(0,)]


def test_what_an_application_has_left_in_the_log_of_its_file_is_seen_and_stays_there(files, tmp_path):
    (tmp_path / "working").mkdir()
    at_work = SqliteLab(tmp_path / "working")
    at_work.execute("create table t (id INTEGER PRIMARY KEY, n INTEGER)")
    with closing(sqlite3.connect(at_work.path)) as application:
        application.execute("insert into t values (1, 'one')")
        application.commit()
        for suffix in ("", "-wal"):                     # as it would be found after the machine has lost its power
            shutil.copy(f"{at_work.path}{suffix}", f"{files.source.path}{suffix}")
    before = bytes_of(files.folder)

    assert found(files, with_scan=True).keys() == {("50011", "t", "n")}

    assert {name: held for name, held in bytes_of(files.folder).items() if not name.endswith("-shm")} == before


def test_a_target_that_is_not_there_is_not_made(files):
    files.source.execute("create table t (id INTEGER PRIMARY KEY)")
    found(files, with_scan=True)
    assert not files.target.path.exists()


# ------------------------------------------------------------------ how long


def test_the_estimate_is_of_the_order_of_a_real_copy(files):
    """Both measured on the same machine in the same minutes: a ratio, since the machine may be busy."""
    columns = {"id": "int", "a": "decimal", "at": "datetime", "v": "text", "w": "text", "d": "double"}
    rows = [(i, f"{i}.5", "2026-01-02 03:04:05.000", f"value {i}", f"more {i % 97}" * 5, i / 7) for i in range(50_000)]
    for name in ("large", "larger"):
        files.source.execute(files.source.ddl(name, columns, ("id",)), *(
            insert(name, [(row[0] + i * 50_000, *row[1:]) for row in rows]) for i in range(4)))
    for i in range(30):
        files.source.execute(files.source.ddl(f"small{i}", columns, ("id",)), insert(f"small{i}", rows[:50]))
    ratios = []
    for attempt in range(3):
        told = outcome_of(files.migration, files.source.url, files.target.url).estimate
        assert told.loaded and told.tables == 32 and abs(told.rows - 401_500) < 40_000
        began = time.monotonic()
        _copy(files, attempt)
        ratios.append(told.duration_s / (time.monotonic() - began))
        if 1 / 2.5 < ratios[-1] < 2.5:
            return
    pytest.fail(f"estimates were {ratios} times the real durations")


def _copy(files, attempt: int) -> None:
    assert not [p.error for p in migrate(files.source.url, f"{files.target.url}{attempt}", f"c{attempt}").values() if p.error]
    Path(f"{files.target.path}{attempt}").unlink()
