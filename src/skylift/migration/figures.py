"""The figures of the store that are told to those who watch. What ended runs have copied is added up once; the rest is counted anew."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from skylift.migration.lease import COORDINATOR
from skylift.migration.service import get_migration, newest_run
from skylift.runs import ReplicationType, RunStatus
from skylift.store import Store, leases
from skylift.store.tables import deliveries, run_tables, runs, subscriptions
from skylift.telemetry.metrics import Sample

MANY = 500                        # runs that are asked for by name; of more, all are read


class Figures:
    """Safe to use from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._copied: dict[str, tuple[datetime, dict[str, tuple[int, int]]]] = {}   # run id -> when it was changed, mode -> rows, bytes
        self._most: dict[tuple[str, str], int] = {}       # a counter never goes back, though a copy that is begun anew does
        self._delivered: dict[str, int] = {}
        self._last_delivery = 0

    def read(self) -> list[Sample]:
        """Raises Transient if the store does not answer."""
        with self._lock, self._store.read() as connection:
            return [*self._read(connection)]

    def _read(self, connection: sa.Connection) -> Iterator[Sample]:
        now = datetime.now(UTC)
        yield Sample("skylift.state", 1, {"state": str(get_migration(connection)["state"])})
        for kind, status, count in connection.execute(
                sa.select(runs.c.replication_type, runs.c.status, sa.func.count()).group_by(runs.c.replication_type, runs.c.status)):
            yield Sample("skylift.runs", count, {"type": str(kind), "status": str(status)})
        has_tables = sa.exists().where(run_tables.c.run_id == runs.c.run_id)
        if newest := newest_run(connection, has_tables):
            for status, count in connection.execute(sa.select(run_tables.c.status, sa.func.count()).where(
                    run_tables.c.run_id == newest.run_id).group_by(run_tables.c.status)):
                yield Sample("skylift.tables", count, {"status": str(status)})
        yield from self._add_up(connection)
        yield from _durations(connection, has_tables, now)
        yield Sample("skylift.coordinators", int(leases.is_held(connection, COORDINATOR)), {})
        count, since = connection.execute(sa.select(sa.func.count(), sa.func.min(subscriptions.c.waiting_since))).one()
        yield Sample("skylift.webhook.subscriptions", count, {})
        yield Sample("skylift.webhook.waiting", (now - since).total_seconds() if since else 0, {})
        new = sa.select(deliveries.c.id, deliveries.c.outcome).where(deliveries.c.id > self._last_delivery)
        for id, outcome in connection.execute(new):
            self._last_delivery = max(self._last_delivery, id)
            self._delivered[outcome] = self._delivered.get(outcome, 0) + 1
        for outcome, count in self._delivered.items():
            yield Sample("skylift.webhook.deliveries", count, {"outcome": outcome})

    def _add_up(self, connection: sa.Connection) -> Iterator[Sample]:
        """Rows and bytes by mode, of every run there was; those that have not changed since are known."""
        changed: dict[str, datetime] = {run_id: at for run_id, at in connection.execute(sa.select(runs.c.run_id, runs.c.modified_at))
                                        if run_id not in self._copied or self._copied[run_id][0] != at}
        found: dict[str, dict[str, tuple[int, int]]] = {run_id: {} for run_id in changed}
        if changed:
            query = sa.select(run_tables.c.run_id, run_tables.c.mode, sa.func.sum(run_tables.c.records_copied),
                              sa.func.sum(run_tables.c.size_bytes)).group_by(run_tables.c.run_id, run_tables.c.mode)
            query = query.where(run_tables.c.run_id.in_(changed)) if len(changed) <= MANY else query
            for run_id, mode, rows, size in connection.execute(query):
                if run_id in found and mode:
                    found[run_id][mode] = int(rows), int(size)
        self._copied |= {run_id: (at, found[run_id]) for run_id, at in changed.items()}
        totals: dict[str, tuple[int, int]] = {}
        for _, modes in self._copied.values():
            for mode, (rows, size) in modes.items():
                before = totals.get(mode, (0, 0))
                totals[mode] = before[0] + rows, before[1] + size
        for mode, counts in totals.items():
            for name, count in zip(("skylift.rows.copied", "skylift.bytes.copied"), counts, strict=True):
                self._most[name, mode] = max(count, self._most.get((name, mode), 0))
                yield Sample(name, self._most[name, mode], {"mode": mode})


def _durations(connection: sa.Connection, has_tables: Any, now: datetime) -> Iterator[Sample]:
    """How long the last run took, and how far the target is behind the source at most."""
    copies = (has_tables, runs.c.replication_type != ReplicationType.DIAGNOSTIC, runs.c.ended_at.is_not(None))
    if last := newest_run(connection, *copies):
        ended_at = connection.scalar(sa.select(sa.func.max(run_tables.c.ended_at)).where(run_tables.c.run_id == last.run_id))
        yield Sample("skylift.run.duration", ((ended_at or now) - last.started_at).total_seconds(), {"type": str(last.replication_type)})
    failed = sa.exists().where(run_tables.c.run_id == runs.c.run_id, run_tables.c.status == "Failed")
    if good := newest_run(connection, *copies, runs.c.status != RunStatus.FAILED, runs.c.scope == "", ~failed):
        yield Sample("skylift.lag", (now - good.started_at).total_seconds(), {})
