"""What the service says of itself: service document, $metadata (CSDL 4.0 XML), entityDefinitions. Source: odata.md S1, M1-M5, E1."""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from skylift.api.declare import Api, EntityDefinition, EntitySet, Property
from skylift.api.render import caption, encoded, wire_type, words

NAMESPACE = "Microsoft.NAV"
_CAPABILITIES = "Org.OData.Capabilities.V1"
_CORE = "Org.OData.Core.V1"
_ENGLISH = 1033                                        # LCID of en-US
_COMPLEX = {                                           # the parts of entityDefinitions: name -> properties
    "entityMetadataLabel": {"languageCode": "Edm.Int32", "caption": "Edm.String"},
    "entityMetadataField": {"name": "Edm.String", "captions": f"Collection({NAMESPACE}.entityMetadataLabel)"},
    "entityMetadataAction": {"name": "Edm.String", "captions": f"Collection({NAMESPACE}.entityMetadataLabel)"},
    "entityMetadataEnumMember": {"name": "Edm.String", "value": "Edm.Int32",
                                 "captions": f"Collection({NAMESPACE}.entityMetadataLabel)"},
}


def service_document(api: Api, root: str, with_context: bool = True) -> dict[str, Any]:
    context = {"@odata.context": f"{root}/$metadata"} if with_context else {}
    return {**context, "value": [{"name": s.name, "kind": "EntitySet", "url": s.name} for s in api.sets]}


@cache
def metadata_document(api: Api, schema_version: str) -> bytes:
    """$metadata as XML: EDMX 4.0 with one schema."""
    edmx = Element("edmx:Edmx", {"Version": "4.0", "xmlns:edmx": "http://docs.oasis-open.org/odata/ns/edmx"})
    with_parameters = any(action.parameters for s in api.sets for action in s.actions)
    for vocabulary in (_CAPABILITIES, *([_CORE] if with_parameters else [])):
        reference = SubElement(edmx, "edmx:Reference", Uri=f"https://oasis-tcs.github.io/odata-vocabularies/vocabularies/{vocabulary}.xml")
        SubElement(reference, "edmx:Include", Namespace=vocabulary)
    services = SubElement(edmx, "edmx:DataServices")
    schema = SubElement(services, "Schema", {"Namespace": NAMESPACE, "xmlns": "http://docs.oasis-open.org/odata/ns/edm"})
    if schema_version != "1.0":
        for name, values in enums(api):
            kind = SubElement(schema, "EnumType", Name=name)
            for number, value in enumerate(values):
                SubElement(kind, "Member", Name=encoded(value), Value=str(number))
    for name, properties in _COMPLEX.items():
        kind = SubElement(schema, "ComplexType", Name=name)
        for inner, edm in properties.items():
            SubElement(kind, "Property", Name=inner, Type=edm)
    for entity_set in api.sets:
        _entity_type(schema, entity_set, schema_version)
    for entity_set in api.sets:
        for action in entity_set.actions:
            element = SubElement(schema, "Action", Name=action.name, IsBound="true")
            SubElement(element, "Parameter", Name="bindingParameter", Type=f"{NAMESPACE}.{entity_set.entity}")
            for parameter in action.parameters:
                _parameter(element, parameter, schema_version)
    container = SubElement(schema, "EntityContainer", Name="NAV")
    for entity_set in api.sets:
        _entity_set(container, entity_set)
    return b'<?xml version="1.0" encoding="utf-8"?>\n' + tostring(edmx, encoding="utf-8")


def _entity_type(schema: Element, entity_set: EntitySet, schema_version: str) -> None:
    kind = SubElement(schema, "EntityType", Name=entity_set.entity)
    SubElement(SubElement(kind, "Key"), "PropertyRef", Name=entity_set.key.name)
    for prop in entity_set.properties:
        element = SubElement(kind, "Property", Name=prop.name, Type=wire_type(prop, schema_version))
        if prop == entity_set.key:
            element.set("Nullable", "false")
        if prop.max_length:
            element.set("MaxLength", str(prop.max_length))
        if prop.edm == "Edm.Decimal":
            element.set("Scale", "variable")
    for navigation in entity_set.navigations:
        target = f"{NAMESPACE}.{navigation.target.entity}"
        element = SubElement(kind, "NavigationProperty", Name=navigation.name,
                             Type=f"Collection({target})" if navigation.many else target)
        if navigation.partner:
            element.set("Partner", navigation.partner)
        element.set("ContainsTarget", "true")
        if navigation.on and navigation.many:
            here, there = navigation.on
            SubElement(element, "ReferentialConstraint", Property=entity_set.named(here), ReferencedProperty=navigation.target.named(there))


def _parameter(action: Element, parameter: Property, schema_version: str) -> None:
    """One that may be left out is nullable and says so by the term of 4.01 (OData CSDL §12.8)."""
    element = SubElement(action, "Parameter", Name=parameter.name, Type=wire_type(parameter, schema_version))
    if parameter.required or parameter.is_collection:
        element.set("Nullable", "false")
    if parameter.max_length:
        element.set("MaxLength", str(parameter.max_length))
    if not parameter.required:
        SubElement(element, "Annotation", Term=f"{_CORE}.OptionalParameter")


def _entity_set(container: Element, entity_set: EntitySet) -> None:
    element = SubElement(container, "EntitySet", Name=entity_set.name, EntityType=f"{NAMESPACE}.{entity_set.entity}")
    for navigation in entity_set.navigations:
        SubElement(element, "NavigationPropertyBinding", Path=navigation.name, Target=navigation.target.name)
    for word, flag, verb in (("Insert", "Insertable", entity_set.create), ("Update", "Updatable", entity_set.change),
                             ("Delete", "Deletable", entity_set.delete)):
        record = SubElement(SubElement(element, "Annotation", Term=f"{_CAPABILITIES}.{word}Restrictions"), "Record")
        SubElement(record, "PropertyValue", Property=flag, Bool="true" if verb else "false")


def enums(api: Api) -> list[tuple[str, type[StrEnum]]]:
    """The enum types that $metadata has from schema version 2.0 on."""
    return [(p.edm, p.values) for s in api.sets for p in s.properties if p.values and "." not in p.edm]


@cache
def entity_definitions(api: Api) -> tuple[EntityDefinition, ...]:
    """The rows of entityDefinitions: one per entity type and, with its members, one per enum."""
    types = (EntityDefinition(
        s.entity, s.name, _captions(s.entity), _captions(s.name),
        tuple({"name": p.name, "captions": _captions(p.name)} for p in s.properties),
        tuple({"name": f"{NAMESPACE}.{a.name}", "captions": _captions(a.name)} for a in s.actions),
        ()) for s in api.sets if s.row is not EntityDefinition)
    lists = (EntityDefinition(
        name, "", _captions(name), (), (), (),
        tuple({"name": encoded(value), "value": number, "captions": _captions(caption(value), as_is=True)}
              for number, value in enumerate(values)))
        for name, values in enums(api))
    return (*types, *lists)


def _captions(name: str, as_is: bool = False) -> tuple[dict[str, Any], ...]:
    return ({"languageCode": _ENGLISH, "caption": name if as_is else words(name)},)
