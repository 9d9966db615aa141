"""The service: one method per verb of the product, shared by command line, API and dashboard. The only place that decides.

Each verb is one transaction with its checks, its state change and its event row; errors are those of skylift.errors, each with a
stable `code`. What takes long (creating companies, runs, upgrades) is left to the coordinator.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar
from uuid import UUID

import sqlalchemy as sa

from skylift.migration.companies import CompanyVerbs
from skylift.migration.mappings import MappingVerbs
from skylift.migration.replication import ReplicationVerbs
from skylift.migration.service import count_tables, get_row
from skylift.migration.setup import SetupVerbs
from skylift.migration.tokens import TokenVerbs
from skylift.migration.upgrade import UpgradeVerbs
from skylift.model import ProductType, Run
from skylift.products.registry import PRODUCTS
from skylift.query import Expression, Query
from skylift.runs import TableStatus
from skylift.store.tables import TABLES, TEXT

T = TypeVar("T")

# Products are code, not rows; as a table of literals they can be queried like everything else.
TABLES[ProductType] = sa.union_all(*(
    sa.select(sa.literal(p.id, TEXT).label("id"), sa.literal(p.display_name, TEXT).label("display_name")) for p in PRODUCTS.values()
)).subquery("product_types")


class Migration(SetupVerbs, CompanyVerbs, MappingVerbs, ReplicationVerbs, UpgradeVerbs, TokenVerbs):
    """Everything that can be asked of one environment's migration."""

    def select(self, row_type: type[T], query: Query) -> list[T]:
        """Rows of a class of model.py (those of store/tables.py TABLES)."""
        from skylift.store import select

        with self.store.read() as connection:
            return select.select(connection, row_type, query)

    def count(self, row_type: type, where: Expression | None = None) -> int:
        from skylift.store import select

        with self.store.read() as connection:
            return select.count(connection, row_type, where)

    def get(self, row_type: type[T], key: UUID | str) -> T:
        """The row with that key. Raises NotFound."""
        with self.store.read() as connection:
            row = get_row(connection, row_type, key)
            return with_counts(connection, row) if isinstance(row, Run) else row  # type: ignore[return-value]


def with_counts(connection: sa.Connection, run: Run) -> Run:
    """`run` with its three counts, counted from its tables."""
    counts = count_tables(connection, run.run_id)
    return replace(run, tables_successful=counts.get(TableStatus.SUCCESSFUL, 0), tables_failed=counts.get(TableStatus.FAILED, 0),
                   tables_remaining=counts.get(TableStatus.NOT_STARTED, 0) + counts.get(TableStatus.IN_PROGRESS, 0))


