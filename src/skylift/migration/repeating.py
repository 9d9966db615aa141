"""A request that its caller has named is done once: sent again, it is answered as if it were the first. Source: behaviour.md §12.2.

The name is kept in the very transaction of the verb, so it is there if, and only if, the request was carried out.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa

from skylift.errors import SetupError
from skylift.store.tables import idempotency

KEPT = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Request:
    actor: str
    key: str
    digest: str                   # of what was asked for: another request under the same key is refused


class Repeated(Exception):
    """The request was carried out before; `run_id`: the `id` of the run that it has begun, if it has."""

    def __init__(self, run_id: UUID | None) -> None:
        super().__init__("the request was carried out before")
        self.run_id = run_id


def refuse_repeated(connection: sa.Connection, request: Request) -> None:
    """Raises Repeated, or SetupError if the key belongs to another request."""
    here = sa.and_(idempotency.c.actor == request.actor, idempotency.c.key == request.key)
    if row := connection.execute(sa.select(idempotency).where(here)).first():
        if row.digest != request.digest:
            raise SetupError(f"the Idempotency-Key '{request.key}' belongs to another request", code="IdempotencyKey",
                             hint="a new request takes a new key")
        raise Repeated(row.run_id)


def keep(connection: sa.Connection, request: Request, run_id: UUID | None, now: datetime) -> None:
    connection.execute(idempotency.delete().where(idempotency.c.done_at < now - KEPT))
    connection.execute(idempotency.insert().values(actor=request.actor, key=request.key, digest=request.digest, run_id=run_id, done_at=now))
