"""Waiting for the coordinator's work and showing how far it is.

A coordinator runs in this process for as long as a command waits. It does the work unless another one, such as that of a
running server, holds the lease: then it stands by, takes over if the other dies, and the command shows the other's progress.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from skylift.cli.frame import Session
from skylift.model import TABLE_ROWS, Reading, Run, RunTableProgress
from skylift.query import Attribute, Call, Literal, Order, Query
from skylift.runs import RunStatus, TableStatus

LOOK_S = 0.25       # between two looks at the store
STORE_PATIENCE_S = 20.0     # a command does not wait longer for a store that cannot be written; a server does
LINE_S = 2.0        # between two progress lines where there is no terminal
ENDED = (TableStatus.SUCCESSFUL, TableStatus.FAILED, TableStatus.WARNING)
WORKING = (RunStatus.IN_PROGRESS, RunStatus.UPGRADE_IN_PROGRESS)
T = TypeVar("T")


def equals(attribute: str, value: object) -> Call:
    return Call("eq", (Attribute(attribute), Literal(value)))


def newest_run(session: Session) -> Run | None:
    runs = session.migration.select(Run, Query(order=(Order(Attribute("started_at"), descending=True),), top=1))
    return runs[0] if runs else None


def tables_of(session: Session, run: Run) -> list[RunTableProgress]:
    return session.migration.select(RunTableProgress, Query(where=equals("run_id", run.run_id)))


def wait(session: Session, look: Callable[[], T], done: Callable[[T], bool], show: Callable[[T], None] = lambda state: None) -> T:
    """`look` until `done`, working as coordinator meanwhile. Raises what ended the coordinator."""
    with _coordinator(session) as check:
        while True:
            state = look()
            show(state)
            if done(state):
                return state
            check()
            time.sleep(LOOK_S)


def wait_for_run(session: Session, run: Run) -> Run:
    """Wait until `run` has ended, with a progress bar on a terminal and a line every two seconds elsewhere."""
    with meter(session) as show:
        def look() -> Run:
            return session.migration.get(Run, run.id)

        return wait(session, look, lambda state: state.status not in WORKING, lambda state: show(state, tables_of(session, state)))


@contextmanager
def _coordinator(session: Session) -> Iterator[Callable[[], None]]:
    from skylift.migration.coordinator import coordinate

    stop = threading.Event()
    errors: list[BaseException] = []
    store = session.migration.store

    def work() -> None:
        try:
            coordinate(store, session.settings, stop.is_set, STORE_PATIENCE_S)
        except BaseException as error:
            errors.append(error)

    def check() -> None:
        if errors:
            raise errors[0]

    thread = threading.Thread(target=work, name="coordinator", daemon=True)
    thread.start()
    try:
        yield check
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True, slots=True)
class Tally:
    """How far a run is. `done` of `work` is for the bar: rows and tables, where a table that has ended counts whole."""

    tables: int
    ended: int
    failed: int
    copied_rows: int
    total_rows: int
    done: int
    work: int

    @classmethod
    def of(cls, tables: list[RunTableProgress]) -> Tally:
        ended = [table for table in tables if table.status in ENDED]
        total_rows = sum(table.total_records for table in tables)
        done = (sum(table.total_records + TABLE_ROWS for table in ended)
                + sum(min(table.records_copied, table.total_records) for table in tables if table.status not in ENDED))
        return cls(len(tables), len(ended), sum(table.status is TableStatus.FAILED for table in ended),
                   sum(table.records_copied for table in tables), total_rows, done, total_rows + TABLE_ROWS * len(tables))

    def __str__(self) -> str:
        return (f"{self.ended:,} of {self.tables:,} tables" + (f", {self.failed:,} failed" if self.failed else "")
                + f", {self.copied_rows:,} of {self.total_rows:,} rows copied")


class Pace:
    """How fast it goes since the first look; what was done before that says nothing about it."""

    def __init__(self, clock: Callable[[], float], unit: str = "rows") -> None:
        self._clock, self._unit = clock, unit
        self._began = clock()
        self._first: tuple[int, int] | None = None

    def look(self, rows: int, done: int, work: int) -> tuple[str, str]:
        """The rate and, once some of the work is done, the time that is left. `done` of `work` is in any unit."""
        first_rows, first_done = self._first = self._first or (rows, done)
        elapsed = self._clock() - self._began
        rate = f"{max(0, rows - first_rows) / max(0.001, elapsed):,.0f} {self._unit}/s"
        done, left = done - first_done, work - done
        told = left > 0 and done > 0.05 * (done + left)
        return rate, f"about {elapsed * left / done:,.0f} s left" if told else ""


@contextmanager
def progress(session: Session, unit: str = "rows") -> Iterator[Callable[..., None]]:
    """A function `show(text, rows, done, work, last=False)`, to be called often: a bar with rate and time left on a terminal, a
    line every two seconds elsewhere. `rows` (or what `unit` says) gives the rate, `done` of `work` the time left; `last` ends it
    with a line.
    """
    pace = Pace(time.monotonic, unit)
    if session.progress.is_terminal and not session.as_json:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"),
                   TimeRemainingColumn(elapsed_when_finished=True))
        with Progress(*columns, console=session.progress) as bar:
            task = bar.add_task("waiting", total=None, rate="")

            def draw(text: str, rows: int, done: int, work: int, last: bool = False) -> None:
                bar.update(task, description=text, total=work or None, completed=done, rate=pace.look(rows, done, work)[0])

            yield draw
        return
    said = time.monotonic()

    def line(text: str, rows: int, done: int, work: int, last: bool = False) -> None:
        nonlocal said
        now = time.monotonic()
        told = pace.look(rows, done, work)
        if work and (now - said >= LINE_S or last):
            said = now
            session.note(f"{text}, {', '.join(part for part in told if part)}")

    yield line


def unattended(session: Session, run: Run) -> str:
    """What to say if nobody works on a run that is in progress; '' if somebody does, or it has ended."""
    from skylift.migration.coordinator import is_coordinated

    if run.status not in WORKING or is_coordinated(session.migration.store):
        return ""
    return f"no coordinator is working: skylift {'run' if run.status is RunStatus.IN_PROGRESS else 'upgrade'} goes on with it"


class _Counted(Reading):
    def __init__(self, show: Callable[..., None], text: Callable[[int, int], str]) -> None:
        self._show, self._text = show, text
        self._turn = threading.Lock()
        self._rows = self._work = 0

    def begin(self, rows: int) -> None:
        self._rows, self._work = 0, rows
        self.passed(0)

    def passed(self, rows: int) -> None:
        with self._turn:
            self._rows += rows
            work = max(self._rows, self._work)
            self._show(self._text(self._rows, work), self._rows, self._rows, work)


@contextmanager
def counting(session: Session, text: Callable[[int, int], str]) -> Iterator[Reading]:
    """Progress of what reads rows; `text` makes the line of the rows that were read and of all."""
    with progress(session) as show:
        yield _Counted(show, text)


@contextmanager
def meter(session: Session) -> Iterator[Callable[[Run, list[RunTableProgress]], None]]:
    """A function that shows a run and its tables; call it often."""
    with progress(session) as show:
        def look(run: Run, tables: list[RunTableProgress]) -> None:
            tally = Tally.of(tables)
            show(f"{run.status}: {tally}", tally.copied_rows, tally.done, tally.work if tables else 0, last=run.status not in WORKING)

        yield look
