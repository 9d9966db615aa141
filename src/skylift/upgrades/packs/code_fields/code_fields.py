"""Code fields in upper case and without blanks around them. Rows that would become one are named before anything is changed."""

from __future__ import annotations

from skylift.upgrades.execute import Context, StepFailed
from skylift.upgrades.pack import text_columns

NAMED = 5


def sanitise(step: Context) -> None:
    """Raises StepFailed naming table and keys of rows whose keys would be the same."""
    found = {table: columns for table in step.tables() if (columns := _codes(step, table))}
    collisions = [text for table in found for text in _collisions(step, table)]
    if collisions:
        raise StepFailed(f"rows would get the same key: {'; '.join(collisions[:NAMED])}"
                         + (f"; and {len(collisions) - NAMED} more" if len(collisions) > NAMED else ""),
                         hint="rename or merge them in the source and run again, or list the column under `leave` of a pack of your own")
    for table, columns in found.items():
        changed = " or ".join(f"{step.column(c)} <> {_clean(step, c)}" for c in columns)
        [(count,)] = step.execute(f"select count(*) from {step.table(table)} where {changed}")
        if count:
            values = ", ".join(f"{step.column(c)} = {_clean(step, c)}" for c in columns)
            step.execute(f"update {step.table(table)} set {values} where {changed}")
            step.note(f"{table}: {count} rows sanitised")


def _codes(step: Context, table: str) -> list[str]:
    layout = step.layout(table)
    codes = [c for c in text_columns(layout) if c in layout.key or f"{table}.{c}" in step.options["columns"]]
    return [c for c in codes if f"{table}.{c}" not in step.options["leave"]]


def _clean(step: Context, column: str) -> str:
    return f"upper(ltrim(rtrim({step.column(column)})))"


def _collisions(step: Context, table: str) -> list[str]:
    key = step.layout(table).key
    codes = _codes(step, table)
    if not set(key) & set(codes):
        return []
    parts = ", ".join(_clean(step, c) if c in codes else step.column(c) for c in key)
    rows = step.execute(f"select {parts}, count(*) from {step.table(table)} group by {parts} having count(*) > 1 order by {parts}")
    return [f"{step.company} {table}: {count} rows with the key {', '.join(map(str, values))}".strip() for *values, count in rows]
