"""The data upgrade."""

from __future__ import annotations

import re
from collections.abc import Iterator
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
_ASKS = re.compile(r"(?is)\s*select\b(?!.*\binto\b)")   # a statement that changes nothing


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
    find_newest(session)
    packs = [_absolute(name) for name in pack] if pack else None
    known = list_companies(session)
    if dry_run:
        return _preview(session, packs, [find_company(known, name).name for name in company or ()])
    if company:
        raise SetupError("--company goes with --dry-run", hint="to upgrade one company that has failed: --retry COMPANY", code="Usage")
    try:
        upgrading = migration.run_data_upgrade(packs=packs, retry=find_company(known, retry).name if retry else "", current=not force)
    except StateError as error:
        under_way = under_way_run(session, RunStatus.UPGRADE_IN_PROGRESS) if error.code == "UpgradeInProgress" else None
        if under_way is None:
            raise
        session.note("an upgrade is under way already, going on with it")
        upgrading = under_way
    ended = wait(session, lambda: migration.get(Run, upgrading.id), lambda state: state.status is not RunStatus.UPGRADE_IN_PROGRESS)
    steps = migration.select(UpgradeStep, Query(order=(Order(Attribute("company_name")), Order(Attribute("position")))))
    session.table(("company", "pack", "step", "status", "statements", "notes"), [
        (step.company_name or "(all companies)", step.pack, step.step, step.status, step.statements, text)
        for step, text in zip(steps, _told(steps), strict=True)])
    return report_run(session, ended, steps=steps)


def _told(steps: list[UpgradeStep]) -> Iterator[str]:
    """What each step has said, or why it failed; what many companies' steps failed of once."""
    seen: dict[str, str] = {}
    for step in steps:
        alike = step.error.replace(step.company_name or "\0", "")
        first = seen.setdefault(alike, step.company_name)
        yield step.notes if not step.error else step.error if first == step.company_name else f"(as {first or 'of all companies'})"


def _preview(session: Session, packs: list[str] | None, companies: list[str]) -> int:
    from skylift.migration.upgrade import preview

    done: list[StepDone] = []
    why = preview(session.migration, packs, companies, lambda step: done.append(step) if step.seconds is not None else None)
    for step in done:
        if not session.as_json:
            session.say(f"-- {step.company or '(all companies)'}: {step.pack} {step.step}")
            changing = [statement for statement in step.statements if not _ASKS.match(statement)]
            asked = len(step.statements) - len(changing)
            for text in (*(f"{statement};" for statement in changing), *(f"-- {note}" for note in step.notes),
                         *([f"-- and {asked:,} that only ask: see --json"] if asked else [])):
                session.say(text)
    session.say("nothing was changed" if done else f"there is no step to be done: {'; '.join(why)}")
    if done:
        for text in why:
            session.note(f"left out: {text}")
    session.answer({"left_out": why, "steps": [
        {"company": step.company, "pack": step.pack, "step": step.step, "statements": step.statements, "notes": step.notes,
         "error": step.error} for step in done]})
    return OK


def _absolute(name: str) -> str:
    """A folder that is named by its path is looked for from where the command is given."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name
