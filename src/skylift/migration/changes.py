"""The outbox of webhooks: which entities of the API have changed, and how far each subscription's receiver knows.

`note` is called in the transaction that changes the entities, before it does, so that no row is older than its note. Nothing is
written unless somebody has subscribed to their kind, and then one row an entity, however often it changes. Each note takes the next
position; a subscription keeps the position up to which its receiver knows (`told`), so what it is to be told are the rows behind that.
The counter's row is locked until the transaction ends: positions become visible in their order, and none can appear behind a
subscription's back. Source: odata.md K4.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from skylift.model import (
    NO_ID,
    Finding,
    MigrationWarning,
    Run,
    RunTable,
    Setup,
    SourceCompany,
    TableMapping,
    TableSwitch,
    UpgradeStep,
    Validation,
    ValidationResult,
)
from skylift.store.tables import change_counter, changes, registry, source_companies, subscriptions

MOST = 1000                       # changes that are told one by one; more are told as one of the whole set
KEPT = 3 * MOST                   # rows of a kind before the older ones become one
# K3: stored, with a GUID as key
KINDS = (Run, RunTable, SourceCompany, Setup, TableMapping, TableSwitch, UpgradeStep, Finding, MigrationWarning, Validation,
         ValidationResult)
_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Change:
    """What a receiver is to be told of one entity, or of very many."""

    entity_id: UUID               # NO_ID = of many
    change_type: str              # created, updated, deleted or collection
    at: datetime                  # of the last change
    since: datetime               # before the first one that is meant


def note(connection: sa.Connection, kind: type, ids: Sequence[UUID] | sa.Select, *, created: bool = False, deleted: bool = False) -> None:
    """Record that these entities change in this transaction. `ids` may be a query, made only if somebody has subscribed."""
    if connection.execute(sa.select(subscriptions.c.id).where(subscriptions.c.kind == kind.__name__).limit(1)).first() is None:
        return
    found = list(connection.scalars(ids.limit(MOST + 1)) if isinstance(ids, sa.Select) else ids)
    if not found:
        return
    if len(found) > MOST:
        found = [NO_ID]
    position, now = _advance(connection), datetime.now(UTC)
    here = sa.and_(changes.c.kind == kind.__name__, changes.c.entity_id.in_(found))
    known = set(connection.scalars(sa.select(changes.c.entity_id).where(here)))
    if known:
        connection.execute(changes.update().where(here).values(
            position=position, at=now, deleted=deleted, **({"created": position} if created else {})))
    if new := [id for id in found if id not in known]:
        connection.execute(changes.insert(), [{"kind": kind.__name__, "entity_id": id, "position": position, "deleted": deleted, "at": now,
                                               "created": position if created else 0} for id in new])
    concerned = sa.true() if found == [NO_ID] else subscriptions.c.entity_id.in_([NO_ID, *found])
    idle = sa.and_(subscriptions.c.kind == kind.__name__, subscriptions.c.waiting_since.is_(None))
    connection.execute(subscriptions.update().where(idle, concerned).values(waiting_since=now))


def note_switches(connection: sa.Connection, keys: Collection[tuple[str, str]], *, deleted: bool = False) -> None:
    """As `note`, of the switches of these tables: (company, table)."""
    ids = sa.select(registry.c.id)
    if len(keys) <= MOST:
        ids = ids.where(sa.tuple_(registry.c.company_name, registry.c.table_name).in_(list(keys)))
    if keys:
        note(connection, TableSwitch, ids, deleted=deleted and len(keys) <= MOST)


def update_companies(connection: sa.Connection, *where: sa.ColumnElement[bool], **values: Any) -> int:
    """Set columns of the source companies for which all of `where` holds; how many there were."""
    note(connection, SourceCompany, sa.select(source_companies.c.id).where(*where))
    return connection.execute(source_companies.update().where(*where).values(**values)).rowcount


def _advance(connection: sa.Connection) -> int:
    """The next position. Nobody else gets one before this transaction ends."""
    connection.execute(change_counter.update().values(position=change_counter.c.position + 1))
    return connection.scalar(sa.select(change_counter.c.position)) or 0


def position(connection: sa.Connection, *, lock: bool = False) -> int:
    """The newest position that is visible; `lock` keeps others from taking one until the transaction ends."""
    query = sa.select(change_counter.c.position)
    return connection.scalar(query.with_for_update() if lock else query) or 0


def untold(connection: sa.Connection, kind: str, entity_id: UUID, told: int, upto: int) -> list[Change]:
    """What a subscription's receiver does not know yet: each entity that has changed, or one entry for very many of a set.

    `entity_id`: the only entity that it is about, NO_ID = all of that kind.
    """
    query = sa.select(changes).where(changes.c.kind == kind, changes.c.position > told, changes.c.position <= upto)
    if entity_id != NO_ID:
        rows = connection.execute(query.where(changes.c.entity_id.in_([entity_id, NO_ID]))).all()
        own = next((row for row in rows if row.entity_id == entity_id), None)
        if own is None:                                  # perhaps it is among the many
            return [Change(entity_id, "updated", row.at, row.at) for row in rows]
        return [Change(entity_id, _change_type(own, told), own.at, own.at)]
    rows = connection.execute(query.order_by(changes.c.position, changes.c.entity_id).limit(MOST + 1)).all()
    if len(rows) > MOST or any(row.entity_id == NO_ID for row in rows):
        first, last = connection.execute(query.with_only_columns(sa.func.min(changes.c.at), sa.func.max(changes.c.at))).one()
        return [Change(NO_ID, "collection", last, first - _MILLISECOND)]
    return [Change(row.entity_id, _change_type(row, told), row.at, row.at) for row in rows]


def _change_type(row: sa.Row, told: int) -> str:
    return "deleted" if row.deleted else "created" if row.created > told else "updated"


def tidy(connection: sa.Connection) -> None:
    """Forget what every subscription knows, and what nobody asks for; of very many rows of a kind make the older ones one.
    """
    upto = position(connection, lock=True)
    connection.execute(subscriptions.update().where(subscriptions.c.waiting_since.is_(None), subscriptions.c.told < upto).values(told=upto))
    behind = sa.exists().where(subscriptions.c.kind == changes.c.kind, subscriptions.c.told < changes.c.position)
    connection.execute(changes.delete().where(~behind))
    for kind, count in connection.execute(sa.select(changes.c.kind, sa.func.count()).group_by(changes.c.kind)).all():
        if count > KEPT:
            _shorten(connection, kind)


def crowded(connection: sa.Connection) -> bool:
    """Whether some kind has so many rows that they are to be tidied."""
    counts = sa.select(changes.c.kind).group_by(changes.c.kind).having(sa.func.count() > KEPT)
    return connection.execute(counts.limit(1)).first() is not None


def _shorten(connection: sa.Connection, kind: str) -> None:
    """Make all but the newest rows one. Whoever does not know them has more than MOST to be told, and is told as much all the same."""
    of_kind = changes.c.kind == kind
    oldest_kept = connection.scalar(sa.select(changes.c.position).where(of_kind).order_by(changes.c.position.desc()).offset(MOST).limit(1))
    older = sa.and_(of_kind, sa.or_(changes.c.position < oldest_kept, changes.c.entity_id == NO_ID))
    last, at = connection.execute(sa.select(sa.func.max(changes.c.position), sa.func.min(changes.c.at)).where(older)).one()
    if last is None:
        return
    connection.execute(changes.delete().where(older))
    connection.execute(changes.insert().values(kind=kind, entity_id=NO_ID, position=last, at=at))
