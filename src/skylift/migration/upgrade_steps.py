"""The steps of upgrade packs in the store, for people to see; what is done is decided by the target's tags."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from uuid import uuid4

import sqlalchemy as sa

from skylift.migration.service import Service, Verb
from skylift.runs import UpgradeStatus
from skylift.store.tables import upgrade_steps
from skylift.upgrades.execute import StepDone
from skylift.upgrades.pack import COMPANY, SHARED, Pack


def enter_steps(verb: Verb, company: str, packs: Sequence[Pack]) -> None:
    """The steps that the company has before it, in their order."""
    verb.connection.execute(upgrade_steps.delete().where(upgrade_steps.c.company_name == company))
    steps = [(pack, step) for pack in packs for step in pack.steps if step.scope == (COMPANY if company else SHARED)]
    if steps:
        verb.connection.execute(upgrade_steps.insert(), [
            {"id": uuid4(), "company_name": company, "pack": pack.name, "step": step.id, "position": n, "checksum": step.checksum}
            for n, (pack, step) in enumerate(steps)])


def note_step(service: Service, done: StepDone, check: Callable[[sa.Connection], None]) -> None:
    """A step begins, has ended or has failed."""
    now = datetime.now(UTC)
    ended = {"ended_at": now, "statements": len(done.statements), "notes": "\n".join(done.notes), "error": done.error}
    begun = {"started_at": now, "status": UpgradeStatus.STARTED}
    status = UpgradeStatus.FAILED if done.error else UpgradeStatus.COMPLETED
    with service.store.write() as connection:
        check(connection)
        connection.execute(upgrade_steps.update().where(
            upgrade_steps.c.company_name == done.company, upgrade_steps.c.pack == done.pack, upgrade_steps.c.step == done.step).values(
            begun if done.seconds is None else {**ended, "status": status}))


def settle_steps(verb: Verb, company: str, *, done: bool) -> None:
    """The company has been finished: all its steps are done, or all but the failed one are undone."""
    here = upgrade_steps.update().where(upgrade_steps.c.company_name == company)
    if done:
        verb.connection.execute(here.values(status=UpgradeStatus.COMPLETED))
    else:
        verb.connection.execute(here.where(upgrade_steps.c.status != UpgradeStatus.FAILED).values(status=UpgradeStatus.PENDING))
