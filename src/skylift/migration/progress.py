"""How fast it goes, when it will have ended, and what of the migration a run goes through: worked out of the rows as they are read.

None = not known.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from skylift.migration.scope import from_text
from skylift.model import Run, RunProgress, RunTableProgress
from skylift.runs import RunStatus, TableStatus

TOLD = 0.05                       # part of a run's work that has to be done before it says anything about the rest


def rows_per_s(row: RunProgress | RunTableProgress) -> Decimal | None:
    elapsed_s = _elapsed_s(row)
    return round(Decimal((row.records_copied - row.resumed) / elapsed_s), 1) if elapsed_s else None


def bytes_per_s(row: RunProgress | RunTableProgress) -> int | None:
    elapsed_s = _elapsed_s(row)
    return round(row.size_bytes / elapsed_s) if elapsed_s else None


def table_ends_at(table: RunTableProgress) -> datetime | None:
    """Only of a full copy: of changes nobody knows how many there are before they have been read."""
    if table.status is not TableStatus.IN_PROGRESS or table.mode != "full":
        return None
    return _ends_at(table, table.records_copied - table.resumed, table.total_records - table.records_copied)


def run_ends_at(run: RunProgress) -> datetime | None:
    done, left = run.work_done - run.resumed, run.work - run.work_done
    if run.status is not RunStatus.IN_PROGRESS or done <= TOLD * (done + left):
        return None
    return _ends_at(run, done, left)


def companies(run: Run) -> list[str]:
    return sorted(from_text(run.scope).companies or ())


def tables(run: Run) -> list[str]:
    return sorted({table for _, table in from_text(run.scope).tables or ()})


def failed_only(run: Run) -> bool:
    return from_text(run.scope).failed


def _elapsed_s(row: RunProgress | RunTableProgress) -> float:
    """Seconds from its beginning to its end, or now; 0 = none, or it has not begun."""
    if row.started_at is None:
        return 0.0
    return max(0.0, ((row.ended_at or datetime.now(UTC)) - row.started_at).total_seconds())


def _ends_at(row: RunProgress | RunTableProgress, done: int, left: int) -> datetime | None:
    """Where the rest takes as long for each row as what was done since its beginning; None where nothing was, or nothing is left."""
    if done <= 0 or left <= 0:
        return None
    try:
        return datetime.now(UTC) + timedelta(seconds=_elapsed_s(row) * left / done)
    except OverflowError:
        return None
