"""Custom: any SQL database. Each schema is a company; what is in the default one belongs to a company named as the database."""

from __future__ import annotations

from dataclasses import dataclass

from skylift.connectors import Source
from skylift.errors import SetupError
from skylift.products import Catalogue, FoundCompany, FoundTable
from skylift.products.business_central import MAX_COMPANY_NAME
from skylift.products.naming import refuse_collisions, sql_name, target_name
from skylift.runs import WarningType


@dataclass(frozen=True, slots=True)
class Custom:
    id: str = "Custom"
    display_name: str = "Custom Migration"
    upgrades: bool = False
    optional_upgrade: bool = True

    def discover(self, source: Source) -> Catalogue:
        """Every table of the source, each schema a company. Raises SetupError if there is none, or names collide."""
        tables = source.tables()
        if not tables:
            raise SetupError(f"'{source.name}' has no table", hint="check the connection string", code="NoTables")
        titles = {table.namespace: table.namespace or source.name for table in tables}
        names = {namespace: sql_name(title) for namespace, title in titles.items()}
        for namespace, title in titles.items():
            if len(names[namespace]) > MAX_COMPANY_NAME:
                what = "schema" if namespace else "database"
                raise SetupError(f"the {what} name '{title}' is over {MAX_COMPANY_NAME} characters, the limit of a company",
                                 hint=f"rename the {what}", code="CompanyName")
        found = [FoundTable(names[table.namespace], table.name, table) for table in tables]
        refuse_collisions((target_name(t.company, t.table_name, 10_000), t.table.path) for t in found)
        return Catalogue([FoundCompany(names[namespace], titles[namespace]) for namespace in sorted(titles)], found, [], "")

    def warns_of(self, table_name: str) -> WarningType | None:
        return None

    def preserves(self, table_name: str) -> bool | None:
        return None
