"""The moment at which the work for a request must end, known to everything that this request does in its thread."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from skylift.errors import TimedOut

_ends_at: ContextVar[float] = ContextVar("ends_at", default=float("inf"))


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is done in the block ends after `seconds`: the next transaction does not begin, a statement is broken off."""
    token = _ends_at.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _ends_at.reset(token)


def left_s() -> float:
    return _ends_at.get() - time.monotonic()


def over() -> bool:
    return left_s() <= 0


def check() -> None:
    """Raises TimedOut."""
    if over():
        raise TimedOut("the request has taken too long and was broken off", hint="ask for less at once")
