"""Proof on demand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.progress import Progress, SpinnerColumn, TextColumn

from skylift.cli.frame import FAILED, OK, Session, command

if TYPE_CHECKING:
    from skylift.engine.verify import TableDifference


@command("skylift verify --json", target=True)
def verify(session: Session) -> int:
    """Read source and target once more and compare every row. Exit code 1 if a table differs."""
    from skylift.migration.verification import compare

    done: list[TableDifference] = []
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=session.progress,
                  disable=session.as_json or not session.progress.is_terminal) as bar:
        task = bar.add_task("comparing")
        for difference in compare(session.migration):
            done.append(difference)
            bar.update(task, description=f"{len(done):,} tables compared")
    unequal = [difference for difference in done if not difference.equal]
    session.table(("company", "table", "rows in source", "rows in target", "what differs"),
                  [(d.task.company, d.task.table_name, d.source.rows, d.target.rows if d.target else 0, _text(d)) for d in unequal])
    session.say(f"{len(done):,} tables compared, {sum(d.source.rows for d in done):,} rows: "
                + (f"{len(unequal):,} tables differ" if unequal else "source and target are equal"))
    session.answer({"equal": not unequal, "tables": [_document(d) for d in done]})
    return FAILED if unequal else OK


def _text(difference: TableDifference) -> str:
    parts = [(word, getattr(difference, word)) for word in ("missing", "extra", "different")]
    return "; ".join([*(f"{word}: {', '.join(keys)}" for word, keys in parts if keys), *([difference.note] if difference.note else [])])


def _document(difference: TableDifference) -> dict[str, Any]:
    target = difference.target
    return {"company": difference.task.company, "table": difference.task.table_name, "equal": difference.equal,
            "source_rows": difference.source.rows, "target_rows": target.rows if target else None,
            "source_digest": str(difference.source), "target_digest": str(target) if target else None,
            "missing": difference.missing, "extra": difference.extra, "different": difference.different, "note": difference.note}
