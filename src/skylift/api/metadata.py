"""What the service says of itself: service document, $metadata (CSDL 4.0 XML), entityDefinitions. Source: odata.md S1, M1-M5, E1."""

from __future__ import annotations

from functools import cache
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from skylift.api.render import caption, encoded, enums, wire_type, words
from skylift.api.resources import COMPANIES, DEFINITIONS, SETS, EntityDefinition, EntitySet

NAMESPACE = "Microsoft.NAV"
_CAPABILITIES = "Org.OData.Capabilities.V1"
_ENGLISH = 1033                                        # LCID of en-US
_COMPLEX = {                                           # the parts of entityDefinitions: name -> properties
    "entityMetadataLabel": {"languageCode": "Edm.Int32", "caption": "Edm.String"},
    "entityMetadataField": {"name": "Edm.String", "captions": f"Collection({NAMESPACE}.entityMetadataLabel)"},
    "entityMetadataAction": {"name": "Edm.String", "captions": f"Collection({NAMESPACE}.entityMetadataLabel)"},
    "entityMetadataEnumMember": {"name": "Edm.String", "value": "Edm.Int32",
                                 "captions": f"Collection({NAMESPACE}.entityMetadataLabel)"},
}


def service_document(root: str, with_context: bool = True) -> dict[str, Any]:
    context = {"@odata.context": f"{root}/$metadata"} if with_context else {}
    return {**context, "value": [{"name": s.name, "kind": "EntitySet", "url": s.name} for s in SETS]}


@cache
def metadata_document(schema_version: str) -> bytes:
    """$metadata as XML: EDMX 4.0 with one schema."""
    edmx = Element("edmx:Edmx", {"Version": "4.0", "xmlns:edmx": "http://docs.oasis-open.org/odata/ns/edmx"})
    reference = SubElement(edmx, "edmx:Reference", Uri=f"https://oasis-tcs.github.io/odata-vocabularies/vocabularies/{_CAPABILITIES}.xml")
    SubElement(reference, "edmx:Include", Namespace=_CAPABILITIES)
    services = SubElement(edmx, "edmx:DataServices")
    schema = SubElement(services, "Schema", {"Namespace": NAMESPACE, "xmlns": "http://docs.oasis-open.org/odata/ns/edm"})
    if schema_version != "1.0":
        for name, values in enums():
            kind = SubElement(schema, "EnumType", Name=name)
            for number, value in enumerate(values):
                SubElement(kind, "Member", Name=encoded(value), Value=str(number))
    for name, properties in _COMPLEX.items():
        kind = SubElement(schema, "ComplexType", Name=name)
        for inner, edm in properties.items():
            SubElement(kind, "Property", Name=inner, Type=edm)
    for entity_set in SETS:
        _entity_type(schema, entity_set, schema_version)
    for entity_set in SETS:
        for action in entity_set.actions:
            element = SubElement(schema, "Action", Name=action.name, IsBound="true")
            SubElement(element, "Parameter", Name="bindingParameter", Type=f"{NAMESPACE}.{entity_set.entity}")
    container = SubElement(schema, "EntityContainer", Name="NAV")
    for entity_set in SETS:
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
        target = f"{NAMESPACE}.{next(s.entity for s in SETS if s.name == navigation.target)}"
        element = SubElement(kind, "NavigationProperty", Name=navigation.name,
                             Type=f"Collection({target})" if navigation.many else target)
        if navigation.partner:
            element.set("Partner", navigation.partner)
        element.set("ContainsTarget", "true")
        if navigation.on and navigation.many:
            SubElement(element, "ReferentialConstraint", Property="runId", ReferencedProperty="runId")


def _entity_set(container: Element, entity_set: EntitySet) -> None:
    element = SubElement(container, "EntitySet", Name=entity_set.name, EntityType=f"{NAMESPACE}.{entity_set.entity}")
    for navigation in entity_set.navigations:
        SubElement(element, "NavigationPropertyBinding", Path=navigation.name, Target=navigation.target)
    for word, flag, verb in (("Insert", "Insertable", entity_set.create), ("Update", "Updatable", entity_set.change),
                             ("Delete", "Deletable", entity_set.delete)):
        record = SubElement(SubElement(element, "Annotation", Term=f"{_CAPABILITIES}.{word}Restrictions"), "Record")
        SubElement(record, "PropertyValue", Property=flag, Bool="true" if verb else "false")


@cache
def entity_definitions() -> tuple[EntityDefinition, ...]:
    """The rows of entityDefinitions: one per entity type and, with its members, one per enum."""
    types = (EntityDefinition(
        s.entity, s.name, _captions(s.entity), _captions(s.name),
        tuple({"name": p.name, "captions": _captions(p.name)} for p in s.properties),
        tuple({"name": f"{NAMESPACE}.{a.name}", "captions": _captions(a.name)} for a in s.actions),
        ()) for s in (COMPANIES, *(s for s in SETS if s not in (COMPANIES, DEFINITIONS))))
    lists = (EntityDefinition(
        name, "", _captions(name), (), (), (),
        tuple({"name": encoded(value), "value": number, "captions": _captions(caption(value), as_is=True)}
              for number, value in enumerate(values)))
        for name, values in enums())
    return (*types, *lists)


def _captions(name: str, as_is: bool = False) -> tuple[dict[str, Any], ...]:
    return ({"languageCode": _ENGLISH, "caption": name if as_is else words(name)},)
