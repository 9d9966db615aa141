"""A query over rows: filter tree, order, page. Written by api/parse.py, carried out by store/select.py.

Names are attributes of the row class (`started_at`, not `startTime`); literals are already of the attribute's Python type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Literal:
    value: Any


@dataclass(frozen=True, slots=True)
class Attribute:
    name: str
    path: tuple[str, ...] = ()       # single-valued navigation before it, e.g. ('cloudMigrationStatus',)


@dataclass(frozen=True, slots=True)
class Call:
    """A function or operator by its OData name: eq ne gt ge lt le and or not in, contains, tolower, add, ...

    `eq`/`ne` whose text literal holds `*` arrive as `like`/`unlike` with the pattern as a tuple of fixed parts.
    """

    name: str
    args: tuple[Expression, ...]


Expression = Literal | Attribute | Call


@dataclass(frozen=True, slots=True)
class Order:
    by: Expression
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    where: Expression | None = None
    order: tuple[Order, ...] = ()
    skip: int = 0
    top: int | None = None
    after: tuple[Any, ...] | None = None   # values of `order` (plus tie-breaking key) of the last row of the page before
