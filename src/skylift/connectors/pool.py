"""A pool of connections that grows as threads ask for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from skylift.errors import SetupError, TargetFailed, Transient

RECONNECT_S = 20                   # how long a server that has been there may be away: restarted, failed over


class Closable(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)


class Pool(Generic[C]):
    """Connections made by `connect` and used by one thread each. One that saw an error is closed, not given back."""

    def __init__(self, connect: Callable[[], C]) -> None:
        self._connect = connect
        self._idle: list[C] = []
        self._reached = False                      # has it ever been possible to connect?
        self._closed = False
        self._lock = threading.Lock()

    @contextmanager
    def connection(self) -> Iterator[C]:
        connection = self._take()
        try:
            yield connection
        except BaseException:
            connection.close()                     # ends whatever was under way, at once
            raise
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _take(self) -> C:
        with self._lock:
            if self._closed:
                raise TargetFailed("the connection has been closed")
            if self._idle:
                return self._idle.pop()
        connection = self._open()
        self._reached = True
        return connection

    def _open(self) -> C:
        """Waits for a server that has been there before. Raises SetupError where it has not, Transient where it stays away."""
        until = time.monotonic() + (RECONNECT_S if self._reached else 0)
        while True:
            try:
                return self._connect()
            except (SetupError, Transient) as error:
                if time.monotonic() >= until:
                    if self._reached:
                        raise Transient(error.message, hint=error.hint, code=error.code) from None
                    raise
            time.sleep(0.5)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
