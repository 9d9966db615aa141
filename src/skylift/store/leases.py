"""A lease: at most one process at a time holds a name, and one that falls silent loses it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from skylift.store import Store
from skylift.store.tables import leases


def acquire(store: Store, name: str, holder: str, seconds: float) -> bool:
    """Take or renew the lease; False if another one holds it."""
    now = datetime.now(UTC)
    until = now + timedelta(seconds=seconds)
    with store.write() as connection:
        taken = connection.execute(
            leases.update().where(leases.c.name == name, sa.or_(leases.c.holder == holder, leases.c.expires_at < now))
            .values(holder=holder, expires_at=until))
        if taken.rowcount:
            return True
        known = connection.execute(sa.select(leases.c.name).where(leases.c.name == name)).first()
        if known is None:
            connection.execute(leases.insert().values(name=name, holder=holder, expires_at=until))
        return known is None


def release(store: Store, name: str, holder: str) -> None:
    with store.write() as connection:
        connection.execute(leases.delete().where(leases.c.name == name, leases.c.holder == holder))


def release_process(store: Store, name: str, process: str) -> None:
    """Take the lease from a process that is known to be dead; `process` is the first part of its holder's name."""
    with store.write() as connection:
        connection.execute(leases.delete().where(leases.c.name == name, leases.c.holder.startswith(process, autoescape=True)))


def is_held(connection: sa.Connection, name: str) -> bool:
    """Whether anybody holds the lease now; locks nothing."""
    until = connection.scalar(sa.select(leases.c.expires_at).where(leases.c.name == name))
    return until is not None and until >= datetime.now(UTC)


def held_by(connection: sa.Connection, name: str) -> str:
    """Who holds the lease now, '' = nobody. Locks the row where the database has row locks."""
    row = connection.execute(sa.select(leases).where(leases.c.name == name).with_for_update()).mappings().first()
    return row["holder"] if row and row["expires_at"] >= datetime.now(UTC) else ""
