"""How a migration ends, for now or for good."""

from __future__ import annotations

from typing import Annotated

import typer

from skylift.cli.commands import find_newest, say_state
from skylift.cli.follow import counting
from skylift.cli.frame import Session, command
from skylift.model import Run

Reason = Annotated[str, typer.Option(help="Kept with the migration.")]


@command("skylift disable")
def disable(session: Session) -> None:
    """End replication for now: the source is left as it was found, copied data stays."""
    before = find_newest(session)
    session.migration.disable_replication(before.id)
    _say(session, before)


@command("skylift pause --reason 'month-end closing'")
def pause(session: Session, reason: Reason = "") -> None:
    """Stop migrating until the next set-up. What feeds changes in the source stays, so that only changes are moved then."""
    before = find_newest(session)
    session.migration.pause(reason)
    _say(session, before)


@command("skylift abandon --reason 'another product was chosen'")
def abandon(session: Session, reason: Reason = "") -> None:
    """Give the migration up: the source is left as it was found, copied data stays."""
    before = find_newest(session)
    session.migration.abandon(reason)
    _say(session, before)


@command("skylift complete --force --reason 'the rest is archived'", target=True)
def complete(
    session: Session,
    force: Annotated[bool, typer.Option("--force", help="Whatever is still open; needs --reason.")] = False,
    reason: Reason = "",
) -> None:
    """Complete the migration, once everything has arrived.

    Refused while a table is failed or yet to be copied, the upgrade is not done, the source has changed since, or the target does not
    hold what was copied.
    """
    newest = find_newest(session)
    with counting(session, lambda rows, all_rows: f"{rows:,} of {all_rows:,} rows looked at") as shown:
        session.migration.complete_cloud_migration(newest.id, force=force, reason=reason, reading=shown)
    _say(session, newest)


def _say(session: Session, before: Run) -> None:
    """What the migration's end has said; `before`: the newest row before it, which is the newest still where nothing was left to end."""
    newest = find_newest(session)
    session.say(f"{'already so: ' if newest.id == before.id else ''}{newest.details}")
    say_state(session)
