"""Business Central: companies, apps and version read from the source's own catalogue tables, tables told apart by name.

Source: behaviour.md §1 (naming), §2.8 (products), §5.1 (which tables take part), §5.7 (codes), §5.14 (order of checks).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from skylift.connectors import Source
from skylift.errors import SetupError
from skylift.model import App, KeyRange, Table
from skylift.products import Catalogue, FoundCompany, FoundTable
from skylift.products.naming import is_called, refuse_collisions, same_name, split_name, sql_name, target_name
from skylift.runs import WarningType

CURRENT_MAJOR = 29     # the version whose behaviour behaviour.md states
OLDEST_MAJOR = 15      # the first whose tables belong to apps
MAX_COMPANY_NAME = 50  # characters, behaviour.md §2.6

_MEDIA = ("Tenant Media", "Tenant Media Set", "Tenant Media Thumbnails")
_LINK_BUFFER = "Replication Record Link Buffer"    # where a default mapping has record links arrive
_UPGRADE_TAGS = "Upgrade Tags"  # which upgrade steps the source has behind it: the target's own would say something else

_SYSTEM_APP = UUID("63ca2fa4-4f03-4f2b-a480-172fef340d3f")
_BASE_APP = UUID("437dbf0e-84ff-417a-965d-ed2bb9650972")

# Tables of the platform (ids 2,000,000,000 to 2,000,100,000) that are stored, are shared by all companies and belong to no app.
# Feature Key, Record Link and the three Tenant Media tables are of the same kind but take part (§5.1), so they are not here.
_PLATFORM_TABLES = frozenset(same_name(name) for name in """
Active Session|Add-in|AL Database Snapshot|API Web Service|Application Dependency|Application Object Metadata
Application Resource|Chart|Code Coverage|Company|Configuration Package File|Data Archive Media|Database Key Groups
Debugger Breakpoint|Debugger Watch Value|Designed Query|Designed Query Caption|Designed Query Category
Designed Query Column|Designed Query Column Filter|Designed Query Data Item|Designed Query Filter|Designed Query Group
Designed Query Join|Designed Query Management|Designed Query Obj|Designed Query Order By|Designed Query Permission|Device
Document Service|Encrypted Key/Value|Extension Execution Info|Feature Data Update Status|Generic Query
Inplace Installed Application|Installed Application|Intelligent Cloud|Intelligent Cloud Status|Isolated Storage
License Information|Media|Media Set|NAV App|NAV App Capabilities|NAV App Data Archive|NAV App Dependencies|NAV App Extra
NAV App Installed App|NAV App Object Metadata|NAV App Object Prerequisites|NAV App Publish Reference|NAV App Published App
NAV App Resource|NAV App Setting|NAV App Tenant Add-In|NAV App Tenant App|NAV App Tenant Operation|Object
Object Access Intent Override|Object Metadata|Object Metadata Snapshot|Object Options|Object Tracking|OData Edm Type
Page Data Personalization|Profile|Profile Configuration Symbols|Profile Metadata|Profile Page Metadata
Published Application|Report Layout|Report List Translation|Report Settings Override|Scheduled Task|Security Group
Send-To Program|Server Instance|Session Event|Style Sheet|Table Synch. Setup|Tenant Feature Key|Tenant Information
Tenant License State|Tenant Profile|Tenant Profile Extension|Tenant Profile Page Metadata|Tenant Profile Setting
Tenant Report Layout|Tenant Report Layout Selection|Tenant Web Service|Tenant Web Service Columns
Tenant Web Service Filter|Tenant Web Service OData|Token Cache|Upgrade Blob Storage|Web Service|Webhook Notification
Webhook Subscription
""".strip().replace("\n", "|").split("|"))

# Users and permissions, of the platform and of Microsoft's own two apps: the target has its own.
_USER_TABLES = frozenset(same_name(name) for name in (
    "Access Control", "Aggregate Permission Set", "Entitlement", "Entitlement Set", "License Permission",
    "Membership Entitlement", "Metadata Permission", "Metadata Permission Set", "Permission", "Permission Set",
    "Permission Set Link", "Plan", "Tenant Permission", "Tenant Permission Set", "Tenant Permission Set Rel.", "User",
    "User Default Style Sheet", "User Group", "User Group Access Control", "User Group Member",
    "User Group Permission Set", "User Group Plan", "User Metadata", "User Page Metadata", "User Personalization",
    "User Plan", "User Property", "User Security Status"))


@dataclass(frozen=True, slots=True)
class BusinessCentral:
    """A Business Central database of one of the major versions in `majors`. Implements Product."""

    id: str
    display_name: str
    upgrades: bool
    majors: range
    optional_upgrade: bool = False

    def discover(self, source: Source) -> Catalogue:
        """Raises SetupError if the source is no Business Central database, has the wrong version, or names collide."""
        catalogue = [table for table in source.tables() if not table.namespace]     # the application keeps all of its tables in one schema
        by_name = {table.name.casefold(): table for table in catalogue}

        def rows(name: str) -> Iterator[dict[str, Any]]:
            if name.casefold() not in by_name:
                raise SetupError(f"'{source.name}' is not a Business Central database: it has no table '{name}'",
                                 hint="check the connection string, or use the product Custom", code="NotBusinessCentral")
            return _rows(source, by_name[name.casefold()])

        # A server with several tenants keeps the version with each of them; in one database without, it may stand with the database.
        places = ["$ndo$tenantproperty", *(["$ndo$dbproperty"] if "$ndo$dbproperty" in by_name else [])]
        version = next((text for place in places for row in rows(place) if (text := _text(row, "applicationversion"))), "")
        self._check_version(version)
        apps = [_app(row) for row in rows("NAV App Installed App")]
        companies = _companies(rows("Company"))
        tables = [replace(table, preserve=not table.company and self.preserves(table.table_name) is True)
                  for table in _tables(catalogue, {same_name(name): name for name in companies}, {app.id for app in apps})]
        # Without a limit on the length only the names themselves can collide; where the target cuts, plan asks again.
        refuse_collisions((target_name(t.company, t.table_name, 10_000), t.table.name) for t in tables)
        return Catalogue([FoundCompany(name, display) for name, display in companies.items()], tables, apps, version)

    def warns_of(self, table_name: str) -> WarningType | None:
        if any(is_called(table_name, name) for name in _MEDIA):
            return WarningType.TENANT_MEDIA
        return WarningType.RECORD_LINK if is_called(table_name, _LINK_BUFFER) else None

    def preserves(self, table_name: str) -> bool | None:
        if any(is_called(table_name, name) for name in _MEDIA):
            return True
        return False if is_called(table_name, _UPGRADE_TAGS) else None

    def _check_version(self, version: str) -> None:
        head = version.split(".")[0]
        if not head.isdecimal():
            raise SetupError(f"the source does not say which version it is: its application version is '{version}'",
                             hint="set applicationversion in its table $ndo$tenantproperty", code="50018")
        major = int(head)
        if major < OLDEST_MAJOR:
            raise SetupError(f"the source has version {version}; the oldest that can be migrated is {OLDEST_MAJOR}",
                             hint=f"upgrade the source to {OLDEST_MAJOR} or later first", code="50017")
        if major not in self.majors:
            fitting = [f"choose product {product.id}" for product in (DYNAMICS_BC, DYNAMICS_BC_LAST) if major in product.majors]
            wanted = f"version {self.majors[0]}" + (f" to {self.majors[-1]}" if len(self.majors) > 1 else "")
            raise SetupError(f"the source has version {version}; product {self.id} takes {wanted}", code="50018",
                             hint=fitting[0] if fitting else "a source newer than the target cannot be migrated")


DYNAMICS_BC = BusinessCentral(
    "DynamicsBC", f"Dynamics 365 Business Central current version (v.{CURRENT_MAJOR})",
    upgrades=False, majors=range(CURRENT_MAJOR, CURRENT_MAJOR + 1))
DYNAMICS_BC_LAST = BusinessCentral(
    "DynamicsBCLast", "Dynamics 365 Business Central earlier versions",
    upgrades=True, majors=range(OLDEST_MAJOR, CURRENT_MAJOR))


def _rows(source: Source, table: Table) -> Iterator[dict[str, Any]]:
    for batch in source.read(table, KeyRange()):
        for row in batch.to_pylist():
            yield {name.casefold(): value for name, value in row.items()}


def _text(row: dict[str, Any], column: str) -> str:
    return str(row.get(column) or "")


def _app(row: dict[str, Any]) -> App:
    version = ".".join(_text(row, f"version {part}") or "0" for part in ("major", "minor", "build", "revision"))
    try:
        return App(UUID(_text(row, "app id")), _text(row, "name"), _text(row, "publisher"), version)
    except ValueError:
        raise SetupError(f"app '{_text(row, 'name')}' has the id '{_text(row, 'app id')}', which is not a GUID",
                         hint="mend it in the source's table NAV App Installed App", code="NotBusinessCentral") from None


def _companies(rows: Iterator[dict[str, Any]]) -> dict[str, str]:
    """SQL-safe name -> display name, by name. Raises SetupError for names that cannot be held or told apart."""
    names = {_text(row, "name"): _text(row, "display name") for row in rows}
    if not names:
        raise SetupError("the source has no company", hint="its table Company is empty", code="50003")
    unprintable = sorted(name for name in names if any(unicodedata.category(char) == "Cc" for char in name))
    if unprintable:
        raise SetupError(f"company names with non-printing characters: {', '.join(map(repr, unprintable))}",
                         hint="rename these companies in the source", code="50021")
    originals: dict[str, str] = {}
    for name in sorted(names):
        if not name or len(name) > MAX_COMPANY_NAME:
            raise SetupError(f"company name '{name}' has {len(name)} characters; 1 to {MAX_COMPANY_NAME} are possible",
                             hint="rename the company in the source", code="CompanyName")
        other = originals.setdefault(same_name(name), name)
        if other != name:
            raise SetupError(f"companies '{other}' and '{name}' have the same SQL name '{sql_name(name)}'",
                             hint="rename one of them in the source", code="NameCollision")
    return {sql_name(name): names[name] or name for name in sorted(names)}


def _tables(catalogue: list[Table], companies: dict[str, str], installed: set[UUID]) -> Iterator[FoundTable]:
    """The tables that take part (§5.1), in the order of the source's catalogue."""
    for table in catalogue:
        name = None if table.name.startswith("$ndo$") else split_name(table.name, companies)
        if name is None or (name.app_id is not None and name.app_id not in installed):
            continue
        base = same_name(name.base)
        if not name.company and ((name.app_id is None and base in _PLATFORM_TABLES)
                                 or (name.app_id in (None, _SYSTEM_APP, _BASE_APP) and base in _USER_TABLES)):
            continue
        yield FoundTable(name.company, name.table_name, table, name.app_id)
