"""Proof on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skylift.cli.follow import counting
from skylift.cli.frame import FAILED, OK, Session, command
from skylift.errors import StateError
from skylift.model import TableSwitch
from skylift.query import Query

if TYPE_CHECKING:
    from skylift.engine.verify import TableDifference


@command("skylift verify --json", target=True)
def verify(session: Session) -> int:
    """Read source and target once more and compare every row. Exit code 1 if a table differs or cannot be read.

    The next run copies a table that differs whole.
    """
    from skylift.migration.verification import compare, copy_again

    done: list[TableDifference] = []
    with counting(session, lambda rows, all_rows: f"{_tables(len(done))} compared, {rows:,} of {all_rows:,} rows") as shown:
        for difference in compare(session.migration, reading=shown):
            done.append(difference)
    if not done:
        raise StateError("no table takes part, so nothing was compared", code="NothingToCompare",
                         hint="mark companies (skylift companies --mark NAME) or include tables (skylift tables --include NAME)")
    unequal = [difference for difference in done if not difference.equal]
    differing = [difference for difference in unequal if difference.source is not None]
    unread = len(unequal) - len(differing)
    session.table(("company", "table", "rows in source", "rows in target", "what differs"),
                  [(d.task.company, d.task.table_name, *(side.rows if side else "-" for side in (d.source, d.target)), _text(d))
                   for d in [*unequal, *(d for d in done if d.equal and d.note)]])
    upgraded = sum(difference.upgraded for difference in done)
    found = [f"{_tables(upgraded)} changed by the data upgrade"] if upgraded else []
    found += [f"{_tables(len(differing))} differ{'s' if len(differing) == 1 else ''}"] if differing else []
    found += [f"{_tables(unread)} could not be compared"] if unread else []
    session.say(f"{_tables(len(done) - unread - upgraded)} compared, {sum(d.source.rows for d in done if d.source):,} rows: "
                + (", ".join(found) or "source and target are equal"))
    if left_out := sum(not table.replicate for table in session.migration.select(TableSwitch, Query())):
        session.say(f"{_tables(left_out)} left out (skylift tables), not compared")
    if again := copy_again(session.migration, [(d.task.company, d.task.table_name) for d in differing]):
        session.say("skylift run will copy them again")
    session.answer({"equal": not unequal, "left_out": left_out, "copied_again": again, "tables": [_document(d) for d in done]})
    return FAILED if unequal else OK


def _tables(count: int) -> str:
    return f"{count:,} table{'' if count == 1 else 's'}"


def _text(difference: TableDifference) -> str:
    parts = [(word, getattr(difference, word)) for word in ("missing", "extra", "different")]
    if difference.upgraded:
        return difference.note
    if difference.source is None:
        return f"not comparable: {difference.note}"
    return "; ".join([*(f"{word}: {', '.join(keys)}" for word, keys in parts if keys), *([difference.note] if difference.note else [])])


def _document(difference: TableDifference) -> dict[str, Any]:
    source, target = difference.source, difference.target
    return {"company": difference.task.company, "table": difference.task.table_name, "equal": difference.equal,
            "source_rows": source.rows if source else None, "target_rows": target.rows if target else None,
            "source_digest": str(source) if source else None, "target_digest": str(target) if target else None,
            "missing": difference.missing, "extra": difference.extra, "different": difference.different, "note": difference.note}
