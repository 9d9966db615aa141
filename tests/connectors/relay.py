"""A relay between skylift and a server, that a test can cut: what a network or a server does that goes away."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Relay:
    """Listens on `port` and passes bytes on. `cut_after(n)` ends all connections once n more bytes have come from the server."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._left: int | None = None
        self.cuts = 0
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
                target.sendall(data)
                if counted and self._left is not None:
                    self._left -= len(data)
                    if self._left <= 0:
                        self.cut()
        for one in (source, target):
            with suppress(OSError):
                one.close()
