"""What an API is made of: entity sets, properties, navigations and bound actions, as resources.py and resources_v2.py declare them.

Routes, JSON, $metadata, filters, 405s and the reference pages follow from these declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

GUID, STRING, TIME, INT, LONG, FLAG, DECIMAL = (
    "Edm.Guid", "Edm.String", "Edm.DateTimeOffset", "Edm.Int32", "Edm.Int64", "Edm.Boolean", "Edm.Decimal")
STRINGS = "Collection(Edm.String)"

Verb = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Property:
    """One property; `values` are those of an option (Edm.String) or of an enum (any other type without a dot)."""

    name: str
    edm: str
    attribute: str
    max_length: int | None = None
    values: type[StrEnum] | None = None
    writable: bool = False
    secret: bool = False             # answered to the write that sets it, empty afterwards (W8)
    ignored: bool = False            # what a client sends of it is ignored (K2)
    nullable: bool = False           # null where it is not known; else there is a value that stands for that (H4)
    computed: bool = False           # by the service, not in the store
    read: Callable[[Any], Any] | None = None     # makes the value of the row; the entity tag does not depend on it
    required: bool = False           # of an action's parameter
    about: str = ""                  # for the reference page

    @property
    def is_collection(self) -> bool:
        return self.edm.startswith("Collection(")

    @property
    def is_stored(self) -> bool:
        """Filters and orders go by it."""
        return not (self.nullable or self.computed or self.read or self.is_collection)


@dataclass(frozen=True, slots=True)
class Navigation:
    name: str
    to: EntitySet | Callable[[], EntitySet]      # one that is declared further down is asked for later
    many: bool = True
    on: tuple[str, str] | None = None    # attribute here = attribute there; None = all rows (C3)
    path: str = ""                   # name of a single-valued way in a Query (store/select.py)
    partner: str = ""

    @property
    def target(self) -> EntitySet:
        return self.to if isinstance(self.to, EntitySet) else self.to()


@dataclass(frozen=True, slots=True)
class Action:
    name: str
    verb: Verb                       # of Migration, called with the bound row's id, if it is `of_row`, and the parameters
    about: str
    parameters: tuple[Property, ...] = ()
    of_row: bool = True
    administrator: bool = False      # needs an administrator whatever its set needs (N4)


@dataclass(frozen=True, eq=False)
class EntitySet:
    """An entity set and its type. `create`, `change` and `delete` are methods of Migration; None = not allowed (405)."""

    name: str
    entity: str
    row: type
    about: str
    properties: tuple[Property, ...]     # the key first
    order: tuple[str, ...] = ()          # attributes, '-' before one for descending; the key breaks ties (Q2)
    navigations: tuple[Navigation, ...] = ()
    actions: tuple[Action, ...] = ()
    create: Verb | None = None
    change: Verb | None = None
    delete: Verb | None = None
    in_company: bool = True
    administrator: bool = False          # writes and actions are set-up (N4)
    filterable: tuple[Property, ...] = ()    # known in $filter only: what the links of webhooks compare (K4)
    aliases: tuple[str, ...] = ()        # the generated documentation's misspelling (U5)
    rows: Callable[[Any], Sequence[Any]] | None = None   # those that are not in the store, of the service
    null_is_unsent: bool = False         # in a POST: clients made from $metadata send every property
    noted: type | None = None            # whose changes webhooks tell (migration/changes.py), where it is not that of the rows

    @property
    def key(self) -> Property:
        return self.properties[0]

    @cached_property
    def tagged(self) -> tuple[Property, ...]:
        """The properties that an entity tag is made of: all that a GET shows, but for what depends on the time of reading (W1)."""
        return tuple(p for p in self.properties if not (p.secret or p.read or p.is_collection))

    def find_property(self, name: str) -> Property | None:
        return next((p for p in self.properties if p.name == name), None)

    def named(self, attribute: str) -> str:
        """The name of the property that shows an attribute."""
        return next(p.name for p in self.properties if p.attribute == attribute)

    def find_navigation(self, name: str) -> Navigation | None:
        return next((n for n in self.navigations if n.name == name), None)

    def methods(self, single: bool) -> tuple[str, ...]:
        """HTTP methods of one entity (`single`) or of the set."""
        writes = (("PATCH", self.change), ("DELETE", self.delete)) if single else (("POST", self.create),)
        return ("GET", "HEAD", "OPTIONS", *(method for method, verb in writes if verb))


@dataclass(frozen=True, slots=True)
class EntityDefinition:
    """What entityDefinitions says of one type: names and English captions."""

    name: str
    set_name: str
    captions: tuple[dict[str, Any], ...]
    set_captions: tuple[dict[str, Any], ...]
    properties: tuple[dict[str, Any], ...]
    actions: tuple[dict[str, Any], ...]
    enum_members: tuple[dict[str, Any], ...]


@dataclass(frozen=True, eq=False)
class Api:
    """A version of the service. Its root ends with its route, publisher/group/version, as that of every API of Business Central."""

    publisher: str
    group: str
    version: str
    sets: tuple[EntitySet, ...]
    short: bool = False                  # found by its version alone, too (U4)

    @property
    def route(self) -> str:
        return f"{self.publisher}/{self.group}/{self.version}"

    @cached_property
    def routes(self) -> list[list[str]]:
        """What may stand behind `api` in the root: segments in lower case."""
        return [route.lower().split("/") for route in (self.route, *([self.version] if self.short else []))]

    @cached_property
    def by_alias(self) -> Mapping[str, EntitySet]:
        """The sets by name, and by what else is taken for it."""
        return {name: s for s in self.sets for name in (s.name, *s.aliases)}

    def set_of(self, row: type) -> EntitySet:
        """The set that shows rows of this class, or of one made of it."""
        return next(s for s in self.sets if issubclass(s.row, row))
