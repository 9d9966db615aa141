import sqlite3
from contextlib import closing
from decimal import Decimal
from types import SimpleNamespace

import pytest

from skylift.api.apis import APIS
from skylift.api.declare import EntityDefinition
from skylift.api.render import etag, unset
from skylift.api.resources import V1
from skylift.sample import create_sample
from skylift.store.tables import apps
from tests.api.conftest import START, fill, number, open_client, table_count
from tests.migration.lab import Lab

SETUP = "setupCloudMigration"
COMPANIES = "cloudMigrationCompanies"
RUNS = "cloudMigrationStatus"
MAPPINGS = "tableMappings"
ZERO = str(number(0))


@pytest.fixture
def source(tmp_path):
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database, database:
        database.execute("create table item (id integer primary key, name text)")
        database.executemany("insert into item values (?, ?)", [(n, f"item {n}") for n in range(9)])
    return tmp_path / "shop.db"


@pytest.fixture
def lab(client, source):
    return Lab(client.http.service, source)


def connect(client, source, **more):
    answer = client.ask("POST", SETUP, {"productId": "Custom", "sqlServerType": "AzureSQL",
                                        "sqlConnectionString": f"sqlite:///{source}"} | more)
    assert answer.status_code == 201, answer.text
    return answer


def act(client, path, method="POST", **more):
    return client.ask(method, path, **more)


def ready(client, lab):
    """Set up through the API, with the one company marked and created; its id."""
    setup = connect(client, lab.source).json()["id"]
    company = client.rows(COMPANIES)[0]["id"]
    assert client.ask("PATCH", f"{COMPANIES}({company})", {"replicate": True}, If_Match="*").status_code == 200
    assert act(client, f"{SETUP}({setup})/Microsoft.NAV.completeSetup").status_code == 204
    lab.work()
    return company


# ------------------------------------------------------------------ set-up


@pytest.mark.rule("W8", "W4")
def test_a_setup_is_made_once_and_keeps_its_secrets(client, source):
    answer = connect(client, source)
    assert answer.headers["location"] == answer.json()["@odata.context"].replace("$metadata#", "").replace(
        "/$entity", f"({answer.json()['id']})")
    assert answer.json()["sqlConnectionString"] == f"sqlite:///{source}"
    [read] = client.rows(SETUP)
    assert read["sqlConnectionString"] == read["runtimeName"] == read["runtimeKey"] == ""
    assert read["@odata.etag"] == answer.headers["etag"] and (read["productId"], read["sqlServerType"]) == ("Custom", "AzureSQL")
    assert client.error(SETUP, "POST", body={"productId": "Custom"})[:2] == (400, "Application_DialogException")


@pytest.mark.rule("W8")
def test_a_setup_without_runtime_hands_one_out(client):
    answer = client.ask("POST", SETUP, {"productId": "Custom", "sqlServerType": "SQLServer"}).json()
    assert answer["runtimeName"] and answer["runtimeKey"]
    [read] = client.rows(SETUP)
    assert read["runtimeName"] == read["runtimeKey"] == ""
    again = client.ask("PATCH", f"{SETUP}({answer['id']})", {"sqlServerType": "SQLServer"}, If_Match=answer["@odata.etag"]).json()
    assert again["runtimeKey"] == answer["runtimeKey"]


@pytest.mark.rule("W8", "A3")
@pytest.mark.parametrize(("body", "message"), [
    ({"productId": "Nothing"}, "'Nothing' is not a source product. Choose one of"),
    ({"productId": "Custom", "sqlServerType": "AzureSQL"}, "The source is not named"),
    ({"productId": "Custom", "sqlServerType": "AzureSQL", "sqlConnectionString": "nonsense://x"}, "nonsense"),
    ({"productId": "Custom", "sqlServerType": "AzureSQL", "sqlConnectionString": "sqlite:////no/such/file.db"}, "/no/such/file.db"),
])
def test_a_wrong_setup_is_a_sentence_with_a_hint(client, body, message):
    answer = client.ask("POST", SETUP, body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "Application_DialogException")
    assert message in answer.json()["error"]["message"] and answer.headers["x-skylift-code"]
    assert client.rows(SETUP) == []


# ------------------------------------------------------------------ PATCH, POST, DELETE


@pytest.mark.rule("W1", "W2")
def test_a_patch_needs_a_tag_and_a_current_one(client, source):
    connect(client, source)
    [company] = client.rows(COMPANIES)
    path, tag = f"{COMPANIES}({company['id']})", company["@odata.etag"]
    assert client.error(path, "PATCH", body={"replicate": True})[:2] == (400, "BadRequest_InvalidToken")
    assert client.error(path, "PATCH", body={"replicate": True}, If_Match="nonsense")[:2] == (400, "BadRequest_InvalidToken")
    assert client.error(path, "PATCH", body={"replicate": True}, If_Match='W/"x"') == (
        409, "Request_EntityChanged", "Another user has already changed the record.")
    answer = client.ask("PATCH", path, {"replicate": True}, If_Match=f'W/"x", {tag}')
    assert answer.status_code == 200 and answer.json()["replicate"] is True
    assert answer.headers["etag"] == answer.json()["@odata.etag"] != tag
    assert client.error(path, "PATCH", body={"replicate": False}, If_Match=tag)[:2] == (409, "Request_EntityChanged")
    assert client.ask("PATCH", path, {}, If_Match="*").json() == answer.json()


@pytest.mark.rule("W1")
@pytest.mark.parametrize("entity_set", [s for api in APIS for s in api.sets if s.row is not EntityDefinition], ids=lambda s: s.name)
def test_the_etag_changes_with_every_value_that_is_shown_and_stored(entity_set):
    values = {"Edm.Guid": number(3), "Edm.Int32": 5, "Edm.Int64": 5, "Edm.Boolean": True, "Edm.Decimal": Decimal("0.5"),
              "Edm.DateTimeOffset": START}
    row = SimpleNamespace(**{p.attribute: unset(p) for p in entity_set.properties})
    tag = etag(entity_set, row)
    for prop in (p for p in entity_set.properties if not (p.read or p.is_collection)):
        other = list(prop.values)[1] if prop.values else values.get(prop.edm, "x")
        changed = SimpleNamespace(**vars(row) | {prop.attribute: other})
        assert (etag(entity_set, changed) != tag) is not prop.secret, prop.name


@pytest.mark.rule("W4", "W5")
def test_what_was_read_may_be_sent_back_with_one_change(client, source):
    connect(client, source)
    [company] = client.rows(COMPANIES)
    path = f"{COMPANIES}({company['id']})"
    answer = client.ask("PATCH", path, company | {"replicate": True, "@odata.context": "x"}, If_Match=company["@odata.etag"])
    assert answer.status_code == 200
    assert client.error(path, "PATCH", body={"displayName": "x"}, If_Match="*") == (
        400, "BadRequest_InvalidOperation", "Control 'displayName' is read-only")
    assert client.error(path, "PATCH", body={"id": str(number(3))}, If_Match="*")[1] == "BadRequest_InvalidOperation"


@pytest.mark.rule("W5", "E5")
@pytest.mark.parametrize(("body", "code", "message"), [
    ("", "BadRequest", "The body is not JSON"), ("{", "BadRequest", "The body is not JSON"), ("[]", "BadRequest", "must be a JSON object"),
    ("1", "BadRequest", "must be a JSON object"), ('{"nothing":1}', "BadRequest", "The property 'nothing' does not exist on type"),
    ('{"replicate":"true"}', "BadRequest", "'replicate' is not of type Edm.Boolean"), ('{"replicate":null}', "BadRequest", "'replicate'"),
    ('{"replicate":1}', "BadRequest", "'replicate'"), ('{"id":5}', "BadRequest", "'id' is not of type Edm.Guid"),
    ('{"id":"5"}', "Application_InvalidGUID", "'5' of 'id'"), ('{"status":"Nope"}', "Application_EvaluateException",
                                                            "'Nope' is not an option. The existing options are:  ,Completed,In Progress"),
    ('{"estimatedSize":"x"}', "BadRequest", "'estimatedSize'"), ("[" * 100_000, "BadRequest", "must be a JSON object"),
    ('{"replicate":' + "[" * 100_000, "BadRequest", "is not JSON"),
    ('{"replicate":' + "[" * 900 + "]" * 900 + "}", "BadRequest", "'replicate'"),
    (b"\xff", "BadRequest", "The body is not JSON"),
])
def test_bodies_are_read_strictly(client, source, body, code, message):
    connect(client, source)
    [company] = client.rows(COMPANIES)
    refused = client.error(f"{COMPANIES}({company['id']})", "PATCH", body=body, If_Match="*", Content_Type="application/json")
    assert refused[:2] == (400, code) and message in refused[2]
    assert client.rows(COMPANIES) == [company]


@pytest.fixture
def mapped(client, source):
    """A client on a migration whose environment knows an app to map tables of."""
    connect(client, source)
    with client.http.service.store.write() as connection:
        connection.execute(apps.insert().values(id=number(7), name="Mine", publisher="Me", version="1.0"))
    return client


MAPPING = {"appId": str(number(7)), "tableId": 50_000, "tableName": "Target", "sourceTableName": "[Origin]"}


@pytest.mark.rule("W4", "W3")
def test_a_mapping_is_made_changed_and_deleted(mapped):
    answer = mapped.ask("POST", MAPPINGS, MAPPING | {"targetTableType": "Table", "id": ZERO, "extensionName": ""})
    made = answer.json()
    assert answer.status_code == 201 and answer.headers["location"].endswith(f"/{MAPPINGS}({made['id']})")
    assert (made["extensionName"], made["sourceTableName"], made["dataPerCompany"]) == ("Mine", "Origin", False)
    path = f"{MAPPINGS}({made['id']})"
    changed = mapped.ask("PATCH", path, {"targetTableType": "Table_x0020_Extension", "dataPerCompany": True}, If_Match=made["@odata.etag"])
    assert changed.json()["targetTableType"] == "Table Extension" and changed.json()["dataPerCompany"] is True
    assert changed.json()["tableName"] == made["tableName"] and changed.json()["tableId"] == made["tableId"]      # were not sent
    assert mapped.error(path, "DELETE", If_Match=made["@odata.etag"])[:2] == (409, "Request_EntityChanged")
    assert mapped.ask("DELETE", path).status_code == 204
    assert mapped.error(path, "DELETE")[:2] == (404, "Internal_RecordNotFound")


@pytest.mark.rule("W5")
def test_a_mapping_is_unique_by_app_and_table(mapped):
    assert mapped.ask("POST", MAPPINGS, MAPPING, If_Match='W/"stale"').status_code == 201              # which POST ignores
    assert mapped.error(MAPPINGS, "POST", body=MAPPING | {"tableName": "Other"})[:2] == (409, "Internal_EntityWithSameKeyExists")


@pytest.mark.rule("W5")
@pytest.mark.parametrize(("change", "code"), [
    ({"tableName": "x" * 31}, "Application_StringExceededLength"), ({"appId": "x"}, "Application_InvalidGUID"),
    ({"tableId": 2**31}, "BadRequest"), ({"tableId": 1.5}, "BadRequest"), ({"tableId": True}, "BadRequest"),
    ({"tableName": "a\0b"}, "BadRequest"), ({"targetTableType": "x"}, "Application_EvaluateException"),
    ({"extensionName": "x"}, "BadRequest_InvalidOperation"), ({"appId": str(number(8))}, "Application_DialogException")])
def test_a_wrong_mapping_is_refused_with_its_code(mapped, change, code):
    assert mapped.error(MAPPINGS, "POST", body=MAPPING | change)[:2] == (400, code)
    assert mapped.rows(MAPPINGS) == []


@pytest.mark.rule("W4")
def test_an_answer_without_content_can_be_preferred(mapped):
    answer = mapped.ask("POST", MAPPINGS, MAPPING, Prefer="return=minimal")
    assert answer.status_code == 204 and answer.content == b"" and answer.headers["preference-applied"] == "return=minimal"
    assert answer.headers["location"] == answer.headers["odata-entityid"]
    path = answer.headers["location"].partition("/api/v1.0/")[2]
    answer = mapped.ask("PATCH", path, {}, Prefer="return-no-content", If_Match="*")
    assert answer.status_code == 204 and answer.headers["preference-applied"] == "return-no-content" and answer.headers["etag"]
    assert mapped.ask("PATCH", path, {}, Prefer="return=representation", If_Match="*").status_code == 200


@pytest.mark.rule("W6")
def test_a_body_must_be_json(mapped):
    for kind in ("text/plain", "application/xml", ""):
        assert mapped.error(MAPPINGS, "POST", body="{}", Content_Type=kind)[:2] == (415, "BadRequest")
    assert mapped.ask("POST", MAPPINGS, MAPPING, Content_Type="application/json;IEEE754Compatible=true; charset=utf-8").status_code == 201


@pytest.mark.rule("H5")
def test_writes_with_a_read_only_intent_are_refused(mapped):
    assert mapped.error(MAPPINGS, "POST", body=MAPPING, Data_Access_Intent="ReadOnly")[:2] == (400, "BadRequest")
    assert mapped.get(MAPPINGS, Data_Access_Intent="ReadOnly").status_code == 200


@pytest.mark.rule("X1")
def test_a_large_body_is_refused(tmp_path):
    client = open_client(tmp_path, max_body_bytes=1024)
    assert client.error(MAPPINGS, "POST", body=b" " * 1025)[:2] == (413, "BadRequest")


# ------------------------------------------------------------------ actions


@pytest.mark.rule("A1", "A3")
def test_a_migration_is_driven_from_setup_to_completion(client, lab):
    company = ready(client, lab)
    [row] = client.rows(COMPANIES)
    assert row["created"] is True and row["status"] == "Completed" and row["companyInitializationStatus"] == "Not Initialized"
    assert act(client, f"{COMPANIES}({company})/Microsoft.NAV.initializeCompany").status_code == 204
    lab.work()
    assert client.rows(COMPANIES)[0]["companyInitializationStatus"] == "Initialized"
    newest = client.rows(RUNS)[0]["id"]
    answer = act(client, f"{RUNS}({newest})/Microsoft.NAV.runReplication")
    assert answer.status_code == 204 and answer.content == b""
    [run] = client.rows(f"{RUNS}?$orderby=startTime desc&$top=1")
    assert answer.headers["location"] == f"http://testserver/api/v1.0/companies({client.rows('companies')[0]['id']})/{RUNS}({run['id']})"
    assert run["status"] == "In Progress" and run["endTime"] == "0001-01-01T00:00:00Z"
    status, code, message = client.error(f"{RUNS}({run['id']})/Microsoft.NAV.runReplication", "POST")
    assert (status, code) == (400, "Application_DialogException") and "run" in message
    lab.work()
    assert act(client, f"{RUNS}({run['id']})/Microsoft.NAV.refreshStatus").status_code == 204
    done = client.get(f"{RUNS}({run['id']})").json()
    assert done["status"] == "Completed" and done["tablesSuccessful"] == 1 and done["replicationType"] == "Full"
    [table] = client.rows(f"{RUNS}({run['id']})/cloudMigrationStatusDetails")
    assert (table["status"], table["recordsCopied"], table["totalRecords"]) == ("Successful", 9, 9)
    for action in ("resetCloudData", "disableReplication"):
        assert act(client, f"{RUNS}({run['id']})/Microsoft.NAV.{action}").status_code == 204
    assert client.rows(RUNS)[0]["details"].startswith("The migration has been disabled")
    for action in ("createCompaniesMarkedForReplication", "initializeCompany"):
        assert client.error(f"{COMPANIES}({company})/Microsoft.NAV.{action}", "POST")[:2] == (400, "Application_DialogException")


@pytest.mark.rule("U6", "A2")
def test_the_name_of_an_action_works_as_method_for_that_action_only(client, lab):
    ready(client, lab)
    path = f"companies({client.rows('companies')[0]['id']})/cloudMigrationStatuss({client.rows(RUNS)[0]['id']})/Microsoft.NAV"
    for method in ("RUNDATAUPGRADE", "GET", "PUT"):
        answer = act(client, f"{path}.runReplication", method)
        assert answer.status_code == 405 and answer.headers["allow"] == "POST, OPTIONS"
    assert act(client, f"{path}.runReplication", "RUNREPLICATION").status_code == 204
    assert client.rows(RUNS)[0]["status"] == "In Progress"
    assert client.ask("RUNREPLICATION", RUNS).status_code == 405


@pytest.mark.rule("A1")
def test_upgrade_completion_and_the_runtime_answer_204_too(tmp_path):
    client = open_client(tmp_path / "home")
    create_sample(tmp_path / "bc.db", companies=2, rows=20, tables=3)
    lab = Lab(client.http.service, tmp_path / "bc.db")
    made = client.ask("POST", SETUP, {"productId": "DynamicsBCLast", "sqlServerType": "SQLServer",
                                      "sqlConnectionString": f"sqlite:///{tmp_path}/bc.db"}).json()
    assert act(client, f"{SETUP}({made['id']})/Microsoft.NAV.installedIntegrationRuntime").status_code == 204
    for row in client.rows(COMPANIES):
        client.ask("PATCH", f"{COMPANIES}({row['id']})", {"replicate": True}, If_Match="*")
    last = client.rows(COMPANIES)[-1]["id"]
    assert act(client, f"{COMPANIES}({last})/Microsoft.NAV.createCompaniesMarkedForReplication").status_code == 204
    lab.work()
    oldest = client.rows(RUNS)[-1]["id"]                               # any row will do as what these are bound to
    assert act(client, f"{RUNS}({oldest})/Microsoft.NAV.runReplication").status_code == 204
    lab.work()
    for action in ("runDataUpgrade", "completeCloudMigration"):
        answer = act(client, f"{RUNS}({client.rows(RUNS)[0]['id']})/Microsoft.NAV.{action}")
        assert (answer.status_code, answer.content) == (204, b""), answer.text
        lab.work()
    assert client.rows(RUNS)[0]["details"] == "The cloud migration has been completed."


@pytest.mark.rule("U6", "M4")
@pytest.mark.parametrize(("path", "action"), [(s.name, a.name) for s in V1.sets for a in s.actions])
def test_every_action_has_its_name_as_method_and_its_path_takes_no_other(client, path, action):
    with client.http.service.store.write() as connection:
        fill(connection)
    client.ask("POST", SETUP, {"productId": "Custom", "sqlServerType": "SQLServer"})
    url = f"{path}({client.rows(path)[0]['id']})/Microsoft.NAV.{action}"
    for method in ("GET", "PATCH", "DELETE", "RUNNOTHING"):
        assert client.error(url, method)[:2] == (405, "BadRequest_MethodNotAllowed")
    named, posted = act(client, url, action.upper()), act(client, url)
    assert named.status_code == posted.status_code and named.status_code in (204, 400)


@pytest.mark.rule("A2")
def test_actions_that_are_not_there_are_404(client, source):
    connect(client, source)
    newest = client.rows(RUNS)[0]["id"]
    assert client.error(f"{RUNS}({newest})/Microsoft.NAV.runNothing", "POST")[:2] == (404, "BadRequest_ResourceNotFound")
    assert client.error(f"{RUNS}({newest})/Microsoft.NAV.completeSetup", "POST")[:2] == (404, "BadRequest_ResourceNotFound")
    assert client.error(f"{RUNS}({number(9)})/Microsoft.NAV.runReplication", "POST")[:2] == (404, "Internal_RecordNotFound")
    assert client.error(f"{RUNS}/Microsoft.NAV.runReplication", "POST")[0] == 404


@pytest.mark.rule("A1")
@pytest.mark.parametrize(("kind", "body"), [
    (None, None), ("", ""), ("text/plain", ""), ("application/x-www-form-urlencoded", ""), ("application/json", ""),
    ("application/json", "{}"), ("text/plain; charset=utf-8", "{}"), ("application/json", " {} ")])
def test_actions_need_no_body_whatever_it_calls_itself(client, source, kind, body):
    connect(client, source)
    newest = client.rows(RUNS)[0]["id"]
    headers = {} if kind is None else {"Content_Type": kind}
    assert act(client, f"{RUNS}({newest})/nav.REFRESHSTATUS", body=body, **headers).status_code == 204


@pytest.mark.rule("A1")
@pytest.mark.parametrize(("kind", "body", "status"), [
    ("text/plain", "x", 415), ("application/xml", "<x/>", 415), ("application/json", "x", 400), ("application/json", '{"a":1}', 400)])
def test_actions_refuse_a_body_that_says_something(client, source, kind, body, status):
    connect(client, source)
    newest = client.rows(RUNS)[0]["id"]
    assert client.error(f"{RUNS}({newest})/NAV.refreshStatus", "POST", body=body, Content_Type=kind)[0] == status


@pytest.mark.rule("W3")
def test_actions_check_a_tag_only_if_it_is_sent(client, source):
    connect(client, source)
    [run] = client.rows(RUNS)
    path = f"{RUNS}({run['id']})/Microsoft.NAV.refreshStatus"
    assert client.error(path, "POST", If_Match='W/"x"')[:2] == (409, "Request_EntityChanged")
    assert act(client, path, If_Match=run["@odata.etag"]).status_code == 204


def test_mappings_have_their_actions(mapped):
    first = mapped.ask("POST", MAPPINGS, MAPPING).json()["id"]
    mapped.ask("POST", MAPPINGS, MAPPING | {"tableId": 50_001, "tableName": "Second", "sourceTableName": "[B]"})
    assert act(mapped, f"{MAPPINGS}({first})/Microsoft.NAV.deleteAllForExtension").status_code == 204
    assert mapped.rows(MAPPINGS) == []
    first = mapped.ask("POST", MAPPINGS, MAPPING).json()["id"]
    assert act(mapped, f"{MAPPINGS}({first})/Microsoft.NAV.restoreDefaults").status_code == 204
    assert mapped.rows(MAPPINGS) == []                            # the product Custom has no defaults


# ------------------------------------------------------------------ what is not allowed


@pytest.mark.rule("W7", "W4")
def test_verbs_that_a_resource_does_not_have_are_405_with_those_it_has(client):
    with client.http.service.store.write() as connection:
        fill(connection)
    one, rows = "GET, HEAD, OPTIONS", "GET, HEAD, OPTIONS"
    for method, path, allow in (
            ("POST", RUNS, rows), ("PATCH", f"{RUNS}({number(1)})", one), ("DELETE", f"{RUNS}({number(1)})", one),
            ("PUT", f"{COMPANIES}({number(50)})", one.replace("OPTIONS", "OPTIONS, PATCH")), ("POST", COMPANIES, rows),
            ("DELETE", f"{COMPANIES}({number(50)})", f"{one}, PATCH"), ("PATCH", SETUP, f"{rows}, POST"),
            ("POST", "companies", rows), ("POST", "$metadata", one), ("POST", "", one), ("DELETE", f"{RUNS}/$count", one),
            ("PATCH", f"{COMPANIES}({number(50)})/replicate", one), ("GET", "$batch", "POST, OPTIONS"), ("TRACE", RUNS, rows)):
        answer = client.ask(method, path)
        assert (answer.status_code, answer.headers.get("allow")) == (405, allow), (method, path)
    assert client.error(RUNS, "POST")[2] == ("'POST' requests for 'cloudMigrationStatus' of EdmType 'Entity' are not allowed within "
                                             "Microsoft Dynamics NAV OData web services.")


def test_a_refused_verb_changes_nothing(client, source):
    connect(client, source)
    before = table_count(client, apps), client.rows(RUNS), client.rows(SETUP)
    setup = client.rows(SETUP)[0]["id"]
    assert client.error(f"{RUNS}({before[1][0]['id']})/NAV.runReplication", "POST")[0] == 400
    assert client.error(f"{SETUP}({setup})", "PATCH", body={"productId": "DynamicsSL"}, If_Match="*")[0] == 400
    assert (table_count(client, apps), client.rows(RUNS), client.rows(SETUP)) == before
