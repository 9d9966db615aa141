"""How the wire spells things: values, options under each schema version, entities, entity tags.

Source: odata.md E1-E5, H2-H4, Q1, W1; behaviour.md §2.2, §2.3.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from typing import Any
from urllib.parse import quote
from uuid import UUID

import msgspec

from skylift.api.declare import EntitySet, Property
from skylift.api.errors import ODataError
from skylift.model import NO_ID, time_text
from skylift.runs import CompanyInit, CompanySetupStatus, ReplicationType, RunStatus, TableMappingType, TableStatus

SCHEMA_VERSIONS = ("1.0", "2.0", "2.1")
UNSET_TIME = datetime(1, 1, 1, tzinfo=UTC)
MOST_INT32 = 2**31 - 1

# Captions (schema version 1.0) and AL member names where they are not the value itself. Source: behaviour.md §2.3
_CAPTIONS: dict[type[StrEnum], dict[Any, str]] = {
    RunStatus: {RunStatus.IN_PROGRESS: "In Progress", RunStatus.UPGRADE_PENDING: "Upgrade Pending",
                RunStatus.UPGRADE_IN_PROGRESS: "Upgrade in Progress", RunStatus.UPGRADE_FAILED: "Upgrade Failed",
                RunStatus.REPAIR_DATA_PENDING: "Data Repair Pending"},
    TableStatus: {TableStatus.IN_PROGRESS: "In Progress", TableStatus.NOT_STARTED: "Not Started"},
}
_MEMBERS: dict[type[StrEnum], dict[Any, str]] = {
    ReplicationType: {ReplicationType.AZURE_DATA_LAKE: "Azure Data Lake"},
    CompanyInit: {CompanyInit.NOT_INITIALIZED: "Not Initialized", CompanyInit.INITIALIZATION_FAILED: "Initialization Failed"},
    CompanySetupStatus: {CompanySetupStatus.NONE: " ", CompanySetupStatus.IN_PROGRESS: "In Progress",
                         CompanySetupStatus.MISSING_PERMISSION: "Missing Permission"},
    TableMappingType: {TableMappingType.TABLE_EXTENSION: "Table Extension"},
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What the client asked the answer to look like."""

    schema_version: str = "1.0"
    metadata: str = "minimal"
    ieee754: bool = False

    @property
    def media_type(self) -> str:
        return f"application/json; odata.metadata={self.metadata}" + ("; IEEE754Compatible=true" if self.ieee754 else "")


# ------------------------------------------------------------------ options


def caption(value: StrEnum) -> str:
    member = _MEMBERS.get(type(value), {}).get(value, value.value)
    return _CAPTIONS.get(type(value), {}).get(value, member)


def encoded(value: StrEnum) -> str:
    """The AL member name, every character outside letters, digits and _ as _xHHHH_ (E3)."""
    name = _MEMBERS.get(type(value), {}).get(value, value.value)
    return re.sub(r"[^A-Za-z0-9_]", lambda m: f"_x{ord(m[0]):04X}_", name)


@lru_cache(typed=True)                 # members of two enums may be equal
def spell(value: StrEnum, schema_version: str) -> str:
    return caption(value) if schema_version == "1.0" else encoded(value)


def read_option(values: type[StrEnum], text: str) -> StrEnum:
    """The value that `text` means: its caption, member name or encoded name, under any schema version (E5). Raises ODataError."""
    for value in values:
        if text in (caption(value), encoded(value), _MEMBERS.get(values, {}).get(value, value.value)):
            return value
    raise ODataError(400, "Application_EvaluateException", f"'{text}' is not an option. The existing options are: "
                     f"{','.join(caption(value) for value in values)}")


def wire_type(prop: Property, schema_version: str) -> str:
    """The Edm type; an AL enum is one of its own from schema version 2.0 on (E1)."""
    if "." in prop.edm:
        return prop.edm
    return "Edm.String" if schema_version == "1.0" else f"Microsoft.NAV.{prop.edm}"


# ------------------------------------------------------------------ values


def value_of(prop: Property, row: Any) -> Any:
    """The Python value behind a property: None only of one that is nullable (H4)."""
    value = prop.read(row) if prop.read else getattr(row, prop.attribute)
    return unset(prop) if value is None and not prop.nullable else value


def unset(prop: Property) -> Any:
    return {"Edm.Guid": NO_ID, "Edm.DateTimeOffset": UNSET_TIME, "Edm.Int32": 0, "Edm.Int64": 0, "Edm.Boolean": False,
            "Edm.Decimal": Decimal(0)}.get(prop.edm, "") if prop.values is None else next(iter(prop.values))


def to_wire(prop: Property, value: Any, shape: Shape) -> Any:
    """`value` as JSON holds it."""
    if prop.values is not None:
        return spell(value, shape.schema_version)
    if isinstance(value, str):
        return value
    if prop.edm == "Edm.Int64" and value is not None:
        return str(value) if shape.ieee754 else value
    match value:
        case UUID():
            return str(value)
        case datetime():
            return time_text(value)
        case bool():
            return value
        case int():
            return min(value, MOST_INT32)      # v1.0 counts in Int32; a table may have more rows
        case Decimal():
            return f"{value:f}" if shape.ieee754 else value
    return value


def plain_text(prop: Property, value: Any, shape: Shape) -> str:
    """The value alone, as /$value answers it."""
    wire = to_wire(prop, value, Shape(shape.schema_version, ieee754=True))
    return str(wire).lower() if isinstance(wire, bool) else str(wire)


def key_text(entity_set: EntitySet, row: Any) -> str:
    """The key as it stands in a URL, between the parentheses."""
    key = getattr(row, entity_set.key.attribute)
    return str(key) if isinstance(key, UUID | int) else quote("'" + key.replace("'", "''") + "'", safe="'")


_encoder = msgspec.json.Encoder(decimal_format="number")


def to_json(document: Any) -> bytes:
    return _encoder.encode(document)


# ------------------------------------------------------------------ entities


def etag(entity_set: EntitySet, row: Any) -> str:
    """Weak tag over the values, however they are spelt (W1)."""
    values = [value_of(p, row) for p in entity_set.tagged]
    digest = hashlib.blake2b(msgspec.json.encode([entity_set.name, values]), digest_size=15).digest()
    return f'W/"{base64.b64encode(digest).decode()}"'


def render_entity(entity_set: EntitySet, row: Any, shape: Shape, url: str, select: Sequence[str] | None = None) -> dict[str, Any]:
    """One entity with its annotations, without context and expansions. `url`: where it can be read."""
    chosen = entity_set.properties if select is None else [p for p in entity_set.properties if p.name in select]
    entity: dict[str, Any] = {}
    if shape.metadata == "full":
        entity |= {"@odata.type": f"#Microsoft.NAV.{entity_set.entity}", "@odata.id": url}
    if shape.metadata != "none":
        entity["@odata.etag"] = etag(entity_set, row)
    if shape.metadata == "full" and len(entity_set.methods(single=True)) > 3:
        entity["@odata.editLink"] = url
    if shape.metadata != "full":
        return entity | {prop.name: to_wire(prop, value_of(prop, row), shape) for prop in chosen}
    for prop in chosen:
        if prop.edm not in ("Edm.String", "Edm.Boolean"):
            kind = wire_type(prop, shape.schema_version)
            if kind != "Edm.String":
                entity[f"{prop.name}@odata.type"] = "#" + kind.replace("Edm.", "")
        entity[prop.name] = to_wire(prop, value_of(prop, row), shape)
    return entity | {f"{n.name}@odata.navigationLink": f"{url}/{n.name}" for n in entity_set.navigations}


def error_body(code: str, message: str, correlation_id: str) -> bytes:
    return to_json({"error": {"code": code, "message": f"{message}  CorrelationId:  {correlation_id}."}})


# ------------------------------------------------------------------ captions of names


def words(name: str) -> str:
    """cloudMigrationStatus -> Cloud Migration Status."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return text[:1].upper() + text[1:]
