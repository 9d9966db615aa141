"""Requests that nobody should send to one of the APIs, as Hypothesis strategies: random ones, valid ones spoilt, and batches of both."""

import json
import re
from dataclasses import dataclass
from urllib.parse import unquote

from hypothesis import strategies as st

from tests.api.conftest import number

LITERALS = ("'a'", "'*'", "'Failed'", "null", "true", "1", "0.5", "1e18", "2147483648", "9223372036854775808",
            "2026-01-01T00:00Z", "abc-1",
            "9999-12-31T23:59:59.9999999-14:00", "9999-12-31T23:59:59.9999999Z", "0001-01-01T00:00Z", "''''", "now()", "INF",
            "-1",
            "00000000-0000-0000-0000-000000000001", "substring('a',2147483647)", "substring('a',0,2147483647)", "1e-40", "1e40")
VALUES = (None, True, 0, -1, 2**31, 2**63, 10**400, 1e308, 0.1, "", "x", "x" * 300, "\x00", "\ud800", [], {}, [[{}]], "sNaN",
          "1e999999",
          "Table", "Custom", "AzureSQL", "nonsense://[", "sqlite://[", "sqlite:///no/such.db", str(number(7)),
          "0001-01-01T00:00:00Z", "99999-01-01", ["CRONUS"], [None], ["\x00"], [[]])
HEADERS = {
    "accept": ("", "*/*", "application/json;odata.metadata=full", "application/json;odata.metadata=none;IEEE754Compatible=true",
               "text/html", "application/json;q=1.2.3", ",;=,"),
    "if-match": ("*", 'W/"x"', '"', ""), "if-none-match": ("*", 'W/"x"', '"', ""), "content-length": ("9" * 5000, "-1", "\xb2", ""),
    "prefer": ("maxpagesize=1", "maxpagesize=" + "9" * 5000, "return=minimal", ",;=,"), "odata-version": ("4.0", "3.0", "\xff"),
    "content-type": ("", "application/json", "text/plain", "multipart/mixed"), "company": ("CRONUS", "x", "\x00", "\xff\x80"),
    "host": ("[::1", "a:b:c", "a]", "\xff", "", "a/b"), "authorization": ("Basic x", "Bearer \xe4", ""),
    "data-access-intent": ("ReadOnly",),
}
MARKS = ("(", ")", "'", "/", "$", "%", "?", "&", "=", ",", ";", " ", "+", "*", "#", "%27", "%2F", "%00", "//", "eq", "not ", "ä", "€", "😀")
ITEMS = 8                        # of a batch

noise = st.text(st.characters(max_codepoint=0x2FFF), max_size=8)
operators = st.sampled_from((" eq ", " ne ", " lt ", " ge "))
header = st.sampled_from(list(HEADERS)).flatmap(lambda name: st.tuples(st.just(name), st.sampled_from(HEADERS[name])))
method = st.sampled_from(
    ("GET",) * 8 + ("POST",) * 3 + ("PATCH",) * 3 + ("DELETE", "HEAD", "OPTIONS", "PUT", "RUNREPLICATION", "CANCEL", "get", "\xdf"))
rarely = st.sampled_from((b"",) * 20 + (b"&\xff", b"%ff", b"&&", b"&%24top=1", b"&" + b"x" * 9000))


@st.composite
def spoilt(draw, texts, marks):
    """A text with a few places cut out, doubled, or replaced by a mark."""
    text = draw(texts)
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(text))), draw(st.integers(0, 6))
        text = text[:at] + draw(st.sampled_from([*marks, text[at:at + 9], ""])) + text[at + length:]
    return text


@dataclass(frozen=True)
class Words:
    """What the requests to an API are made of."""

    root: str
    roots: tuple[str, ...]           # now and then
    sets: tuple[str, ...]
    ones: tuple[str, ...]            # entities, of which some are there
    steps: tuple[str, ...]           # behind an entity
    names: tuple[str, ...]           # in a filter
    bodies: tuple[tuple[str, ...], ...]     # names of members
    seeds: tuple[str, ...]           # requests that are valid
    patched: str                     # a set with PATCH
    item_body: tuple[object, ...]    # of a batch


class Hostile:
    def __init__(self, words, share):
        """`share`: of the examples that a test sends."""
        self.share, self.base = share, words.root
        terms = (*words.names, *LITERALS, " eq ", " ne ", " gt ", " le ", " and ", " or ", "not ", " in ", "(", ")", ",", "'", "-",
                 "contains(", "length(", " desc", "$count", "any(d:d/status eq 'x')", "@p", ";", "$top=1", "$filter=", "$expand=",
                 "$levels=max", "*", *words.sets, "%00", "%ff")
        condition = st.tuples(st.sampled_from(words.names), operators, st.sampled_from((*LITERALS, *words.names))).map("".join)
        formula = condition | st.tuples(condition, st.sampled_from((" and ", " or ", " and not ")), condition).map("".join)
        anything = st.lists(st.sampled_from(terms) | noise, max_size=10).map("".join)
        self.option = st.one_of(
            st.tuples(st.just("$filter"), formula), st.tuples(st.just("$orderby"), st.sampled_from(words.names)),
            st.tuples(st.just("$expand"), anything),
            st.tuples(st.sampled_from(("$select", "$expand")), st.sampled_from(("*", *words.sets, *words.names))),
            st.tuples(st.sampled_from(("$top", "$skip", "$count")), st.sampled_from(("0", "3", "9" * 18, "9" * 19, "true", "x"))),
            st.tuples(st.sampled_from(("$filter", "$search", "$skiptoken", "$format", "$schemaversion", "company", "$x", "")),
                      anything | st.sampled_from(("json", "2.0"))))
        steps = (*words.steps, "$metadata", "$batch", "$count", "$value", "$ref", "status", "startTime", "properties", "()", "(", "x('",
                 "%00", "%0A", "%ff", "%2F", "%", "..", "")
        self.path = st.sampled_from((*words.sets, *words.ones)) | st.tuples(
            st.sampled_from(words.ones), st.sampled_from((*steps, *words.sets))).map("/".join) | (
            st.lists(st.sampled_from((*words.sets, *words.ones, *steps)) | noise, max_size=5).map("/".join))
        body = st.sampled_from((*words.bodies, ("notificationUrl", "@odata.etag", "requests", ""))).flatmap(
            lambda names: st.dictionaries(st.sampled_from(names), st.sampled_from(VALUES), max_size=5)).map(
                lambda value: json.dumps(value).encode())
        self.body = st.one_of(body, body, st.tuples(body, st.integers(0, 60)).map(lambda cut: cut[0][:cut[1]]), st.binary(max_size=40))
        self.root = st.sampled_from((words.root,) * 20 + (*words.roots, "/", "//", "/v2.0/", "*"))
        random_url = st.tuples(self.path, st.lists(self.option, max_size=2)).map(
            lambda p: f"{p[0]}?{'&'.join(f'{name}={value}' for name, value in p[1])}")
        self.url = spoilt(st.sampled_from(words.seeds), MARKS) | random_url
        references = ("$0", "$1/status", "$2?$select=id", "/companies", f"http://testserver{words.root}companies", "http://[", "//", "",
                      "http://testserver/api/v1.0/companies")
        self.item_url = (self.url | st.sampled_from(references)).filter(lambda text: "$batch" not in unquote(text))
        self.item_header = header | st.sampled_from(
            (("if-match", "$1"), ("companyid", str(number(901))), ("content-type", "text/plain")))
        self.item_body = st.sampled_from(words.item_body)
        part = "--b\r\nContent-Type: application/http\r\nContent-Transfer-Encoding: binary\r\nContent-ID: 1\r\n\r\n"
        in_json = json.dumps({"requests": [
            {"id": "1", "method": "POST", "url": words.sets[0], "headers": {"If-Match": "*"}, "body": words.item_body[0]},
            {"id": "2", "method": "GET", "url": "$1", "dependsOn": ["1"], "atomicityGroup": "a"},
            {"method": "PATCH", "url": f"{words.patched}({number(50)})", "body": {"replicate": True}}]})
        in_parts = (
            f"{part}GET companies HTTP/1.1\r\nAccept: application/json\r\n\r\n\r\n--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n"
            + (part + f"PATCH {words.patched}(x) HTTP/1.1\r\nIf-Match: *\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--b--"
               ).replace("--b", "--c") + "\r\n--b--\r\n")
        self.batch_text = spoilt(
            st.just(in_json), ('"', "{", "}", "[", "]", ",", ":", "null", "1", "\\u0000", "\\ud800", *MARKS)) | spoilt(
            st.just(in_parts), ("\r", "\n", "\r\n", "--b", "--c", "--b--", "--", ":", ";", "HTTP/1.1", "Content-Length: 9\r\n", "\0",
                                *MARKS))

    def batch(self):
        """The requests of a batch in JSON that can be read: ITEMS of them, of which some form a group or depend on others."""
        return _requests(self)


@st.composite
def _requests(draw, words):
    begin = draw(st.integers(0, ITEMS))
    group = range(begin, draw(st.integers(begin, ITEMS)))
    requests = []
    for n in range(ITEMS):
        known = words.item_url.filter(lambda text, n=n: not re.match(rf"\$[{n}-9]", text))      # else the batch is refused as a whole
        request = {"id": str(n), "method": draw(method), "url": draw(known)}
        if draw(st.booleans()):
            request["headers"] = dict(draw(st.lists(words.item_header, max_size=2)))
        if draw(st.booleans()):
            request["body"] = draw(words.item_body)
        if n in group:
            request["atomicityGroup"] = "a"
        if n and draw(st.integers(0, 4)) == 0:
            request["dependsOn"] = [str(draw(st.integers(0, n - 1)))]
        requests.append(request)
    return requests


_V1_SETS = ("cloudMigrationStatus", "cloudMigrationStatusDetails", "cloudMigrationCompanies", "setupCloudMigration",
            "sourceProductTypes", "tableMappings", "subscriptions", "companies", "entityDefinitions")
V1 = Hostile(Words(
    root="/api/v1.0/", roots=("/v2.0/prod/api/microsoft/cloudMigration/v1.0/",), sets=_V1_SETS,
    ones=(*(f"{name}({number(n)})" for name, n in zip(_V1_SETS, (12, 1001, 50, 1, 1, 70), strict=False)), f"companies({number(900)})",
          "sourceProductTypes('Custom')", "entityDefinitions('company')", "companies(name='CRONUS')",
          f"cloudMigrationStatus({number(1)})"),
    steps=("replicate", "estimatedSize", "Microsoft.NAV.runReplication", "NAV.restoreDefaults", "nav.refreshstatus"),
    names=("runId", "status", "startTime", "endTime", "tablesFailed", "id", "name", "replicate", "estimatedSize", "displayName", "tableId",
           "cloudMigrationStatus/status", "tolower(name)", "length(runId)", "year(startTime)", "substring(runId,1)", "concat(name,'a')"),
    bodies=(
        ("replicate", "estimatedSize", "status", "created", "id"),
        ("productId", "sqlServerType", "sqlConnectionString", "runtimeName", "runtimeKey"),
        ("appId", "tableId", "tableName", "sourceTableName", "dataPerCompany", "targetTableType", "extensionName")),
    seeds=(
        "cloudMigrationStatus?$orderby=startTime%20desc&$top=1", "companies/?$filter=name eq 'CRONUS*'", "$metadata?$schemaversion=2.1",
        "cloudMigrationStatus/$count?$filter=status ne 'x'", "sourceProductTypes('Custom')?$select=*", f"tableMappings({number(70)})",
        f"companies({number(900)})/cloudMigrationStatus({number(11)})/cloudMigrationStatusDetails?$filter=startswith(tableName,'T') and "
        "not (recordsCopied in (1,2))&$select=tableName,status&$count=true&$skip=1",
        f"companies({number(901)})/cloudMigrationStatuss({number(1)})/status/$value",
        f"cloudMigrationStatus({number(12)})/Microsoft.NAV.refreshStatus",
        "cloudMigrationStatus?$expand=cloudMigrationStatusDetails($select=tableName;$filter=status eq 'Failed';$orderby=tableName desc;"
        "$top=2;$count=true)",
        "cloudMigrationCompanies?$filter=tolower(name) eq 'äther' or (estimatedSize gt 0.25 and replicate eq true)&company=CRONUS",
        "cloudMigrationStatus?$filter=startTime ge 2026-03-01T12:00:00.358Z and id ne 00000000-0000-0000-0000-000000000001&$format=json"),
    patched="cloudMigrationCompanies",
    item_body=({"appId": str(number(7)), "tableName": "T", "sourceTableName": "S"}, {"replicate": True}, {}, [], "x", "e30", 5),
), 1.0)

_V2_SETS = ("runs", "runTables", "sourceCompanies", "migrations", "tables", "upgradeSteps", "events", "deliveries", "limits",
            "findings", "assessments", "warnings", "checklistItems", "validations", "validationTests",
            "validationResults", "subscriptions", "companies", "entityDefinitions")
V2 = Hostile(Words(
    root="/api/skylift/cloudMigration/v2.0/", roots=("/v2.0/prod/api/skylift/cloudMigration/v2.0/", "/api/v1.0/"), sets=_V2_SETS,
    ones=(f"runs({number(12)})", f"runTables({number(1001)})", f"sourceCompanies({number(50)})", f"tables({number(99)})",
          f"migrations({number(99)})", f"upgradeSteps({number(99)})", f"findings({number(99)})", f"warnings({number(99)})",
          "validationTests('rows.count')", f"checklistItems({number(99)})", "events(1)", "events(id=99999999999999999999)", "deliveries(1)",
          "limits('pageRows')", f"companies({number(900)})", "entityDefinitions('run')", f"runs({number(1)})"),
    steps=("replicate", "blocked", "rowsPerSecond", "targetRows", "value", "verbs", "Microsoft.NAV.cancel", "NAV.pause",
           "nav.forcecompletion", "Microsoft.NAV.runDataUpgrade", "Microsoft.NAV.resetCloudData", "run"),
    names=("runId", "status", "startTime", "endTime", "tablesTotal", "recordsCopied", "id", "name", "replicate", "blocked", "time",
           "subject", "state", "rowsPerSecond", "targetRows", "verbs", "value", "companies", "syncedVersion", "run/status",
           "run/recordsCopied", "tolower(actor)", "length(event)", "year(time)", "errorCode"),
    bodies=(
        ("replicationType", "companies", "tables", "failedOnly", "rowsPerSecond", "id"),
        ("replicate", "preserve", "blocked", "syncedVersion"),
        ("ignored", "ignore", "done", "message"), ("reason", "company", "ifCurrent", "force", "@odata.type")),
    seeds=(
        "runs?$orderby=startTime%20desc&$top=1", "events?$filter=time ge 2026-01-01T00:00:00Z and subject eq 'migration'&$top=3",
        f"companies({number(900)})/runs({number(11)})/runTables?$filter=startswith(tableName,'T') and not (recordsCopied in (1,2))&$skip=1",
        f"runTables({number(1001)})/run/recordsCopied/$value", f"runs({number(12)})/Microsoft.NAV.cancel", "events(1)/subject",
        "runs?$expand=runTables($select=tableName;$filter=inserted ge 0;$orderby=sizeBytes desc;$top=2;$count=true)&$count=true",
        "tables?$filter=blocked eq false and syncedVersion le 9223372036854775807&$orderby=companyName,tableName desc",
        "limits?$filter=contains(about,'a') or setting eq ''", f"migrations({number(99)})/verbs",
        "deliveries/$count?$filter=httpStatus gt 0",
        f"migrations({number(99)})/Microsoft.NAV.pause"),
    patched="sourceCompanies",
    item_body=({"replicationType": "Diagnostic", "companies": ["CRONUS"]}, {"reason": "x"}, {"replicate": True}, {}, [], "x", 5),
), 0.6)
