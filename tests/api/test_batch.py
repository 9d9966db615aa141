"""$batch as JSON, on each database that can hold a store."""

import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from uuid import UUID

import pytest
import sqlalchemy as sa

from skylift.api.batch import ROLLED_BACK
from skylift.errors import Transient
from skylift.migration import setup, webhooks
from skylift.migration.changes import note
from skylift.model import SourceCompany
from skylift.store import Store
from skylift.store.tables import changes, migration, subscriptions
from tests.api.batches import MAPPINGS, WRONG, batch, get, post, ready_client, refused, statuses, stored
from tests.api.conftest import START, fill, number, open_client

RUNS, COMPANIES = "cloudMigrationStatus", "cloudMigrationCompanies"


@pytest.fixture
def client(tmp_path, store_url):
    with ready_client(tmp_path, store_url) as client:
        yield client


# ------------------------------------------------------------------ B1, B5: items are requests


@pytest.mark.rule("B1")
@pytest.mark.parametrize("url", [
    "", RUNS, f"{RUNS}?$top=1&$select=runId&$count=true", f"{RUNS}({number(1)})", f"{RUNS}/$count", f"{RUNS}({number(1)})/status",
    f"{RUNS}({number(1)})/status/$value", "$metadata", "companies?$filter=name eq 'Fabrikam (UK)'", "companies(name='Fabrikam%20(UK)')",
    "nothing", f"{RUNS}({number(99)})", f"{RUNS}?$filter=x eq 1", f"{RUNS}?$top=1&$top=2", "x(", "entityDefinitions"])
def test_an_item_is_answered_as_the_request_alone_is(full, url):
    alone = full.get(url)
    [item] = batch(full, get(url, "1"))
    assert item["status"] == alone.status_code and item["id"] == "1"
    unlike = {"content-length", "request-id"}
    assert item["headers"].items() - {(name, item["headers"][name]) for name in unlike & item["headers"].keys()} == {
        (name, value) for name, value in alone.headers.items() if name not in unlike}
    if alone.status_code >= 400:
        assert item["body"]["error"]["code"] == alone.json()["error"]["code"]
        assert item["body"]["error"]["message"].endswith(f"CorrelationId:  {item['headers']['request-id']}.")
    elif "json" in alone.headers["content-type"]:
        assert item["body"] == alone.json()
    elif alone.headers["content-type"].startswith("text/"):
        assert item["body"] == alone.text
    else:
        assert base64.urlsafe_b64decode(item["body"] + "===") == alone.content


@pytest.mark.rule("B1")
def test_ids_are_answered_as_they_were_sent_and_may_be_missing(full):
    answered = batch(full, get("companies", "a"), {"method": "get", "url": "companies"}, get("companies", 7), get("companies", ""))
    assert [item["id"] for item in answered] == ["a", None, 7, ""]
    assert all(item["headers"]["odata-version"] == "4.0" and item["headers"]["content-type"].startswith("application/json")
               for item in answered)


@pytest.mark.rule("B1")
def test_the_url_of_an_item_is_relative_path_absolute_or_absolute(full):
    company = f"companies({number(901)})/{RUNS}?$top=1"
    for url in (company, f"/{company}", f"/api/v1.0/{company}", f"http://testserver/api/v1.0/{company}", f"/BC/api/v1.0//{company}"):
        [item] = batch(full, get(url))
        assert item["status"] == 200 and f"/$metadata#companies({number(901)})/{RUNS}" in item["body"]["@odata.context"], url
    [item] = batch(full, get("http://elsewhere/api/v1.0/companies"))
    assert item["status"] == 400 and "leads to another host, 'elsewhere'" in item["body"]["error"]["message"]
    assert statuses(full, get("/nothing/companies")) == [404]
    [item] = batch(full, get("/v2.0/prod/api/v1.0/companies"))
    assert item["status"] == 400 and "another service, 'http://testserver/v2.0/prod/api/v1.0'" in item["body"]["error"]["message"]
    [item] = batch(full, get(f"{RUNS}?$filter=details eq '\u20ac'"))
    assert item["status"] == 200


@pytest.mark.rule("B1")
def test_an_answer_without_content_has_no_body(client):
    newest = client.rows(RUNS)[0]["id"]
    [head, action, seen] = batch(client, {"method": "HEAD", "url": RUNS}, {"method": "POST", "url": f"{RUNS}({newest})/NAV.refreshStatus"},
                                 get("companies", headers={"If-None-Match": "*"}))
    assert "body" not in head and int(head["headers"]["content-length"]) > 0
    assert (action["status"], "body" in action) == (204, False) and seen["status"] == 200
    [named] = batch(client, {"method": "REFRESHSTATUS", "url": f"{RUNS}({newest})/NAV.refreshStatus"})
    assert named["status"] == 204


@pytest.mark.rule("B5")
def test_credentials_are_checked_once_and_permission_for_each_item(client):
    reader = client.as_role("reader")
    company = client.rows(COMPANIES)[0]["id"]
    patch = {"method": "PATCH", "url": f"{COMPANIES}({company})", "headers": {"If-Match": "*"}, "body": {"replicate": False}}
    requests = get(RUNS, headers={"Authorization": "Bearer nonsense"}), patch, get(RUNS)
    assert statuses(reader, *requests, Prefer="odata.continue-on-error") == [200, 403, 200]
    assert client.rows(COMPANIES)[0]["replicate"] is True
    assert client.http.request("POST", "/api/v1.0/$batch", json={"requests": [get(RUNS)]}).status_code == 401


@pytest.mark.rule("B5")
@pytest.mark.parametrize(("count", "status"), [(100, 200), (101, 413), (0, 200)])
def test_a_batch_has_a_hundred_items_at_most(full, count, status):
    answer = full.ask("POST", "$batch", {"requests": [get("companies")] * count})
    assert answer.status_code == status and (status != 200 or len(answer.json()["responses"]) == count)


@pytest.mark.rule("B5", "C1")
def test_the_company_of_the_batch_is_that_of_items_which_name_none(full):
    first, second = (f"#companies({number(n)})/" for n in (900, 901))

    def contexts(path, *requests, **headers):
        return [item["body"]["@odata.context"].partition("$metadata")[2][:len(first)]
                for item in batch(full, *requests, path=path, **headers)]

    own = [get(RUNS), get(f"{RUNS}?company=CRONUS"), get(RUNS, headers={"CompanyId": str(number(900))}),
           get(f"companies({number(900)})/{RUNS}")]
    assert contexts("$batch?company=Fabrikam%20(UK)", *own) == [second, first, first, first]
    assert contexts("$batch", *own, CompanyId=str(number(901))) == [second, first, first, first]
    assert contexts("$batch", get(RUNS, headers={"company": "Fabrikam (UK)"})) == [second]
    [item] = batch(full, get(RUNS), path="$batch?company=nobody")
    assert (item["status"], item["body"]["error"]["code"]) == (404, "Internal_CompanyNotFound")


def test_the_schema_version_of_the_batch_is_that_of_items_which_name_none(full):
    urls = get(f"{RUNS}?$top=1"), get(f"{RUNS}?$top=1&$schemaversion=1.0")
    assert [item["body"]["value"][0]["status"] for item in batch(full, *urls, path="$batch?$schemaversion=2.0")] == [
        "InProgress", "In Progress"]


@pytest.mark.rule("H5")
def test_a_batch_that_intends_to_read_only_reads(client):
    assert statuses(client, get(RUNS), post(1), Data_Access_Intent="ReadOnly") == [200, 400]
    assert stored(client) == []


@pytest.mark.rule("B1", "B6")
@pytest.mark.parametrize("kind", ["text/plain", "", "application/xml", "multipart/form-data; boundary=x"])
def test_a_batch_is_json_or_multipart(full, kind):
    assert full.error("$batch", "POST", body="{}", Content_Type=kind)[:2] == (415, "BadRequest")


def test_bodies_that_are_not_json_travel_as_strings(client):
    newest = client.rows(RUNS)[0]["id"]
    action = {"method": "POST", "url": f"{RUNS}({newest})/NAV.refreshStatus"}
    for kind, body, status in (("text/plain", "", 204), ("text/plain", "x", 415), ("application/octet-stream", "e30", 204),
                               ("application/octet-stream", "eA", 415)):
        assert statuses(client, action | {"headers": {"Content-Type": kind}, "body": body}) == [status], (kind, body)
    assert statuses(client, action | {"body": {}}, action | {"body": None}) == [204, 204]
    assert statuses(client, action | {"headers": {"Content-Type": "text/plain"}, "body": {}}) == [204]
    assert statuses(client, action | {"headers": {"Content-Type": "image/png"}, "body": "a"}) == [415]
    assert refused(client, action | {"if": "$1/x eq 2"})[:2] == (501, "BadRequest_MethodNotImplemented")


# ------------------------------------------------------------------ B2: failures


@pytest.mark.rule("B2")
def test_the_first_failure_ends_the_batch_and_what_was_before_it_stays(client):
    answered = batch(client, post(1, "a"), WRONG | {"id": "b"}, post(2, "c"))
    assert [(item["id"], item["status"]) for item in answered] == [("a", 201), ("b", 404)]
    assert stored(client) == ["T1"] and ROLLED_BACK not in answered[0]["headers"]


@pytest.mark.rule("B2")
@pytest.mark.parametrize("preference", ["odata.continue-on-error", "continue-on-error", "odata.continue-on-error=true",
                                        "continue-on-error=true"])
def test_a_client_may_want_to_go_on_after_a_failure(client, preference):
    answer = client.ask("POST", "$batch", {"requests": [post(1), WRONG, post(1), post(2)]}, Prefer=preference)
    assert [item["status"] for item in answer.json()["responses"]] == [201, 404, 409, 201] and stored(client) == ["T1", "T2"]
    assert answer.headers["preference-applied"] == "odata.continue-on-error"
    assert statuses(client, WRONG, get(RUNS), Prefer="continue-on-error=false") == [404]


# ------------------------------------------------------------------ B3: all or nothing


@pytest.mark.rule("B3")
@pytest.mark.parametrize("header", ["Isolation", "OData-Isolation"])
def test_a_snapshot_batch_that_fails_leaves_nothing_although_items_report_success(client, header):
    before = client.rows(COMPANIES)
    patch = {"method": "PATCH", "url": f"{COMPANIES}({before[0]['id']})", "headers": {"If-Match": "*"}, "body": {"replicate": False}}
    answered = batch(client, post(1), patch, get(MAPPINGS), post(1), post(2), **{header: "snapshot"})
    assert [item["status"] for item in answered] == [201, 200, 200, 409]
    assert len(answered[2]["body"]["value"]) == 1                   # the items saw what those before them did
    assert [ROLLED_BACK in item["headers"] for item in answered] == [True, True, False, False]
    assert stored(client) == [] and client.rows(COMPANIES) == before


@pytest.mark.rule("B3")
def test_a_snapshot_batch_that_succeeds_stays(client):
    answered = batch(client, post(1), post(2), Isolation="snapshot")
    assert [item["status"] for item in answered] == [201, 201] and stored(client) == ["T1", "T2"]
    assert not any(ROLLED_BACK in item["headers"] for item in answered)
    assert statuses(client, get(RUNS), get(MAPPINGS), Isolation="Snapshot") == [200, 200]
    assert refused(client, get(RUNS), Isolation="serializable")[:2] == (400, "BadRequest")


@pytest.mark.rule("B3", "B2")
def test_a_snapshot_batch_that_goes_on_after_a_failure_leaves_nothing_all_the_same(client):
    answered = batch(client, post(1), WRONG, post(2), Isolation="snapshot", Prefer="continue-on-error")
    assert [item["status"] for item in answered] == [201, 404, 201] and stored(client) == []
    assert [ROLLED_BACK in item["headers"] for item in answered] == [True, False, True]


@pytest.mark.rule("B3")
def test_a_group_is_done_wholly_or_not_at_all(client):
    groups = [post(1, "1", atomicityGroup="a"), post(2, "2", atomicityGroup="a"), post(3, "3", atomicityGroup="b"),
              post(3, "4", atomicityGroup="b"), post(4, "5", atomicityGroup="b"), post(5, "6")]
    answered = batch(client, *groups)
    assert [(item["id"], item["status"]) for item in answered] == [("1", 201), ("2", 201), ("3", 201), ("4", 409)]
    assert stored(client) == ["T1", "T2"] and ROLLED_BACK in answered[2]["headers"]
    for row in client.rows(MAPPINGS):
        client.ask("DELETE", f"{MAPPINGS}({row['id']})")
    answered = batch(client, *groups, Prefer="continue-on-error")
    assert [item["status"] for item in answered] == [201, 201, 201, 409, 424, 201] and stored(client) == ["T1", "T2", "T5"]


@pytest.mark.rule("B3")
def test_a_group_inside_a_snapshot_belongs_to_it(client):
    assert statuses(client, post(1, "1", atomicityGroup="a"), post(2, "2", atomicityGroup="a"), WRONG, Isolation="snapshot") == [
        201, 201, 404]
    assert stored(client) == []


@pytest.mark.rule("B3")
def test_a_run_ends_the_transaction(client):
    newest = client.rows(RUNS)[0]["id"]
    start = {"id": "run", "method": "POST", "url": f"{RUNS}({newest})/Microsoft.NAV.runReplication"}
    answered = batch(client, post(1), start, get("$run?$select=status"), post(2), WRONG, Isolation="snapshot")
    assert [item["status"] for item in answered] == [201, 204, 200, 201, 404]
    assert answered[2]["body"]["status"] == "In Progress"
    assert stored(client) == ["T1"] and client.rows(RUNS)[0]["status"] == "In Progress"
    assert [ROLLED_BACK in item["headers"] for item in answered] == [False, False, False, True, False]


@pytest.mark.rule("B3")
def test_a_run_that_is_refused_ends_nothing(client):
    newest = client.rows(RUNS)[0]["id"]
    act = {"method": "POST", "url": f"{RUNS}({newest})/Microsoft.NAV.runDataUpgrade"}
    assert statuses(client, post(1), act, Isolation="snapshot") == [201, 400] and stored(client) == []


@pytest.mark.rule("B3")
def test_the_end_of_the_migration_stays_for_the_source_has_been_told(client):
    newest = client.rows(RUNS)[0]["id"]
    act = {"method": "POST", "url": f"{RUNS}({newest})/Microsoft.NAV.disableReplication"}
    assert statuses(client, post(1), act, WRONG, Isolation="snapshot") == [201, 204, 404]
    assert stored(client) == ["T1"] and client.rows(RUNS)[0]["details"] == "The migration has been disabled."


@pytest.mark.rule("B3")
def test_what_cannot_be_committed_is_not_reported_as_done(client, monkeypatch):
    together = Store.together

    @contextmanager
    def failing(self, **how):
        with together(self, **how) as whole:
            yield whole
            if how.get("writes", True):
                raise Transient("the store did not answer", hint="try again")

    monkeypatch.setattr(Store, "together", failing)
    answered = batch(client, post(1), post(2), Isolation="snapshot")
    assert [item["status"] for item in answered] == [201, 503] and ROLLED_BACK in answered[0]["headers"]
    assert answered[1]["headers"]["retry-after"]
    assert statuses(client, post(3, "3", atomicityGroup="a"), get(RUNS, dependsOn=["a"]), Prefer="continue-on-error") == [503, 424]
    assert stored(client) == []


@pytest.mark.rule("B3")
def test_a_store_that_is_away_is_told_for_the_first_item(client, monkeypatch):
    @contextmanager
    def away(self, **how):
        raise Transient("the store did not answer")
        yield

    monkeypatch.setattr(Store, "together", away)
    assert statuses(client, get(RUNS), get(MAPPINGS), Isolation="snapshot") == [503]


@pytest.mark.rule("B3")
def test_verbs_of_others_wait_for_the_end_of_a_transaction_and_see_what_it_did(client):
    service, order = client.http.service, []

    def other():
        with service.verb():
            order.append("other")

    with service.store.together():
        with service.verb() as verb:
            verb.log("test", "together")
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.3)
        order.append("together")
    thread.join(20)
    assert order == ["together", "other"]


@pytest.mark.rule("B3", "K4")
def test_what_a_transaction_takes_back_is_not_told_and_what_it_did_is_told_once(client):
    """Beside a run that writes what webhooks tell of at the same time."""
    store, [row] = client.http.service.store, client.rows(COMPANIES)
    with store.write() as connection:
        connection.execute(subscriptions.insert().values(
            id="x", kind="SourceCompany", created_at=START, modified_at=START, expires_at=START.replace(year=9999), user_id=number(0),
            created_by=number(0), modified_by=number(0)))

    def told():
        with store.read() as connection:
            return [change.entity_id for change in connection.execute(sa.select(changes))]

    def mark(replicate):
        return {"method": "PATCH", "url": f"{COMPANIES}({row['id']})", "headers": {"If-Match": "*"}, "body": {"replicate": replicate}}

    def run():
        for n in range(20):
            with store.write() as connection:
                note(connection, SourceCompany, [number(n)])

    assert statuses(client, mark(False), WRONG, Isolation="snapshot") == [200, 404] and told() == []
    with ThreadPoolExecutor(1) as other:
        running = other.submit(run)
        for n in range(20):
            assert statuses(client, mark(n % 2 == 0), get(RUNS), mark(n % 2 == 1), Isolation="snapshot") == [200] * 3
        running.result()
    assert sorted(told()) == sorted([*(number(n) for n in range(20)), UUID(row["id"])])


# ------------------------------------------------------------------ B4: dependencies and references


@pytest.mark.rule("B4")
def test_an_item_whose_dependency_failed_is_424(client):
    answered = batch(client, WRONG | {"id": "1"}, get(RUNS, "2", dependsOn=["1"]), get(RUNS, "3", dependsOn=["2"]), get(RUNS, "4"),
                     get(RUNS, "5", dependsOn=["4"]), Prefer="continue-on-error")
    assert [item["status"] for item in answered] == [404, 424, 424, 200, 200]
    assert "depends on '1', which has failed" in answered[1]["body"]["error"]["message"]


@pytest.mark.rule("B4", "B3")
def test_an_item_that_depends_on_a_group_taken_back_is_424(client):
    answered = batch(client, post(1, "1", atomicityGroup="a"), post(1, "2", atomicityGroup="a"), get("$1", "3"),
                     get(RUNS, "4", dependsOn=["a"]), get(RUNS, "5", dependsOn=[1]), Prefer="continue-on-error")
    assert [item["status"] for item in answered] == [201, 409, 424, 424, 424]


@pytest.mark.rule("B4")
@pytest.mark.parametrize("requests", [
    [get(RUNS, "1", dependsOn=["2"]), get(RUNS, "2")], [get(RUNS, "1", dependsOn=["1"])], [get(RUNS, "1", dependsOn=["x"])],
    [get("$2", "1"), post(1, "2")], [get(RUNS, "1"), get(RUNS, "1")], [get(RUNS, 1), get(RUNS, "1")],
    [get(RUNS, "1", atomicityGroup="a", dependsOn=["a"])], [get(RUNS, "a", atomicityGroup="a")],
    [get(RUNS, atomicityGroup="a"), get(RUNS, atomicityGroup="b"), get(RUNS, atomicityGroup="a")],
    [get(RUNS, "b", atomicityGroup="a"), get(RUNS, atomicityGroup="b")],
    [{"method": "POST", "url": "$batch", "body": {"requests": []}}], [{"method": "POST", "url": "/api/v1.0//%24batch/?x=1"}],
    [{"method": "GET"}], [{"url": RUNS}], [get(None)], [get(RUNS, True)], [get(RUNS, headers={"a": 1})], [get(RUNS, dependsOn="1")], [5]])
def test_a_batch_with_broken_ids_or_nesting_is_refused_as_a_whole(full, requests):
    assert refused(full, post(9), *requests)[:2] == (400, "BadRequest") and stored(full) == ["T"]


@pytest.mark.rule("B4")
@pytest.mark.parametrize("body", ["", "{", "[]", "{}", '{"requests":{}}', '{"requests":null}', "[" * 100_000, '{"requests":[' * 50_000,
                                  '{"requests":[{"method":"GET","url":"x","body":' + "[" * 100_000, b"\xff", "null"])
def test_a_batch_that_cannot_be_read_is_refused_as_a_whole(full, body):
    assert full.error("$batch", "POST", body=body, Content_Type="application/json")[:2] == (400, "BadRequest")


@pytest.mark.rule("B4", "B6")
def test_the_entity_of_an_earlier_item_is_referred_to_by_its_id(client):
    answered = batch(
        client, post(1, "new"), get("$new", "2"), get("$new/tableName/$value"), get("$new?$select=tableId"),
        {"id": "5", "method": "PATCH", "url": "$new", "headers": {"If-Match": "$new"}, "body": {"tableName": "Changed"}},
        {"method": "DELETE", "url": "$5", "headers": {"If-Match": "$5"}}, get("$5"), get("$metadata"), get("$other"))
    assert [item["status"] for item in answered] == [201, 200, 200, 200, 200, 204, 404]
    assert answered[1]["body"] == answered[0]["body"] and answered[2]["body"] == "T1"
    assert answered[4]["body"]["tableName"] == "Changed" and stored(client) == []
    assert statuses(client, get("$metadata", "metadata"), get("$other")) == [200, 404]


def test_a_batch_does_not_answer_more_than_fits_in_memory(full, monkeypatch):
    monkeypatch.setattr("skylift.api.batch.MOST_ANSWERED_BYTES", 30_000)
    answered = batch(full, *[get("$metadata")] * 9)
    assert 1 < len(answered) < 9 and [item["status"] for item in answered] == [200] * (len(answered) - 1) + [413]


def test_an_empty_company_header_is_none(tmp_path):
    client = open_client(tmp_path)
    with client.http.service.store.write() as connection:
        fill(connection)
    assert statuses(client, get(RUNS, headers={"Company": ""}), get(f"{RUNS}?company=")) == [200, 200]


# ------------------------------------------------------------------ the outside world


def outside(client, monkeypatch, refuse=()):
    """A source and receivers that answer only if anybody may write to the store meanwhile; lists the receivers that were called.

    The receivers in `refuse` do not confirm.
    """
    called = []
    connect, store = setup.open_source, client.http.service.store

    def write():
        with store.write() as connection:
            connection.execute(migration.update().values(runtime_name=migration.c.runtime_name))

    def nobody_waits():
        with ThreadPoolExecutor(1) as pool:
            pool.submit(write).result(20)

    def call(url, body, headers, **_):
        nobody_waits()
        address, _, token = url.partition("?validationToken=")
        called.append(address)
        return 200, b"no" if address in refuse else token.encode()

    def open_source(url):
        nobody_waits()
        called.append("source")
        return connect(url)

    monkeypatch.setattr(webhooks, "call", call)
    monkeypatch.setattr(setup, "open_source", open_source)
    return called


def subscribe(name, **more):
    return {"method": "POST", "url": "subscriptions", "body": {"notificationUrl": f"https://{name}.example", "resource": MAPPINGS}, **more}


@pytest.mark.rule("B3", "K1")
def test_the_outside_world_is_asked_before_the_transaction_of_a_group_begins(client, monkeypatch):
    called = outside(client, monkeypatch)
    kept = client.rows("setupCloudMigration")[0]["id"]
    change = {"method": "PATCH", "url": f"setupCloudMigration({kept})", "headers": {"If-Match": "*"}, "body": {"sqlServerType": "AzureSQL"}}
    answers = client.ask("POST", "$batch", {"requests": [
        get(MAPPINGS), post(1, atomicityGroup="g"), subscribe("a", atomicityGroup="g"), subscribe("b", atomicityGroup="g"),
        subscribe("a", atomicityGroup="g"), change | {"atomicityGroup": "g"}]}).json()["responses"]
    assert [answer["status"] for answer in answers] == [200, 201, 201, 201, 201, 200], answers
    assert called == ["https://a.example", "https://b.example", "https://a.example", "source"]
    assert len(client.rows("subscriptions")) == 3 and len(client.rows(MAPPINGS)) == 1


@pytest.mark.rule("B3", "K1")
def test_a_receiver_that_does_not_confirm_takes_its_whole_group_back(client, monkeypatch):
    called = outside(client, monkeypatch, refuse=("https://b.example",))
    answers = client.ask("POST", "$batch", {"requests": [
        post(1, atomicityGroup="g"), subscribe("a", atomicityGroup="g"), subscribe("b", atomicityGroup="g")]}).json()["responses"]
    assert [answer["status"] for answer in answers] == [201, 201, 400] and called == ["https://a.example", "https://b.example"]
    assert client.rows("subscriptions") == client.rows(MAPPINGS) == []
