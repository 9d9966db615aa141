"""Missing rows of companion tables are made, with the empty value of each column; companion rows without a base row are reported."""

from __future__ import annotations

import pyarrow as pa

from skylift.upgrades.execute import Context

_BLANK_TIME = "1753-01-01"         # Business Central's empty date


def repair(step: Context) -> None:
    there = set(step.tables())
    for companion in sorted(there):
        base = companion.removesuffix("$ext")
        if base == companion or base not in there:
            continue
        layout = step.layout(companion)
        same = " and ".join(f"c.{step.column(k)} = b.{step.column(k)}" for k in layout.key)
        b, c = step.table(base), step.table(companion)
        missing = f"from {b} b where not exists (select 1 from {c} c where {same})"
        [(count,)] = step.execute(f"select count(*) {missing}")
        if count:
            values = {f.name: f"b.{step.column(f.name)}" if f.name in layout.key else _empty(step, f.type) for f in layout.schema
                      if f.name.casefold() != "timestamp"}
            step.execute(f"insert into {c} ({', '.join(map(step.column, values))}) select {', '.join(values.values())} {missing}")
            step.note(f"{companion}: {count} missing rows made")
        [(orphans,)] = step.execute(f"select count(*) from {c} c where not exists (select 1 from {b} b where {same})")
        if orphans:
            step.note(f"{companion}: {orphans} rows without a row in {base}; they are left as they are")


def _empty(step: Context, kind: pa.DataType) -> str:
    if pa.types.is_string(kind):
        return "''"
    if pa.types.is_boolean(kind):
        return "0" if step.dialect == "mssql" else "false"
    if pa.types.is_date(kind):
        return f"cast('{_BLANK_TIME}' as date)"
    if pa.types.is_timestamp(kind) and not kind.tz:
        return f"cast('{_BLANK_TIME}' as {'datetime2' if step.dialect == 'mssql' else 'timestamp'})"
    return "0" if pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_floating(kind) else "null"
