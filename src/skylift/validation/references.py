"""Rows that refer to rows: where the source declares a foreign key, as many references lead nowhere in the target as in the source.

None, where the source enforces the key; it need not have done so always. Each side's own SQL counts, by its own rules of what is equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from skylift.connectors.asking import Asker, source_sql
from skylift.connectors.references import Reference
from skylift.model import CopyTask, Table
from skylift.validation.pair import Pair, comparable
from skylift.validation.report import Report, neutral

SHOWN = 5                         # rows that are named
LOOKED_AT = 1_000                 # of each side, to find those that only the target has
_FOLDED = "it is only letters' case or blanks at the end that the target tells apart and the source does not"


@dataclass(frozen=True, slots=True)
class _Join:
    """The rows of one side that refer to nothing. Names are quoted as SQL has them there."""

    asker: Asker
    table: str
    key: Sequence[str]
    columns: Sequence[str]
    other: str
    referred: Sequence[str]
    texts: Sequence[bool]         # by column

    def count(self, limit_s: float, *, folded: bool = False) -> int:
        """`folded`: upper and lower case, and blanks at the end of texts, are not told apart."""
        return int(self.asker.ask(f"select count(*) as n {self._dangling(folded)}", limit_s)[0][0])

    def keys(self, limit_s: float) -> list[str]:
        """Texts of some of the rows' keys, in order; of what they refer to, where the table has no key."""
        some = self.key or self.columns
        numbered = f"select {self._list(some)}, row_number() over (order by {self._list(some)}) as skylift_n {self._dangling(False)}"
        rows = self.asker.ask(f"select * from ({numbered}) skylift_o where skylift_n <= {LOOKED_AT}", limit_s)
        return [f"({', '.join(map(neutral, row[:-1]))})" for row in sorted(rows, key=lambda row: row[-1])]

    def _dangling(self, folded: bool) -> str:
        there = " and ".join(f"c.{column} is not null" for column in self.columns)
        same = " and ".join("lower(rtrim(p.{})) = lower(rtrim(c.{}))".format(*pair) if folded and text else "p.{} = c.{}".format(*pair)
                            for *pair, text in zip(self.referred, self.columns, self.texts, strict=True))
        return f"from {self.table} c where {there} and not exists (select 1 from {self.other} p where {same})"

    def _list(self, columns: Sequence[str]) -> str:
        return ", ".join(f"c.{column}" for column in columns)


def check_references(pair: Pair, report: Report) -> None:
    table = pair.task.table
    references = pair.sides.references.get((table.namespace.lower(), table.name.lower()), ())
    if not references or not comparable(pair, report):
        return
    if pair.sides.target_asker is None:
        report.note = "the target has no SQL to follow foreign keys with"
        return
    for reference in references:
        other = _referred(pair, reference)
        names = _spelt(reference, table, other.table) if other else None
        if other and names:
            _compare(pair, other, *names, report)
        else:
            report.note = f"the table that it refers to takes no part: {reference.table}"


def _compare(pair: Pair, other: CopyTask, columns: list[str], referred: list[str], report: Report) -> None:
    here, there = (_join(pair, other, columns, referred, source=source) for source in (True, False))
    limit_s = pair.sides.limit_s
    expected, actual = here.count(limit_s), there.count(limit_s)
    if expected == actual:
        return
    known = set(here.keys(limit_s)) if expected else set()
    new = [key for key in there.keys(limit_s) if key not in known][:SHOWN] if actual else []
    told = f"such as {'the rows with the keys' if pair.task.table.key else 'those that refer to'} {', '.join(new)}" if new else ""
    folded = actual > expected and any(there.texts) and there.count(limit_s, folded=True) <= here.count(limit_s, folded=True)
    report.add("dangling", f"{', '.join(columns)} -> {other.table_name} ({', '.join(referred)})", str(expected), str(actual),
               "; ".join(filter(None, (told, _FOLDED if folded else ""))), warning=folded, count=abs(actual - expected))


def _join(pair: Pair, other: CopyTask, columns: list[str], referred: list[str], *, source: bool) -> _Join:
    asker = pair.sides.source_asker if source else pair.sides.target_asker
    assert asker
    place, target = (source_sql(asker, pair.task.table), source_sql(asker, other.table)) if source else (
        asker.table_sql(task.target.schema, task.target.table) for task in (pair.task, other))
    quoted = [[asker.column_sql(name) for name in names] for names in (pair.task.table.key, columns, referred)]
    return _Join(asker, place, quoted[0], quoted[1], target, quoted[2],
                 [pa.types.is_string(pair.task.table.schema.field(name).type) for name in columns])


def _referred(pair: Pair, reference: Reference) -> CopyTask | None:
    """The table that is referred to, of the same company where there are several."""
    wanted = (reference.namespace.lower(), reference.table.lower())
    found = [task for task in pair.others.values() if (task.table.namespace.lower(), task.table.name.lower()) == wanted]
    return min(found, key=lambda task: task.company != pair.task.company, default=None)


def _spelt(reference: Reference, table: Table, other: Table) -> tuple[list[str], list[str]] | None:
    """The columns as the tables spell them; None where they are not among those that move."""
    own, others = ({name.lower(): name for name in side.schema.names} for side in (table, other))
    referred = [name or other.key[n] if name or n < len(other.key) else "" for n, name in enumerate(reference.referred)]
    columns = [own.get(name.lower(), "") for name in reference.columns], [others.get(name.lower(), "") for name in referred]
    return columns if all(map(all, columns)) else None
