"""A request's URL taken apart: service root, path segments with their keys, query options. Source: odata.md U1-U9, Q3."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote_to_bytes
from uuid import UUID

from skylift.api.apis import APIS
from skylift.api.bounds import MAX_QUERY
from skylift.api.declare import Api, EntitySet, Property
from skylift.api.errors import ODataError, bad_request

OPTIONS = frozenset(("$filter", "$select", "$expand", "$orderby", "$top", "$skip", "$count", "$skiptoken", "$search", "$apply", "$compute",
                     "$format", "$schemaversion"))

_SEGMENT = re.compile(r"([^()]+)(?:\((.*)\))?", re.DOTALL)
_KEYS = {"Edm.Guid": "a GUID, without quotes.", "Edm.Int64": "a number.", "Edm.String": "text in single quotes."}
_GUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


@dataclass(frozen=True, slots=True)
class Segment:
    name: str
    key: str | None              # what stands between the parentheses; None = no parentheses

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Url:
    """`root` is the service root as the client wrote it, without a trailing slash."""

    api: Api
    root: str
    segments: tuple[Segment, ...]
    options: dict[str, str]      # $-options
    others: dict[str, str]       # everything else, by lower-case name; ignored but for company and tenant
    on_premises: bool = False    # under a root without /v2.0 (U3, U4)


def parse_url(base: str, path: bytes, query: bytes) -> Url | None:
    """The URL under one of the service roots U1-U4; None if the path is under none of them. Raises ODataError, 400 or 414.

    `base`: scheme and host; `path` and `query` still percent-encoded. Slashes are split first and decoded once (U7).
    """
    if len(query) > MAX_QUERY:
        raise ODataError(414, "BadRequest", f"The query is longer than {MAX_QUERY} characters.")
    raw = [part for part in path.decode("latin-1").split("/") if part]
    found = find_root([part.lower() for part in raw])
    if found is None:
        return None
    api, length = found
    root = "/".join((base, *(quote(_decode(part), safe="-._~!$&'()*+,;=:@") for part in raw[:length])))
    options: dict[str, str] = {}
    others: dict[str, str] = {}
    for pair in query.decode("latin-1").split("&"):
        name, _, value = (_decode(part) for part in pair.replace("+", " ").partition("="))
        if not name.startswith("$"):
            others.setdefault(name.lower(), value)
        elif name not in OPTIONS:
            raise bad_request(f"The query option '{name}' is not known.")
        elif name in options:
            raise bad_request(f"The query option '{name}' is given twice.")
        else:
            options[name] = value
    return Url(api, root, tuple(_segment(_decode(part)) for part in raw[length:]), options, others, raw[0].lower() != "v2.0")


def find_root(parts: list[str]) -> tuple[Api, int] | None:
    """The API whose root the path begins with, and how long that is."""
    for before in range(min(len(parts), 4)):        # nothing, {instance}, v2.0/{environment} or v2.0/{tenant}/{environment}
        if parts[before] == "api" and (before < 2 or parts[0] == "v2.0"):
            for api in APIS:
                for route in api.routes:
                    if parts[before + 1:before + 1 + len(route)] == route:
                        return api, before + 1 + len(route)
    return None


def _decode(text: str) -> str:
    try:
        decoded = unquote_to_bytes(text.encode("latin-1")).decode("utf-8")
    except UnicodeDecodeError:
        raise bad_request("The URL is not UTF-8.", "BadRequest_InvalidRequestUrl") from None
    if "\0" in decoded:
        raise bad_request("The URL holds a NUL character.", "BadRequest_InvalidRequestUrl")
    return decoded


def _segment(text: str) -> Segment:
    match = _SEGMENT.fullmatch(text)
    if match is None:
        raise bad_request(f"The segment '{text}' is not well formed.", "BadRequest_InvalidRequestUrl")
    return Segment(match[1], match[2])


def parse_key(entity_set: EntitySet, text: str) -> tuple[Property, Any]:
    """The property and the value that a key names: guid, id=guid, 'text' with ' doubled, for companies also name='text' (U8)."""
    named = re.fullmatch(r"(\w+)\s*=\s*(.*)", text.strip(), re.DOTALL)
    prop = entity_set.find_property(named[1]) if named else entity_set.key
    value = named[2] if named else text.strip()
    if prop is not None and (prop == entity_set.key or (entity_set.name, prop.name) == ("companies", "name")):
        if prop.edm == "Edm.Guid" and _GUID.fullmatch(value):
            return prop, UUID(value)
        if prop.edm == "Edm.Int64" and re.fullmatch(r"[0-9]{1,18}", value):
            return prop, int(value)
        if prop.edm == "Edm.String" and re.fullmatch(r"'(?:[^']|'')*'", value):
            return prop, value[1:-1].replace("''", "'")
    raise bad_request(f"'{text}' is not a key of {entity_set.name}: write "
                      + _KEYS[entity_set.key.edm],
                      "BadRequest_InvalidRequestUrl")


def is_guid(text: str) -> bool:
    return _GUID.fullmatch(text) is not None


def with_options(url: str, options: dict[str, str]) -> str:
    return url + ("?" + "&".join(f"{quote(name, safe='$')}={quote(value, safe='')}" for name, value in options.items()) if options else "")
