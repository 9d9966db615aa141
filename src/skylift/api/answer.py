"""The answer to one request, alone or inside a batch; what went wrong becomes a refusal, told apart in the log by its id (X1)."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from uuid import uuid4

from skylift.api.errors import ODataError, of_service
from skylift.api.render import error_body
from skylift.errors import SkyliftError

log = logging.getLogger("skylift.api")
MOST_LOGGED = 300                # characters of a path in the log
_ERROR_TYPE = "application/json; odata.metadata=minimal; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def finish(answer: Answer | Exception, method: str, path: str) -> Answer:
    """`answer`, or the refusal that an error means, with the headers of every answer; refusals are logged."""
    correlation_id = str(uuid4())
    if isinstance(answer, Exception):
        answer = _refusal(answer, method, path, correlation_id)
    if answer.status >= 400:
        log.info("%s %s answered with %d, request %s", _loggable(method), _loggable(path), answer.status, correlation_id)
    headers = {"OData-Version": "4.0", "Content-Language": "en-US", "request-id": correlation_id, **answer.headers}
    if method == "HEAD":
        return Answer(answer.status, b"", {**headers, "Content-Length": str(len(answer.body))})
    return Answer(answer.status, answer.body, headers)


def _loggable(text: str) -> str:
    """On one line, for a line break would forge another one of the log, and not a page long."""
    return text[:MOST_LOGGED].encode("unicode_escape").decode() + ("..." if len(text) > MOST_LOGGED else "")


def _refusal(error: Exception, method: str, path: str, correlation_id: str) -> Answer:
    if isinstance(error, SkyliftError):
        error = of_service(error)
    if not isinstance(error, ODataError):
        log.error("%s %s failed, request %s", _loggable(method), _loggable(path), correlation_id, exc_info=error)
        error = ODataError(500, "Internal_ServerError", "An unexpected error occurred.")
    headers = {"Content-Type": _ERROR_TYPE, **error.headers}
    if error.skylift_code:
        headers["x-skylift-code"] = error.skylift_code
    return Answer(error.status, error_body(error.code, error.message, correlation_id), headers)
