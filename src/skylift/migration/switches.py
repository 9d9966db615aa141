"""Switches of single tables: include or leave out, preserve or replace, unblock. Source: behaviour.md §5.1, §5.2, §5.10."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from skylift.errors import SetupError, StateError
from skylift.migration.changes import note
from skylift.migration.replication import await_upgrade
from skylift.migration.scope import failed_tables
from skylift.migration.service import IfMatch, Service, Verb, get_row, newest_run
from skylift.model import Run, RunTable, TableSwitch
from skylift.products.registry import find_product
from skylift.runs import MigrationState, ReplicationType, RunStatus, TableStatus
from skylift.store.tables import registry, run_tables, runs

MAX_ERROR = 2048                  # characters, behaviour.md §2.5
_EVENTS = {("replicate", True): "include", ("replicate", False): "leave_out",
           ("preserve", True): "preserve", ("preserve", False): "replace"}


class TableVerbs(Service):
    def change_table(self, id: UUID, values: Mapping[str, Any], if_match: IfMatch) -> TableSwitch:
        """Switch a table for the next runs; `values`: replicate, preserve and blocked, or some of them; blocked as unblock_table says.

        Raises SetupError for a table that can only be preserved, or never, and for one that is to be blocked.
        """
        with self.verb() as verb:
            table = get_row(verb.connection, TableSwitch, id)
            if_match(table)
            verb.permit("change_tables")
            changed = {name: values[name] for name in ("replicate", "preserve")
                       if name in values and values[name] != getattr(table, name)}
            if "preserve" in changed:
                _check_preserve(verb, table, changed["preserve"])
            if values.get("blocked", table.blocked) is not table.blocked:
                if not table.blocked:
                    raise SetupError(f"{_named(table)}: only a copy that fails blocks a table", hint="leave it out: replicate = false",
                                     code="NotBlocked")
                _unblock(verb, table)
            for name, value in changed.items():
                verb.log(f"table {_named(table)}", _EVENTS[name, value])
            if changed.get("preserve") is False:           # the target's table is emptied, then copied (§5.2)
                changed["synced_version"] = 0
            if changed:
                note(verb.connection, TableSwitch, [id])
                verb.connection.execute(registry.update().where(registry.c.id == id).values(changed))
            return get_row(verb.connection, TableSwitch, id)

    def unblock_table(self, id: UUID) -> TableSwitch:
        """Accept that a table's last copy failed, so that it does not hold up upgrade and completion; the next run tries it again.

        Its row in the run counts as successful from now on and says what happened. Raises StateError if its last copy did not fail.
        """
        with self.verb() as verb:
            table = get_row(verb.connection, TableSwitch, id)
            verb.permit("change_tables")
            _unblock(verb, table)
            return get_row(verb.connection, TableSwitch, id)


def _unblock(verb: Verb, table: TableSwitch) -> None:
    rows = run_tables.c
    last = verb.connection.execute(sa.select(run_tables).where(
        rows.company_name == table.company_name, rows.table_name == table.table_name, rows.mode != "diagnostic",
    ).order_by(rows.ended_at.desc()).limit(1)).first()
    if not table.blocked or last is None or last.status is not TableStatus.FAILED:
        raise StateError(f"table {_named(table)} is not blocked", hint="only a table whose last copy failed is", code="NotBlocked")
    note(verb.connection, RunTable, [last.id])
    note(verb.connection, Run, sa.select(runs.c.id).where(runs.c.run_id == last.run_id))      # which counts it
    note(verb.connection, TableSwitch, [table.id])
    verb.connection.execute(run_tables.update().where(run_tables.c.id == last.id).values(
        status=TableStatus.SUCCESSFUL, error_code="Unblocked",
        errors=f"Unblocked by {verb.actor}, not copied: {last.errors}"[:MAX_ERROR]))
    verb.connection.execute(registry.update().where(registry.c.id == table.id).values(
        blocked=False, synced_version=table.synced_version or -1))
    verb.log(f"table {_named(table)}", "unblock", why=last.errors)
    _go_on(verb)


def _named(table: TableSwitch) -> str:
    return f"{table.company_name} {table.table_name}".strip()


def _check_preserve(verb: Verb, table: TableSwitch, wanted: bool) -> None:
    if table.company_name:
        raise SetupError(f"{table.company_name} {table.table_name}: the rows of a company's table are always replaced",
                         hint="only tables that all companies share can be preserved", code="PerCompany")
    fixed = find_product(verb.row["product_id"]).preserves(table.table_name)
    if fixed is not None and fixed is not wanted:
        raise SetupError(f"{table.table_name}: its rows are {'never' if wanted else 'always'} preserved",
                         hint=f"leave the table out if {'the rows there are to stay' if wanted else 'nothing is to be added'}",
                         code="Protected")


def _go_on(verb: Verb) -> None:
    """After a run that failed, the last table to be unblocked lets the upgrade follow (§5.10)."""
    run = newest_run(verb.connection, runs.c.run_id.in_(sa.select(run_tables.c.run_id)),
                     runs.c.replication_type != ReplicationType.DIAGNOSTIC)
    if (run is not None and run.status is RunStatus.FAILED and verb.state is MigrationState.READY
            and find_product(verb.row["product_id"]).upgrades and not failed_tables(verb.connection)):
        verb.move_run(run, "unblock", "no failed table is left")
        await_upgrade(verb)
        verb.move("unblock")
