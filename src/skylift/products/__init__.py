"""What a source product knows: how companies and tables are found and named, and whether an upgrade follows the copy."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol
from uuid import UUID

from skylift.connectors import Source
from skylift.model import App, Table


@dataclass(frozen=True, slots=True)
class FoundCompany:
    name: str                  # SQL-safe name, at most 50 characters: the key
    display_name: str
    estimated_size: Decimal    # GB


@dataclass(frozen=True, slots=True)
class FoundTable:
    """A table that takes part, resolved against the source catalogue."""

    company: str               # '' = cross-company
    table_name: str            # without company prefix, with $appId where there is one
    table: Table
    app_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Catalogue:
    companies: list[FoundCompany]
    tables: list[FoundTable]
    apps: list[App]
    version: str               # application version of the source, '' if it has none


class Product(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def display_name(self) -> str: ...
    @property
    def upgrades(self) -> bool: ...    # a finished run waits for runDataUpgrade

    def discover(self, source: Source) -> Catalogue:
        """Raises SetupError if the source is not of this product, or names collide."""
