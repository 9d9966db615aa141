"""Tables that the vendor has moved from one app to another, and fields of them that stayed with the first one.

`[options]` says `from` and `to`, the apps' ids, and under `tables` which fields of a table the new app declares; ["*"] is all.
A field that it does not declare goes into the moved table's companion, as one of the first app's: there Business Central looks for
it. What the old table's companion held goes there too. The old tables are dropped, and a table that stands at the new place is replaced.
Source: behaviour.md §1 (naming), §5.11 (moves between apps).
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from skylift.model import Table
from skylift.upgrades.execute import Context


def move(step: Context) -> None:
    old_app, new_app = step.options["from"], step.options["to"]
    there = set(step.tables())
    for name, declared in step.options["tables"].items():
        old, new = f"{name}${old_app}", f"{name}${new_app}"
        if old in there:
            _move(step, old, new, old_app, declared, f"{old}$ext" if f"{old}$ext" in there else "")


def _move(step: Context, old: str, new: str, old_app: str, declared: Sequence[str], extended: str) -> None:
    layout = step.layout(old)
    own = {name.casefold() for name in (*declared, *layout.key)}
    stay = [c for c in layout.schema.names if "*" in declared or c.casefold() in own or c == "timestamp" or c.startswith("$system")]
    go = [c for c in layout.schema.names if c not in stay]
    base = step.table(old)
    rows = _fill(step, new, layout, {c: f"b.{step.column(c)}" for c in stay}, [layout.schema.field(c) for c in stay], f"{base} b")
    if go or extended:
        head = [c for c in ("timestamp", *layout.key) if c in layout.schema.names]
        values = {c: f"b.{step.column(c)}" for c in head} | {f"{c}${old_app}": f"b.{step.column(c)}" for c in go}
        fields = [layout.schema.field(c) for c in head] + [layout.schema.field(c).with_name(f"{c}${old_app}") for c in go]
        rows_of = f"{base} b"
        if extended:
            more = [field for field in step.layout(extended).schema if field.name not in values]
            values |= {field.name: f"x.{step.column(field.name)}" for field in more}
            fields += more
            same = " and ".join(f"x.{step.column(k)} = b.{step.column(k)}" for k in layout.key)
            rows_of += f" left join {step.table(extended)} x on {same}"
        _fill(step, f"{new}$ext", layout, values, fields, rows_of)
    for table in (old, *([extended] if extended else [])):
        step.execute(f"drop table {step.table(table)}")
    told = f", of which {', '.join(go)} stay fields of app {old_app}" if go else ""
    step.note(f"{old}: {rows} rows moved to {new}{told}")


def _fill(step: Context, name: str, like: Table, values: dict[str, str], fields: Sequence[pa.Field], rows_of: str) -> int:
    table = step.create(Table(name, pa.schema(fields), like.key), values, rows_of)
    [(count,)] = step.execute(f"select count(*) from {table}")
    return count
