"""Webhook subscriptions over the wire, confirmed by a receiver that is a process of its own; and a whole run told to it."""

import json
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
import sqlalchemy as sa

from skylift.migration.changes import position, untold
from skylift.model import Event, Token
from skylift.query import Query
from skylift.store.tables import source_companies, subscriptions
from tests.api.conftest import Client, fill, number, open_client, served
from tests.migration.lab import Lab
from tests.receiver import Receiver

SUBSCRIPTIONS, RUNS = "subscriptions", "cloudMigrationStatus"
API = "api/microsoft/cloudMigration/v1.0"
V2 = "api/skylift/cloudMigration/v2.0"
LOCAL = {"webhook_networks": "127.0.0.0/8"}


@pytest.fixture(scope="module")
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def client(tmp_path, receiver):
    receiver.mode()
    client = open_client(tmp_path, **LOCAL)
    with client.http.service.store.write() as connection:
        fill(connection)
    yield client
    client.http.service.store.close()


@pytest.fixture
def subscribe(client, receiver):
    def subscribe(resource=RUNS, caller=client, **more):
        return caller.ask("POST", SUBSCRIPTIONS, {"notificationUrl": receiver.url(), "resource": resource, **more})

    return subscribe


def stored(client):
    with client.http.service.store.read() as connection:
        return connection.execute(sa.select(subscriptions)).all()


@pytest.mark.rule("K1")
def test_a_subscription_is_made_once_its_receiver_has_repeated_the_token(client, receiver, subscribe):
    before = len(receiver.handshakes())
    made = client.ask("POST", SUBSCRIPTIONS, {"notificationUrl": receiver.url("/hook?code=a%2Bb&x="), "resource": RUNS,
                                              "clientState": "secret", "expirationDateTime": "2099-01-01T00:00:00Z"})

    assert made.status_code == 201, made.text
    row = made.json()
    assert made.headers["location"].endswith(f"/subscriptions('{row['subscriptionId']}')") and made.headers["etag"] == row["@odata.etag"]
    assert (row["notificationUrl"], row["clientState"]) == (receiver.url("/hook?code=a%2Bb&x="), "secret")
    assert row["resource"] == f"api/v1.0/companies({number(900)})/{RUNS}"
    assert len(row["subscriptionId"]) == 32 and int(row["subscriptionId"], 16)
    expires = datetime.fromisoformat(row["expirationDateTime"]) - datetime.now(UTC)
    assert timedelta(days=2, hours=23) < expires <= timedelta(days=3)
    [handshake] = receiver.handshakes()[before:]
    assert handshake["path"].startswith("/hook?code=a%2Bb&x=&validationToken=")
    assert len(parse_qs(urlsplit(handshake["path"]).query)["validationToken"][0]) == 32
    assert client.rows(SUBSCRIPTIONS) == [{k: v for k, v in row.items() if k != "@odata.context"}]
    assert client.get(f"subscriptions('{row['subscriptionId']}')").json() == row


@pytest.mark.rule("K1")
@pytest.mark.parametrize("mode", [
    {"status": 202}, {"status": 204, "answer": ""}, {"status": 404}, {"status": 500}, {"answer": "wrong"}, {"answer": ""}, {"wait_s": 6},
    {"drip": 0.2}, {"hang_up": True}, {"status": 307, "headers": {"Location": "/elsewhere"}},
], ids=str)
def test_without_the_token_in_time_nothing_is_stored(tmp_path, receiver, mode):
    client = open_client(tmp_path, **LOCAL, webhook_handshake_s=0.5)
    receiver.mode(**mode)
    began = time.monotonic()
    answer = client.ask("POST", SUBSCRIPTIONS, {"notificationUrl": receiver.url(), "resource": RUNS})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "Application_DialogException")
    assert answer.json()["error"]["message"].startswith("The notificationUrl did not confirm the subscription: ")
    assert time.monotonic() - began < 4 and stored(client) == []


@pytest.mark.rule("K6")
def test_a_private_receiver_is_refused_unless_its_network_is_allowed(tmp_path, receiver):
    client = open_client(tmp_path)
    status, code, message = client.error(SUBSCRIPTIONS, "POST", body={"notificationUrl": receiver.url(), "resource": RUNS})
    assert (status, code) == (400, "Application_DialogException") and "127.0.0.1 is private; the setting webhook_networks" in message
    for url in ("http://169.254.169.254/latest/meta-data", "http://[::1]/", "http://localhost:1/", "ftp://x/", "x"):
        assert client.error(SUBSCRIPTIONS, "POST", body={"notificationUrl": url, "resource": RUNS})[0] == 400


@pytest.mark.rule("K1")
@pytest.mark.parametrize(("resource", "path"), [
    (RUNS, f"companies({number(900)})/{RUNS}"),
    (f"/{RUNS}", f"companies({number(900)})/{RUNS}"),
    (f"companies({number(901)})/{RUNS}", f"companies({number(901)})/{RUNS}"),
    ("companies(name='Fabrikam%20(UK)')/cloudMigrationStatuss", f"companies({number(901)})/{RUNS}"),
    (f"/{API}/companies({number(901)})/tableMappings", f"companies({number(901)})/tableMappings"),
    (f"{API}/companies({number(901)})/tableMappings({number(70)})", f"companies({number(901)})/tableMappings({number(70)})"),
    (f"https://api.example.com/v2.0/production/{API}/companies({number(901)})/{RUNS}", f"companies({number(901)})/{RUNS}"),
    (f"/v2.0/x/api/v1.0/companies({number(900)})/{RUNS}({number(1)})", f"companies({number(900)})/{RUNS}({number(1)})"),
])
def test_a_resource_is_absolute_a_path_or_relative_and_kept_in_true_names(client, subscribe, resource, path):
    caller = Client(client.http, client.token, f"/v2.0/production/{API}")
    made = subscribe(resource, caller)
    assert made.status_code == 201, made.text
    api = "api/v1.0" if "/api/v1.0/" in resource else API
    assert made.json()["resource"] == f"{api}/{path}"
    assert client.http.get(f"/BC/{api}/{path}", headers={"Authorization": f"Bearer {client.token}"}).status_code == 200


@pytest.mark.rule("K3", "K1")
@pytest.mark.parametrize(("resource", "taken"), [
    (RUNS, True), ("cloudMigrationStatusDetails", True), ("cloudMigrationCompanies", True), ("setupCloudMigration", True),
    ("tableMappings", True),
    ("companies", False), ("sourceProductTypes", False), ("sourceProductTypes('Custom')", False), (f"companies({number(900)})", False),
    ("subscriptions", False), ("entityDefinitions", False), ("nothing", False), ("", False), ("/", False), ("$metadata", False),
    ("$batch", False),
    (f"{RUNS}/$count", False), (f"{RUNS}({number(1)})/runId", False), (f"{RUNS}({number(99)})", False), (f"{RUNS}(x)", False),
    (f"{RUNS}({number(12)})/cloudMigrationStatusDetails", False), (f"{RUNS}({number(1)})/Microsoft.NAV.runReplication", False),
    (f"{RUNS}?$filter=status eq 'Failed'", False), ("companies(name='Nobody')/tableMappings", False), ("%ff", False), ("a\0b", False),
])
def test_what_has_webhooks_can_be_subscribed_to_and_nothing_else(client, subscribe, resource, taken):
    answer = subscribe(resource)
    assert answer.status_code == (201 if taken else 400), answer.text
    assert len(stored(client)) == taken


@pytest.mark.parametrize(("resource", "kind"), [
    ("runs", "Run"), ("runTables", "RunTable"), ("tables", "TableSwitch"), ("sourceCompanies", "SourceCompany"), ("migrations", "Setup"),
    ("upgradeSteps", "UpgradeStep"), ("findings", "Finding"),
    ("validations", "Validation"), ("validationResults", "ValidationResult"), ("validationTests", None),
    (f"runs({number(1)})", "Run"), (f"/{V2}/runs", "Run"), ("events", None),
    ("limits", None), ("deliveries", None), (f"/{API}/{RUNS}", None), ("/api/v1.0/tableMappings", None), (RUNS, None)])
def test_what_v2_shows_under_a_guid_can_be_subscribed_to_there(client, subscribe, resource, kind):
    answer = subscribe(resource, Client(client.http, client.token, f"/{V2}"))
    assert answer.status_code == (201 if kind else 400), answer.text
    assert [row.kind for row in stored(client)] == ([kind] if kind else [])
    if kind:
        assert answer.json()["resource"].startswith(f"{V2}/companies({number(900)})/")
    assert subscribe(f"/{V2}/runs").status_code == 400               # of v1.0


@pytest.mark.rule("K1", "W5")
@pytest.mark.parametrize(("body", "code"), [
    ({}, "BadRequest_RequiredParamNotProvided"), ({"resource": RUNS}, "BadRequest_RequiredParamNotProvided"),
    ({"notificationUrl": "https://example.com"}, "BadRequest_RequiredParamNotProvided"),
    ({"notificationUrl": 1, "resource": RUNS}, "BadRequest"),
    ({"notificationUrl": "https://x.example", "resource": RUNS, "x": 1}, "BadRequest"),
    ({"notificationUrl": "https://x.example", "resource": RUNS, "userId": str(number(1))}, "BadRequest_InvalidOperation"),
    ({"notificationUrl": "https://x.example", "resource": RUNS, "clientState": "x" * 2049}, "Application_StringExceededLength"),
])
def test_bodies_are_read_strictly_before_anybody_is_called(client, receiver, body, code):
    assert client.error(SUBSCRIPTIONS, "POST", body=body)[:2] == (400, code)


@pytest.mark.rule("K2")
def test_a_renewal_repeats_the_handshake_and_extends(client, receiver, subscribe):
    made = subscribe(clientState="one").json()
    path = f"subscriptions('{made['subscriptionId']}')"
    with client.http.service.store.write() as connection:
        connection.execute(subscriptions.update().values(expires_at=datetime.now(UTC) + timedelta(minutes=1)))
    assert client.error(path, "PATCH", body={})[1] == "BadRequest_InvalidToken"
    assert client.error(path, "PATCH", body={}, If_Match=made["@odata.etag"])[:2] == (409, "Request_EntityChanged")
    before = len(receiver.handshakes())
    renewed = client.ask("PATCH", path, {"clientState": "two", "expirationDateTime": "2099-01-01T00:00:00Z"}, If_Match="*")

    assert renewed.status_code == 200, renewed.text
    row = renewed.json()
    assert len(receiver.handshakes()) == before + 1
    assert (row["clientState"], row["resource"], row["systemCreatedAt"]) == ("two", made["resource"], made["systemCreatedAt"])
    assert datetime.fromisoformat(row["expirationDateTime"]) > datetime.now(UTC) + timedelta(days=2)
    receiver.mode(status=500)
    refused = client.ask("PATCH", path, {"clientState": "three"}, If_Match="*")
    assert refused.status_code == 400 and client.get(path).json()["clientState"] == "two"
    assert client.get(path).json()["expirationDateTime"] == row["expirationDateTime"]
    receiver.mode()
    other = client.ask("PATCH", path, {"resource": "tableMappings", "notificationUrl": receiver.url("/other")}, If_Match="*")
    assert other.json()["resource"].endswith("/tableMappings") and stored(client)[0].kind == "TableMapping"


@pytest.mark.rule("K2")
def test_a_subscription_ends_by_delete_and_by_time(client, subscribe):
    made = subscribe().json()
    assert client.ask("DELETE", f"subscriptions('{made['subscriptionId']}')").status_code == 204
    assert client.rows(SUBSCRIPTIONS) == []
    made = subscribe().json()
    with client.http.service.store.write() as connection:
        connection.execute(subscriptions.update().values(expires_at=datetime.now(UTC)))
    assert client.get(f"{SUBSCRIPTIONS}/$count").text == "0" and client.rows(SUBSCRIPTIONS) == []
    assert client.error(f"subscriptions('{made['subscriptionId']}')", "PATCH", body={}, If_Match="*")[0] == 404
    client.http.service.drop_expired()
    assert stored(client) == []
    assert [event.event for event in client.http.service.select(Event, Query()) if event.subject.startswith("subscription")] == [
        "create", "delete", "create", "expire"]


@pytest.mark.rule("X3")
def test_there_may_be_so_many_subscriptions_and_more_under_on_premises_roots(tmp_path, receiver):
    receiver.mode()
    home = open_client(tmp_path, **LOCAL, subscriptions_online=1, subscriptions_on_premises=2)
    cloud = Client(home.http, home.token, f"/v2.0/production/{API}")
    body = {"notificationUrl": receiver.url(), "resource": RUNS}
    assert cloud.ask("POST", SUBSCRIPTIONS, body).status_code == 201
    assert "There are 1 subscriptions already" in cloud.error(SUBSCRIPTIONS, "POST", body=body)[2]
    assert home.ask("POST", SUBSCRIPTIONS, body).status_code == 201
    assert "There are 2 subscriptions already" in home.error(SUBSCRIPTIONS, "POST", body=body)[2]


@pytest.mark.rule("N4")
def test_who_subscribed_is_told_and_readers_do_not(client, subscribe):
    operator, reader = client.as_role("operator", "o"), client.as_role("reader", "r")
    made = subscribe(caller=operator).json()
    me = next(token for token in client.http.service.select(Token, Query()) if token.name == "o")
    assert made["userId"] == made["systemCreatedBy"] == str(me.id)
    assert subscribe(caller=reader).status_code == 403
    assert reader.error(f"subscriptions('{made['subscriptionId']}')", "DELETE")[0] == 403


# ------------------------------------------------------------------ what the link of a collection leads to


@pytest.mark.rule("K4")
def test_the_link_of_a_collection_finds_what_was_written_since(client):
    before = datetime.now(UTC)
    time.sleep(0.01)
    with client.http.service.store.write() as connection:
        connection.execute(source_companies.update().where(source_companies.c.name.startswith("Z")).values(replicate=True))
    since = f"$filter=lastModifiedDateTime%20gt%20{before:%Y-%m-%dT%H:%M:%S.%fZ}"

    assert [row["name"] for row in client.rows(f"cloudMigrationCompanies?{since}")] == ["Zebra*"]
    assert client.get(f"cloudMigrationCompanies/$count?{since}").text == "1"
    for name in ("cloudMigrationStatus", "cloudMigrationStatusDetails", "setupCloudMigration", "tableMappings"):
        assert client.rows(f"{name}?{since}") == []
    assert len(client.rows("cloudMigrationStatus?$filter=lastModifiedDateTime gt 2020-01-01T00:00:00Z")) == 12
    v2 = Client(client.http, client.token, f"/{V2}")
    for name in ("runs", "runTables", "tables", "sourceCompanies", "migrations", "upgradeSteps", "findings"):
        assert len(v2.rows(f"{name}?{since}")) == (name == "sourceCompanies"), name
    page = client.get(f"cloudMigrationStatus?$filter=lastModifiedDateTime gt {number(1)}", Prefer="maxpagesize=5")
    assert page.status_code == 400


@pytest.mark.rule("M2")
def test_the_time_of_the_last_change_is_for_that_link_only(client):
    assert "lastModifiedDateTime" not in client.rows(RUNS)[0]
    assert client.error(f"{RUNS}?$select=lastModifiedDateTime")[:2] == (400, "BadRequest_NotFound")
    assert client.error(f"{RUNS}?$orderby=lastModifiedDateTime")[:2] == (400, "BadRequest_NotFound")
    assert client.error(f"{RUNS}({number(1)})/lastModifiedDateTime")[0] == 404
    assert client.error("companies?$filter=lastModifiedDateTime gt 2020-01-01T00:00:00Z")[:2] == (400, "BadRequest_NotFound")


# ------------------------------------------------------------------ from end to end


@pytest.mark.rule("K4")
def test_a_run_of_a_real_service_is_told_to_a_real_receiver(tmp_path, receiver):
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database, database:
        for n in range(3):
            database.execute(f"create table t{n} (id integer primary key, name text)")
            database.execute(f"insert into t{n} values (1, 'x')")
    inside = open_client(tmp_path)
    Lab(inside.http.service, tmp_path / "shop.db").prepare(product_id="Custom")
    inside.http.service.store.close()
    receiver.mode()
    with served(tmp_path, **LOCAL, webhook_merge_s=0.3, poll_s=0.05) as (http, _):
        client = Client(http, inside.token, f"/v2.0/production/{API}")
        for resource in (RUNS, "cloudMigrationStatusDetails"):
            made = client.ask("POST", SUBSCRIPTIONS, {"notificationUrl": receiver.url("/run"), "resource": resource,
                                                      "clientState": resource})
            assert made.status_code == 201, made.text
        assert client.ask("POST", f"{RUNS}({client.rows(RUNS)[0]['id']})/Microsoft.NAV.runReplication").status_code == 204
        end = time.monotonic() + 30
        while client.rows(RUNS)[0]["status"] == "In Progress":
            assert time.monotonic() < end
            time.sleep(0.05)
        run, details = client.rows(RUNS)[0], client.rows("cloudMigrationStatusDetails")
        wanted = {row["id"] for row in (run, *details)}
        last = None
        while (time.monotonic() < end and last != (last := receiver.items("/run"))) or not wanted <= {i["resource"][-37:-1] for i in last}:
            time.sleep(0.5)
        for item in last:
            answer = http.get(f"/v2.0/production/{item['resource']}", headers={"Authorization": f"Bearer {inside.token}"})
            assert answer.status_code == 200 and answer.json()["id"] == item["resource"][-37:-1]
            assert item["clientState"] == item["resource"].partition(")/")[2].partition("(")[0]
    kinds = {item["resource"][-37:-1]: item["changeType"] for item in reversed(last)}
    assert kinds == dict.fromkeys(wanted, "created")
    assert json.dumps(last).count("collection") == 0


def test_what_v2_s_verbs_and_a_run_change_is_told(tmp_path, receiver):
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database, database:
        database.execute("create table t (id integer primary key, name text)")
        database.execute("insert into t values (1, 'x')")
    inside = open_client(tmp_path, **LOCAL)
    lab = Lab(inside.http.service, tmp_path / "shop.db")
    lab.prepare(product_id="Custom")
    v2 = Client(inside.http, inside.token, f"/{V2}")
    receiver.mode()
    for resource in ("runs", "tables", "migrations"):
        assert v2.ask("POST", SUBSCRIPTIONS, {"notificationUrl": receiver.url("/v2"), "resource": resource}).status_code == 201

    def told():
        """The sets and types of the changes that nobody has been told of yet, which they are now."""
        with lab.store.write() as connection:
            upto = position(connection)
            found = {(row.resource.rpartition("/")[2], change.change_type) for row in connection.execute(sa.select(subscriptions)).all()
                     for change in untold(connection, row.kind, row.entity_id, row.told, upto)}
            connection.execute(subscriptions.update().values(told=upto))
        return found

    v2.ask("POST", "runs", {"replicationType": "Full"})
    assert told() == {("runs", "created"), ("migrations", "updated")}
    lab.work()
    assert told() == {("runs", "updated"), ("migrations", "updated"), ("tables", "updated")}
    [table] = v2.rows("tables")
    v2.ask("PATCH", f"tables({table['id']})", {"replicate": False}, If_Match="*")
    assert told() == {("tables", "updated")}
    v2.ask("PATCH", f"tables({table['id']})", {"replicate": False}, If_Match="*")       # as it is
    assert told() == set()
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database, database:
        database.execute("create table u (id integer primary key)")
    v2.ask("POST", "runs", {})
    lab.work()
    assert ("tables", "created") in told()
    [migration] = v2.rows("migrations")
    for action in ("pause", "abandon"):
        assert v2.ask("POST", f"migrations({migration['id']})/Microsoft.NAV.{action}").status_code == 204
        assert ("migrations", "updated") in told()
    inside.http.service.store.close()
