"""The text of $filter and $orderby -> typed expressions of skylift.query.

A recursive-descent parser. Every term carries its type, so that a literal of the wrong type is refused here and what is
not supported is refused with 501, never left out (F3). Source: odata.md F1-F7, OData 4.01 part 2 §5.1.1, ABNF.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

from skylift.api.declare import EntitySet, Property
from skylift.api.errors import ODataError, bad_request, not_implemented, unknown_property
from skylift.api.render import NO_ID, UNSET_TIME, read_option, spell
from skylift.query import Attribute, Call, Expression, Literal, Order

MAX_DEPTH = 100

_TOKEN = re.compile(r"""
    (?P<space>\s+)
  | (?P<guid>[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}(?!\w))
  | (?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d{1,12})?)?(?:[Zz]|[+-]\d\d:\d\d)(?!\w))
  | (?P<date>\d{4}-\d\d-\d\d(?!\w))
  | (?P<number>[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?!\w))
  | (?P<text>'(?:[^']|'')*')
  | (?P<member>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+'(?:[^']|'')*')
  | (?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)
  | (?P<mark>[(),/:*=;]|\$count|\$it|@\w+|-)
  | (?P<word>[\w.]+)
""", re.VERBOSE)
# What was meant as a literal without quotes, or as one of OData 3 (guid'..'), and the property that follows it in `literal eq property`.
_BARE = re.compile(r"[\w.:+-]+(?:'(?:[^']|'')*')?(?![\w.:+(/'-])")
_BARE_FIRST = re.compile(_BARE.pattern + r"\s+(?:eq|ne|gt|ge|lt|le)\s+(\w+)(?![\w.(/])")

_LEVEL = {"or": 1, "and": 2, "eq": 3, "ne": 3, "gt": 4, "ge": 4, "lt": 4, "le": 4, "in": 4}
_FLIPPED = {"eq": "eq", "ne": "ne", "gt": "lt", "ge": "le", "lt": "gt", "le": "ge"}
_TEXT, _NUMBER, _TIME, _FLAG, _GUID = "Edm.String", "number", "Edm.DateTimeOffset", "Edm.Boolean", "Edm.Guid"
_NUMBERS = ("Edm.Int32", "Edm.Int64", "Edm.Decimal")
_EXACT = {                                             # types whose literals stand without quotes: token, how they are called
    _GUID: ("guid", "a GUID; write it as 01234567-89ab-cdef-0123-456789abcdef, without quotes"),
    _TIME: ("time", "a date-time; write it as 2026-01-31T12:00:00Z, without quotes"),
}
FUNCTIONS: dict[str, tuple[Sequence[tuple[str, ...]], str]] = {       # name: possible argument types, type of the result
    **{name: ([(_TEXT, _TEXT)], _FLAG) for name in ("contains", "startswith", "endswith")},
    **{name: ([(_TEXT,)], _TEXT) for name in ("tolower", "toupper", "trim")},
    "concat": ([(_TEXT, _TEXT)], _TEXT),
    "substring": ([(_TEXT, _NUMBER), (_TEXT, _NUMBER, _NUMBER)], _TEXT),
    "length": ([(_TEXT,)], _NUMBER),
    "indexof": ([(_TEXT, _TEXT)], _NUMBER),
    **{name: ([(_TIME,)], _NUMBER) for name in ("year", "month", "day", "hour", "minute", "second")},
}
_ELSEWHERE = frozenset((                               # OASIS has them, skylift does not
    "add", "sub", "mul", "div", "divby", "mod", "has", "isof", "cast", "any", "all", "round", "floor", "ceiling", "now", "date",
    "time", "fractionalseconds", "totalseconds", "totaloffsetminutes", "mindatetime", "maxdatetime", "matchesPattern", "hassubset",
    "hassubsequence", "case", "geo.distance", "geo.intersects", "geo.length"))


@dataclass(frozen=True, slots=True)
class Term:
    """An expression and its type; `prop` if it is a property. An option's type is the property's enum (`values`)."""

    expression: Expression
    type: str
    prop: Property | None = None

    @property
    def is_option(self) -> bool:
        return self.prop is not None and self.prop.values is not None

    @property
    def literal(self) -> Any:
        return self.expression.value if isinstance(self.expression, Literal) else None


def parse_filter(text: str, entity_set: EntitySet, schema_version: str) -> Expression:
    """The condition that `text` states on rows of `entity_set`. Raises ODataError: 400, or 501 for what is not supported."""
    parser = _Parser(text, entity_set, schema_version)
    term = parser.expression()
    parser.end()
    return parser.condition(term).expression


def parse_order(text: str, entity_set: EntitySet, schema_version: str) -> list[Order]:
    """`a desc,b`: properties of the entity itself; expressions are 501."""
    parser = _Parser(text, entity_set, schema_version)
    orders = []
    while True:
        term = parser.primary()
        if not isinstance(term.expression, Attribute) or term.expression.path or term.prop is None:
            raise not_implemented("$orderby takes properties of the entity itself.")
        if term.prop in entity_set.filterable:
            raise unknown_property(term.prop.name, entity_set.entity)
        by = term.expression if term.prop.values is None else ranked(term)
        descending = parser.take("desc")
        if not descending:
            parser.take("asc")
        orders.append(Order(by, descending))
        if not parser.take(","):
            parser.end()
            return orders


def ranked(term: Term) -> Call:
    """An option by its ordinal, as AL compares and sorts it."""
    values = term.prop.values if term.prop else None
    return Call("case", (term.expression, Literal(tuple((value, n) for n, value in enumerate(values or ())))))


class _Parser:
    def __init__(self, text: str, entity_set: EntitySet, schema_version: str) -> None:
        self.text = text
        self.entity_set = entity_set
        self.schema_version = schema_version
        self.depth = 0
        self.tokens: list[tuple[str, str, int]] = []       # kind, text, position
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self._syntax(position)
            if match.lastgroup != "space":
                self.tokens.append((match.lastgroup or "", match[0], position))
            position = match.end()
        self.tokens.append(("end", "", len(text)))
        self.next = 0

    # -------------------------------------------------------------- grammar

    def expression(self, level: int = 1) -> Term:
        """Operators that bind at least as tightly as `level`."""
        left = self._unary()
        while True:
            kind, operator, _ = self.tokens[self.next]
            if kind == "name" and operator in _ELSEWHERE:
                raise not_implemented(f"The operator '{operator}' is not supported in a filter.")
            if kind != "name" or _LEVEL.get(operator, 0) < level:
                return left
            self.next += 1
            if operator == "in":
                left = self._member(left)
            else:
                self._check_bare(left.type)
                right = self.expression(_LEVEL[operator] + 1)
                left = self._logical(operator, left, right) if operator in ("and", "or") else self._compare(operator, left, right)

    def _unary(self) -> Term:
        first = _BARE_FIRST.match(self.text, self.tokens[self.next][2])
        if first is not None and (prop := self.entity_set.find_property(first[1])) is not None:
            self._check_bare(prop.edm)
        if self.take("not"):
            with _Deeper(self):
                return Term(Call("not", (self.condition(self._unary()).expression,)), _FLAG)
        if self.tokens[self.next][1] == "-":
            raise not_implemented("Negation is not supported in a filter.")
        return self.primary()

    def primary(self) -> Term:
        kind, token, position = self.tokens[self.next]
        self.next += 1
        match kind:
            case "text":
                return Term(Literal(token[1:-1].replace("''", "'")), _TEXT)
            case "guid":
                return Term(Literal(UUID(token)), _GUID)
            case "time":
                return Term(Literal(self._time(token)), _TIME)
            case "date":
                return Term(Literal(token), "Edm.Date")
            case "number":
                return Term(Literal(self._number(token)), _NUMBER)
            case "member":
                name, _, value = token.partition("'")
                return Term(Literal(value[:-1].replace("''", "'")), name)
            case "name":
                return self._name(token)
            case "mark" if token == "(":
                with _Deeper(self):
                    term = self.expression()
                    self._expect(")")
                    return term
            case "mark" if token[0] in "$@":
                raise not_implemented(f"'{token}' is not supported in a filter.")
        raise self._syntax(position)

    def _name(self, name: str) -> Term:
        if name in ("true", "false"):
            return Term(Literal(name == "true"), _FLAG)
        if name == "null":
            return Term(Literal(None), "null")
        if name in ("INF", "NaN"):
            raise bad_request(f"'{name}' is not a number that a property can have.")
        if self.tokens[self.next][1] == "(":
            return self._call(name)
        return self._property(name, self.entity_set, ())

    def _property(self, name: str, entity_set: EntitySet, path: tuple[str, ...]) -> Term:
        navigation = entity_set.find_navigation(name)
        if navigation is not None:
            if navigation.many or not self.take("/"):
                raise not_implemented(f"Filtering by the collection '{name}' is not supported." if navigation.many else
                                      f"Comparing '{name}' itself is not supported; compare one of its properties.")
            kind, token, position = self.tokens[self.next]
            if kind != "name":
                raise self._syntax(position)
            self.next += 1
            return self._property(token, navigation.target, (*path, navigation.path))
        prop = entity_set.find_property(name) or next((p for p in entity_set.filterable if p.name == name), None)
        if prop is None:
            raise unknown_property(name, entity_set.entity)
        if prop.is_collection:
            raise not_implemented(f"Filtering by the collection '{name}' is not supported.")
        if not prop.is_stored:
            raise not_implemented(f"'{name}' is computed or may be unknown: no filter and no order goes by it.")
        kind = _NUMBER if prop.edm in _NUMBERS else prop.edm if "." in prop.edm else f"Microsoft.NAV.{prop.edm}"
        return Term(Attribute(prop.attribute, path), kind, prop)

    def _call(self, name: str) -> Term:
        if name not in FUNCTIONS:
            raise not_implemented(f"The function '{name}' is not supported in a filter.") if name in _ELSEWHERE else bad_request(
                f"An unknown function with name '{name}' was found.", "BadRequest_NotFound")
        self._expect("(")
        arguments: list[Term] = []
        with _Deeper(self):
            while not self.take(")"):
                if arguments:
                    self._expect(",")
                arguments.append(self.expression())
        signatures, result = FUNCTIONS[name]
        arguments = [self._as_text(a) for a in arguments]
        if tuple(a.type for a in arguments) not in signatures:
            possible = "; ".join(f"{name}({', '.join(types)})" for types in signatures)
            raise bad_request(f"No function signature for the function with name '{name}' matches the specified arguments. "
                              f"The signatures are: {possible}.")
        if name == "substring" and not all(isinstance(a.literal, int) and 0 <= a.literal < 2**31 - 1 for a in arguments[1:]):
            raise not_implemented("substring takes whole numbers from 0 to 2147483646.")
        return Term(Call(name, tuple(a.expression for a in arguments)), result)

    def _member(self, left: Term) -> Term:
        self._expect("(")
        items: list[Term] = []
        with _Deeper(self):
            while not items or self.take(","):
                self._check_bare(left.type)
                items.append(self.primary())
        self._expect(")")
        equals = [self._compare("eq", left, item, wildcard=False) for item in items]
        values = [equal.expression.args[1].value for equal in equals          # type: ignore[union-attr]
                  if isinstance(equal.expression, Call) and equal.expression.name == "eq"
                  and equal.expression.args[0] == left.expression and isinstance(equal.expression.args[1], Literal)]
        if len(values) == len(items) and left.type != _FLAG:
            return Term(Call("in", (left.expression, Literal(tuple(values)))), _FLAG)
        return Term(Call("or", tuple(equal.expression for equal in equals)), _FLAG)

    # -------------------------------------------------------------- types

    def condition(self, term: Term) -> Term:
        if term.type != _FLAG:
            raise bad_request("The $filter expression must evaluate to a single boolean value: "
                              f"{term.type.removeprefix('Edm.')} stands where a condition is needed.", "BadRequest_NotFound")
        return term

    def _logical(self, operator: str, left: Term, right: Term) -> Term:
        before = self.condition(left).expression
        known = before.args if isinstance(before, Call) and before.name == operator else (before,)
        return Term(Call(operator, (*known, self.condition(right).expression)), _FLAG)

    def _compare(self, operator: str, left: Term, right: Term, wildcard: bool = True) -> Term:
        if isinstance(left.expression, Literal) and not isinstance(right.expression, Literal):
            operator, left, right = _FLIPPED[operator], right, left
        if "null" in (left.type, right.type):
            return self._compare_null(operator, left, right)
        pattern = wildcard and operator in ("eq", "ne") and isinstance(right.literal, str) and "*" in right.literal
        if left.is_option and isinstance(right.literal, str) and not pattern and right.type in (_TEXT, left.type):
            return self._compare_option(operator, left, right.literal)
        left, right = self._as_text(left), self._as_text(right)
        if left.type != right.type or (left.type == _FLAG and operator not in ("eq", "ne")):
            raise bad_request(f"A binary operator with incompatible types was detected. Found operand types '{left.type}' and "
                              f"'{right.type}' for operator '{operator}'.")
        if left.type == _TEXT and pattern:
            parts = tuple(re.split(r"\*+", right.literal))
            return Term(Call("like" if operator == "eq" else "unlike", (left.expression, Literal(parts))), _FLAG)
        if left.type == _TIME and isinstance(right.expression, Literal):
            return _compare_time(operator, left, right.literal)
        return Term(Call(operator, (left.expression, right.expression)), _FLAG)

    def _compare_null(self, operator: str, left: Term, right: Term) -> Term:
        """Nothing is ever null; on text it means empty, on times and GUIDs unset (F5)."""
        left, right = (right, left) if left.type == "null" else (left, right)
        unset = {_TEXT: "", _TIME: UNSET_TIME, _GUID: NO_ID}.get(left.type)
        if operator not in ("eq", "ne") or unset is None or left.is_option:
            return Term(Literal(operator == ("eq" if left.type == "null" else "ne")), _FLAG)
        return self._compare(operator, left, Term(Literal(unset), left.type))

    def _compare_option(self, operator: str, left: Term, text: str) -> Term:
        assert left.prop is not None and left.prop.values is not None
        value = read_option(left.prop.values, text)
        if operator in ("eq", "ne"):
            return Term(Call(operator, (left.expression, Literal(value))), _FLAG)
        return Term(Call(operator, (ranked(left), Literal(list(left.prop.values).index(value)))), _FLAG)

    def _as_text(self, term: Term) -> Term:
        """An option where text is needed: as this schema version spells it."""
        if term.prop is None or term.prop.values is None:
            return term
        pairs = tuple((value, spell(value, self.schema_version)) for value in term.prop.values)
        return Term(Call("case", (term.expression, Literal(pairs))), _TEXT)

    # -------------------------------------------------------------- literals

    def _check_bare(self, wanted: str) -> None:
        """Refuse what stands, next, for a GUID or a time and is none: not an unknown property, nor a negation (F6)."""
        token_kind, called = _EXACT.get(wanted, ("", ""))
        kind, token, position = self.tokens[self.next]
        bare = _BARE.match(self.text, position)
        if bare is None or not called or (bare[0] == token and (
                kind == token_kind or (kind == "name" and (token == "null" or self._is_property(token))))):
            return
        raise bad_request(f"'{bare[0]}' is not {called}.")

    def _is_property(self, name: str) -> bool:
        return any(find(name) is not None for find in (self.entity_set.find_property, self.entity_set.find_navigation))

    def _time(self, token: str) -> datetime:
        match = re.fullmatch(r"(.{16})(?::(\d\d)(?:\.(\d+))?)?([Zz]|([+-])(\d\d):(\d\d))", token)
        assert match is not None                    # the token's own shape
        base, second, fraction, _, sign, hours, minutes = match.groups()
        try:
            offset = timedelta(hours=int(hours), minutes=int(minutes)) * (-1 if sign == "-" else 1) if sign else timedelta()
            moment = datetime.strptime(f"{base}:{second or '00'}", "%Y-%m-%dT%H:%M:%S").replace(
                microsecond=int((fraction or "0")[:6].ljust(6, "0")), tzinfo=timezone(offset))
            return moment.astimezone(UTC)
        except (ValueError, OverflowError):
            raise bad_request(f"'{token}' is not a point in time.") from None

    def _number(self, token: str) -> int | Decimal:
        number = Decimal(token)
        if abs(number) >= 2**63 or number.adjusted() < -40:
            raise bad_request(f"'{token}' is out of range.")
        return int(token) if re.fullmatch(r"[+-]?\d+", token) else number

    # -------------------------------------------------------------- tokens

    def take(self, token: str) -> bool:
        if self.tokens[self.next][1] == token and self.tokens[self.next][0] in ("name", "mark"):
            self.next += 1
            return True
        return False

    def end(self) -> None:
        if self.tokens[self.next][0] != "end":
            raise self._syntax(self.tokens[self.next][2])

    def _expect(self, token: str) -> None:
        if not self.take(token):
            raise self._syntax(self.tokens[self.next][2])

    def _syntax(self, position: int) -> ODataError:
        return bad_request(f"Syntax error at position {position} in '{self.text}'.", "BadRequest_NotFound")


class _Deeper:
    """One more level of nesting; more than MAX_DEPTH is refused (F7)."""

    def __init__(self, parser: _Parser) -> None:
        self.parser = parser

    def __enter__(self) -> None:
        self.parser.depth += 1
        if self.parser.depth > MAX_DEPTH:
            raise bad_request(f"The filter is nested more than {MAX_DEPTH} levels deep.", "BadRequest_NotFound")

    def __exit__(self, *_: object) -> None:
        self.parser.depth -= 1


def _compare_time(operator: str, left: Term, moment: datetime) -> Term:
    """Times are kept to the microsecond and shown to the millisecond (H4): a client that sends back what it saw must hit.

    So `left` counts as cut to the millisecond, written as bounds on the value itself, which an index can serve.
    """
    floor = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    below = Call("lt", (left.expression, Literal(floor)))
    try:
        up_to = Call("lt", (left.expression, Literal(floor + timedelta(milliseconds=1))))
    except OverflowError:
        up_to = Call("le", (left.expression, Literal(moment)))
    exact = moment == floor
    bounds: dict[str, Expression] = {
        "lt": below if exact else up_to,
        "ge": Call("not", (below if exact else up_to,)),
        "le": up_to,
        "gt": Call("not", (up_to,)),
        "eq": Call("and", (Call("not", (below,)), up_to)) if exact else Literal(False),
    }
    return Term(Call("not", (bounds["eq"],)) if operator == "ne" else bounds[operator], _FLAG)
