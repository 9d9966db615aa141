"""Who makes a request: bearer tokens, skylift's own or of a configured issuer, and Basic. Source: odata.md §8."""

from __future__ import annotations

import base64
import binascii

from skylift.migration.issuer import Issuer
from skylift.migration.tokens import TokenVerbs
from skylift.model import Caller, Token


class SignIn:
    """The ways to sign in that the settings allow. One for a process, for it keeps the issuer's keys."""

    def __init__(self, tokens: TokenVerbs) -> None:
        self._tokens = tokens
        self._issuer = Issuer(tokens.settings) if tokens.settings.jwt_issuer else None

    def caller(self, authorization: str, on_premises: bool) -> Caller | None:
        """Who the header Authorization names, None if nobody. Raises Transient if the issuer is needed and does not answer."""
        scheme, _, credentials = authorization.partition(" ")
        credentials = credentials.strip()
        if not credentials:
            return None
        match scheme.lower():
            case "bearer" if self._issuer is not None and credentials.count(".") == 2:
                return self._issuer.caller(credentials)
            case "bearer":
                return _caller(self._tokens.authenticate(credentials))
            case "basic" if self.takes_basic(on_premises):
                name, secret = _read_basic(credentials)
                token = self._tokens.authenticate(secret)
                return _caller(token) if token is not None and token.name == name else None
        return None

    def takes_basic(self, on_premises: bool) -> bool:
        return self._tokens.settings.basic_auth == "everywhere" or (self._tokens.settings.basic_auth == "on-premises" and on_premises)


def _caller(token: Token | None) -> Caller | None:
    return None if token is None else Caller(token.id, token.name, token.role)


def _read_basic(credentials: str) -> tuple[str, str]:
    """Name and key; empty if they cannot be read (RFC 7617)."""
    try:
        name, _, secret = base64.b64decode(credentials, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return "", ""
    return name, secret
