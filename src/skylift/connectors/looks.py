"""Databases as they stand, looked at without a trace: what an assessment asks of a source and of a target.

Nothing here writes, installs, makes a file or keeps a lock. Each database answers in its own file (`*_look.py`), which `look_at_source`
and `look_at_target` of connectors/__init__.py find by the URL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from skylift.connectors import Destination, Source, Target
from skylift.model import Table, TargetName
from skylift.runs import Severity


@dataclass(frozen=True, slots=True)
class Remark:
    """What stands out about a database, or about a table or a column in it. `code`: docs/assess.md lists them."""

    code: str
    severity: Severity
    message: str
    fix: str = ""
    table: str = ""                 # path in the source, or name in the target; '' = the database
    column: str = ""
    count: int = 0                  # of rows or values, 0 = not counted


def folded(table: str, column: str, rule: str) -> Remark:
    """Of a column of a key that the source compares otherwise than by its characters."""
    return Remark("Collation", Severity.INFORMATION, f"the source compares this column of the key by {rule}, which takes for equal what "
                  "PostgreSQL, DuckDB and lakes tell apart (such as upper and lower case): there, joins and look-ups find only the very "
                  "same text, and a new row may have a key that the source would refuse",
                  "spell the values alike wherever rows refer to them, or have queries compare lower()", table, column)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Which feed of changes `Source.track` would give a table."""

    feed: str
    why: str = ""                   # there is no better one, in words; '' = there is none better
    fix: str = ""                   # what would get it a better one
    code: str = "ChangeFeed"
    setup_s: float = 0.0            # that making it takes for one table, as measured: it can only be tried by writing to the source


@dataclass(frozen=True, slots=True)
class StandingColumn:
    """A column of a table that stands in the target."""

    name: str
    declared: str
    kind: pa.DataType               # as which it would be read
    most: int | None = None         # characters or bytes of its longest value, None = any
    nullable: bool = True
    in_key: bool = False


class SourceLook(Protocol):
    server: str                     # what it is, with its version

    @property
    def source(self) -> Source:
        """To be read; opened in a way that leaves no trace."""

    def remarks(self, tables: Sequence[Table]) -> list[Remark]:
        """What is missing or wrong: rights above all, each with the statement that grants it."""

    def feeds(self, tables: Sequence[Table]) -> Mapping[str, Forecast]:
        """By path."""

    def close(self) -> None: ...


class TargetLook(Destination, Protocol):
    server: str

    def remarks(self, names: Sequence[TargetName]) -> list[Remark]:
        """What is missing or wrong if these tables were to be made or replaced; `Remark.table` is str(name) then."""

    def reserved(self, schema: str) -> bool:
        """Whether no company can have this name, because the database keeps it for itself."""

    def standing(self, names: Sequence[TargetName]) -> Mapping[TargetName, Sequence[StandingColumn]]:
        """Of these tables those that are there, whoever made them, with their columns in order."""

    def free_bytes(self) -> int | None:
        """Room that is left for data, None where that cannot be known."""

    def scratch(self, allowed: bool) -> AbstractContextManager[Target | None]:
        """A target of the same kind to measure with, None if there can be none.

        A database in files gets other files, in the folder for temporary ones. For a server it is the server itself, only if that
        is `allowed`: whoever uses it undoes what it does.
        """

    def close(self) -> None: ...
