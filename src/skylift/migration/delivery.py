"""Telling receivers what has changed: one process does, whoever holds the lease. Source: odata.md K4, K5, behaviour.md §9.

All that counts is in the store: how far each receiver knows, since when it is owed something, when to try again. So a deliverer may
be killed at any time; the next one tells what was not confirmed. A receiver may be told twice, and never not at all.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from skylift.errors import Transient
from skylift.migration.changes import MOST, Change, crowded, position, tidy, untold
from skylift.migration.lease import Lease, pause
from skylift.migration.outgoing import CallFailed, call
from skylift.migration.service import Service
from skylift.migration.webhooks import WebhookVerbs, shown
from skylift.model import NO_ID, time_text
from skylift.settings import networks, signing_key
from skylift.store.tables import deliveries, events, subscriptions
from skylift.telemetry import Signal

DELIVERER = "deliverer"           # the lease
AGAIN = frozenset((408, 429, *range(500, 600)))       # K5
LONGEST_S = 3600.0                # between two tries
AT_ONCE = 16                      # receivers that are called at the same time
HANDOVER_S = 2.0                  # that calls under way are waited for at the end

_log = logging.getLogger("skylift.webhooks")


def deliver(service: Service, stop: Callable[[], bool]) -> None:
    """Tell receivers what they are owed, as long as `stop()` is false and whenever no other deliverer holds the lease."""
    webhooks = WebhookVerbs(service.store, service.settings, "webhooks")
    while not stop():
        try:
            with service.store.read() as connection:
                anybody = connection.execute(sa.select(subscriptions.c.id).limit(1)).first()
            if anybody:
                _hold(webhooks, stop)
        except Transient as error:                      # the store does not answer
            _log.warning("%s", error)
        except Exception:                               # a bug of skylift: what is owed stays owed
            _log.exception("telling receivers what has changed")
        pause(service.settings.poll_s, stop)


def _hold(service: WebhookVerbs, stop: Callable[[], bool]) -> None:
    """Be the deliverer while the lease lasts, until there are no subscriptions any more; nothing if another one is."""
    lease = Lease(service.store, service.settings.lease_s, DELIVERER)
    if not lease.take():
        return
    with lease:
        deliverer = Deliverer(service)
        while not (stop() or lease.lost()) and deliverer.turn():
            pause(service.settings.poll_s, lambda: stop() or lease.lost())
        deliverer.wait(HANDOVER_S)


@dataclass(frozen=True, slots=True)
class Parcel:
    """What is sent in one call: of each subscription, by id, how far its receiver knows before and after it."""

    url: str
    known: dict[str, tuple[int, int]]
    items: list[dict[str, str]]
    attempt: int


class Deliverer:
    """Makes the calls that are due, each in a thread, at most one at a time to each address."""

    def __init__(self, service: WebhookVerbs) -> None:
        self._service = service
        self._settings = service.settings
        self._busy: dict[str, threading.Thread] = {}    # by notification url

    def turn(self) -> bool:
        """Begin the calls that are due now; False if there are no subscriptions any more."""
        self._busy = {url: thread for url, thread in self._busy.items() if thread.is_alive()}
        self._service.drop_expired()
        now = datetime.now(UTC)
        with self._service.store.read() as connection:
            owed = connection.execute(sa.select(subscriptions).where(
                subscriptions.c.waiting_since <= now - timedelta(seconds=self._settings.webhook_merge_s), subscriptions.c.expires_at > now,
                sa.or_(subscriptions.c.next_at.is_(None), subscriptions.c.next_at <= now)).order_by(subscriptions.c.waiting_since)).all()
            parcels = list(_pack(connection, [row for row in owed if row.notification_url not in self._busy], AT_ONCE - len(self._busy)))
            anybody = connection.execute(sa.select(subscriptions.c.id).limit(1)).first()
            many = crowded(connection)
        for parcel in parcels:
            thread = threading.Thread(target=self._send, args=(parcel,), name="webhook", daemon=True)
            self._busy[parcel.url] = thread
            thread.start()
        if many:
            with self._service.store.write() as connection:
                tidy(connection)
        return anybody is not None

    def wait(self, seconds: float) -> None:
        """Give calls under way a moment to end; what they confirm later is told once more by the next deliverer."""
        until = time.monotonic() + seconds
        for thread in self._busy.values():
            thread.join(max(0.0, until - time.monotonic()))

    def _send(self, parcel: Parcel) -> None:
        body = msgspec.json.encode({"value": parcel.items})
        began = time.monotonic()
        status, error = 0, ""
        try:
            status, _ = call(parcel.url, body, self._headers(body), within_s=self._settings.webhook_timeout_s,
                             allowed=networks(self._settings.webhook_networks))
        except CallFailed as failed:
            error = failed.message
        except Exception as failed:                     # a bug, or an address that nothing can be made of: tried again like any other
            _log.exception("calling %s", shown(parcel.url))
            error = f"{type(failed).__name__}"
        try:
            self._record(parcel, status, error, round((time.monotonic() - began) * 1000))
        except Transient as failed:                     # told again: that it was told is not known
            _log.warning("%s", failed)

    def _headers(self, body: bytes) -> dict[str, str]:
        """With a secret also those of https://www.standardwebhooks.com: the same body has the same id."""
        headers = {"Content-Type": "application/json", "User-Agent": "skylift"}
        if key := signing_key(self._settings):
            id, at = f"msg_{hashlib.blake2b(body, digest_size=16).hexdigest()}", str(int(time.time()))
            signature = hmac.digest(key, f"{id}.{at}.".encode() + body, "sha256")
            headers |= {"webhook-id": id, "webhook-timestamp": at, "webhook-signature": f"v1,{base64.b64encode(signature).decode()}"}
        return headers

    def _record(self, parcel: Parcel, status: int, error: str, duration_ms: int) -> None:
        """What the answer means for the subscriptions, and a line in the log."""
        now = datetime.now(UTC)
        with self._service.store.write() as connection:
            position(connection, lock=True)             # before the rows, as whoever changes something does
            rows = [row for row in connection.execute(sa.select(subscriptions).where(subscriptions.c.id.in_(parcel.known))).all()
                    if row.told == parcel.known[row.id][0] and row.notification_url == parcel.url]
            outcome = self._outcome(rows, status, now)
            for row in rows:
                if outcome == "removed":
                    self._remove(connection, row, status, now)
                elif outcome == "again":
                    connection.execute(subscriptions.update().where(subscriptions.c.id == row.id).values(
                        attempts=row.attempts + 1, failing_since=row.failing_since or now, next_at=now + self._pause(row.attempts)))
                else:
                    self._advance(connection, row, parcel.known[row.id][1])
            connection.execute(deliveries.insert().values(
                at=now, url=shown(parcel.url), subscriptions=" ".join(parcel.known), items=len(parcel.items), attempt=parcel.attempt,
                status=status, outcome=outcome, error=error, duration_ms=duration_ms))
            connection.execute(deliveries.delete().where(deliveries.c.id <= sa.select(
                sa.func.max(deliveries.c.id)).scalar_subquery() - self._settings.webhook_log))
            tidy(connection)
        if outcome == "removed" and self._service.telemetry.on:
            self._service.telemetry.emit([Signal("subscription.remove", now, (), {"HttpStatus": status}, "webhooks",
                                                 subject=f"subscription {row.id}", failed=True) for row in rows])
        _log.info("webhook %s: %d changes, %s: %s", shown(parcel.url), len(parcel.items), error or status, outcome)

    def _outcome(self, rows: Sequence[Any], status: int, now: datetime) -> str:
        if 200 <= status < 300:
            return "delivered"
        if status and status not in AGAIN:
            return "removed"
        limit = timedelta(hours=self._settings.webhook_give_up_h)
        return "given up" if any(row.failing_since and now - row.failing_since >= limit for row in rows) else "again"

    def _pause(self, attempts: int) -> timedelta:
        return timedelta(seconds=min(LONGEST_S, self._settings.webhook_retry_s * 2.0 ** min(attempts, 30)))

    def _advance(self, connection: sa.Connection, row: Any, upto: int) -> None:
        """The receiver knows all up to there, or will never be told. What has changed meanwhile begins another wait."""
        more = untold(connection, row.kind, row.entity_id, upto, position(connection))
        connection.execute(subscriptions.update().where(subscriptions.c.id == row.id).values(
            told=upto, attempts=0, failing_since=None, next_at=None, waiting_since=min((change.at for change in more), default=None)))

    def _remove(self, connection: sa.Connection, row: Any, status: int, now: datetime) -> None:
        connection.execute(subscriptions.delete().where(subscriptions.c.id == row.id))
        connection.execute(events.insert().values(at=now, actor="webhooks", subject=f"subscription {row.id}", event="remove",
                                                  why=f"its receiver answered {status}"))


def _pack(connection: sa.Connection, owed: Sequence[Any], most: int) -> Iterable[Parcel]:
    """At most `most` parcels, one for an address; subscriptions that would make one too large come with the next."""
    upto = position(connection)
    parcels: dict[str, Parcel] = {}
    for row in owed:
        parcel = parcels.get(row.notification_url)
        if parcel is None and len(parcels) >= most:
            continue
        items = [_item(row, change) for change in untold(connection, row.kind, row.entity_id, row.told, upto)]
        if not items:
            continue
        if parcel is None:
            parcels[row.notification_url] = Parcel(row.notification_url, {row.id: (row.told, upto)}, items, row.attempts + 1)
        elif len(parcel.items) + len(items) <= MOST:
            parcel.known[row.id] = row.told, upto
            parcel.items.extend(items)
    return parcels.values()


def _item(row: Any, change: Change) -> dict[str, str]:
    resource = row.resource
    if change.change_type == "collection":
        resource += f"?$filter=lastModifiedDateTime%20gt%20{time_text(change.since)}"
    elif row.entity_id == NO_ID:
        resource += f"({change.entity_id})"
    return {"subscriptionId": row.id, "clientState": row.client_state, "expirationDateTime": time_text(row.expires_at),
            "resource": resource, "changeType": change.change_type, "lastModifiedDateTime": time_text(change.at)}
