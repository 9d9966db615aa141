"""Foreign keys that the source declares are followed in the target: nothing there may refer to nothing, unless it does so in the source."""

import pytest

from skylift.connectors.asking import open_asker
from skylift.connectors.references import Reference, declared_references
from skylift.model import CopyTask, TargetName
from skylift.validation.pair import Pair
from skylift.validation.report import Report
from skylift.validation.suites import SUITES
from tests.connectors.labs import SOURCES, TARGETS, DuckDBLab, SqliteLab, migrate, quote
from tests.validation.test_suites import alter, opened

[SUITE] = [suite for suite in SUITES if suite.id == "references"]


def shop(lab):
    """Customers, and orders that refer to them by two columns; order 3 names no customer."""
    lab.execute(lab.ddl("customer", {"land": "text", "no": "int", "name": "text"}, ("land", "no")),
                lab.ddl("line", {"id": "int", "land": "text", "no": "int"}, ("id",))[:-1]
                + ', foreign key ("land", "no") references "customer" ("land", "no"))',
                (f"insert into {quote('customer')} values (?, ?, ?)", [("de", 1, "a"), ("fr", 1, "b"), ("fr", 2, "c")]),
                (f"insert into {quote('line')} values (?, ?, ?)", [(1, "de", 1), (2, "fr", 1), (3, None, 1), (4, "fr", 2), (5, "fr", 2)]))


def check(sides, name="line", **others):
    tasks = {("", t.name): CopyTask("", t.name, t, TargetName("", t.name)) for t in sides.source.tables()}
    [task] = [task for task in tasks.values() if task.table_name.lower() == name]
    report = Report(SUITE.tests)
    SUITE.check(Pair(task, sides.target.states().get(task.target), sides, others.get("tasks", tasks)), report)
    return report


def found(report):
    return [(row.test, row.key.lower(), row.expected, row.actual, row.is_warning) for row in report.rows]


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_database_tells_the_foreign_keys_that_it_declares(name, tmp_path):
    lab = SOURCES[name](tmp_path)
    shop(lab)
    asker = open_asker(lab.url, is_source=True)
    try:
        [((namespace, table), [reference])] = declared_references(asker, 20).items()
    finally:
        asker.close()
    assert (namespace, table) == ("", "line")
    assert reference == Reference(("land", "no"), "", lab.spelt("customer"), ("land", "no"))


@pytest.mark.parametrize(("source_name", "target_name"), [*((source, "duckdb") for source in sorted(SOURCES)),
                                                          *(("sqlite", target) for target in sorted(TARGETS) if target != "duckdb")])
def test_rows_that_refer_to_a_row_that_the_target_lost_are_counted_and_named(source_name, target_name, tmp_path):
    source, target = SOURCES[source_name](tmp_path), TARGETS[target_name](tmp_path)
    shop(source)
    migrate(source.url, target.url, "one")
    with opened(source, target) as sides:
        if sides.target_asker is None:
            assert check(sides).note == "the target has no SQL to follow foreign keys with"
            return
        assert found(check(sides)) == []

        alter(sides, "customer", lambda rows: rows.slice(0, 2))
        report = check(sides)

    assert found(report) == [("dangling", "land, no -> customer (land, no)", "0", "2", False)]
    assert report.rows[0].message == "such as the rows with the keys (4), (5)"
    assert report.counts == {"dangling": 2}


def test_references_that_lead_nowhere_in_the_source_already_are_expected(tmp_path):
    source, target = SqliteLab(tmp_path), DuckDBLab(tmp_path)
    shop(source)
    source.execute("pragma foreign_keys = 0", "insert into line values (6, 'xx', 9)")
    migrate(source.url, target.url, "one")
    with opened(source, target) as sides:
        assert found(check(sides)) == []
        alter(sides, "line", lambda rows: rows.set_column(1, "land", [["de", "zz", None, "fr", "fr", "xx"]]))
        report = check(sides)
    assert found(report) == [("dangling", "land, no -> customer (land, no)", "1", "2", False)]
    assert report.rows[0].message == "such as the rows with the keys (2)"


def test_a_reference_without_columns_means_the_primary_key_and_one_to_itself_is_followed(tmp_path):
    source, target = SqliteLab(tmp_path), DuckDBLab(tmp_path)
    source.execute("create table tree (id integer primary key, parent int references TREE)",
                   "insert into tree values (1, null), (2, 1), (3, 2)")
    migrate(source.url, target.url, "one")
    with opened(source, target) as sides:
        assert found(check(sides, "tree")) == []
        alter(sides, "tree", lambda rows: rows.slice(1))
        assert found(check(sides, "tree")) == [("dangling", "parent -> tree (id)", "0", "1", False)]


def test_what_only_the_case_of_letters_tells_apart_is_a_warning(tmp_path):
    source, target = SqliteLab(tmp_path), DuckDBLab(tmp_path)
    source.execute("create table p (code text collate nocase primary key) without rowid", "insert into p values ('ABC')",
                   "create table c (id integer primary key, code text collate nocase references p(code))",
                   "insert into c values (1, 'abc')")
    migrate(source.url, target.url, "one")
    with opened(source, target) as sides:
        report = check(sides, "c")
    assert found(report) == [("dangling", "code -> p (code)", "0", "1", True)]
    assert "letters' case" in report.rows[0].message


def test_a_reference_to_a_table_that_takes_no_part_is_not_followed_and_said(tmp_path):
    source, target = SqliteLab(tmp_path), DuckDBLab(tmp_path)
    shop(source)
    migrate(source.url, target.url, "one")
    with opened(source, target) as sides:
        report = check(sides, tasks={})
    assert report.rows == [] and report.note == "the table that it refers to takes no part: customer"
