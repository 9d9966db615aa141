"""Queries give the same rows on every database, and those that a plain evaluation in Python gives."""

import operator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skylift.api.filter import parse_filter
from skylift.api.resources import RUN_TABLES
from skylift.model import ProductType, Run, RunTable, SourceCompany
from skylift.query import Attribute, Call, Literal, Order, Query
from skylift.runs import CompanySetupStatus, ReplicationType, RunStatus, TableStatus
from skylift.store import open_store, select
from skylift.store.tables import run_tables, runs, source_companies

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
NAMES = ["", "a", "A", "b_", "b%", "[x]", "Ärger", "ärger", "Z*z", "ab\\c", "😀", "straße", "a b", "G_L Entry$437d"]
CAPTIONS = {TableStatus.IN_PROGRESS: "In Progress", TableStatus.NOT_STARTED: "Not Started"}


@contextmanager
def filled(url):
    store = open_store(url)
    with store.write() as connection:
        fill(connection)
    yield store
    store.close()


@pytest.fixture(scope="session")
def sqlite_rows(tmp_path_factory):
    with filled(f"sqlite:///{tmp_path_factory.mktemp('select')}/store.sqlite") as store:
        yield store


@pytest.fixture(scope="session")
def postgres_rows(postgres_url):
    url = sa.engine.make_url(postgres_url)
    server = sa.create_engine(url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    name = f"test_{uuid4().hex[:12]}"
    with server.connect() as connection:
        connection.exec_driver_sql(f'create database "{name}"')
        with filled(url.set(database=name).render_as_string(hide_password=False)) as store:
            yield store
        connection.exec_driver_sql(f'drop database "{name}" with (force)')
    server.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request):
    return request.getfixturevalue("sqlite_rows" if request.param == "sqlite" else "postgres_rows")


def fill(connection):
    for n in range(6):
        connection.execute(runs.insert().values(
            id=UUID(int=n + 1), run_id=f"r{n}", started_at=START + timedelta(hours=n), ended_at=None if n % 3 == 2 else START,
            replication_type=ReplicationType.NORMAL, status=list(RunStatus)[n], source=NAMES[n], details=NAMES[-n]))
    for n in range(len(NAMES) * 2):
        connection.execute(run_tables.insert().values(
            id=UUID(int=100 + n), run_id=f"r{n % 5}", company_name=NAMES[n // 2], table_name=NAMES[n % len(NAMES)] + str(n % 3),
            status=list(TableStatus)[n % 5], records_copied=n, total_records=n * n % 17, errors=NAMES[-n % len(NAMES)],
            ended_at=None if n % 2 else START + timedelta(minutes=n)))
    for n, name in enumerate(NAMES[1:]):
        connection.execute(source_companies.insert().values(
            id=UUID(int=200 + n), name=name, display_name=name, estimated_size=Decimal(n) / 8, replicate=n % 2 == 0, created=n % 3 == 0))


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


# ------------------------------------------------------------------ random filters, judged by Python
# A strategy draws pairs: the filter as text, and what it means for a row. Nothing of skylift is used for the meaning.

OPERATORS = {name: getattr(operator, name) for name in ("eq", "ne", "gt", "ge", "lt", "le")}

SEARCHES = {"contains": "__contains__", "startswith": "startswith", "endswith": "endswith"}


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


def constant(text, value):
    return text, lambda row: value


words = st.sampled_from([*NAMES, "$", "*", "'", "0", "e", "Progress", "in"]).map(lambda w: constant(quoted(w), w))
numbers = st.one_of(st.integers(-3, 40), st.decimals(-3, 40, places=1)).map(lambda n: constant(str(n), n))
moments = st.integers(-2, 40).map(lambda n: START + timedelta(minutes=n)).map(lambda t: constant(f"{t:%Y-%m-%dT%H:%MZ}", t))
texts = st.recursive(
    st.one_of(words, st.sampled_from([
        ("companyName", lambda row: row.company_name), ("tableName", lambda row: row.table_name), ("errors", lambda row: row.errors),
        ("runId", lambda row: row.run_id), ("tolower(status)", lambda row: CAPTIONS.get(row.status, row.status.value).lower())])),
    lambda inner: st.one_of(
        inner.map(lambda a: (f"tolower({a[0]})", lambda row: a[1](row).lower())),
        inner.map(lambda a: (f"toupper({a[0]})", lambda row: a[1](row).upper())),
        inner.map(lambda a: (f"trim({a[0]})", lambda row: a[1](row).strip(" \t\r\n\v\f"))),
        st.tuples(inner, inner).map(lambda p: (f"concat({p[0][0]},{p[1][0]})", lambda row: p[0][1](row) + p[1][1](row))),
        st.tuples(inner, st.integers(0, 4), st.integers(0, 4)).map(
            lambda p: (f"substring({p[0][0]},{p[1]},{p[2]})", lambda row: p[0][1](row)[p[1]:p[1] + p[2]]))), max_leaves=4)
counts = st.one_of(
    numbers, st.sampled_from([("recordsCopied", lambda row: row.records_copied), ("totalRecords", lambda row: row.total_records)]),
    texts.map(lambda a: (f"length({a[0]})", lambda row: len(a[1](row)))),
    st.tuples(texts, texts).map(lambda p: (f"indexof({p[0][0]},{p[1][0]})", lambda row: p[0][1](row).find(p[1][1](row)))))


def comparison(sides, names=tuple(OPERATORS)):
    return st.tuples(sides, st.sampled_from(names), sides).map(
        lambda p: (f"{p[0][0]} {p[1]} {p[2][0]}", lambda row: OPERATORS[p[1]](p[0][1](row), p[2][1](row))))


def plain(pair):
    """Whether no literal is a pattern, whose meaning has its own tests."""
    return "*" not in pair[0]


conditions = st.recursive(
    st.one_of(
        comparison(texts.filter(plain)), comparison(counts), comparison(moments),
        st.tuples(texts, st.sampled_from(tuple(SEARCHES)), texts).map(
            lambda p: (f"{p[1]}({p[0][0]},{p[2][0]})", lambda row: getattr(str, SEARCHES[p[1]])(p[0][1](row), p[2][1](row)))),
        st.lists(st.sampled_from(list(TableStatus)), min_size=1, max_size=3).map(
            lambda s: (f"status in ({','.join(quoted(CAPTIONS.get(v, v.value)) for v in s)})", lambda row: row.status in s)),
        st.lists(st.integers(0, 30), min_size=1, max_size=3).map(
            lambda s: (f"recordsCopied in ({','.join(map(str, s))})", lambda row: row.records_copied in s)),
        st.tuples(st.sampled_from(tuple(OPERATORS)), st.sampled_from(list(TableStatus))).map(
            lambda p: (f"status {p[0]} {quoted(p[1].value)}",
                       lambda row: OPERATORS[p[0]](list(TableStatus).index(row.status), list(TableStatus).index(p[1])))),
        st.sampled_from([("true", lambda row: True), ("errors eq null", lambda row: row.errors == ""),
                         ("null ne companyName", lambda row: row.company_name != "")])),
    lambda inner: st.one_of(
        inner.map(lambda a: (f"not ({a[0]})", lambda row: not a[1](row))),
        st.tuples(inner, inner).map(lambda p: (f"({p[0][0]}) and ({p[1][0]})", lambda row: p[0][1](row) and p[1][1](row))),
        st.tuples(inner, inner).map(lambda p: (f"({p[0][0]}) or ({p[1][0]})", lambda row: p[0][1](row) or p[1][1](row))),
        st.tuples(inner, st.booleans()).map(
            lambda p: (f"({p[0][0]}) eq {str(p[1]).lower()}", lambda row: bool(p[0][1](row)) == p[1]))), max_leaves=8)


def check(store, condition):
    text, meaning = condition
    where = parse_filter(text, RUN_TABLES, "1.0")
    with store.read() as connection:
        rows = select.select(connection, RunTable, Query())
        expected = {row.id for row in rows if meaning(row)}
        assert {row.id for row in select.select(connection, RunTable, Query(where=where))} == expected, text
        assert select.count(connection, RunTable, where) == len(expected), text


@pytest.mark.rule("F1", "F3")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conditions)
def test_random_filters_find_on_sqlite_what_python_finds(sqlite_rows, condition):
    check(sqlite_rows, condition)


@pytest.mark.rule("F1", "F3")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conditions)
def test_random_filters_find_on_postgresql_what_python_finds(postgres_rows, condition):
    check(postgres_rows, condition)
