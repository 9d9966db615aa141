"""A lease as a process holds it: renewed by a thread of its own, and known to be lost in time. The store's side is store/leases.py."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable

import sqlalchemy as sa

from skylift.errors import Transient
from skylift.store import Store, leases

COORDINATOR = "coordinator"       # whose holder does the work

_log = logging.getLogger("skylift.lease")


class LeaseLost(Exception):
    """Another coordinator has taken over; whatever this one was doing is its now."""


class Lease:
    """The right to work, renewed by a thread of its own so that a long step does not cost it."""

    def __init__(self, store: Store, seconds: float, name: str = COORDINATOR) -> None:
        self.name = name
        self.holder = process(os.getpid()) + secrets.token_hex(4)
        self._store, self._seconds = store, seconds
        self._until = 0.0
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def take(self) -> bool:
        """Take or renew; counted from before the call, so that this side never believes longer than the store does."""
        began = time.monotonic()
        if not leases.acquire(self._store, self.name, self.holder, self._seconds):
            return False
        self._until = began + self._seconds
        return True

    def lost(self) -> bool:
        return self._lost.is_set() or time.monotonic() >= self._until

    def check(self, connection: sa.Connection) -> None:
        """Raises LeaseLost inside a transaction unless the lease is held; the transaction is rolled back then."""
        if leases.held_by(connection, self.name) != self.holder:
            self._lost.set()
            raise LeaseLost

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        leases.release(self._store, self.name, self.holder)

    def _beat(self) -> None:
        while not self._ended.wait(self._seconds / 3):
            try:
                if not self.take():
                    self._lost.set()
                    return
            except Transient as error:                  # until the lease runs out there is time to try again
                _log.warning("heartbeat: %s", error)


def process(pid: int) -> str:
    """The first part of the holder's name of every lease that process `pid` of this machine holds."""
    return f"{socket.gethostname()}:{pid}:"


def pause(seconds: float, stop: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while not stop() and (left := until - time.monotonic()) > 0:
        time.sleep(min(0.1, left))
