"""/metrics as prometheus_client's own parsers read it, who may read it, and what a batch tells."""

import json
from datetime import UTC, datetime

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as open_parser

from skylift.api.watch import UNKNOWN, template
from skylift.store.tables import deliveries, run_tables, runs
from skylift.telemetry.metrics import METRICS, REQUESTS
from tests.api.conftest import fill, open_client

OPEN = "application/openmetrics-text; version=1.0.0"
ID = "00000000-0000-0000-0000-000000000032"


@pytest.fixture
def watched(tmp_path):
    client = open_client(tmp_path / "home", prometheus="on", telemetry_log="events.jsonl")
    with client.http.service.store.write() as connection:
        fill(connection)
    yield client
    client.http.service.telemetry.close()
    client.http.service.store.close()


def scrape(client, accept=""):
    answer = client.http.get("/metrics", headers={"Authorization": f"Bearer {client.token}", "Accept": accept})
    assert answer.status_code == 200, answer.text
    read = open_parser if accept == OPEN else parser
    return {family.name: family for family in read.text_string_to_metric_families(answer.text)}


def labels(sample):
    """In the order of their names."""
    return tuple(sample.labels[name] for name in sorted(sample.labels))


def values(family):
    return {labels(s): s.value for s in family.samples if s.name in (family.name, f"{family.name}_total")}


def requests(found):
    return {labels(s): s.value for s in found[REQUESTS.family].samples if s.name.endswith("_count")}


@pytest.mark.parametrize("accept", ["", OPEN])
def test_every_figure_is_there_and_says_what_the_store_holds(watched, accept):
    now = datetime.now(UTC)
    with watched.http.service.store.write() as connection:
        for outcome in ("delivered", "again", "delivered"):
            connection.execute(deliveries.insert().values(at=now, url="https://x", subscriptions="", items=1, attempt=1, status=200,
                                                          outcome=outcome, error="", duration_ms=1))
        connection.execute(run_tables.update().where(run_tables.c.run_id == "run-10").values(
            mode="full", ended_at=now, status="Successful"))
    assert watched.get("cloudMigrationStatus").status_code == 200
    found = scrape(watched, accept)

    assert {name for name in found if not name.endswith("_created")} == {metric.family for metric in METRICS.values()}
    assert values(found["skylift_runs"]) == {("Completed", "Full"): 1, ("Completed", "Normal"): 3, ("UpgradePending", "Normal"): 4,
                                             ("Failed", "Normal"): 3, ("InProgress", "Normal"): 1}
    assert values(found["skylift_tables"]) == {("NotStarted",): 1, ("InProgress",): 1}
    assert values(found["skylift_rows_copied"]) == {("full",): 0 + 10 + 20 + 30 + 40}
    assert values(found["skylift_webhook_deliveries"]) == {("delivered",): 2, ("again",): 1}
    assert values(found["skylift_coordinators"]) == {(): 0} and values(found["skylift_state"]) == {("NotSetUp",): 1}
    assert values(found["skylift_api_limit"])["running",] == 5 and values(found["skylift_api_requests_running"]) == {(): 1}    # this one
    begun = next(run for run in watched.rows("cloudMigrationStatus") if run["runId"] == "run-10")["startTime"]
    assert values(found["skylift_lag_seconds"])[()] == pytest.approx((now - datetime.fromisoformat(begun)).total_seconds(), abs=60)
    assert requests(found) == {("GET", "200", "v1.0/cloudMigrationStatus"): 1}


def test_counters_go_on_while_runs_change_and_never_back(watched):
    def copied(rows):
        with watched.http.service.store.write() as connection:
            connection.execute(run_tables.update().where(run_tables.c.run_id == "run-11").values(mode="full", records_copied=rows))
            connection.execute(runs.update().where(runs.c.run_id == "run-11").values(attempts=0))
        return values(scrape(watched)["skylift_rows_copied"])["full",]

    assert [copied(rows) for rows in (100, 300, 0, 100, 500)] == [200, 600, 600, 600, 1000]


@pytest.mark.parametrize("credentials, status", [(None, 401), ("Bearer nobody", 401), ("reader", 200), ("basic", 200)])
def test_who_has_a_token_may_read_it(watched, credentials, status):
    secret = watched.http.service.create_token("prometheus", "reader")
    options = {"reader": {"headers": {"Authorization": f"Bearer {secret}"}}, "basic": {"auth": ("prometheus", secret)}, None: {}}.get(
        credentials, {"headers": {"Authorization": str(credentials)}})
    answer = watched.http.get("/metrics", **options)

    assert answer.status_code == status
    assert "skylift_runs" in answer.text if status == 200 else answer.json()["error"]["code"] == "Authentication_InvalidCredentials"


def test_it_counts_as_a_request_and_is_not_there_unless_asked_for(tmp_path):
    limited = open_client(tmp_path / "a", prometheus="on", api_requests=1)
    headers = {"Authorization": f"Bearer {limited.token}"}
    assert [limited.http.get("/metrics", headers=headers).status_code for _ in range(2)] == [200, 429]
    assert limited.http.request("POST", "/metrics", headers=headers).status_code == 405
    off = open_client(tmp_path / "b")
    assert off.http.get("/metrics", headers={"Authorization": f"Bearer {off.token}"}).status_code == 404


@pytest.mark.parametrize("path, route", [
    ("/health", "health"), ("/metrics", "metrics"), ("/", UNKNOWN), ("/api", UNKNOWN), ("/wp-admin/x", UNKNOWN),
    ("/api/v9.0/companies", UNKNOWN),
    (f"/v2.0/Production/api/microsoft/cloudMigration/v1.0/companies({ID})/cloudMigrationStatus({ID})/Microsoft.NAV.runReplication",
     "v1.0/companies({id})/cloudMigrationStatus({id})/Microsoft.NAV.runReplication"),
    (f"/api/v1.0/cloudMigrationStatus({ID})/NAV.runReplication", "v1.0/cloudMigrationStatus({id})/Microsoft.NAV.runReplication"),
    ("/BC/api/v1.0/cloudMigrationStatus/$count", "v1.0/cloudMigrationStatus/$count"), ("/api/v1.0/$metadata", "v1.0/$metadata"),
    ("/api/v1.0/secret(x)/y", f"v1.0/{UNKNOWN}"), ("/api/v1.0", "v1.0"),
    ("/api/v1.0" + f"/cloudMigrationStatus({ID})/cloudMigrationStatusDetails" * 30,
     "v1.0" + "/cloudMigrationStatus({id})/cloudMigrationStatusDetails" * 2),
])
def test_routes_are_told_without_keys_and_are_few(path, route):
    assert template(path) == route


def test_a_refused_request_is_timed_too_and_a_method_that_nobody_knows_makes_no_label(watched):
    watched.get("nothing")
    watched.ask("PROPFIND", "companies")
    watched.http.get("/api/v1.0/companies")

    assert requests(scrape(watched)) == {("GET", "404", f"v1.0/{UNKNOWN}"): 1, (UNKNOWN, "405", "v1.0/companies"): 1,
                                         ("GET", "401", "v1.0/companies"): 1}


def test_the_group_of_a_batch_that_fails_tells_nothing_and_one_that_holds_tells_all(watched):
    def batch(last):
        bodies = [{"method": "PATCH", "url": f"cloudMigrationCompanies({ID})", "body": {"replicate": last != "nothing"}},
                  {"method": "PATCH", "url": last, "body": {"replicate": True}}]
        items = [{"id": str(n), "atomicityGroup": "g", "headers": {"If-Match": "*", "Content-Type": "application/json"}, **body}
                 for n, body in enumerate(bodies)]
        return [answer["status"] for answer in watched.ask("POST", "$batch", {"requests": items}).json()["responses"]]

    from skylift.runs import MigrationState
    from skylift.store.tables import migration
    with watched.http.service.store.write() as connection:
        connection.execute(migration.update().values(state=MigrationState.READY))
    assert batch("nothing")[-1] == 404
    other = f"cloudMigrationCompanies({ID[:-1]}3)"
    assert batch(other) == [200, 200]

    watched.http.service.telemetry.close()
    said = [json.loads(line) for line in (watched.http.service.settings.home / "events.jsonl").read_text().splitlines()]
    assert [(line["eventId"], line["actor"]) for line in said if line["event"].startswith("company")] == [("AL0000MRI", "admin")]
