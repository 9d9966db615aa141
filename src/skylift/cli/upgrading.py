"""The data upgrade."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skylift.cli.commands import find_company, find_newest, list_companies, report_run, under_way_run
from skylift.cli.follow import wait
from skylift.cli.frame import OK, Session, command
from skylift.errors import SetupError, StateError
from skylift.model import Run, UpgradeStep
from skylift.query import Attribute, Order, Query
from skylift.runs import RunStatus

if TYPE_CHECKING:
    from skylift.upgrades.execute import StepDone

Names = list[str] | None


@command("skylift upgrade --pack code-fields --dry-run", target=True)
def upgrade(
    session: Session,
    pack: Annotated[Names, typer.Option(metavar="NAME", help="Go through this upgrade pack instead of those of the setting `packs`: "
                                                             "a built-in one, or a folder (repeatable).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Carry the steps out, print their statements, take everything back.")] = False,
    company: Annotated[Names, typer.Option(metavar="NAME", help="With --dry-run: only this company and what all share "
                                                                "(repeatable).")] = None,
    retry: Annotated[str, typer.Option(metavar="COMPANY", help="Of the companies that failed upgrade only this one.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Also if the source has changed since the run; that does not arrive.")] = False,
) -> int:
    """Run the data upgrade that follows the last run of a product with upgrades, and wait for it; goes on with one under way.

    It ends replication: what changes in the source after the last run does not arrive any more. Refused where that is so already.
    """
    migration = session.migration
    newest = find_newest(session)
    packs = [_absolute(name) for name in pack] if pack else None
    known = list_companies(session)
    if dry_run:
        return _preview(session, packs, [find_company(known, name).name for name in company or ()])
    if company:
        raise SetupError("--company goes with --dry-run", hint="to upgrade one company that has failed: --retry COMPANY", code="Usage")
    try:
        migration.run_data_upgrade(newest.id, packs=packs, retry=find_company(known, retry).name if retry else "",
                                   current=not force)
    except StateError as error:
        under_way = under_way_run(session, RunStatus.UPGRADE_IN_PROGRESS) if error.code == "UpgradeInProgress" else None
        if under_way is None:
            raise
        session.note("an upgrade is under way already, going on with it")
        newest = under_way
    ended = wait(session, lambda: migration.get(Run, newest.id), lambda state: state.status is not RunStatus.UPGRADE_IN_PROGRESS)
    steps = migration.select(UpgradeStep, Query(order=(Order(Attribute("company_name")), Order(Attribute("position")))))
    session.table(("company", "pack", "step", "status", "statements", "notes"), [
        (step.company_name or "(all companies)", step.pack, step.step, step.status, step.statements, step.error or step.notes)
        for step in steps])
    return report_run(session, ended, steps=steps)


def _preview(session: Session, packs: list[str] | None, companies: list[str]) -> int:
    from skylift.migration.upgrade import preview

    done: list[StepDone] = []
    preview(session.migration, packs, companies, lambda step: done.append(step) if step.seconds is not None else None)
    for step in done:
        if not session.as_json:
            session.say(f"-- {step.company or '(all companies)'}: {step.pack} {step.step}")
            for text in (*(f"{statement};" for statement in step.statements), *(f"-- {note}" for note in step.notes)):
                session.say(text)
    session.say("nothing was changed" if done else "there is no step to be done")
    session.answer({"steps": [{"company": step.company, "pack": step.pack, "step": step.step, "statements": step.statements,
                               "notes": step.notes, "error": step.error} for step in done]})
    return OK


def _absolute(name: str) -> str:
    """A folder that is named by its path is looked for from where the command is given."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name
