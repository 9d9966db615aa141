"""Webhook subscriptions: who is told of changes, and how that went."""

from __future__ import annotations

from typing import Annotated

import typer

from skylift.cli.frame import Session, app, command
from skylift.model import Delivery, Subscription
from skylift.query import Attribute, Order, Query

webhook_app = typer.Typer(no_args_is_help=True, help="Webhook subscriptions.")
app.add_typer(webhook_app, name="webhook")


@command("skylift webhook list", webhook_app, "list")
def list_(session: Session) -> None:
    """List the subscriptions."""
    found = session.migration.select(Subscription, Query(order=(Order(Attribute("created_at")),)))
    session.table(("subscription", "resource", "receiver", "until"),
                  [(s.id, s.resource, s.notification_url.partition("?")[0], f"{s.expires_at:%Y-%m-%d %H:%M}") for s in found])
    session.answer([{"id": s.id, "resource": s.resource, "receiver": s.notification_url.partition("?")[0], "expires_at": s.expires_at}
                    for s in found])


@command("skylift webhook log --last 20", webhook_app)
def log(session: Session, last: Annotated[int, typer.Option(min=1, help="Number of calls, the newest first.")] = 20) -> None:
    """Show the calls to receivers and what became of them."""
    found = session.migration.select(Delivery, Query(order=(Order(Attribute("id"), True),), top=last))
    session.table(("time", "receiver", "changes", "try", "answer", "outcome", "ms"),
                  [(f"{d.at:%Y-%m-%d %H:%M:%S}", d.url, d.items, d.attempt, d.error or str(d.status), d.outcome, d.duration_ms)
                   for d in found])
    session.answer(found)
