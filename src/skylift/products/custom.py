"""Custom: any SQL database. The whole database is one company, named as the database."""

from __future__ import annotations

from dataclasses import dataclass

from skylift.connectors import Source
from skylift.errors import SetupError
from skylift.products import Catalogue, FoundCompany, FoundTable
from skylift.products.business_central import MAX_COMPANY_NAME
from skylift.products.naming import refuse_collisions, sql_name, target_name


@dataclass(frozen=True, slots=True)
class Custom:
    id: str = "Custom"
    display_name: str = "Custom Migration"
    upgrades: bool = False

    def discover(self, source: Source) -> Catalogue:
        """Every table of the source, under one company. Raises SetupError if there is none, or names collide."""
        tables = source.tables()
        if not tables:
            raise SetupError(f"'{source.name}' has no table", hint="check the connection string", code="NoTables")
        company = sql_name(source.name)
        if len(company) > MAX_COMPANY_NAME:
            raise SetupError(f"the database name '{source.name}' is over {MAX_COMPANY_NAME} characters, the limit of a company",
                             hint="rename the database or its file", code="CompanyName")
        found = [FoundTable(company, table.name, table) for table in tables]
        refuse_collisions((target_name(company, table.name, 10_000), table.name) for table in tables)
        return Catalogue([FoundCompany(company, source.name)], found, [], "")
