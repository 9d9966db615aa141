"""The coordinator's part of a run: plan it, let the engine go through it, and keep the store's picture of it up to date.

The target's ledger is the truth about what has arrived; what is written here is a view of it for people. So a coordinator that
dies loses nothing: the next one plans the same run again under the same id, and the engine goes on from the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from skylift.connectors import Source, Target, open_source, open_target
from skylift.engine.columns import schema_change, table_of
from skylift.engine.plan import Plan, of_companies, plan
from skylift.engine.pool import copy_tables
from skylift.errors import CopyError, SetupError, SkyliftError, redact
from skylift.losses import Losses
from skylift.migration.changes import note
from skylift.migration.mappings import all_mappings
from skylift.migration.replication import end_run
from skylift.migration.service import Service, Verb, get_migration, newest_run
from skylift.migration.setup import sync_registry
from skylift.model import CopyTask, Progress, Run, RunTable
from skylift.products.registry import find_product
from skylift.runs import ReplicationType, TableStatus
from skylift.store import to_row
from skylift.store.tables import registry, run_tables, runs, source_companies

FLUSH_S = 0.25                    # progress is written at most this often
MAX_ERROR = 2048                  # characters, behaviour.md §2.5
Key = tuple[str, str]             # company, table name
_ENDED = (TableStatus.SUCCESSFUL, TableStatus.FAILED)


def replicate(service: Service, run: Run, workers: int, stop: Callable[[], bool], check: Callable[[sa.Connection], None]) -> None:
    """Go through `run` and end it. Returns early, leaving it InProgress, when stopped.

    `check` raises inside each writing transaction if this coordinator's lease is lost. Raises SkyliftError for what ends the run.
    """
    with service.store.read() as connection:
        row = get_migration(connection)
    product = find_product(row["product_id"])
    losses = Losses(service.settings.accept)
    source = open_source(service.box.open(row["source_url"]), losses)
    try:
        target = open_target(service.box.open(row["target_url"]), losses)
        try:
            with service.store.read() as connection:
                mappings = all_mappings(connection)
            found = product.discover(source)
            whole = plan(found, mappings, source.tables, target.max_name_bytes)
            with service.verb() as verb:
                check(verb.connection)
                gone = sync_registry(verb.connection, whole, found)
                marked = verb.connection.scalars(sa.select(source_companies.c.name).where(source_companies.c.replicate)).all()
                missing = sorted(set(marked) - {company.name for company in found.companies})
                if missing:
                    raise SetupError(f"marked, but no longer in the source: {', '.join(missing)}", hint="leave these companies out",
                                     code="CompanyNotFound")
                tasks = _enter(verb, run, of_companies(whole, marked), [key for key in gone if key[0] in {"", *marked}])
            recorder = _Recorder(service, run, check)
            if run.replication_type is ReplicationType.DIAGNOSTIC:
                stream = diagnose(tasks, source, target, stop)
            else:
                stream = copy_tables(tasks, source, target, copy_id=run.run_id, consumer=str(row["consumer"]), workers=workers, stop=stop)
            for progress in stream:
                recorder.add(progress)
            recorder.flush()
        finally:
            target.close()
    finally:
        source.close()
    if stop():
        return
    with service.verb() as verb:
        check(verb.connection)
        end_run(verb, run)


def diagnose(tasks: Sequence[CopyTask], source: Source, target: Target, stop: Callable[[], bool]) -> Iterator[Progress]:
    """Read each table's size and first rows, and see whether the target could hold its columns; nothing is written (§5.3)."""
    states = target.states()
    for task in tasks:
        if stop():
            return
        try:
            table = source.measure(task.table)
            next(iter(source.read(table, source.split(table, 1000, 2**20)[0])), None)
            state = states.get(task.target)
            if state and (changed := schema_change(table_of(table.path, state.columns), table)):
                raise changed
            _try_columns(task, target)
        except CopyError as error:
            yield Progress(task, TableStatus.FAILED, error=error)
        else:
            yield Progress(task, TableStatus.SUCCESSFUL, total_rows=table.rows or 0, mode="diagnostic")


class _NotToBeKept(Exception):
    pass


def _try_columns(task: CopyTask, target: Target) -> None:
    """Make the table in the target, in a transaction that is rolled back."""
    scratch = replace(task.target, table=f"_skylift_try_{uuid4().hex[:12]}")
    try:
        with target.transaction() as transaction:
            transaction.create(scratch, task.table)
            raise _NotToBeKept
    except _NotToBeKept:
        pass


def _enter(verb: Verb, run: Run, planned: Plan, gone: Sequence[Key]) -> list[CopyTask]:
    """Write a row for every table of the run that has none yet; the tasks, each full where nothing of it has been copied.

    Warnings stand for what is not copied: mappings without a source table, and tables that the source no longer has (50004).
    """
    connection = verb.connection
    known = {(row.company_name, row.table_name): row.status for row in connection.execute(
        sa.select(run_tables.c.company_name, run_tables.c.table_name, run_tables.c.status).where(run_tables.c.run_id == run.run_id))}
    synced: dict[Key, int] = {}
    left_out: set[Key] = set()
    for row in connection.execute(sa.select(registry)):
        synced[row.company_name, row.table_name] = row.synced_version
        if not row.replicate:
            left_out.add((row.company_name, row.table_name))
    tasks = [task for task in planned.tasks if (task.company, task.table_name) not in left_out]
    warnings = {(item.company, item.table_name): (item.why, item.code) for item in planned.left_out}
    warnings |= dict.fromkeys(gone, ("The source no longer has this table; what was copied of it stays.", "50004"))
    before = newest_run(connection, runs.c.run_id.in_(sa.select(run_tables.c.run_id)), runs.c.run_id != run.run_id)
    sizes: dict[Key, int] = {(row.company_name, row.table_name): row.total_records for row in connection.execute(
        sa.select(run_tables).where(run_tables.c.run_id == before.run_id))} if before else {}
    common: dict[str, Any] = {"run_id": run.run_id}
    rows = [{**common, "id": uuid4(), "company_name": task.company, "table_name": task.table_name, "status": TableStatus.NOT_STARTED,
             "total_records": task.table.rows or sizes.get((task.company, task.table_name), 0),
             "errors": "", "error_code": "", "started_at": None, "ended_at": None}
            for task in tasks if (task.company, task.table_name) not in known]
    here = {(task.company, task.table_name) for task in tasks}
    rows += [{**common, "id": uuid4(), "company_name": company, "table_name": name, "status": TableStatus.WARNING, "total_records": 0,
              "errors": why, "error_code": code, "started_at": verb.now, "ended_at": verb.now}
             for (company, name), (why, code) in warnings.items() if (company, name) not in known and (company, name) not in here]
    if rows:
        note(connection, RunTable, [row["id"] for row in rows], created=True)
        note(connection, Run, [run.id])                 # which counts them
        connection.execute(run_tables.insert(), rows)

    def full(key: Key) -> bool:
        return not synced.get(key) and known.get(key) is not TableStatus.SUCCESSFUL

    return [replace(task, full=full((task.company, task.table_name))) for task in tasks]


class _Recorder:
    """Writes progress to the run's tables and to the registry, many at a time."""

    def __init__(self, service: Service, run: Run, check: Callable[[sa.Connection], None]) -> None:
        self._service, self._run, self._check = service, run, check
        with service.store.read() as connection:
            rows = connection.execute(sa.select(run_tables).where(run_tables.c.run_id == run.run_id)).mappings()
            self._rows = {(row["company_name"], row["table_name"]): to_row(RunTable, row) for row in rows}
        # What a coordinator before this one has finished counts on: its tables come again, as incremental copies.
        self._before = {key: row for key, row in self._rows.items() if row.status is TableStatus.SUCCESSFUL}
        self._waiting: dict[Key, Progress] = {}
        self._written = time.monotonic()

    def add(self, progress: Progress) -> None:
        key = (progress.task.company, progress.task.table_name)
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
        self._written = time.monotonic()

    def _write(self, connection: sa.Connection) -> None:
        now = datetime.now(UTC)
        note(connection, RunTable, [self._rows[key].id for key in self._waiting])
        if any(progress.status in _ENDED for progress in self._waiting.values()):
            note(connection, Run, [self._run.id])       # which counts them
        connection.execute(runs.update().where(runs.c.run_id == self._run.run_id).values(attempts=0))
        connection.execute(
            run_tables.update().where(run_tables.c.run_id == self._run.run_id, run_tables.c.company_name == sa.bindparam("company"),
                                      run_tables.c.table_name == sa.bindparam("name")),
            [self._values(key, progress, now) for key, progress in self._waiting.items()])
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
                "errors": _told(p)[:MAX_ERROR], "error_code": _code(p.error)}


def _told(progress: Progress) -> str:
    if progress.error:
        return redact(str(progress.error))
    return f"values changed as accepted: {progress.losses}" if progress.losses else ""


def _code(error: SkyliftError | None) -> str:
    return error.code if error else ""
