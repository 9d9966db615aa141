"""API tokens: 256 random bits shown once; the store keeps their SHA-256, which needs no salt at that size."""

from __future__ import annotations

import base64
import hashlib
import secrets
from datetime import UTC, datetime
from uuid import uuid4

import sqlalchemy as sa

from skylift.errors import NotFound, SetupError
from skylift.migration.service import Service
from skylift.model import Token
from skylift.store import to_row
from skylift.store.tables import tokens

ROLES = ("reader", "operator", "administrator")


class TokenVerbs(Service):
    def create_token(self, name: str, role: str, expires_at: datetime | None = None, *, access_key: bool = False) -> str:
        """The secret of a new token; an `access_key` has the 44 characters of Business Central's web service access keys.

        Raises SetupError for an unknown role, or a name that a valid token has or that Basic authentication cannot spell.
        """
        if role not in ROLES:
            raise SetupError(f"there is no role '{role}'", hint=f"choose one of {', '.join(ROLES)}", code="Role")
        if not name.strip():
            raise SetupError("a token needs a name", code="TokenName")
        if access_key and ":" in name:
            raise SetupError("the name of an access key has no colon: it is sent before one", hint="choose another name", code="TokenName")
        secret = base64.b64encode(secrets.token_bytes(32)).decode() if access_key else f"skylift_{secrets.token_urlsafe(32)}"
        with self.verb() as verb:
            if verb.connection.execute(sa.select(tokens.c.id).where(tokens.c.name == name, _valid(verb.now))).first():
                raise SetupError(f"there is a token '{name}' already", hint="choose another name, or revoke that one", code="TokenName")
            verb.connection.execute(tokens.insert().values(
                id=uuid4(), name=name, role=role, hash=_hash(secret), created_at=verb.now, expires_at=expires_at))
            verb.log(f"token {name}", "create", why=role)
        return secret

    def authenticate(self, secret: str) -> Token | None:
        """The token that this is the secret of, None if there is none or it has expired or been revoked."""
        with self.store.read() as connection:
            row = connection.execute(sa.select(tokens).where(tokens.c.hash == _hash(secret), _valid(datetime.now(UTC)))).mappings().first()
        return to_row(Token, row) if row else None

    def revoke_token(self, name: str) -> None:
        """Raises NotFound if there is no valid token of that name."""
        with self.verb() as verb:
            done = verb.connection.execute(tokens.update().where(tokens.c.name == name, _valid(verb.now)).values(revoked_at=verb.now))
            if not done.rowcount:
                raise NotFound(f"there is no valid token '{name}'", code="TokenName")
            verb.log(f"token {name}", "revoke")


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _valid(now: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(tokens.c.revoked_at.is_(None), sa.or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > now))
