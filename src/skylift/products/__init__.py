"""What a source product knows: how companies and tables are found and named, and whether an upgrade follows the copy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Protocol
from uuid import UUID

from skylift.connectors import Source
from skylift.errors import CopyError
from skylift.model import App, Table
from skylift.runs import WarningType

NAMED = 5                          # tables that set-up names as not to be copied; of more it tells the number


@dataclass(frozen=True, slots=True)
class FoundCompany:
    name: str                  # SQL-safe name, at most 50 characters: the key
    display_name: str
    estimated_size: Decimal = Decimal(0)    # GB, 0 = not measured


@dataclass(frozen=True, slots=True)
class FoundTable:
    """A table that takes part, resolved against the source catalogue."""

    company: str               # '' = cross-company
    table_name: str            # without company prefix, with $appId where there is one
    table: Table
    app_id: UUID | None = None
    preserve: bool = False     # whether the target's rows are kept unless somebody switches that off


@dataclass(frozen=True, slots=True)
class Catalogue:
    companies: list[FoundCompany]
    tables: list[FoundTable]
    apps: list[App]
    version: str               # application version of the source, '' if it has none
    notes: tuple[str, ...] = ()     # what whoever sets up should know, a sentence each


def measured(catalogue: Catalogue, source: Source) -> Catalogue:
    """`catalogue` with each company's size as estimated by measuring every table, and with what set-up should tell (behaviour.md §5.13).

    A table that can be told already not to move is named; the others can be set up and copied without it.
    """
    sizes = dict.fromkeys((company.name for company in catalogue.companies), 0)
    notes, refused = source.notes(), []
    for found in catalogue.tables:
        try:
            size = source.measure(found.table).size_bytes or 0
        except CopyError as error:
            refused.append(error.message)
            continue
        if found.company:
            sizes[found.company] += size
    if len(refused) > NAMED:
        refused[NAMED:] = [f"and {len(refused) - NAMED} more"]
    if refused:
        notes.append(f"some tables cannot be copied: {'; '.join(refused)}")
    return replace(catalogue, notes=tuple(notes), companies=[
        replace(company, estimated_size=round(Decimal(sizes[company.name]) / 2**30, 6)) for company in catalogue.companies])


class Product(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def display_name(self) -> str: ...
    @property
    def upgrades(self) -> bool: ...    # a finished run waits for runDataUpgrade
    @property
    def optional_upgrade(self) -> bool: ...    # it does not, but an upgrade may follow, where upgrade packs are named

    def discover(self, source: Source) -> Catalogue:
        """Raises SetupError if the source is not of this product, or names collide."""

    def warns_of(self, table_name: str) -> WarningType | None:
        """The type of warning that the number of its rows in the target decides."""

    def preserves(self, table_name: str) -> bool | None:
        """Whether the rows that the target holds of a cross-company table are always kept, or never; None = as one likes (§5.2)."""
