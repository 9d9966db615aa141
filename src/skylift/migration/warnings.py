"""Warnings after a run: nothing has failed, but somebody should look. Source: behaviour.md §8.1.

There is one of a type at most, and only while it is true: each run that has copied something looks anew. One that somebody has
ignored comes back when it says something else. Record links and media are tables of Business Central; the validator is everybody's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa

from skylift.connectors import Target
from skylift.errors import CopyError
from skylift.migration.changes import note
from skylift.migration.service import IfMatch, Service, Verb, get_row
from skylift.model import CopyTask, MigrationWarning
from skylift.products import Product
from skylift.runs import WarningType
from skylift.store import to_row
from skylift.store.tables import migration_warnings

MAX_MESSAGE = 1024                # characters, behaviour.md §8.1


class WarningVerbs(Service):
    def change_warning(self, id: UUID, values: Mapping[str, Any], if_match: IfMatch) -> MigrationWarning:
        """Ignore a warning, or not; `values`: {"ignored": bool}."""
        with self.verb() as verb:
            warning = get_row(verb.connection, MigrationWarning, id)
            if_match(warning)
            ignored = values.get("ignored", warning.ignored)
            if ignored != warning.ignored:
                note(verb.connection, MigrationWarning, [id])
                verb.connection.execute(migration_warnings.update().where(migration_warnings.c.id == id).values(
                    ignored=ignored, ignored_by=self.actor if ignored else ""))
                verb.log(f"warning {warning.type}", "ignore" if ignored else "attend", why=warning.message)
            return get_row(verb.connection, MigrationWarning, id)


def count_watched(product: Product, tasks: Sequence[CopyTask], target: Target) -> dict[WarningType, int]:
    """Rows that the target holds of the tables that warnings are about, by type; of a type none of whose tables is missing."""
    counts: dict[WarningType, int] = {}
    missing = set()
    for task in tasks:
        kind = product.warns_of(task.table_name)
        if kind is None:
            continue
        missing.add(kind)
        with suppress(CopyError), target.transaction() as t:
            counts[kind] = counts.get(kind, 0) + t.count(task.target)
            missing.discard(kind)
        if kind in missing:
            return {other: count for other, count in counts.items() if other is not kind}
    return counts


def look_after_run(verb: Verb, counts: Mapping[WarningType, int]) -> None:
    """What is to be warned of, now that a run has ended well; `counts` as of `count_watched`."""
    if (links := counts.get(WarningType.RECORD_LINK)) is not None:
        settle(verb, WarningType.RECORD_LINK, f"{links:,} record links (links and notes of records) have arrived in their buffer; "
               "nobody sees them in the target before they are moved from there" if links else "")
    if (media := counts.get(WarningType.TENANT_MEDIA)) is not None:
        before = verb.row["media_rows"]
        lost = 0 if before is None else before - media
        settle(verb, WarningType.TENANT_MEDIA, f"the target holds {media:,} rows of media, {lost:,} fewer than after the run before: "
               "somebody has deleted some there, and a run adds only what is new in the source" if lost > 0 else "")
        verb.set(media_rows=media)


def settle(verb: Verb, kind: WarningType, message: str) -> None:
    """There is a warning of that type with this message, or none where it is empty."""
    text = message[:MAX_MESSAGE]
    rows = verb.connection.execute(sa.select(migration_warnings).where(migration_warnings.c.type == kind)).mappings().all()
    known = [to_row(MigrationWarning, row) for row in rows]
    if text and [warning.message for warning in known] == [text]:
        return
    if known:
        note(verb.connection, MigrationWarning, [warning.id for warning in known], deleted=True)
        verb.connection.execute(migration_warnings.delete().where(migration_warnings.c.type == kind))
    if text:
        note(verb.connection, MigrationWarning, [id := uuid4()], created=True)
        verb.connection.execute(migration_warnings.insert().values(id=id, type=kind, message=text, created_at=verb.now))
        verb.log(f"warning {kind}", "warn", why=text)
