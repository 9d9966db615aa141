"""Answers to GET, given again for as long as nothing has changed in the store.

Clients of this API poll: they ask the same question many times a second of a store that a run writes four times a second. An
answer is given again only to a request that is the same byte for byte (URL, every header, so caller, company and format too)
and at the same version of the store, and for a second at most, so that what depends on the clock (a token that expires) is late
by that at most. Requests that ask the same at the same moment wait for one answer instead of each working it out.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass

from starlette.types import Scope

from skylift.api.answer import Answer

AGE_S = 1.0
KEPT_BYTES = 32 * 2**20           # of all bodies together
BODY_BYTES = 2**20                # of one; a larger one is worked out every time
_WITH_BODY = {b"content-length", b"transfer-encoding"}


@dataclass(frozen=True, slots=True)
class Given:
    answer: Answer
    user: str                     # whose request it counts as
    version: int
    until: float


class Remembered:
    """For one event loop. `version`: tells the store's version, None where the store has none (then nothing is remembered).

    `admit` is told whose request an answer that was there already counts as; it may refuse (X3).
    """

    def __init__(self, version: Callable[[], int | None], admit: Callable[[str], None],
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._version, self._admit, self._clock = version, admit, clock
        self._given: OrderedDict[Hashable, Given] = OrderedDict()
        self._bytes = 0
        self._asked: dict[Hashable, asyncio.Future[Given | None]] = {}

    async def answer(self, scope: Scope, work_out: Callable[[], Awaitable[tuple[Answer, str]]]) -> Answer:
        """The answer to a request. `work_out` makes one, says whose request it is, and has counted it."""
        if scope["method"] != "GET" or any(name in _WITH_BODY for name, _ in scope["headers"]) or (version := self._version()) is None:
            return (await work_out())[0]
        key = (scope.get("raw_path") or scope["path"], scope["query_string"], scope["scheme"], tuple(map(tuple, scope["headers"])))
        given = self._given.get(key)
        if given is None or given.version != version or self._clock() >= given.until:
            given = await asyncio.shield(asked) if (asked := self._asked.get((key, version))) else None
        if given is not None:
            self._admit(given.user)
            return given.answer
        future: asyncio.Future[Given | None] | None = None
        if (key, version) not in self._asked:
            future = self._asked[key, version] = asyncio.get_running_loop().create_future()
        try:
            answer, user = await work_out()
            given = Given(answer, user, version, self._clock() + AGE_S) if answer.status == 200 else None
            return answer
        finally:
            if future is not None:
                del self._asked[key, version]
                future.set_result(given)
                if given is not None:
                    self._keep(key, given)

    def _keep(self, key: Hashable, given: Given) -> None:
        if (old := self._given.pop(key, None)) is not None:
            self._bytes -= _size(old)
        if len(given.answer.body) > BODY_BYTES:
            return
        self._given[key] = given
        self._bytes += _size(given)
        while self._bytes > KEPT_BYTES:
            _, old = self._given.popitem(last=False)
            self._bytes -= _size(old)


def _size(given: Given) -> int:
    return len(given.answer.body) + 1024               # and its key and headers
