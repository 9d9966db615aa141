"""Answers to GET: pages of a collection, entities with what is expanded in them. Source: odata.md §3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from hashlib import blake2b
from typing import Any
from uuid import UUID

import msgspec

from skylift.api.declare import EntitySet
from skylift.api.errors import bad_request
from skylift.api.parse import Expand, Options
from skylift.api.render import Shape, key_text, render_entity, to_wire, value_of
from skylift.api.resolve import Resource, both, count_rows, read_rows, related
from skylift.api.urls import with_options
from skylift.errors import SetupError
from skylift.migration import Migration
from skylift.query import Attribute, Call, Expression, Literal, Order, Query

_PYTHON: dict[str, type] = {"Edm.Guid": UUID, "Edm.DateTimeOffset": datetime, "Edm.Int32": int, "Edm.Int64": int,
                            "Edm.Boolean": bool, "Edm.Decimal": Decimal}


class PageToken(msgspec.Struct, array_like=True):
    """What $skiptoken holds, sealed: where the page before ended, how long pages are, and of which request (G2)."""

    query: str                   # hash of path and options
    size: int
    left: int | None             # of $top
    after: list[Any]


@dataclass(frozen=True, slots=True)
class Page:
    rows: list[Any]
    next: dict[str, str] | None  # options of the link to the page behind this one


class Reader:
    """Reads for one request. `others`: options without $, which links repeat."""

    def __init__(self, service: Migration, root: str, shape: Shape, others: Mapping[str, str]) -> None:
        self.service = service
        self.root = root
        self.shape = shape
        self.others = {name: value for name, value in others.items() if name in ("company", "tenant")}
        self.expandable = service.settings.page_size     # rows that all expansions of the answer may have together
        self._single: dict[tuple[str, Any], Any] = {}

    # -------------------------------------------------------------- documents

    def collection(self, resource: Resource, options: Options, skiptoken: str | None, page_size: int) -> dict[str, Any]:
        size = min(page_size, self.service.settings.page_size)
        page = self.page(resource.set, resource.where, options, size, resource.path, skiptoken)
        document = self._context(resource, options)
        if options.count:
            document["@odata.count"] = self._count(resource.set, both(resource.where, options.where))
        document["value"] = [self.entity(resource.set, row, options, f"{resource.path}({key_text(resource.set, row)})")
                             for row in page.rows]
        if page.next is not None:
            document["@odata.nextLink"] = with_options(f"{self.root}/{resource.path}", page.next)
        return document

    def single(self, resource: Resource, options: Options) -> dict[str, Any]:
        document = self._context(resource, options, "/$entity")
        return document | self.entity(resource.set, resource.row, options, resource.path)

    def property(self, resource: Resource) -> dict[str, Any]:
        assert resource.prop is not None
        context = {"@odata.context": f"{self.root}/$metadata#{resource.path}"} if self.shape.metadata != "none" else {}
        return {**context, "value": to_wire(resource.prop, value_of(resource.prop, resource.row), self.shape)}

    def entity(self, entity_set: EntitySet, row: Any, options: Options, path: str) -> dict[str, Any]:
        """One entity and, nested, what is to be expanded in it. `path`: where it can be read, relative to the root."""
        entity = render_entity(entity_set, row, self.shape, f"{self.root}/{path}", options.select)
        for expand in options.expand:
            self._expand(entity, expand, row, path)
        return entity

    def _expand(self, entity: dict[str, Any], expand: Expand, row: Any, path: str) -> None:
        navigation, options = expand.navigation, expand.options
        target = navigation.target
        where = related(navigation, row)
        if not navigation.many:
            assert navigation.on is not None
            key = (target.name, getattr(row, navigation.on[0]))
            if key not in self._single:
                self._single[key] = next(iter(read_rows(self.service, target, Query(where=where, top=1))), None)
            found = self._single[key]
            company = path.partition("/")[0] + "/" if path.startswith("companies(") else ""
            entity[navigation.name] = None if found is None else self.entity(
                target, found, options, f"{company}{target.name}({key_text(target, found)})")
            return
        path = f"{path}/{navigation.name}"
        if options.count:
            entity[f"{navigation.name}@odata.count"] = self._count(target, both(where, options.where))
        page = self.page(target, where, options, self.expandable, path, next_size=self.service.settings.page_size)
        self.expandable -= len(page.rows)
        entity[navigation.name] = [self.entity(target, found, options, f"{path}({key_text(target, found)})") for found in page.rows]
        if page.next is not None:
            entity[f"{navigation.name}@odata.nextLink"] = with_options(f"{self.root}/{path}", page.next)

    def _context(self, resource: Resource, options: Options, suffix: str = "") -> dict[str, Any]:
        if self.shape.metadata == "none":
            return {}
        return {"@odata.context": f"{self.root}/$metadata#{resource.context}{_projection(options)}{suffix}"}

    def _count(self, entity_set: EntitySet, where: Expression | None) -> int | str:
        count = count_rows(self.service, entity_set, where)
        return str(count) if self.shape.ieee754 else count

    # -------------------------------------------------------------- pages

    def page(self, entity_set: EntitySet, where: Expression | None, options: Options, size: int, path: str,
             skiptoken: str | None = None, next_size: int | None = None) -> Page:
        """At most `size` rows, or what `skiptoken` says, from behind it. Raises ODataError 400 if it is not ours for this request."""
        given = {**self.others, **{name: value for name, value in options.given.items() if name not in ("$skiptoken", "$levels")}}
        token = PageToken(_fingerprint(path, given), size, options.top, [])
        order = _order(entity_set, options, where)
        after = None
        if skiptoken is not None:
            token, after = self._open(skiptoken, token, entity_set, order)
        want = token.size if token.left is None else min(token.size, token.left)
        more = token.left is None or token.left > want
        query = Query(both(where, options.where), order, 0 if after else options.skip, want + 1 if more else want, after)
        rows = read_rows(self.service, entity_set, query) if query.top else []
        if len(rows) <= want:
            return Page(rows, None)
        rows = rows[:want]
        if not rows:                                     # nothing more may be expanded here: the link begins at the beginning
            return Page([], given)
        token.left = None if token.left is None else token.left - want
        token.after = [_sort_value(entity_set, by, rows[-1]) for by in order]
        token.size = next_size or token.size
        return Page(rows, {**given, "$skiptoken": self.service.box.seal(msgspec.json.encode(token).decode())})

    def _open(self, text: str, own: PageToken, entity_set: EntitySet, order: tuple[Order, ...]) -> tuple[PageToken, tuple[Any, ...]]:
        try:
            token = msgspec.json.decode(self.service.box.open(text), type=PageToken)
            if token.query == own.query:
                return token, tuple(msgspec.convert(value, _sort_type(entity_set, by), strict=False)
                                    for by, value in zip(order, token.after, strict=True))
        except (SetupError, ValueError):
            pass
        raise bad_request("The value of $skiptoken is not one that this service gave for this request.")


def _projection(options: Options) -> str:
    """The part of a context URL that tells what was selected and expanded."""
    parts = [*(options.select or ()), *(f"{e.navigation.name}{_projection(e.options) or '()'}" for e in options.expand)]
    return f"({','.join(parts)})" if parts else ""


def _order(entity_set: EntitySet, options: Options, where: Expression | None) -> tuple[Order, ...]:
    """What the client asks for, else the set's own order; then the key, so that no two rows tie (Q2), in the same direction, so that an
    index on both serves.

    Without what the conditions fix: the rows of one run by table, so that a page begins where the index says.
    """
    order = options.order or tuple(Order(Attribute(name.removeprefix("-")), name.startswith("-")) for name in entity_set.order)
    last = Order(Attribute(entity_set.key.attribute), bool(order) and order[-1].descending)
    fixed = _fixed(where) | _fixed(options.where)
    order = tuple(o for o in order if (o.by.args[0] if isinstance(o.by, Call) else o.by) not in fixed)
    return order if any(o.by == last.by for o in order) else (*order, last)


def _fixed(where: Expression | None) -> set[Expression]:
    """The attributes that have one value in all rows which satisfy `where`."""
    match where:
        case Call("and", args):
            return set().union(*map(_fixed, args))
        case Call("eq", (Attribute() as attribute, Literal())):
            return {attribute}
    return set()


def _sort_value(entity_set: EntitySet, order: Order, row: Any) -> Any:
    match order.by:
        case Call("case", (Attribute(name), Literal(pairs))):
            return dict(pairs)[getattr(row, name)]
        case Attribute(name):
            return value_of(next(p for p in entity_set.properties if p.attribute == name), row)
    raise AssertionError(order)


def _sort_type(entity_set: EntitySet, order: Order) -> type:
    if not isinstance(order.by, Attribute):
        return int                                       # an option's rank
    name = order.by.name
    return _PYTHON.get(next(p.edm for p in entity_set.properties if p.attribute == name), str)


def _fingerprint(path: str, given: Mapping[str, str]) -> str:
    return blake2b(msgspec.json.encode([path, sorted(given.items())]), digest_size=12).hexdigest()
