"""What part of the migration a run goes through: checked when it is asked for, kept with the run as text, read by the coordinator."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import uuid4

import sqlalchemy as sa

from skylift.errors import NotFound, StateError
from skylift.migration.changes import note, note_switches
from skylift.migration.service import Verb
from skylift.model import Scope, TableSwitch
from skylift.products.naming import is_called
from skylift.store.tables import registry, run_tables, source_companies

Key = tuple[str, str]             # company, table name

EVERYTHING = Scope()
NAMED = 3                         # companies or tables that a sentence names
NAMED_LEFT_OUT = 50               # tables that the end of a migration names as left out


@dataclass(frozen=True, slots=True)
class Part:
    """A scope whose names have been looked up. None = not limited."""

    companies: frozenset[str] | None = None
    tables: frozenset[Key] | None = None
    failed: bool = False

    def has_company(self, name: str) -> bool:
        return self.companies is None or name in self.companies

    def __contains__(self, key: Key) -> bool:
        return (key[0] == "" or self.has_company(key[0])) and (self.tables is None or key in self.tables)

    def __str__(self) -> str:
        """As a sentence for a run's details; '' for everything."""
        if self.tables is not None:
            kind = "that had failed" if self.failed else "that were asked for"
            return f"Only the tables {kind}: {some(_names(sorted(self.tables)))}."
        return "" if self.companies is None else f"Only the companies that were asked for: {some(sorted(self.companies))}."


def look_up(verb: Verb, scope: Scope) -> Part:
    """Raises NotFound for a name that nothing has, StateError if a company is not marked or nothing has failed."""
    companies = frozenset(_company(verb, name) for name in scope.companies) if scope.companies else None
    part = Part(companies)
    if scope.tables:
        known = [key for key in map(tuple, verb.connection.execute(sa.select(registry.c.company_name, registry.c.table_name)))
                 if key in part]
        found = {name: [key for key in known if is_called(key[1], name)] for name in scope.tables}
        if missing := sorted(name for name, keys in found.items() if not keys):
            raise NotFound(f"the source has no table {some(f'{name!r}' for name in missing)}", code="TableNotFound",
                           hint="skylift tables lists them; a name is written without the company before it")
        marked = {"", *verb.connection.scalars(sa.select(source_companies.c.name).where(source_companies.c.replicate))}
        keys = frozenset(key for keys in found.values() for key in keys)
        part = Part(companies, frozenset(key for key in keys if key[0] in marked) or keys)
    if scope.failed:
        failed = frozenset(key for key in failed_tables(verb.connection) if key in part)
        if not failed:
            raise StateError("no table has failed", hint="run without limiting it to failed tables", code="NothingFailed")
        part = Part(companies, failed, failed=True)
    return part


def to_text(part: Part) -> str:
    if part == Part():
        return ""
    return json.dumps({"companies": None if part.companies is None else sorted(part.companies),
                       "tables": None if part.tables is None else sorted(part.tables), "failed": part.failed})


def from_text(text: str) -> Part:
    if not text:
        return Part()
    kept = json.loads(text)
    return Part(None if kept["companies"] is None else frozenset(kept["companies"]),
                None if kept["tables"] is None else frozenset((company, table) for company, table in kept["tables"]), kept["failed"])


def failed_tables(connection: sa.Connection) -> list[Key]:
    """The tables that failed and were not copied since, of marked companies and of what all share, unless left out (§4.4).

    A diagnostic run finds errors, but one that finds none copies nothing, so it does not clear a copy that failed.
    """
    later, rows = run_tables.alias(), run_tables
    marked = sa.select(source_companies.c.name).where(source_companies.c.replicate)
    same = sa.and_(later.c.company_name == rows.c.company_name, later.c.table_name == rows.c.table_name)
    left_out = sa.exists().where(registry.c.company_name == rows.c.company_name, registry.c.table_name == rows.c.table_name,
                                 ~registry.c.replicate)
    found = connection.execute(
        sa.select(rows.c.company_name, rows.c.table_name).distinct().order_by(rows.c.company_name, rows.c.table_name)
        .where(rows.c.status == sa.literal_column("'Failed'"),
               sa.or_(rows.c.company_name == "", rows.c.company_name.in_(marked)), ~left_out,
               ~sa.exists().where(same, later.c.ended_at > rows.c.ended_at,
                                  sa.or_(later.c.mode != "diagnostic", rows.c.mode == "diagnostic"))))
    return [(row.company_name, row.table_name) for row in found]


def refuse_failed_tables(connection: sa.Connection) -> None:
    """Raises StateError naming the tables that failed, or that take part and are yet to be copied (whole)."""
    if failed := failed_tables(connection):
        raise StateError(f"{_count(failed, 'has', 'have')} failed: {some(_names(failed))}", code="TablesFailed",
                         hint="mend what their errors say and run the replication again (skylift run --failed)")
    marked = sa.select(source_companies.c.name).where(source_companies.c.replicate)
    rows = connection.execute(sa.select(registry.c.company_name, registry.c.table_name).where(
        registry.c.replicate, registry.c.synced_version == 0,
        sa.or_(registry.c.company_name == "", registry.c.company_name.in_(marked))).order_by(
        registry.c.company_name, registry.c.table_name))
    if uncopied := [(row.company_name, row.table_name) for row in rows]:
        raise StateError(f"{_count(uncopied, 'is', 'are')} yet to be copied: {some(_names(uncopied))}", code="TablesNotCopied",
                         hint="run the replication, or leave them out (skylift tables --exclude NAME)")


def left_out(connection: sa.Connection) -> str:
    """A sentence about the tables of marked companies and of all that were left out; '' if none was."""
    marked = sa.select(source_companies.c.name).where(source_companies.c.replicate)
    rows = connection.execute(sa.select(registry.c.company_name, registry.c.table_name).where(
        ~registry.c.replicate, sa.or_(registry.c.company_name == "", registry.c.company_name.in_(marked))).order_by(
        registry.c.company_name, registry.c.table_name))
    keys = [(row.company_name, row.table_name) for row in rows]
    return f"{_count(keys, 'was', 'were')} left out: {some(_names(keys), NAMED_LEFT_OUT)}." if keys else ""


def _count(keys: Sequence[Key], one: str, many: str) -> str:
    return f"1 table {one}" if len(keys) == 1 else f"{len(keys)} tables {many}"


def list_tables(keys: Sequence[Key]) -> str:
    """The first of them by name, and how many more there are."""
    return some(_names(keys))


def _names(keys: Iterable[Key]) -> list[str]:
    return [f"{company} {table}".strip() for company, table in keys]


def _company(verb: Verb, name: str) -> str:
    rows = verb.connection.execute(sa.select(source_companies)).all()
    hit = next((row for row in rows if name.casefold() in (row.name.casefold(), row.display_name.casefold())), None)
    if hit is None:
        raise NotFound(f"the source has no company '{name}'", hint=f"it has: {some(sorted(row.name for row in rows)) or 'none yet'}",
                       code="CompanyNotFound")
    if not hit.replicate:
        raise StateError(f"company '{hit.name}' is not marked for replication", code="CompanyNotMarked",
                         hint=f"mark it first (skylift companies --mark '{hit.name}'; API: replicate = true)")
    return hit.name


def some(names: Iterable[str], most: int = NAMED) -> str:
    names = list(names)
    return ", ".join([*names[:most], *([f"and {len(names) - most} more"] if len(names) > most else [])])


def forget_copies(verb: Verb, part: Part) -> None:
    """The next run copies these tables whole, and nothing of a copy that has begun is used for it."""
    verb.set(copy_id=uuid4())
    if part == Part():
        note(verb.connection, TableSwitch, sa.select(registry.c.id))
        verb.connection.execute(registry.update().values(synced_version=0))
        return
    keys = [{"company": row.company_name, "name": row.table_name} for row in verb.connection.execute(
        sa.select(registry.c.company_name, registry.c.table_name)) if (row.company_name, row.table_name) in part]
    if keys:
        note_switches(verb.connection, [(key["company"], key["name"]) for key in keys])
        here = sa.and_(registry.c.company_name == sa.bindparam("company"), registry.c.table_name == sa.bindparam("name"))
        verb.connection.execute(registry.update().where(here).values(synced_version=0), keys)
