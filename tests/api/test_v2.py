"""The additive API v2.0, where it differs from v1.0: its route, Int64 and null, what is computed, parameters of actions."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from skylift.model import Scope
from skylift.runs import MigrationState, RunStatus, TableStatus
from skylift.store.tables import migration, registry, run_tables, runs, source_companies
from tests.api.conftest import Client, fill, number

ROOT = "/api/skylift/cloudMigration/v2.0"


@pytest.fixture
def v2(full):
    """The environment with rows, seen through v2.0."""
    return Client(full.http, full.token, ROOT)


@pytest.fixture
def ready(client):
    """A v2.0 client of an environment of its own, in which a run can begin."""
    with client.http.service.store.write() as connection:
        fill(connection)
        connection.execute(runs.update().where(runs.c.status == RunStatus.IN_PROGRESS).values(status=RunStatus.FAILED))
        connection.execute(runs.update().where(runs.c.status == RunStatus.UPGRADE_PENDING).values(status=RunStatus.COMPLETED))
        connection.execute(source_companies.update().values(created=True))
        connection.execute(migration.update().values(state=MigrationState.READY, product_id="Custom"))
        for name in ("Customer", "Vendor"):
            connection.execute(registry.insert().values(company_name="Zebra*", table_name=name))
        connection.execute(source_companies.update().where(source_companies.c.name == "Zebra*").values(replicate=True))
    return Client(client.http, client.token, ROOT)


@pytest.mark.parametrize("root", ["/v2.0/example.com/prod", "/v2.0/prod", "/BC", ""])
def test_v2_is_served_under_the_roots_of_v1_but_for_the_short_ones(full, root):
    there = Client(full.http, full.token, f"{root}/API/Skylift/cloudmigration/v2.0")
    assert {s["name"] for s in there.rows("")} >= {"companies", "runs", "runTables", "subscriptions", "entityDefinitions"}
    assert Client(full.http, full.token, f"{root}/api/v2.0").error("")[0] == 404


def test_the_two_apis_do_not_show_each_other_s_sets(full, v2):
    assert full.error("runs")[:2] == v2.error("cloudMigrationStatus")[:2] == (404, "BadRequest_ResourceNotFound")
    assert b"runTable" not in full.get("$metadata").content and b"cloudMigrationStatus" not in v2.get("$metadata").content
    assert "run" not in {row["entityName"] for row in full.rows("entityDefinitions")}
    assert "run" in {row["entityName"] for row in v2.rows("entityDefinitions")}


def test_a_batch_stays_within_its_api(v2):
    [answer] = v2.ask("POST", "$batch", {"requests": [{"id": "1", "method": "GET", "url": "/api/v1.0/companies"}]}).json()["responses"]
    assert answer["status"] == 400 and "another service" in answer["body"]["error"]["message"]
    [answer] = v2.ask("POST", "$batch", {"requests": [{"id": "1", "method": "GET", "url": f"{ROOT}/runs?$top=1"}]}).json()["responses"]
    assert answer["status"] == 200 and answer["body"]["value"][0]["runId"] == "run-11"


def test_rows_are_counted_beyond_32_bits(full, v2):
    here = "$filter=totalRecords gt 2999999999&$select=totalRecords"
    assert v2.rows(f"runTables?{here}") == [{"@odata.etag": v2.rows(f"runTables?{here}")[0]["@odata.etag"], "totalRecords": 3_000_000_000}]
    [row] = v2.rows(f"runTables?{here}", Accept="application/json;IEEE754Compatible=true")
    assert row["totalRecords"] == "3000000000"
    assert full.rows("cloudMigrationStatusDetails?$filter=totalRecords gt 2999999999")[0]["totalRecords"] == 2**31 - 1


def test_what_is_not_known_is_null_and_no_filter_goes_by_it(v2):
    [row] = v2.rows(f"runTables?$filter=id eq {number(1000)}")
    assert [row[name] for name in ("rowsPerSecond", "bytesPerSecond", "estimatedEndTime", "targetRows")] == [None] * 4
    assert row["endTime"] == "0001-01-01T00:00:00Z"
    for name in ("targetRows", "rowsPerSecond", "estimatedEndTime"):
        assert v2.error(f"runTables?$filter={name} eq null")[0] == v2.error(f"runTables?$orderby={name}")[0] == 501
    assert v2.get(f"runTables({number(1000)})/targetRows").status_code == 204
    assert v2.get(f"runTables({number(1000)})/targetRows/$value").status_code == 204


def test_a_run_adds_up_its_tables(v2):
    [run] = v2.rows("runs?$filter=runId eq 'run-10'")
    assert [run[name] for name in ("tablesTotal", "tablesSuccessful", "tablesFailed", "tablesWithWarnings", "tablesRemaining")] == [
        5, 3, 1, 1, 0]
    assert (run["recordsCopied"], run["totalRecords"]) == (0 + 10 + 20 + 30 + 40, 0 + 10 + 20 + 30 + 3_000_000_000)
    assert [row["runId"] for row in v2.rows("runs?$filter=recordsCopied ge 100 or tablesTotal eq 2&$orderby=tablesTotal desc")] == [
        "run-10", "run-11"]
    [expanded] = v2.rows("runs?$filter=runId eq 'run-10'&$expand=runTables($select=tableName;$expand=run($select=runId))")
    assert len(expanded["runTables"]) == 5 and expanded["runTables"][0]["run"]["runId"] == "run-10"


def put(client, table, **values):
    with client.http.service.store.write() as connection:
        connection.execute(table.update().values(**values))


def test_rate_and_end_follow_from_start_rows_and_bytes(ready):
    now = datetime.now(UTC)
    put(ready, run_tables, started_at=now - timedelta(seconds=100), status=TableStatus.IN_PROGRESS, records_copied=5_000,
        total_records=20_000, size_bytes=10**6, mode="full")
    row = ready.rows("runTables?$top=1")[0]
    assert row["rowsPerSecond"] == pytest.approx(50, abs=3) and row["bytesPerSecond"] == pytest.approx(10**4, abs=600)
    left = datetime.fromisoformat(row["estimatedEndTime"]) - now
    assert left.total_seconds() == pytest.approx(300, abs=20)

    put(ready, run_tables, mode="incremental")                        # how many changes there are nobody knows
    assert ready.rows("runTables?$top=1")[0]["estimatedEndTime"] is None
    put(ready, run_tables, ended_at=now - timedelta(seconds=50), status=TableStatus.SUCCESSFUL, mode="full")
    row = ready.rows("runTables?$top=1")[0]
    assert (row["rowsPerSecond"], row["bytesPerSecond"], row["estimatedEndTime"]) == (100.0, 20_000, None)


def test_the_end_of_a_run_is_estimated_once_some_of_its_work_is_done(ready):
    now = datetime.now(UTC)
    put(ready, run_tables, status=TableStatus.IN_PROGRESS, records_copied=0, total_records=10_000)
    put(ready, runs, status=RunStatus.IN_PROGRESS, started_at=now - timedelta(seconds=60), ended_at=None)
    query = "runs?$filter=runId eq 'run-10'"                          # of five tables
    assert ready.rows(query)[0]["estimatedEndTime"] is None
    put(ready, run_tables, records_copied=2_500)
    run = ready.rows(query)[0]
    left = datetime.fromisoformat(run["estimatedEndTime"]) - now
    assert left.total_seconds() == pytest.approx(60 * (50_500 - 12_500) / 12_500, abs=20)
    assert run["rowsPerSecond"] == pytest.approx(12_500 / 60, abs=10)
    put(ready, runs, status=RunStatus.COMPLETED)
    assert ready.rows(query)[0]["estimatedEndTime"] is None


def test_an_entity_tag_does_not_change_with_the_clock(ready):
    put(ready, run_tables, started_at=datetime.now(UTC) - timedelta(seconds=1), status=TableStatus.IN_PROGRESS, records_copied=10**6)
    first = ready.rows("runTables?$top=1")[0]
    second = ready.rows("runTables?$top=1&$skip=0")[0]
    assert first["rowsPerSecond"] != second["rowsPerSecond"] and first["@odata.etag"] == second["@odata.etag"]


# ------------------------------------------------------------------ runs are started and cancelled


@pytest.mark.parametrize(("body", "kind", "scope"), [
    ({}, "Full", Scope()),
    ({"replicationType": "Diagnostic"}, "Diagnostic", Scope()),
    ({"replicationType": "Full"}, "Full", Scope()),
    ({"companies": ["zebra*"]}, "Full", Scope(companies=("Zebra*",))),
    ({"tables": ["Customer"], "companies": ["Zebra*"]}, "Full", Scope(companies=("Zebra*",), tables=("Customer",))),
    ({"failedOnly": True}, "Full", Scope(companies=(), tables=("Table 0$app",), failed=True))])
def test_a_run_of_any_kind_begins_by_post(ready, body, kind, scope):
    put(ready, run_tables, status=TableStatus.SUCCESSFUL)
    with ready.http.service.store.write() as connection:
        connection.execute(run_tables.update().where(run_tables.c.id == number(1000)).values(
            status=TableStatus.FAILED, ended_at=datetime.now(UTC), mode="full"))

    answer = ready.ask("POST", "runs", body)

    assert answer.status_code == 201, answer.text
    run = answer.json()
    assert (run["replicationType"], run["status"], run["endTime"]) == (kind, "In Progress", "0001-01-01T00:00:00Z")
    assert (tuple(run["companies"]), tuple(run["tables"]), run["failedOnly"]) == (scope.companies, scope.tables, scope.failed)
    assert answer.headers["location"].endswith(f"runs({run['id']})") and answer.headers["etag"] == run["@odata.etag"]
    assert ready.get(answer.headers["location"].partition(ROOT + "/")[2]).json()["companies"] == list(scope.companies)
    assert ready.error("runs", "POST", body={})[1] == "Application_DialogException"


@pytest.mark.parametrize(("body", "code"), [
    ({"replicationType": "Weekly"}, "Application_EvaluateException"), ({"replicationType": None}, "BadRequest"),
    ({"companies": "Zebra*"}, "BadRequest"), ({"companies": [1]}, "BadRequest"), ({"failedOnly": "yes"}, "BadRequest"),
    ({"status": "Completed"}, "BadRequest_InvalidOperation"), ({"kind": "Full"}, "BadRequest"),
    ({"companies": ["Nobody"]}, "Internal_RecordNotFound"), ({"tables": ["Nothing"]}, "Internal_RecordNotFound"),
    ({"replicationType": "Azure Data Lake"}, "Application_DialogException")])
def test_a_run_that_makes_no_sense_is_not_started(ready, body, code):
    assert ready.error("runs", "POST", body=body)[1] == code
    with ready.http.service.store.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(runs)) == 12


def test_a_run_is_cancelled_with_a_reason(ready):
    run = ready.ask("POST", "runs", {"replicationType": "Diagnostic"}).json()
    answer = ready.ask("POST", f"runs({run['id']})/Microsoft.NAV.cancel", {"reason": "the wrong night"})
    assert answer.status_code == 204 and answer.headers["location"].endswith(f"/runs({run['id']})")
    assert ready.get(f"runs({run['id']})").json()["cancelled"] == "cancelled by admin: the wrong night"
    assert ready.error(f"runs({number(1)})/Microsoft.NAV.cancel", "POST")[1] == "Application_DialogException"
    assert ready.error(f"runs({number(99)})/Microsoft.NAV.cancel", "POST")[0] == 404


@pytest.mark.parametrize(("body", "message"), [
    ({"why": "x"}, "The action 'cancel' has no parameter 'why'; it has reason."), ({"reason": 5}, "not of type Edm.String"),
    ({"reason": "x" * 251}, "less than or equal to 250"), ([], "must be a JSON object"), ("{", "not JSON"),
    ({"reason": "a\0b"}, "NUL")])
def test_parameters_that_are_unknown_or_of_another_type_are_refused(ready, body, message):
    run = ready.ask("POST", "runs", {}).json()
    status, _, told = ready.error(f"runs({run['id']})/Microsoft.NAV.cancel", "POST", body=body, Content_Type="application/json")
    assert status == 400 and message in told
    assert ready.get(f"runs({run['id']})").json()["cancelled"] == ""


@pytest.mark.parametrize("body", [None, {}, {"reason": None}, {"@odata.type": "#x"}])
def test_parameters_that_are_not_required_may_be_left_out(ready, body):
    run = ready.ask("POST", "runs", {}).json()
    assert ready.ask("POST", f"runs({run['id']})/NAV.cancel", body).status_code == 204
    assert ready.get(f"runs({run['id']})").json()["cancelled"] == "cancelled by admin"


def test_readers_start_and_cancel_nothing(ready):
    reader = ready.as_role("reader")
    run = ready.ask("POST", "runs", {}).json()
    assert reader.error("runs", "POST", body={})[0] == reader.error(f"runs({run['id']})/Microsoft.NAV.cancel", "POST")[0] == 403
    assert ready.as_role("operator", "operator").ask("POST", f"runs({run['id']})/Microsoft.NAV.cancel").status_code == 204
    assert len(reader.rows("runs")) == 13
