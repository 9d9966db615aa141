"""What people do around the end of a migration, ticked company by company. Source: behaviour.md §8.2; docs/parity.md says what is left out.

Ticking a step in one company ticks it in all. One step is skylift's own to tick: that the migration has been ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid5

import sqlalchemy as sa

from skylift.errors import NotFound, StateError
from skylift.migration.service import IfMatch, Service, get_migration
from skylift.model import ChecklistItem
from skylift.runs import ChecklistStep, MigrationState
from skylift.store.tables import checklist, source_companies

STEPS: dict[ChecklistStep, str] = {
    ChecklistStep.USERS_OUT: "nobody works in the source, or in the target, any more",
    ChecklistStep.FINAL_RUN: "a last run was made after that, and no table has failed (skylift run, skylift status)",
    ChecklistStep.VERIFY: "source and target were compared row by row (skylift verify)",
    ChecklistStep.END: "the migration is completed, or disabled (skylift complete); ticked by itself",
    ChecklistStep.PERMISSIONS: "users and permissions are set up in the target: skylift copies none",
    ChecklistStep.USER_MAPPINGS: "users who have another name in the target are known: what they have written bears the name of the source",
    ChecklistStep.RECORD_LINKS: "record links are moved from their buffer (skylift warnings)",
    ChecklistStep.INTEGRATIONS: "integrations are connected to the target, such as Dynamics 365 Sales",
    ChecklistStep.MONITOR: "somebody watches the target, and knows how to get back to the source",
}


class ChecklistVerbs(Service):
    def checklist(self) -> list[ChecklistItem]:
        """The steps of each company that has been created, in the order in which they are best done."""
        with self.store.read() as connection:
            ended = get_migration(connection)["state"] is MigrationState.DISABLED
            ticks = {row.step: row for row in connection.execute(sa.select(checklist))}
            companies = connection.execute(sa.select(source_companies.c.id, source_companies.c.name).where(
                source_companies.c.created).order_by(source_companies.c.name)).all()
        return [ChecklistItem(uuid5(id, step), name, step, about, ended if step is ChecklistStep.END else step in ticks,
                              ticks[step].done_by if step in ticks else "", ticks[step].done_at if step in ticks else None)
                for id, name in companies for step, about in STEPS.items()]

    def change_checklist(self, id: UUID, values: Mapping[str, Any], if_match: IfMatch) -> ChecklistItem:
        """Tick an item, and so the step in every company, or take the tick back; `values`: {"done": bool}."""
        item = self._item(id)
        if_match(item)
        self.tick(item.step, values.get("done", item.done))
        return self._item(id)

    def tick(self, step: ChecklistStep, done: bool = True) -> None:
        """Raises StateError for the step that is ticked by itself, if it is not as `done` says."""
        with self.verb() as verb:
            if step is ChecklistStep.END:
                if done is not (verb.state is MigrationState.DISABLED):
                    raise StateError("that the migration has been ended is ticked by itself", code="TickedByItself",
                                     hint="complete it (skylift complete), or set it up again")
                return
            here = checklist.c.step == step
            if done is (verb.connection.execute(sa.select(checklist.c.step).where(here)).first() is not None):
                return
            if done:
                verb.connection.execute(checklist.insert().values(step=step, done_by=self.actor, done_at=verb.now))
            else:
                verb.connection.execute(checklist.delete().where(here))
            verb.log(f"checklist {step}", "tick" if done else "untick")

    def _item(self, id: UUID) -> ChecklistItem:
        item = next((item for item in self.checklist() if item.id == id), None)
        if item is None:
            raise NotFound(f"there is no ChecklistItem with the key {id}")
        return item
