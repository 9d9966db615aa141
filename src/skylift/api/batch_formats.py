"""How a batch is written: as JSON, or as multipart/mixed whose change sets are multiparts within it.

Source: odata.md B1, B4, B6; OData JSON Format 4.01 §19, Protocol 4.01 §11.7.7; RFC 2046 §5.1.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from itertools import groupby
from typing import Any
from uuid import uuid4

import msgspec

from skylift.api.answer import Answer
from skylift.api.bounds import MOST_ITEMS
from skylift.api.errors import ODataError, bad_request, not_implemented
from skylift.api.render import to_json
from skylift.api.writing import is_json, media_type


@dataclass(frozen=True, slots=True)
class Item:
    """One request of a batch. `headers` by lower-case name; `group` is shared by a change set or an atomicityGroup, else empty."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes
    id: str | int | None = None
    depends_on: tuple[str, ...] = ()
    group: str = ""

    @property
    def names(self) -> set[str]:
        """What other requests may call it by."""
        return {name for name in ("" if self.id is None else str(self.id), self.group) if name}


def check_count(count: int) -> None:
    if count > MOST_ITEMS:
        raise ODataError(413, "BadRequest", f"The batch has {count} requests; at most {MOST_ITEMS} are possible.")


def check_unique(ids: Iterable[str | int | None]) -> None:
    seen: set[str] = set()
    for id in ids:
        if id is None:
            continue
        if str(id) in seen:
            raise bad_request(f"Two requests of the batch have the id '{id}'.")
        seen.add(str(id))


# ------------------------------------------------------------------ JSON


class _Request(msgspec.Struct):
    method: str
    url: str
    id: str | int | None = None
    headers: dict[str, str] | None = None
    body: msgspec.Raw = msgspec.Raw()
    dependsOn: list[str | int] | None = None
    atomicityGroup: str | None = None
    condition: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw, name="if")


class _Requests(msgspec.Struct):
    requests: list[_Request]


def read_json(body: bytes) -> list[Item]:
    """Raises ODataError: 400 for what is no batch, 413 for one of too many requests."""
    try:
        requests = msgspec.json.decode(body, type=_Requests).requests
    except (msgspec.DecodeError, RecursionError) as error:
        raise bad_request(f"The batch cannot be read: {error}.") from None
    check_count(len(requests))
    check_unique(request.id for request in requests)
    return [_json_item(request) for request in requests]


def _json_item(request: _Request) -> Item:
    if bytes(request.condition):
        raise not_implemented("The member 'if' of a batched request is not supported.")
    headers = {name.lower(): value for name, value in (request.headers or {}).items()}
    body = bytes(request.body)
    if body == b"null":
        body = b""
    kind = headers.get("content-type", "")
    if body and kind and not is_json(kind):
        body = _text_body(body, kind)
    elif body:
        headers.setdefault("content-type", "application/json")
    return Item(request.method.upper(), request.url, headers, body, request.id,
                tuple(str(name) for name in request.dependsOn or ()), request.atomicityGroup or "")


def _text_body(body: bytes, kind: str) -> bytes:
    """A body that is not JSON travels as a string: text as it is, anything else in base64url. What is neither is judged by its item."""
    try:
        text = msgspec.json.decode(body, type=str)
        return text.encode() if media_type(kind).startswith("text/") else base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:                                     # msgspec's and binascii's errors are
        return body


def write_json(answered: Iterable[tuple[Item, Answer]]) -> tuple[str, bytes]:
    """Content type and body of the answer."""
    document = {"responses": [_json_answer(item, answer) for item, answer in answered]}
    return "application/json; odata.metadata=minimal; charset=utf-8", to_json(document)


def _json_answer(item: Item, answer: Answer) -> dict[str, Any]:
    headers = {name.lower(): value for name, value in answer.headers.items()}
    document = {"id": item.id, "status": answer.status, "headers": headers}
    kind = headers.get("content-type", "")
    if not answer.body:
        return document
    if is_json(kind):
        body: Any = msgspec.Raw(answer.body)
    elif kind.startswith("text/"):
        body = answer.body.decode()
    else:
        body = base64.urlsafe_b64encode(answer.body).decode().rstrip("=")
    return {**document, "body": body}


# ------------------------------------------------------------------ multipart


_BOUNDARY = re.compile(r""";\s*boundary\s*=\s*(?:"([^"]{1,70})"|([^\s;"]{1,70}))""", re.IGNORECASE)     # RFC 2046: at most 70 characters
_HEADER = re.compile(r"([!-9;-~]+):(.*)")
_REQUEST = re.compile(r"([!-~]+) (.+?) HTTP/\d(?:\.\d)?")


def read_multipart(content_type: str, body: bytes) -> list[Item]:
    """Raises ODataError: 400 for what is no batch, 413 for one of too many requests."""
    items: list[Item] = []
    ids: list[str | int | None] = []                       # outside change sets; each of those numbers its own
    parts = _parts(content_type, body)
    check_count(len(parts))
    for number, (headers, content) in enumerate(parts, 1):
        if media_type(headers.get("content-type", "")) != "multipart/mixed":
            items.append(_part_item(headers, content))
            ids.append(items[-1].id)
            continue
        inner = _parts(headers["content-type"], content)
        check_count(len(items) + len(inner))
        change_set = [_part_item(*part, group=f"change set {number}") for part in inner]
        check_unique(item.id for item in change_set)
        items += change_set
    check_count(len(items))
    check_unique(ids)
    return items


def _parts(content_type: str, body: bytes) -> list[tuple[dict[str, str], bytes]]:
    """The parts of a multipart: headers and content of each."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise bad_request("The content type multipart/mixed needs a boundary.")
    boundary = (found[1] or found[2]).encode("latin-1")
    delimiter = re.compile(rb"(?:\A|\r?\n)--" + re.escape(boundary) + rb"(--)?[ \t]*(?=\r?\n|\Z)")
    parts: list[tuple[dict[str, str], bytes]] = []
    start: int | None = None
    for match in delimiter.finditer(body):
        if start is not None:
            parts.append(_split(re.sub(rb"\A\r?\n", b"", body[start:match.start()])))
            check_count(len(parts))
        if match[1]:
            if not parts:
                raise bad_request("The batch has no parts.")
            return parts
        start = match.end()
    raise bad_request(f"The multipart does not end with its boundary, --{boundary.decode('latin-1')}--.")


def _split(text: bytes) -> tuple[dict[str, str], bytes]:
    """Headers, by lower-case name, and what comes behind the blank line."""
    if re.match(rb"\r?\n", text):
        return {}, text.partition(b"\n")[2]
    blank = re.search(rb"\r?\n\r?\n", text)
    head, content = (text[:blank.start()], text[blank.end():]) if blank else (text.rstrip(b"\r\n"), b"")
    headers = {}
    for line in head.decode("latin-1").split("\n") if head else ():
        match = _HEADER.fullmatch(line.rstrip("\r"))
        if match is None:
            raise bad_request(f"'{line[:100]}' in the batch is not a header.")
        headers[match[1].lower()] = match[2].strip(" \t")
    return headers, content


def _part_item(part: dict[str, str], content: bytes, group: str = "") -> Item:
    if media_type(part.get("content-type", "")) != "application/http":
        raise bad_request(f"A part of the batch has the content type '{part.get('content-type', '')}'; possible are application/http"
                          + (" and multipart/mixed." if not group else ", in a change set."))
    if part.get("content-transfer-encoding", "binary").lower() not in ("binary", "7bit", "8bit"):
        raise bad_request(f"The transfer encoding '{part['content-transfer-encoding']}' is not supported; send the part binary.")
    line, _, rest = content.lstrip(b"\r\n").partition(b"\n")
    request = _REQUEST.fullmatch(line.decode("utf-8", "replace").strip())
    if request is None:
        raise bad_request(f"'{line[:100].decode('utf-8', 'replace').strip()}' in the batch is not a request line such as "
                          "GET companies HTTP/1.1.")
    headers, body = _split(rest)
    length = headers.pop("content-length", "")
    if re.fullmatch(r"\d{1,18}", length, re.ASCII):
        body = body[:int(length)]
    elif not body.strip():
        body = b""                                          # the line break before the boundary, written twice
    return Item(request[1].upper(), request[2], headers, body, part.get("content-id") or headers.get("content-id"), group=group)


def write_multipart(answered: Iterable[tuple[Item, Answer]]) -> tuple[str, bytes]:
    """Content type and body of the answer; a change set that failed is answered by its one error (B6)."""
    boundary = f"batchresponse_{uuid4()}"
    parts: list[bytes] = []
    for group, members in groupby(answered, key=lambda pair: pair[0].group):
        pairs = list(members)
        failed = [pair for pair in pairs if pair[1].status >= 400]
        if group and not failed:
            inner = f"changesetresponse_{uuid4()}"
            parts.append(f"Content-Type: multipart/mixed; boundary={inner}\r\n\r\n".encode()
                         + _multipart(inner, (_answer_part(*pair) for pair in pairs)))
        else:
            parts += [_answer_part(*pair) for pair in (failed[:1] if group else pairs)]
    return f"multipart/mixed; boundary={boundary}", _multipart(boundary, parts)


def _multipart(boundary: str, parts: Iterable[bytes]) -> bytes:
    mark = f"--{boundary}".encode()
    return b"".join(b"%b\r\n%b\r\n" % (mark, part) for part in parts) + mark + b"--\r\n"


def _answer_part(item: Item, answer: Answer) -> bytes:
    def lines() -> Iterator[str]:
        yield "Content-Type: application/http"
        yield "Content-Transfer-Encoding: binary"
        if item.id is not None:
            yield f"Content-ID: {item.id}"
        yield ""
        yield f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"
        yield from (f"{name}: {value}" for name, value in answer.headers.items())
        yield "\r\n"

    return "\r\n".join(lines()).encode("latin-1", "replace") + answer.body
