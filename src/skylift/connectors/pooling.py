"""Connections shared by the threads of a run: grown as they ask, one thread at a time each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from skylift.errors import SetupError, SkyliftError, SourceFailed, TargetFailed, Transient

RECONNECT_S = 20                   # how long a server that has been there may be away: restarted, failed over
CONNECTION_WAIT_S = 60             # how long to wait for another thread's connection where the server grants no more
IDLE_S = 10                        # after which a connection is looked at before it is used again
LIMIT = "ConnectionLimit"          # code of the Transient that `connect` raises there


class Closable(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)


class Pool(Generic[C]):
    """What `connect` opens. A connection that saw an error is closed, not given back."""

    def __init__(self, connect: Callable[[], C], failed: type[SourceFailed] | type[TargetFailed],
                 alive: Callable[[C], bool] = lambda connection: True,
                 worth_keeping: Callable[[C], bool] = lambda connection: True) -> None:
        """Opens the first connection, whose error says what is wrong with the URL. `failed`: raised where there is none any more, and
        the run ends with it. `alive`: whether an idle one can still be used; `worth_keeping`: whether one that was given back
        shall be used again.
        """
        self._connect, self._failed, self._alive, self._worth_keeping = connect, failed, alive, worth_keeping
        self._idle = [(connect(), time.monotonic())]       # with the time since when
        self._used = 0
        self._closed = False
        self._changed = threading.Condition()

    @contextmanager
    def connection(self) -> Iterator[C]:
        """Errors that mean a lost connection leave the block as Transient."""
        connection = self._take()
        try:
            yield connection
        except BaseException as error:
            connection.close()                     # ends whatever was under way, at once
            if isinstance(error, Transient):
                self._close_idle()                 # a server that was restarted has ended them all
            self._give_back(None)
            raise
        self._give_back(connection)

    def _take(self) -> C:
        with self._changed:
            if self._closed:
                raise self._failed("the connection has been closed")
            self._used += 1
        try:
            while idle := self._pop():
                if idle[1] > time.monotonic() - IDLE_S or self._alive(idle[0]):
                    return idle[0]
                idle[0].close()
            return self._open()
        except BaseException:
            self._give_back(None)
            raise

    def _pop(self) -> tuple[C, float] | None:
        with self._changed:
            return self._idle.pop() if self._idle else None

    def _open(self) -> C:
        """Waits for a server that is restarted, and for another thread's connection where the server grants no more."""
        until = time.monotonic() + RECONNECT_S
        while True:
            try:
                return self._connect()
            except (SetupError, Transient) as error:       # the first one was had with the same URL
                if error.code == LIMIT:
                    began = time.monotonic()
                    with self._changed:
                        self._changed.wait_for(lambda: self._idle or self._used == 1, CONNECTION_WAIT_S)
                    if idle := self._pop():
                        return idle[0]
                    if self._used > 1:             # each may wait for the other's: both begin again
                        raise
                    until += time.monotonic() - began
                if time.monotonic() > until:
                    raise self._lost(error) from None
            time.sleep(0.5)

    def _lost(self, error: SkyliftError) -> SkyliftError:
        """A server that says that it will be back may be tried again; for others the run has waited long enough."""
        return error if isinstance(error, Transient) and error.code != LIMIT else self._failed(error.message, hint=error.hint)

    def _give_back(self, connection: C | None) -> None:
        with self._changed:
            self._used -= 1
            if connection and not self._closed and self._worth_keeping(connection):
                self._idle.append((connection, time.monotonic()))
            elif connection:
                connection.close()
            self._changed.notify_all()

    def _close_idle(self) -> None:
        while idle := self._pop():
            idle[0].close()

    def close(self) -> None:
        self._closed = True
        self._close_idle()
