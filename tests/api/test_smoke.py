"""The clients that must keep working (odata.md §9), each by the requests that it sends. Those that can be had run in test_clients.py."""

import base64
import sqlite3
from contextlib import closing

import pytest

from skylift.store.tables import companies
from tests.api.conftest import START, Client, number, open_client
from tests.migration.lab import Lab

ROOT = "/v2.0/11111111-2222-3333-4444-555555555555/Production/api/microsoft/cloudMigration/v1.0"
RUNS = "cloudMigrationStatus"


@pytest.fixture
def lab(tmp_path):
    """A caller under the cloud's root, with a company CRONUS, and a source with one more."""
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database, database:
        database.execute("create table item (id integer primary key)")
    client = open_client(tmp_path / "home", company="CRONUS USA, Inc.")
    lab = Lab(client.http.service, tmp_path / "shop.db")
    lab.client = Client(client.http, client.token, ROOT)
    yield lab
    client.http.service.store.close()


@pytest.mark.rule("U1", "U7", "A1", "W2", "W8")
def test_the_end_to_end_script_of_microsoft(lab):
    client = lab.client
    [company] = client.rows("companies/?$filter=name eq 'CRONUS*'")
    here = f"companies({company['id']})"
    made = client.ask("POST", f"{here}/setupCloudMigration", {"productId": "Custom", "sqlServerType": "AzureSQL",
                                                               "sqlConnectionString": f"sqlite:///{lab.source}"})
    assert made.status_code == 201
    [setup] = client.rows(f"{here}/setupCloudMigration")

    def act(path, action):
        """As PowerShell does: no body, and a content type that says nothing."""
        answer = client.ask("POST", f"{here}/{path}/Microsoft.NAV.{action}", "", Content_Type="")
        assert (answer.status_code, answer.content) == (204, b""), answer.text
        lab.work()

    def newest():
        return client.rows(f"{here}/{RUNS}?$orderby=startTime%20desc&$top=1")[0]

    for row in client.rows(f"{here}/cloudMigrationCompanies"):
        assert client.ask("PATCH", f"{here}/cloudMigrationCompanies({row['id']})", {"replicate": True}, If_Match="*").status_code == 200
    act(f"setupCloudMigration({setup['id']})", "completeSetup")
    act(f"{RUNS}({newest()['id']})", "runReplication")
    act(f"{RUNS}({newest()['id']})", "refreshStatus")
    assert (newest()["status"], newest()["tablesFailed"]) == ("Completed", 0)
    act(f"{RUNS}({newest()['id']})", "completeCloudMigration")


@pytest.mark.rule("A1", "H5")
def test_http_client_of_al(lab):
    """Its content always has a type, text/plain if nothing is said, and it sends headers of its own."""
    lab.prepare(product_id="Custom")
    newest = lab.client.rows(RUNS)[0]["id"]
    answer = lab.client.ask("POST", f"{RUNS}({newest})/Microsoft.NAV.runReplication", b"", Content_Type="text/plain; charset=utf-8",
                            Accept="application/json", User_Agent="Dynamics 365", X_MS_Client_Tenant_Id="x")
    assert answer.status_code == 204 and answer.headers["location"].startswith(f"http://testserver{ROOT}/companies(")
    assert lab.client.rows(RUNS)[0]["status"] == "In Progress"


@pytest.mark.rule("M1", "G1", "P3", "N2")
def test_sqlalchemy_odata_reads_with_basic_authentication(full):
    """It asks for XML, then for pages by $top and $skip."""
    access = base64.b64encode(f"admin:{full.token}".encode()).decode()

    def get(path, accept):
        return full.http.get(f"/BC/api/v1.0/{path}", headers={"Authorization": f"Basic {access}", "Accept": accept})

    assert b"<edmx:Edmx" in get("$metadata", "application/xml").content
    pages = [get(f"{RUNS}?%24top=5&%24skip={skip}", "application/json").json()["value"] for skip in (0, 5, 10, 15)]
    assert [len(page) for page in pages] == [5, 5, 2, 0]
    assert [row for page in pages for row in page] == full.rows(RUNS)


@pytest.mark.rule("S1", "M1", "H1", "H2", "P4")
def test_power_query_and_excel(full):
    accept = ("application/json;odata.metadata=minimal;q=1.0,application/json;odata=minimalmetadata;q=0.9,application/atomsvc+xml;q=0.8,"
              "application/atom+xml;q=0.8,application/xml;q=0.7,text/plain;q=0.7")
    version = {"OData_MaxVersion": "4.0", "OData_Version": "4.0", "MaxDataServiceVersion": "3.0"}
    service = full.get("", Accept=accept, **version)
    assert service.headers["odata-version"] == "4.0" and "odata.metadata=minimal" in service.headers["content-type"]
    assert full.get("$metadata", Accept="application/xml", **version).headers["content-type"].startswith("application/xml")
    for name in [entry["url"] for entry in service.json()["value"]]:
        answer = full.get(f"{name}?$top=1000&$count=true", Accept=accept, **version).json()
        assert answer["@odata.count"] == len(answer["value"]) == int(full.get(f"{name}/$count", Accept=accept, **version).text)
    folded = (f"{RUNS}?$filter=status eq 'Failed' and startTime ge 2026-03-01T15:00:00Z&$select=runId,startTime&$orderby=runId desc"
              "&$top=1000")
    assert [row["runId"] for row in full.rows(folded, Accept=accept, **version)] == ["run-08", "run-05"]


@pytest.mark.rule("B1", "B3", "C1", "P4")
def test_sdks_for_business_central(lab):
    """Batches without ids, whose items name the company in a header, in a transaction; counts that are read as text."""
    lab.prepare(product_id="Custom")
    client = lab.client
    with client.http.service.store.write() as connection:
        connection.execute(companies.insert().values(id=number(901), name="Other", display_name="", created_at=START, modified_at=START,
                                                     created_by=number(0), modified_by=number(0)))
    [row] = client.rows("cloudMigrationCompanies")
    requests = [
        {"method": "GET", "url": f"{RUNS}?$top=1", "headers": {"CompanyId": str(number(901)), "Accept": "application/json"}},
        {"method": "PATCH", "url": f"cloudMigrationCompanies({row['id']})", "body": {"replicate": False},
         "headers": {"CompanyId": str(number(901)), "Content-Type": "application/json", "If-Match": row["@odata.etag"]}},
        {"method": "GET", "url": f"{RUNS}/$count", "headers": {"CompanyId": str(number(901))}}]
    answers = client.ask("POST", "$batch", {"requests": requests}, Isolation="snapshot").json()["responses"]
    assert [(answer["id"], answer["status"]) for answer in answers] == [(None, 200)] * 3
    assert f"#companies({number(901)})/{RUNS}" in answers[0]["body"]["@odata.context"]
    assert answers[1]["body"]["replicate"] is False and answers[2]["body"] == client.get(f"{RUNS}/$count").text
