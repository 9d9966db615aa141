"""The coordinator's part of a run: plan it, let the engine go through it, and keep the store's picture of it up to date.

The target's ledger is the truth about what has arrived; what is written here is a view of it for people. So a coordinator that
dies loses nothing: the next one plans the same run again under the same id, and the engine goes on from the ledger.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from skylift.connectors import Target, opened, place_of
from skylift.connectors.locking import lock
from skylift.engine.check import check_tables
from skylift.engine.copy import is_there
from skylift.engine.plan import Plan, of_companies, plan
from skylift.engine.pool import copy_tables
from skylift.errors import SetupError, SkyliftError, Transient, redact
from skylift.losses import Losses
from skylift.migration.blocking import own_tables
from skylift.migration.changes import note, note_switches
from skylift.migration.mappings import all_mappings
from skylift.migration.replication import begin_run, end_cancelled, end_run
from skylift.migration.scope import Key, from_text, list_tables
from skylift.migration.service import Service, Verb, get_migration, newest_run
from skylift.migration.setup import sync_registry
from skylift.migration.signals import of_left_out, of_step, of_table
from skylift.migration.validation import validate_automatically
from skylift.migration.warnings import count_watched, look_after_run
from skylift.model import CopyTask, Progress, Run, RunTable, RunTableProgress, TargetName, new_id
from skylift.products.registry import find_product
from skylift.runs import ReplicationType, RunStatus, TableStatus, WarningType
from skylift.store import to_row
from skylift.store.tables import registry, run_tables, runs, source_companies
from skylift.telemetry import Signal

FLUSH_S = 0.25                    # progress is written at most this often
_GONE = ("The source no longer has this table; what was copied of it stays.", "50004")
_ENDED = (TableStatus.SUCCESSFUL, TableStatus.FAILED)


def replicate(service: Service, run: Run, workers: int, stop: Callable[[], bool], check: Callable[[sa.Connection], None]) -> None:
    """Go through `run` and end it, early if it is cancelled. Returns, leaving it InProgress, when stopped.

    `check` raises inside each writing transaction if this coordinator's lease is lost. Raises SkyliftError for what ends the run.
    """
    with _watching(service, run) as cancelled:
        counts: Mapping[WarningType, int] = {}
        if not cancelled():                             # else neither source nor target need be there
            counts = _go_through(service, run, workers, lambda: stop() or cancelled(), check)
        if stop():
            return
        with service.verb() as verb:
            check(verb.connection)
            if cancelled():
                end_cancelled(verb, run)
            elif end_run(verb, run) is not RunStatus.FAILED and run.replication_type is not ReplicationType.DIAGNOSTIC:
                look_after_run(verb, counts)
                validate_automatically(verb, service.settings)


def is_cancelled(service: Service, run: Run) -> bool:
    with service.store.read() as connection:
        return bool(connection.scalar(sa.select(runs.c.cancelled).where(runs.c.id == run.id)))


@contextmanager
def _watching(service: Service, run: Run) -> Iterator[Callable[[], bool]]:
    """Says whether the run has been cancelled; a thread looks, so that asking costs nothing."""
    cancelled, ended = threading.Event(), threading.Event()

    def look() -> None:
        with suppress(Transient):                       # the store does not answer: the next look may
            if is_cancelled(service, run):
                cancelled.set()

    def watch() -> None:
        while not cancelled.is_set() and not ended.wait(service.settings.poll_s):
            look()

    look()
    thread = threading.Thread(target=watch, name="cancel-watch", daemon=True)
    thread.start()
    try:
        yield cancelled.is_set
    finally:
        ended.set()
        thread.join()


def _go_through(service: Service, run: Run, workers: int, stop: Callable[[], bool],
                check: Callable[[sa.Connection], None]) -> Mapping[WarningType, int]:
    """How many rows the target holds of the tables that warnings are about; of none after a diagnostic run."""
    with service.store.read() as connection:
        row = get_migration(connection)
    product = find_product(row["product_id"])
    if row["lock_target"] and run.replication_type is not ReplicationType.DIAGNOSTIC:
        _lock_target(service, row, check)
    sides = opened(service.box.open(row["source_url"]), service.box.open(row["target_url"]), Losses(service.settings.accept))
    with sides as (source, open_target):
        with service.store.read() as connection:
            mappings = all_mappings(connection)
        found = product.discover(source)
        target = open_target()
        whole = plan(found, mappings, source.tables, target.max_name_bytes)
        target_url = service.box.open(row["target_url"])
        strangers = _strangers(service, whole, target, target_url)
        with service.verb() as verb:
            check(verb.connection)
            begin_run(verb, run)
            gone = sync_registry(verb.connection, whole, found)
            tasks = _enter(verb, run, whole, gone, {company.name for company in found.companies}, strangers)
            verb.connection.execute(runs.update().where(runs.c.id == run.id).values(target=place_of(target_url)))
            copy_id = str(verb.row["copy_id"])
        recorder = _Recorder(service, run, check)
        if run.replication_type is ReplicationType.DIAGNOSTIC:
            stream = check_tables(tasks, source, target, workers=workers, stop=stop)
        else:
            stream = copy_tables(tasks, source, target, copy_id=copy_id, consumer=str(row["consumer"]), workers=workers, stop=stop)
        for progress in stream:
            recorder.add(progress)
        recorder.flush()
        if not stop() and not run.scope and run.replication_type is not ReplicationType.DIAGNOSTIC:
            target.discard_copies(keep="")              # of tables that take part no more: nothing goes on with them
        return {} if stop() or run.replication_type is ReplicationType.DIAGNOSTIC else count_watched(product, tasks, target)


def _lock_target(service: Service, row: Mapping[str, Any], check: Callable[[sa.Connection], None]) -> None:
    """It is noted first: what may be locked is unlocked when the migration ends."""
    with service.verb() as verb:
        check(verb.connection)
        if not verb.row["locked"]:
            verb.set(locked=True)
            verb.log("target", "lock", "Unlocked", "Locked")
    lock(service.box.open(row["target_url"]))


def _strangers(service: Service, whole: Plan, target: Target, target_url: str) -> set[TargetName]:
    """The tables in the target that another migration has copied, and no run of this one: they must not be replaced."""
    with service.store.read() as connection:
        marked = connection.scalars(sa.select(source_companies.c.name).where(source_companies.c.replicate)).all()
        copied = {(row.company_name, row.table_name) for row in connection.execute(sa.select(
            registry.c.company_name, registry.c.table_name).where(registry.c.synced_version > 0))}
    held = target.states()
    doubted = {(task.company, task.table_name): task.target for task in of_companies(whole, marked).tasks if task.target in held}
    if not doubted.keys() - copied:                     # such as in every run but the first and the one after a reset
        return set()
    with service.store.read() as connection:
        own = own_tables(connection, target_url)
    return {doubted[key] for key in doubted.keys() - copied - own if is_there(target, doubted[key])}


def _enter(verb: Verb, run: Run, whole: Plan, gone: Sequence[Key], there: Container[str],
           strangers: Container[TargetName]) -> list[CopyTask]:
    """The run's tasks, each full where nothing of it has been copied; the first time, a row for each of them.

    What is entered then is what the run goes through: marks and switches that are changed meanwhile are for the next one.
    Raises SetupError for a company that the source no longer has (`there`: those it has), and for tables that would replace `strangers`.
    """
    connection = verb.connection
    known = {(row.company_name, row.table_name): row.status for row in connection.execute(
        sa.select(run_tables.c.company_name, run_tables.c.table_name, run_tables.c.status).where(run_tables.c.run_id == run.run_id))}
    part = from_text(run.scope)
    switches = {(row.company_name, row.table_name): row for row in connection.execute(sa.select(registry))}
    marked = {company for company, _ in known if company} or {
        name for name in connection.scalars(sa.select(source_companies.c.name).where(source_companies.c.replicate))
        if part.has_company(name)}
    if missing := sorted(name for name in marked if name not in there):
        raise SetupError(f"marked, but no longer in the source: {', '.join(missing)}", hint="leave these companies out",
                         code="CompanyNotFound")

    def meant(key: Key) -> bool:
        if known:
            return key in known
        return key in part and (key not in switches or switches[key].replicate)

    planned = of_companies(whole, marked)
    tasks = [task for task in planned.tasks if meant((task.company, task.table_name))]
    if not known:
        if theirs := [(task.company, task.table_name) for task in tasks if task.target in strangers]:
            raise SetupError(f"the target holds tables that another migration has copied: {list_tables(theirs)}", code="TargetInUse",
                             hint="name another target (--target, SKYLIFT_TARGET), leave these tables out (skylift tables --exclude), or "
                             "drop them there if their rows are not needed")
        warnings = {(item.company, item.table_name): (item.why, item.code) for item in planned.left_out}
        warnings |= dict.fromkeys((key for key in gone if key[0] in {"", *marked}), _GONE)
        _enter_rows(verb, run, tasks, {key: why for key, why in warnings.items() if meant(key)})

    def full(key: Key) -> bool:
        return switches[key].synced_version <= 0 and known.get(key) is not TableStatus.SUCCESSFUL

    return [replace(task, full=full(key), preserve=switches[key].preserve)
            for task in tasks for key in [(task.company, task.table_name)]]


def _enter_rows(verb: Verb, run: Run, tasks: Sequence[CopyTask], warnings: Mapping[Key, tuple[str, str]]) -> None:
    """`warnings`: why and with which code something is not copied: a mapping without a source table, a table that the source lost."""
    connection = verb.connection
    before = newest_run(connection, runs.c.run_id.in_(sa.select(run_tables.c.run_id)), runs.c.run_id != run.run_id)
    sizes: dict[Key, int] = {(row.company_name, row.table_name): row.total_records for row in connection.execute(
        sa.select(run_tables).where(run_tables.c.run_id == before.run_id))} if before else {}
    here = {(task.company, task.table_name): task for task in tasks}
    common = {"run_id": run.run_id, "errors": "", "error_code": "", "started_at": None, "ended_at": None}
    rows: list[dict[str, Any]] = [
        {**common, "id": new_id(), "company_name": key[0], "table_name": key[1], "status": TableStatus.NOT_STARTED,
         "total_records": task.table.rows or sizes.get(key, 0)} for key, task in here.items()]
    rows += [{**common, "id": new_id(), "company_name": key[0], "table_name": key[1], "status": TableStatus.WARNING, "total_records": 0,
              "errors": why, "error_code": code, "started_at": verb.now, "ended_at": verb.now}
             for key, (why, code) in warnings.items() if key not in here]
    if rows:
        note(connection, RunTable, [row["id"] for row in rows], created=True)
        note(connection, Run, [run.id])                 # which counts them
        connection.execute(run_tables.insert(), rows)
    if verb.tells:
        verb.signals += [of_left_out(run, verb.now, *key, code) for key, (_, code) in warnings.items() if key not in here]


class _Recorder:
    """Writes progress to the run's tables and to the registry, many at a time."""

    def __init__(self, service: Service, run: Run, check: Callable[[sa.Connection], None]) -> None:
        self._service, self._run, self._check = service, run, check
        with service.store.read() as connection:
            rows = connection.execute(sa.select(run_tables).where(run_tables.c.run_id == run.run_id)).mappings()
            self._rows = {(row["company_name"], row["table_name"]): to_row(RunTableProgress, row) for row in rows}
        # What a coordinator before this one has finished counts on: its tables come again, as incremental copies.
        self._found = dict(self._rows)                  # as it was when this coordinator began
        self._before = {key: row for key, row in self._rows.items() if row.status is TableStatus.SUCCESSFUL}
        self._waiting: dict[Key, Progress] = {}
        self._tells = service.telemetry.on
        self._signals: list[Signal] = []                # of what is written next
        self._written = time.monotonic()

    def add(self, progress: Progress) -> None:
        key = (progress.task.company, progress.task.table_name)
        if self._tells:                                 # what the target has committed has happened, whatever becomes of the row here
            self._signals += [of_step(self._run, self._rows[key], step) for step in progress.steps]
        before = self._before.get(key)
        if before is None or progress.status in _ENDED:
            self._waiting[key] = progress
            row = self._rows[key]                       # a failure says nothing of the size: what is known of it stays
            self._rows[key] = replace(row, started_at=row.started_at or datetime.now(UTC),
                                      total_records=progress.total_rows if progress.error is None else row.total_records)
        if time.monotonic() - self._written >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            with self._service.store.write() as connection:
                self._check(connection)
                self._write(connection)
            self._waiting.clear()
        if self._signals:
            self._service.telemetry.emit(self._signals)
            self._signals = []
        self._written = time.monotonic()

    def _write(self, connection: sa.Connection) -> None:
        now = datetime.now(UTC)
        note(connection, RunTable, [self._rows[key].id for key in self._waiting])
        if any(progress.status in _ENDED for progress in self._waiting.values()):
            note(connection, Run, [self._run.id])       # which counts them
        connection.execute(runs.update().where(runs.c.run_id == self._run.run_id).values(attempts=0))
        written = {key: self._values(key, progress, now) for key, progress in self._waiting.items()}
        connection.execute(
            run_tables.update().where(run_tables.c.run_id == self._run.run_id, run_tables.c.company_name == sa.bindparam("company"),
                                      run_tables.c.table_name == sa.bindparam("name")), [*written.values()])
        if self._tells:
            self._signals += [of_table(self._run, self._rows[key], values, self._waiting[key].steps) for key, values in written.items()
                              if values["status"] in _ENDED]
        if self._run.replication_type is ReplicationType.DIAGNOSTIC:
            return
        here = sa.and_(registry.c.company_name == sa.bindparam("company"), registry.c.table_name == sa.bindparam("name"))
        # Position 0 of a feed that is still empty is a copy all the same, and 0 says "never copied".
        copied = [{"company": key[0], "name": key[1], "blocked": False,
                   "synced_version": max(1, p.watermark.position if p.watermark else 0)}
                  for key, p in self._waiting.items() if p.status is TableStatus.SUCCESSFUL]
        failed = [{"company": key[0], "name": key[1], "blocked": True}
                  for key, p in self._waiting.items() if p.status is TableStatus.FAILED]
        for rows in (copied, failed):
            if rows:
                note_switches(connection, [(str(row["company"]), str(row["name"])) for row in rows])
                connection.execute(registry.update().where(here), rows)

    def _values(self, key: Key, p: Progress, now: datetime) -> dict[str, object]:
        ended = p.status in _ENDED
        before = self._before.get(key)
        moved = (p.rows, p.inserted, p.updated, p.deleted, p.size_bytes)
        if before:
            moved = tuple(a + b for a, b in zip(moved, (  # type: ignore[assignment]
                before.records_copied, before.inserted, before.updated, before.deleted, before.size_bytes), strict=True))
        copied, inserted, updated, deleted, size_bytes = moved
        return {"company": key[0], "name": key[1], "status": p.status, "started_at": self._rows[key].started_at,
                "ended_at": now if ended else None, "records_copied": copied, "total_records": self._rows[key].total_records,
                "mode": before.mode if before else p.mode, "reason": before.reason if before else p.reason,
                "inserted": inserted, "updated": updated, "deleted": deleted, "size_bytes": size_bytes,
                "target_rows": p.digest.rows if p.digest else None, "digest": str(p.digest) if p.digest else "",
                "orphans": p.orphans, "kept": p.kept, "resumed": self._resumed(key, p),
                "errors": _told(p), "error_code": _code(p.error)}

    def _resumed(self, key: Key, p: Progress) -> int:
        """Of the rows of a copy that goes on, those that an earlier run has brought: what a coordinator before this one has told is of
        this run."""
        found = self._found[key]
        return min(found.resumed + max(0, p.resumed - found.records_copied), p.rows)


def _told(progress: Progress) -> str:
    if progress.error:
        return redact(str(progress.error))
    told = [f"values changed as accepted: {progress.losses}"] if progress.losses else []
    told += [f"{count:,} rows of the target {what}" for count, what in (
        (progress.orphans, "are not in the source and stay"), (progress.kept, "differ from the source's and stay")) if count]
    return "; ".join(told)


def _code(error: SkyliftError | None) -> str:
    return error.code if error else ""
