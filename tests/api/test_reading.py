import json
from urllib.parse import quote

import pytest

from skylift.api.render import caption, encoded
from skylift.app import create_app
from skylift.runs import (
    CompanyInit,
    CompanySetupStatus,
    ReplicationType,
    RunStatus,
    SqlServerType,
    TableMappingType,
    TableStatus,
)
from skylift.settings import Settings
from skylift.store.tables import companies
from tests.api.conftest import Client, Http, fill, number, open_client

RUNS = "cloudMigrationStatus"
TABLES = "cloudMigrationStatusDetails"
COMPANIES = "cloudMigrationCompanies"


def ids(client, path):
    return [row["runId"] for row in client.rows(path)]


def filtered(client, path, text):
    return client.rows(f"{path}?$filter={quote(text)}")


# ------------------------------------------------------------------ shapes


@pytest.mark.rule("Q1", "H1")
def test_a_collection_has_its_context_and_each_row_its_tag(full):
    answer = full.get(f"companies({number(901)})/{RUNS}?$top=1")
    assert answer.headers["odata-version"] == "4.0"
    assert answer.headers["content-type"] == "application/json; odata.metadata=minimal; charset=utf-8"
    assert answer.json()["@odata.context"] == f"http://testserver/api/v1.0/$metadata#companies({number(901)})/{RUNS}"
    [row] = answer.json()["value"]
    assert next(iter(row)) == "@odata.etag" and row["@odata.etag"].startswith('W/"')


@pytest.mark.rule("Q1", "W1", "W3")
def test_one_entity_repeats_its_tag_in_the_header(full):
    answer = full.get(f"{RUNS}({number(1)})")
    assert answer.json()["@odata.context"].endswith(f"#companies({number(900)})/{RUNS}/$entity")
    assert answer.headers["etag"] == answer.json()["@odata.etag"]
    assert full.get(f"{RUNS}({number(1)})", If_None_Match=answer.headers["etag"]).status_code == 304
    assert full.get(f"{RUNS}({number(1)})", If_None_Match='W/"other"').status_code == 200


@pytest.mark.rule("H4", "E2")
def test_values_are_spelt_as_business_central_does(full):
    [newest] = full.rows(f"{RUNS}?$top=1")
    assert newest["startTime"] == "2026-03-01T23:00:00.358Z"
    assert newest["endTime"] == "0001-01-01T00:00:00Z"
    assert newest["status"] == "In Progress" and newest["details"] == ""
    assert (newest["tablesSuccessful"], newest["tablesFailed"], newest["tablesRemaining"]) == (0, 0, 2)
    company = full.rows(f"{COMPANIES}?$filter=name eq 'CRONUS International Ltd_'")[0]
    assert company["status"] == " " and company["companyInitializationStatus"] == "Unknown"


@pytest.mark.rule("E3", "E4")
def test_schema_version_2_spells_member_names(full):
    [newest] = full.rows(f"{RUNS}?$top=1&$schemaversion=2.0")
    assert newest["status"] == "InProgress"
    rows = full.rows(f"{COMPANIES}?$schemaversion=2.1")
    assert [row["status"] for row in rows] == ["_x0020_", "Error", "Completed", "In_x0020_Progress"]
    assert rows[1]["companyInitializationStatus"] == "Initialized"
    assert full.error(f"{RUNS}?$schemaversion=3.0")[:2] == (400, "BadRequest")


@pytest.mark.rule("E4")
def test_the_default_schema_version_is_a_setting(tmp_path):
    assert Settings().schema_version == "1.0"
    client = open_client(tmp_path, schema_version="2.1")
    with client.http.service.store.write() as connection:
        fill(connection)
    assert client.rows(f"{RUNS}?$top=1")[0]["status"] == "InProgress"
    assert client.rows(f"{RUNS}?$top=1&$schemaversion=1.0")[0]["status"] == "In Progress"
    assert "EnumType" in client.get("$metadata").text and "EnumType" not in client.get("$metadata?$schemaversion=1.0").text


# Captions under schema version 1.0 and names under 2.0, where they differ, in the order of their ordinals. Source: odata.md E2, E3
SPELLINGS = {
    RunStatus: "Failed;In Progress=InProgress;Completed;Upgrade Pending=UpgradePending;Upgrade in Progress=UpgradeInProgress;"
               "Upgrade Failed=UpgradeFailed;Data Repair Pending=RepairDataPending",
    TableStatus: "Failed;In Progress=InProgress;Successful;Warning;Not Started=NotStarted",
    ReplicationType: "Normal;Diagnostic;Full;Azure Data Lake=Azure_x0020_Data_x0020_Lake",
    SqlServerType: "SQLServer;AzureSQL",
    CompanyInit: "Unknown;Not Initialized=Not_x0020_Initialized;Initialization Failed=Initialization_x0020_Failed;Initialized",
    CompanySetupStatus: " =_x0020_;Completed;In Progress=In_x0020_Progress;Error;Missing Permission=Missing_x0020_Permission",
    TableMappingType: "Table;Table Extension=Table_x0020_Extension",
}


@pytest.mark.rule("E2", "E3")
@pytest.mark.parametrize("option", SPELLINGS, ids=lambda option: option.__name__)
def test_every_value_of_an_option_has_its_caption_and_its_name(option):
    expected = [(left, right or left) for left, _, right in (pair.partition("=") for pair in SPELLINGS[option].split(";"))]
    assert [(caption(value), encoded(value)) for value in option] == expected


@pytest.mark.rule("H3")
def test_counts_and_numbers_fit_their_type(full):
    row = full.rows(f"{TABLES}?$filter=tableName eq 'Table 4$app'")[0]
    assert row["totalRecords"] == 2**31 - 1                      # three thousand million rows do not fit an Int32
    sizes = full.get(f"{COMPANIES}?$select=estimatedSize").text
    assert '"estimatedSize":0.125' in sizes
    sizes = full.get(f"{COMPANIES}?$select=estimatedSize&$count=true", Accept="application/json;IEEE754Compatible=true").json()
    assert sizes["value"][1]["estimatedSize"] == "0.375" and sizes["@odata.count"] == "4"


@pytest.mark.rule("H2")
def test_metadata_none_drops_annotations_and_full_adds_them(full):
    bare = full.get(f"{RUNS}?$top=1&$count=true", Accept="application/json;odata.metadata=none").json()
    assert bare.keys() == {"@odata.count", "value"} and "@odata.etag" not in bare["value"][0]
    [row] = full.get(f"{RUNS}?$top=1", Accept="application/json;odata.metadata=full").json()["value"]
    url = f"http://testserver/api/v1.0/companies({number(900)})/{RUNS}({number(12)})"
    assert row["@odata.type"] == "#Microsoft.NAV.cloudMigrationStatus" and row["@odata.id"] == url
    assert row[f"{TABLES}@odata.navigationLink"] == f"{url}/{TABLES}" and row["id@odata.type"] == "#Guid"
    [mapping] = full.get("tableMappings?$format=application/json;odata.metadata=full").json()["value"]
    assert mapping["@odata.editLink"] == mapping["@odata.id"]


@pytest.mark.rule("H2")
@pytest.mark.parametrize("accept", [
    "*/*", "application/json", "application/*", "application/json, text/plain, */*", "text/html;q=0.9,*/*;q=0.8",
    "application/json;odata.metadata=minimal;odata.streaming=true", "application/xml;q=0.1, application/json"])
def test_what_clients_send_as_accept_means_minimal(full, accept):
    assert full.get(RUNS, Accept=accept).headers["content-type"].startswith("application/json; odata.metadata=minimal")


@pytest.mark.rule("P5")
def test_formats_other_than_json_are_refused(full):
    assert full.error(RUNS, Accept="application/atom+xml")[:2] == (406, "BadRequest")
    assert full.error(RUNS, Accept="application/json;odata.metadata=all")[:2] == (406, "BadRequest")
    assert full.error(f"{RUNS}?$format=atom")[:2] == (415, "BadRequest")
    assert full.get(f"{RUNS}?$format=json", Accept="application/xml").status_code == 200


# ------------------------------------------------------------------ paths


@pytest.mark.rule("C3")
def test_the_rows_of_every_company_are_the_same(full):
    assert full.rows(f"companies({number(900)})/{RUNS}") == full.rows(f"companies({number(901)})/{RUNS}") == full.rows(RUNS)


@pytest.mark.rule("C1", "U8")
@pytest.mark.parametrize("path", [
    f"companies(name='Fabrikam%20(UK)')/{RUNS}", f"companies(id={number(901)})/{RUNS}", f"companies({str(number(901)).upper()})/{RUNS}",
    f"{RUNS}?company={number(901)}", f"{RUNS}?Company=Fabrikam+(UK)", f"companies({number(901)})//{RUNS}/"])
def test_a_company_is_chosen_in_path_or_query(full, path):
    assert f"#companies({number(901)})/" in full.get(path).json()["@odata.context"]


@pytest.mark.rule("C1")
def test_a_company_is_chosen_by_header_after_path_and_query(full):
    context = lambda path, **headers: full.get(path, **headers).json()["@odata.context"]  # noqa: E731
    assert f"({number(901)})" in context(RUNS, Company="Fabrikam (UK)")
    assert f"({number(901)})" in context(RUNS, CompanyId=str(number(901)))
    assert f"({number(900)})" in context(f"{RUNS}?company=CRONUS", Company="Fabrikam (UK)")
    assert f"({number(900)})" in context(f"companies({number(900)})/{RUNS}?company=nobody")


@pytest.mark.rule("C2")
@pytest.mark.parametrize("path", [f"companies({number(5)})/{RUNS}", f"companies(name='x')/{RUNS}", f"{RUNS}?company=x",
                                  f"companies({number(5)})"])
def test_a_company_that_is_not_there_is_404(full, path):
    assert full.error(path)[:2] == (404, "Internal_CompanyNotFound")


@pytest.mark.rule("C1", "C2")
def test_without_a_company_named_it_is_the_configured_one_or_the_only_one(tmp_path):
    client = open_client(tmp_path, company="Mine")
    assert "#companies(" in client.get(RUNS).json()["@odata.context"]
    with client.http.service.store.write() as connection:
        fill(connection)                                                            # a second company
    context = client.get(RUNS).json()["@odata.context"]
    assert f"({number(900)})" in context                                            # that of the setting
    renamed = Client(Http(create_app(Settings(home=tmp_path, company="Not there")), client.http.service), client.token)
    assert renamed.error(RUNS)[:2] == (404, "Internal_CompanyNotFound")
    for path in ("", "companies", "subscriptions", "entityDefinitions", "$metadata", f"companies({number(901)})/{RUNS}"):
        assert renamed.get(path).status_code == 200, path
    assert renamed.ask("POST", "$batch", {"requests": []}).status_code == 200
    with client.http.service.store.write() as connection:
        connection.execute(companies.delete().where(companies.c.id == number(900)))
    assert f"({number(901)})" in renamed.get(RUNS).json()["@odata.context"]         # the only one


@pytest.mark.rule("U3")
def test_a_tenant_may_be_named_on_premises_and_links_repeat_it(full):
    client = Client(full.http, full.token, "/BC/api/microsoft/cloudMigration/v1.0")
    link = client.get(f"{RUNS}?tenant=default", Prefer="odata.maxpagesize=1").json()["@odata.nextLink"]
    assert link.startswith("http://testserver/BC/api/microsoft/cloudMigration/v1.0/companies(") and "tenant=default" in link


@pytest.mark.rule("U9", "M3")
def test_details_are_reached_through_their_run_and_back(full):
    rows = full.rows(f"{RUNS}({number(11)})/{TABLES}")
    assert [row["tableName"] for row in rows] == [f"Table {n}$app" for n in range(5)]
    assert full.get(f"{RUNS}({number(11)})/{TABLES}({number(1001)})").json()["id"] == str(number(1001))
    assert full.error(f"{RUNS}({number(12)})/{TABLES}({number(1001)})")[:2] == (404, "Internal_RecordNotFound")
    parent = full.get(f"{TABLES}({number(1001)})/{RUNS}").json()
    assert parent["runId"] == "run-10" and parent["@odata.context"].endswith(f"/{RUNS}/$entity")


@pytest.mark.rule("U5")
def test_misspelt_names_are_served_and_true_ones_answered(full):
    answer = full.get(f"companies({number(900)})/cloudMigrationStatuss({number(1)})").json()
    assert answer["@odata.context"].endswith(f"/{RUNS}/$entity")
    for alias in ("cloudMigrationCompanys", "setupCloudMigrations"):
        assert full.get(alias).status_code == 200
        assert alias not in full.get("$metadata").text + full.get().text


@pytest.mark.rule("U9")
def test_properties_have_paths_of_their_own(full):
    answer = full.get(f"{RUNS}({number(12)})/status")
    assert answer.json() == {
        "@odata.context": f"http://testserver/api/v1.0/$metadata#companies({number(900)})/{RUNS}({number(12)})/status",
        "value": "In Progress"}
    raw = full.get(f"{RUNS}({number(12)})/startTime/$value", Accept="application/json")
    assert raw.text == "2026-03-01T23:00:00.358Z" and raw.headers["content-type"].startswith("text/plain")
    assert full.get(f"{COMPANIES}({number(50)})/replicate/$value").text == "true"


@pytest.mark.rule("P4", "U9")
def test_count_is_a_bare_number(full):
    answer = full.get(f"{TABLES}/$count?$filter=status eq 'Failed'", Accept="application/json")
    assert answer.text == "1" and answer.headers["content-type"].startswith("text/plain")
    assert full.get(f"{RUNS}({number(12)})/{TABLES}/$count").text == "2"


@pytest.mark.rule("X1", "A2", "U7")
@pytest.mark.parametrize("path", ["runs", f"{RUNS}/x", f"{RUNS}({number(1)})/x", f"{RUNS}({number(1)})/status/x", "$metadata/x",
                                  f"{RUNS}/$count/x", f"{RUNS}/$value", f"{RUNS}({number(1)})/status(1)", "CloudMigrationStatus",
                                  f"{RUNS}({number(1)})/Microsoft.NAV.nothing", f"{RUNS}({number(1)})/runReplication"])
def test_a_segment_that_leads_nowhere_is_named(full, path):
    segment = path.replace("(1)", "").rpartition("/")[2]
    assert full.error(path) == (404, "BadRequest_ResourceNotFound", f"Resource not found for the segment '{segment}'.")


@pytest.mark.rule("U8", "X1")
def test_a_key_that_is_not_there_is_404_and_one_that_is_none_400(full):
    assert full.error(f"{RUNS}({number(999)})")[:2] == (404, "Internal_RecordNotFound")
    for key in ("1", "'x'", f"'{number(1)}'", "", f"runId='{number(1)}'", f"name='x',id={number(1)}"):
        status, code, message = full.error(f"{RUNS}({key})")
        assert (status, code) == (400, "BadRequest_InvalidRequestUrl") and "write a GUID" in message
    assert full.get("sourceProductTypes('Custom')").json()["displayName"] == "Custom Migration"
    assert full.error("sourceProductTypes('O''Neil')") == (
        404, "Internal_RecordNotFound", "There is no sourceProductType with the key O'Neil.")
    assert full.error("sourceProductTypes(Custom)")[:2] == (400, "BadRequest_InvalidRequestUrl")


# ------------------------------------------------------------------ order, filter, select


@pytest.mark.rule("Q2")
def test_the_default_order_is_the_resources_own(full):
    assert ids(full, RUNS) == [f"run-{n:02}" for n in range(11, -1, -1)]
    assert [row["name"] for row in full.rows(COMPANIES)] == ["CRONUS International Ltd_", "Zebra*", "Äpfel & Birnen", "äther"]
    assert [row["tableName"] for row in full.rows(f"{TABLES}?$top=2")] == ["Table 0$app", "Table 1$app"]


@pytest.mark.rule("P3", "Q2")
def test_rows_are_ordered_as_asked_and_ties_by_id(full):
    assert ids(full, f"{RUNS}?$orderby=runId&$top=2") == ["run-00", "run-01"]
    assert ids(full, f"{RUNS}?$orderby=status,runId desc&$top=3") == ["run-08", "run-05", "run-02"]       # Failed has the lowest ordinal
    assert ids(full, f"{RUNS}?$orderby=tablesFailed desc&$top=2") == ["run-10", "run-11"]         # ties go the same way
    assert ids(full, f"{RUNS}?$orderby=endTime&$top=1") == ["run-11"]
    assert full.error(f"{RUNS}?$orderby=x") == (
        400, "BadRequest_NotFound", "Could not find a property named 'x' on type 'Microsoft.NAV.cloudMigrationStatus'.")
    assert full.error(f"{RUNS}?$orderby=length(runId)")[0] == 501
    assert full.error(f"{RUNS}?$orderby=runId sideways")[0] == 400


@pytest.mark.rule("F1", "F2", "F3", "F4", "F5", "F6", "E5")
@pytest.mark.parametrize(("text", "expected"), [
    ("status eq 'In Progress'", [11]),
    ("status eq 'InProgress'", [11]),
    ("status eq 'Upgrade Pending' and startTime gt 2026-03-01T18:00Z", [10, 7]),
    ("startTime eq 2026-03-01T14:00:00.358Z", [2]),                      # as it was shown
    ("startTime gt 2026-03-01T22:00:00.358Z", [11]),
    ("startTime lt 2026-03-01T13:00:00.358Z", [0]),
    ("startTime le 2026-03-01T14:00:00.3581234+01:00", [1, 0]),
    ("startTime ge 2026-03-01T23:00:00.3581Z", []),
    ("startTime in (2026-03-01T12:00:00.358Z,2026-03-01T13:00:00.358Z)", [1, 0]),
    ("endTime eq null", [11]),
    ("endTime eq 0001-01-01T00:00:00Z", [11]),
    ("endTime ne null and runId lt 'run-02'", [1, 0]),
    ("details eq null and status eq 'Failed'", [5]),
    ("not (details ne null) and status eq 'Failed'", [5]),
    ("contains(details,'100% of [1')", [10]),
    ("details eq '*[4]_*'", [4]),
    ("details eq '100%*'", [10, 8, 6, 4, 2, 0]),
    ("details ne '*tables' and status ne 'In Progress' and status ne 'U*'", [9, 5, 3]),
    ("runId in ('run-01','run-11')", [11, 1]),
    ("tablesFailed gt 0 or tablesRemaining eq 2", [11, 10]),
    ("tablesFailed gt 0.5", [10]),
    ("startswith(tolower(status),'upgrade') eq true and hour(startTime) lt 14", [1]),
    ("contains(status,' ')", [11, 10, 7, 4, 1]),
    ("status ge 'Upgrade Pending'", [10, 7, 4, 1]),
    ("substring(runId,4) eq '03' or endswith(runId,'-04')", [4, 3]),
    ("length(details) gt 0 and indexof(details,'[') eq 8 and details le '100% of [2'", [10, 0]),
    ("replicationType eq 'Full'", [0]),
    ("id eq 00000000-0000-0000-0000-00000000000C", [11]),
    ("tablesSuccessful eq null", []),
    ("false or true and runId eq 'run-00'", [0]),
])
def test_filters_find_what_they_say(full, text, expected):
    assert ids(full, f"{RUNS}?$filter={quote(text)}") == [f"run-{n:02}" for n in expected]


@pytest.mark.rule("F2")
@pytest.mark.parametrize("version", ["1.0", "2.0", "2.1"])
def test_in_and_or_over_different_fields_are_served_in_every_schema_version(full, version):
    for text, expected in (("runId in ('run-01','run-11')", ["run-11", "run-01"]),
                           ("runId eq 'run-00' or tablesFailed gt 0", ["run-10", "run-00"])):
        assert ids(full, f"{RUNS}?$schemaversion={version}&$filter={quote(text)}") == expected


@pytest.mark.rule("F3")
@pytest.mark.parametrize("text", [f"{TABLES}/any()", f"{TABLES}/all(d:d/status eq 'Failed')", f"{TABLES}/$count gt 1", "round(1.5) eq 2"])
def test_what_is_not_supported_in_a_filter_is_never_answered_unfiltered(full, text):
    assert full.error(f"{RUNS}?$filter={quote(text)}")[:2] == (501, "BadRequest_MethodNotImplemented")
    assert full.error(f"{RUNS}/$count?$filter={quote(text)}")[0] == full.error(f"companies?$expand={RUNS}($filter={quote(text)})")[0] == 501


@pytest.mark.rule("F1", "F4", "F6")
@pytest.mark.parametrize(("text", "expected"), [
    ("name eq 'CRONUS*'", [50]),
    ("name eq 'cronus*'", []),
    ("tolower(name) eq 'cronus*'", [50]),
    ("tolower(name) eq 'äpfel & birnen'", [51]),
    ("toupper(name) eq 'ÄTHER'", [52]),
    ("contains(name,'Ltd_') and replicate", [50]),
    ("contains(name,'_')", [50]),
    ("name eq 'Zebra*'", [53]),
    ("status eq ' '", [50]),
    ("status eq Microsoft.NAV.companySetupStatus'_x0020_'", [50]),
    ("companyInitializationStatus in ('Initialized','Not_x0020_Initialized')", [53, 51]),
    ("estimatedSize gt 0.25", [53]),
    ("replicate eq created", [52, 51]),
    ("not replicate", [53, 51]),
])
def test_filters_over_companies_find_what_they_say(full, text, expected):
    found = filtered(full, COMPANIES, text)
    assert sorted(row["id"] for row in found) == sorted(str(number(n)) for n in expected)


@pytest.mark.rule("F3")
def test_details_are_filtered_by_their_run(full):
    rows = filtered(full, TABLES, "cloudMigrationStatus/status eq 'In Progress'")
    assert {row["runId"] for row in rows} == {"run-11"} and len(rows) == 2


@pytest.mark.rule("P1", "Q1")
def test_select_returns_exactly_what_is_asked(full):
    answer = full.get(f"{RUNS}?$select=runId,status&$top=1").json()
    assert answer["value"][0].keys() == {"@odata.etag", "runId", "status"}
    assert answer["@odata.context"].endswith(f"{RUNS}(runId,status)")
    assert len(full.rows(f"{RUNS}?$select=*")[0]) == 12
    assert full.error(f"{RUNS}?$select=runId,nothing")[:2] == (400, "BadRequest_NotFound")
    assert full.error(f"{RUNS}?$select=")[0] == 400


@pytest.mark.rule("P3", "P4")
def test_top_skip_and_count(full):
    answer = full.get(f"{RUNS}?$top=2&$skip=1&$count=true&$filter=tablesFailed eq 0").json()
    assert answer["@odata.count"] == 11 and [row["runId"] for row in answer["value"]] == ["run-09", "run-08"]
    assert full.rows(f"{RUNS}?$top=0") == []
    for option in ("$top=-1", "$top=a", "$skip=1.5", "$top=", "$count=yes", "$skip=-0"):
        assert full.error(f"{RUNS}?{option}")[:2] == (400, "BadRequest")


# ------------------------------------------------------------------ expand


@pytest.mark.rule("P2")
def test_expand_brings_details_with_options_of_their_own(full):
    path = f"{RUNS}?$top=2&$expand={TABLES}($select=tableName;$filter=status ne 'Failed';$orderby=tableName desc;$top=2;$count=true)"
    newest, before = full.rows(path)
    assert [list(row.values())[1:] for row in before[TABLES]] == [["Table 4$app"], ["Table 2$app"]]
    assert before[f"{TABLES}@odata.count"] == 4 and newest[f"{TABLES}@odata.count"] == 2
    assert full.rows(f"{RUNS}?$expand=*&$top=3")[2][TABLES] == []
    assert TABLES not in full.rows(f"{RUNS}?$top=1")[0]


@pytest.mark.rule("P2")
def test_expand_leads_back_to_the_run(full):
    [row] = full.rows(f"{TABLES}?$top=1&$expand=cloudMigrationStatus($select=runId;$expand={TABLES}($top=1))")
    assert row["cloudMigrationStatus"]["runId"] == "run-10"
    assert row["cloudMigrationStatus"][TABLES][0]["id"] == row["id"]


@pytest.mark.rule("P2", "M3")
def test_companies_expand_any_set(full):
    rows = full.rows(f"companies?$expand={RUNS}($top=1),sourceProductTypes")
    assert [row[RUNS][0]["runId"] for row in rows] == ["run-11", "run-11"] and len(rows[0]["sourceProductTypes"]) == 5
    assert len(full.rows("companies?$expand=*")[0]["tableMappings"]) == 1


@pytest.mark.rule("P2")
@pytest.mark.parametrize(("expand", "status"), [
    ("nothing", 400), ("status", 400), (f"{TABLES}($top=x)", 400), (f"{TABLES}($nope=1)", 400), (f"{TABLES}(", 400),
    (f"{TABLES}($filter=contains(tableName,'a;b)'))", 200), (f"{TABLES}/$count", 501), (f"{TABLES},{TABLES}", 400),
    (f"{TABLES}($levels=2)", 200), (f"{TABLES}($levels=x)", 400), (f"{TABLES}($filter=x eq 1)", 400), ("", 400)])
def test_expand_is_read_strictly(full, expand, status):
    assert full.get(f"{RUNS}?$expand={quote(expand)}").status_code == status


@pytest.mark.rule("P2")
def test_expand_does_not_nest_for_ever(full):
    text = ""
    for n in range(10):
        text = f"{RUNS if n % 2 else TABLES}" + (f"($expand={text})" if text else "")
    assert full.error(f"{TABLES}?$expand={text}")[:2] == (400, "BadRequest")


# ------------------------------------------------------------------ query options


@pytest.mark.rule("Q3", "P5")
@pytest.mark.parametrize(("query", "status", "code"), [
    ("$top=1&$top=2", 400, "BadRequest"), ("$nonsense=1", 400, "BadRequest"), ("$search=x", 501, "BadRequest_MethodNotImplemented"),
    ("$apply=x", 501, "BadRequest_MethodNotImplemented"), ("$compute=x", 501, "BadRequest_MethodNotImplemented"),
    ("$filter=%00", 400, "BadRequest_InvalidRequestUrl"), ("$filter=%ff", 400, "BadRequest_InvalidRequestUrl"),
    ("$filter=" + "x" * 9000, 414, "BadRequest")])
def test_query_options_are_read_strictly(full, query, status, code):
    assert full.error(f"{RUNS}?{query}")[:2] == (status, code)


@pytest.mark.rule("Q3", "U7")
def test_names_without_a_dollar_are_ignored(full):
    assert len(full.rows(f"{RUNS}?filter=nonsense&top=1&x=1&x=2")) == 12
    assert len(full.rows(f"{RUNS}?$filter=status+eq+'In+Progress'")) == 1
    assert len(full.rows("companies/?$filter=name eq 'CRONUS*'")) == 1


@pytest.mark.rule("P1")
def test_collection_options_do_not_apply_to_one_entity(full):
    assert full.error(f"{RUNS}({number(1)})?$filter=status eq 'Failed'")[:2] == (400, "BadRequest")
    assert full.get(f"{RUNS}({number(1)})?$select=runId").json().keys() == {"@odata.context", "@odata.etag", "runId"}


@pytest.mark.rule("W1")
def test_the_etag_does_not_depend_on_what_is_selected(full):
    whole = full.get(f"{RUNS}({number(11)})").headers["etag"]
    assert full.get(f"{RUNS}({number(11)})?$select=runId&$schemaversion=2.0").headers["etag"] == whole
    assert json.loads(full.get(f"{RUNS}?$filter=runId eq 'run-10'").text)["value"][0]["@odata.etag"] == whole
