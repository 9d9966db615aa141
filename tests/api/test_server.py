"""A real server process: what matters on the wire and not inside an ASGI application."""

import socket
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.api.conftest import Client, open_client, served
from tests.migration.lab import Lab

RUNS = "cloudMigrationStatus"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """`skylift serve` without a coordinator on a free port, ready to replicate, and an administrator's client."""
    home = tmp_path_factory.mktemp("server")
    with closing(sqlite3.connect(home / "shop.db")) as database, database:
        database.execute("create table item (id integer primary key)")
    inside = open_client(home)
    token = inside.token
    Lab(inside.http.service, home / "shop.db").prepare(product_id="Custom")
    inside.http.service.store.close()
    with served(home, "--no-coordinator") as (http, _):
        yield Client(http, token), http.base_url.port



@pytest.mark.rule("U5", "U6")
def test_the_name_of_an_action_is_let_through_as_method(server):
    """Literally what the generated documentation prints."""
    client, port = server
    company, before = client.rows("companies")[0]["id"], client.rows(RUNS)
    request = (f"RUNREPLICATION /api/v1.0/companies({company})/cloudMigrationStatuss({before[0]['id']})/Microsoft.NAV.runReplication "
               f"HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {client.token}\r\nConnection: close\r\n\r\n")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    [run, *rest] = client.rows(RUNS)
    assert answer.startswith("HTTP/1.1 204") and f"/api/v1.0/companies({company})/{RUNS}({run['id']})\r\n" in answer
    assert run["status"] == "In Progress" and [row["id"] for row in rest] == [row["id"] for row in before]
    refused = client.ask("RUNREPLICATION", f"{RUNS}({run['id']})/Microsoft.NAV.runReplication")
    assert refused.status_code == 400 and refused.headers["x-skylift-code"] == "RunInProgress"
    assert client.ask("RUNREPLICATION", f"{RUNS}({run['id']})/Microsoft.NAV.refreshStatus").status_code == 405


@pytest.mark.rule("U7")
def test_escapes_reach_the_application_undecoded(server):
    client, _ = server
    assert client.get("companies(name='CRONUS')").status_code == 200
    assert client.error("companies(name='a%2Fb')")[2] == "The company 'a/b' does not exist."
    assert client.error("companies(name='%2541')")[2] == "The company '%41' does not exist."
    assert client.get(f"/{RUNS}//").status_code == 200


@pytest.mark.rule("H5", "W3")
def test_head_options_and_empty_answers_keep_the_connection_usable(server):
    client, _ = server
    length = client.get(RUNS).headers["content-length"]
    for _ in range(3):
        head = client.ask("HEAD", RUNS)
        assert head.content == b"" and head.headers["content-length"] == length
        assert client.ask("OPTIONS", RUNS).status_code == 204
        assert client.get("companies", If_None_Match="x").status_code == 200
    company = client.rows("companies")[0]
    assert client.get(f"companies({company['id']})", If_None_Match=company["@odata.etag"]).status_code == 304


@pytest.mark.rule("G2")
def test_links_lead_back_to_where_they_came_from(server):
    client, port = server
    link = client.get("sourceProductTypes?$select=id", Prefer="odata.maxpagesize=2").json()["@odata.nextLink"]
    assert link.startswith(f"http://127.0.0.1:{port}/api/v1.0/companies(")
    rest = client.http.get(link, headers={"Authorization": f"Bearer {client.token}"}).json()
    assert [row["id"] for row in rest["value"]] == ["DynamicsBCLast", "DynamicsGP"]


@pytest.mark.rule("X1")
def test_a_body_of_unknown_length_is_cut_off_at_the_limit(server):
    client, _ = server
    answer = client.http.request("POST", "/api/v1.0/tableMappings", content=(b" " * 65536 for _ in range(300)),
                                 headers={"Authorization": f"Bearer {client.token}", "Content-Type": "application/json"})
    assert answer.status_code == 413


def test_many_callers_are_answered_at_once(server):
    client, _ = server
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: client.get(f"{RUNS}?$top={n}").status_code, range(64)))
    assert answers == [200] * 64
