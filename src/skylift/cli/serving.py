"""The long-running commands: the HTTP service and the coordinator."""

from __future__ import annotations

import logging
import os
import signal
import socket
import ssl
import threading
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from skylift.cli.frame import Session, command
from skylift.errors import SetupError
from skylift.settings import Settings

API_ROOT = "v2.0/production/api/microsoft/cloudMigration/v1.0"      # odata.md U2; the environment's name is the client's choice


@command("skylift serve --port 7048", target=True)
def serve(
    session: Session,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", show_default="7048")] = None,
    tls_cert: Annotated[str | None, typer.Option(metavar="FILE", help="Certificate chain (PEM): serve HTTPS.", show_default=False)] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="Key (PEM) of the certificate.", show_default=False)] = None,
    no_coordinator: Annotated[bool, typer.Option("--no-coordinator", help="Serve only; skylift coordinate works elsewhere.")] = False,
) -> None:
    """Serve the Cloud Migration API until SIGTERM or Ctrl-C, which let running requests end."""
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces, SSLProtocols

    from skylift.migration.coordinator import spawn_coordinator

    settings = session.settings
    settings = replace(settings, host=host or settings.host, port=settings.port if port is None else port)
    settings = replace(settings, port=_free_port(settings.host, settings.port), tls_cert=tls_cert or settings.tls_cert,
                       tls_key=tls_key or settings.tls_key)
    certificate, key = _tls_files(settings)
    session.migration.store.close()                         # made and upgraded before two processes use it
    session.migration.telemetry.close()                     # the worker and the coordinator have their own
    os.environ.update(settings.environment())               # for the worker, which the server starts as a process
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    session.say(f"serving {'https' if certificate else 'http'}://{shown}:{settings.port}/{API_ROOT}")
    session.say(f"make a token with: skylift token create NAME --role operator --home {settings.home}")
    # One worker process; HTTP/1 because it carries the action names that old clients send as methods (odata.md U6).
    # When stopped the server closes its port and idle connections, and lets requests that run or wait for their turn end.
    server = Granian("skylift.app:create_app", settings.host, settings.port, interface=Interfaces.ASGI,
                     http=HTTPModes.http1, workers=1, websockets=False, factory=True, log_access=False,
                     ssl_cert=certificate, ssl_key=key, ssl_protocol_min=SSLProtocols.tls12, workers_kill_timeout=settings.drain_s)
    coordinator = None if no_coordinator else spawn_coordinator(settings)
    try:
        server.serve()
    finally:
        if coordinator is not None:
            coordinator.stop()


@command("skylift coordinate", target=True)
def coordinate(session: Session) -> None:
    """Carry out runs, company creation and upgrades until SIGTERM or Ctrl-C; a second coordinator stands by."""
    from skylift.migration.coordinator import coordinate as work

    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    session.say("coordinating; Ctrl-C hands over")
    work(session.migration.store, session.settings, stop.is_set)


def _tls_files(settings: Settings) -> tuple[Path | None, Path | None]:
    """Certificate and key, None for both: HTTP. Raises SetupError if they cannot be used."""
    if not settings.tls_cert:
        return None, None
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except (OSError, ValueError) as error:                  # an ssl.SSLError is an OSError
        raise SetupError(f"the certificate {settings.tls_cert} with the key {settings.tls_key} cannot be used: {error}",
                         hint="both are PEM files, the key without a password", code="Tls") from None
    return Path(settings.tls_cert), Path(settings.tls_key)


def _free_port(host: str, port: int) -> int:
    """`port`, or a free one for 0. Raises SetupError now, where the server would only log from another process."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            return probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        raise SetupError(f"cannot listen on {host}:{port}: {error}", hint="choose another --port or --host", code="Address") from None
