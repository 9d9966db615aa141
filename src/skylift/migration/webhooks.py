"""Webhook subscriptions: made, renewed and ended, each time the receiver has confirmed. Source: odata.md K1-K3, behaviour.md §9."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from skylift.errors import SetupError
from skylift.migration.changes import position
from skylift.migration.outgoing import CallFailed, call, check_url
from skylift.migration.service import IfMatch, Service, get_row
from skylift.model import Subscription
from skylift.settings import networks
from skylift.store.tables import subscriptions


class WebhookVerbs(Service):
    def create_subscription(self, values: Mapping[str, Any]) -> Subscription:
        """A new subscription, once its receiver has confirmed it.

        `values`: notification_url, resource, client_state of Subscription; kind (model class name) and entity_id (NO_ID = all) of what it
        is about; most (subscriptions that there may be). Raises SetupError if the receiver does not confirm or there are too many.
        """
        values = dict(values)
        most = values.pop("most")
        self._check_count(most)
        self._confirm(values["notification_url"])
        now = datetime.now(UTC)
        made = Subscription(secrets.token_hex(16), values["notification_url"], values["resource"], self.actor_id,
                            values.get("client_state", ""), self._expiry(now), now, now, self.actor_id, self.actor_id)
        with self.verb() as verb:
            self._check_count(most, verb.connection)
            verb.connection.execute(subscriptions.insert().values(
                **asdict(made), kind=values["kind"], entity_id=values["entity_id"], told=position(verb.connection)))
            verb.log(f"subscription {made.id}", "create", why=f"{made.resource} to {shown(made.notification_url)}")
        return made

    def change_subscription(self, id: str, values: Mapping[str, Any], if_match: IfMatch) -> Subscription:
        """Renew a subscription, and change what `values` names, once its receiver has confirmed it."""
        with self.store.read() as connection:
            before = get_row(connection, Subscription, id)
        if_match(before)
        self._confirm(values.get("notification_url", before.notification_url))
        now = datetime.now(UTC)
        changed = replace(before, **{name: value for name, value in values.items() if hasattr(before, name)}, expires_at=self._expiry(now),
                          modified_at=now, modified_by=self.actor_id)
        with self.verb() as verb:
            if_match(get_row(verb.connection, Subscription, id))
            about = {name: values[name] for name in ("kind", "entity_id") if name in values}
            if about:                                   # another resource: what happened to it before does not count
                about |= {"told": position(verb.connection, lock=True), "waiting_since": None}
            verb.connection.execute(subscriptions.update().where(subscriptions.c.id == id).values(
                **asdict(changed), **about, next_at=None, attempts=0, failing_since=None))
            verb.log(f"subscription {id}", "renew", why=f"{changed.resource} to {shown(changed.notification_url)}")
        return changed

    def delete_subscription(self, id: str, if_match: IfMatch) -> None:
        with self.verb() as verb:
            if_match(get_row(verb.connection, Subscription, id))
            verb.connection.execute(subscriptions.delete().where(subscriptions.c.id == id))
            verb.log(f"subscription {id}", "delete")

    def drop_expired(self) -> None:
        """Remove the subscriptions that were not renewed in time."""
        expired = subscriptions.c.expires_at <= datetime.now(UTC)
        with self.store.read() as connection:
            if connection.execute(sa.select(subscriptions.c.id).where(expired).limit(1)).first() is None:
                return
        with self.verb() as verb:
            for id in verb.connection.scalars(sa.select(subscriptions.c.id).where(expired)).all():
                verb.connection.execute(subscriptions.delete().where(subscriptions.c.id == id))
                verb.log(f"subscription {id}", "expire")

    def _check_count(self, most: int, connection: sa.Connection | None = None) -> None:
        if connection is None:
            self.drop_expired()
            with self.store.read() as reading:
                return self._check_count(most, reading)
        if (connection.scalar(sa.select(sa.func.count()).select_from(subscriptions)) or 0) >= most:
            raise SetupError(f"there are {most} subscriptions already", hint="delete one, or let one expire", code="Subscriptions")

    def _expiry(self, now: datetime) -> datetime:
        return now + timedelta(days=self.settings.webhook_days)

    def _confirm(self, url: str) -> None:
        self.store.outside(("confirm", url), lambda: self._shake_hands(url))

    def _shake_hands(self, url: str) -> None:
        """Have the receiver repeat a token that it is called with (K1). Raises SetupError if it does not."""
        check_url(url)
        token = secrets.token_hex(16)
        asked = f"{url}{'&' if '?' in url else '?'}validationToken={token}"
        try:
            status, answer = call(asked, b"", {"User-Agent": "skylift", "Content-Type": "text/plain"},
                                  within_s=self.settings.webhook_handshake_s, allowed=networks(self.settings.webhook_networks))
        except CallFailed as error:
            raise _unconfirmed(error.message) from None
        if status != 200:
            raise _unconfirmed(f"it answered {status}")
        if answer.removeprefix(b"\xef\xbb\xbf").strip() != token.encode():
            raise _unconfirmed("its answer was not the token")


def shown(url: str) -> str:
    """A receiver's address as people may see it: its query may hold secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def _unconfirmed(why: str) -> SetupError:
    return SetupError(f"the notificationUrl did not confirm the subscription: {why}", code="Handshake",
                      hint="it has to answer 200 with the validationToken of its query as body")
