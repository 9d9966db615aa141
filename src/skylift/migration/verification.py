"""Proof on demand: every table that takes part, read from source and target once more and compared row by row."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from skylift.connectors import Source, Target, opened
from skylift.engine.plan import of_companies, plan
from skylift.engine.verify import TableDifference, compare_tables
from skylift.errors import StateError
from skylift.losses import Losses
from skylift.migration.changes import note_switches
from skylift.migration.mappings import all_mappings
from skylift.migration.service import Service, get_migration
from skylift.model import UNTOLD, CopyTask, Reading
from skylift.products import Catalogue
from skylift.products.registry import find_product
from skylift.runs import ALLOWED, MigrationState
from skylift.store.tables import registry, source_companies


def copy_again(service: Service, tables: Iterable[tuple[str, str]]) -> bool:
    """Have the next run copy these (company, table) whole. False if no run will: one is under way, or the data is upgraded."""
    keys = [{"company": company, "name": name} for company, name in tables]
    with service.verb() as verb:
        if not keys or verb.state not in ALLOWED["reset_cloud_data"]:
            return False
        here = sa.and_(registry.c.company_name == sa.bindparam("company"), registry.c.table_name == sa.bindparam("name"))
        note_switches(verb.connection, [(key["company"], key["name"]) for key in keys])
        verb.connection.execute(registry.update().where(here).values(synced_version=0), keys)
        names = ", ".join(f"{key['company']} {key['name']}".strip() for key in keys[:5])
        verb.log("migration", "differs", why=f"{len(keys)} to be copied again: {names}{', ...' if len(keys) > 5 else ''}")
        return True


def compare(service: Service, stop: Callable[[], bool] = lambda: False, reading: Reading = UNTOLD) -> Iterator[TableDifference]:
    """One difference per table of the marked companies and of what all companies share; nothing kept is trusted.

    Raises StateError before a source was connected, and while a run or an upgrade writes to the target.
    """
    with service.verb() as verb:
        if verb.state in (MigrationState.REPLICATING, MigrationState.UPGRADING):
            raise verb.refusal()
    with service.store.read() as connection:
        row = get_migration(connection)
    if not row["source_url"]:
        raise StateError("no source is connected yet", hint="connect one first: skylift setup --product P --source URL", code="NotSetUp")
    sides = opened(service.box.open(row["source_url"]), service.box.open(row["target_url"]), Losses(service.settings.accept))
    with sides as (source, open_target):
        found = find_product(row["product_id"]).discover(source)
        target = open_target()
        tasks = taking_part(service, found, source, target)
        states = target.states()
        if tasks and not states.keys() & {task.target for task in tasks}:
            raise StateError("nothing has been copied yet, so there is nothing to compare", code="NothingCopied",
                             hint="run the replication first (skylift run; API: runReplication)")
        yield from compare_tables(tasks, source, target, states, workers=service.settings.workers, stop=stop, reading=reading)


def taking_part(service: Service, found: Catalogue, source: Source, target: Target) -> list[CopyTask]:
    """The tables of the marked companies and of what all share, but for those that are left out."""
    with service.store.read() as connection:
        mappings = all_mappings(connection)
        marked = connection.scalars(sa.select(source_companies.c.name).where(source_companies.c.replicate)).all()
        switches = {(row.company_name, row.table_name): row for row in connection.execute(sa.select(registry))}
    whole = plan(found, mappings, source.tables, target.max_name_bytes)
    return switched(of_companies(whole, marked).tasks, switches)


def switched(tasks: Iterable[CopyTask], switches: Mapping[tuple[str, str], Any],
             preserved: Container[tuple[str, str]] = frozenset()) -> list[CopyTask]:
    """The tables that are not left out, preserved where `switches`, rows of the registry by (company, table), say so.

    `preserved`: what is to be preserved of the tables that the registry does not know yet.
    """
    found = []
    for task in tasks:
        key = (task.company, task.table_name)
        switch = switches.get(key)
        if switch is None or switch.replicate:
            found.append(replace(task, preserve=switch.preserve if switch is not None else key in preserved))
    return found
