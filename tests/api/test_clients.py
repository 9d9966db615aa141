"""OData clients and generators that nobody here wrote, against a real server process: they read, filter, expand, page, write, act."""

import json
import os
import shutil
import subprocess
from decimal import Decimal
from pathlib import Path

import pytest
import requests
from lxml import etree
from odata import ODataService

from skylift.api.metadata import metadata_document
from skylift.api.resources import V1
from skylift.api.resources_v2 import V2
from skylift.runs import MigrationState, RunStatus
from skylift.store.tables import migration, runs, source_companies
from tests.api.conftest import Client, fill, number, open_client, served

CLIENTS = Path(__file__).parent / "clients"
COMPANY, RUN = number(51), number(11)         # not marked; has five details
FOUND = {
    "newest": str(number(12)), "filtered": ["run-08", "run-05", "run-02"], "expanded": [f"Table {n}$app" for n in range(5)],
    "pages": [f"run-{n:02}" for n in range(11, -1, -1)], "patched": True}
BATCH = [[200, 200, 200], 2, False]           # statuses, rows of the first answer, `replicate` in the last


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A client of `skylift serve`, whose pages have five rows, with the rows of `fill`."""
    home = tmp_path_factory.mktemp("clients")
    inside = open_client(home)
    with inside.http.service.store.write() as connection:
        fill(connection)
        connection.execute(migration.update().values(state=MigrationState.READY, product_id="Custom"))
    inside.http.service.store.close()
    with served(home, "--no-coordinator", page_size=5) as (http, _):
        yield Client(http, inside.token)


@pytest.fixture
def unmarked(server):
    """`server`, whose company COMPANY is not marked."""
    assert server.ask("PATCH", f"cloudMigrationCompanies({COMPANY})", {"replicate": False}, If_Match="*").status_code == 200
    return server


@pytest.fixture
def ready(tmp_path):
    """A client of v2.0 of a server of its own, where a run can begin."""
    inside = open_client(tmp_path)
    with inside.http.service.store.write() as connection:
        fill(connection)
        connection.execute(runs.update().where(runs.c.status == RunStatus.IN_PROGRESS).values(status=RunStatus.FAILED))
        connection.execute(source_companies.update().values(created=True))
        connection.execute(migration.update().values(state=MigrationState.READY, product_id="Custom"))
    inside.http.service.store.close()
    with served(tmp_path, "--no-coordinator", page_size=5) as (http, _):
        yield Client(http, inside.token, "/api/skylift/cloudMigration/v2.0")


@pytest.fixture(scope="module")
def npm(tmp_path_factory):
    """A folder in which the packages of clients/package-lock.json are installed, from which scripts run."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("Node.js and npm are not installed")
    folder = tmp_path_factory.mktemp("npm") / "clients"
    shutil.copytree(CLIENTS, folder)
    run(folder, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
    yield folder
    shutil.rmtree(folder)


def run(folder, *command, **environment):
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def script(folder, name, server):
    output = run(folder, "node", name, BASE=f"{str(server.http.base_url).rstrip('/')}{server.root}", TOKEN=server.token,
                 COMPANY=str(COMPANY), RUN=str(RUN))
    return json.loads(output.splitlines()[-1])


# ------------------------------------------------------------------ Python


@pytest.mark.rule("M1", "M4", "A1", "G2", "P2")
def test_python_odata_finds_its_way_by_metadata_alone(unmarked):
    session = requests.Session()
    session.headers.update({"Authorization": f"Bearer {unmarked.token}", "If-Match": "*"})
    service = ODataService(f"{unmarked.http.base_url}{unmarked.root}/", session=session, reflect_entities=True, quiet_progress=True)
    run, company = service.entities["cloudMigrationStatus"], service.entities["cloudMigrationCompanies"]
    newest = service.query(run).order_by(run.startTime.desc()).first()
    assert newest.id == FOUND["newest"] and newest.startTime.isoformat() == "2026-03-01T23:00:00.358000+00:00"
    assert [row.runId for row in service.query(run).filter(run.status == "Failed")] == FOUND["filtered"]
    assert [row.runId for row in service.query(run)] == FOUND["pages"]
    bound = service.query(run).filter(run.runId == "run-10").first()
    assert [row.tableName for row in bound.cloudMigrationStatusDetails] == FOUND["expanded"]
    [expanded] = service.query(run).expand(run.cloudMigrationStatusDetails).filter(run.runId == "run-10").all()
    assert [row.tableName for row in expanded.cloudMigrationStatusDetails] == FOUND["expanded"]
    bound.refreshStatus()
    marked = service.query(company).filter(company.id == str(COMPANY)).first()
    marked.replicate = True
    service.save(marked)
    assert unmarked.get(f"cloudMigrationCompanies({COMPANY})").json()["replicate"] is True


def test_python_odata_reads_v2_and_calls_its_actions_with_parameters(ready):
    session = requests.Session()
    session.headers.update({"Authorization": f"Bearer {ready.token}", "If-Match": "*"})
    service = ODataService(f"{ready.http.base_url}{ready.root}/", session=session, reflect_entities=True, quiet_progress=True)
    run, event = service.entities["runs"], service.entities["events"]
    assert [row.runId for row in service.query(run)] == FOUND["pages"]
    bound = service.query(run).filter(run.runId == "run-10").first()
    assert [row.tableName for row in bound.runTables] == FOUND["expanded"]
    assert (bound.recordsCopied, bound.totalRecords, bound.rowsPerSecond) == (100, 3_000_000_060, Decimal("0.1"))
    begun = run()
    begun.replicationType = "Diagnostic"
    service.save(begun)
    assert begun.status == "In Progress"
    begun.cancel(reason="only a test")
    assert ready.get(f"runs({begun.id})").json()["cancelled"] == "cancelled by admin: only a test"
    assert service.query(event).filter(event.event == "cancel").first().reason == "only a test"


# ------------------------------------------------------------------ npm


@pytest.mark.slow
@pytest.mark.rule("M1")
@pytest.mark.parametrize("api", [V1, V2], ids=lambda api: api.version)
@pytest.mark.parametrize("version", ["1.0", "2.0", "2.1"])
def test_metadata_is_valid_by_the_schemas_of_oasis(npm, api, version, tmp_path):
    """The edmx and edm schemas that OASIS publishes as npm package odata-csdl, and its own conversion to CSDL JSON."""
    schema = etree.XMLSchema(etree.parse(npm / "node_modules" / "odata-csdl" / "schemas" / "edmx.xsd"))
    document = etree.fromstring(metadata_document(api, version))
    assert schema.validate(document), schema.error_log
    etree.SubElement(document[-1][0], "{http://docs.oasis-open.org/odata/ns/edm}Propertee")
    assert not schema.validate(document)                  # it does judge
    (tmp_path / "metadata.xml").write_bytes(metadata_document(api, version))
    run(npm, "npx", "--no-install", "odata-csdl-xml2json", str(tmp_path / "metadata.xml"))
    converted = json.loads((tmp_path / "metadata.json").read_text("utf-8"))
    assert set(converted["Microsoft.NAV"]["NAV"]) >= {*(s.name for s in api.sets), "$Kind"}
    action = "runReplication" if api is V1 else "forceCompletion"
    parameters = [p["$Name"] for p in converted["Microsoft.NAV"][action][0]["$Parameter"]]
    assert parameters == (["bindingParameter"] if api is V1 else ["bindingParameter", "reason"])


@pytest.mark.slow
@pytest.mark.rule("A1", "B1", "B6")
@pytest.mark.parametrize(("name", "batches"), [("odata-client.mjs", 2), ("o.mjs", 1)])
def test_a_client_without_metadata_reads_writes_acts_and_batches(npm, unmarked, name, batches):
    found = script(npm, name, unmarked)
    assert found.pop("action", 204) == 204 and found == FOUND | {"batches": [BATCH] * batches}


@pytest.mark.slow
@pytest.mark.rule("M1", "M3", "M4")
def test_the_client_that_odata2ts_generates_reads_writes_and_acts(npm, unmarked):
    (npm / "metadata.xml").write_bytes(unmarked.get("$metadata").content)
    run(npm, "npx", "--no-install", "odata2ts", "--source", "metadata.xml", "--output", "odata2ts", "--mode", "service",
        "--emit-mode", "js", "--service-name", "CloudMigration")
    assert script(npm, "odata2ts.mjs", unmarked) == FOUND | {"action": 204}


@pytest.mark.slow
def test_the_client_that_odata2ts_generates_from_v2_starts_and_cancels_a_run(npm, ready):
    (npm / "metadata-v2.xml").write_bytes(ready.get("$metadata").content)
    run(npm, "npx", "--no-install", "odata2ts", "--source", "metadata-v2.xml", "--output", "odata2ts-v2", "--mode", "service",
        "--emit-mode", "js", "--service-name", "MigrationV2")
    assert script(npm, "odata2ts-v2.mjs", ready) == {
        "pages": FOUND["pages"], "expanded": [f"Table {n}$app" for n in (2, 3, 4)], "unknown": None, "patched": True,
        "begun": "In Progress", "cancelled": 204, "reason": "cancelled by admin: only a test"}


@pytest.mark.slow
@pytest.mark.rule("M1", "M3", "B3", "B6", "W1")
def test_the_client_that_sap_cloud_sdk_generates_reads_writes_and_sends_change_sets(npm, unmarked):
    (npm / "edmx").mkdir()
    (npm / "edmx" / "cloudMigration.edmx").write_bytes(unmarked.get("$metadata").content)
    run(npm, "npx", "--no-install", "generate-odata-client", "--input", "edmx", "--outputDir", "sap", "--transpile", "--skipValidation")
    assert script(npm, "sap-cloud-sdk.mjs", unmarked) == FOUND | {"batches": [BATCH]}
