import re
from hashlib import sha256
from inspect import signature

import pytest
from lxml import etree

from skylift.api.metadata import metadata_document
from skylift.api.reference import reference
from skylift.api.resources import V1
from skylift.api.resources_v2 import V2
from skylift.migration import Migration

EDM = {"e": "http://docs.oasis-open.org/odata/ns/edm", "x": "http://docs.oasis-open.org/odata/ns/edmx"}
ACTIONS = {
    "cloudMigrationStatus": {"runReplication", "runDataUpgrade", "refreshStatus", "resetCloudData", "completeCloudMigration",
                             "disableReplication"},
    "cloudMigrationCompany": {"createCompaniesMarkedForReplication", "initializeCompany"},
    "setupCloudMigration": {"installedIntegrationRuntime", "completeSetup"},
    "tableMapping": {"restoreDefaults", "deleteAllForExtension"},
}


APIS = pytest.mark.parametrize("api", [V1, V2], ids=lambda api: api.version)


def document(version="1.0", api=V1):
    return etree.fromstring(metadata_document(api, version))


def find(tree, path):
    return tree.xpath(path, namespaces=EDM)


@pytest.mark.rule("M1")
def test_metadata_is_xml_whatever_the_client_accepts(full):
    answer = full.get("$metadata", Accept="application/json")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("application/xml")
    assert full.get("$metadata?$format=xml").status_code == 200
    assert answer.content == metadata_document(V1, "1.0")
    assert full.get("$metadata?$schemaversion=2.1").content == metadata_document(V1, "2.1")


@pytest.mark.rule("S1")
def test_the_service_document_names_the_sets_that_metadata_has(full):
    answer = full.get().json()
    names = [entry["name"] for entry in answer["value"]]
    assert answer["@odata.context"] == "http://testserver/api/v1.0/$metadata" and len(names) == 9
    assert all(entry == {"name": name, "kind": "EntitySet", "url": name} for entry, name in zip(answer["value"], names, strict=True))
    assert names == find(document(), "//e:EntitySet/@Name") and full.http.get("/api/v1.0/", headers={
        "Authorization": f"Bearer {full.token}"}).json() == answer


@pytest.mark.rule("M2")
@APIS
def test_every_name_that_metadata_uses_is_declared_in_it(api):
    for version in ("1.0", "2.0"):
        tree = document(version, api)
        known = {f"Microsoft.NAV.{name}" for name in find(tree, "//e:EntityType/@Name|//e:ComplexType/@Name|//e:EnumType/@Name")}
        used = {name.removeprefix("Collection(").removesuffix(")") for name in find(tree, "//@Type|//@EntityType")}
        assert {name for name in used if not name.startswith("Edm.")} <= known
        for kind in find(tree, "//e:EntityType"):
            names = find(kind, "e:Property/@Name")
            assert find(kind, "e:Key/e:PropertyRef/@Name") == names[:1] and len(set(names)) == len(names)
            assert find(kind, "e:Property[@Nullable='false']/@Name") == names[:1]


@pytest.mark.rule("M2", "M3")
def test_details_are_constrained_to_their_run_and_sizes_have_any_scale():
    tree = document()
    status = find(tree, "//e:EntityType[@Name='cloudMigrationStatus']")[0]
    [navigation] = find(status, "e:NavigationProperty")
    assert dict(navigation.attrib) == {
        "Name": "cloudMigrationStatusDetails", "Type": "Collection(Microsoft.NAV.cloudMigrationStatusDetail)",
        "Partner": "cloudMigrationStatus", "ContainsTarget": "true"}
    assert dict(navigation[0].attrib) == {"Property": "runId", "ReferencedProperty": "runId"}
    assert find(tree, "//e:EntityType[@Name='cloudMigrationCompany']/e:Property[@Name='estimatedSize']/@Scale") == ["variable"]


# Every type as odata.md M2 has it: set; properties as G Guid, T DateTimeOffset, I Int32, B Boolean, D Decimal, E enum, S<length> String.
_AUDIT = "systemCreatedAt T, systemCreatedBy G, systemModifiedAt T, systemModifiedBy G"
TYPES = {
    "company": ("companies", f"id G, systemVersion S, name S30, displayName S250, businessProfileId S250, {_AUDIT}"),
    "cloudMigrationCompany": (
        "cloudMigrationCompanies", "id G, name S50, replicate B, displayName S250, estimatedSize D, status E, created B, "
        "companyInitializationStatus S, companyInitializationError S"),
    "cloudMigrationStatus": (
        "cloudMigrationStatus", "id G, runId S50, startTime T, endTime T, replicationType S, status S, source S250, details S, "
        "tablesSuccessful I, tablesFailed I, tablesRemaining I"),
    "cloudMigrationStatusDetail": (
        "cloudMigrationStatusDetails", "id G, runId S50, companyName S250, tableName S250, status S, recordsCopied I, totalRecords I, "
        "errors S2048"),
    "setupCloudMigration": (
        "setupCloudMigration", "id G, productId S250, sqlServerType S, sqlConnectionString S, runtimeName S, runtimeKey S"),
    "sourceProductType": ("sourceProductTypes", "id S250, displayName S250"),
    "tableMapping": (
        "tableMappings", "id G, targetTableType E, appId G, extensionName S250, tableId I, tableName S30, sourceTableName S128, "
        "dataPerCompany B"),
    "subscriptions": (
        "subscriptions", "subscriptionId S150, notificationUrl S, resource S, userId G, lastModifiedDateTime T, clientState S2048, "
        f"expirationDateTime T, {_AUDIT}"),
}
EDM_NAMES = {"G": "Edm.Guid", "T": "Edm.DateTimeOffset", "I": "Edm.Int32", "B": "Edm.Boolean", "D": "Edm.Decimal", "S": "Edm.String",
             "E": "Edm.String"}


@pytest.mark.rule("M2", "M3", "E1")
@pytest.mark.parametrize("entity", TYPES)
def test_a_type_has_the_properties_of_the_specification_in_both_schema_versions(entity):
    name, properties = TYPES[entity]
    for version in ("1.0", "2.0"):
        tree = document(version)
        [kind] = find(tree, f"//e:EntityType[@Name='{entity}']")
        enums = {"status": "Microsoft.NAV.companySetupStatus", "targetTableType": "Microsoft.NAV.migrationTableType"}
        expected = []
        for item in properties.split(", "):
            prop, letter = item.split(" ")
            edm = EDM_NAMES[letter[0]] if letter != "E" or version == "1.0" else enums[prop]
            expected.append((prop, edm, letter[1:] or None))
        assert [(p.get("Name"), p.get("Type"), p.get("MaxLength")) for p in find(kind, "e:Property")] == expected
        assert find(tree, f"//e:EntitySet[@Name='{name}']/@EntityType") == [f"Microsoft.NAV.{entity}"]
        assert set(find(kind, "e:NavigationProperty/@ContainsTarget")) <= {"true"}


@pytest.mark.rule("M3")
def test_a_company_leads_to_every_set_and_details_to_their_run_and_back():
    tree = document()
    ways = {(kind.get("Name"), way.get("Name")): (way.get("Type"), way.get("Partner")) for kind in find(tree, "//e:EntityType")
            for way in find(kind, "e:NavigationProperty")}
    assert ways == {("company", name): (f"Collection(Microsoft.NAV.{entity})", None) for entity, (name, _) in TYPES.items()
                    if name not in ("companies", "subscriptions")} | {
        ("cloudMigrationStatus", "cloudMigrationStatusDetails"): (
            "Collection(Microsoft.NAV.cloudMigrationStatusDetail)", "cloudMigrationStatus"),
        ("cloudMigrationStatusDetail", "cloudMigrationStatus"): ("Microsoft.NAV.cloudMigrationStatus", "cloudMigrationStatusDetails")}


@pytest.mark.rule("M1", "M4")
def test_every_action_binds_to_its_type_by_the_word_clients_look_for():
    found = {}
    for action in find(document(), "//e:Action[@IsBound='true']"):
        [parameter] = action
        assert parameter.get("Name") == "bindingParameter"
        found.setdefault(parameter.get("Type").removeprefix("Microsoft.NAV."), set()).add(action.get("Name"))
    assert found == ACTIONS


@pytest.mark.rule("E1", "E3")
def test_enums_are_types_from_schema_version_2_on():
    assert find(document("1.0"), "//e:EnumType") == []
    tree = document("2.0")
    assert find(tree, "//e:EnumType[@Name='companySetupStatus']/e:Member/@Name") == [
        "_x0020_", "Completed", "In_x0020_Progress", "Error", "Missing_x0020_Permission"]
    assert find(tree, "//e:EntityType[@Name='tableMapping']/e:Property[@Name='targetTableType']/@Type") == [
        "Microsoft.NAV.migrationTableType"]
    assert find(tree, "//e:EntityType[@Name='cloudMigrationStatus']/e:Property[@Name='status']/@Type") == ["Edm.String"]


@pytest.mark.rule("M5")
def test_capabilities_say_what_may_be_written():
    writable = {name: [value == "true" for value in find(entity_set, "e:Annotation//e:PropertyValue/@Bool")]
                for entity_set in find(document(), "//e:EntitySet") for name in [entity_set.get("Name")]}
    assert {name for name, flags in writable.items() if any(flags)} == {
        "cloudMigrationCompanies", "setupCloudMigration", "tableMappings", "subscriptions"}
    assert writable["cloudMigrationCompanies"] == [False, True, False] and writable["setupCloudMigration"] == [True, True, False]


@APIS
def test_every_declared_verb_is_one_of_the_service(api):
    verbs = {action.verb for s in api.sets for action in s.actions} | {v for s in api.sets for v in (s.create, s.change, s.delete) if v}
    assert all(getattr(Migration, verb.__name__, None) is verb for verb in verbs)
    assert len({a.name for s in V1.sets for a in s.actions}) == 12


@APIS
def test_every_attribute_is_one_of_its_row_and_every_parameter_one_of_its_verb(api):
    for entity_set in api.sets:
        assert {p.attribute for p in entity_set.properties if not p.read} <= set(entity_set.row.__dataclass_fields__), entity_set.name
        for action in entity_set.actions:
            assert {p.attribute for p in action.parameters} <= set(signature(action.verb).parameters), action.name


@APIS
def test_what_is_computed_or_may_be_unknown_is_explained_with_its_unit(api):
    for entity_set in api.sets:
        for prop in entity_set.properties:
            assert prop.about or not (prop.computed or prop.read or prop.nullable), prop.name
            if re.search("PerSecond|Bytes$|Ms$", prop.name):
                assert re.search(r"a second|bytes|milliseconds", prop.about), prop.name


def test_parameters_are_declared_and_those_that_may_be_left_out_say_so():
    found = {action.get("Name"): {p.get("Name"): (p.get("Type"), p.get("Nullable"), bool(len(p))) for p in action[1:]}
             for action in find(document(api=V2), "//e:Action[@IsBound='true']") if action[0].get("Name") == "bindingParameter"}
    assert found["cancel"] == found["pause"] == {"reason": ("Edm.String", None, True)}
    assert found["forceCompletion"] == {"reason": ("Edm.String", "false", False)}
    assert found["runDataUpgrade"] == {"packs": ("Collection(Edm.String)", "false", True), "company": ("Edm.String", None, True),
                                       "ifCurrent": ("Edm.Boolean", None, True)}
    assert found["resetCloudData"] == {} and find(document(api=V2), "//e:Annotation[@Term='Org.OData.Core.V1.OptionalParameter']")
    assert b"OptionalParameter" not in metadata_document(V1, "1.0") and b"Org.OData.Core" not in metadata_document(V1, "1.0")


@pytest.mark.parametrize(("version", "digest"), [
    ("1.0", "3527db37b34e0fb10897abe63aa276bbaaf007d86dac31535be938391b825924"),
    ("2.0", "2c4eac2e09382b6de9c32a8b35f40e2d957a75d57c8e1df114c54faa3650865c")])
def test_the_metadata_of_v1_is_byte_for_byte_what_clients_were_made_from(version, digest):
    assert sha256(metadata_document(V1, version)).hexdigest() == digest


def test_entity_definitions_caption_every_type_and_property(full):
    [company] = full.rows("entityDefinitions?$filter=entitySetName eq 'cloudMigrationCompanies'")
    assert company["entityCaptions"] == [{"languageCode": 1033, "caption": "Cloud Migration Company"}]
    assert {p["name"]: p["captions"][0]["caption"] for p in company["properties"]}["estimatedSize"] == "Estimated Size"
    assert [a["name"] for a in company["actions"]][1] == "Microsoft.NAV.initializeCompany"
    assert full.get("entityDefinitions('company')").json()["entitySetName"] == "companies"
    assert full.get("entityDefinitions('companySetupStatus')").json()["enumMembers"][0]["name"] == "_x0020_"
    assert full.get("entityDefinitions/$count").text == "10"
    assert full.error("entityDefinitions?$filter=properties eq 'x'")[0] == 501
    assert full.error("entityDefinitions('company')/properties/$value")[0] == 400


@pytest.mark.parametrize(("api", "page"), [(V1, "reference.md"), (V2, "reference-v2.md")])
def test_the_reference_pages_are_up_to_date(request, api, page):
    assert (request.config.rootpath / "docs" / page).read_text("utf-8") == reference(api)
