"""What people have to look at and to do besides the runs: warnings and the checklist."""

from __future__ import annotations

from typing import Annotated

import typer

from skylift.cli.commands import find_setup
from skylift.cli.frame import Session, command
from skylift.errors import NotFound, SetupError
from skylift.model import MigrationWarning
from skylift.query import Attribute, Order, Query
from skylift.runs import ChecklistStep

Names = list[str] | None


@command("skylift warnings --ignore RecordLink")
def warnings(
    session: Session,
    ignore: Annotated[Names, typer.Option(metavar="ID", help="Show this one no more until it says something else; its id, the beginning "
                                                             "of it, or its type (repeatable).")] = None,
    attend: Annotated[Names, typer.Option(metavar="ID", help="Show one again that was ignored.")] = None,
    all: Annotated[bool, typer.Option("--all", help="Those that are ignored too.")] = False,
) -> None:
    """Show what somebody should look at although no table has failed: record links, media that were deleted in the target."""
    find_setup(session)
    for names, ignored in ((ignore, True), (attend, False)):
        for name in names or ():
            for warning in _named(_warnings(session), name):
                session.migration.change_warning(warning.id, {"ignored": ignored}, lambda row: None)
    found = [warning for warning in _warnings(session) if all or not warning.ignored]
    if not found:
        session.say("there is nothing to look at")
    session.table(("id", "type", "since", "ignored by", "warning"), [
        (str(w.id)[:8], w.type, f"{w.created_at:%Y-%m-%d %H:%M}", w.ignored_by, w.message) for w in found])
    session.answer(found)


@command("skylift checklist --done UsersOut")
def checklist(
    session: Session,
    done: Annotated[Names, typer.Option(metavar="STEP", help="Tick this step, in every company (repeatable).")] = None,
    undo: Annotated[Names, typer.Option(metavar="STEP", help="Take the tick back.")] = None,
) -> None:
    """Show what is to be done by people before and after the migration is completed, and tick it."""
    find_setup(session)
    for names, value in ((done, True), (undo, False)):
        for name in names or ():
            session.migration.tick(_step(name), value)
    found = session.migration.checklist()
    if not found:
        session.say("no company has been created yet")
    one = found[0].company_name if found else ""             # all companies have the same ticks
    session.table(("step", "done", "by", "what"), [
        (item.step, f"{item.done_at:%Y-%m-%d %H:%M}" if item.done_at else "yes" if item.done else "", item.done_by, item.about)
        for item in found if item.company_name == one])
    session.answer(found)


def _warnings(session: Session) -> list[MigrationWarning]:
    return session.migration.select(MigrationWarning, Query(order=(Order(Attribute("created_at"), True), Order(Attribute("id")))))


def _named(found: list[MigrationWarning], name: str) -> list[MigrationWarning]:
    hits = [warning for warning in found if name.casefold() == warning.type.casefold()
            or (len(name) >= 4 and str(warning.id).startswith(name.casefold()))]
    if not hits:
        raise NotFound(f"there is no warning '{name}'", hint="skylift warnings --all lists them", code="WarningNotFound")
    return hits


def _step(name: str) -> ChecklistStep:
    step = next((step for step in ChecklistStep if step.casefold() == name.casefold()), None)
    if step is None:
        raise SetupError(f"the checklist has no step '{name}'", hint=f"it has {', '.join(ChecklistStep)}", code="ChecklistStep")
    return step
