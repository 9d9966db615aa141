"""Requests that nobody should send, as Hypothesis strategies: random ones, valid ones spoilt, and batches of both."""

import json
import re
from urllib.parse import unquote

from hypothesis import strategies as st

from tests.api.conftest import number

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


# ------------------------------------------------------------------ valid requests, spoilt

SEEDS = (
    "cloudMigrationStatus?$orderby=startTime%20desc&$top=1", "companies/?$filter=name eq 'CRONUS*'", "$metadata?$schemaversion=2.1",
    "cloudMigrationStatus/$count?$filter=status ne 'x'", "sourceProductTypes('Custom')?$select=*", f"tableMappings({number(70)})",
    f"companies({number(900)})/cloudMigrationStatus({number(11)})/cloudMigrationStatusDetails?$filter=startswith(tableName,'T') and not "
    "(recordsCopied in (1,2))&$select=tableName,status&$count=true&$skip=1",
    f"companies({number(901)})/cloudMigrationStatuss({number(1)})/status/$value",
    f"cloudMigrationStatus({number(12)})/Microsoft.NAV.refreshStatus",
    "cloudMigrationStatus?$expand=cloudMigrationStatusDetails($select=tableName;$filter=status eq 'Failed';$orderby=tableName desc;$top=2;"
    "$count=true)",
    "cloudMigrationCompanies?$filter=tolower(name) eq 'äther' or (estimatedSize gt 0.25 and replicate eq true)&company=CRONUS",
    "cloudMigrationStatus?$filter=startTime ge 2026-03-01T12:00:00.358Z and id ne 00000000-0000-0000-0000-000000000001&$format=json",
)
MARKS = ("(", ")", "'", "/", "$", "%", "?", "&", "=", ",", ";", " ", "+", "*", "#", "%27", "%2F", "%00", "//", "eq", "not ", "ä", "€", "😀")


@st.composite
def spoilt(draw, texts, marks):
    """A text with a few places cut out, doubled, or replaced by a mark."""
    text = draw(texts)
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(text))), draw(st.integers(0, 6))
        text = text[:at] + draw(st.sampled_from([*marks, text[at:at + 9], ""])) + text[at + length:]
    return text


random_url = st.tuples(path, st.lists(option, max_size=2)).map(lambda p: f"{p[0]}?{'&'.join(f'{name}={value}' for name, value in p[1])}")
url = spoilt(st.sampled_from(SEEDS), MARKS) | random_url

# ------------------------------------------------------------------ batches

ITEMS = 8
REFERENCES = ("$0", "$1/status", "$2?$select=id", "/companies", "http://testserver/api/v1.0/companies", "http://[", "//", "")
item_url = (url | st.sampled_from(REFERENCES)).filter(lambda text: "$batch" not in unquote(text))
item_header = header | st.sampled_from((("if-match", "$1"), ("companyid", str(number(901))), ("content-type", "text/plain")))
item_body = st.sampled_from(({"appId": str(number(7)), "tableName": "T", "sourceTableName": "S"}, {"replicate": True}, {}, [], "x",
                             "e30", 5))


@st.composite
def batch(draw):
    """The requests of a batch in JSON that can be read: ITEMS of them, of which some form a group or depend on others."""
    begin = draw(st.integers(0, ITEMS))
    group = range(begin, draw(st.integers(begin, ITEMS)))
    requests = []
    for n in range(ITEMS):
        known = item_url.filter(lambda text, n=n: not re.match(rf"\$[{n}-9]", text))      # else the batch is refused as a whole
        request = {"id": str(n), "method": draw(method), "url": draw(known)}
        if draw(st.booleans()):
            request["headers"] = dict(draw(st.lists(item_header, max_size=2)))
        if draw(st.booleans()):
            request["body"] = draw(item_body)
        if n in group:
            request["atomicityGroup"] = "a"
        if n and draw(st.integers(0, 4)) == 0:
            request["dependsOn"] = [str(draw(st.integers(0, n - 1)))]
        requests.append(request)
    return requests


JSON_SEEDS = (
    json.dumps({"requests": [{"id": "1", "method": "POST", "url": "tableMappings", "headers": {"If-Match": "*"}, "body": {"appId": "x"}},
                             {"id": "2", "method": "GET", "url": "$1", "dependsOn": ["1"], "atomicityGroup": "a"},
                             {"method": "PATCH", "url": f"cloudMigrationCompanies({number(50)})", "body": {"replicate": True}}]}),)
_PART = "--b\r\nContent-Type: application/http\r\nContent-Transfer-Encoding: binary\r\nContent-ID: 1\r\n\r\n"
MULTIPART_SEEDS = (
    f"{_PART}GET companies HTTP/1.1\r\nAccept: application/json\r\n\r\n\r\n--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n"
    + (_PART + "PATCH cloudMigrationCompanies(x) HTTP/1.1\r\nIf-Match: *\r\nContent-Type: application/json\r\n\r\n{}\r\n--b--"
       ).replace("--b", "--c") + "\r\n--b--\r\n",)
batch_text = spoilt(st.sampled_from(JSON_SEEDS), ('"', "{", "}", "[", "]", ",", ":", "null", "1", "\\u0000", "\\ud800", *MARKS)) | spoilt(
    st.sampled_from(MULTIPART_SEEDS), ("\r", "\n", "\r\n", "--b", "--c", "--b--", "--", ":", ";", "HTTP/1.1", "Content-Length: 9\r\n",
                                      "\0", *MARKS))
