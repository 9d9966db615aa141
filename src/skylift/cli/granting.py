"""The rights that skylift needs, as scripts for whoever may grant them."""

from __future__ import annotations

from typing import Annotated

import typer

from skylift.cli.frame import Session, absolute_url, command
from skylift.errors import redact


@command("skylift grants --source 'mssql://skylift@host/bc' > grants.sql", target=True)
def grants(
    session: Session,
    source: Annotated[str, typer.Option(metavar="URL", help="The source database; left out, only the target's script is printed.")] = "",
) -> None:
    """Print what gives the users in the URLs of source and target the rights that skylift needs, and no more.

    Nothing is connected. Put a password in the place of '<password>'.
    """
    from skylift.connectors import grants

    sides = [("source", absolute_url(source))] if source else []
    if not source or session.target_given:
        sides.append(("target", session.settings.target))
    scripts = [(side, url, grants(url, side)) for side, url in sides]
    if not session.as_json:
        print("\n".join(script for *_, script in scripts), end="")
    session.answer([{"side": side, "url": redact(url), "script": script} for side, url, script in scripts])
