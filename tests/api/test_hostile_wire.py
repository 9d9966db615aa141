"""What hostile bytes do to a real server process: refused without HTML, in little time and memory, and the next caller is served."""

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skylift.settings import Settings
from tests.api.conftest import Client, open_client, served

MIB = 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A client of a server process and the process id of its worker."""
    home = tmp_path_factory.mktemp("wire")
    inside = open_client(home)
    inside.http.service.store.close()
    with served(home, "--no-coordinator", api_requests=10**6, api_body_s=4.0) as (http, process):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield Client(http, inside.token), max(children, key=memory_mib)


def send(client, data, wait_s=20.0, last=False):
    """The whole answer to bytes that are sent over a connection of their own, and are said to be the `last`; empty if there is none."""
    with socket.create_connection(("127.0.0.1", client.http.base_url.port), timeout=wait_s) as connection:
        try:
            connection.sendall(data)
            if last:
                connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))
        except (ConnectionResetError, BrokenPipeError):
            return b""


def request(client, line, *headers, body=b""):
    head = [line, b"Host: x", b"Connection: close", f"Authorization: Bearer {client.token}".encode(), *headers]
    return b"\r\n".join((*head, b"", body))


def check(answer, *statuses):
    assert not answer or answer.startswith((b"HTTP/1.1 ", b"HTTP/1.0 "))
    status = int(answer[9:12] or 0)
    assert status in statuses and b"html" not in answer.lower() and b"Traceback" not in answer
    head, _, body = answer.partition(b"\r\n\r\n")
    assert not body or b"content-type: application/json" in head or status < 400


JSON = b"Content-Type: application/json"
BATCH = b"POST /api/v1.0/$batch HTTP/1.1"
GET = b"GET /api/v1.0/companies HTTP/1.1"


CHUNKED = b"Transfer-Encoding: chunked"
HOSTILE = {                                              # name: request line, headers, body, statuses (0: the connection is closed)
    "zeros": (b"\0\1\2", [], b"", 400),
    "TLS": (bytes.fromhex("16030100f1010000ed0303"), [], b"", 400),
    "HTTP/3": (b"GET / HTTP/3.0", [], b"", 400),
    "HTTP/2": (b"PRI * HTTP/2.0", [], b"\r\nSM\r\n\r\n", 0, 400),
    "no version": (b"GET /api/v1.0/companies", [], b"", 400),
    "blanks in the url": (b"GET /api/v1.0/companies?$filter=name eq 'x' HTTP/1.1", [], b"", 400),
    "control character": (b"GET /api/v1.0/a\1 HTTP/1.1", [], b"", 400),
    "long path": (b"GET /api/v1.0/" + b"a" * 60_000 + b" HTTP/1.1", [], b"", 404),
    "longer path": (b"GET /" + b"a" * MIB + b" HTTP/1.1", [], b"", 0, 431),
    "many segments": (b"GET " + b"/a" * 30_000 + b" HTTP/1.1", [], b"", 404),
    "long key": (b"GET /api/v1.0/companies(name='" + b"(" * 60_000 + b"') HTTP/1.1", [], b"", 404),
    "long query": (b"GET /api/v1.0/companies?" + b"a" * 60_000 + b" HTTP/1.1", [], b"", 414),
    "long method": (b"A" * 10_000 + GET[3:], [], b"", 405),
    "star": (b"OPTIONS * HTTP/1.1", [], b"", 404),
    "tunnel": (b"CONNECT x:1 HTTP/1.1", [], b"", 404),
    "large header": (GET, [b"X: " + b"a" * 300_000], b"", 200),
    "larger header": (GET, [b"X: " + b"a" * 2 * MIB], b"", 0, 431),
    "many headers": (GET, [b"X%d: a" % n for n in range(20_000)], b"", 0, 431),
    "folded header": (GET, [b"X: a\r\n folded"], b"", 400),
    "many ranges": (GET, [b"Accept: " + b"a/b;q=0.5," * 30_000], b"", 406),
    "blanks in Accept": (GET, [b"Accept: application/json;" + b" " * 300_000 + b"x"], b"", 200),
    "many preferences": (GET, [b"Prefer: " + b"maxpagesize=1," * 20_000], b"", 200),
    "many quotes": (GET, [b"If-None-Match: " + b'"' * 300_000], b"", 200),
    "negative length": (BATCH, [JSON, b"Content-Length: -1"], b"", 400),
    "two lengths": (BATCH, [JSON, b"Content-Length: 1", b"Content-Length: 2"], b"ab", 400),
    "enormous length": (BATCH, [JSON, b"Content-Length: 99999999999999"], b"", 413),
    "broken chunk": (BATCH, [JSON, CHUNKED], b"zz\r\n", 400),
    "broken second chunk": (BATCH, [JSON, CHUNKED], b"2\r\n{}\r\nzz\r\n", 400),
    "body that does not come": (BATCH, [JSON, b"Content-Length: 100"], b"{", 408),
    "expected to go on": (BATCH, [JSON, b"Expect: 100-continue", b"Content-Length: 15"], b'{"requests":[]}', 100),
}


@pytest.mark.rule("X1", but="what is no HTTP, or has over 100 headers or longer ones than 400 KB, is refused by the HTTP server itself, "
                            "with an empty body")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused_and_the_next_caller_is_served(server, name):
    client, _ = server
    line, headers, body, *statuses = HOSTILE[name]
    began = time.monotonic()
    check(send(client, request(client, line, *headers, body=body)), *statuses)
    assert time.monotonic() - began < 10 and client.get("companies").status_code == 200


def test_random_bytes_are_refused(server):
    client, _ = server

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(min_size=1, max_size=200))
    def each(noise):
        check(send(client, noise + b"\r\n\r\n", last=True), 0, 400)

    each()
    assert client.get("companies").status_code == 200


BIG = {                                                  # bodies just below the limit, each made to cost most
    "a nested list": lambda size: b'{"requests":[{"method":"POST","url":"x","body":{"tableName":' + b"[" * (size - 99),
    "many lists": lambda size: b'{"requests":[{"method":"POST","url":"tableMappings","body":{"x":[' + b"[]," * (size // 3 - 60) + b"1]}}]}",
    "many items": lambda size: b'{"requests":[' + b'{"method":"","url":""},' * (size // 23 - 9) + b"1]}",
    "many names": lambda size: b"{" + b",".join(b'"%x":1' % n for n in range(size // 12)) + b"}",
    "one long text": lambda size: b'{"requests":[{"method":"GET","url":"' + b"a" * (size - 99) + b'"}]}',
    "no batch at all": lambda size: b"[" + b"{}," * (size // 3 - 9) + b"1]",
}
PARTS = {
    "many parts": lambda size: b"--b\r\n\r\n" * (size // 7) + b"--b--",
    "blanks in a header": lambda size: b"--b\r\nX: " + b" " * (size - 99) + b"x\r\n\r\n\r\n--b--",
    "blanks in a request": lambda size: b"--b\r\nContent-Type: application/http\r\n\r\nGET" + b" " * (size - 99) + b"\r\n--b--",
    "blanks behind boundaries": lambda size: (b"\r\n--b" + b" " * 1000 + b"x") * (size // 1010) + b"\r\n--b--",
    "line breaks": lambda size: b"--b" + b"\r\n" * (size // 2 - 9) + b"--b--",
}


@pytest.mark.slow
@pytest.mark.rule("X1")
def test_large_bodies_cost_bounded_time_and_memory(server):
    client, worker = server
    size = Settings().max_body_bytes - 200
    before = memory_mib(worker)
    mixed = b"Content-Type: multipart/mixed; boundary=b"
    bodies = [*((JSON, make(size)) for make in BIG.values()), *((mixed, make(size)) for make in PARTS.values())]
    paths = (b"POST /api/v1.0/$batch HTTP/1.1", b"POST /api/v1.0/tableMappings HTTP/1.1")
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        requests = [request(client, path, kind, b"Content-Length: %d" % len(body), body=body) for kind, body in bodies for path in paths]
        answers = list(pool.map(lambda data: send(client, data, wait_s=60), requests))
    for answer in answers:
        check(answer, 200, 400, 413, 415)
    seconds, grown = time.monotonic() - began, memory_mib(worker) - before
    print(f"{len(answers)} bodies of {size / MIB:.0f} MiB: {seconds:.1f} s, {grown:.0f} MiB more")
    assert seconds < 60 and grown < 300


def memory_mib(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB
