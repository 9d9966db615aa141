"""What a path leads to: a set, an entity, a property, an action ... Source: odata.md U5-U9, C1-C3."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from skylift.api.declare import Action, Api, EntitySet, Navigation, Property
from skylift.api.errors import no_company, unknown_key, unknown_segment
from skylift.api.render import key_text
from skylift.api.urls import Segment, Url, is_guid, parse_key
from skylift.migration import Migration
from skylift.model import Company
from skylift.query import Attribute, Call, Expression, Literal, Query
from skylift.store import select

_ACTION = re.compile(r"(?:microsoft\.)?nav\.(\w+)", re.IGNORECASE)
_READ = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True, slots=True)
class Resource:
    """`path` is relative to the service root and in the true names: companies(id)/cloudMigrationStatus(id)."""

    kind: str                            # service, metadata, batch, collection, count, entity, property, value, action
    path: str = ""
    entity_set: EntitySet | None = None
    where: Expression | None = None      # rows of a collection that belong to the entity before it
    row: Any = None
    prop: Property | None = None
    action: Action | None = None
    company: str = ""                    # 'companies(id)/' if the path goes through a company

    @property
    def set(self) -> EntitySet:
        assert self.entity_set is not None
        return self.entity_set

    @property
    def context(self) -> str:
        """The path as a context URL has it: an entity's is that of its set."""
        return re.sub(r"\([^()]*\)$", "", self.path) if self.kind == "entity" else self.path

    @property
    def methods(self) -> tuple[str, ...]:
        match self.kind:
            case "collection" | "entity":
                return self.set.methods(single=self.kind == "entity")
            case "action" | "batch":
                return ("POST", "OPTIONS")
        return _READ


def read_rows(service: Migration, entity_set: EntitySet, query: Query) -> list[Any]:
    if entity_set.rows is None:
        return service.select(entity_set.row, query)
    with service.store.read() as connection:
        return select.select(connection, entity_set.row, query, entity_set.rows(service))


def count_rows(service: Migration, entity_set: EntitySet, where: Expression | None) -> int:
    if entity_set.rows is None:
        return service.count(entity_set.row, where)
    with service.store.read() as connection:
        return select.count(connection, entity_set.row, where, entity_set.rows(service))


def both(a: Expression | None, b: Expression | None) -> Expression | None:
    return Call("and", (a, b)) if a and b else a or b


def equals(attribute: str, value: Any) -> Expression:
    return Call("eq", (Attribute(attribute), Literal(value)))


def related(navigation: Navigation, row: Any) -> Expression | None:
    """The condition on the target's rows; None if they are all meant."""
    return equals(navigation.on[1], getattr(row, navigation.on[0])) if navigation.on else None


def resolve(service: Migration, url: Url, headers: Mapping[str, str]) -> Resource:
    """Follow the path segment by segment. Raises ODataError: 404, or 400 for a malformed key."""
    if not url.segments:
        return Resource("service")
    first, *rest = url.segments
    if first.name in ("$metadata", "$batch") and first.key is None:
        if rest:
            raise unknown_segment(rest[0].name)
        return Resource(first.name[1:])
    entity_set = url.api.by_alias.get(first.name)
    if entity_set is None:
        raise unknown_segment(first.name)
    company = ""
    if entity_set.in_company:
        company = f"companies({_company(service, url, headers).id})/"
    at = Resource("collection", company + entity_set.name, entity_set, company=company)
    at = _with_key(service, at, first)
    for segment in rest:
        at = _step(service, url.api, at, segment)
    return at


def _step(service: Migration, api: Api, at: Resource, segment: Segment) -> Resource:
    name = segment.name
    if at.kind == "collection" and name == "$count" and segment.key is None:
        return replace(at, kind="count", path=f"{at.path}/$count")
    if at.kind == "property" and name == "$value" and segment.key is None:
        return replace(at, kind="value", path=f"{at.path}/$value")
    if at.kind != "entity":
        raise unknown_segment(name)
    alias = api.by_alias.get(name)
    navigation = at.set.find_navigation(alias.name if alias else name)
    if navigation is not None:
        return _navigate(service, at, navigation, segment)
    prop = at.set.find_property(name)
    if prop is not None and segment.key is None:
        return replace(at, kind="property", path=f"{at.path}/{name}", prop=prop)
    match = _ACTION.fullmatch(name)
    action = next((a for a in at.set.actions if match and a.name.lower() == match[1].lower()), None)
    if action is not None and segment.key is None:
        return replace(at, kind="action", path=f"{at.path}/Microsoft.NAV.{action.name}", action=action)
    raise unknown_segment(name)


def _navigate(service: Migration, at: Resource, navigation: Navigation, segment: Segment) -> Resource:
    target = navigation.target
    company = f"{at.path}/" if at.set.row is Company else at.company
    if navigation.many:
        there = Resource("collection", f"{at.path}/{navigation.name}", target, related(navigation, at.row), company=company)
        return _with_key(service, there, segment)
    if segment.key is not None:
        raise unknown_segment(segment.name)
    rows = read_rows(service, target, Query(where=related(navigation, at.row), top=1))
    if not rows:
        raise unknown_segment(segment.name)
    return Resource("entity", f"{company}{target.name}({key_text(target, rows[0])})", target, row=rows[0], company=company)


def _with_key(service: Migration, at: Resource, segment: Segment) -> Resource:
    if segment.key is None:
        return at
    prop, key = parse_key(at.set, segment.key)
    rows = read_rows(service, at.set, Query(where=both(at.where, equals(prop.attribute, key)), top=1))
    if not rows:
        raise no_company(str(key)) if at.set.row is Company else unknown_key(at.set.entity, str(key))
    return replace(at, kind="entity", path=f"{at.path}({key_text(at.set, rows[0])})", where=None, row=rows[0])


def _company(service: Migration, url: Url, headers: Mapping[str, str]) -> Company:
    """The company in whose context a call without a company in its path runs (C1)."""
    for wanted in (url.others.get("company"), headers.get("company"), headers.get("companyid")):
        if wanted:
            key = equals("id", UUID(wanted)) if is_guid(wanted) else equals("name", wanted)
            if "\0" not in wanted and (found := service.select(Company, Query(where=key, top=1))):     # PostgreSQL's text has no NUL
                return found[0]
            raise no_company(wanted)
    some = service.select(Company, Query(where=equals("name", service.settings.company), top=1)) or service.select(Company, Query(top=2))
    if len(some) != 1:
        raise no_company()
    return some[0]
