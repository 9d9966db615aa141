"""The API as an ASGI application: each request authenticated, checked in the order of X2 and answered as OData.

Everything that touches the store is plain synchronous code in a worker thread. Source: odata.md §1, §4, §6, §8.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from anyio import to_thread
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from skylift.api import batch, negotiate, writing
from skylift.api.answer import Answer, finish
from skylift.api.apis import APIS
from skylift.api.errors import ODataError, bad_request, not_allowed, unknown_segment
from skylift.api.limits import Limits
from skylift.api.metadata import metadata_document, service_document
from skylift.api.parse import Options, parse_options
from skylift.api.reading import Reader
from skylift.api.remembered import Remembered
from skylift.api.render import Shape, etag, key_text, plain_text, to_json, value_of
from skylift.api.resolve import Resource, both, count_rows, resolve
from skylift.api.subscriptions import read_subscription
from skylift.api.urls import Url, parse_url
from skylift.migration import Migration
from skylift.migration.repeating import Repeated
from skylift.migration.signin import SignIn
from skylift.model import Caller, Run, Subscription
from skylift.store.deadline import within

READER, OPERATOR, ADMINISTRATOR = "reader", "operator", "administrator"
_READS = ("GET", "HEAD", "OPTIONS")
_MAX_KEY = 255                    # characters of an Idempotency-Key
_NOT_JSON = ("metadata", "count", "value", "action", "batch")    # answered alike whatever Accept says (M1, P4, A1, B6)


@dataclass(frozen=True, slots=True)
class Call:
    """One request that may be served, and what it leads to."""

    service: Migration               # acting for the caller
    url: Url
    headers: dict[str, str]          # lower-case names
    body: bytes
    resource: Resource
    shape: Shape
    preferences: dict[str, str]

    @property
    def reader(self) -> Reader:
        return Reader(self.service, self.url.root, self.shape, self.url.others)

    def options(self, *, single: bool) -> Options:
        given = {name: value for name, value in self.url.options.items() if name != "$skiptoken"}
        return parse_options(given, self.resource.set, self.shape.schema_version, single=single)


class ODataService:
    """All of APIS as one ASGI application."""

    def __init__(self, service: Migration) -> None:
        self.service = service
        self.sign_in = SignIn(service)
        self.limits = Limits(service.settings)
        self.remembered = Remembered(service.store.version, self.limits.admit)
        self.observe: Callable[[str, str, int, float], None] | None = None      # told path, method, status and seconds of each request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        began = time.perf_counter()
        answer: Answer | Exception
        try:
            answer = await self.remembered.answer(scope, partial(self._in_time, request))
        except ClientDisconnect:                            # or a body in broken chunks, whose sender waits for an answer
            answer = bad_request("The body did not arrive whole.")
        except Exception as error:
            answer = error
        answer = finish(answer, request.method, scope["path"])
        if self.observe is not None:
            self.observe(scope["path"], request.method, answer.status, time.perf_counter() - began)
        await send({"type": "http.response.start", "status": answer.status, "headers": _encoded(answer)})
        await send({"type": "http.response.body", "body": answer.body})

    async def _in_time(self, request: Request) -> tuple[Answer, str]:
        try:
            async with asyncio.timeout(self.service.settings.api_answer_s) as whole:
                return await self._answer(request)
        except TimeoutError:
            if not whole.expired():
                raise
        raise ODataError(504, "Internal_ServerError", "There is no answer yet; what was asked for may still happen, or not.")

    async def _answer(self, request: Request) -> tuple[Answer, str]:
        """The answer, and as whose request it counts."""
        try:
            base = f"{request.base_url.scheme}://{request.base_url.netloc}"
        except ValueError:
            raise bad_request("The header Host is not a host.", "BadRequest_InvalidRequestUrl") from None
        url = parse_url(base, request.scope.get("raw_path") or request.scope["path"].encode(), request.scope["query_string"])
        if url is None:
            raise unknown_segment(request.scope["path"].strip("/").partition("/")[0])
        headers = dict(request.headers)
        credentials = request.headers.getlist("authorization")
        caller = await run_in_threadpool(self.authenticate, credentials[0] if len(credentials) == 1 else "", url.on_premises)
        async with self.limits.turn(str(caller.id)):
            body = await self._body(request)
            service = self.service.as_actor(caller.name, caller.id)
            work = partial(self._serve, service, caller, request.method, url, headers, body)
            return await to_thread.run_sync(work, abandon_on_cancel=True), str(caller.id)

    def _serve(self, *request: Any) -> Answer:
        """In a thread, which ends by itself also where nobody waits for the answer any longer."""
        with within(self.service.settings.api_work_s):
            return serve(*request)

    def authenticate(self, authorization: str, on_premises: bool) -> Caller:
        caller = self.sign_in.caller(authorization, on_premises)
        if caller is None:
            basic = ', Basic realm="skylift"' if self.sign_in.takes_basic(on_premises) else ""
            raise ODataError(401, "Authentication_InvalidCredentials", "The server has rejected the client credentials.",
                             {"WWW-Authenticate": f'Bearer realm="skylift"{basic}'})
        return caller

    async def _body(self, request: Request) -> bytes:
        most = self.service.settings.max_body_bytes
        too_large = ODataError(413, "BadRequest", f"The body is larger than {most} bytes.")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > 18 or int(length) > most):
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.service.settings.api_body_s):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise ODataError(408, "Internal_ServerError", "The body took too long to arrive.") from None
        return bytes(body)


def _encoded(answer: Answer) -> list[tuple[bytes, bytes]]:
    """Headers as ASGI sends them; those without a length get one, except where HTTP forbids it."""
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
    if answer.status not in (204, 304) and "Content-Length" not in answer.headers:
        headers.append((b"content-length", str(len(answer.body)).encode()))
    return headers


# ------------------------------------------------------------------ one request, in the order of X2


def serve(service: Migration, caller: Caller, method: str, url: Url, headers: dict[str, str], body: bytes) -> Answer:
    """Answer the request of an authenticated caller; `service` acts for them. Raises ODataError and SkyliftError.

    What a GET shows, counts and pages alike, is of one snapshot of the store.
    """
    with service.store.together(writes=False) if method in _READS else nullcontext():
        return _serve(service, caller, method, url, headers, body)


def _serve(service: Migration, caller: Caller, method: str, url: Url, headers: dict[str, str], body: bytes) -> Answer:
    resource = resolve(service, url, headers)
    if resource.action is not None and method == resource.action.name.upper():
        method = "POST"                                 # the seed prints the action's name as the method (U6)
    if method not in resource.methods:
        raise not_allowed(method, resource.entity_set.entity if resource.entity_set else f"${resource.kind}", resource.methods)
    _permit(caller, method, resource)
    as_json = resource.kind not in _NOT_JSON
    shape = negotiate.read_shape(headers.get("accept", "") if as_json else "", url.options.get("$format") if as_json else None,
                                 url.options.get("$schemaversion", service.settings.schema_version))
    negotiate.check_version(headers)
    call = Call(service, url, headers, body, resource, shape, negotiate.read_preferences(headers))
    if method == "OPTIONS":
        return Answer(204, headers={"Allow": ", ".join(resource.methods)})
    if method in ("GET", "HEAD"):
        return _READERS[resource.kind](call)
    if resource.kind == "batch":
        return batch.run(service.store, url, headers, body, partial(serve, service, caller))
    if headers.get("data-access-intent", "").lower() == "readonly":
        raise bad_request("A write cannot be made with Data-Access-Intent: ReadOnly.")
    if resource.kind == "action":
        return _act(call)
    return {"POST": _create, "PATCH": _change, "DELETE": _delete}[method](call)


def _permit(caller: Caller, method: str, resource: Resource) -> None:
    """Readers read; what sets the migration up is for administrators (N4). A batch is judged item by item (B5)."""
    if method in _READS or resource.kind == "batch":
        needed: tuple[str, ...] = (READER, OPERATOR, ADMINISTRATOR)
    elif resource.entity_set and (resource.set.administrator or (resource.action and resource.action.administrator)):
        needed = (ADMINISTRATOR,)
    else:
        needed = (OPERATOR, ADMINISTRATOR)
    _permit_roles(caller, needed)


def permit_reading(caller: Caller) -> None:
    _permit_roles(caller, (READER, OPERATOR, ADMINISTRATOR))


def _permit_roles(caller: Caller, needed: Sequence[str]) -> None:
    if caller.role not in needed:
        has = f"the role {caller.role}" if caller.role else "no role"
        raise ODataError(403, "Authorization_RequestDenied", f"'{caller.name}' has {has}; this needs {' or '.join(needed)}.")


# ------------------------------------------------------------------ reads


def _json(call: Call, document: Any, headers: dict[str, str] | None = None, status: int = 200) -> Answer:
    return Answer(status, to_json(document), {"Content-Type": f"{call.shape.media_type}; charset=utf-8", **(headers or {})})


def _read_service(call: Call) -> Answer:
    return _json(call, service_document(call.url.api, call.url.root, call.shape.metadata != "none"))


def _read_metadata(call: Call) -> Answer:
    return Answer(200, metadata_document(call.url.api, call.shape.schema_version), {"Content-Type": "application/xml; charset=utf-8"})


def _read_collection(call: Call) -> Answer:
    most = call.service.settings.page_size
    preferred = negotiate.page_size(call.preferences, most)
    document = call.reader.collection(call.resource, call.options(single=False), call.url.options.get("$skiptoken"), preferred or most)
    applied = {"Preference-Applied": f"odata.maxpagesize={preferred}"} if preferred else {}
    return _json(call, document, applied)


def _read_count(call: Call) -> Answer:
    options = call.options(single=False)
    count = count_rows(call.service, call.resource.set, both(call.resource.where, options.where))
    return Answer(200, str(count).encode(), {"Content-Type": "text/plain; charset=utf-8"})


def _read_entity(call: Call) -> Answer:
    tag = etag(call.resource.set, call.resource.row)
    seen = call.headers.get("if-none-match", "")
    if seen.strip() == "*" or writing.read_tags(tag) & writing.read_tags(seen):
        return Answer(304, headers={"ETag": tag})
    return _json(call, call.reader.single(call.resource, call.options(single=True)), {"ETag": tag})


def _read_property(call: Call) -> Answer:
    prop = call.resource.prop
    assert prop is not None
    if value_of(prop, call.resource.row) is None:
        return Answer(204)                              # OData Protocol 4.0 §11.2.3
    return _json(call, call.reader.property(call.resource))


def _read_value(call: Call) -> Answer:
    prop = call.resource.prop
    assert prop is not None
    if prop.is_collection:
        raise bad_request(f"'{prop.name}' is a collection and has no raw value.")
    value = value_of(prop, call.resource.row)
    if value is None:
        return Answer(204)
    text = plain_text(prop, value, call.shape)
    return Answer(200, text.encode(), {"Content-Type": "text/plain; charset=utf-8"})


_READERS: dict[str, Callable[[Call], Answer]] = {
    "service": _read_service, "metadata": _read_metadata, "collection": _read_collection, "count": _read_count,
    "entity": _read_entity, "property": _read_property, "value": _read_value,
}


# ------------------------------------------------------------------ writes


def _once(call: Call) -> Migration:
    """The service for a POST that its caller may have named (v2.0). Raises Repeated if that was carried out before."""
    key = call.headers.get("idempotency-key", "").strip()
    if not key or call.url.api is APIS[0]:
        return call.service
    if len(key) > _MAX_KEY:
        raise bad_request(f"The Idempotency-Key is longer than {_MAX_KEY} characters.")
    action = call.resource.action.name if call.resource.action else ""
    return call.service.once(key, hashlib.sha256("\n".join((call.resource.path, action)).encode() + b"\n" + call.body).hexdigest())


def _act(call: Call) -> Answer:
    try:
        return _carry_out(call, _once(call))
    except Repeated:                                    # which none of those raises that answer with a run
        return Answer(204)


def _carry_out(call: Call, service: Migration) -> Answer:
    action, entity_set = call.resource.action, call.resource.set
    assert action is not None
    writing.check_content_type(call.headers.get("content-type", ""), call.body, action=True)
    writing.if_match(entity_set, call.headers.get("if-match"), required=False)(call.resource.row)
    parameters = writing.read_parameters(action, call.body)
    bound = (getattr(call.resource.row, entity_set.key.attribute),) if action.of_row else ()
    done = action.verb(service, *bound, **parameters)
    if isinstance(done, Run):
        return Answer(204, headers={"Location": f"{call.url.root}/{call.resource.company}{call.url.api.set_of(Run).name}({done.id})"})
    return Answer(204)


def _create(call: Call) -> Answer:
    entity_set = call.resource.set
    assert entity_set.create is not None
    writing.check_content_type(call.headers.get("content-type", ""), call.body, action=False)
    options = call.options(single=True)
    try:
        row = entity_set.create(_once(call), _values(call, None))
    except Repeated as again:
        if again.run_id is None:
            raise
        row = call.service.get(Run, again.run_id)
    if not isinstance(row, entity_set.row):
        row = call.service.get(entity_set.row, row.id)
    path = f"{call.resource.path}({key_text(entity_set, row)})"
    return _written(call, replace(call.resource, kind="entity", path=path, row=row), options, 201, Location=f"{call.url.root}/{path}")


def _change(call: Call) -> Answer:
    entity_set, row = call.resource.set, call.resource.row
    assert entity_set.change is not None
    writing.check_content_type(call.headers.get("content-type", ""), call.body, action=False)
    matches = writing.if_match(entity_set, call.headers.get("if-match"), required=True)
    matches(row)
    options = call.options(single=True)
    changed = entity_set.change(call.service, getattr(row, entity_set.key.attribute), _values(call, row), matches)
    return _written(call, replace(call.resource, row=changed), options, 200)


def _values(call: Call, row: Any) -> dict[str, Any]:
    values = writing.read_values(call.resource.set, call.body, row)
    if call.resource.set.row is Subscription:
        return read_subscription(call.service, call.url, call.headers, values, new=row is None)
    return values


def _written(call: Call, resource: Resource, options: Options, status: int, **headers: str) -> Answer:
    headers["ETag"] = etag(resource.set, resource.row)
    for preference in ("return-no-content", "return"):
        if preference in call.preferences and (preference != "return" or call.preferences["return"] == "minimal"):
            applied = "return=minimal" if preference == "return" else preference
            return Answer(204, headers={**headers, "Preference-Applied": applied, "OData-EntityId": f"{call.url.root}/{resource.path}"})
    return _json(call, call.reader.single(resource, options), headers, status)


def _delete(call: Call) -> Answer:
    entity_set, row = call.resource.set, call.resource.row
    assert entity_set.delete is not None
    matches = writing.if_match(entity_set, call.headers.get("if-match"), required=False)
    matches(row)
    entity_set.delete(call.service, getattr(row, entity_set.key.attribute), matches)
    return Answer(204)
