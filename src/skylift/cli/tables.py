"""The tables that can take part, and how they do."""

from __future__ import annotations

from typing import Annotated

import typer

from skylift.cli.commands import find_company, find_setup, list_companies
from skylift.cli.frame import Session, command
from skylift.errors import NotFound, SetupError
from skylift.model import TableSwitch
from skylift.products.naming import is_called
from skylift.query import Attribute, Order, Query

Names = list[str] | None


@command("skylift tables --exclude 'Sales Line Archive'")
def tables(
    session: Session,
    include: Annotated[Names, typer.Option(metavar="NAME", help="Copy this table in the next runs (repeatable, as all of these).")] = None,
    exclude: Annotated[Names, typer.Option(metavar="NAME", help="Leave this table out; what was copied of it stays.")] = None,
    preserve: Annotated[Names, typer.Option(metavar="NAME", help="Keep the rows that the target holds, add only those it lacks. "
                                                                 "Only for tables that all companies share.")] = None,
    replace: Annotated[Names, typer.Option(metavar="NAME", help="Replace the rows that the target holds: the next run copies "
                                                                "it whole.")] = None,
    unblock: Annotated[Names, typer.Option(metavar="NAME", help="Accept that its last copy failed: it holds up nothing any more.")] = None,
    company: Annotated[str, typer.Option(metavar="NAME", help="Only tables of this company.")] = "",
) -> None:
    """List the tables and switch single ones. A name is the whole one without company, or the one without app id."""
    find_setup(session)
    migration = session.migration
    for one, other in ((include, exclude), (preserve, replace)):
        if both := {name.casefold() for name in one or ()} & {name.casefold() for name in other or ()}:
            raise SetupError(f"table '{min(both)}' is named for two things that exclude each other", hint="choose one", code="Usage")
    wanted = [({"replicate": True}, include), ({"replicate": False}, exclude),
              ({"preserve": True}, preserve), ({"preserve": False}, replace)]
    shown = found = _tables(session, company)
    chosen = {name: _named(found, name) for names in (include, exclude, preserve, replace, unblock) for name in names or ()}
    for values, names in wanted:
        for name in names or ():
            for table in chosen[name]:
                migration.change_table(table.id, values, lambda row: None)
    for name in unblock or ():
        for table in [table for table in chosen[name] if table.blocked] or chosen[name][:1]:
            migration.unblock_table(table.id)
    if chosen:
        ids = {table.id for tables in chosen.values() for table in tables}
        shown = [table for table in _tables(session, company) if table.id in ids]
    session.table(("company", "table", "copied", "target's rows", "last copy"), [
        (table.company_name or "(all companies)", table.table_name, "yes" if table.replicate else "no",
         "preserved" if table.preserve else "replaced", _state(table)) for table in shown])
    session.answer(shown)


def _state(table: TableSwitch) -> str:
    return "failed" if table.blocked else "done" if table.synced_version > 0 else "to come"


def _tables(session: Session, company: str) -> list[TableSwitch]:
    found = session.migration.select(TableSwitch, Query(order=(Order(Attribute("company_name")), Order(Attribute("table_name")))))
    if not company:
        return found
    name = find_company(list_companies(session), company).name
    return [table for table in found if table.company_name == name]


def _named(found: list[TableSwitch], name: str) -> list[TableSwitch]:
    hits = [table for table in found if is_called(table.table_name, name)]
    if not hits:
        raise NotFound(f"there is no table '{name}'", hint="skylift tables lists them", code="TableNotFound")
    return hits
