"""Tokens for the API: make, list, revoke."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated

import typer

from skylift.cli.frame import Session, app, command
from skylift.model import Token
from skylift.query import Attribute, Order, Query

token_app = typer.Typer(no_args_is_help=True, help="Tokens for the API.")
app.add_typer(token_app, name="token")


class Role(StrEnum):
    READER = "reader"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"


@command("skylift token create ci --role operator --expires 90", token_app)
def create(
    session: Session,
    name: Annotated[str, typer.Argument(help="What the token is for.")],
    role: Annotated[Role, typer.Option(help="reader: look; operator: everything but set-up; administrator: everything.")],
    expires: Annotated[float | None, typer.Option(metavar="DAYS", min=0, max=36500, help="Days after which it is worthless; default never.",
                                                  show_default=False)] = None,
    access_key: Annotated[bool, typer.Option("--access-key", help="Make it a web service access key, for clients that sign in with Basic "
                                                                  "authentication as NAME.")] = False,
) -> None:
    """Make a token. It is shown once, alone on the last line."""
    expires_at = None if expires is None else datetime.now(UTC) + timedelta(days=expires)
    secret = session.migration.create_token(name, role.value, expires_at, access_key=access_key)
    session.say(f"token '{name}' of role {role.value}{f', until {expires_at:%Y-%m-%d %H:%M} UTC' if expires_at else ''}, shown only now:")
    if not session.as_json:
        print(secret)
    session.answer({"name": name, "role": role.value, "token": secret, "expires_at": expires_at})


@command("skylift token list", token_app, "list")
def list_(session: Session) -> None:
    """List the tokens; their secrets are not kept."""
    tokens = session.migration.select(Token, Query(order=(Order(Attribute("name")),)))
    session.table(("name", "role", "created", "expires", "revoked"),
                  [(t.name, t.role, *(f"{at:%Y-%m-%d %H:%M}" if at else "" for at in (t.created_at, t.expires_at, t.revoked_at)))
                   for t in tokens])
    session.answer(tokens)


@command("skylift token revoke ci", token_app)
def revoke(session: Session, name: Annotated[str, typer.Argument(help="The token's name.")]) -> None:
    """Make a token worthless from now on."""
    session.migration.revoke_token(name)
    session.say(f"token '{name}' is revoked")
    session.answer({"name": name, "revoked": True})
