"""Calls to addresses that somebody else has chosen: where they may go, and for how long. Source: odata.md K6.

A host is resolved once, and the connection is made to the address that was checked, so that a name cannot mean one host when it is
looked at and another when it is called. Redirects are answers like any other, proxies of the environment are not used.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpcore
import httpx

from skylift.errors import SetupError, SkyliftError

MOST_BYTES = 4096                # of an answer
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class CallFailed(SkyliftError):
    """There is no answer: no connection, not in time, or an address that must not be called."""

    code = "CallFailed"


def call(url: str, body: bytes, headers: Mapping[str, str], *, within_s: float, allowed: Sequence[Network]) -> tuple[int, bytes]:
    """POST `body`: status and the first bytes of the answer, whatever it is. Raises CallFailed if there is none in time."""
    try:
        return asyncio.run(_call(url, body, headers, within_s, allowed))
    except TimeoutError:
        raise CallFailed(f"no answer within {within_s:g} seconds") from None
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError, UnicodeError) as error:
        raise CallFailed(str(error) or type(error).__name__) from None


def check_url(url: str) -> None:
    """Raises SetupError for what cannot be called. Where the host leads is checked when it is."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.username is None and not parts.fragment
        usable = usable and parts.port != 0 and url.isprintable() and " " not in url and bool(httpx.URL(url).raw_host)
    except (ValueError, httpx.InvalidURL):
        usable = False
    if not usable:
        raise SetupError("notificationUrl is not a URL that can be called", code="NotificationUrl",
                         hint="send one with https and a host, without user and fragment")


def why_not(address: str, allowed: Sequence[Network], *, plain: bool) -> str:
    """Why an address must not be called, '' if it may; `plain`: without TLS, which is for allowed networks only."""
    ip = _meant(ipaddress.ip_address(address.partition("%")[0]))
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return "is link-local, or no single host's"
    if any(ip in network for network in allowed):
        return ""
    if not ip.is_global or getattr(ip, "is_site_local", False):
        return "is private; the setting webhook_networks allows those that it lists"
    return "is public, and is called with https only" if plain else ""


def _meant(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that an IPv6 one stands for, where it does."""
    if not isinstance(ip, ipaddress.IPv6Address):
        return ip
    inside = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
    return inside or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else ip)


class _Checked(httpcore.AnyIOBackend):
    """Connects to addresses that may be called, and to no others."""

    def __init__(self, allowed: Sequence[Network], *, plain: bool) -> None:
        self._allowed = allowed
        self._plain = plain

    async def connect_tcp(self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
                          socket_options: Iterable[Any] | None = None) -> httpcore.AsyncNetworkStream:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        refused = {address: why for address in addresses if (why := why_not(address, self._allowed, plain=self._plain))}
        last: Exception = CallFailed("; ".join(f"the address {address} {why}" for address, why in refused.items()))
        for address in addresses:
            if address not in refused:
                try:
                    return await super().connect_tcp(address, port, timeout, local_address, socket_options)
                except httpcore.ConnectError as error:
                    last = error
        raise last

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise CallFailed("a socket file is not called")


@functools.cache
def _trust() -> ssl.SSLContext:
    return ssl.create_default_context()


async def _call(url: str, body: bytes, headers: Mapping[str, str], within_s: float, allowed: Sequence[Network]) -> tuple[int, bytes]:
    target = httpx.URL(url)
    where = httpcore.URL(scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path)
    sent = [("Host", target.netloc.decode("ascii")), *headers.items(), ("Content-Length", str(len(body)))]
    backend = _Checked(allowed, plain=target.scheme == "http")
    async with asyncio.timeout(within_s):
        async with httpcore.AsyncConnectionPool(ssl_context=_trust(), network_backend=backend) as pool:
            async with pool.stream("POST", where, headers=sent, content=body) as answer:
                text = bytearray()
                async for part in answer.aiter_stream():
                    text += part
                    if len(text) >= MOST_BYTES:
                        break
                return answer.status, bytes(text[:MOST_BYTES])
