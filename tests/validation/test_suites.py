"""The suites that come with skylift: silent where the target holds the source, whatever the databases, and each finds what it is for.

What is changed in a target is changed behind skylift's back: its ledger still says what was copied.
"""

from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from skylift.connectors import TableState, open_source, open_target
from skylift.connectors.asking import open_asker
from skylift.engine.columns import columns_of
from skylift.errors import CopyError
from skylift.losses import Losses
from skylift.model import CopyTask, Digest, TargetName, Watermark
from skylift.validation.census import COLUMNS_ASKED
from skylift.validation.pair import Pair, Sides, ask_together
from skylift.validation.report import Report
from skylift.validation.suites import SUITES
from tests.connectors.labs import SOURCES, TARGETS, DuckDBLab, SqliteLab, migrate, quote

COLUMNS = {"id": "int", "amount": "decimal", "at": "datetime", "name": "text", "note": "note", "data": "blob", "rate": "double"}
ROWS = [
    (1, Decimal("999999999999999999.12345678901234567890"), datetime(1753, 1, 1), "aä🤦🏼", "n", b"\0x", 0.1),
    (2, Decimal("999999999999999999.5"), datetime(2020, 1, 2, 3, 4, 5, 123000), "b ", "", b"", 5e-324),
    (3, None, None, None, None, None, None),
    (-2**63, Decimal("-0.00000000000000000001"), datetime(9999, 12, 31), "É" * 100, "x" * 70_000, b"z" * 70_000, -1e300),
    (2**63 - 1, Decimal(5), datetime(2020, 1, 1), "Z", "Zz", b"q\0", 7.0),
]
BY_ID = {suite.id: suite for suite in SUITES}


def fill(lab, name, rows, columns=COLUMNS, key=("id",)):
    marks = ",".join("?" * len(columns))
    plain = [tuple(str(value) if isinstance(value, Decimal | datetime) else value for value in row) for row in rows]
    lab.execute(lab.ddl(name, columns, key), (f"insert into {quote(name)} values ({marks})", plain))


@contextmanager
def opened(source, target, exact=True):
    with ExitStack() as stack:
        sides = Sides(stack.enter_context(closing(open_source(source.url))), stack.enter_context(closing(open_target(target.url))),
                      stack.enter_context(closing(open_asker(source.url, is_source=True))),
                      stack.enter_context(closing(asker)) if (asker := open_asker(target.url, is_source=False)) else None, 20, 2, exact)
        yield sides


def found(sides, name, **options):
    """What each suite finds about a table, as (test, key)."""
    tasks = {("", table.name): CopyTask("", table.name, table, TargetName("", table.name)) for table in sides.source.tables()}
    spelt = {task.table_name.lower(): task for task in tasks.values()}
    task = replace(spelt[name], **options)
    states = sides.target.states()
    return found_in(Pair(task, states.get(task.target), sides, tasks))


def found_in(pair):
    results = {}
    for suite in SUITES:
        report = Report(suite.tests)
        suite.check(pair, report)
        if report.rows:
            results[suite.id] = [(row.test, row.key) for row in report.rows]
        results |= {f"{suite.id} note": report.note} if report.note else {}
    return results


class Counting:
    """An asker that counts its questions."""

    def __init__(self, asker):
        self.asker, self.asked = asker, 0

    def ask(self, sql, limit_s):
        self.asked += 1
        return self.asker.ask(sql, limit_s)

    def __getattr__(self, name):
        return getattr(self.asker, name)


@pytest.mark.parametrize(("source_name", "target_name"), [*((source, "duckdb") for source in sorted(SOURCES)),
                                                          *(("sqlite", target) for target in sorted(TARGETS) if target != "duckdb")])
def test_asked_of_many_tables_at_once_databases_say_what_they_say_of_each(source_name, target_name, tmp_path):
    source, target = SOURCES[source_name](tmp_path), TARGETS[target_name](tmp_path)
    wide = {"id": "int", **{f"c{n}": "int" for n in range(COLUMNS_ASKED + 20)}}
    fill(source, "t", ROWS)
    fill(source, "empty", [])
    fill(source, "keyless", ROWS + ROWS[:2], key=())
    fill(source, "wide", [(n, *range(COLUMNS_ASKED + 20)) for n in range(3)], wide)
    for n in range(4):
        fill(source, f"more{n}", [(1, n)], {"id": "int", "n": "int"})
    migrate(source.url, target.url, "one")

    with opened(source, target) as sides:
        alter(sides, "t", with_row_77)
        tasks = {("", t.name): CopyTask("", t.name, t, TargetName("", t.name)) for t in sides.source.tables()}
        alone = {task.table_name: found(sides, task.table_name.lower()) for task in tasks.values()}
        sides.source_asker, sides.target_asker = [asker and Counting(asker) for asker in (sides.source_asker, sides.target_asker)]
        pairs = [Pair(task, sides.target.states()[task.target], sides, tasks) for task in tasks.values()]
        ask_together(pairs, set(BY_ID))
        asked = [asker and asker.asked for asker in (sides.source_asker, sides.target_asker)]
        together = {pair.task.table_name: found_in(pair) for pair in pairs}

        assert together == alone and alone["t"]["keys"] == [("extra", "(77,)")]
        for asker, before in zip((sides.source_asker, sides.target_asker), asked, strict=True):
            if asker:
                assert asker.asked == before       # all was said
                assert before == (9 if asker.dialect == "duckdb" else 3)


@pytest.mark.parametrize("target_name", sorted(TARGETS))
@pytest.mark.parametrize("source_name", sorted(SOURCES))
def test_no_suite_is_alarmed_where_the_target_holds_what_the_source_does(source_name, target_name, tmp_path):
    source, target = SOURCES[source_name](tmp_path), TARGETS[target_name](tmp_path)
    fill(source, "t", ROWS)
    fill(source, "empty", [])
    fill(source, "keyless", ROWS + ROWS[:2], key=())
    for copied in migrate(source.url, target.url, "one").values():
        assert copied.error is None

    with opened(source, target) as sides:
        assert found(sides, "t") == {}
        assert found(sides, "empty") == {}
        assert found(sides, "keyless") == {"keys note": "the table has no primary key"}


@pytest.mark.parametrize("source_name", sorted(SOURCES))
def test_columns_of_a_large_table_are_read_by_ranges_of_its_key(source_name, tmp_path, monkeypatch):
    monkeypatch.setattr("skylift.validation.pair.SMALL_ROWS", 0)
    source, target = SOURCES[source_name](tmp_path), DuckDBLab(tmp_path)
    fill(source, "t", ROWS)
    migrate(source.url, target.url, "one")
    with opened(source, target) as sides:
        sides.target.chunk_rows = 2
        assert found(sides, "t") == {}
        alter(sides, "t", with_value("note", 2, None))
        assert found(sides, "t") == {"columns": [("checksum", "note")], "census": [("nulls", "note"), ("shortest", "note")]}


def alter(sides, name, change):
    """Replace a table's rows by what `change` makes of them, in a transaction of the target that its ledger knows nothing of."""
    [task] = [CopyTask("", t.name, t, TargetName("", t.name)) for t in sides.source.tables() if t.name.lower() == name]
    table = replace(task.table, format="arrow")
    with sides.target.transaction() as transaction:
        rows = pa.Table.from_batches(list(transaction.read(task.target, table)), table.schema)
        transaction.delete(task.target, rows.select(list(table.key)))
        changed = change(rows.sort_by([(name, "ascending") for name in table.key]))
        transaction.insert(task.target, table, changed.to_batches())


def with_value(column, row, value):
    def change(rows):
        values = rows[column].to_pylist()
        values[row] = value
        field = rows.schema.field(column)
        return rows.set_column(rows.schema.get_field_index(column), field, pa.array(values, field.type))

    return change


def with_row_77(rows):
    return pa.concat_tables([rows, rows.slice(3, 1).set_column(0, rows.schema.field("id"), pa.array([77], pa.int64()))])


MUTATIONS = {
    # row 1 of the rows ordered by id is id 1; neither the least nor the greatest of its column
    "a number": (with_value("amount", 1, Decimal("999999999999999999.12345678901234567891")), {"columns": {("sum", "amount")}}),
    "a time": (with_value("at", 2, datetime(2020, 1, 2, 3, 4, 5, 124000)), {"columns": {("sum", "at")}}),
    "the greatest time": (with_value("at", 0, datetime(9999, 12, 30)), {"columns": {("sum", "at"), ("greatest", "at")}}),
    "a text, as long": (with_value("name", 4, "z"), {"columns": {("checksum", "name")}}),
    "a text, with a blank more": (with_value("name", 2, "b  "), {"columns": {("checksum", "name")}, "census": {("length", "name")}}),
    "bytes, as many": (with_value("data", 4, b"q\1"), {"columns": {("checksum", "data")}}),
    "a float by one bit": (with_value("rate", 1, 0.10000000000000002), {"columns": {("checksum", "rate")}}),
    "a text to null": (with_value("note", 2, None), {"columns": {("checksum", "note")},
                                                     "census": {("nulls", "note"), ("shortest", "note")}}),
    "null to an empty text": (with_value("name", 3, ""), {"columns": {("checksum", "name")},
                                                         "census": {("nulls", "name"), ("shortest", "name")}}),
    "null to zero": (with_value("amount", 3, Decimal(0)), {"census": {("nulls", "amount")}}),
    "a row deleted": (lambda rows: rows.slice(1), {"rows": {("count", "")}, "keys": {("missing", str((-2**63,)))}}),
    "a row added": (with_row_77, {"rows": {("count", "")}, "keys": {("extra", "(77,)")}}),
    "a key": (with_value("id", 1, 10), {"keys": {("missing", "(1,)"), ("extra", "(10,)")}, "columns": {("sum", "id")}}),
}


@pytest.mark.parametrize("what", MUTATIONS)
@pytest.mark.parametrize("target_name", sorted(TARGETS))
def test_what_was_changed_in_the_target_is_found_by_the_suites_it_concerns(what, target_name, tmp_path):
    change, expected = MUTATIONS[what]
    source, target = SqliteLab(tmp_path), TARGETS[target_name](tmp_path)
    fill(source, "t", ROWS)
    migrate(source.url, target.url, "one")

    with opened(source, target) as sides:
        alter(sides, "t", change)
        results = {suite: set(rows) for suite, rows in found(sides, "t").items()}

    for suite, tests in expected.items():
        assert tests <= results.get(suite, set()), (suite, results)
    if "row" not in what and what != "a key":      # nothing else is alarmed
        assert results == expected


def test_a_row_that_occurs_twice_is_named(tmp_path):
    source, target = SqliteLab(tmp_path), DuckDBLab(tmp_path)          # which has no primary keys
    fill(source, "t", ROWS)
    migrate(source.url, target.url, "one")
    with opened(source, target) as sides:
        alter(sides, "t", lambda rows: pa.concat_tables([rows, rows.slice(1, 1)]))
        results = found(sides, "t")
    assert results["rows"] == [("count", "")] and results["keys"] == [("repeated", "(1,)")]


@pytest.mark.parametrize("target_name", sorted(TARGETS))
def test_companion_rows_and_base_rows_belong_together(target_name, tmp_path):
    source, target = SqliteLab(tmp_path), TARGETS[target_name](tmp_path)
    base, companion = {"id": "int", "name": "text"}, {"id": "int", "extra": "int"}
    fill(source, "c", [(n, "x") for n in range(1, 6)], base)
    fill(source, "c$ext", [(n, 0) for n in range(1, 7)], companion)    # 6 has no base row, in the source already
    migrate(source.url, target.url, "one")
    with opened(source, target) as sides:
        report = companions(sides)
        assert [(row.test, row.key, row.is_warning) for row in report.rows] == [("orphan", "(6,)", True)]

        alter(sides, "c", lambda rows: rows.filter(pc.not_equal(rows["id"], 2)))
        alter(sides, "c$ext", lambda rows: rows.filter(pc.not_equal(rows["id"], 3)))
        report = companions(sides)
        assert {(row.test, row.key, row.is_warning) for row in report.rows} == {
            ("orphan", "(2,)", False), ("orphan", "(6,)", False), ("invisible", "(3,)", False)}
        assert report.errors == 3


def companions(sides):
    tasks = {("", table.name): CopyTask("", table.name, table, TargetName("", table.name)) for table in sides.source.tables()}
    suite, task = BY_ID["companions"], tasks["", "c$ext"]
    report = Report(suite.tests)
    suite.check(Pair(task, sides.target.states()[task.target], sides, tasks), report)
    return report


def test_of_a_preserved_table_only_what_the_source_has_must_be_there(tmp_path):
    source, target = SqliteLab(tmp_path), DuckDBLab(tmp_path)
    fill(source, "t", ROWS)
    migrate(source.url, target.url, "one")
    with opened(source, target) as sides:
        alter(sides, "t", with_row_77)
        kept = "the target keeps rows of its own (preserved)"
        assert found(sides, "t", preserve=True) == {"columns note": kept, "census note": kept}

        alter(sides, "t", lambda rows: rows.slice(2))
        assert sorted(found(sides, "t", preserve=True)["keys"]) == [("missing", str((-2**63,))), ("missing", "(1,)")]


def test_a_table_that_is_gone_or_was_never_copied_is_an_error_of_every_suite(tmp_path):
    source, target = SqliteLab(tmp_path), DuckDBLab(tmp_path)
    fill(source, "t", ROWS)
    open_target(target.url).close()
    with opened(source, target) as sides:
        assert found(sides, "t") == {suite: [("table", "")] for suite in ("rows", "keys", "columns", "census")}
    migrate(source.url, target.url, "one")
    with opened(source, target) as sides:
        with sides.target.transaction() as transaction:
            transaction.execute("drop table main.t")
        for suite in ("rows", "keys", "columns", "census"):
            [task] = [CopyTask("", t.name, t, TargetName("", t.name)) for t in sides.source.tables()]
            with pytest.raises(CopyError):
                BY_ID[suite].check(Pair(task, sides.target.states()[task.target], sides, {}), Report(BY_ID[suite].tests))


def test_a_source_whose_values_were_changed_as_accepted_is_not_asked_by_its_own_sql(tmp_path):
    source, target = SqliteLab(tmp_path), TARGETS["postgres"](tmp_path)
    fill(source, "t", [(1, None, None, "a\0b", None, None, None)])
    with opened(source, target, exact=False) as sides:
        sides.source.losses = sides.target.losses = Losses("nul")
        table = sides.source.tables()[0]
        with sides.target.transaction() as transaction:
            transaction.create(TargetName("", "t"), table)
            transaction.insert(TargetName("", "t"), table, [sides.target.fit(b, table) for b in
                                                            sides.source.read(table, sides.source.split(table, 10, 1 << 20)[0])])
        task = CopyTask("", "t", table, TargetName("", "t"))
        for suite in SUITES:
            report = Report(suite.tests)
            suite.check(Pair(task, TableState(Digest(), Watermark("x", 1, ""), columns_of(table)), sides, {}), report)
            assert report.rows == []


def test_counts_are_exact_where_only_some_rows_are_kept(tmp_path):
    source, target = SqliteLab(tmp_path), DuckDBLab(tmp_path)
    fill(source, "t", [(n, "x") for n in range(5000)], {"id": "int", "name": "text"})
    migrate(source.url, target.url, "one")
    with opened(source, target) as sides:
        alter(sides, "t", lambda rows: rows.filter(pc.less(rows["id"], 1000)))
        [task] = [CopyTask("", t.name, t, TargetName("", t.name)) for t in sides.source.tables()]
        report = Report(BY_ID["keys"].tests, lambda test: 7)
        BY_ID["keys"].check(Pair(task, sides.target.states()[task.target], sides, {}), report)
    assert len(report.rows) == 7 and report.counts == {"missing": 4000} and report.errors == 4000
