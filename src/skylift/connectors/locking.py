"""Keeping everybody but skylift from writing to the tables of a target until its migration ends.

Only databases that have users can do so: PostgreSQL and SQL Server.
"""

from __future__ import annotations

import importlib
from typing import Any

from skylift.connectors import parse_url
from skylift.errors import SetupError

_LOCKS = {"postgresql": "skylift.connectors.postgres_lock", "mssql": "skylift.connectors.sqlserver_lock"}


def refuse_unlockable(url: str) -> None:
    """Raises SetupError where nobody can be kept from writing."""
    _driver(url)


def lock(url: str) -> None:
    """Only skylift's user writes to what was copied, and to what will be; reading is as before. Again is the same.

    Raises what connecting raises, SetupError where a right is missing.
    """
    _driver(url).lock(parse_url(url))


def unlock(url: str) -> None:
    """Everybody may write again who may without skylift. Nothing happens where nothing is locked."""
    _driver(url).unlock(parse_url(url))


def _driver(url: str) -> Any:
    name = parse_url(url).get_backend_name()
    if name not in _LOCKS:
        raise SetupError(f"a target of the kind {name} cannot be locked", code="NotLockable",
                         hint="set up without --lock, and see to it that nobody writes there; docs/rights.md says more")
    return importlib.import_module(_LOCKS[name])
