"""docs/conformance.md, made from the tests: python -m tests.conformance > docs/conformance.md

A test names the rules of the wire that it holds skylift to, and what of them is not kept:

    @pytest.mark.rule("U6")
    @pytest.mark.rule("H5", but="messages are English whatever Accept-Language asks for")
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
RULES = {                        # the rules of odata.md, each in a line
    "U1": "`/v2.0/{tenant}/{environment}/api/microsoft/cloudMigration/v1.0` is a service root",
    "U2": "`/v2.0/{environment}/api/microsoft/cloudMigration/v1.0` is one",
    "U3": "`/{instance}/api/microsoft/cloudMigration/v1.0` is one, with an optional `?tenant=`",
    "U4": "`/{instance}/api/v1.0` and `/v2.0/{tenant}/{environment}/api/v1.0` are",
    "U5": "the misspelt set names of the generated documentation are served, and never answered",
    "U6": "the name of an action, in capitals, is the method of a call of that action",
    "U7": "repeated slashes are one, escapes are decoded once, names other than the root's are case-sensitive",
    "U8": "keys: `set(guid)`, `set(id=guid)`, text in quotes, companies by name",
    "U9": "paths to sets, entities, navigations, properties, `$value`, `$count`, actions, `$metadata`, `$batch`",
    "C1": "the company: path, `?company=`, header, configured default, the only one",
    "C2": "no company, or one that is not there: 404 `Internal_CompanyNotFound`; some resources need none",
    "C3": "every company shows the same rows",
    "S1": "the service document names the nine entity sets",
    "M1": "`$metadata` is EDMX 4.0 in XML whatever is accepted, valid against the OASIS schemas",
    "M2": "the types have the documented properties, key first",
    "M3": "navigation properties, contained, with partner and referential constraint",
    "M4": "the twelve bound actions, first parameter `bindingParameter`",
    "M5": "capabilities say what may be inserted, updated and deleted",
    "E1": "options are strings; enums are strings under schema version 1.0 and types from 2.0 on",
    "E2": "values under 1.0 are English captions",
    "E3": "values under 2.0 and 2.1 are encoded member names",
    "E4": "the default schema version is 1.0, a setting; an unknown one is 400",
    "E5": "input takes every spelling of an option; anything else is 400 and names the options",
    "Q1": "shape of collections and entities: context, etag, projections",
    "Q2": "each set has a default order, and ties are broken by key",
    "Q3": "only names with `$` are options; unknown or doubled ones are 400; `+` is a space; a long query is 414",
    "F1": "`eq ne gt ge lt le and or not () in` and the text functions, nested, with the precedence of OASIS",
    "F2": "`in` and `or` over different fields are served in every schema version",
    "F3": "the rest of OASIS is correct or 501, and never left out",
    "F4": "text compares case-sensitively; `*` in `eq` and `ne` is a wildcard, `%` `_` `[` are not",
    "F5": "`eq null` on text is empty, on a date-time unset",
    "F6": "literals; one of the wrong type is 400",
    "F7": "unknown property and syntax error are 400 `BadRequest_NotFound`; nesting is bounded",
    "P1": "`$select` returns exactly what it names; an unknown property is 400",
    "P2": "`$expand`, nested options, `*`, `nav@odata.count`; an unknown navigation is 400",
    "P3": "`$orderby`, `$top`, `$skip`",
    "P4": "`$count=true` and `/$count`",
    "P5": "`$search`, `$apply`, `$compute` are 501; `$format` other than JSON is 415 or 406",
    "G1": "server page size; `Prefer: maxpagesize` makes it smaller and is confirmed",
    "G2": "`@odata.nextLink` with an opaque token; pages never overlap; a tampered token is 400",
    "H1": "`OData-Version: 4.0` on every answer; requests in 2.0 or 3.0 are 400",
    "H2": "`odata.metadata` none, minimal, full",
    "H3": "decimals are numbers, strings under `IEEE754Compatible`",
    "H4": "date-times in UTC up to milliseconds; unset values are never null; GUIDs in lower case",
    "H5": "HEAD, OPTIONS, unknown headers, `Data-Access-Intent`, languages",
    "H6": "no CORS headers unless origins are listed",
    "W1": "the ETag is the same in body and header and changes with every visible value",
    "W2": "PATCH needs `If-Match`; a stale one is 409 `Request_EntityChanged`",
    "W3": "DELETE and actions check `If-Match` when it is sent; `If-None-Match` is answered with 304",
    "W4": "PATCH 200, POST 201 with `Location`, DELETE 204; preferences turn bodies off; PUT is 405",
    "W5": "bodies are read strictly, each fault with its code",
    "W6": "a body that is not JSON is 415",
    "W7": "a verb that a resource does not allow is 405, with `Allow`",
    "W8": "setupCloudMigration: made once; its secrets are answered once",
    "A1": "actions need no body, whatever the content type, and answer 204",
    "A2": "unknown actions and entities are 404, GET on an action 405; any live entity will do for set-wide actions",
    "A3": "a business refusal is 400 `Application_DialogException` with a sentence",
    "B1": "`$batch` in JSON: items with id, method, url, headers, body; ids may be missing",
    "B2": "the first failing item ends the batch, unless `continue-on-error`",
    "B3": "`Isolation: snapshot` and `atomicityGroup`: all or nothing; runs end the transaction",
    "B4": "`dependsOn` a failed item is 424; broken ids, JSON or nesting are 400 for the whole batch",
    "B5": "at most 100 items; authentication once, permission per item; `?company=` is the items' default",
    "B6": "`$batch` as multipart/mixed: change sets, `Content-ID`, references",
    "X1": "every refusal is an OData error in JSON with code, message and correlation id",
    "X2": "the order of checks",
    "X3": "limits for each caller: requests in five minutes, at once, queued",
    "K1": "a subscription is made after a handshake with its notification url",
    "K2": "subscriptions expire, are renewed by PATCH and ended by DELETE",
    "K3": "which sets have webhooks",
    "K4": "delivery: merged, deduplicated, a `collection` item above 1,000 changes",
    "K5": "which answers of a receiver are final, and how long is retried",
    "K6": "where calls may go, redirects, secrets",
    "N1": "bearer tokens: of a configured issuer, or skylift's own",
    "N2": "basic authentication with a web service access key",
    "N3": "schemes ignore case; 401 carries `WWW-Authenticate`; nothing but probes is open",
    "N4": "roles: readers do not write",
}
SECTIONS = {"U": "URLs", "C": "Company selection", "S": "Service document and $metadata", "M": "", "E": "Options, enums, schema version",
            "Q": "Reading", "F": "$filter", "P": "The other query options", "G": "Paging", "H": "Shapes and headers", "W": "Writing",
            "A": "Bound actions", "B": "$batch", "X": "Errors and limits", "K": "Webhook subscriptions", "N": "Authentication"}
_HEAD = """# Conformance

The rules of the wire, the tests that hold skylift to each, and what of a rule is not kept. Made from the tests by
`python -m tests.conformance > docs/conformance.md`; do not edit by hand. A rule is *kept* if it has tests, all of which pass
(the suite says so), and none of which states an exception.
"""


@dataclass(frozen=True)
class Claim:
    """A test that names a rule; `but`: what of the rule is not kept, as the test shows."""

    rule: str
    file: str                    # relative to the root
    test: str
    but: str = ""


def claims() -> Iterator[Claim]:
    """Every rule that a test names. Raises ValueError for a mark that cannot be read."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        file = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.rule":
                        rules = [ast.literal_eval(argument) for argument in mark.args]
                        more = {keyword.arg: ast.literal_eval(keyword.value) for keyword in mark.keywords}
                        if not rules or more.keys() - {"but"}:
                            raise ValueError(f"{file}: {node.name}: write pytest.mark.rule('U1', .., but='what is not kept')")
                        yield from (Claim(rule, file, node.name, **more) for rule in rules)


def page() -> str:
    found: dict[str, list[Claim]] = {rule: [] for rule in RULES}
    for claim in claims():
        found[claim.rule].append(claim)
    lines = [_HEAD]
    for rule, text in RULES.items():
        if rule[1:] == "1" and SECTIONS[rule[0]]:
            lines.append(f"\n## {SECTIONS[rule[0]]}\n\n| | rule | status | tests |\n|---|---|---|---|\n")
        tests = sorted({f"[{c.test.removeprefix('test_').replace('_', ' ')}](../{c.file})" for c in found[rule]})
        lines.append(f"| {rule} | {text} | {_status(found[rule])} | {'<br>'.join(tests)} |\n")
    return "".join(lines)


def _status(found: list[Claim]) -> str:
    if not found:
        return "no test yet"
    return "; ".join(["kept", *sorted({f"but {claim.but}" for claim in found if claim.but})])


if __name__ == "__main__":
    print(page(), end="")
