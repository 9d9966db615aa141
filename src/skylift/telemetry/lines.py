"""The log: one JSON document a line, on stderr or at the end of a file, written by a thread of its own."""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from skylift.settings import Settings
from skylift.telemetry import Signal, version

MOST = 10_000                     # signals that wait to be written; further ones are dropped
_log = logging.getLogger("skylift.telemetry")


class Lines:
    """Whoever moves or deletes the file gets a new one: it is opened for each batch of lines."""

    def __init__(self, settings: Settings) -> None:
        self._path = None if settings.telemetry_log == "stderr" else settings.home / Path(settings.telemetry_log).expanduser()
        self._common = {"component": "skylift", "componentVersion": version(), "category": "CloudMigration",
                        "environmentName": settings.environment_name}
        self._waiting: queue.Queue[Signal | None] = queue.Queue(MOST)
        self._dropped = 0
        self._told = False
        self._thread = threading.Thread(target=self._write_all, name="telemetry-log", daemon=True)
        self._thread.start()

    def emit(self, signals: Iterable[Signal]) -> None:
        for signal in signals:
            try:
                self._waiting.put_nowait(signal)
            except queue.Full:
                self._dropped += 1

    def close(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < until:
            try:
                self._waiting.put_nowait(None)
                break
            except queue.Full:                          # whoever writes is slow: until then it may have written some
                time.sleep(0.02)
        self._thread.join(max(0.0, until - time.monotonic()))

    def _write_all(self) -> None:
        ended = False
        while not ended:
            batch = [self._waiting.get()]
            while not self._waiting.empty() and len(batch) < 1000:
                batch.append(self._waiting.get())
            ended = None in batch
            dropped, self._dropped = self._dropped, 0
            documents = [document for signal in batch if signal is not None for document in self._documents(signal)]
            if dropped:
                documents.append({"eventId": "skylift.dropped", "level": "warning", "message": f"{dropped} signals were dropped here"})
            if documents:
                self._write(b"".join(msgspec.json.encode(document, enc_hook=str) + b"\n" for document in documents))

    def _write(self, lines: bytes) -> None:
        try:
            if self._path is None:
                sys.stderr.buffer.write(lines)
                sys.stderr.buffer.flush()
            else:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with self._path.open("ab", buffering=0) as file:      # one call: lines of other processes do not come between
                    file.write(lines)
        except (OSError, ValueError) as error:          # ValueError: stderr is closed
            if not self._told:
                self._told = True
                _log.warning("the telemetry log %s cannot be written: %s", self._path or "stderr", error)

    def _documents(self, signal: Signal) -> Iterator[dict[str, Any]]:
        """One for each documented id, one without any for what only skylift knows."""
        who = {"actor": signal.actor, "actorId": signal.actor_id} if signal.actor else {}
        states = {"from": signal.before, "to": signal.after} if signal.before or signal.after else {}
        took = {"durationMs": round((signal.at - signal.began).total_seconds() * 1000, 3)} if signal.began else {}
        run = {"runId": signal.trace} if signal.trace else {}
        for id in signal.ids or (f"skylift.{signal.name}",):
            yield {"time": signal.at.isoformat().replace("+00:00", "Z"), "level": "error" if signal.failed else "info", "eventId": id,
                   "event": signal.name, **({"subject": signal.subject} if signal.subject else {}), **who, **states, **run, **took,
                   **self._common, "dimensions": dict(signal.dimensions)}
