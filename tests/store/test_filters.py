"""Random filters find the rows that a plain evaluation in Python finds, on both databases.

A strategy draws pairs: the filter as text, and what it means for a row. Nothing of skylift is used for the meaning.
"""

import operator
import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skylift.api.filter import parse_filter
from skylift.api.resources import RUN_TABLES, RUNS, SOURCE_COMPANIES
from skylift.query import Query
from skylift.runs import CompanyInit, RunStatus, TableStatus
from skylift.store import select
from tests.store.conftest import NAMES, START

CAPTIONS = {TableStatus.IN_PROGRESS: "In Progress", TableStatus.NOT_STARTED: "Not Started"}
UNSET = datetime(1, 1, 1, tzinfo=UTC)
RUN_CAPTIONS = {RunStatus.IN_PROGRESS: "In Progress", RunStatus.UPGRADE_PENDING: "Upgrade Pending",
                RunStatus.UPGRADE_IN_PROGRESS: "Upgrade in Progress", RunStatus.UPGRADE_FAILED: "Upgrade Failed",
                RunStatus.REPAIR_DATA_PENDING: "Data Repair Pending"}
STATUS_OF = {f"r{n}": status for n, status in enumerate(RunStatus)}             # as the rows are made

OPERATORS = {name: getattr(operator, name) for name in ("eq", "ne", "gt", "ge", "lt", "le")}

SEARCHES = {"contains": "__contains__", "startswith": "startswith", "endswith": "endswith"}


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


def constant(text, value):
    return text, lambda row: value


words = st.sampled_from([*NAMES, "$", "*", "'", "0", "e", "Progress", "in"]).map(lambda w: constant(quoted(w), w))
numbers = st.one_of(st.integers(-3, 40), st.decimals(-3, 40, places=1)).map(lambda n: constant(str(n), n))
moments = st.integers(-2, 40).map(lambda n: START + timedelta(minutes=n)).map(lambda t: constant(f"{t:%Y-%m-%dT%H:%MZ}", t))
TEXTS = st.sampled_from([
    ("companyName", lambda row: row.company_name), ("tableName", lambda row: row.table_name), ("errors", lambda row: row.errors),
    ("runId", lambda row: row.run_id), ("tolower(status)", lambda row: CAPTIONS.get(row.status, row.status.value).lower())])
texts = st.recursive(
    words | TEXTS, lambda inner: st.one_of(
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
    """Whether no literal is a pattern."""
    return "*" not in pair[0]


def matched(subjects):
    """Equality with a literal in which * stands for any characters."""
    def meaning(subject, negated, text):
        pattern = re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL)
        operator = "ne" if negated else "eq"
        return f"{subject[0]} {operator} {quoted(text)}", lambda row: (pattern.fullmatch(subject[1](row)) is None) is negated

    texts = st.lists(st.sampled_from(("*", "a", "A", "b_", "%", "[", "r", "ß", "\\", "s", " ")), min_size=1, max_size=4).map("".join)
    return st.builds(meaning, subjects, st.booleans(), texts.filter(lambda text: "*" in text))


def combined(leaves):
    """Conditions joined by and, or, not and comparison with true and false."""
    return st.recursive(leaves, lambda inner: st.one_of(
        inner.map(lambda a: (f"not ({a[0]})", lambda row: not a[1](row))),
        st.tuples(inner, inner).map(lambda p: (f"({p[0][0]}) and ({p[1][0]})", lambda row: p[0][1](row) and p[1][1](row))),
        st.tuples(inner, inner).map(lambda p: (f"({p[0][0]}) or ({p[1][0]})", lambda row: p[0][1](row) or p[1][1](row))),
        st.tuples(inner, st.booleans()).map(
            lambda p: (f"({p[0][0]}) eq {str(p[1]).lower()}", lambda row: bool(p[0][1](row)) == p[1]))), max_leaves=8)


def chosen(name, attribute, values, spell):
    """Membership in a list of literals."""
    return st.lists(st.sampled_from(values), min_size=1, max_size=3).map(
        lambda some: (f"{name} in ({','.join(map(spell, some))})", lambda row: getattr(row, attribute) in some))


def ordinal(name, attribute, option, captions=None):
    """Comparison of an option, by its ordinal."""
    spelt = captions or {}
    return st.tuples(st.sampled_from(tuple(OPERATORS)), st.sampled_from(list(option))).map(
        lambda p: (f"{name} {p[0]} {quoted(spelt.get(p[1], p[1].value))}",
                   lambda row: OPERATORS[p[0]](list(option).index(getattr(row, attribute)), list(option).index(p[1]))))


# ------------------------------------------------------------------ details

of_tables = combined(st.one_of(
    comparison(texts.filter(plain)), comparison(counts), comparison(moments), matched(TEXTS),
    st.tuples(texts, st.sampled_from(tuple(SEARCHES)), texts).map(
        lambda p: (f"{p[1]}({p[0][0]},{p[2][0]})", lambda row: getattr(str, SEARCHES[p[1]])(p[0][1](row), p[2][1](row)))),
    chosen("status", "status", list(TableStatus), lambda status: quoted(CAPTIONS.get(status, status.value))),
    chosen("recordsCopied", "records_copied", range(30), str), chosen("companyName", "company_name", NAMES, quoted),
    ordinal("status", "status", TableStatus),
    st.sampled_from(list(RunStatus)).map(lambda status: (f"cloudMigrationStatus/status eq {quoted(status.value)}",
                                                         lambda row: STATUS_OF[row.run_id] is status)),
    st.sampled_from([("true", lambda row: True), ("errors eq null", lambda row: row.errors == ""),
                     ("null ne companyName", lambda row: row.company_name != "")])))

# ------------------------------------------------------------------ runs: times


def shown(moment):
    """A time as the API shows it: cut to the millisecond."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def spelt(moment, offset_h, digits):
    """A literal for a time; digits beyond the microseconds are zeros."""
    local = moment.astimezone(timezone(timedelta(hours=offset_h)))
    fraction = f".{local.microsecond:06}0"[:digits + 1] if digits else ""
    zone = "Z" if offset_h == 0 else f"{'-' if offset_h < 0 else '+'}{abs(offset_h):02}:00"
    return f"{local:%Y-%m-%dT%H:%M:%S}{fraction}{zone}", moment.replace(microsecond=int(fraction[1:].ljust(6, "0")[:6] or 0))


times = st.builds(spelt, st.builds(lambda n, micros: START + timedelta(hours=n, microseconds=137_358 * n + micros), st.integers(-1, 6),
                                   st.sampled_from((-1000, -358, -1, 0, 1, 642, 1000))), st.integers(-3, 3), st.sampled_from((0, 3, 6, 7)))
STARTED = ("startTime", lambda row: row.started_at)
ENDED = ("endTime", lambda row: row.ended_at or UNSET)
of_runs = combined(st.one_of(
    st.tuples(st.sampled_from((STARTED, ENDED)), st.sampled_from(tuple(OPERATORS)), times).map(
        lambda p: (f"{p[0][0]} {p[1]} {p[2][0]}", lambda row: OPERATORS[p[1]](shown(p[0][1](row)), p[2][1]))),
    st.tuples(times, st.sampled_from(tuple(OPERATORS))).map(
        lambda p: (f"{p[0][0]} {p[1]} startTime", lambda row: OPERATORS[p[1]](p[0][1], shown(row.started_at)))),
    st.sampled_from(tuple(OPERATORS)).map(
        lambda name: (f"startTime {name} endTime", lambda row: OPERATORS[name](row.started_at, row.ended_at or UNSET))),
    st.tuples(st.sampled_from(("year", "month", "day", "hour", "minute", "second")), st.sampled_from((STARTED, ENDED)),
              st.sampled_from(tuple(OPERATORS)), st.sampled_from((0, 1, 3, 12, 14, 2026))).map(
        lambda p: (f"{p[0]}({p[1][0]}) {p[2]} {p[3]}", lambda row: OPERATORS[p[2]](getattr(p[1][1](row), p[0]), p[3]))),
    comparison(numbers | st.sampled_from([
        ("tablesFailed", lambda row: row.tables_failed), ("tablesRemaining", lambda row: row.tables_remaining),
        ("tablesSuccessful", lambda row: row.tables_successful)])),
    ordinal("status", "status", RunStatus, RUN_CAPTIONS), matched(st.sampled_from([
        ("details", lambda row: row.details), ("source", lambda row: row.source),
        ("status", lambda row: RUN_CAPTIONS.get(row.status, row.status.value))])),
    st.sampled_from([("endTime eq null", lambda row: row.ended_at is None), ("null ne endTime", lambda row: row.ended_at is not None)])))

# ------------------------------------------------------------------ companies: flags, decimals, GUIDs

FLAGS = st.sampled_from([("replicate", lambda row: row.replicate), ("created", lambda row: row.created),
                         ("contains(name,'a')", lambda row: "a" in row.name), ("true", lambda row: True)])
sizes = st.one_of(st.just(("estimatedSize", lambda row: row.estimated_size)),
                  st.integers(-8, 16).map(lambda n: constant(str(Decimal(n) / 8), Decimal(n) / 8)),
                  st.integers(-1, 2).map(lambda n: constant(str(n), n)))
of_companies = combined(st.one_of(
    FLAGS, comparison(FLAGS, ("eq", "ne")), comparison(sizes), matched(st.sampled_from([
        ("name", lambda row: row.name), ("tolower(displayName)", lambda row: row.display_name.lower())])),
    chosen("id", "id", [UUID(int=n) for n in range(199, 215)], str),
    st.tuples(st.sampled_from(("eq", "ne")), st.integers(199, 215).map(lambda n: UUID(int=n))).map(
        lambda p: (f"id {p[0]} {str(p[1]).upper()}", lambda row: OPERATORS[p[0]](row.id, p[1]))),
    chosen("name", "name", NAMES, quoted), ordinal("companyInitializationStatus", "init_status", CompanyInit, {
        CompanyInit.NOT_INITIALIZED: "Not Initialized", CompanyInit.INITIALIZATION_FAILED: "Initialization Failed"})))


# ------------------------------------------------------------------ the tests


def check(store, entity_set, condition):
    text, meaning = condition
    where = parse_filter(text, entity_set, "1.0")
    with store.read() as connection:
        rows = select.select(connection, entity_set.row, Query())
        expected = {row.id for row in rows if meaning(row)}
        assert {row.id for row in select.select(connection, entity_set.row, Query(where=where))} == expected, text
        assert select.count(connection, entity_set.row, where) == len(expected), text


CONDITIONS = {RUN_TABLES: of_tables, RUNS: of_runs, SOURCE_COMPANIES: of_companies}


@pytest.mark.rule("F1", "F3", "F4", "F5", "F6")
@pytest.mark.parametrize("entity_set", CONDITIONS, ids=lambda entity_set: entity_set.name)
@pytest.mark.parametrize(("database", "examples"), [("sqlite_rows", 250), ("postgres_rows", 120)])
def test_random_filters_find_what_python_finds(request, database, examples, entity_set):
    store = request.getfixturevalue(database)

    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(CONDITIONS[entity_set])
    def find(condition):
        check(store, entity_set, condition)

    find()
