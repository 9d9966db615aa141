"""Whatever the API filters and orders the tables of all runs by, an index leads to them: read from the plans of both databases."""

import re
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from skylift.api.parse import parse_options
from skylift.api.reading import _order, _sort_value
from skylift.api.resources_v2 import EVENTS, RUN_TABLES, TABLES
from skylift.model import new_id
from skylift.query import Query
from skylift.runs import ReplicationType, RunStatus, TableStatus
from skylift.store import open_store, select
from skylift.store.tables import events, registry, run_tables, runs
from tests.store.conftest import START

RUNS, TABLES_OF_A_RUN = 40, 500
RUN, TABLE = "run-07", "Table 5"
LITERALS = {                                       # property: values that many rows have, few, and none
    "id": (UUID(int=1),), "runId": (RUN,), "companyName": ("CRONUS", "Rare", "Nobody"), "tableName": (TABLE,),
    "status": ("Successful", "In Progress", "Warning"), "recordsCopied": (0, 37, 5000), "totalRecords": (1009, 7, -1),
    "errors": ("", "disk full", "x"), "errorCode": ("", "50007", "x")}
PAGE = 50


@pytest.fixture(scope="module")
def sqlite_store(tmp_path_factory):
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('indexes')}/store.sqlite")
    fill(store)
    yield store
    store.close()


@pytest.fixture(scope="module")
def postgres_store(postgres_url):
    server = sa.create_engine(sa.engine.make_url(postgres_url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    name = f"test_{uuid4().hex[:12]}"
    with server.connect() as connection:
        connection.exec_driver_sql(f'create database "{name}"')
    store = open_store(sa.engine.make_url(postgres_url).set(database=name).render_as_string(hide_password=False))
    fill(store)
    with store.write() as connection:
        connection.execute(sa.text("analyze"))
    yield store
    store.close()
    with server.connect() as connection:
        connection.exec_driver_sql(f'drop database "{name}" with (force)')
    server.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def store(request):
    return request.getfixturevalue(f"{request.param}_store")


def fill(store):
    with store.write() as connection:
        for run in range(RUNS):
            connection.execute(runs.insert().values(
                id=new_id(), run_id=f"run-{run:02}", started_at=START + timedelta(hours=run), ended_at=START,
                replication_type=ReplicationType.NORMAL, status=RunStatus.COMPLETED, source="", details=""))
            connection.execute(run_tables.insert(), [{
                "id": new_id(), "run_id": f"run-{run:02}",
                "table_name": f"Table {n}", "company_name": "Rare" if n == run == 3 else "CRONUS",
                "status": status(run, n), "records_copied": 0 if n % 2 else n, "total_records": 7 if n == run == 5 else 1009,
                "errors": "disk full" if n == run == 9 else "", "error_code": "50007" if n == run == 9 else ""}
                for n in range(TABLES_OF_A_RUN)])


    with store.write() as connection:
        connection.execute(events.insert(), [
            {"at": START + timedelta(seconds=n), "actor": "admin" if n % 3 else "coordinator", "event": "rare" if n == 77 else "log",
             "subject": "migration" if n % 5 else f"run {n}", "from_state": "", "to_state": "", "why": ""} for n in range(5000)])
        connection.execute(registry.insert(), [{"company_name": f"C {n % 7}", "table_name": f"Table {n}"} for n in range(5000)])


def status(run, table):
    if run == RUNS - 1 and table < 9:
        return TableStatus.IN_PROGRESS
    return TableStatus.NOT_STARTED if table % 3 else TableStatus.SUCCESSFUL


def options(where, order, shown=RUN_TABLES):
    return parse_options({name: text for name, text in (("$filter", where), ("$orderby", order)) if text}, shown, "1.0", single=False)


def plan(store, where, order, after=False, shown=RUN_TABLES):
    """The steps that the page of a request takes, and how many rows it has; `after`: of the page behind the first one."""
    asked = options(where, order, shown)
    orders = _order(shown, asked, None)
    seen = []
    with store.read() as connection:
        behind = None
        if after:
            rows = select.select(connection, shown.row, Query(asked.where, orders, 0, PAGE))
            if len(rows) < PAGE:
                return [], len(rows)
            behind = tuple(_sort_value(shown, by, rows[-1]) for by in orders)
        sa.event.listen(connection, "before_cursor_execute", lambda _, __, statement, values, *___: seen.append((statement, values)))
        rows = select.select(connection, shown.row, Query(asked.where, orders, 0, PAGE, behind))
        statement, values = seen[-1]
        explain = "explain query plan " if connection.dialect.name == "sqlite" else "explain "
        return [row[-1] for row in connection.exec_driver_sql(explain + statement, values)], len(rows)


def whole_table(steps):
    return [step for step in steps if (re.search(r"SCAN (run_tables|events|registry)", step) and "INDEX" not in step) or "Seq Scan" in step]


def sorted_all(steps):
    return [step for step in steps if "TEMP B-TREE" in step or ("Sort" in step and "Incremental" not in step and "Key" not in step)]


@pytest.mark.rule("P3", "G2")
@pytest.mark.parametrize("direction", ["asc", "desc"])
@pytest.mark.parametrize("name", LITERALS)
def test_every_order_is_that_of_an_index_on_every_page(store, name, direction):
    for after in (False, True):
        steps, found = plan(store, "", f"{name} {direction}", after)
        assert found == PAGE
        assert not whole_table(steps), steps
        if name != "runId":                             # a run's rows are sorted by id, run by run
            assert not sorted_all(steps), steps


@pytest.mark.rule("F1", "F4")
@pytest.mark.parametrize("order", ["", "same", "same desc", "recordsCopied desc"])
@pytest.mark.parametrize("name", LITERALS)
def test_every_comparison_goes_by_an_index(store, name, order):
    order = order.replace("same", name)
    for literal in LITERALS[name]:
        text = f"'{literal}'" if isinstance(literal, str) else literal
        conditions = [f"{name} {operator} {text}" for operator in (("eq", "ne") if name == "id" else ("eq", "ne", "gt", "ge", "lt", "le"))]
        conditions += [f"{name} in ({text})"]
        if isinstance(literal, str) and name != "status" and literal:
            conditions += [f"startswith({name},'{literal[:3]}')", f"{name} eq '{literal[:3]}*'"]
        for condition in conditions:
            for after in (False, True):
                steps, _ = plan(store, condition, order, after)
                assert not whole_table(steps), (condition, order, after, steps)


@pytest.mark.parametrize("direction", ["asc", "desc"])
@pytest.mark.parametrize(("where", "order", "kept"), [
    ("status ne 'Successful'", "status", lambda row: row.status != "Successful"),
    ("status ne 'In Progress' and recordsCopied ne 4", "status", lambda row: row.status != "InProgress" and row.records_copied != 4),
    ("recordsCopied ne 0", "recordsCopied", lambda row: row.records_copied != 0),
    ("1 eq 2 and recordsCopied ne 0", "recordsCopied", lambda row: False),
    (f"tableName ne '{TABLE}'", "tableName", lambda row: row.table_name != TABLE),
    (f"tableName ne '{TABLE}' and tableName ne 'Table 0'", "tableName", lambda row: row.table_name not in (TABLE, "Table 0")),
    ("errors ne 'disk full'", "errors", lambda row: row.errors != "disk full"),
])
def test_pages_in_the_order_of_what_a_filter_leaves_out_hold_every_other_row_once(store, where, order, kept, direction):
    asked = options(where, f"{order} {direction}")
    orders = _order(RUN_TABLES, asked, None)
    with store.read() as connection:
        expected = [row.id for row in select.select(connection, RUN_TABLES.row, Query(None, orders)) if kept(row)]
        found, behind = [], None
        while page := select.select(connection, RUN_TABLES.row, Query(asked.where, orders, 0, 1_700, behind)):
            found += [row.id for row in page]
            behind = tuple(_sort_value(RUN_TABLES, by, page[-1]) for by in orders)
    assert found == expected


@pytest.mark.parametrize(("where", "order", "index"), [
    ("status eq 'In Progress'", "", "ix_run_tables_rank_id"),                       # few: found, then sorted
    ("recordsCopied ge 0 and status eq 'In Progress'", "tableName", "ix_run_tables_rank_id"),
    ("status ne 'Successful'", "tableName", "ix_run_tables_table_name_id"),         # many: the order's index until the page is full
    ("errors ne ''", "", "ix_run_tables_errors_id"),
    ("errors eq '' and status eq 'Successful'", "totalRecords desc", "ix_run_tables_total_records_id"),
    (f"runId eq '{RUN}' and status eq 'Successful'", "recordsCopied desc", "ix_run_tables_run_id_status"),
    (f"tableName eq '{TABLE}' and recordsCopied ge 0", "", "ix_run_tables_table_name_id"),
    (f"runId eq '{RUN}' and recordsCopied eq 0", "", "sqlite_autoindex_run_tables"),
    ("recordsCopied eq 2 or recordsCopied eq 4", "", "ix_run_tables_records_copied_id"),
])
def test_a_filter_goes_by_what_few_rows_have_and_else_by_the_order(sqlite_store, where, order, index):
    steps, found = plan(sqlite_store, where, order)
    assert found and any(index in step for step in steps), steps


@pytest.mark.rule("P3", "G2")
@pytest.mark.parametrize(("where", "order"), [
    ("", ""), ("", "time"), ("", "time desc"), ("", "actor"), ("", "subject desc"), ("", "event"), ("time ge 2026-03-01T12:00:00Z", "time"),
    ("subject eq 'migration'", ""), ("actor eq 'admin'", ""), ("event eq 'rare'", ""), ("startswith(subject,'run ')", "subject"),
    ("id gt 5", ""), ("id gt 5", "id")])
def test_events_are_found_by_an_index_on_every_page(store, where, order):
    for after in (False, True):
        steps, _ = plan(store, where, order, after, EVENTS)
        assert not sorted_all(steps), (after, steps)
        assert not whole_table(steps) or not (where or order), (after, steps)       # the table is in the order of the key


@pytest.mark.parametrize(("where", "order"), [("", ""), ("", "companyName desc,tableName desc"), ("companyName eq 'C 3'", "tableName")])
def test_switches_are_read_in_their_order_by_an_index(store, where, order):
    for after in (False, True):
        steps, found = plan(store, where, order, after, TABLES)
        assert found and not whole_table(steps) and not sorted_all(steps), (after, steps)


def test_ids_sort_in_the_order_in_which_they_are_made():
    ids = [new_id() for _ in range(3)]
    assert all(id.version == 7 and id.variant == "specified in RFC 4122" for id in ids)
    assert sorted(id.int >> 80 for id in ids) == [id.int >> 80 for id in ids]
