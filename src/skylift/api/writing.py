"""Bodies of writes, checked against the declarations, and the conditions under which a write happens. Source: odata.md W1-W8, A1."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import msgspec

from skylift.api.declare import STRINGS, Action, EntitySet, Property
from skylift.api.errors import ODataError, bad_request
from skylift.api.render import MOST_INT32, etag, read_option, unset, value_of
from skylift.api.urls import is_guid
from skylift.errors import Conflict

_TAGS = re.compile(r'\s*(?:W/)?"([^"]*)"\s*(?:,|$)')
_AL_CLIENTS = ("", "text/plain", "application/x-www-form-urlencoded")      # what callers of actions send with no body


def media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def is_json(content_type: str) -> bool:
    kind = media_type(content_type)
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def check_content_type(content_type: str, body: bytes, *, action: bool) -> None:
    """415 for a body that does not call itself JSON (W6); an action's is empty or {} whatever it calls itself (A1)."""
    if is_json(content_type):
        return
    if action and body.strip() in (b"", b"{}") and media_type(content_type) in (*_AL_CLIENTS, "application/octet-stream"):
        return
    if body:
        raise ODataError(415, "BadRequest", f"The content type '{media_type(content_type)}' is not supported; send application/json.")


def read_parameters(action: Action, body: bytes) -> dict[str, Any]:
    """What the body of a call names, by attribute; null is as not sent. Raises ODataError 400 (OData Protocol 4.0 §11.5.4.1)."""
    given = {name: value for name, value in (_object(body) if body.strip() else {}).items() if not (action.parameters and "@" in name)}
    known = {p.name: p for p in action.parameters}
    if given and not known:
        raise bad_request("The action takes no parameters.")
    if unknown := sorted(given.keys() - known.keys()):
        raise bad_request(f"The action '{action.name}' has no parameter '{unknown[0]}'; it has {', '.join(known)}.")
    values = {known[name].attribute: _decoded(known[name], value) for name, value in given.items() if bytes(value) != b"null"}
    if missing := [p.name for p in action.parameters if p.required and p.attribute not in values]:
        raise bad_request(f"The action '{action.name}' needs the parameter '{missing[0]}'.", "BadRequest_RequiredParamNotProvided")
    return values


def read_values(entity_set: EntitySet, body: bytes, row: Any | None) -> dict[str, Any]:
    """What a body sets, by attribute. `row`: the entity as it stands, None for a new one. Raises ODataError 400 (W5)."""
    values: dict[str, Any] = {}
    for name, value in _object(body).items():
        if "@" in name:
            continue
        prop = entity_set.find_property(name)
        if prop is None:
            raise bad_request(f"The property '{name}' does not exist on type 'Microsoft.NAV.{entity_set.entity}'.")
        unsent = entity_set.null_is_unsent and row is None and bytes(value) == b"null"
        if prop.ignored or unsent or (not prop.writable and (prop.computed or prop.read)):
            continue
        read = _decoded(prop, value)
        if prop.writable:
            values[prop.attribute] = read
        elif read != (unset(prop) if row is None else value_of(prop, row)):
            raise bad_request(f"Control '{name}' is read-only", "BadRequest_InvalidOperation")
    return values


def _decoded(prop: Property, value: msgspec.Raw) -> Any:
    try:
        return _read(prop, msgspec.json.decode(value))
    except (msgspec.DecodeError, RecursionError) as error:
        raise bad_request(f"The value of '{prop.name}' is not JSON: {error}.") from None


def _object(body: bytes) -> dict[str, msgspec.Raw]:
    """The members, each as it is written: only what a property needs becomes Python values, which take many times the memory."""
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise bad_request("The body must be a JSON object.") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise bad_request(f"The body is not JSON: {error}.") from None


def _read(prop: Property, value: Any) -> Any:
    """`value` as the attribute's Python type; null means unset where there is such a thing."""
    wrong = bad_request(f"The value of '{prop.name}' is not of type {prop.edm}.")
    if prop.edm == "Edm.Boolean":
        if not isinstance(value, bool):
            raise wrong
        return value
    if prop.edm == "Edm.Int32":
        if isinstance(value, bool) or not isinstance(value, int) or not -MOST_INT32 - 1 <= value <= MOST_INT32:
            raise wrong
        return value
    if prop.edm == STRINGS:
        if not isinstance(value, list):
            raise wrong
        return [_read(replace(prop, edm="Edm.String"), item) for item in value]
    if prop.edm in ("Edm.DateTimeOffset", "Edm.Decimal", "Edm.Int64"):
        return _read_only(prop, value, wrong)
    if value is None and prop.values is None:
        return unset(prop)
    if not isinstance(value, str):
        raise wrong
    if prop.values is not None:
        return read_option(prop.values, value)
    if prop.edm == "Edm.Guid":
        if not is_guid(value):
            raise bad_request(f"'{value}' of '{prop.name}' is not a GUID.", "Application_InvalidGUID")
        return UUID(value)
    if prop.max_length is not None and len(value) > prop.max_length:
        raise bad_request(f"The length of '{prop.name}' is {len(value)}, but it must be less than or equal to {prop.max_length} "
                          "characters.", "Application_StringExceededLength")
    if "\0" in value:
        raise bad_request(f"The value of '{prop.name}' holds a NUL character.")
    return value


def _read_only(prop: Property, value: Any, wrong: ODataError) -> Any:
    """These cannot be written yet; sent back unchanged they are ignored."""
    try:
        kind = type(unset(prop))
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        raise wrong from None


def if_match(entity_set: EntitySet, header: str | None, *, required: bool) -> Callable[[Any], None]:
    """The check of If-Match on the current row, which raises Conflict (W2, W3). Raises ODataError 400 if it is missing or malformed."""
    if header is None:
        if required:
            raise bad_request("The request needs the header If-Match with the entity's @odata.etag, or *.", "BadRequest_InvalidToken")
        return lambda row: None
    if header.strip() == "*":
        return lambda row: None
    tags = read_tags(header)
    if not tags:
        raise bad_request("The header If-Match is not an entity tag.", "BadRequest_InvalidToken")

    def check(row: Any) -> None:
        if not read_tags(etag(entity_set, row)) & tags:
            raise Conflict("another user has already changed the record", code="EntityChanged")

    return check


def read_tags(header: str) -> frozenset[str]:
    """The opaque parts of the entity tags in an If-Match or If-None-Match header; empty if it is malformed."""
    tags, position = [], 0
    while position < len(header):
        match = _TAGS.match(header, position)
        if match is None:
            return frozenset()
        tags.append(match[1])
        position = match.end()
    return frozenset(tags)


