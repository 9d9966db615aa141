"""Whatever is sent to the service is answered, refusals in JSON, and nothing is ever its own fault (X1).

More than ten thousand requests, one by one and in batches.
"""

import asyncio
import json
import logging
from uuid import uuid4

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skylift.runs import MigrationState
from skylift.store.tables import apps, migration
from tests.api import hostile
from tests.api.conftest import furnish, number, open_client

JSON = [(b"content-type", b"application/json"), (b"if-match", b"*")]


@pytest.fixture(scope="module")
def postgres_store(postgres_url):
    url, name = sa.engine.make_url(postgres_url), f"test_{uuid4().hex[:12]}"
    server = sa.create_engine(url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f'create database "{name}"')
        yield url.set(database=name).render_as_string(hide_password=False)
        connection.exec_driver_sql(f'drop database "{name}" with (force)')
    server.dispose()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def asked(request, tmp_path_factory):
    """Sends a request as the server hands it over; status, headers and body of the answer."""
    more = {"store": request.getfixturevalue("postgres_store")} if request.param == "postgresql" else {}
    client = open_client(tmp_path_factory.mktemp("hostile"), page_size=5, api_requests=10**9, **more)
    with client.http.service.store.write() as connection:
        furnish(connection)
        connection.execute(apps.insert().values(id=number(7), name="Mine", publisher="Me", version="1.0"))
        connection.execute(migration.update().values(state=MigrationState.READY, product_id="Custom"))
    runner = asyncio.Runner()

    def ask(method, path, query, headers, body):
        if not any(name == b"authorization" for name, _ in headers):
            headers = [*headers, (b"authorization", f"Bearer {client.token}".encode())]
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http", "path": path,
                 "raw_path": path.encode(), "query_string": query, "root_path": "", "headers": headers,
                 "server": ("127.0.0.1", 7048), "client": ("127.0.0.1", 1)}
        sent = []

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        runner.run(asyncio.wait_for(client.http.app(scope, receive, send), 10))
        [start, *rest] = sent
        return start["status"], dict(start["headers"]), b"".join(part.get("body", b"") for part in rest)

    ask.examples = 1.0 if request.param == "sqlite" else 0.3       # PostgreSQL differs below the API only
    yield ask
    runner.close()
    client.http.service.store.close()


def answered(asked, caplog, method, path, query, headers, body):
    """Status, headers and body of an answer that is as it may be."""
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        status, answer, content = asked(method, path, query, headers, body)
    assert status != 500 and not caplog.records, caplog.text
    assert 200 <= status < 300 or status == 304 or status >= 400
    assert b"html" not in answer.get(b"content-type", b"") and answer[b"odata-version"] == b"4.0"
    if status >= 400 and method != "HEAD":
        assert answer[b"content-type"].startswith(b"application/json")
        check_refusal(json.loads(content), answer[b"request-id"].decode())
    return status, answer, content


def check_refusal(document, request_id):
    assert document.keys() == {"error"} and document["error"].keys() == {"code", "message"}
    assert document["error"]["message"].endswith(f"  CorrelationId:  {request_id}.")


@pytest.fixture(params=[hostile.V1, hostile.V2], ids=["v1.0", "v2.0"])
def words(request):
    return request.param


def examples(asked, words, most):
    return settings(max_examples=int(most * asked.examples * words.share), deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@pytest.mark.rule("X1", "H1")
def test_anything_is_answered_and_refused_in_json(asked, words, caplog):
    @examples(asked, words, 1600)
    @given(method=hostile.method, root=words.root, path=words.path, options=st.lists(words.option, max_size=3),
           headers=st.lists(hostile.header, max_size=2), body=words.body, as_json=st.sampled_from((True, True, True, False)),
           more=hostile.rarely)
    def send(method, root, path, options, headers, body, as_json, more):
        query = "&".join(f"{name}={value}" for name, value in options).encode() + more
        headers = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        answered(asked, caplog, method, root + path, query, headers + (JSON if as_json else []), body)

    send()


@pytest.mark.slow
@pytest.mark.rule("X1", "H1")
def test_a_spoilt_request_is_answered_and_refused_in_json(asked, words, caplog):
    @examples(asked, words, 1500)
    @given(method=st.sampled_from(("GET", "GET", "GET", "POST", "PATCH", "DELETE")), url=words.url)
    def send(method, url):
        path, _, query = url.partition("?")
        answered(asked, caplog, method, f"{words.base}{path}", query.encode(), JSON, b"{}")

    send()


@pytest.mark.slow
@pytest.mark.rule("X1", "B1", "B2")
def test_each_item_of_a_batch_is_answered_and_refused_in_json(asked, words, caplog):
    isolation = st.sampled_from(([], [], [(b"isolation", b"snapshot")]))

    @examples(asked, words, 500)
    @given(requests=words.batch(), isolation=isolation, go_on=st.sampled_from((b"true", b"true", b"true", b"false")))
    def send(requests, isolation, go_on):
        headers = [*JSON, *isolation, (b"prefer", b"continue-on-error=" + go_on)]
        body = json.dumps({"requests": requests}).encode()
        status, _, content = answered(asked, caplog, "POST", f"{words.base}$batch", b"", headers, body)
        assert status == 200, content                            # these batches can be read
        items = json.loads(content)["responses"]
        assert [item["id"] for item in items] == [request["id"] for request in requests[:len(items)]]
        assert len(items) == hostile.ITEMS or (go_on == b"false" and items[-1]["status"] >= 400)
        for item, request in zip(items, requests, strict=False):
            assert item["status"] != 500 and item["headers"]["odata-version"] == "4.0"
            assert "html" not in item["headers"].get("content-type", "")
            if item["status"] >= 400 and request["method"] != "HEAD":
                check_refusal(item["body"], item["headers"]["request-id"])

    send()


@pytest.mark.slow
@pytest.mark.rule("X1", "B4", "B6")
def test_a_spoilt_batch_is_answered_or_refused_as_a_whole(asked, words, caplog):
    @examples(asked, words, 1000)
    @given(text=words.batch_text)
    def send(text):
        kind = b"multipart/mixed; boundary=b" if "--b" in text else b"application/json"
        status, _, content = answered(asked, caplog, "POST", f"{words.base}$batch", b"", [(b"content-type", kind)], text.encode())
        assert status in (200, 400, 413, 501)
        assert status != 200 or (json.loads(content) if kind == b"application/json" else content.endswith(b"--\r\n"))

    send()
