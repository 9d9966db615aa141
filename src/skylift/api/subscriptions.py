"""What a webhook subscription is about: the text of `resource` as a set or one entity of this API. Source: odata.md K1, K3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from skylift.api.errors import ODataError, bad_request
from skylift.api.resolve import resolve
from skylift.api.urls import Url, parse_url
from skylift.migration import Migration
from skylift.migration.changes import KINDS
from skylift.model import NO_ID


def read_subscription(service: Migration, url: Url, headers: Mapping[str, str], values: Mapping[str, Any], *, new: bool) -> dict[str, Any]:
    """`values` of a body, completed by what create_subscription and change_subscription need. Raises ODataError 400."""
    settings = service.settings
    known = {"most": settings.subscriptions_on_premises if url.on_premises else settings.subscriptions_online} if new else {}
    for attribute, name in (("notification_url", "notificationUrl"), ("resource", "resource")):
        if not values.get(attribute, "" if new else "kept"):
            raise bad_request(f"A subscription needs {name}.", "BadRequest_RequiredParamNotProvided")
    if "resource" in values:
        known |= _subject(service, url, headers, values["resource"])
    return {**values, **known}


def _subject(service: Migration, url: Url, headers: Mapping[str, str], text: str) -> dict[str, Any]:
    """Kind and id of the entities, and the path that notifications are made of: from `api` on, in the true names.

    `text` is absolute, a path, or relative to the service root. The company is chosen as for any other call.
    """
    parts = urlsplit(text.strip())
    if parts.query or parts.fragment:
        raise bad_request("The resource of a subscription takes no query options.")
    path = "/" + parts.path.lstrip("/")
    root = urlsplit(url.root).path
    try:
        named = parse_url("", path.encode(), b"") or parse_url("", f"{root}{path}".encode(), b"")
        assert named is not None                         # the root of this very call is one
        if named.api is not url.api:
            raise bad_request(f"it belongs to {named.api.route}; subscribe to it there.")
        resource = resolve(service, replace(named, others=url.others), headers)
    except ODataError as error:
        raise bad_request(f"The resource '{text}' cannot be subscribed to: {error.message}", error.code) from None
    entity_set = resource.entity_set
    if resource.kind not in ("collection", "entity") or entity_set is None or resource.where is not None:
        raise bad_request(f"The resource '{text}' cannot be subscribed to: it is neither an entity set nor an entity.")
    kind = entity_set.noted or entity_set.row
    if kind not in KINDS:
        raise bad_request(f"The resource '{text}' cannot be subscribed to: {entity_set.name} has no webhooks.")
    api = named.root[named.root.lower().rindex("/api/") + 1:]
    return {"kind": kind.__name__, "entity_id": resource.row.id if resource.kind == "entity" else NO_ID,
            "resource": f"{api}/{resource.path}"}
