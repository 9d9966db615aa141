"""Suites of one's own: a folder with `suite.toml` or `suite.json`, whose tests are queries on source and target. docs/validation.md."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from skylift.connectors.asking import Asker
from skylift.errors import CopyError, SetupError
from skylift.upgrades.pack import COMPANY, SHARED, statements
from skylift.validation.report import Report, Test, neutral
from skylift.validation.suites import NAMED, SUITES, Suite

FILES = ("suite.toml", "suite.json")
ALWAYS, COPIED, UPGRADED = "always", "copied", "upgraded"
ID, TEST_ID = 20, 30               # characters, behaviour.md §7

_SUITE_KEYS = {"id", "description", "product", "when", "automatic", "errors_should_fail_migration", "test"}
_TEST_KEYS = {"id", "description", "entity", "scope", "source", "target", "expected", "expect_none", "key", "is_warning",
              "redact", "ignore"}
_KINDS = {str: "text", bool: "true or false", int: "a whole number", list: "a list"}
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_NOTHING = object()


@dataclass(frozen=True, slots=True)
class Expectation:
    """`source`, `target`: the query for each dialect, '' = for every one. Without `source` the target's values are to be `expected`."""

    test: Test
    scope: str
    target: Mapping[str, str]
    source: Mapping[str, str] = field(default_factory=dict)
    expected: Any = _NOTHING      # _NOTHING with no source: the target's query finds nothing
    key: int | None = None        # how many leading columns tell rows apart; None = all but the last


@dataclass(frozen=True, slots=True)
class ExpectationSuite(Suite):
    when: str = ALWAYS
    product: str = ""
    expectations: tuple[Expectation, ...] = ()


def find_suites(names: Iterable[str], home: Path) -> list[Suite]:
    """Those of skylift, and those in the named folders (relative ones under `home`). Raises SetupError naming what is wrong with one."""
    suites: list[Suite] = [*SUITES, *(load_suite(home / name) for name in names)]
    ids = [suite.id for suite in suites]
    if doubled := sorted({id for id in ids if ids.count(id) > 1}):
        raise SetupError(f"more than one validation suite is called '{doubled[0]}'", hint="give each an id of its own", code="Suite")
    return suites


def load_suite(folder: Path) -> ExpectationSuite:
    path = next((folder / name for name in FILES if (folder / name).is_file()), folder / FILES[0])
    try:
        text = path.read_text("utf-8")
        content = json.loads(text, parse_float=Decimal) if path.suffix == ".json" else tomllib.loads(text, parse_float=Decimal)
    except FileNotFoundError:
        raise _wrong(path, "is not there", "name a folder with a suite.toml or suite.json") from None
    except (OSError, ValueError) as error:
        raise _wrong(path, f"cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise _wrong(path, "is no table of settings")
    _check(path, "", content, _SUITE_KEYS, {"id": str, "description": str, "product": str, "when": str, "automatic": bool,
                                            "errors_should_fail_migration": bool, "test": list}, ID)
    when = content.get("when", ALWAYS)
    if when not in (ALWAYS, COPIED, UPGRADED):
        raise _wrong(path, f"has when = '{when}'", f"possible are {ALWAYS}, {COPIED} (before the data upgrade) and {UPGRADED} (after it)")
    tests = content.get("test") or []
    if not tests or not all(isinstance(entry, dict) for entry in tests):
        raise _wrong(path, "has no [[test]]")
    expectations = tuple(_expectation(path, entry) for entry in tests)
    if len({each.test.id for each in expectations}) < len(expectations):
        raise _wrong(path, "has two tests of one id")
    return ExpectationSuite(content["id"], content.get("description", ""), tuple(each.test for each in expectations),
                            content.get("automatic", True), content.get("errors_should_fail_migration", True),
                            when=when, product=content.get("product", ""), expectations=expectations)


def _expectation(path: Path, entry: Mapping[str, Any]) -> Expectation:
    where = f"test {entry.get('id', '?')}: "
    _check(path, where, entry, _TEST_KEYS, {"id": str, "description": str, "entity": str, "scope": str, "expect_none": bool, "key": int,
                                            "is_warning": bool, "redact": bool, "ignore": bool}, TEST_ID)
    scope = entry.get("scope", COMPANY)
    if scope not in (COMPANY, SHARED):
        raise _wrong(path, f"{where}the scope '{scope}' is not known", f"possible are {COMPANY} and {SHARED}")
    if "target" not in entry:
        raise _wrong(path, f"{where}has no target query")
    if sum(("source" in entry, "expected" in entry, entry.get("expect_none", False))) != 1:
        raise _wrong(path, f"{where}needs one of source, expected and expect_none")
    test = Test(entry["id"], entry.get("description", ""), entry.get("entity", ""), entry.get("is_warning", False),
                entry.get("redact", False), entry.get("ignore", False))
    return Expectation(test, scope, _queries(path, where, entry["target"]), _queries(path, where, entry.get("source", {})),
                       entry.get("expected", _NOTHING), entry.get("key"))


def _queries(path: Path, where: str, given: Any) -> Mapping[str, str]:
    queries = {"": given} if isinstance(given, str) else given
    if not isinstance(queries, dict) or not all(isinstance(text, str) for text in queries.values()):
        raise _wrong(path, f"{where}a query is neither text nor a table of dialects",
                     'write source = "select .." or source.duckdb = "select .."')
    return queries


def _check(path: Path, where: str, entry: Mapping[str, Any], known: set[str], types: Mapping[str, type], longest: int) -> None:
    if unknown := sorted(entry.keys() - known):
        raise _wrong(path, f"{where}'{unknown[0]}' is not known", f"known are {', '.join(sorted(known))}")
    for name, kind in types.items():
        if name in entry and (not isinstance(entry[name], kind) or (kind is int and isinstance(entry[name], bool))):
            raise _wrong(path, f"{where}'{name}' is not {_KINDS[kind]}")
    if not entry.get("id") or len(entry["id"]) > longest:
        raise _wrong(path, f"{where}has no id of 1 to {longest} characters")


def _wrong(path: Path, what: str, hint: str = "docs/validation.md says what a suite is made of") -> SetupError:
    return SetupError(f"validation suite: {path} {what}", hint=hint, code="Suite")


# ------------------------------------------------------------------ carrying out


def check_expectation(expectation: Expectation, source: Asker | None, target: Asker | None, limit_s: float,
                      source_table: Callable[[str], str], target_table: Callable[[str], str], report: Report) -> None:
    """`source_table`, `target_table`: the quoted name of what `{{..}}` names. Raises CopyError where a query cannot be carried out."""
    test = expectation.test.id
    actual = _answers(expectation.target, target, limit_s, target_table, "target")
    if not expectation.source and expectation.expected is _NOTHING:
        cuts = [(row, _cut(row, expectation.key) or (expectation.key is None)) for row in actual[:NAMED]]
        report.add_all(test, [_key(row[:cut]) for row, cut in cuts], len(actual), "does not exist", "exists")
        return
    there = _keyed(actual, expectation.key, "target")
    if expectation.source:
        here = _keyed(_answers(expectation.source, source, limit_s, source_table, "source"), expectation.key, "source")
    else:
        here = dict.fromkeys(there, (expectation.expected,)) if there else {(): (expectation.expected,)}
    for key in [*here, *(key for key in there if key not in here)]:
        one, other = here.get(key), there.get(key)
        if one is None or other is None:
            report.add(test, _key(key), _shown(one) if one else "does not exist", _shown(other) if other else "does not exist")
        elif len(one) != len(other) or not all(map(same, one, other)):
            report.add(test, _key(key), _shown(one), _shown(other))


def _answers(queries: Mapping[str, str], asker: Asker | None, limit_s: float, table: Callable[[str], str], side: str) -> list[tuple]:
    if asker is None:
        raise CopyError(f"the {side} has no SQL: it is a folder of files", hint="write expectations for databases")
    sql = queries.get(asker.dialect, queries.get(""))
    if sql is None:
        raise CopyError(f"there is no query for {asker.dialect} of the {side}", hint=f"there are some for {', '.join(sorted(queries))}")
    found = statements(sql, table)
    if len(found) != 1:
        raise CopyError(f"the {side}'s query is {len(found)} statements", hint="write one query")
    return asker.ask(found[0], limit_s)


def _cut(row: tuple, width: int | None) -> int:
    """How many columns of the row are its key; a row of one column has none, unless `width` says so."""
    return max(len(row) - 1, 0) if width is None else width


def _keyed(rows: Iterable[tuple], width: int | None, side: str) -> dict[tuple, tuple]:
    found: dict[tuple, tuple] = {}
    for row in rows:
        cut = _cut(row, width)
        key, values = tuple(map(neutral, row[:cut])), row[cut:]
        if key in found:
            raise CopyError(f"the {side}'s query has two rows with the key {_key(key)}",
                            hint="the key is all columns but the last one, or as many as `key` says")
        found[key] = values
    return found


def same(one: Any, other: Any) -> bool:
    """Numbers by value, everything else by its neutral text. SQLite hands out a decimal as the text that it is there: a number too."""
    if one is None or other is None:
        return one is other
    if isinstance(one, str) != isinstance(other, str):
        one, other = (Decimal(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value for value in (one, other))
    return neutral(one) == neutral(other)


def _key(values: Iterable[Any]) -> str:
    return ", ".join(map(neutral, values))


def _shown(values: tuple) -> str:
    return _key(values)
