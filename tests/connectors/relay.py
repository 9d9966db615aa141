"""A relay between skylift and a server, that a test can cut or hold: what a network or a server does that goes away or falls silent.

Run as a program (`host port`) it is a process of its own, for drivers that hold the interpreter's lock while they wait: it prints its
port and is held and let go by the lines that it reads.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress


class Relay:
    """Listens on `port` and passes bytes on, while it is not held. `cut_after(n)` ends all connections once n more bytes have come from
    the server."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._left: int | None = None
        self.cuts = 0
        self.passing = threading.Event()
        self.passing.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, count: int) -> None:
        self._left = count

    def cut(self) -> None:
        self.cuts += 1
        self._left = None
        taken, self._open = self._open, []
        for one in taken:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                self._open += [client, server]
                threading.Thread(target=self._pass_on, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(server, client, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.passing.wait()
                target.sendall(data)
                if counted and self._left is not None:
                    self._left -= len(data)
                    if self._left <= 0:
                        self.cut()
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)     # also where the other thread is reading
            one.close()


class Elsewhere:
    """A relay in a process of its own."""

    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process
        self.port = int(self._say("port"))

    def hold(self) -> None:
        """It takes what is sent and passes nothing on, of new connections neither."""
        self._say("hold")

    def let_go(self) -> None:
        self._say("let go")

    def _say(self, line: str) -> str:
        print(line, file=self._process.stdin, flush=True)
        return self._process.stdout.readline()


@contextmanager
def relay_elsewhere(host: str, port: int):
    with subprocess.Popen([sys.executable, __file__, host, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Elsewhere(process)
        finally:
            process.kill()


def main(host: str, port: str) -> None:
    relay = Relay(host, int(port))
    for line in sys.stdin:
        if line.strip() == "hold":
            relay.passing.clear()
        elif line.strip() == "let go":
            relay.passing.set()
        print(relay.port, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
