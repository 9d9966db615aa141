"""A server that stands still is not waited for; a step of any length is, as long as the server answers somebody.

Drivers that wait in C for ever, for a server that is stopped or whose packets are dropped, cannot be told to ask. So a thread looks at
who has been waiting for more than SILENT_S seconds and has the server asked on another connection. Where that gets no answer at all,
the wires of those who wait are cut, and their drivers return with an error. (PostgreSQL's driver waits in Python and asks by itself.)
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from skylift.errors import Transient

SILENT_S = 30                      # after which a server that says nothing is asked whether it is there


def said_nothing(seconds: float) -> str:
    return f"the server has said nothing for {seconds:.0f} s and answers nobody"


# ------------------------------------------------------------------ who waits


@dataclass(eq=False, slots=True)
class Wait:
    """One call of a driver that is under way."""

    server: str                    # in words
    answers: Callable[[], bool]    # whether the server answers a new connection, be it with an error; ends by itself
    cut: Callable[[], None]        # makes the call return
    since: float = field(default_factory=time.monotonic)
    was_cut: bool = False

    def go_on(self) -> None:
        """It moves: counted anew."""
        self.since = time.monotonic()


_waits: set[Wait] = set()
_lock = threading.Lock()
_watcher: list[threading.Thread] = []              # at most one


@contextmanager
def watched(server: str, answers: Callable[[], bool], cut: Callable[[], None]) -> Iterator[Wait]:
    """The block calls a driver, which waits outside of the interpreter's lock. Raises Transient if the server turns out to stand still."""
    wait = Wait(server, answers, cut)
    with _lock:
        _waits.add(wait)
        if not (_watcher and _watcher[0].is_alive()):          # the first one, or the first one of a forked process
            _watcher[:] = [threading.Thread(target=_watch, name="silence", daemon=True)]
            _watcher[0].start()
    try:
        yield wait
    except Exception:
        if wait.was_cut:
            raise Transient(f"{server}: the connection was lost: {said_nothing(SILENT_S)}", hint="it is tried again") from None
        raise
    finally:
        with _lock:
            _waits.discard(wait)


def _watch() -> None:
    while True:
        time.sleep(min(1, SILENT_S / 4))
        with _lock:
            silent = [wait for wait in _waits if time.monotonic() - wait.since > SILENT_S]
        answers = {wait.server: wait.answers for wait in silent}
        there = {server: answer() for server, answer in answers.items()}
        with _lock:                                # whoever has returned meanwhile uses the connection for something else
            for wait in _waits.intersection(silent):
                if there[wait.server]:
                    wait.go_on()
                else:
                    wait.was_cut = True
                    wait.cut()


# ------------------------------------------------------------------ wires


class Wires:
    """Duplicates of the TCP connections that a driver has opened and does not show. None where a system does not list open files."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    def cut(self) -> None:
        """End the conversation at once, for everybody who holds it."""
        for wire in self.sockets:
            with suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)

    def limit(self, seconds: float) -> None:
        """The system ends each wait for bytes after so long, also of a driver that holds the interpreter's lock; 0 = never."""
        for wire in self.sockets:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6)))

    def close(self) -> None:
        for wire in self.sockets:
            wire.close()


_opening = threading.Lock()


@contextmanager
def new_wires(port: int | None) -> Iterator[Wires]:
    """Filled at the end of the block with what it has opened; to `port`, if anything goes there. One block at a time."""
    wires = Wires()
    with _opening:
        before = set(_sockets().values())
        yield wires
        found = [_duplicate(fd) for fd, inode in _sockets().items() if inode not in before]
    of_tcp = [wire for wire in found if wire and wire.family in (socket.AF_INET, socket.AF_INET6)]
    there = [wire for wire in of_tcp if _port(wire) == port]
    wires.sockets = there or of_tcp
    for wire in found:
        if wire and wire not in wires.sockets:
            wire.close()


def _sockets() -> dict[int, int]:
    """Open sockets of this process: file descriptor -> inode."""
    found: dict[int, int] = {}
    with suppress(OSError):
        for name in os.listdir("/dev/fd"):
            with suppress(OSError):                # the folder itself has one, which is closed by now
                status = os.stat(int(name))
                if stat.S_ISSOCK(status.st_mode):
                    found[int(name)] = status.st_ino
    return found


def _duplicate(descriptor: int) -> socket.socket | None:
    try:
        return socket.socket(fileno=os.dup(descriptor))
    except OSError:                                # closed meanwhile
        return None


def _port(wire: socket.socket) -> int | None:
    try:
        return int(wire.getpeername()[1])
    except OSError:
        return None
