"""Table mappings: which source table fills which target table, where the names differ. Source: behaviour.md §1, §2.9, §3, §5.11."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa

from skylift.engine.plan import mapped_name
from skylift.errors import Conflict, SetupError
from skylift.migration.changes import note
from skylift.migration.service import IfMatch, Service, Verb, get_row
from skylift.model import TableMapping
from skylift.products.naming import parse_source_table, same_name
from skylift.runs import TableMappingType
from skylift.store import to_row
from skylift.store.tables import apps, registry, table_mappings

# Record links arrive in a buffer, from where they are moved by hand. Table 40029 of the app Intelligent Cloud Base.
_DEFAULTS = {product: (TableMapping(UUID(int=0), TableMappingType.TABLE, UUID("58623bfa-0559-4bc2-ae1c-0979c29fd9e0"),
                                    "Intelligent Cloud Base", 40029, "Replication Record Link Buffer", "Record Link", False),)
             for product in ("DynamicsBC", "DynamicsBCLast")}


class MappingVerbs(Service):
    def create_mapping(self, values: Mapping[str, Any]) -> TableMapping:
        """A new mapping; `values`: attributes of TableMapping. Raises SetupError for what a rule forbids, Conflict for a duplicate."""
        with self.verb("change_mappings") as verb:
            mapping = _changed(verb, TableMapping(uuid4()), values)
            note(verb.connection, TableMapping, [mapping.id], created=True)
            verb.connection.execute(table_mappings.insert().values(asdict(mapping)))
            verb.log(f"mapping {mapping.id}", "create", why=_audit(mapping))
            return mapping

    def change_mapping(self, id: UUID, values: Mapping[str, Any], if_match: IfMatch) -> TableMapping:
        with self.verb() as verb:
            before = get_row(verb.connection, TableMapping, id)
            if_match(before)
            verb.permit("change_mappings")
            mapping = _changed(verb, before, values)
            note(verb.connection, TableMapping, [id])
            verb.connection.execute(table_mappings.update().where(table_mappings.c.id == id).values(asdict(mapping)))
            verb.log(f"mapping {id}", "change", why=f"{_audit(before)}; now {_audit(mapping)}")
            return mapping

    def delete_mapping(self, id: UUID, if_match: IfMatch) -> None:
        with self.verb() as verb:
            mapping = get_row(verb.connection, TableMapping, id)
            if_match(mapping)
            verb.permit("change_mappings")
            _delete(verb, table_mappings.c.id == id)

    def delete_all_for_extension(self, id: UUID) -> None:
        """Delete every mapping to the app of this one."""
        with self.verb() as verb:
            mapping = get_row(verb.connection, TableMapping, id)
            verb.permit("change_mappings")
            _delete(verb, table_mappings.c.app_id == mapping.app_id)

    def restore_defaults(self, id: UUID) -> None:
        """Delete all mappings and add the product's own."""
        with self.verb() as verb:
            get_row(verb.connection, TableMapping, id)
            verb.permit("change_mappings")
            _delete(verb, sa.true())
            insert_defaults(verb)


def all_mappings(connection: sa.Connection) -> list[TableMapping]:
    return [to_row(TableMapping, row) for row in connection.execute(sa.select(table_mappings).order_by(table_mappings.c.id)).mappings()]


def insert_defaults(verb: Verb) -> None:
    """Add the product's default mappings that are not there."""
    there = {(mapping.app_id, mapping.table_name) for mapping in all_mappings(verb.connection)}
    for default in _DEFAULTS.get(verb.row["product_id"], ()):
        if (default.app_id, default.table_name) not in there:
            note(verb.connection, TableMapping, [id := uuid4()], created=True)
            verb.connection.execute(table_mappings.insert().values(asdict(replace(default, id=id))))
            verb.log("mappings", "add_default", why=_audit(default))


def _changed(verb: Verb, mapping: TableMapping, values: Mapping[str, Any]) -> TableMapping:
    """`mapping` with `values` applied in the order in which one clears or sets another, and every rule checked."""
    if "target_table_type" in values:
        mapping = replace(mapping, target_table_type=TableMappingType(values["target_table_type"]))
    if "app_id" in values and values["app_id"] != mapping.app_id:
        mapping = replace(mapping, app_id=values["app_id"], table_name="", source_table_name="")
    app = verb.connection.execute(sa.select(apps).where(apps.c.id == mapping.app_id)).first()
    default = next((d for d in _DEFAULTS.get(verb.row["product_id"], ()) if d.app_id == mapping.app_id), None)
    if app is None and default is None:
        raise SetupError(f"app {mapping.app_id} is not published", hint="choose the appId of an app of the source", code="UnknownApp")
    is_table = mapping.target_table_type is TableMappingType.TABLE
    if is_table and app is not None and app.publisher == "Microsoft":
        raise SetupError(f"'{app.name}' is an app of Microsoft, whose tables cannot be mapped",
                         hint="choose another app, or the type Table Extension", code="MicrosoftApp")
    mapping = replace(mapping, extension_name=app.name if app is not None else default.extension_name,  # type: ignore[union-attr]
                      table_id=values.get("table_id", mapping.table_id))
    if "table_name" in values:
        mapping = replace(mapping, table_name=values["table_name"])
        if is_table:
            mapping = replace(mapping, source_table_name=values["table_name"])
    if "source_table_name" in values:
        name, per_company = parse_source_table(values["source_table_name"], mapping.per_company)
        mapping = replace(mapping, source_table_name=name, per_company=per_company)
    if "per_company" in values and values["per_company"] != mapping.per_company:
        if is_table:
            raise SetupError("whether a table is there once per company follows from its source table, for a mapping of type Table",
                             hint="write the source table as [Name] for one that all companies share", code="PerCompany")
        mapping = replace(mapping, per_company=values["per_company"])
    if not mapping.table_name or not mapping.source_table_name:
        raise SetupError("a mapping needs tableName and sourceTableName", hint="send both together with appId", code="MappingIncomplete")
    _check_unique(verb, mapping)
    return mapping


def _check_unique(verb: Verb, mapping: TableMapping) -> None:
    """One target table has one source table, counting the tables that take part by themselves (behaviour.md §5.11)."""
    others = [other for other in all_mappings(verb.connection) if other.id != mapping.id]
    for other in others:
        if mapping.table_id and (other.app_id, other.table_id) == (mapping.app_id, mapping.table_id):
            raise Conflict(f"table {mapping.table_id} of app {mapping.app_id} has a mapping already",
                           hint="change that one", code="SameKey")
        if (mapping.target_table_type is other.target_table_type is TableMappingType.TABLE
                and same_name(mapped_name(other)) == same_name(mapped_name(mapping))):
            raise SetupError(f"'{mapping.table_name}' already gets its rows from '{other.source_table_name}'",
                             hint="a target table has one source table", code="OneSource")
    if mapping.target_table_type is not TableMappingType.TABLE or same_name(mapped_name(mapping)) == same_name(mapping.source_table_name):
        return
    kept = all_mappings(verb.connection)        # with the mapping as it was: what it filled so far is in the registry too
    automatic = {same_name(name) for name in verb.connection.scalars(sa.select(registry.c.table_name).distinct())}
    automatic -= {same_name(name) for other in kept for name in (other.source_table_name, mapped_name(other))}
    if same_name(mapped_name(mapping)) in automatic:
        raise SetupError(f"'{mapping.table_name}' already gets its rows from the source's table of that name",
                         hint="a target table has one source table", code="OneSource")


def _delete(verb: Verb, where: sa.ColumnElement[bool]) -> None:
    rows = [to_row(TableMapping, row) for row in verb.connection.execute(sa.select(table_mappings).where(where)).mappings()]
    note(verb.connection, TableMapping, [mapping.id for mapping in rows], deleted=True)
    verb.connection.execute(table_mappings.delete().where(where))
    for mapping in rows:
        verb.log(f"mapping {mapping.id}", "delete", why=_audit(mapping))


def _audit(mapping: TableMapping) -> str:
    return f"{mapping.target_table_type}: {mapping.source_table_name} -> {mapping.table_name} of {mapping.extension_name}"
