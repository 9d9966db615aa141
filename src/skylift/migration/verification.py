"""Proof on demand: every table that takes part, read from source and target once more and compared row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import sqlalchemy as sa

from skylift.connectors import open_source, open_target
from skylift.engine.plan import of_companies, plan
from skylift.engine.verify import TableDifference, compare_tables
from skylift.errors import SetupError
from skylift.migration.mappings import all_mappings
from skylift.migration.service import Service, get_migration
from skylift.products.registry import find_product
from skylift.runs import MigrationState
from skylift.store.tables import registry, source_companies


def compare(service: Service, stop: Callable[[], bool] = lambda: False) -> Iterator[TableDifference]:
    """One difference per table of the marked companies and of what all companies share; nothing kept is trusted.

    Raises SetupError before a source was connected, StateError while a run or an upgrade writes to the target.
    """
    with service.verb() as verb:
        if verb.state in (MigrationState.REPLICATING, MigrationState.UPGRADING):
            raise verb.refusal()
    with service.store.read() as connection:
        row = get_migration(connection)
        mappings = all_mappings(connection)
        marked = connection.scalars(sa.select(source_companies.c.name).where(source_companies.c.replicate)).all()
        left_out = {(r.company_name, r.table_name) for r in connection.execute(sa.select(registry).where(~registry.c.replicate))}
    if not row["source_url"]:
        raise SetupError("no source is connected yet", hint="connect one first: skylift setup --product P --source URL", code="NotSetUp")
    source = open_source(service.box.open(row["source_url"]))
    try:
        target = open_target(service.box.open(row["target_url"]))
        try:
            whole = plan(find_product(row["product_id"]).discover(source), mappings, source.tables, target.max_name_bytes)
            tasks = [task for task in of_companies(whole, marked).tasks if (task.company, task.table_name) not in left_out]
            yield from compare_tables(tasks, source, target, workers=service.settings.workers, stop=stop)
        finally:
            target.close()
    finally:
        source.close()
