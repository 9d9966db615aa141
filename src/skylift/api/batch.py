"""$batch: several requests in one, each through the very dispatch of a single request, some of them all or nothing.

Source: odata.md §5 (B1-B6); OData Protocol 4.01 §11.7. How batches are written: batch_formats.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from urllib.parse import unquote

from skylift.api.answer import Answer, finish
from skylift.api.batch_formats import Item, read_json, read_multipart, write_json, write_multipart
from skylift.api.errors import ODataError, bad_request
from skylift.api.negotiate import read_preferences
from skylift.api.urls import Url, parse_url
from skylift.api.writing import is_json, media_type
from skylift.errors import SkyliftError
from skylift.store import AskFirst, Known, Store, Together

MOST_ANSWERED_BYTES = 64 * 2**20     # behind which no further item is carried out: a batch of 100 full pages would fill the memory
ROLLED_BACK = "x-skylift-rolled-back"
_READS = ("GET", "HEAD", "OPTIONS")
_SYSTEM = ("$batch", "$crossjoin", "$all", "$entity", "$root", "$id", "$metadata")     # no references (JSON Format 4.01 §19.1)
_REFERENCE = re.compile(r"\$([^/?]+)(.*)", re.DOTALL)
_ABSOLUTE = re.compile(r"https?://([^/?#]*)(.*)", re.DOTALL | re.IGNORECASE)

Ask = Callable[[str, Url, dict[str, str], bytes], Answer]     # the dispatch of one request: method, URL, headers, body; raises


def run(store: Store, url: Url, headers: dict[str, str], body: bytes, ask: Ask) -> Answer:
    """Carry out the batch `body` that was sent to `url`. Raises ODataError, 400, 413 or 415, if it cannot be read."""
    content_type = headers.get("content-type", "")
    if is_json(content_type):
        items, write = read_json(body), write_json
    elif media_type(content_type) == "multipart/mixed":
        items, write = read_multipart(content_type, body), write_multipart
    else:
        raise ODataError(415, "BadRequest", f"The content type '{media_type(content_type)}' is not supported; send application/json or "
                                            "multipart/mixed.")
    _check(items)
    isolation = headers.get("isolation", headers.get("odata-isolation", "")).strip().lower()
    if isolation not in ("", "snapshot"):
        raise bad_request(f"The isolation '{isolation}' is not known; there is snapshot.")
    go_on = read_preferences(headers).get("continue-on-error", "false").lower() in ("", "true")
    batch = _Batch(store, url, headers, ask, go_on)
    units = [unit for group, members in groupby(items, key=lambda item: item.group) for unit in _units(group, list(members))]
    if isolation and units:
        batch.all_or_nothing(units)
    else:
        batch.carry_out(units)
    kind, answer = write(batch.answered)
    return Answer(200, answer, {"Content-Type": kind, **({"Preference-Applied": "odata.continue-on-error"} if go_on else {})})


def _units(group: str, items: list[Item]) -> list[list[Item]]:
    return [items] if group else [[item] for item in items]


def _check(items: list[Item]) -> None:
    """What makes the batch as a whole wrong (B4): nested batches, groups that are torn apart, unknown or forward ids."""
    every = {str(item.id) for item in items if item.id is not None}
    known: set[str] = set()
    before = ""
    for item in items:
        if item.group and item.group in every:
            raise bad_request(f"'{item.group}' is both a request and an atomicityGroup of the batch.")
        if item.group and item.group != before and item.group in known:
            raise bad_request(f"The requests of the atomicityGroup '{item.group}' do not follow one another.")
        if unquote(item.url.partition("?")[0]).rstrip("/").rpartition("/")[2] == "$batch":
            raise bad_request("A batch cannot hold another one.")
        reference = _reference(item.url)
        needed = [*item.depends_on, *([reference[1]] if reference and reference[1] in every else [])]
        for name in needed:
            if name not in known or name == item.group:
                raise bad_request(f"A request of the batch depends on '{name}', which is not a request or group before it.")
        known |= item.names
        before = item.group


def _reference(url: str) -> re.Match[str] | None:
    match = _REFERENCE.fullmatch(url)
    return match if match and f"${match[1]}" not in _SYSTEM else None


class _Failed(Exception):
    """Takes back what the transaction around it has done."""


class _Batch:
    """A batch under way. `answered`: what has been carried out so far, in order."""

    def __init__(self, store: Store, url: Url, headers: dict[str, str], ask: Ask, go_on: bool) -> None:
        self.store, self.ask, self.go_on = store, ask, go_on
        self.base = "/".join(url.root.split("/", 3)[:3])
        self.root = url.root.removeprefix(self.base)
        self.on_premises = url.on_premises
        self.api = url.api
        self.version = url.options.get("$schemaversion")
        self.inherited: dict[str, str] = {name: headers[name] for name in ("data-access-intent", "accept-language") if name in headers}
        self.company = url.others.get("company") or headers.get("company") or headers.get("companyid")
        self.answered: list[tuple[Item, Answer]] = []
        self.entities: dict[str, str] = {}       # id -> path of the entity that a request made or was about
        self.tags: dict[str, str] = {}           # id -> its ETag
        self.failed: set[str] = set()            # ids and groups
        self.size_bytes = 0
        self.kept = 0                            # answers whose effects can no longer be taken back
        self.together: Together | None = None

    def carry_out(self, units: list[list[Item]]) -> bool:
        """Units are items on their own and groups. False if one has failed; the rest is carried out only if the client wants that (B2)."""
        ok = True
        for unit in units:
            done = self.all_or_nothing([unit]) if unit[0].group and self.together is None else self._carry_out_unit(unit)
            ok = done and ok
            if not done and not self.go_on:
                break
        return ok

    def all_or_nothing(self, units: list[list[Item]]) -> bool:
        """One transaction, which is taken back if an item fails or what was done cannot be committed (B3).

        It is begun anew, with what is known then, when an item needs something of the outside world, such as a receiver's confirmation:
        that is asked while others may write.
        """
        known = Known()
        answered, entities, tags, failed, size_bytes = self.answered, self.entities, self.tags, self.failed, self.size_bytes
        while True:
            self.answered, self.entities, self.tags, self.failed = list(answered), dict(entities), dict(tags), set(failed)
            self.size_bytes = size_bytes
            try:
                return self._all_or_nothing(units, known)
            except AskFirst as first:
                known.ask(first)

    def _all_or_nothing(self, units: list[list[Item]], known: Known) -> bool:
        first = self.kept = len(self.answered)
        try:
            writes = any(item.method not in _READS for unit in units for item in unit)
            with self.store.together(writes=writes, known=known) as self.together:
                if not self.carry_out(units):
                    raise _Failed
            return True
        except _Failed:
            pass
        except SkyliftError as error:                # of beginning or committing
            item = self.answered.pop()[0] if len(self.answered) > first else units[0][0]
            self.answered.append((item, _finish(error, item)))
        finally:
            self.together = None
        for item, _ in self.answered[self.kept:]:
            self.failed |= item.names
        self.answered[self.kept:] = [(item, _marked(item, answer)) for item, answer in self.answered[self.kept:]]
        return False

    def _carry_out_unit(self, unit: list[Item]) -> bool:
        for position, item in enumerate(unit):
            commits = self.together.commits if self.together else 0
            answer = self._answer(item)
            self.answered.append((item, answer))
            self.size_bytes += len(answer.body)
            if self.together and self.together.commits > commits:
                self.kept = len(self.answered)
            if answer.status >= 400:
                self.failed |= item.names
                if self.go_on:
                    self.answered += [(rest, self._unmet(rest, item)) for rest in unit[position + 1:]]
                return False
        return True

    def _unmet(self, item: Item, failed: Item) -> Answer:
        self.failed |= item.names
        error = ODataError(424, "BadRequest", f"The request belongs to '{failed.group}', of which another request has failed.")
        return _finish(error, item)

    def _answer(self, item: Item) -> Answer:
        answer: Answer | Exception
        try:
            answer = self._ask(item)
        except Exception as error:
            answer = error
        return _finish(answer, item)

    def _ask(self, item: Item) -> Answer:
        reference = _reference(item.url)
        for name in (*item.depends_on, *([reference[1]] if reference else [])):
            if name in self.failed:
                raise ODataError(424, "BadRequest", f"The request depends on '{name}', which has failed.")
        if self.size_bytes > MOST_ANSWERED_BYTES:
            raise ODataError(413, "BadRequest", f"The answers so far have more than {MOST_ANSWERED_BYTES} bytes; send the rest of the "
                                                "batch as another one.")
        url = self._url(item, reference)
        answer = self.ask(item.method, url, self._headers(item, url), item.body)
        if item.id is not None:
            id = str(item.id)
            self.failed.discard(id)                          # of another change set, which numbers its own
            self.tags[id] = answer.headers.get("ETag", "")
            path = answer.headers.get("Location", "").removeprefix(self.base)
            self.entities[id] = path or self._path(item, reference).partition("?")[0]
        return answer

    def _url(self, item: Item, reference: re.Match[str] | None) -> Url:
        path, _, query = self._path(item, reference).partition("?")
        url = parse_url(self.base, path.encode(), query.encode())
        if url is None:                                      # shipped clients write /companies and mean it relative to the root
            url = parse_url(self.base, f"{self.root}/{path}".encode(), query.encode())
        assert url is not None
        if url.api is not self.api or url.on_premises != self.on_premises:      # Basic authentication: under one kind of root only (N2)
            raise bad_request(f"The URL leads to another service, '{url.root}'.", "BadRequest_InvalidRequestUrl")
        if self.version is not None and "$schemaversion" not in url.options:
            return replace(url, options={**url.options, "$schemaversion": self.version})
        return url

    def _path(self, item: Item, reference: re.Match[str] | None) -> str:
        """Path and query of an item's URL, which may be absolute, path-absolute, relative to the service root, or begin with $id."""
        if reference and reference[1] in self.entities:
            return self.entities[reference[1]] + reference[2]
        absolute = _ABSOLUTE.fullmatch(item.url)
        if absolute is None:
            return item.url if item.url.startswith("/") else f"{self.root}/{item.url}"
        if absolute[1].lower() != self.base.partition("//")[2].lower():
            raise bad_request(f"The URL leads to another host, '{absolute[1]}'.", "BadRequest_InvalidRequestUrl")
        return absolute[2]

    def _headers(self, item: Item, url: Url) -> dict[str, str]:
        """The item's own, and what it leaves to the batch; If-Match: $id stands for the tag that an earlier item was answered with."""
        headers: dict[str, str] = {**self.inherited, **item.headers}
        if self.company and not any(("company" in url.others, headers.get("company"), headers.get("companyid"))):
            headers["company"] = self.company
        for name in ("if-match", "if-none-match"):
            value = headers.get(name, "")
            if value.startswith("$") and value[1:] in self.tags:
                headers[name] = self.tags[value[1:]]
        return headers


def _finish(answer: Answer | Exception, item: Item) -> Answer:
    return finish(answer, item.method, item.url.partition("?")[0])


def _marked(item: Item, answer: Answer) -> Answer:
    """An item still reports its success when its transaction was taken back (B3); this tells."""
    marked = item.method not in _READS and answer.status < 400
    return replace(answer, headers={**answer.headers, ROLLED_BACK: "true"}) if marked else answer
