"""Which index a query over the tables of all runs goes by, on SQLite, which does not know how often a value occurs.

A page is read in its order until it is full, which is quick where many rows satisfy the filter, or the few rows that satisfy a part
of it are found first and sorted. The planner without statistics of values would sort half a million rows for a page of twenty, or
look through a million for three. So what each part finds is counted first, in its index and no further than FEW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from skylift.query import Attribute, Call, Expression, Literal, Query

FEW = 2_000                       # rows that are read and sorted in the time of a page
INDEXED = frozenset(("id", "run_id", "company_name", "table_name", "status", "records_copied", "total_records", "errors", "error_code",
                     "modified_at"))
_SEEKS = ("eq", "ne", "lt", "le", "gt", "ge", "in", "startswith", "like", "in")


@dataclass(frozen=True, slots=True)
class Way:
    """Attributes whose indexes are not used: in the filter, and in the order."""

    unindexed: frozenset[str] = frozenset()
    unsorted: frozenset[str] = frozenset()


FREE = Way()


def steer(query: Query, count: Callable[[Expression, int], int]) -> Way:
    """The way of `query`; `count` tells how many rows satisfy a condition, counted no further than a number."""
    parts = {part: found for part in _parts(query.where) if (found := _attributes(part))}
    if not parts:
        return FREE
    if any(part.name == "eq" and part.args[0] in (Attribute("id"), Attribute("run_id")) for part in parts):
        return Way(INDEXED - {"id", "run_id", "status"})          # (run_id, status) is an index, too
    by = query.order[0].by if query.order else None
    first = {by.name} if isinstance(by, Attribute) else _attributes(by) if by else set()
    for part, names in parts.items():
        if (names != first or part.name in ("ne", "or")) and count(part, FEW) < FEW:
            return Way(INDEXED - names, frozenset(first))
    return Way(INDEXED - first)


def beside(query: Query) -> list[Query]:
    """Where a page is ordered by what a part of the filter leaves one value of out, two queries: of what comes before, and behind.

    Read as one, a database steps over all rows that have the value: half a million took PostgreSQL 0.9 s.
    """
    if query.top is None or query.skip or not query.order:
        return []
    by, backwards = query.order[0].by, query.order[0].descending
    attribute, pairs = (by.args[0], by.args[1]) if isinstance(by, Call) and by.name == "case" else (by, None)
    for part in _parts(query.where):
        match part:
            case Call("ne", (Attribute() as left, Literal(value))) if left == attribute and value != "":
                place = Literal(dict(pairs.value)[value] if isinstance(pairs, Literal) else value)
                return [replace(query, where=_replaced(query.where, part, Call(side, (by, place))))
                        for side in (("gt", "lt") if backwards else ("lt", "gt"))]
    return []


def _replaced(where: Expression | None, part: Call, by: Call) -> Expression | None:
    """`where` with `by` in the place of one of its parts."""
    if where is part:
        return by
    if isinstance(where, Call) and where.name == "and":
        return Call("and", tuple(_replaced(arg, part, by) or arg for arg in where.args))
    return where


def _parts(where: Expression | None) -> Iterator[Call]:
    """What must hold together."""
    if isinstance(where, Call) and where.name == "and":
        for arg in where.args:
            yield from _parts(arg)
    elif isinstance(where, Call):
        yield where


def _attributes(part: Expression) -> set[str]:
    """The attributes by whose indexes the rows of `part` are found; empty where there is no such way."""
    match part:
        case Call("and" | "or" | "not", args):
            inside = [_attributes(arg) for arg in args]
            return set().union(*inside) if all(inside) else set()
        case Call("case", (Attribute(name, ()), Literal(((_, int()), *_)))):
            return {name} & INDEXED
        case Call(name, (Call("case", _) as ranked, Literal())) if name in _SEEKS:
            return _attributes(ranked)
        case Call("like", (Attribute(name, ()), Literal((str(start), *_)))):
            return {name} & INDEXED if start else set()
        case Call(call, (Attribute(name, ()), Literal())) if call in _SEEKS:
            return {name} & INDEXED
    return set()
