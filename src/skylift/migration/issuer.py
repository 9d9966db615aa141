"""Tokens of a configured issuer: found by its discovery document, checked with its keys. Source: odata.md N1, RFC 7519, RFC 8725.

Only asymmetric algorithms are accepted, and each key with its own algorithm alone, so that no token can choose how it is checked.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import httpx
import jwt

from skylift.errors import Transient
from skylift.model import Caller
from skylift.settings import Settings

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
STALE_S = 24 * 3600.0            # keys go on being used that long while the issuer does not answer
FETCH_S = 5.0                    # patience with the issuer
MOST_BYTES = 2**20               # of a document of the issuer

_log = logging.getLogger("skylift.signin")


class Issuer:
    """The issuer that the settings name. Safe to use from several threads.

    Keys are fetched again when they are `jwt_keys_s` old, and when a token names one that is not among them; for the latter a tenth
    of that time must have passed, so that made-up tokens do not become requests to the issuer.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: dict[str, jwt.PyJWK] = {}
        self._issuer = ""                                # as the discovery document spells it
        self._fetched = self._tried = float("-inf")

    def caller(self, token: str) -> Caller | None:
        """Who the token is for, None if it does not count (the log says why). Raises Transient if there are no keys to check it with."""
        try:
            claims = self._claims(token)
        except jwt.PyJWTError as error:
            _log.info("a token of the issuer does not count: %s: %s", type(error).__name__, error)
            return None
        return Caller(_id(claims), _name(claims), self._role(claims))

    def _claims(self, token: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        if header.get("alg") not in ALGORITHMS:
            raise jwt.InvalidAlgorithmError(f"the algorithm {header.get('alg')!r} is not accepted")
        key = self._key(header.get("kid"))
        claims = jwt.decode(token, key=key, algorithms=[key.algorithm_name], audience=self._settings.jwt_audience.split(),
                            issuer=self._issuer, leeway=self._settings.jwt_leeway_s, options={"require": ["exp", "iss", "aud"]})
        tenants = self._settings.jwt_tenant.split()
        if tenants and claims.get("tid") not in tenants:
            raise jwt.InvalidTokenError(f"the tenant {claims.get('tid')!r} is not accepted")
        return claims

    def _key(self, kid: str | None) -> jwt.PyJWK:
        if self._due(kid):
            with self._lock:                             # one fetches; who knows the key they need does not wait for it
                if self._due(kid):
                    self._tried = self._clock()
                    self._fetch()
        keys = self._keys
        if not keys:
            raise Transient("the issuer of tokens does not answer", hint="try again", code="Issuer")
        if kid is None or kid not in keys:
            raise jwt.InvalidKeyError(f"the issuer has no key {kid!r}")
        return keys[kid]

    def _due(self, kid: str | None) -> bool:
        now, kept_s = self._clock(), self._settings.jwt_keys_s
        return (now - self._fetched >= kept_s or kid not in self._keys) and now - self._tried >= kept_s / 10

    def _fetch(self) -> None:
        """The issuer's keys as they are now; those of before stay, for a day, if that fails."""
        try:
            configured = self._settings.jwt_issuer.rstrip("/")
            found = _get(f"{configured}/.well-known/openid-configuration")
            if not isinstance(found.get("issuer"), str) or found["issuer"].rstrip("/") != configured:
                raise ValueError(f"its discovery document is that of {found.get('issuer')!r}")
            where = str(found.get("jwks_uri"))
            if configured.startswith("https:") and not where.startswith("https:"):
                raise ValueError(f"its keys are at {where!r}, without https")
            keys = jwt.PyJWKSet.from_dict(_get(where))
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, jwt.PyJWTError) as error:
            _log.warning("the keys of the issuer %s cannot be fetched: %s: %s", self._settings.jwt_issuer, type(error).__name__, error)
            if self._clock() - self._fetched >= STALE_S:
                self._keys = {}
            return
        self._issuer, self._fetched = found["issuer"], self._clock()
        self._keys = {key.key_id: key for key in keys
                      if key.key_id and key.algorithm_name in ALGORITHMS and key.public_key_use in (None, "sig")}

    def _role(self, claims: Mapping[str, Any]) -> str:
        """The most that the token's roles and scopes allow; '' if none of them is configured."""
        granted: set[str] = set()
        for claim in ("roles", "scp", "scope"):
            value = claims.get(claim)
            granted.update(value.split() if isinstance(value, str) else [v for v in value if isinstance(v, str)]
                           if isinstance(value, list) else [])
        settings = self._settings
        for role, names in (("administrator", settings.jwt_administrators), ("operator", settings.jwt_operators),
                            ("reader", settings.jwt_readers)):
            if granted.intersection(names.split()):
                return role
        return ""


def _get(url: str) -> dict[str, Any]:
    """A JSON object of the issuer. Raises httpx.HTTPError and ValueError."""
    answer = httpx.get(url, timeout=FETCH_S, headers={"Accept": "application/json"})
    if answer.status_code != 200:
        raise ValueError(f"{url} answers {answer.status_code}")
    if len(answer.content) > MOST_BYTES:
        raise ValueError(f"{url} answers more than {MOST_BYTES} bytes")
    document = answer.json()
    if not isinstance(document, dict):
        raise ValueError(f"{url} answers no JSON object")
    return document


def _id(claims: Mapping[str, Any]) -> UUID:
    """The caller's own id where it is a GUID (Entra: oid of the user, appid of the program), else one made of issuer and subject."""
    for claim in ("oid", "appid", "azp", "sub"):
        try:
            return UUID(claims[claim])
        except (KeyError, ValueError, TypeError, AttributeError):
            continue
    return uuid5(NAMESPACE_URL, f"{claims['iss']}#{claims.get('sub', '')}")


def _name(claims: Mapping[str, Any]) -> str:
    names = (claims.get(claim) for claim in ("preferred_username", "upn", "name", "app_displayname", "appid", "azp", "sub"))
    return next((name[:250] for name in names if isinstance(name, str) and name), str(_id(claims)))
