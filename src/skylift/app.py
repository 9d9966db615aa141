"""The HTTP service: create_app is what the ASGI server calls, once per process."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from skylift.api.routes import Api
from skylift.errors import Transient
from skylift.migration import Migration
from skylift.settings import Settings, load_settings
from skylift.store import Store, open_store


def create_app(settings: Settings | None = None) -> Starlette:
    """The application over the store of `settings` (those of file and environment if None). Raises SetupError if it cannot be opened."""
    # A filter may nest 100 levels (odata.md F7), and SQLAlchemy needs a dozen frames for each.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 4000))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")   # as `skylift coordinate` does
    settings = settings or load_settings()
    store = open_store(settings.store)
    api = Api(Migration(store, settings, actor="api"))

    async def health(request: Request) -> JSONResponse:
        try:
            await run_in_threadpool(_ask, store)
        except Transient as error:
            return JSONResponse({"status": "unavailable", "reason": error.message}, 503, {"Retry-After": "5"})
        return JSONResponse({"status": "ok"})

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        store.close()

    browsers = Middleware(CORSMiddleware, allow_origins=settings.cors_origins.split(), allow_headers=["*"],
                          allow_methods=["GET", "HEAD", "POST", "PATCH", "DELETE"], expose_headers=["*"])     # H6
    return Starlette(routes=[Route("/health", health), Mount("/", app=api)], lifespan=lifespan,
                     middleware=[browsers] if settings.cors_origins else [])


def _ask(store: Store) -> None:
    with store.read() as connection:
        connection.execute(sa.select(1))
