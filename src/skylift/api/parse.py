"""The text of $select, $expand, $orderby, $top, $skip and $count -> Options; $filter and $orderby are parsed in filter.py.

Source: odata.md P1-P5.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from skylift.api.declare import EntitySet, Navigation
from skylift.api.errors import ODataError, bad_request, not_implemented, unknown_property
from skylift.api.filter import parse_filter, parse_order
from skylift.query import Expression, Order

MAX_EXPAND_DEPTH = 8
_OF_ENTITY = frozenset(("$select", "$expand", "$levels", "$format", "$schemaversion"))


@dataclass(frozen=True, slots=True)
class Options:
    """What the client asks of a collection or, as far as it applies, of one entity. `given`: the options as they were sent."""

    where: Expression | None = None
    order: tuple[Order, ...] = ()
    skip: int = 0
    top: int | None = None
    count: bool = False
    select: tuple[str, ...] | None = None
    expand: tuple[Expand, ...] = ()
    given: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Expand:
    navigation: Navigation
    options: Options


def parse_options(given: dict[str, str], entity_set: EntitySet, schema_version: str, *, single: bool, depth: int = 0) -> Options:
    """The options `given` (by name, with $) for `entity_set`, or for one entity of it. Raises ODataError, 400 or 501."""
    for name in ("$search", "$apply", "$compute"):
        if name in given:
            raise not_implemented(f"{name} is not supported.")
    if single and (wrong := sorted(given.keys() - _OF_ENTITY)):
        raise bad_request(f"{wrong[0]} cannot be applied to one entity.")
    select = given.get("$select")
    return Options(
        where=parse_filter(given["$filter"], entity_set, schema_version) if "$filter" in given else None,
        order=tuple(parse_order(given["$orderby"], entity_set, schema_version)) if "$orderby" in given else (),
        skip=_whole("$skip", given.get("$skip", "0")),
        top=_whole("$top", given["$top"]) if "$top" in given else None,
        count=_flag("$count", given.get("$count", "false")),
        select=None if select is None else _select(select, entity_set),
        expand=tuple(_expand(given.get("$expand", ""), entity_set, schema_version, depth)) if "$expand" in given else (),
        given=given,
    )


def _whole(name: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,18}", text.strip(), re.ASCII):
        raise bad_request(f"{name} must be a whole number of at least 0, not '{text}'.")
    return int(text)


def _flag(name: str, text: str) -> bool:
    if text.strip().lower() not in ("true", "false"):
        raise bad_request(f"{name} must be true or false, not '{text}'.")
    return text.strip().lower() == "true"


def _select(text: str, entity_set: EntitySet) -> tuple[str, ...] | None:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name != "*" and not entity_set.find_property(name) and not entity_set.find_navigation(name):
            raise unknown_property(name, entity_set.entity)
    return None if "*" in names else tuple(dict.fromkeys(names))


def _expand(text: str, entity_set: EntitySet, schema_version: str, depth: int) -> Iterator[Expand]:
    if depth >= MAX_EXPAND_DEPTH:
        raise bad_request(f"$expand is nested more than {MAX_EXPAND_DEPTH} levels deep.")
    known: set[str] = set()
    for item in _split(text, ","):
        match = re.fullmatch(r"([^(/]*)(/[^(]*)?(?:\((.*)\))?", item.strip(), re.DOTALL)
        name = match[1].strip() if match else item
        navigations = entity_set.navigations if name == "*" else (entity_set.find_navigation(name),)
        if match is None or None in navigations:
            raise unknown_property(name, entity_set.entity)
        if match[2]:
            raise not_implemented(f"$expand of '{item.strip()}' is not supported; expand '{name}'.")
        given = _nested(match[3] or "")
        for navigation in navigations:
            assert navigation is not None
            if navigation.name in known and name != "*":
                raise bad_request(f"'{navigation.name}' is expanded twice.")
            if navigation.name in known or given.get("$levels") == "0":
                continue
            known.add(navigation.name)
            yield Expand(navigation, parse_options(given, navigation.target, schema_version, single=not navigation.many,
                                                   depth=depth + 1))


def _nested(text: str) -> dict[str, str]:
    """The options between the parentheses of an expanded navigation, separated by `;`."""
    given: dict[str, str] = {}
    for part in _split(text, ";") if text.strip() else ():
        name, equals, value = part.strip().partition("=")
        if name not in ("$select", "$filter", "$orderby", "$top", "$skip", "$count", "$expand", "$levels", "$search", "$apply", "$compute"):
            raise bad_request(f"The query option '{name}' is not known inside $expand.")
        if name in given or not equals:
            raise bad_request(f"The query option '{name}' is given twice." if equals else f"The query option '{name}' has no value.")
        if name == "$levels" and not re.fullmatch(r"\d{1,3}|max", value, re.ASCII):
            raise bad_request(f"$levels must be a whole number of at least 0 or max, not '{value}'.")
        given[name] = value
    return given


def _split(text: str, separator: str) -> list[str]:
    """`text` at every `separator` that stands neither in parentheses nor in quotes."""
    parts, start, level, quoted = [], 0, 0, False
    for position, character in enumerate(text):
        if character == "'":
            quoted = not quoted
        elif not quoted and character in "()":
            level += 1 if character == "(" else -1
        elif character == separator and not quoted and not level:
            parts.append(text[start:position])
            start = position + 1
        if level < 0:
            raise _unbalanced(text)
    if level or quoted:
        raise _unbalanced(text)
    return [*parts, text[start:]]


def _unbalanced(text: str) -> ODataError:
    return bad_request(f"Quotes or parentheses do not match in '{text}'.", "BadRequest_NotFound")
