"""Moves every value of every kind from a source to a target and says what became of it.

Each value stands in a table of its own, so that one that is refused keeps no other from arriving. What the source holds is asked
of the source's own driver after writing, what has arrived of the target's: skylift's opinion plays no part. A value that arrives
as another one without having been refused is a failure of the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skylift.errors import CopyError
from tests.connectors import labs
from tests.fidelity.dialects import SOURCES, TARGETS
from tests.fidelity.values import KINDS, canonical

ABSENT, EXACT, REFUSED = "absent", "exact", "refused"


@dataclass(frozen=True)
class Outcome:
    kind: str
    label: str
    result: str                   # ABSENT: the source has no such type or value; EXACT; REFUSED; else what arrived instead
    why: str = ""


def outcomes(source_name: str, target_name: str, folder: Path) -> Iterator[Outcome]:
    source, target = labs.SOURCES[source_name](folder), labs.TARGETS[target_name](folder)
    dialect, judge = SOURCES[source_name], TARGETS[target_name]
    held: dict[str, tuple[str, str, Any]] = {}
    for kind, values in KINDS.items():
        for label, value in values.items():
            table = f"t{len(held)}"
            if kind in dialect.types and (stored := _store(source, dialect, table, kind, value)) is not ABSENT:
                held[table] = (kind, label, stored)
            else:
                yield Outcome(kind, label, ABSENT)
    results = labs.migrate(source.url, target.url, "fidelity")
    for table, (kind, label, stored) in held.items():
        error = results[table].error
        if error is not None:
            assert isinstance(error, CopyError) and table in error.message, f"{source_name} {kind} {label}: {error!r}"
            yield Outcome(kind, label, REFUSED, error.message)
            continue
        [(arrived,)] = target.fetch(f"select {judge.read(kind)} from {target.name(table)}")
        arrived = canonical(kind, arrived)
        yield Outcome(kind, label, EXACT if _same(kind, stored, arrived) else f"{stored!r:.60} became {arrived!r:.60}")


def _store(source: Any, dialect: Any, table: str, kind: str, value: Any) -> Any:
    """What the source holds after the value was written; ABSENT if it does not take it, or takes it for another one."""
    with suppress(Exception):
        source.execute(f"create table {source.name(table)} ({source.name('id')} integer not null primary key, "
                       f"{source.name('v')} {dialect.types[kind]})")
        source.execute((f"insert into {source.name(table)} values (?, ?)", [(1, dialect.takes(kind, value))]))
        [(stored,)] = source.fetch(f"select {dialect.read(kind)} from {source.name(table)}")
        if _same(kind, canonical(kind, stored), canonical(kind, value)):
            return canonical(kind, stored)
    with suppress(Exception):
        source.execute(f"drop table {source.name(table)}")
    return ABSENT


def _same(kind: str, one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other
