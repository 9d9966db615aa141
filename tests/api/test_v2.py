"""The additive API v2.0, where it differs from v1.0: its route, Int64 and null, what is computed, parameters of actions."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from skylift.model import Scope
from skylift.runs import MigrationState, RunStatus, TableStatus
from skylift.sample import create_sample
from skylift.store.tables import idempotency, migration, registry, run_tables, runs, source_companies
from tests.api.conftest import Client, fill, number, open_client
from tests.migration.lab import Lab

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
    put(ready, run_tables, resumed=2_000)                             # which an earlier run had brought
    run = ready.rows(query)[0]
    assert (datetime.fromisoformat(run["estimatedEndTime"]) - now).total_seconds() == pytest.approx(60 * 38_000 / 2_500, abs=90)
    assert run["rowsPerSecond"] == pytest.approx(2_500 / 60, abs=5) and run["recordsResumed"] == 10_000
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
    ({"replicationType": "Diagnostic", "companies": None, "endTime": None}, "Diagnostic", Scope()),
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
    ({"replicationType": "Weekly"}, "Application_EvaluateException"), ({"replicationType": 2}, "BadRequest"),
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


# ------------------------------------------------------------------ the migration and its verbs


def test_the_migration_is_there_before_it_is_set_up(client):
    [row] = Client(client.http, client.token, ROOT).rows("migrations")
    assert (row["state"], row["headline"], row["source"], row["verbs"]) == (
        "NotSetUp", "The migration is not set up.", "", ["setUp"])


def test_the_migration_says_what_may_be_done_and_no_secret(ready):
    box = ready.http.service.box
    put(ready, migration, source_url=box.seal("mssql://sa:Geh31m!@erp:1433/bc"), target_url=box.seal("postgresql://u:s3cret@db/x"))
    [row] = ready.rows("migrations")
    assert (row["source"], row["target"]) == ("mssql://sa:***@erp:1433/bc", "postgresql://u:***@db/x")
    assert row["verbs"] == sorted(row["verbs"]) and "runDataUpgrade" in row["verbs"]              # Custom: where packs are named
    put(ready, migration, product_id="DynamicsBCLast")
    assert "runDataUpgrade" not in ready.rows("migrations")[0]["verbs"]
    put(ready, migration, product_id="Custom")
    assert set(row["verbs"]) >= {"abandon", "changeCompany", "changeMappings", "changeTables", "completeCloudMigration", "completeSetup",
                                 "createCompanies", "disableReplication", "forceCompletion", "initializeCompany", "pause",
                                 "resetCloudData", "runReplication", "setUp"}
    assert row["headline"] == "The migration is ready for replication. The newest run has failed: "
    run = ready.ask("POST", "runs", {}).json()
    [row] = ready.rows("migrations")
    assert row["state"] == "Replicating" and "cancel" in row["verbs"] and "runReplication" not in row["verbs"]
    ready.ask("POST", f"runs({run['id']})/Microsoft.NAV.cancel")
    assert "cancel" not in ready.rows("migrations")[0]["verbs"]
    assert ready.error("migrations?$filter=target eq 'x'")[0] == 501
    assert ready.rows("migrations?$filter=state eq 'Replicating' and productId eq 'Custom'&$select=state")[0]["state"] == "Replicating"


def act(client, action, body=None, **headers):
    [row] = client.rows("migrations")
    return client.ask("POST", f"migrations({row['id']})/Microsoft.NAV.{action}", body, **headers)


def of(client):
    return client.rows("migrations")[0]


@pytest.fixture
def connected(tmp_path):
    """A v2.0 client of a migration of a real source."""
    create_sample(tmp_path / "bc.db", companies=1, rows=300, tables=12)
    client = open_client(tmp_path / "home")
    lab = Lab(client.http.service, tmp_path / "bc.db")
    lab.prepare()
    yield Client(client.http, client.token, ROOT), lab
    client.http.service.store.close()


def test_pausing_and_abandoning_record_who_and_why(connected):
    v2, _ = connected
    assert act(v2, "pause", {"reason": "year's end"}).status_code == 204
    row = of(v2)
    assert (row["state"], row["disabledReason"], row["sourceTracked"], row["headline"]) == (
        "Disabled", "Paused", True, "The migration is paused.")
    assert v2.rows("runs?$top=1")[0]["details"] == "The migration has been paused. year's end"
    assert act(v2, "abandon", {"reason": "bought something else"}).status_code == 204
    assert (of(v2)["disabledReason"], of(v2)["sourceTracked"]) == ("Abandoned", False)
    assert [(row["actor"], row["event"]) for row in v2.rows("events?$filter=subject eq 'migration'&$top=2")] == [
        ("admin", "abandoned"), ("admin", "disable")]


def test_a_forced_completion_needs_an_administrator_and_a_reason(connected):
    v2, _ = connected
    assert v2.as_role("operator").error(f"migrations({of(v2)['id']})/Microsoft.NAV.forceCompletion", "POST", body={"reason": "x"})[0] == 403
    for body, code in ((None, "BadRequest_RequiredParamNotProvided"), ({}, "BadRequest_RequiredParamNotProvided"),
                       ({"reason": None}, "BadRequest_RequiredParamNotProvided"), ({"reason": " "}, "Application_DialogException"),
                       ({"reason": 1}, "BadRequest"), ({"reason": "x", "force": True}, "BadRequest")):
        answer = act(v2, "forceCompletion", body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert act(v2, "completeCloudMigration").status_code == 400
    assert act(v2, "forceCompletion", {"reason": "a test"}).status_code == 204
    assert of(v2)["headline"] == "The migration is completed."
    assert "forced by admin: a test" in v2.rows("runs?$top=1")[0]["details"]


def test_a_request_that_is_sent_again_under_its_key_is_done_once(connected):
    v2, lab = connected
    first = v2.ask("POST", "runs", {"tables": ["Customer"]}, Idempotency_Key="a")
    lab.work()
    again = v2.ask("POST", "runs", {"tables": ["Customer"]}, Idempotency_Key="a")
    assert (first.status_code, again.status_code) == (201, 201) and again.headers["location"] == first.headers["location"]
    assert (again.json()["id"], again.json()["status"], of(v2)["state"]) == (first.json()["id"], "Upgrade Pending", "UpgradePending")

    other = v2.ask("POST", "runs", {"tables": ["Vendor"]}, Idempotency_Key="a")
    assert (other.status_code, other.headers["x-skylift-code"]) == (400, "IdempotencyKey")
    assert v2.ask("POST", "runs", {"tables": ["Customer"]}, Idempotency_Key="x" * 256).status_code == 400
    assert v2.as_role("operator").ask("POST", "runs", {"tables": ["Customer"]}, Idempotency_Key="a").status_code == 201     # another token
    assert v2.ask("POST", "runs", {}, Idempotency_Key="b").status_code == 400              # that one is under way: not carried out
    lab.work()
    assert v2.ask("POST", "runs", {}, Idempotency_Key="b").status_code == 201
    lab.work()
    assert [act(v2, "resetCloudData", Idempotency_Key="c").status_code for _ in range(2)] == [204, 204]
    assert len(v2.rows("events?$filter=event eq 'reset'")) == 1
    with lab.store.write() as connection:
        connection.execute(idempotency.update().values(done_at=datetime.now(UTC) - timedelta(hours=25)))
    assert act(v2, "assess", Idempotency_Key="d").status_code == 204
    with lab.store.read() as connection:
        assert connection.scalars(sa.select(idempotency.c.key)).all() == ["d"]             # the others have been forgotten


def test_an_upgrade_names_its_packs_and_no_paths(connected):
    v2, lab = connected
    lab.run()
    for packs, code in ((["nowhere"], "Application_DialogException"), (["../x"], "Application_DialogException"),
                        (["/etc/x"], "Application_DialogException"), ("code-fields", "BadRequest"), ([1], "BadRequest")):
        answer = act(v2, "runDataUpgrade", {"packs": packs})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text
    assert of(v2)["state"] == "UpgradePending"
    assert act(v2, "runDataUpgrade", {"packs": ["code-fields", "companions"]}).status_code == 204
    lab.work()
    assert of(v2)["state"] == "Upgraded"
    assert {(row["pack"], row["status"]) for row in v2.rows("upgradeSteps")} == {("code-fields", "Completed"), ("companions", "Completed")}


def test_of_two_administrators_the_one_who_has_seen_less_is_told(ready):
    seen = of(ready)["@odata.etag"]
    assert act(ready, "resetCloudData", If_Match=seen).status_code == 204
    put(ready, migration, disabled_reason="Paused")
    assert act(ready, "pause", If_Match=seen).status_code == 409


# ------------------------------------------------------------------ switches, companies, steps, events, limits


def test_a_table_is_left_out_preserved_and_unblocked_by_patch(connected):
    v2, _ = connected
    shared = v2.rows("tables?$filter=companyName eq ''&$top=1")[0]
    path = f"tables({shared['id']})"
    assert v2.error(path, "PATCH", body={"replicate": False})[:2] == (400, "BadRequest_InvalidToken")
    changed = v2.ask("PATCH", path, {"replicate": False, "preserve": True}, If_Match=shared["@odata.etag"])
    assert changed.status_code == 200, changed.text
    assert (changed.json()["replicate"], changed.json()["preserve"]) == (False, True)
    assert v2.error(path, "PATCH", body={"replicate": True}, If_Match=shared["@odata.etag"])[:2] == (409, "Request_EntityChanged")
    assert v2.error(path, "PATCH", body={"blocked": True}, If_Match="*")[1] == "Application_DialogException"
    assert v2.ask("PATCH", path, changed.json() | {"replicate": True}, If_Match="*").json()["replicate"] is True   # as it was read
    own = v2.rows("tables?$filter=companyName ne ''&$top=1")[0]
    assert v2.error(f"tables({own['id']})", "PATCH", body={"preserve": True}, If_Match="*")[1] == "Application_DialogException"
    events = v2.rows(f"events?$filter=subject eq 'table {shared['tableName']}'")
    assert [row["event"] for row in events] == ["include", "preserve", "leave_out"]


def test_a_failed_table_is_accepted_by_patch(connected):
    v2, lab = connected
    v2.ask("POST", "runs", {})
    lab.work()
    row = v2.rows("runTables?$filter=companyName ne ''&$top=1")[0]
    with lab.store.write() as connection:
        connection.execute(run_tables.update().where(run_tables.c.table_name == row["tableName"]).values(
            status=TableStatus.FAILED, errors="disk full", error_code="50007"))
        connection.execute(registry.update().where(registry.c.table_name == row["tableName"]).values(blocked=True))
    [table] = v2.rows("tables?$filter=blocked eq true&$top=1")

    assert v2.ask("PATCH", f"tables({table['id']})", {"blocked": False}, If_Match=table["@odata.etag"]).json()["blocked"] is False

    [row] = v2.rows("runTables?$filter=errorCode eq 'Unblocked'")
    assert (row["status"], row["errors"]) == ("Successful", "Unblocked by admin, not copied: disk full")


def test_a_run_fills_what_v2_shows_of_its_tables(connected):
    v2, lab = connected
    v2.ask("POST", "runs", {})
    lab.work()
    tables = v2.rows("runTables?$filter=totalRecords gt 0")
    assert tables
    for row in tables:
        assert (row["mode"], row["recordsCopied"], row["targetRows"]) == ("full", row["totalRecords"], row["totalRecords"])
        assert len(row["digest"]) == 32 and row["startTime"] <= row["endTime"] and row["sizeBytes"] > 0
    [run] = v2.rows("runs?$filter=tablesTotal gt 0")
    assert run["recordsCopied"] == sum(row["recordsCopied"] for row in tables) == run["totalRecords"]
    assert run["sizeBytes"] >= sum(row["sizeBytes"] for row in tables) and run["rowsPerSecond"] > 0


def test_source_companies_have_what_v1_has_and_their_upgrade(connected):
    v2, _ = connected
    [company] = v2.rows("sourceCompanies")
    assert (company["upgradeStatus"], company["upgradeError"], company["replicate"]) == ("None", "", True)
    changed = v2.ask("PATCH", f"sourceCompanies({company['id']})", {"replicate": False}, If_Match=company["@odata.etag"])
    assert changed.json()["replicate"] is False


def test_findings_are_asked_for_shown_and_accepted_with_a_reason(connected):
    v2, lab = connected
    assert act(v2, "assess", {"scan": True}).status_code == 204
    assert v2.rows("assessments")[0]["status"] == "Asked"
    assert act(v2, "assess", {"scan": "yes"}).status_code == 400
    lab.work()
    [assessment] = v2.rows("assessments")
    assert (assessment["status"], assessment["scan"], assessment["tables"] > 5, assessment["firstRunSeconds"] >= 0) == (
        "Completed", True, True, True)
    finding = v2.rows("findings?$orderby=severity,code desc&$top=1")[0]
    path = f"findings({finding['id']})/Microsoft.NAV.accept"
    assert finding["acceptedAt"] is None
    assert v2.error(path, "POST")[1] == "BadRequest_RequiredParamNotProvided"
    assert v2.error(path, "POST", body={"reason": " "})[1] == "Application_DialogException"
    assert v2.ask("POST", path, {"reason": "known"}, If_Match=finding["@odata.etag"]).status_code == 204
    accepted = v2.get(f"findings({finding['id']})").json()
    assert (accepted["acceptedBy"], accepted["reason"]) == ("admin", "known") and accepted["@odata.etag"] != finding["@odata.etag"]
    assert v2.error(path, "POST", body={"reason": "again"}, If_Match=finding["@odata.etag"])[0] == 409


def test_a_validation_is_asked_for_and_its_suites_tests_and_results_are_shown(connected):
    v2, lab = connected
    assert act(v2, "validate").json()["error"]["code"] == "Application_DialogException"      # nothing has been copied
    lab.run()
    assert act(v2, "validate", {"suites": ["nope"]}).status_code == 404
    assert act(v2, "validate", {"suites": ["rows", "keys"], "force": True}).status_code == 204
    assert v2.rows("validations")[0]["status"] == "InProgress"
    lab.work()
    [validation] = v2.rows("validations")
    assert (validation["status"], validation["suites"], validation["checks"] > 10) == ("Completed", "rows\nkeys", True)
    assert v2.rows("validationResults") == []

    schema = v2.rows("sourceCompanies")[0]["name"]
    table = next(row["tableName"] for row in v2.rows("tables") if row["tableName"].startswith("Customer$"))
    lab.in_target(f'delete from "{schema}"."{table}"')
    assert act(v2, "validate", {"suites": ["keys"], "force": True}).status_code == 204
    lab.work()
    results = v2.rows("validationResults?$filter=suite eq 'keys' and isWarning eq false&$orderby=key")
    assert {(row["companyName"], row["test"], row["expected"], row["actual"]) for row in results} == {
        (schema, "missing", "exists", "does not exist")}
    [suite] = [row for row in v2.rows("validationSuites") if row["id"] == "keys"]
    [test] = [row for row in v2.rows("validationTests?$filter=suite eq 'keys'") if row["code"] == "missing"]
    assert suite["errorCount"] == test["failCount"] == len(results) > 0 and suite["errorsShouldFailMigration"]
    path = f"validationTests('{test['id']}')"
    assert v2.get("validationTests?$filter=failCount gt 0").status_code == 501
    assert v2.ask("PATCH", path, {"suite": "rows"}, If_Match="*").status_code == 400
    assert v2.ask("PATCH", path, {"ignore": True}, If_Match=test["@odata.etag"]).json()["ignore"] is True
    assert v2.ask("PATCH", path, {"ignore": False}, If_Match=test["@odata.etag"]).status_code == 409
    assert v2.rows("validationResults") == []


def test_events_are_read_page_by_page_and_by_number(connected):
    v2, _ = connected
    count = int(v2.get("events/$count").text)
    ids, page = [], v2.get("events?$count=true", Prefer="odata.maxpagesize=3").json()
    assert page["@odata.count"] == count > 6
    while True:
        ids += [row["id"] for row in page["value"]]
        if "@odata.nextLink" not in page:
            break
        page = v2.get(page["@odata.nextLink"].partition(ROOT + "/")[2]).json()
    assert ids == sorted(ids, reverse=True) and len(set(ids)) == count
    assert v2.get(f"events({ids[0]})").json()["id"] == ids[0] == v2.get(f"events(id={ids[0]})/id").json()["value"]
    assert v2.error("events(0)")[0] == 404 and v2.error("events('1')")[0] == v2.error(f"events({'9' * 19})")[0] == 400
    assert v2.error("events", "POST", body={})[0] == v2.error(f"events({ids[0]})", "PATCH", body={})[0] == 405
    first = v2.rows("events?$orderby=time,id&$top=1")[0]
    assert first["id"] == ids[-1] and v2.rows(f"events?$filter=time le {first['time']} and actor ne 'x'&$top=1")


def test_limits_say_what_is_bounded_and_by_which_setting(v2):
    limits = {row["name"]: row for row in v2.rows("limits")}
    assert limits["pageRows"]["value"] == v2.http.service.settings.page_size and limits["pageRows"]["setting"] == "page_size"
    assert limits["companies"]["value"] is None and limits["batchRequests"]["value"] == 100
    assert v2.get("limits('queryCharacters')").json()["value"] == 8099
    assert v2.rows("limits?$filter=unit eq 'bytes' and setting ne ''&$orderby=name desc&$select=name")[0]["name"] == "bodyBytes"
    assert v2.error("limits?$filter=value gt 5")[0] == 501
