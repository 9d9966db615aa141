"""What is told of skylift's work to those who watch it: a log of one JSON document a line, OpenTelemetry, Prometheus.

Whoever changes a state makes a `Signal`, which is told once the change is committed and never before. Nobody waits for who is told:
each way out has a thread and a bounded queue of its own, and what does not fit is dropped and counted. Off by default, and then
`Telemetry.on` is all that is asked.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from typing import Protocol
from uuid import UUID

from skylift.model import NO_ID
from skylift.settings import Settings
from skylift.telemetry.metrics import Sample

CLOSE_S = 2.0                     # that the ways out have in all to get rid of what they hold when a process ends

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Signal:
    """Something that has happened, with what is known of it. Never with a secret, or a value of a row."""

    name: str                      # of what, and what: 'run.run_replication', 'table.copied'
    at: datetime
    ids: tuple[str, ...] = ()      # those of catalogue.py that it stands for
    dimensions: Mapping[str, Value] = field(default_factory=dict)
    actor: str = ""
    actor_id: UUID = NO_ID
    subject: str = ""
    before: str = ""               # states
    after: str = ""
    failed: bool = False
    began: datetime | None = None  # of what took time and has ended with this
    trace: UUID | None = None      # of the run that it belongs to
    span: UUID | None = None       # its own, where others belong to it
    parent: UUID | None = None     # the span that it belongs to


class Way(Protocol):
    """A way out. None of its methods waits for anything but the memory of this process, `close` but for the time it is given."""

    def emit(self, signals: Iterable[Signal]) -> None: ...
    def close(self, seconds: float) -> None: ...


class Telemetry:
    """The ways out that the settings name, shared by all of a process."""

    def __init__(self, ways: list[Way]) -> None:
        self._ways = ways
        self.on = bool(ways)
        self.measure: Callable[[], Iterable[Sample]] | None = None     # reads the figures of the store while this process answers for them

    def emit(self, signals: Iterable[Signal]) -> None:
        for way in self._ways:
            way.emit(signals)

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """An answered request."""
        for way in self._ways:
            if observe := getattr(way, "observe", None):
                observe(route, method, status, seconds)

    @contextmanager
    def measuring(self, read: Callable[[], Iterable[Sample]]) -> Iterator[None]:
        """The figures that `read` gives are this process's to tell for as long as the block lasts."""
        self.measure = read
        try:
            yield
        finally:
            self.measure = None

    def samples(self) -> list[Sample]:
        return [*self.measure()] if self.measure is not None else []

    def close(self) -> None:
        """Tell what is still to be told, within CLOSE_S whatever becomes of it. Nothing is told afterwards."""
        ways, self._ways, self.on = self._ways, [], False
        threads = [threading.Thread(target=way.close, args=(CLOSE_S,), name="telemetry-close", daemon=True) for way in ways]
        join_all(threads, CLOSE_S)


def join_all(threads: list[threading.Thread], seconds: float) -> None:
    """Start them and wait for all of them, together at most so long."""
    until = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def version() -> str:
    return metadata.version("skylift")


_OPEN: dict[tuple[str, ...], Telemetry] = {}
_OPENING = threading.Lock()
_NAMES = ("telemetry_log", "otlp_endpoint", "otlp_headers", "otlp_interval_s", "environment_name")


def telemetry_of(settings: Settings) -> Telemetry:
    """What these settings ask for, opened once in a process (a fork has none of the threads that its parent has begun).

    Raises SetupError where the package that it needs is not installed.
    """
    key = (str(os.getpid()), str(settings.home), *(str(getattr(settings, name)) for name in _NAMES))
    with _OPENING:
        telemetry = _OPEN.get(key)
        if telemetry is None or not telemetry.on:
            telemetry = _OPEN[key] = _open(settings)
        return telemetry


def _open(settings: Settings) -> Telemetry:
    ways: list[Way] = []
    telemetry = Telemetry([])
    if settings.telemetry_log:
        from skylift.telemetry.lines import Lines

        ways.append(Lines(settings))
    if settings.otlp_endpoint:
        from skylift.telemetry.otlp import Otlp

        ways.append(Otlp(settings, telemetry.samples))
    telemetry._ways, telemetry.on = ways, bool(ways)
    if ways:
        atexit.register(telemetry.close)
    return telemetry
