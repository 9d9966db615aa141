"""The steps of upgrade packs in the store, for people to see; what is done is decided by the target's tags."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from skylift.migration.changes import note
from skylift.migration.service import Service, Verb
from skylift.model import UpgradeStep
from skylift.runs import UpgradeStatus
from skylift.store.tables import upgrade_steps
from skylift.telemetry import Signal, Value
from skylift.upgrades.execute import StepDone
from skylift.upgrades.pack import COMPANY, SHARED, Pack

REPAIR = "companions"             # the pack that repairs companion rows


def enter_steps(verb: Verb, company: str, packs: Sequence[Pack]) -> None:
    """The steps that the company has before it, in their order."""
    note(verb.connection, UpgradeStep, sa.select(upgrade_steps.c.id).where(upgrade_steps.c.company_name == company), deleted=True)
    verb.connection.execute(upgrade_steps.delete().where(upgrade_steps.c.company_name == company))
    steps = [(pack, step) for pack in packs for step in pack.steps if step.scope == (COMPANY if company else SHARED)]
    if steps:
        rows: list[dict[str, Any]] = [
            {"id": uuid4(), "company_name": company, "pack": pack.name, "step": step.id, "position": n, "checksum": step.checksum}
            for n, (pack, step) in enumerate(steps)]
        note(verb.connection, UpgradeStep, [row["id"] for row in rows], created=True)
        verb.connection.execute(upgrade_steps.insert(), rows)
    if verb.tells and any(pack.name == REPAIR for pack, _ in steps):
        verb.signals.append(Signal("repair.scheduled", verb.now, ("AL0000FXC",), {"CompanyName": company}))


def note_step(service: Service, done: StepDone, check: Callable[[sa.Connection], None]) -> None:
    """A step begins, has ended or has failed."""
    now = datetime.now(UTC)
    ended = {"ended_at": now, "statements": len(done.statements), "notes": "\n".join(done.notes), "error": done.error}
    begun = {"started_at": now, "status": UpgradeStatus.STARTED}
    status = UpgradeStatus.FAILED if done.error else UpgradeStatus.COMPLETED
    with service.store.write() as connection:
        check(connection)
        here = sa.and_(upgrade_steps.c.company_name == done.company, upgrade_steps.c.pack == done.pack, upgrade_steps.c.step == done.step)
        note(connection, UpgradeStep, sa.select(upgrade_steps.c.id).where(here))
        connection.execute(upgrade_steps.update().where(here).values(
            begun if done.seconds is None else {**ended, "status": status}))
    if service.telemetry.on:
        service.telemetry.emit([_signal(done, now)])


def _signal(done: StepDone, now: datetime) -> Signal:
    """Without what the step has said, for that may be rows."""
    dimensions: dict[str, Value] = {"CompanyName": done.company, "Pack": done.pack, "Step": done.step, "Statements": len(done.statements)}
    if done.seconds is None:
        return Signal("step.begun", now, ("AL0000FJ1",) if done.pack == REPAIR else (), dimensions)
    return Signal("step.failed" if done.error else "step.ended", now, ("AL0000FJ4",) if done.pack == REPAIR and not done.error else (),
                  dimensions, failed=bool(done.error), began=now - timedelta(seconds=done.seconds))


def settle_steps(verb: Verb, company: str, *, done: bool) -> None:
    """The company has been finished: all its steps are done, or all but the failed one are undone."""
    note(verb.connection, UpgradeStep, sa.select(upgrade_steps.c.id).where(upgrade_steps.c.company_name == company))
    here = upgrade_steps.update().where(upgrade_steps.c.company_name == company)
    if done:
        verb.connection.execute(here.values(status=UpgradeStatus.COMPLETED))
    else:
        verb.connection.execute(here.where(upgrade_steps.c.status != UpgradeStatus.FAILED).values(status=UpgradeStatus.PENDING))
