"""Names: from a business name to its SQL name, from a table's name to company, table and app, and on to the target.

Business Central writes a table as `Company$Table$AppId` (`Company$Table` before apps existed), one that all companies
share as `Table$AppId` or `Table`, and a companion table with `$ext` at the end. Source: behaviour.md §1 "SQL naming".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID

from skylift.connectors.sql import fit
from skylift.errors import SetupError
from skylift.model import TargetName

_TO_SQL = str.maketrans(dict.fromkeys('."\\/\'%][', "_"))
_GUID = re.compile(r"(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def sql_name(name: str) -> str:
    """`name` with each character that a SQL identifier of Business Central cannot take replaced by `_`, one for one."""
    return name.translate(_TO_SQL)


def same_name(name: str) -> str:
    """The form in which two names that a database may take for one are equal: SQL name, A-Z lowered.

    SQLite and DuckDB fold no other letters: 'Ä' and 'ä' are two tables there.
    """
    return "".join(c.lower() if c.isascii() else c for c in sql_name(name))


@dataclass(frozen=True, slots=True)
class SourceName:
    """What the name of a source table says. `table_name` is the whole name without the company prefix."""

    company: str          # the company's key as given to `split_name`; '' = all companies share the table
    table_name: str
    base: str             # the table's own name: without app id and without `$ext`
    app_id: UUID | None


def split_name(name: str, companies: Mapping[str, str]) -> SourceName | None:
    """What `name` says, or None if it carries the prefix of a company that is not in the source (a leftover).

    `companies`: same_name(company) -> the company's key. Both sides are compared in that form, so it does not matter
    which characters the source database replaced when it wrote the prefix (behaviour.md §1: brackets in `07.GCT RUS [LOCAL]`).
    The longest prefix that is a company wins; what is between it and the app id is the table's own name.
    """
    parts = name.split("$")
    end = len(parts)
    app_id = None
    tail = 2 if parts[-1] == "ext" and end > 2 else 1
    if end > tail and _GUID.fullmatch(parts[end - tail]):
        end -= tail
        app_id = UUID(parts[end])
    for cut in range(end - 1, 0, -1):
        company = companies.get(same_name("$".join(parts[:cut])))
        if company is not None:
            return SourceName(company, "$".join(parts[cut:]), "$".join(parts[cut:end]), app_id)
    return SourceName("", name, parts[0], app_id) if end == 1 else None


def is_called(table_name: str, name: str) -> bool:
    """Whether somebody who writes `name` means this table: by its whole name without company prefix, or by the name of its own.

    The latter is that of a base table and its companion alike, which belong together (behaviour.md §1 "Companion table").
    """
    parts = table_name.split("$")
    base = parts[0] if len(parts) == 1 or _GUID.fullmatch(parts[1]) else table_name
    return same_name(name.strip()) in (same_name(table_name), same_name(base))


def parse_source_table(text: str, per_company: bool = True) -> tuple[str, bool]:
    """(table name without company prefix, per company?) from what a user typed as the source table of a mapping.

    `[dbo].[CRONUS$Customer$437d..]`, `Customer$437d..` and `Customer` are all understood. Source: behaviour.md §1, cases.
    """
    text = text.strip()
    bracketed = text.startswith("[") and text.endswith("]")
    text = re.sub(r"(?i)^dbo\.", "", re.sub(r"[\[\]]", "", text))
    parts = text.split("$")
    companion = "$ext" if len(parts) > 2 and parts[-1] == "ext" and _GUID.fullmatch(parts[-2]) else ""
    if companion:
        parts.pop()
    app = f"${parts[-1]}{companion}" if _GUID.fullmatch(parts[-1]) else ""
    match parts:
        case [name]:
            return name, per_company and not bracketed
        case [name, _] if app:
            return name + app, not bracketed
        case [_, name]:
            return name, True
        case _:
            return parts[1] + app, True


def target_name(company: str, table_name: str, max_name_bytes: int) -> TargetName:
    """Where a table goes: a company is a schema, what companies share is in the default schema ('').

    Each is cut where it is longer than `max_name_bytes` (connectors/sql.py).
    """
    return TargetName(fit(company, max_name_bytes), fit(table_name, max_name_bytes))


def refuse_collisions(names: Iterable[tuple[TargetName, str]]) -> None:
    """Raises SetupError naming both if two sources go to one target name; `names`: (target name, what goes there)."""
    for name, first, second in collisions(names):
        raise SetupError(f"'{first}' and '{second}' would both become '{name}' in the target",
                         hint="rename one of them in the source", code="NameCollision")


def collisions(names: Iterable[tuple[TargetName, str]]) -> Iterator[tuple[TargetName, str, str]]:
    """Of `names` (target name, what goes there) those that are taken already, with who has taken them and who wants them too.

    Case does not count: DuckDB takes `ITEM` and `Item` for one table. `main` is DuckDB's default schema, `public` PostgreSQL's,
    `dbo` SQL Server's.
    """
    seen: dict[tuple[str, str], str] = {}
    for name, origin in names:
        schema = name.schema.casefold()
        key = ("" if schema in ("main", "public", "dbo") else schema, name.table.casefold())
        if key in seen:
            yield name, seen[key], origin
        seen.setdefault(key, origin)
