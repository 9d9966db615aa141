"""Queries give the same rows on every database."""

from decimal import Decimal

import pytest
import sqlalchemy as sa

from skylift.model import ProductType, Run, RunTable, SourceCompany
from skylift.query import Attribute, Call, Literal, Order, Query
from skylift.runs import CompanySetupStatus, RunStatus, TableStatus
from skylift.store import select
from tests.store.conftest import NAMES, START


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request):
    return request.getfixturevalue("sqlite_rows" if request.param == "sqlite" else "postgres_rows")


def names(store, where, kind=SourceCompany, order=("name",)):
    with store.read() as connection:
        query = Query(where=where, order=tuple(Order(Attribute(name)) for name in order))
        return [row.name for row in select.select(connection, kind, query)]


def of(name, *arguments):
    return Call(name, tuple(a if isinstance(a, Call | Attribute | Literal) else Literal(a) for a in arguments))


NAME = Attribute("name")


@pytest.mark.rule("F4")
@pytest.mark.parametrize(("where", "expected"), [
    (of("like", NAME, ("b", "")), ["b%", "b_"]),
    (of("like", NAME, ("", "_")), ["b_"]),
    (of("like", NAME, ("", "%", "")), ["b%"]),
    (of("like", NAME, ("", "[x]", "")), ["[x]"]),
    (of("like", NAME, ("", "\\", "")), ["ab\\c"]),
    (of("like", NAME, ("Z", "")), ["Z*z"]),
    (of("like", NAME, ("a", "b")), ["a b"]),
    (of("unlike", of("tolower", NAME), ("", "a", "")), sorted(n for n in NAMES[1:] if "a" not in n.lower())),
    (of("eq", of("tolower", NAME), "ärger"), ["Ärger", "ärger"]),
    (of("eq", of("toupper", NAME), "STRASSE"), ["straße"]),
    (of("contains", NAME, "*"), ["Z*z"]),
    (of("startswith", NAME, "Ä"), ["Ärger"]),
    (of("endswith", NAME, ""), sorted(NAMES[1:])),
    (of("endswith", NAME, "x] and more"), []),
    (of("gt", NAME, "b_"), ["straße", "Ärger", "ärger", "😀"]),
    (of("lt", NAME, "Z"), ["A", "G_L Entry$437d"]),
    (of("eq", of("length", NAME), 1), ["A", "a", "😀"]),
    (of("eq", of("indexof", NAME, "ß"), 4), ["straße"]),
    (of("eq", of("substring", NAME, 1, 2), "tr"), ["straße"]),
    (of("eq", of("concat", NAME, "!"), "a!"), ["a"]),
    (of("eq", of("trim", of("concat", " \t\n", of("concat", NAME, "  "))), "a"), ["a"]),
    (of("and", Attribute("replicate"), of("not", Attribute("created"))), sorted(NAMES[1:][n] for n in (2, 4, 8, 10))),
    (of("eq", Attribute("replicate"), Attribute("created")), sorted(NAMES[1:][n] for n in (0, 1, 5, 6, 7, 11, 12))),
    (of("gt", Attribute("estimated_size"), Decimal("1.375")), ["G_L Entry$437d"]),
    (of("eq", Attribute("estimated_size"), Decimal("0.125")), ["A"]),
    (of("ge", Attribute("estimated_size"), 1), sorted(NAMES[1:][8:])),
    (of("in", Attribute("status"), (CompanySetupStatus.NONE,)), sorted(NAMES[1:])),
    (Literal(False), []),
])
def test_conditions_mean_the_same_on_every_database(store, where, expected):
    assert names(store, where) == expected


def test_text_sorts_by_code_point_on_every_database(store):
    assert names(store, None) == sorted(NAMES[1:])
    products = [ProductType(name, "") for name in NAMES]
    with store.read() as connection:
        found = select.select(connection, ProductType, Query(order=(Order(Attribute("id")),), top=3, skip=1), products)
        assert [p.id for p in found] == sorted(NAMES)[1:4]
        assert select.count(connection, ProductType, of("contains", Attribute("id"), "a"), products) == sum("a" in n for n in NAMES)
        assert select.select(connection, ProductType, Query(), []) == [] and select.count(connection, ProductType, None, []) == 0


def test_a_time_that_is_not_set_is_the_earliest(store):
    with store.read() as connection:
        unset = of("eq", Attribute("ended_at"), select.UNSET)
        assert select.count(connection, Run, unset) == 2 and select.count(connection, Run, of("not", unset)) == 4
        rows = select.select(connection, Run, Query(order=(Order(Attribute("ended_at")), Order(Attribute("id"), True))))
        assert [(row.run_id, row.ended_at) for row in rows[:3]] == [("r5", None), ("r2", None), ("r4", START)]
        hours = of("in", of("hour", Attribute("started_at")), (13, 16))
        assert [row.run_id for row in select.select(connection, Run, Query(where=hours))] == ["r1", "r4"]
        assert select.count(connection, Run, of("and", of("eq", of("year", Attribute("ended_at")), 1),
                                                of("eq", of("second", Attribute("started_at")), 0))) == 2


def test_a_runs_tables_are_counted(store):
    with store.read() as connection:
        rows = {row.run_id: row for row in select.select(connection, Run, Query())}
        tables = select.select(connection, RunTable, Query())
    for run_id, row in rows.items():
        statuses = [table.status for table in tables if table.run_id == run_id]
        assert row.tables_successful == statuses.count(TableStatus.SUCCESSFUL)
        assert row.tables_failed == statuses.count(TableStatus.FAILED)
        assert row.tables_remaining == statuses.count(TableStatus.NOT_STARTED) + statuses.count(TableStatus.IN_PROGRESS)


def test_counts_are_made_for_the_rows_of_the_page_only(sqlite_rows):
    with sqlite_rows.read() as connection:
        seen = []
        sa.event.listen(connection, "before_cursor_execute", lambda _, __, statement, values, *___: seen.append((statement, values)))
        select.select(connection, Run, Query(order=(Order(Attribute("started_at"), True), Order(Attribute("id"))), top=1))
        [(statement, values)] = seen
        plan = [row[3] for row in connection.exec_driver_sql(f"explain query plan {statement}", values)]
    assert any("ix_runs_started_at_id" in step for step in plan), plan
    assert sum("SEARCH run_tables USING COVERING INDEX" in step for step in plan) == 3, plan


@pytest.mark.parametrize("order", [
    ("status",), ("-started_at",), ("ended_at", "-source"), ("-tables_failed",), ("id",), ("details", "-id")])
def test_pages_begin_behind_the_row_before(store, order):
    orders = [Order(Attribute(name.removeprefix("-")), name.startswith("-")) for name in order]
    orders = tuple(orders if any(o.by == Attribute("id") for o in orders) else [*orders, Order(Attribute("id"))])
    with store.read() as connection:
        whole = select.select(connection, Run, Query(order=orders))
        for n, row in enumerate(whole):
            values = tuple(select.UNSET if (v := getattr(row, o.by.name)) is None else v for o in orders)
            assert select.select(connection, Run, Query(order=orders, after=values)) == whole[n + 1:]


def test_a_run_is_reached_from_its_tables(store):
    with store.read() as connection:
        status = Attribute("status", ("run",))
        found = select.select(connection, RunTable, Query(where=of("not", of("eq", status, RunStatus.IN_PROGRESS))))
        assert {row.run_id for row in found} == {"r0", "r2", "r3", "r4"}
        assert select.count(connection, RunTable, of("gt", Attribute("tables_failed", ("run",)), 100)) == 0
