"""The service: one method per verb of the product, shared by command line, API and dashboard. The only place that decides.

Each verb is one transaction with its checks, its state change and its event row; errors are those of skylift.errors, each with a
stable `code`. What takes long (creating companies, runs, upgrades) is left to the coordinator.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar, cast
from uuid import UUID

from skylift.errors import NotFound
from skylift.migration.assessment import AssessmentVerbs
from skylift.migration.checklist import ChecklistVerbs
from skylift.migration.companies import CompanyVerbs
from skylift.migration.ending import EndingVerbs
from skylift.migration.mappings import MappingVerbs
from skylift.migration.replication import ReplicationVerbs
from skylift.migration.service import get_row
from skylift.migration.setup import SetupVerbs
from skylift.migration.standing import complete
from skylift.migration.switches import TableVerbs
from skylift.migration.tokens import TokenVerbs
from skylift.migration.upgrade import UpgradeVerbs
from skylift.migration.validation import ValidationVerbs
from skylift.migration.warnings import WarningVerbs
from skylift.migration.webhooks import WebhookVerbs
from skylift.model import ProductType, Run, Standing, Subscription
from skylift.products.registry import PRODUCTS
from skylift.query import Attribute, Call, Expression, Literal, Query
from skylift.store import select

T = TypeVar("T")

_PRODUCT_TYPES = [ProductType(product.id, product.display_name) for product in PRODUCTS.values()]


class Migration(SetupVerbs, CompanyVerbs, MappingVerbs, TableVerbs, ReplicationVerbs, UpgradeVerbs, EndingVerbs, TokenVerbs, WebhookVerbs,
                AssessmentVerbs, ValidationVerbs, WarningVerbs, ChecklistVerbs):
    """Everything that can be asked of one environment's migration."""

    def select(self, row_type: type[T], query: Query) -> list[T]:
        """Rows of a class of model.py: those of store/tables.py, and ProductType."""
        with self.store.read() as connection:
            rows = select.select(connection, row_type, replace(query, where=_there(row_type, query.where)), _unstored(row_type))
            return cast(list[T], [complete(connection, cast(Standing, row), self.box) for row in rows]) if row_type is Standing else rows

    def count(self, row_type: type, where: Expression | None = None) -> int:
        with self.store.read() as connection:
            return select.count(connection, row_type, _there(row_type, where), _unstored(row_type))

    def get(self, row_type: type[T], key: UUID | str) -> T:
        """The row with that key, a run with its counts. Raises NotFound."""
        if row_type is ProductType:
            product = next((product for product in _PRODUCT_TYPES if product.id == key), None)
            if product is None:
                raise NotFound(f"there is no product '{key}'")
            return cast(T, product)
        with self.store.read() as connection:
            if not issubclass(row_type, Run):
                return get_row(connection, row_type, key)
        rows = self.select(row_type, Query(Call("eq", (Attribute("id"), Literal(key))), top=1))
        if not rows:
            raise NotFound(f"there is no run with the key {key}")
        return rows[0]


def _there(row_type: type, where: Expression | None) -> Expression | None:
    """`where`, and not expired: a subscription has vanished then, also before the deliverer removes it (odata.md K2)."""
    if row_type is not Subscription:
        return where
    living = Call("gt", (Attribute("expires_at"), Literal(datetime.now(UTC))))
    return Call("and", (living, where)) if where else living


def _unstored(row_type: type) -> list[Any] | None:
    """The rows of a class whose rows are code."""
    return _PRODUCT_TYPES if row_type is ProductType else None
