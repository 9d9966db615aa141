"""The HTTP service: create_app is what the ASGI server calls, once per process."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from uuid import uuid4

import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from skylift.api.forwarded import Forwarded
from skylift.api.render import error_body
from skylift.api.routes import ODataService
from skylift.errors import Transient
from skylift.migration import Migration
from skylift.settings import Settings, load_settings
from skylift.store import Store, open_store


def create_app(settings: Settings | None = None) -> Starlette:
    """The application over the store of `settings`. Raises SetupError if it cannot be opened.

    None: those of file and environment. So an ASGI server calls it in a process of the service's own, whose log this begins;
    where another program embeds the application, logging is that program's.
    """
    # A filter may nest 100 levels (odata.md F7), and SQLAlchemy needs a dozen frames for each.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 4000))
    own_process = settings is None
    if settings is None:
        _begin_log()
        settings = load_settings()
    store = open_store(settings.store, settings.api_work_s)
    api = ODataService(Migration(store, settings, actor="api"))
    routes = []
    if settings.prometheus == "on" or api.service.telemetry.on:
        from skylift.api.watch import Watch

        watch = Watch(api, settings)
        routes = [Route("/metrics", watch.metrics)] if settings.prometheus == "on" else []

    async def health(request: Request) -> JSONResponse:
        try:
            await run_in_threadpool(_ask, store)
        except Transient as error:
            return JSONResponse({"status": "unavailable", "reason": error.message}, 503, {"Retry-After": "5"})
        return JSONResponse({"status": "ok"})

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if own_process:
            gc.collect()
            gc.freeze()                  # modules and declarations stay: no request waits for them to be looked through
        yield
        api.service.telemetry.close()
        store.close()

    browsers = Middleware(_Browsers, allow_origins=settings.cors_origins.split(), allow_headers=["*"],
                          allow_methods=["GET", "HEAD", "POST", "PATCH", "DELETE"], expose_headers=["*"])     # H6
    proxies = Middleware(Forwarded, trusted=settings.trusted_proxies)
    app = Starlette(routes=[Route("/health", health), *routes], lifespan=lifespan,
                    middleware=[*([proxies] if settings.trusted_proxies else []), *([browsers] if settings.cors_origins else [])],
                    exception_handlers={HTTPException: _outside})
    app.router.redirect_slashes = False
    app.router.default = api             # not mounted at /, for a mount takes neither * nor a path with a line break
    return app


class _Browsers(CORSMiddleware):
    """CORS, whose refusals look like all others (X1)."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        return response if response.status_code < 400 else _refused(400, "BadRequest", bytes(response.body).decode(), {"Vary": "Origin"})


async def _outside(request: Request, error: Exception) -> Response:
    """A verb that /health does not have."""
    assert isinstance(error, HTTPException)
    return _refused(error.status_code, "BadRequest_MethodNotAllowed", error.detail, error.headers or {})


def _refused(status: int, code: str, message: str, headers: Mapping[str, str]) -> Response:
    correlation_id = str(uuid4())
    return Response(error_body(code, message.rstrip(".") + ".", correlation_id), status,
                    {"Content-Type": "application/json; charset=utf-8", "request-id": correlation_id, **headers})


def _begin_log() -> None:
    """Lines of skylift alone, as `skylift coordinate` writes them."""
    log = logging.getLogger("skylift")
    log.setLevel(logging.INFO)
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        log.addHandler(handler)


def _ask(store: Store) -> None:
    with store.read() as connection:
        connection.execute(sa.select(1))
