"""What a trusted proxy says of the request that it passes on: who asks, by which scheme, for which host."""

from __future__ import annotations

import ipaddress

from starlette.types import ASGIApp, Receive, Scope, Send

from skylift.settings import networks


class Forwarded:
    """Takes X-Forwarded-For, -Proto and -Host from proxies in `trusted`; from anybody else they are ignored.

    Of several values the last counts: it is the one that the trusted proxy has added itself.
    """

    def __init__(self, app: ASGIApp, trusted: str) -> None:
        self.app = app
        self.trusted = networks(trusted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._trusts(scope.get("client")):
            scope = self._forwarded(scope)
        await self.app(scope, receive, send)

    def _trusts(self, client: tuple[str, int] | None) -> bool:
        try:
            address = ipaddress.ip_address(client[0]) if client else None
        except ValueError:
            return False
        return address is not None and any(address in network for network in self.trusted)

    def _forwarded(self, scope: Scope) -> Scope:
        said = {name: value.decode("latin-1").rpartition(",")[2].strip() for name, value in scope["headers"]
                if name.startswith(b"x-forwarded-")}
        scope = dict(scope)
        if (scheme := said.get(b"x-forwarded-proto", "").lower()) in ("http", "https"):
            scope["scheme"] = scheme
        if host := said.get(b"x-forwarded-host"):
            scope["headers"] = [*((n, v) for n, v in scope["headers"] if n != b"host"), (b"host", host.encode("latin-1"))]
        if client := said.get(b"x-forwarded-for"):
            scope["client"] = (client, 0)
        return scope
