"""How long requests take, by the template of their route, and /metrics. Off unless a setting asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from skylift.api.answer import Answer, finish
from skylift.api.apis import APIS
from skylift.api.limits import Limits
from skylift.api.routes import ODataService, permit_reading
from skylift.api.urls import find_root
from skylift.migration.figures import Figures
from skylift.settings import Settings
from skylift.telemetry import telemetry_of
from skylift.telemetry.metrics import Sample

DEEPEST = 4                       # segments of a template; whatever comes behind them is no resource of its own
UNKNOWN = "{unknown}"
_NAMES = {api: {name.lower(): name for name in (
    *api.by_alias, *(n.name for s in api.sets for n in s.navigations), *(p.name for s in api.sets for p in s.properties),
    *(f"Microsoft.NAV.{a.name}" for s in api.sets for a in s.actions), "$metadata", "$batch", "$count", "$value")} for api in APIS}
_METHODS = {"GET", "HEAD", "OPTIONS", "POST", "PATCH", "DELETE", *(a.name.upper() for api in APIS for s in api.sets for a in s.actions)}


class Watch:
    """Measures the requests of `api` for those whom the settings name."""

    def __init__(self, api: ODataService, settings: Settings) -> None:
        self._api = api
        self._telemetry = telemetry_of(settings)
        self._figures = Figures(api.service.store)
        self._exposition = None
        if settings.prometheus == "on":
            from skylift.telemetry.prometheus import Exposition

            self._exposition = Exposition()
        if self._exposition or self._telemetry.on:
            api.observe = self.observe
            self._telemetry.measure = self._served           # the store's own figures are the coordinator's to tell

    def observe(self, path: str, method: str, status: int, seconds: float) -> None:
        route, method = template(path), method if method in _METHODS else UNKNOWN
        if self._exposition:
            self._exposition.observe(route, method, status, seconds)
        self._telemetry.observe(route, method, status, seconds)

    async def metrics(self, request: Request) -> Response:
        """Everything, for whoever may read. Answers and limits are those of the API."""
        try:
            answer = await self._metrics(request)
        except Exception as error:
            answer = finish(error, request.method, request.url.path)
        return Response(answer.body, answer.status, answer.headers)

    async def _metrics(self, request: Request) -> Answer:
        assert self._exposition is not None
        credentials = request.headers.getlist("authorization")
        caller = await run_in_threadpool(self._api.authenticate, credentials[0] if len(credentials) == 1 else "", True)
        permit_reading(caller)
        async with self._api.limits.turn(str(caller.id)):
            samples = [*await run_in_threadpool(self._figures.read), *self._served()]
            body, content_type = await run_in_threadpool(self._exposition.render, request.headers.get("accept", ""), samples)
        return Answer(200, body, {"Content-Type": content_type})

    def _served(self) -> Iterator[Sample]:
        return load(self._api.limits)


def load(limits: Limits) -> Iterator[Sample]:
    yield Sample("skylift.api.requests.running", limits.at_work, {})
    yield Sample("skylift.api.requests.waiting", limits.waiting, {})
    for name, value in (("requests", limits.requests), ("running", limits.running), ("open", limits.open)):
        yield Sample("skylift.api.limit", value, {"limit": name})


@lru_cache(1024)
def template(path: str) -> str:
    """The route that a path is of, without its keys. There are few of them, whatever clients ask for."""
    parts = [part for part in path.split("/") if part]
    if len(parts) == 1 and parts[0] in ("health", "metrics"):
        return parts[0]
    found = find_root([part.lower() for part in parts])
    if found is None:
        return UNKNOWN
    api, length = found
    route = [api.version]
    for part in parts[length:length + DEEPEST]:
        name, key, _ = part.partition("(")
        known = _NAMES[api].get(name.lower()) or _NAMES[api].get(f"microsoft.{name.lower()}")
        if known is None:
            return "/".join([*route, UNKNOWN])
        route.append(f"{known}({{id}})" if key else known)
    return "/".join(route)
