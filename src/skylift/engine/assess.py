"""What stands in the way of copying tables, found in the catalogues and statistics of both sides: seconds, and nothing is written.

engine/census.py goes on where only reading every row tells; docs/assess.md lists the codes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from skylift.connectors import STATE, SWEEP, Destination
from skylift.connectors.looks import Remark, SourceLook, StandingColumn, TargetLook
from skylift.engine.columns import schema_change, table_of
from skylift.errors import CopyError, SchemaChanged
from skylift.model import ARROW, CopyTask, Table
from skylift.products.naming import collisions
from skylift.runs import Severity

SPACE = 1.5                        # times the estimated size: what a copy needs while it stands beside the one it replaces
_TEXTS = re.compile(r"(?i)char|text|clob|string|sysname|^name$|^$")
_BINARIES = re.compile(r"(?i)blob|binary|bytea|image|bytes|^$")
_LENGTH = re.compile(r"(?i)(?:char|text|binary|varying)\w*\((\d+)\)")


@dataclass(frozen=True, slots=True)
class Found:
    """A remark, and whose it is. `scanned`: only reading every row finds it."""

    remark: Remark
    company: str = ""
    table_name: str = ""
    scanned: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """A column that the target's table has otherwise than the source's."""

    column: str                    # '' = the source has none of that name
    declared: str
    standing: StandingColumn | None      # None = the target has none of that name
    bounded: bool | None = None    # of two texts: whether the source may have longer ones than the target takes


def measured(tasks: Sequence[CopyTask], source: SourceLook) -> tuple[list[CopyTask], list[Found]]:
    """The tasks with their tables' sizes, and why those that are left out cannot be copied."""
    found, sized = [], []
    tables: dict[str, Table] = {}
    for task in tasks:
        try:
            if task.table.path not in tables:
                tables[task.table.path] = source.source.measure(task.table)
            sized.append(replace(task, table=tables[task.table.path]))
        except CopyError as error:
            found.append(of_error(task, error))
    return sized, found


def of_error(task: CopyTask, error: CopyError, scanned: bool = False) -> Found:
    """What a copy of the table would fail with. A table whose columns have changed is copied whole instead, unless it is preserved."""
    severity = Severity.WARNING if isinstance(error, SchemaChanged) and not task.preserve else Severity.BLOCKING
    column = max((name for name in task.table.schema.names if error.message.startswith((f"{task.table.path}.{name},",
                  f"{task.table.path}.{name}:", f"{task.table.name}.{name},", f"{task.table.name}.{name}:"))), key=len, default="")
    return about(task, Remark(error.code, severity, error.message, error.hint, column=column), scanned)


def about(task: CopyTask, remark: Remark, scanned: bool = False) -> Found:
    return Found(remark, task.company, task.table_name, scanned)


def look(tasks: Sequence[CopyTask], source: SourceLook, target: TargetLook) -> Iterator[Found]:
    """What catalogues and statistics tell about measured tasks."""
    by_path: dict[str, list[CopyTask]] = {}
    for task in tasks:
        by_path.setdefault(task.table.path, []).append(task)
    tables = [those[0].table for those in by_path.values()]
    for remark in source.remarks(tables):
        yield from (about(task, remark) for task in by_path[remark.table]) if remark.table in by_path else [Found(remark)]
    by_name = {str(task.target): task for task in tasks}
    for remark in target.remarks([task.target for task in tasks]):
        yield about(by_name[remark.table], remark) if remark.table in by_name else Found(remark)
    yield from _names(tasks, target)
    feeds = source.feeds(tables)
    standing, states = target.standing([task.target for task in tasks]), target.states()
    for task in tasks:
        try:
            declared = target.declares(written(task, target))
        except CopyError as error:
            yield of_error(task, error)
            continue
        yield from _types(task, declared)
        yield from _key(task)
        forecast = feeds[task.table.path]
        if forecast.why:
            severity = Severity.WARNING if forecast.feed in (SWEEP, STATE) else Severity.INFORMATION
            yield about(task, Remark(forecast.code, severity, forecast.why, forecast.fix))
        if (state := states.get(task.target)) and (changed := schema_change(table_of(task.table.path, state.columns), task.table)):
            yield of_error(task, changed)
        if task.target in standing and (task.preserve or state is None):
            yield from _schema(task, differences(task, declared, standing[task.target]))
    yield from _space(tasks, target)


def written(task: CopyTask, target: Destination) -> Table:
    """The table in the format that it would be copied in."""
    native = task.table.format in target.formats and not task.preserve
    return task.table if native else replace(task.table, format=ARROW)


def _names(tasks: Sequence[CopyTask], target: TargetLook) -> Iterator[Found]:
    by_path = {task.table.path: task for task in tasks}
    for name, first, second in collisions((task.target, task.table.path) for task in tasks):
        yield about(by_path[second], Remark("NameCollision", Severity.BLOCKING, f"'{first}' and '{second}' would both become '{name}' "
                                            "in the target", "rename one of them in the source, or leave one out"))
    for company in dict.fromkeys(task.company for task in tasks):
        odd = [char for char in company if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp")]
        if odd:
            yield Found(Remark("50021", Severity.BLOCKING, f"the company's name has non-printing characters ({odd[0]!r})",
                               "rename it in the source"), company)
        if company != company.strip():
            yield Found(Remark("Blanks", Severity.WARNING, "the company's name begins or ends with blanks, which tools may lose",
                               "rename it in the source"), company)
        if company and target.reserved(company):
            yield Found(Remark("NameReserved", Severity.BLOCKING, f"the target keeps the name '{company}' for itself",
                               "rename the company in the source"), company)
    for task in tasks:
        if task.target.table != task.table_name or task.target.schema != task.company:
            yield about(task, Remark("NameCut", Severity.INFORMATION, f"its name is longer than the target allows: there it is "
                                     f"'{task.target}'"))
        for column in task.table.schema.names:
            if any(unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp") for char in column) or column != column.strip():
                yield about(task, Remark("ColumnName", Severity.WARNING, f"the column's name {column!r} has blanks at its ends or "
                                         "non-printing characters", "it moves as it is; rename it in the source if tools stumble",
                                         column=column))


def _types(task: CopyTask, declared: Mapping[str, str]) -> Iterator[Found]:
    """Columns that move as something else than their own kind (docs/types.md)."""
    for (field, source), target in zip(task.table.declared(), declared.values(), strict=True):
        bare = source.partition(" character set ")[0]
        text = pa.types.is_string(field.type) and not _TEXTS.search(bare)
        data = pa.types.is_binary(field.type) and not _BINARIES.search(bare)
        if task.table.format == ARROW and (text or data or not source):
            what = f"type {bare}" if source else "no declared type"
            yield about(task, Remark("TypeRule", Severity.INFORMATION, f"a column of {what} moves as {field.type}, and is {target} in "
                                     "the target", column=field.name))


def _key(task: CopyTask) -> Iterator[Found]:
    if task.table.key:
        return
    if task.preserve:
        yield about(task, Remark("NoKeyPreserved", Severity.BLOCKING, "it is to be preserved, but without a primary key nothing tells "
                                 "which of its rows the target lacks", "replace the target's rows (skylift tables --replace NAME), or "
                                 "leave the table out"))
    else:
        yield about(task, Remark("NoKey", Severity.WARNING, "it has no primary key: once anything in it has changed, it is copied whole, "
                                 "and skylift verify cannot name the rows that differ", "give it a primary key at the source"))


def differences(task: CopyTask, declared: Mapping[str, str], standing: Sequence[StandingColumn]) -> list[Difference]:
    """Where the target's table has not what a copy would make. `declared`: by name in the target, in the source's order."""
    there = {column.name.casefold(): column for column in standing}
    found = []
    for (field, source), (name, kind) in zip(task.table.declared(), declared.items(), strict=True):
        column = there.pop(name.casefold(), None)
        same = column is not None and (column.declared.casefold() == kind.casefold()
                                       or (column.kind == field.type and column.most is None))
        if not same:
            bounded, allowed = None, longest_declared(source)
            if column and pa.types.is_string(column.kind) and pa.types.is_string(field.type):
                bounded = column.most is not None and (allowed is None or allowed > column.most)
            found.append(Difference(field.name, source or str(field.type), column, bounded))
    return found + [Difference("", "", column) for column in there.values()]


def longest_declared(declared: str) -> int | None:
    """What the source's type allows, None if anything."""
    match = _LENGTH.search(declared)
    return int(match[1]) if match else None


def _schema(task: CopyTask, found: Iterable[Difference]) -> Iterator[Found]:
    """What stands at the table's place and is not alike. Rows are only added to a preserved table; any other is made anew."""
    severity = Severity.BLOCKING if task.preserve else Severity.WARNING
    after = "" if task.preserve else "; the table is replaced, and then has the source's"
    fix = ("make the target's columns like the source's, or let the table be replaced (skylift tables --replace NAME)"
           if task.preserve else "")
    for difference in found:
        column = difference.standing
        if column is None:
            key = difference.column in task.table.key
            yield about(task, Remark("50011" if key else "50005", severity, f"the target's table lacks the {'key ' if key else ''}column "
                                     f"{difference.column} ({difference.declared}){after}", fix, column=difference.column))
        elif not difference.column:
            lost = "" if task.preserve else ", and which goes with the table that is replaced"
            yield about(task, Remark("50005", severity, f"the target's table has a column {column.name} ({column.declared}) that the "
                                     f"source has not{lost}", fix or "keep what is in it elsewhere", column=column.name))
        elif difference.bounded is None:
            yield about(task, Remark("50005", severity, f"source {difference.declared}, target {column.declared}{after}", fix,
                                     column=difference.column))
        elif difference.bounded:
            yield about(task, Remark("50011", severity, f"source {difference.declared}, target {column.declared}: a value of more than "
                                     f"{column.most} characters does not fit{after}", fix or "skylift assess --scan says how long the "
                                     "longest is", column=difference.column))


def _space(tasks: Sequence[CopyTask], target: TargetLook) -> Iterator[Found]:
    needed, free = sum(task.table.size_bytes or 0 for task in tasks), target.free_bytes()
    if free is None and needed:
        yield Found(Remark("Space", Severity.INFORMATION, f"the source holds about {needed / 2**20:,.1f} MB; the target does not tell how "
                           "much is free there", f"see to it that {needed * SPACE / 2**20:,.1f} MB are: a table stands beside the one that "
                           "it replaces"))
    if free is not None and needed * SPACE > free:
        severity = Severity.BLOCKING if needed > free else Severity.WARNING
        yield Found(Remark("Space", severity, f"the source holds about {needed / 2**20:,.0f} MB, and {free / 2**20:,.0f} MB are free at "
                           "the target", "free space there, name another target, or leave tables out"))
