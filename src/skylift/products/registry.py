"""The products there are, in the order in which sourceProductTypes lists them. Source: behaviour.md §2.8."""

from __future__ import annotations

from dataclasses import dataclass

from skylift.connectors import Source
from skylift.errors import SetupError
from skylift.products import Catalogue, Product
from skylift.products.business_central import DYNAMICS_BC, DYNAMICS_BC_LAST
from skylift.products.custom import Custom
from skylift.runs import WarningType


@dataclass(frozen=True, slots=True)
class Unread:
    """A product of the API whose catalogue (where it keeps companies and tables) skylift cannot read yet."""

    id: str
    display_name: str
    upgrades: bool = True
    optional_upgrade: bool = False

    def discover(self, source: Source) -> Catalogue:
        """Always raises SetupError: better refused than migrated by guesswork."""
        raise SetupError(f"skylift cannot read the catalogue of {self.display_name} yet",
                         hint="use the product Custom, which copies the whole database", code="50018")

    def warns_of(self, table_name: str) -> WarningType | None:
        return None

    def preserves(self, table_name: str) -> bool | None:
        return None


PRODUCTS: dict[str, Product] = {product.id: product for product in (
    DYNAMICS_BC, DYNAMICS_BC_LAST, Unread("DynamicsGP", "Dynamics GP"), Unread("DynamicsSL", "Dynamics SL"), Custom())}


def find_product(product_id: str) -> Product:
    """The product with that id. Raises SetupError listing those there are."""
    try:
        return PRODUCTS[product_id]
    except KeyError:
        raise SetupError(f"'{product_id}' is not a source product", code="52010", hint="choose one of "
                         + ", ".join(product.id for product in PRODUCTS.values() if not isinstance(product, Unread))) from None
