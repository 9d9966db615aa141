"""The service as a process: HTTPS, behind a proxy, at its limits, and how it ends."""

import signal
import socket
import sqlite3
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import pytest

from skylift.errors import SetupError
from skylift.migration import Migration
from skylift.model import Run
from skylift.query import Query
from skylift.runs import RunStatus
from skylift.settings import Settings
from skylift.store import open_store
from tests.api.conftest import Client, open_client, served
from tests.migration.lab import Lab

RUNS = "cloudMigrationStatus"


@pytest.fixture
def tokens(tmp_path):
    """The secrets of two administrators' tokens in a new environment."""
    inside = open_client(tmp_path)
    inside.http.service.store.close()
    return inside.token, inside.as_role("administrator").token


@pytest.fixture
def home(tmp_path, tokens):
    return tmp_path


# ------------------------------------------------------------------ HTTPS and proxies


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_https_by_flags_and_links_that_say_so(home, tokens, certificate, version):
    trust = ssl.create_default_context(cafile=certificate / "cert.pem")
    trust.minimum_version = trust.maximum_version = version
    with served(home, "--no-coordinator", "--tls-cert", str(certificate / "cert.pem"), "--tls-key", str(certificate / "key.pem"),
                scheme="https", verify=trust) as (http, _):
        client = Client(http, tokens[0])
        assert client.get("companies").json()["@odata.context"] == f"{http.base_url}/api/v1.0/$metadata#companies"
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{http.base_url.port}/health")
    assert "serving https://127.0.0.1:" in (home / "log").read_text()


@pytest.mark.parametrize(("cert", "key"), [("cert.pem", "missing.pem"), ("key.pem", "key.pem"), ("cert.pem", "locked.pem")])
def test_a_certificate_that_cannot_be_used_is_told_before_anything_is_served(certificate, cert, key):
    from skylift.cli.serving import _tls_files

    with pytest.raises(SetupError, match=rf"the certificate .*{cert} with the key .*{key} cannot be used"):
        _tls_files(Settings(tls_cert=str(certificate / cert), tls_key=str(certificate / key)))


PROXY = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "api.example.com", "X-Forwarded-For": "203.0.113.7"}


@pytest.mark.parametrize(("trusted", "headers", "base"), [
    ("127.0.0.1", PROXY, "https://api.example.com"),
    ("10.0.0.0/8 127.0.0.0/8", PROXY, "https://api.example.com"),
    ("127.0.0.1", {"X-Forwarded-Proto": "https"}, "https://testserver"),
    ("127.0.0.1", PROXY | {"X-Forwarded-Host": "evil.example, api.example.com:8443"}, "https://api.example.com:8443"),
    ("127.0.0.1", PROXY | {"X-Forwarded-Proto": "javascript"}, "http://api.example.com"),
    ("", PROXY, "http://testserver"),
    ("10.0.0.0/8 192.0.2.1", PROXY, "http://testserver"),
])
def test_a_proxy_is_believed_only_where_it_is_trusted(tmp_path, trusted, headers, base):
    client = open_client(tmp_path, trusted_proxies=trusted)
    page = client.ask("GET", "sourceProductTypes", Prefer="odata.maxpagesize=1", **headers).json()
    assert page["@odata.context"].startswith(f"{base}/api/v1.0/$metadata#")
    assert page["@odata.nextLink"].startswith(f"{base}/api/v1.0/companies(")
    made = client.ask("POST", "setupCloudMigration", {"productId": "Custom"}, **headers)
    assert made.headers["location"].startswith(f"{base}/api/v1.0/companies(")
    assert client.ask("GET", **{"X-Forwarded-Host": b"[x\xff", "X-Forwarded-Proto": "https"}).status_code in (200, 400)


# ------------------------------------------------------------------ limits


class Slow:
    """A request over a connection of its own whose body stays away until `end`: it runs, or waits, as long as the test likes."""

    def __init__(self, http, token):
        self.socket = socket.create_connection(("127.0.0.1", http.base_url.port), timeout=30)
        self.socket.sendall(f"POST /api/v1.0/tableMappings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
                            "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n".encode())

    def answer(self):
        """Status and everything else of the answer, once there is one."""
        text = b""
        while part := self.socket.recv(65536):
            text += part
            if b"\r\n\r\n" in text and b"}}" in text:
                break
        return int(text.split()[1]) if text else None, text.decode().lower()

    def end(self):
        self.socket.sendall(b"{}")
        return self.answer()


@pytest.mark.rule("X3")
def test_who_runs_too_many_at_once_waits_then_is_sent_away_and_nobody_else_suffers(home, tokens):
    with served(home, "--no-coordinator", api_running=2, api_queue=1, api_wait_s=1.0) as (http, _):
        mine, other = (Client(http, token) for token in tokens)
        first, second = Slow(http, mine.token), Slow(http, mine.token)
        time.sleep(0.5)
        waiting = Slow(http, mine.token)
        time.sleep(0.3)
        over = mine.get("companies")
        assert (over.status_code, over.json()["error"]["code"], over.headers["retry-after"]) == (429, "Application_TooManyRequests", "1")
        assert other.get("companies").status_code == 200
        status, text = waiting.answer()
        assert status == 503 and "internal_tenantunavailable" in text and "retry-after: 1" in text
        assert first.end()[0] == 400                    # they were served: this is the mapping's own refusal
        assert mine.get("companies").status_code == 200
        assert second.end()[0] == 400


@pytest.mark.rule("X3")
def test_who_waits_gets_their_turn_in_order(home, tokens):
    with served(home, "--no-coordinator", api_running=1) as (http, _):
        client = Client(http, tokens[0])
        slow = Slow(http, client.token)
        time.sleep(0.5)
        with ThreadPoolExecutor(8) as pool:
            began = time.monotonic()
            later = [pool.submit(client.get, "companies") for _ in range(8)]
            time.sleep(0.5)
            assert not any(answer.done() for answer in later)
            assert slow.end()[0] == 400
            assert {answer.result().status_code for answer in later} == {200}
            assert time.monotonic() - began >= 0.5


@pytest.mark.rule("X3")
def test_the_window_and_the_connections_are_settings(home, tokens):
    with served(home, "--no-coordinator", api_requests=3, api_window_s=1.5, api_connections=1) as (http, _):
        mine, other = (Client(http, token) for token in tokens)
        answers = [mine.get("companies") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert 1 <= int(answers[3].headers["retry-after"]) <= 2
        time.sleep(int(answers[3].headers["retry-after"]))
        assert mine.get("companies").status_code == 200
        slow = Slow(http, other.token)
        time.sleep(0.5)
        assert other.get("companies").status_code == 429
        assert slow.end()[0] == 400 and other.get("companies").status_code == 200


# ------------------------------------------------------------------ the end


@pytest.mark.rule("X3")
def test_a_service_that_stops_lets_requests_end_that_run_or_wait_and_takes_no_new_ones(home, tokens):
    with served(home, "--no-coordinator", api_running=1) as (http, process):
        client = Client(http, tokens[0])
        idle = socket.create_connection(("127.0.0.1", http.base_url.port), timeout=10)
        runs, waits = Slow(http, client.token), None
        time.sleep(0.5)
        waits = Slow(http, client.token)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert idle.recv(1) == b""                      # closed
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{http.base_url}/health")
        assert process.poll() is None
        assert runs.end()[0] == 400 and waits.end()[0] == 400
        assert process.wait(20) == 0


@pytest.mark.rule("X3")
def test_a_request_that_does_not_end_holds_the_service_up_no_longer_than_the_setting_says(home, tokens):
    with served(home, "--no-coordinator", drain_s=1) as (http, process):
        endless = Slow(http, tokens[0])
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert 0.9 < time.monotonic() - began < 6
        endless.socket.close()


def test_a_run_is_handed_over_by_a_service_that_stops_to_the_next_one(home, tokens):
    with closing(sqlite3.connect(home / "shop.db")) as database, database:
        for n in range(400):
            database.execute(f"create table t{n} (id integer primary key, name text)")
            database.execute(f"insert into t{n} with recursive c(n) as (select 1 union all select n + 1 from c where n < 50) "
                             "select n, 'name ' || n from c")
    service = Migration(open_store(Settings(home=home).store), Settings(home=home), "tester")
    Lab(service, home / "shop.db").prepare(product_id="Custom")
    with served(home, workers=1) as (http, process):
        client = Client(http, tokens[0])
        client.ask("POST", f"{RUNS}({client.rows(RUNS)[0]['id']})/Microsoft.NAV.runReplication")
        while client.rows(RUNS)[0]["tablesSuccessful"] == 0:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    [run] = [run for run in service.select(Run, Query()) if run.status is RunStatus.IN_PROGRESS]
    assert 0 < run.tables_successful < 400
    with served(home) as (http, _):
        client = Client(http, tokens[0])
        while (newest := client.rows(RUNS)[0])["status"] == "In Progress":
            time.sleep(0.05)
    assert (newest["runId"], newest["status"], newest["tablesSuccessful"]) == (run.run_id, "Completed", 400)
    service.store.close()
