import logging
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
import sqlalchemy as sa

from skylift.errors import TargetFailed, Transient
from skylift.migration import setup
from skylift.model import Setup
from skylift.query import Query
from skylift.store.tables import tokens
from tests.api.conftest import Client, number, open_client

RUNS = "cloudMigrationStatus"
ROOTS = ("/v2.0/example.com/prod/api/microsoft/cloudMigration/v1.0", "/v2.0/prod/api/microsoft/cloudMigration/v1.0",
         "/BC/api/microsoft/cloudMigration/v1.0", "/BC/api/v1.0", "/v2.0/example.com/prod/api/v1.0")


@pytest.mark.rule("U1", "U2", "U3", "U4")
@pytest.mark.parametrize("root", ROOTS)
def test_every_root_shows_the_same_and_links_to_itself(full, root):
    client = Client(full.http, full.token, root)
    assert client.rows(RUNS) == full.rows(RUNS)
    answer = client.get(RUNS, Prefer="odata.maxpagesize=1").json()
    assert answer["@odata.context"].startswith(f"http://testserver{root}/$metadata#")
    assert answer["@odata.nextLink"].startswith(f"http://testserver{root}/companies(")
    assert client.get().json()["@odata.context"] == f"http://testserver{root}/$metadata"


# ------------------------------------------------------------------ who may call


@pytest.mark.rule("N3", "X1")
@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic dXNlcjprZXk=", "Token x", "bearer  "])
@pytest.mark.parametrize("path", ["", RUNS, "$metadata", "nothing"])
def test_nothing_is_open(full, authorization, path):
    answer = full.http.get(f"/api/v1.0/{path}", headers={"Authorization": authorization} if authorization else {})
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == 'Bearer realm="skylift", Basic realm="skylift"'
    error = answer.json()["error"]
    assert error["code"] == "Authentication_InvalidCredentials"
    assert error["message"].startswith("The server has rejected the client credentials.  CorrelationId:  ")


@pytest.mark.rule("N3")
def test_the_scheme_ignores_case_and_two_credentials_are_none(full):
    assert full.http.get("/api/v1.0/companies", headers={"Authorization": f"bEARER {full.token}"}).status_code == 200
    twice = [("Authorization", f"Bearer {full.token}"), ("Authorization", "Bearer x")]
    assert full.http.get("/api/v1.0/companies", headers=twice).status_code == 401


def test_revoked_and_expired_tokens_are_worthless(client):
    service = client.http.service
    other = client.as_role("reader", "gone")
    assert other.get(RUNS).status_code == 200
    service.revoke_token("gone")
    assert other.error(RUNS)[0] == 401
    late = Client(client.http, service.create_token("late", "reader", datetime.now(UTC) + timedelta(hours=1)))
    assert late.get(RUNS).status_code == 200
    with service.store.write() as connection:
        connection.execute(sa.update(tokens).where(tokens.c.name == "late").values(expires_at=datetime.now(UTC)))
    assert late.error(RUNS)[0] == 401


@pytest.mark.rule("N4")
def test_readers_read_operators_operate_administrators_set_up(client):
    reader, operator = client.as_role("reader", "r"), client.as_role("operator", "o")
    setup = {"productId": "Custom", "sqlServerType": "SQLServer"}
    for caller in (reader, operator):
        assert caller.get(RUNS).status_code == 200 and caller.ask("OPTIONS", RUNS).status_code == 204
        status, code, message = caller.error("setupCloudMigration", "POST", body=setup)
        assert (status, code) == (403, "Authorization_RequestDenied") and "administrator" in message
    assert client.ask("POST", "setupCloudMigration", setup).status_code == 201
    made = client.rows("setupCloudMigration")[0]["id"]
    assert operator.error(f"setupCloudMigration({made})/NAV.completeSetup", "POST")[0] == 403
    assert client.error(f"setupCloudMigration({made})/NAV.completeSetup", "POST")[0] == 400
    assert reader.error("tableMappings", "POST", body={})[:2] == (403, "Authorization_RequestDenied")
    assert operator.error("tableMappings", "POST", body={})[:2] == (400, "Application_DialogException")


def test_who_called_is_in_the_event_log(client):
    from skylift.model import Event
    from skylift.query import Query
    client.ask("POST", "setupCloudMigration", {"productId": "Custom", "sqlServerType": "SQLServer"})
    assert "admin" in {event.actor for event in client.http.service.select(Event, Query())}


# ------------------------------------------------------------------ order of checks, protocol


@pytest.mark.rule("X2")
def test_checks_come_in_their_order(full):
    reader = full.as_role("reader", "ordered")
    nobody = Client(full.http, "x")
    broken = f"{RUNS}({number(1)})?$filter=(&$filter=x"
    assert nobody.error("x(", "POST")[0] == 400                                       # path before credentials
    assert nobody.error("nothing", "POST")[0] == 401                                  # credentials before resource
    assert reader.error("nothing", "POST")[0] == 404                                  # resource before verb
    assert reader.error(f"{RUNS}({number(99)})", "DELETE")[0] == 404
    assert reader.error(f"{RUNS}({number(1)})", "DELETE")[0] == 405                    # verb before permission
    assert reader.error("tableMappings", "POST", body="x", Content_Type="text/plain")[0] == 403         # permission before media type
    mapping = f"tableMappings({number(70)})"
    assert full.error(mapping, "PATCH", body="x", Content_Type="text/plain")[0] == 415  # media type before If-Match
    assert full.error(mapping, "PATCH", body="x", Content_Type="application/json")[1] == "BadRequest_InvalidToken"
    stale = full.error(mapping, "PATCH", body="x", Content_Type="application/json", If_Match='W/"x"')
    assert stale[0] == 409                                                            # If-Match before body
    assert full.error(broken)[0] == 400


@pytest.mark.rule("H5")
def test_head_is_get_without_a_body(full):
    for path in ("", RUNS, f"{RUNS}({number(1)})", "$metadata", f"{RUNS}/$count", f"{RUNS}({number(1)})/runId/$value"):
        head, get = full.ask("HEAD", path), full.get(path)
        assert head.status_code == 200 and head.content == b"" and head.headers["content-length"] == str(len(get.content))
        assert head.headers["content-type"] == get.headers["content-type"]
    assert full.ask("HEAD", "nothing").status_code == 404


@pytest.mark.rule("H5")
def test_options_tells_what_is_allowed(full):
    for path, allow in ((RUNS, "GET, HEAD, OPTIONS"), ("tableMappings", "GET, HEAD, OPTIONS, POST"),
                        (f"tableMappings({number(70)})", "GET, HEAD, OPTIONS, PATCH, DELETE"),
                        (f"{RUNS}({number(1)})/Microsoft.NAV.refreshStatus", "POST, OPTIONS"), ("$batch", "POST, OPTIONS")):
        answer = full.ask("OPTIONS", path)
        assert (answer.status_code, answer.headers["allow"], answer.content) == (204, allow, b"")


@pytest.mark.rule("H1")
def test_only_protocol_version_4_is_spoken(full):
    assert full.get(RUNS, OData_Version="4.0", OData_MaxVersion="4.01").headers["odata-version"] == "4.0"
    for version in ("2.0", "3.0", "x"):
        assert full.error(RUNS, OData_Version=version)[:2] == (400, "BadRequest")


@pytest.mark.rule("H5", but="messages are English whatever Accept-Language asks for, as Content-Language says: there are no translations")
def test_unknown_headers_are_ignored_and_the_language_is_told(full):
    answer = full.get(RUNS, Accept_Language="de-DE", X_Anything="1")
    assert answer.headers["content-language"] == "en-US" and answer.json()["value"] == full.rows(RUNS)
    assert "access-control-allow-origin" not in full.get(RUNS, Origin="https://x.example").headers


@pytest.mark.rule("H6")
def test_browsers_may_call_from_listed_origins_only(tmp_path):
    client = open_client(tmp_path, cors_origins="https://a.example https://b.example")
    asked = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "if-match, authorization"}
    allowed = client.http.request("OPTIONS", "/api/v1.0/companies", headers={"Origin": "https://b.example"} | asked)
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://b.example"
    assert "PATCH" in allowed.headers["access-control-allow-methods"]
    assert client.get("companies", Origin="https://a.example").headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in client.get("companies", Origin="https://c.example").headers
    refused = client.http.request("OPTIONS", "/api/v1.0/companies", headers={"Origin": "https://c.example"} | asked)
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "BadRequest"


@pytest.mark.rule("X1")
@pytest.mark.parametrize("path", ["/", "/nothing", "/api/v2.0/companies", "/favicon.ico", "/a%0A/", "/a%0A/?%80"])
def test_other_addresses_are_refused_in_json(full, path):
    answer = full.http.get(path)
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "BadRequest_ResourceNotFound"


@pytest.mark.rule("N3")
def test_health_is_open(full):
    answer = full.http.get("/health")
    assert answer.status_code == 200 and answer.json() == {"status": "ok"}
    assert full.http.request("POST", "/health").json()["error"]["code"] == "BadRequest_MethodNotAllowed"
    assert full.http.get("/health/").json()["error"]["code"] == "BadRequest_ResourceNotFound"


@pytest.mark.rule("X1")
@pytest.mark.parametrize("host", ["[::1", "a]b", "[x]"])
def test_a_host_that_is_none_is_refused(full, host):
    """For the links are made of it."""
    answer = full.get(RUNS, Host=host)
    assert answer.status_code == 200 or (answer.status_code, answer.json()["error"]["code"]) == (400, "BadRequest_InvalidRequestUrl")


_LOGGING = """
import logging, os, sys
from skylift.app import create_app
from skylift.settings import load_settings
flags = {"home": sys.argv[1]}
app = create_app(load_settings(flags)) if sys.argv[2] == "embedded" else create_app()
print(logging.getLogger().handlers, logging.getLogger().level, len(logging.getLogger("skylift").handlers),
      logging.getLogger("httpx").isEnabledFor(logging.INFO), logging.getLogger("skylift.api").isEnabledFor(logging.INFO))
"""


@pytest.mark.parametrize(("how", "logs"), [("embedded", "0 False False"), ("served", "1 False True")])
def test_only_a_process_of_its_own_has_its_log_begun_and_only_for_skylift(tmp_path, how, logs):
    done = subprocess.run([sys.executable, "-c", _LOGGING, str(tmp_path), how], capture_output=True, text=True, check=True,
                          env=os.environ | {"SKYLIFT_HOME": str(tmp_path)})
    assert done.stdout == f"[] 30 {logs}\n"


@pytest.mark.rule("F7")
def test_deep_and_long_filters_are_carried_out(full):
    assert len(full.rows(f"{RUNS}?$filter={'not ' * 98}true")) == 12
    assert full.rows(f"{RUNS}?$filter={'(' * 99}runId eq 'run-01'{')' * 99}")[0]["runId"] == "run-01"
    deep = "tolower(" * 25 + "runId" + ")" * 25
    assert len(full.rows(f"{RUNS}?$filter={deep} eq 'run-01'")) == 1
    answer = full.get(f"{RUNS}?$filter={deep.replace('tolower(', 'tolower(' * 3).replace(')', ')))')} eq 'run-01'")
    assert answer.status_code == 200 or (answer.status_code, answer.headers["x-skylift-code"]) == (400, "FilterDepth")
    deep = "concat('a'," * 99 + "runId" + ")" * 99
    assert len(full.rows(f"{RUNS}?$filter=endswith({deep},'run-01')")) == 1
    chain = " or ".join(f"runId eq '{n}'" for n in range(200)) + " or runId eq 'run-01'"
    assert len(full.rows(f"{RUNS}?$filter={quote(chain, safe=' ()')}")) == 1
    assert len(full.rows(f"{RUNS}?$filter=details eq '{'*%25' * 400}*'")) == 0


# ------------------------------------------------------------------ when something goes wrong


def broken(client, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(type(client.http.service), "select", fail)


@pytest.mark.rule("X1")
def test_a_bug_is_500_without_detail_and_logged_with_its_id(tmp_path, monkeypatch, caplog):
    client = open_client(tmp_path)
    broken(client, monkeypatch, ZeroDivisionError("a secret"))
    with caplog.at_level(logging.INFO, "skylift.api"):
        answer = client.get(RUNS)
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "Internal_ServerError"
    assert "secret" not in answer.text and "Traceback" not in answer.text
    assert answer.headers["request-id"] in caplog.text and "a secret" in caplog.text


@pytest.mark.rule("X1")
def test_a_busy_store_is_503_with_a_time_to_come_back(tmp_path, monkeypatch):
    client = open_client(tmp_path)
    broken(client, monkeypatch, Transient("the store did not answer", hint="try again"))
    answer = client.get(RUNS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "Internal_TenantUnavailable")
    assert int(answer.headers["retry-after"]) > 0


@pytest.mark.rule("A3")
def test_what_the_target_cannot_do_is_a_business_refusal(tmp_path, monkeypatch):
    client = open_client(tmp_path)
    broken(client, monkeypatch, TargetFailed("the disk is full"))
    answer = client.get(RUNS)
    assert (answer.status_code, answer.headers["x-skylift-code"]) == (400, "TargetFailed")
    assert answer.json()["error"]["message"].startswith("The disk is full.  CorrelationId:")


def test_a_line_break_in_a_path_begins_no_line_of_the_log(full, caplog):
    with caplog.at_level(logging.INFO, "skylift.api"):
        assert full.get("a%0AERROR forged").status_code == 404
        assert full.ask("POST", "$batch", {"requests": [{"method": "GET\n", "url": "a\nERROR"}]}).status_code == 200
    assert len(caplog.records) == 2 and not any("\n" in record.getMessage() for record in caplog.records)


@pytest.mark.rule("W8")
def test_secrets_are_not_logged(client, caplog):
    with caplog.at_level(logging.DEBUG):
        client.ask("POST", "setupCloudMigration", {"productId": "Custom", "sqlServerType": "AzureSQL",
                                                   "sqlConnectionString": "postgresql://me:hunter2@localhost:1/x"})
        client.get(RUNS)
    assert "hunter2" not in caplog.text and client.token not in caplog.text


def slow_source(monkeypatch, seconds):
    """Connecting takes so long; what it is called for happens all the same."""
    real = setup.open_source

    def slow(url):
        time.sleep(seconds)
        return real(url)

    monkeypatch.setattr(setup, "open_source", slow)


def set_up(client, tmp_path):
    with closing(sqlite3.connect(tmp_path / "shop.db")) as shop, shop:
        shop.execute("create table if not exists t (id integer primary key)")
    return client.ask("POST", "setupCloudMigration", {
        "productId": "Custom", "sqlServerType": "AzureSQL", "sqlConnectionString": f"sqlite:///{tmp_path}/shop.db"})


@pytest.mark.rule("X1")
def test_work_that_takes_too_long_is_408_and_nothing_of_it_is_kept(tmp_path, monkeypatch):
    client = open_client(tmp_path, api_work_s=1)
    slow_source(monkeypatch, 1.5)
    answer = set_up(client, tmp_path)
    assert (answer.status_code, answer.json()["error"]["code"], answer.headers["x-skylift-code"]) == (
        408, "Internal_ServerError", "TimedOut")
    assert client.rows("setupCloudMigration") == []


@pytest.mark.rule("X1")
def test_a_request_is_answered_with_504_at_the_latest_whatever_becomes_of_it(tmp_path, monkeypatch):
    client = open_client(tmp_path, api_answer_s=0.5)
    slow_source(monkeypatch, 3)
    began = time.monotonic()
    answer = set_up(client, tmp_path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "Internal_ServerError")
    assert 0.4 < time.monotonic() - began < 2.5
    assert "may still happen" in answer.json()["error"]["message"]
    while not client.http.service.select(Setup, Query()):
        assert time.monotonic() - began < 20
        time.sleep(0.1)
