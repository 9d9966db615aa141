"""$batch as multipart/mixed; the answers are read by Python's own parser."""

import email
import json

import pytest

from tests.api.batches import MAPPINGS, mapping, ready_client, stored

RUNS = "cloudMigrationStatus"


@pytest.fixture
def client(tmp_path, store_url):
    with ready_client(tmp_path, store_url) as client:
        yield client


def http_part(request, **headers):
    headers = {"Content-Type": "application/http", "Content-Transfer-Encoding": "binary"} | headers
    return "".join(f"{name.replace('_', '-')}: {value}\n" for name, value in headers.items()) + f"\n{request}\n"


def multipart(boundary, *parts):
    return "".join(f"--{boundary}\n{part}" for part in parts) + f"--{boundary}--\n"


def post_part(n, **headers):
    return http_part(f"POST {MAPPINGS} HTTP/1.1\nContent-Type: application/json\n\n{json.dumps(mapping(n))}", **headers)


def change_set(*parts):
    return "Content-Type: multipart/mixed; boundary=inner\n\n" + multipart("inner", *parts)


def parsed(content_type, content):
    """The answers of a multipart as Python's own parser reads them: Content-ID, status line, body; those of a change set as a list."""
    message = email.message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + content)
    assert message.is_multipart() and not message.defects, message.defects
    return [read_part(part) for part in message.get_payload()]


def read_part(part):
    if part.get_content_type() == "multipart/mixed":
        assert not part.defects
        return [read_part(inner) for inner in part.get_payload()]
    assert part.get_content_type() == "application/http" and part["Content-Transfer-Encoding"] == "binary"
    line, _, rest = part.get_payload(decode=True).partition(b"\r\n")
    inner = email.message_from_bytes(rest)
    return part["Content-ID"], line.decode(), inner.get_payload(decode=True).decode().strip()


def send(client, text, newline="\r\n", kind="multipart/mixed; boundary=outer", **headers):
    body = text.replace("\n", newline).encode()
    answer = client.ask("POST", "$batch", body, Content_Type=kind, **headers)
    assert answer.status_code == 200, answer.text
    return parsed(answer.headers["content-type"], answer.content)


@pytest.mark.rule("B6")
@pytest.mark.parametrize("newline", ["\r\n", "\n"])
@pytest.mark.parametrize("kind", ["multipart/mixed; boundary=outer", 'Multipart/Mixed;charset=utf-8; BOUNDARY="outer"'])
def test_a_multipart_is_read_with_either_line_break_and_answered_by_one(client, newline, kind):
    text = "preamble\n" + multipart(
        "outer", http_part(f"GET {RUNS}?$filter=status eq 'Completed'&$top=1 HTTP/1.1\nAccept: application/json\n"),
        change_set(post_part(1, Content_ID="1"), post_part(2, Content_ID="2")),
        http_part("GET /api/v1.0/companies/$count HTTP/1.1\nHost: testserver\n", Content_ID="last")) + "epilogue"
    first, changes, count = send(client, text, newline, kind, Accept="application/json")
    assert first[:2] == (None, "HTTP/1.1 200 OK") and len(json.loads(first[2])["value"]) == 1
    assert [change[:2] for change in changes] == [("1", "HTTP/1.1 201 Created"), ("2", "HTTP/1.1 201 Created")]
    assert json.loads(changes[1][2])["tableName"] == "T2" and stored(client) == ["T1", "T2"]
    assert count == ("last", "HTTP/1.1 200 OK", str(len(client.rows("companies"))))


@pytest.mark.rule("B6", "B3")
def test_a_change_set_that_fails_is_answered_by_one_error_and_leaves_nothing(client):
    text = multipart("outer", post_part(1), change_set(post_part(2), post_part(2, Content_ID="x"), post_part(3)), post_part(4))
    [made, error] = send(client, text)
    assert made[1] == "HTTP/1.1 201 Created" and error[:2] == ("x", "HTTP/1.1 409 Conflict")
    assert json.loads(error[2])["error"]["code"] == "Internal_EntityWithSameKeyExists" and stored(client) == ["T1"]
    answers = send(client, text, Prefer="continue-on-error")
    assert [answer[1] for answer in answers] == ["HTTP/1.1 409 Conflict", "HTTP/1.1 409 Conflict", "HTTP/1.1 201 Created"]
    assert stored(client) == ["T1", "T4"]


@pytest.mark.rule("B6")
def test_a_content_id_is_referred_to_in_its_change_set_and_behind_it(client):
    change = json.dumps({"tableName": "Changed"})
    patch = f"PATCH $1 HTTP/1.1\nIf-Match: *\nContent-Type: application/json\nContent-Length: {len(change)}\n\n{change} nonsense\n"
    text = multipart("outer", change_set(post_part(1, Content_ID="1"), http_part(patch, Content_ID="2")),
                     change_set(post_part(2, Content_ID="1"), http_part("DELETE $1 HTTP/1.1\n", Content_ID="2")),
                     http_part("GET $1/tableName/$value HTTP/1.1\n"))
    [first, second, last] = send(client, text, Prefer="continue-on-error")
    assert [answer[1] for answer in (*first, *second)] == ["HTTP/1.1 201 Created", "HTTP/1.1 200 OK", "HTTP/1.1 201 Created",
                                                          "HTTP/1.1 204 No Content"]
    assert last[1] == "HTTP/1.1 404 Not Found" and stored(client) == ["Changed"]


@pytest.mark.rule("B6", "B4")
def test_a_change_set_that_numbers_like_a_failed_one_is_its_own(client):
    patch = http_part("DELETE $1 HTTP/1.1\n", Content_ID="2")
    text = multipart("outer", change_set(post_part(1, Content_ID="1"), post_part(1)), change_set(post_part(2, Content_ID="1"), patch))
    [failed, second] = send(client, text, Prefer="continue-on-error")
    assert failed[1] == "HTTP/1.1 409 Conflict" and [answer[1][9:12] for answer in second] == ["201", "204"]


@pytest.mark.rule("B6", "B4")
@pytest.mark.parametrize("text", [
    "", "--outer--\n", "--outer\n" + http_part("GET companies HTTP/1.1\n"), multipart("other", http_part("GET companies HTTP/1.1\n")),
    multipart("outer", http_part("GET companies\n")), multipart("outer", http_part("")),
    multipart("outer", "\n\nGET companies HTTP/1.1\n\n"),
    multipart("outer", "Content-Type: text/plain\n\nGET companies HTTP/1.1\n\n"), multipart("outer", "nonsense\n\nGET x HTTP/1.1\n\n"),
    multipart("outer", http_part("GET companies HTTP/1.1\nnonsense\n")),
    multipart("outer", http_part("GET companies HTTP/1.1\n", Content_Transfer_Encoding="base64")),
    multipart("outer", http_part("POST $batch HTTP/1.1\n")), multipart("outer", change_set(change_set(post_part(1)))),
    multipart("outer", change_set(post_part(1, Content_ID="1"), post_part(2, Content_ID="1"))),
    multipart("outer", post_part(1, Content_ID="1"), post_part(2, Content_ID="1")),
    multipart("outer", http_part("GET $2 HTTP/1.1\n", Content_ID="1"), post_part(1, Content_ID="2")),
    multipart("outer", "Content-Type: multipart/mixed\n\n--inner--\n")])
def test_a_multipart_that_is_none_is_refused_as_a_whole(full, text):
    for newline in ("\n", "\r\n"):
        assert full.error("$batch", "POST", body=text.replace("\n", newline).encode(),
                            Content_Type="multipart/mixed; boundary=outer")[:2] == (400, "BadRequest")
    assert full.error("$batch", "POST", body=text.encode(), Content_Type="multipart/mixed")[0] == 400
    assert stored(full) == ["T"]


@pytest.mark.rule("B6", "B5")
def test_a_multipart_has_a_hundred_requests_at_most(full):
    one = http_part("GET companies/$count HTTP/1.1\n")
    assert len(send(full, multipart("outer", *[one] * 100))) == 100
    for text in (multipart("outer", *[one] * 101), multipart("outer", change_set(*[one] * 60), *[one] * 41),
                 multipart("outer", change_set(*[one] * 101))):
        assert full.error("$batch", "POST", body=text.encode(), Content_Type="multipart/mixed; boundary=outer")[0] == 413
