"""What one user may ask of the service: requests per five minutes, and how many at once. Source: odata.md X3."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from skylift.api.errors import ODataError
from skylift.settings import Settings


@dataclass
class _User:
    running: asyncio.Semaphore
    times: deque[float] = field(default_factory=deque)       # of the requests in the window
    inside: int = 0                                          # requests that run or wait


class Limits:
    """Lets requests through, in order, or refuses them with 429 or 503 and Retry-After. For one event loop."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.requests, self.window_s, self.patience_s = settings.api_requests, settings.api_window_s, settings.api_wait_s
        self.running = settings.api_running
        self.open = min(settings.api_running + settings.api_queue, settings.api_connections)
        self.clock = clock
        self.at_work = 0                                     # requests that run, of all users
        self.waiting = 0
        self._users: dict[str, _User] = {}

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """The time in which one request of user `name` runs. Raises ODataError 429 (too many, queue full) or 503 (waited too long)."""
        user = self._user(name)
        self._count(user)
        if user.inside >= self.open:
            raise _too_many(f"{user.inside} requests are open already, more than can run or wait.", 1)
        user.inside += 1
        try:
            self.waiting += 1
            try:
                await self._wait(user)
            finally:
                self.waiting -= 1
            self.at_work += 1
            try:
                yield
            finally:
                self.at_work -= 1
                user.running.release()
        finally:
            user.inside -= 1

    async def _wait(self, user: _User) -> None:
        try:
            async with asyncio.timeout(self.patience_s):
                await user.running.acquire()
        except TimeoutError:
            raise ODataError(503, "Internal_TenantUnavailable", "The request has waited too long for its turn.",
                             {"Retry-After": "1"}) from None

    def admit(self, name: str) -> None:
        """Count a request of user `name` that needs no turn. Raises ODataError 429."""
        self._count(self._user(name))

    def _user(self, name: str) -> _User:
        user = self._users.get(name)
        if user is None:
            user = self._users[name] = _User(asyncio.Semaphore(self.running))
        return user

    def _count(self, user: _User) -> None:
        now = self.clock()
        while user.times and user.times[0] <= now - self.window_s:
            user.times.popleft()
        if len(user.times) >= self.requests:
            raise _too_many(f"More than {self.requests} requests in {self.window_s:g} seconds.",
                            math.ceil(user.times[0] + self.window_s - now))
        user.times.append(now)


def _too_many(message: str, retry_after_s: int) -> ODataError:
    return ODataError(429, "Application_TooManyRequests", message, {"Retry-After": str(max(1, retry_after_s))})
