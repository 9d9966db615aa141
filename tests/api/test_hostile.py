"""Whatever is sent to the service is answered, refusals in JSON, and nothing is ever its own fault (X1)."""

import asyncio
import json
import logging
from uuid import uuid4

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.conftest import fill, number, open_client

SETS = ("cloudMigrationStatus", "cloudMigrationStatusDetails", "cloudMigrationCompanies", "setupCloudMigration",
        "sourceProductTypes",
        "tableMappings", "subscriptions", "companies", "entityDefinitions")
ONES = (*(f"{name}({number(n)})" for name, n in zip(SETS, (12, 1001, 50, 1, 1, 70), strict=False)), f"companies({number(900)})",
        "sourceProductTypes('Custom')", "entityDefinitions('company')", "companies(name='CRONUS')", f"cloudMigrationStatus({number(1)})")
STEPS = ("$metadata", "$batch", "$count", "$value", "$ref", "status", "replicate", "estimatedSize", "startTime", "properties",
         "Microsoft.NAV.runReplication", "NAV.restoreDefaults", "nav.refreshstatus", "()", "(", "x('", "%00", "%0A",
         "%ff", "%2F", "%", "..", "")
NAMES = ("runId", "status", "startTime", "endTime", "tablesFailed", "id", "name", "replicate", "estimatedSize",
         "displayName", "tableId",
         "cloudMigrationStatus/status", "tolower(name)", "length(runId)", "year(startTime)", "substring(runId,1)",
         "concat(name,'a')")
LITERALS = ("'a'", "'*'", "'Failed'", "null", "true", "1", "0.5", "1e18", "2147483648", "9223372036854775808",
            "2026-01-01T00:00Z", "abc-1",
            "9999-12-31T23:59:59.9999999-14:00", "9999-12-31T23:59:59.9999999Z", "0001-01-01T00:00Z", "''''", "now()", "INF",
            "-1",
            "00000000-0000-0000-0000-000000000001", "substring('a',2147483647)", "substring('a',0,2147483647)", "1e-40", "1e40")
TERMS = (*NAMES, *LITERALS, " eq ", " ne ", " gt ", " le ", " and ", " or ", "not ", " in ", "(", ")", ",", "'", "-",
         "contains(",
         "length(", " desc", "$count", "any(d:d/status eq 'x')", "@p", ";", "$top=1", "$filter=", "$expand=", "$levels=max",
         "*", *SETS, "%00", "%ff")
BODY = {
    "cloudMigrationCompanies": ("replicate", "estimatedSize", "status", "created", "id"),
    "setupCloudMigration": ("productId", "sqlServerType", "sqlConnectionString", "runtimeName", "runtimeKey"),
    "tableMappings": ("appId", "tableId", "tableName", "sourceTableName", "dataPerCompany", "targetTableType", "extensionName"),
    "x": ("notificationUrl", "@odata.etag", "requests", ""),
}
VALUES = (None, True, 0, -1, 2**31, 2**63, 10**400, 1e308, 0.1, "", "x", "x" * 300, "\x00", "\ud800", [], {}, [[{}]], "sNaN",
          "1e999999",
          "Table", "Custom", "AzureSQL", "nonsense://[", "sqlite://[", "sqlite:///no/such.db", str(number(7)),
          "0001-01-01T00:00:00Z", "99999-01-01")
HEADERS = {
    "accept": ("", "*/*", "application/json;odata.metadata=full", "application/json;odata.metadata=none;IEEE754Compatible=true",
               "text/html", "application/json;q=1.2.3", ",;=,"),
    "if-match": ("*", 'W/"x"', '"', ""), "if-none-match": ("*", 'W/"x"', '"', ""), "content-length": ("9" * 5000, "-1", "\xb2", ""),
    "prefer": ("maxpagesize=1", "maxpagesize=" + "9" * 5000, "return=minimal", ",;=,"), "odata-version": ("4.0", "3.0", "\xff"),
    "content-type": ("", "application/json", "text/plain", "multipart/mixed"), "company": ("CRONUS", "x", "\x00", "\xff\x80"),
    "host": ("[::1", "a:b:c", "a]", "\xff", "", "a/b"), "authorization": ("Basic x", "Bearer \xe4", ""),
    "data-access-intent": ("ReadOnly",),
}

noise = st.text(st.characters(max_codepoint=0x2FFF), max_size=8)
operators = st.sampled_from((" eq ", " ne ", " lt ", " ge "))
condition = st.tuples(st.sampled_from(NAMES), operators, st.sampled_from((*LITERALS, *NAMES))).map("".join)
formula = condition | st.tuples(condition, st.sampled_from((" and ", " or ", " and not ")), condition).map("".join)
anything = st.lists(st.sampled_from(TERMS) | noise, max_size=10).map("".join)
option = st.one_of(
    st.tuples(st.just("$filter"), formula), st.tuples(st.just("$orderby"), st.sampled_from(NAMES)), st.tuples(st.just("$expand"), anything),
    st.tuples(st.sampled_from(("$select", "$expand")), st.sampled_from(("*", *SETS, *NAMES))),
    st.tuples(st.sampled_from(("$top", "$skip", "$count")), st.sampled_from(("0", "3", "9" * 18, "9" * 19, "true", "x"))),
    st.tuples(st.sampled_from(("$filter", "$search", "$skiptoken", "$format", "$schemaversion", "company", "$x", "")),
              anything | st.sampled_from(("json", "2.0"))))
path = st.sampled_from((*SETS, *ONES)) | st.tuples(st.sampled_from(ONES), st.sampled_from((*STEPS, *SETS))).map("/".join) | (
    st.lists(st.sampled_from((*SETS, *ONES, *STEPS)) | noise, max_size=5).map("/".join))
body = st.sampled_from(list(BODY.values())).flatmap(
    lambda names: st.dictionaries(st.sampled_from(names), st.sampled_from(VALUES), max_size=5)).map(
        lambda value: json.dumps(value).encode())
body = st.one_of(body, body, st.tuples(body, st.integers(0, 60)).map(lambda cut: cut[0][:cut[1]]), st.binary(max_size=40))
header = st.sampled_from(list(HEADERS)).flatmap(lambda name: st.tuples(st.just(name), st.sampled_from(HEADERS[name])))
method = st.sampled_from(
    ("GET",) * 8 + ("POST",) * 3 + ("PATCH",) * 3 + ("DELETE", "HEAD", "OPTIONS", "PUT", "RUNREPLICATION", "get", "\xdf"))
root = st.sampled_from(("/api/v1.0/",) * 20 + ("/v2.0/prod/api/microsoft/cloudMigration/v1.0/", "/", "//", "/v2.0/", "*"))
rarely = st.sampled_from((b"",) * 20 + (b"&\xff", b"%ff", b"&&", b"&%24top=1", b"&" + b"x" * 9000))


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
        fill(connection)
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

    yield ask
    runner.close()
    client.http.service.store.close()


@pytest.mark.rule("X1")
@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(method=method, root=root, path=path, options=st.lists(option, max_size=3), headers=st.lists(header, max_size=2), body=body,
       as_json=st.sampled_from((True, True, True, False)), more=rarely)
def test_anything_is_answered_and_refused_in_json(asked, caplog, method, root, path, options, headers, body, as_json, more):
    query = "&".join(f"{name}={value}" for name, value in options).encode() + more
    headers = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    if as_json:
        headers = [*headers, (b"content-type", b"application/json"), (b"if-match", b"*")]
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        status, answered, content = asked(method, root + path, query, headers, body)
    assert status != 500 and not caplog.records, caplog.text
    assert 200 <= status < 300 or status == 304 or status >= 400
    assert b"html" not in answered.get(b"content-type", b"")
    if status >= 400 and method != "HEAD":
        assert answered[b"content-type"].startswith(b"application/json")
        document = json.loads(content)
        assert document.keys() == {"error"} and document["error"].keys() == {"code", "message"}
        assert document["error"]["message"].endswith(f"  CorrelationId:  {answered[b'request-id'].decode()}.")
