"""What a request's headers ask for: the shape of JSON, preferences, protocol version. Source: odata.md G1, H1-H3, P5, W4."""

from __future__ import annotations

import re

from skylift.api.errors import ODataError, bad_request
from skylift.api.render import SCHEMA_VERSIONS, Shape

_LEVELS = ("none", "minimal", "full")


def read_shape(accept: str, format: str | None, version: str) -> Shape:
    """The shape that Accept, $format (which beats it) and $schemaversion ask for. Raises ODataError: 406, 415, 400."""
    if version not in SCHEMA_VERSIONS:
        raise bad_request(f"'{version}' is not a schema version; there are {', '.join(SCHEMA_VERSIONS)}.")
    if format is not None:
        wanted = format.strip()
        shape = _as_json("application/json" if wanted.lower() == "json" else wanted, version)
        if shape is None:
            raise ODataError(415, "BadRequest", f"The format '{wanted}' is not supported; this service answers JSON.")
        return shape
    ranges = [part.strip() for part in accept.split(",") if part.strip()] or ["*/*"]
    for part in sorted(ranges, key=_quality, reverse=True):
        if _quality(part) > 0 and (shape := _as_json(part, version)) is not None:
            return shape
    raise ODataError(406, "BadRequest", f"'{accept}' cannot be satisfied; this service answers application/json.")


def _quality(media_range: str) -> float:
    match = re.search(r";\s*q\s*=\s*([0-9.]+)", media_range)
    try:
        return float(match[1]) if match else 1.0
    except ValueError:
        return 0.0


def _as_json(media_range: str, version: str) -> Shape | None:
    kind, *parts = (part.strip() for part in media_range.split(";"))
    if kind.lower() not in ("application/json", "application/*", "*/*"):
        return None
    parameters = {name.strip().lower(): value.strip().strip('"').lower() for name, _, value in (part.partition("=") for part in parts)}
    level = parameters.get("odata.metadata", parameters.get("metadata", "minimal"))
    if level not in _LEVELS:
        return None
    return Shape(version, level, parameters.get("ieee754compatible") == "true")


def check_version(headers: dict[str, str]) -> None:
    """A request in another protocol version than 4 is refused (H1)."""
    version = headers.get("odata-version", "").strip()
    if version and not version.startswith("4."):
        raise bad_request(f"OData-Version {version} is not supported; this service speaks 4.0.")


def read_preferences(headers: dict[str, str]) -> dict[str, str]:
    """Preferences by lower-case name without `odata.`; a value may be empty."""
    found: dict[str, str] = {}
    for part in headers.get("prefer", "").split(","):
        name, _, value = part.partition(";")[0].partition("=")
        found.setdefault(name.strip().lower().removeprefix("odata."), value.strip().strip('"'))
    return found


def page_size(preferences: dict[str, str], most: int) -> int | None:
    """The page size that the client prefers, at most the server's; None if it states none that makes sense (G1)."""
    text = preferences.get("maxpagesize", "")
    return min(int(text), most) if re.fullmatch(r"0*[1-9]\d{0,17}", text, re.ASCII) else None
