"""A Query as SQLAlchemy Core over the tables of the store.

Text compares by code point, knows no patterns but `like`, and a time that is not set compares as 0001-01-01: the same on
SQLite and PostgreSQL. No expression is ever NULL, so `not` means not.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import Grouping, UnaryExpression

from skylift.errors import SetupError
from skylift.model import TABLE_ROWS, Run, RunTable, RunTableProgress
from skylift.query import Attribute, Call, Expression, Literal, Order, Query
from skylift.runs import TableStatus
from skylift.store.steering import FREE, beside, steer
from skylift.store.tables import TABLES, Enumerated, UtcDateTime, rank, run_tables

Row = TypeVar("Row")

UNSET = datetime(1, 1, 1, tzinfo=UTC)
_OPEN = (TableStatus.NOT_STARTED, TableStatus.IN_PROGRESS)
COUNTED = {                                             # counts of Run, from the rows of run_tables. Source: behaviour.md §2.4
    "tables_successful": (TableStatus.SUCCESSFUL,),
    "tables_failed": (TableStatus.FAILED,),
    "tables_remaining": _OPEN,
    "tables_with_warnings": (TableStatus.WARNING,),     # this one and the next of RunProgress
    "tables_total": tuple(TableStatus),
}
_open = sa.case((run_tables.c.records_copied < run_tables.c.total_records, run_tables.c.records_copied), else_=run_tables.c.total_records)
SUMMED = {                                              # of RunProgress, likewise
    "records_copied": run_tables.c.records_copied,
    "resumed": run_tables.c.resumed,
    "total_records": run_tables.c.total_records,
    "size_bytes": run_tables.c.size_bytes,
    "work_done": sa.case((run_tables.c.status.in_(_OPEN), _open), else_=run_tables.c.total_records + TABLE_ROWS),
}
_GIVEN: dict[type, Any] = {str: sa.Text, UUID: sa.Uuid, bool: sa.Boolean}
# single-valued ways: what Attribute.path names, and the column that both have
PARENTS: dict[tuple[type, str], tuple[type, str]] = {(kind, "run"): (Run, "run_id") for kind in (RunTable, RunTableProgress)}
_WHITESPACE = " \t\n\r\v\f"


def select(connection: sa.Connection, kind: type[Row], query: Query, rows: Sequence[Row] | None = None) -> list[Row]:
    """The rows of model class `kind` that `query` asks for; of `rows`, where they are not kept in the store."""
    source = _source(kind, rows)
    if source is None:
        return []
    of_run = issubclass(kind, RunTable)
    if of_run and query.top and (halves := beside(query)):
        first = select(connection, kind, halves[0])
        return first + (select(connection, kind, replace(halves[1], top=query.top - len(first))) if len(first) < query.top else [])
    way = FREE
    if of_run and connection.dialect.name == "sqlite":
        way = steer(query, lambda where, most: _count_to(connection, kind, where, most))
    compiler = _Compiler(kind, source.c, connection.dialect.name, way.unindexed)
    sorter = _Compiler(kind, source.c, connection.dialect.name, way.unsorted)
    asked = {f.name for f in fields(kind)}                # type: ignore[arg-type]
    shown = [c for c in source.c if c.name in asked] if rows is None and not issubclass(kind, Run) else [source]
    page = sa.select(*shown).order_by(*sorter.order(query.order)).limit(query.top)
    if query.skip:
        page = page.offset(query.skip)
    if query.where is not None:
        page = page.where(compiler.compile(query.where))
    if query.after is not None:
        page = page.where(sorter.after(query.order, query.after))
    if issubclass(kind, Run):
        page = _counted(kind, page.cte("page"), query.order, connection.dialect.name)
    found = _execute(connection, page)
    if rows is not None:
        return [rows[row["position"]] for row in found.mappings()]
    places = {column: place for place, column in enumerate(found.keys())}
    names = [f.name for f in fields(kind) if f.name in places]     # type: ignore[arg-type]
    values = operator.itemgetter(*(places[name] for name in names))
    return [kind(**dict(zip(names, values(row), strict=True))) for row in found]


def _counted(kind: type[Run], page: sa.CTE, orders: Sequence[Order], dialect: str) -> sa.Select[Any]:
    """The runs of a page with what their tables add up to: worked out for them only, however many there are."""
    outer = _Compiler(kind, page.c, dialect)
    names = [f.name for f in fields(kind) if f.name in COUNTED or f.name in SUMMED]
    if SUMMED.keys().isdisjoint(names):                 # an index alone can tell
        return sa.select(page, *(outer.attribute(name).label(name) for name in names)).order_by(*outer.order(orders))
    each = {name: sa.case((run_tables.c.status.in_(statuses), 1), else_=0) for name, statuses in COUNTED.items()} | SUMMED
    sums = sa.select(run_tables.c.run_id, *(_sum(each[name]).label(name) for name in names)).where(
        run_tables.c.run_id.in_(sa.select(page.c.run_id))).group_by(run_tables.c.run_id).subquery("sums")
    return sa.select(page, *(sa.func.coalesce(sums.c[name], 0).label(name) for name in names)).outerjoin(
        sums, sums.c.run_id == page.c.run_id).order_by(*outer.order(orders))


def _sum(values: Any) -> Any:
    """PostgreSQL would answer with decimals."""
    return sa.cast(sa.func.coalesce(sa.func.sum(values), 0), sa.BigInteger)


def count(connection: sa.Connection, kind: type, where: Expression | None = None, rows: Sequence[Any] | None = None) -> int:
    """How many rows of `kind` (of `rows`, if given) satisfy `where`."""
    source = _source(kind, rows)
    if source is None:
        return 0
    statement = sa.select(sa.func.count()).select_from(source)
    if where is not None:
        statement = statement.where(_Compiler(kind, source.c, connection.dialect.name).compile(where))
    return _execute(connection, statement).scalar_one()


def _count_to(connection: sa.Connection, kind: type, where: Expression, most: int) -> int:
    """How many rows satisfy `where`, counted no further than `most`."""
    some: sa.Select[Any] = sa.select(sa.literal_column("1")).select_from(TABLES[kind]).limit(most)
    some = some.where(_Compiler(kind, TABLES[kind].c, connection.dialect.name, frozenset({"run_id"})).compile(where))
    return connection.execute(sa.select(sa.func.count()).select_from(some.subquery())).scalar_one()


def _execute(connection: sa.Connection, statement: Any) -> sa.Result[Any]:
    """Raises SetupError for a filter nested more deeply than SQLite before 3.46 can parse (about 30 calls in one another)."""
    try:
        return connection.execute(statement)
    except sa.exc.OperationalError as error:
        if "parser stack overflow" not in str(error.orig):
            raise
        raise SetupError("the filter is nested too deeply for the store", hint="write it with fewer levels", code="FilterDepth") from None


def _source(kind: type, rows: Sequence[Any] | None) -> sa.FromClause | None:
    """What to select from: the table, or the attributes of `rows` that are of _GIVEN and their position; None if there are no rows."""
    if rows is None:
        return TABLES[kind]
    if not rows:
        return None
    kinds = {f.name: type for f in fields(kind) for given, type in _GIVEN.items() if isinstance(getattr(rows[0], f.name), given)}
    names = [*kinds]
    columns: list[Any] = [sa.column("position", sa.Integer), *(sa.column(name, type) for name, type in kinds.items())]
    return sa.values(*columns, name="given").data([(n, *(getattr(row, name) for name in names)) for n, row in enumerate(rows)]).cte()


class _Compiler:
    """Expressions over the columns of one table. `unindexed`: attributes by whose indexes SQLite is not to go."""

    def __init__(self, kind: type, columns: Any, dialect: str, unindexed: frozenset[str] = frozenset()) -> None:
        self.kind = kind
        self.columns = columns
        self.dialect = dialect
        self.unindexed = unindexed
        # Options have two indexes: by run and value, and by rank. PostgreSQL is given both conditions and knows which serves.
        self.by_rank = issubclass(kind, RunTable) and ("run_id" in unindexed or dialect == "postgresql")

    def attribute(self, name: str, path: tuple[str, ...] = ()) -> Any:
        if path:
            parent, key = PARENTS[self.kind, path[0]]
            source = TABLES[parent].alias()
            value = _Compiler(parent, source.c, self.dialect).attribute(name, path[1:])
            return sa.select(value).where(source.c[key] == self.columns[key]).scalar_subquery()
        if issubclass(self.kind, Run) and name in COUNTED:
            return sa.select(sa.func.count()).where(
                run_tables.c.run_id == self.columns.run_id, run_tables.c.status.in_(COUNTED[name])).scalar_subquery()
        if issubclass(self.kind, Run) and name in SUMMED:
            return sa.select(_sum(SUMMED[name])).where(run_tables.c.run_id == self.columns.run_id).scalar_subquery()
        column = self.columns[name]
        if self.kind not in TABLES:
            return column.collate("C") if self.dialect == "postgresql" and isinstance(column.type, sa.Text) else column
        stored = TABLES[self.kind].c[name]
        if name in self.unindexed:                      # https://www.sqlite.org/optoverview.html#disqualifying_where_clause_terms
            return UnaryExpression(column, operator=operators.custom_op("+"), type_=column.type)
        if not getattr(stored, "info", {}).get("null"):
            return column
        unset = UNSET if isinstance(column.type, UtcDateTime) else 0
        return sa.func.coalesce(column, sa.literal(unset, column.type), type_=column.type)

    def compile(self, expression: Expression) -> Any:
        match expression:
            case Literal(value):
                literal = sa.literal(value)
                return literal.collate("C") if isinstance(value, str) and self.dialect == "postgresql" else literal
            case Attribute(name, path):
                return self.attribute(name, path)
            case Call(name, args):
                return _CALLS[name](self, *args)

    def order(self, orders: Sequence[Order]) -> list[Any]:
        return [by.desc() if order.descending else by for order in orders for by in [self.compile(order.by)]]

    def after(self, orders: Sequence[Order], values: Sequence[Any]) -> Any:
        """Behind the row with these `values` of `orders`.

        Where all go in one direction, as a comparison of rows, which an index serves on all its columns; else with a bound on the
        first column alone, which it serves too.
        """
        if len({order.descending for order in orders}) == 1:
            here = [self.compile(order.by) for order in orders]
            there = [sa.literal(value, by.type) for by, value in zip(here, values, strict=True)]
            return sa.tuple_(*here) < sa.tuple_(*there) if orders[0].descending else sa.tuple_(*here) > sa.tuple_(*there)
        sides: list[Any] = []
        behind: list[Any] = []
        same: list[Any] = []
        for order, value in zip(orders, values, strict=True):
            by = self.compile(order.by)
            value = sa.literal(value, by.type)
            sides.append(by <= value if order.descending else by >= value)
            behind.append(sa.and_(*same, by < value if order.descending else by > value))
            same.append(by == value)
        return sa.and_(sides[0], sa.or_(*behind))

    def like(self, value: Expression, parts: Literal) -> Any:
        """The fixed `parts` in this order, the first at the beginning and the last at the end, anything between them."""
        found = self._like(value, parts)
        return sa.and_(self.starts(value, Literal(parts.value[0])), found) if parts.value[0] else found

    def _like(self, value: Expression, parts: Literal) -> Any:
        if self.dialect == "sqlite":
            pattern = "*".join("".join(f"[{c}]" if c in "*?[" else c for c in part) for part in parts.value)
            return self.compile(value).op("glob", is_comparison=True)(sa.literal(pattern, sa.Text))
        pattern = "%".join("".join(f"\\{c}" if c in "%_\\" else c for c in part) for part in parts.value)
        return self.compile(value).like(sa.literal(pattern, sa.Text), escape="\\")

    def starts(self, text: Expression, start: Expression) -> Any:
        """As bounds where that can be, which an index serves: from `start` to the least text that is greater than all that begin so."""
        if not isinstance(text, Attribute) or text.path or not isinstance(start, Literal):
            value, begin = self.compile(text), self.compile(start)
            return _substring(value, sa.literal(0), _length(begin)) == begin
        column = self.compile(text)
        stem = start.value.rstrip("\U0010ffff")
        above = [column < self.compile(Literal(stem[:-1] + _next(stem[-1])))] if stem else []
        return sa.and_(column >= self.compile(start), *above)

    def compare(self, name: str, left: Expression, right: Expression) -> Any:
        """An option by its rank, and unequal as less or greater: both are what an index can serve."""
        operation, (a, b) = getattr(operator, name), (self.compile(side).self_group() for side in (left, right))
        if not (issubclass(self.kind, RunTable) and isinstance(left, Attribute) and not left.path and isinstance(right, Literal)):
            return operation(a, b)
        if isinstance(a.type, Enumerated):
            if not self.by_rank or name not in ("eq", "ne"):
                return operation(a, b)
            place, at = rank(a, list(a.type.values)), list(a.type.values).index(right.value)
            if name == "ne":
                return sa.or_(place < at, place > at)
            return place == at if self.dialect == "sqlite" else sa.and_(place == at, a == b)     # SQLite would put b into the rank
        if name == "ne" and not isinstance(right.value, bool):
            return sa.or_(a < b, a > b) if right.value != "" else a > b
        return operation(a, b)

    def among(self, value: Expression, among: Literal) -> Any:
        column = self.compile(value)
        if self.by_rank and isinstance(value, Attribute) and not value.path and isinstance(column.type, Enumerated):
            values = list(column.type.values)
            return rank(column, values).in_([values.index(one) for one in among.value])
        return column.in_(among.value)

    def case(self, value: Expression, spellings: Literal) -> Any:
        """An option as it is spelt or ranked; `spellings` are pairs of a stored value and what stands for it."""
        if isinstance(spellings.value[0][1], int):
            return rank(self.compile(value), [stored for stored, _ in spellings.value])
        return sa.case(dict(spellings.value), value=self.compile(value), else_=type(spellings.value[0][1])())

    def cased(self, function: Callable[[Any], Any], text: Any) -> Any:
        """All of Unicode on both: SQLite's lower and upper know ASCII only, so store/__init__.py gives it Python's."""
        return function(text) if self.dialect == "sqlite" else sa.collate(function(sa.collate(text, "und-x-icu")), "C")

    def index(self, text: Any, part: Any) -> Any:
        return (sa.func.instr if self.dialect == "sqlite" else sa.func.strpos)(text, part, type_=sa.Integer) - 1

    def trim(self, text: Any) -> Any:
        return (sa.func.trim if self.dialect == "sqlite" else sa.func.btrim)(text, _WHITESPACE, type_=sa.Text)

    def part(self, name: str, time: Any) -> Any:
        time = time if self.dialect == "sqlite" else sa.func.timezone("UTC", time)
        return sa.cast(sa.func.floor(sa.extract(name, time)), sa.Integer)


def _length(text: Any) -> Any:
    return sa.func.length(text, type_=sa.Integer)


def _next(character: str) -> str:
    """The next code point that is a character: none of the surrogates."""
    return chr(0xE000 if character == "\ud7ff" else ord(character) + 1)


def _substring(text: Any, start: Any, length: Any = None) -> Any:
    return sa.func.substr(text, start + 1, *([] if length is None else [length]), type_=sa.Text)


def _endswith(text: Any, end: Any) -> Any:
    return sa.and_(_length(text) >= _length(end), _substring(text, _length(text) - _length(end)) == end)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """A call whose arguments are compiled first; conditions among them stand in parentheses: (a = b) = true."""
    return lambda compiler, *args: function(*(compiler.compile(arg).self_group() for arg in args))


def _dialect(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda compiler, *args: function(compiler, *map(compiler.compile, args))


_CALLS: dict[str, Callable[..., Any]] = {
    **{name: lambda compiler, a, b, name=name: compiler.compare(name, a, b) for name in ("eq", "ne", "gt", "ge", "lt", "le")},
    "and": _plain(sa.and_),
    "or": _plain(sa.or_),
    "not": _plain(sa.not_),
    "in": _Compiler.among,
    "like": _Compiler.like,
    "unlike": lambda compiler, value, parts: sa.not_(compiler.like(value, parts)),
    "case": _Compiler.case,
    "startswith": _Compiler.starts,
    "endswith": _plain(_endswith),
    "contains": _dialect(lambda compiler, text, part: compiler.index(text, part) >= 0),
    "indexof": _dialect(_Compiler.index),
    "substring": _plain(_substring),
    "length": _plain(_length),
    "concat": _plain(lambda a, b: Grouping(a.concat(b))),
    "trim": _dialect(_Compiler.trim),
    "tolower": _dialect(lambda compiler, text: compiler.cased(sa.func.lower, text)),
    "toupper": _dialect(lambda compiler, text: compiler.cased(sa.func.upper, text)),
    **{name: _dialect(lambda compiler, time, name=name: compiler.part(name, time))
       for name in ("year", "month", "day", "hour", "minute", "second")},
}
