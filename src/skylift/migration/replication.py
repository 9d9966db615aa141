"""Replication runs: asking for one, and what the verbs around a run do to the state. Source: behaviour.md §3, §4.5, §5.3, §5.9."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from skylift.errors import SetupError, StateError, redact
from skylift.migration.blocking import has_copied, refuse_blocked
from skylift.migration.changes import note, update_companies
from skylift.migration.scope import EVERYTHING, Part, forget_copies, from_text, look_up, to_text
from skylift.migration.service import Service, Verb, count_tables, get_row, newest_run
from skylift.model import Run, RunTable, Scope, UpgradeStep
from skylift.products.registry import find_product
from skylift.runs import MigrationState, ReplicationType, RunStatus, TableStatus, UpgradeStatus
from skylift.store import to_row
from skylift.store.tables import registry, run_tables, runs, source_companies, upgrade_steps, upgrade_tags

_STARTED = {ReplicationType.DIAGNOSTIC: "A diagnostic run is in progress."}
NAMED = 3                         # tables with a warning that are named in a run's details
_OPEN = (TableStatus.NOT_STARTED, TableStatus.IN_PROGRESS)


class ReplicationVerbs(Service):
    def run_replication(self, bound_run_id: UUID | None = None, kind: ReplicationType = ReplicationType.NORMAL,
                        scope: Scope = EVERYTHING) -> Run:
        """Ask for a run over what `scope` names of the marked companies; the coordinator does it.

        Raises StateError while something else is going on, if no company is marked, one that is meant is not created, or it has
        been upgraded; NotFound for a name in `scope`. A run that copies everything it goes through, because nothing has been copied
        yet or FULL was asked for, is recorded as Full.
        """
        with self.verb(commits=True, once=True) as verb:
            if bound_run_id is not None:
                get_row(verb.connection, Run, bound_run_id)
            verb.permit("run_replication")
            if kind is ReplicationType.AZURE_DATA_LAKE:
                raise SetupError("there is no replication to a data lake", hint="choose Normal, Full or Diagnostic", code="ReplicationType")
            part = look_up(verb, scope)
            _check_companies(verb, part)
            if kind is not ReplicationType.DIAGNOSTIC and not has_copied(verb.connection, self.box.open(verb.row["target_url"])):
                refuse_blocked(self, verb, lambda key: (not key[0] or part.has_company(key[0])) and (not key[1] or key in part))
            if kind is ReplicationType.NORMAL and not verb.connection.execute(
                    sa.select(registry.c.table_name).where(registry.c.synced_version > 0).limit(1)).first():
                kind = ReplicationType.FULL
            product = find_product(verb.row["product_id"])
            run = verb.add_run(RunStatus.IN_PROGRESS, _STARTED.get(kind, "Data replication is in progress."), product.display_name,
                               kind, event="run_replication", scope=to_text(part))
            verb.move("replicate")
            return run

    def start_run(self, values: Mapping[str, Any]) -> Run:
        """As run_replication; `values`: replication_type, companies, tables, failed_only, or some of them."""
        scope = Scope(tuple(values.get("companies", ())), tuple(values.get("tables", ())), values.get("failed_only", False))
        return self.run_replication(kind=values.get("replication_type", ReplicationType.NORMAL), scope=scope)

    def cancel_replication(self, id: UUID | None = None, reason: str = "") -> Run:
        """Ask the coordinator to stop the run within seconds and to end it; what it has copied stays. Once more does no harm.

        Raises StateError if no run is in progress, or another one than this.
        """
        with self.verb(commits=True) as verb:
            asked = None if id is None else get_row(verb.connection, Run, id)
            if verb.state is MigrationState.UPGRADING:
                raise verb.refusal()
            run = newest_run(verb.connection, runs.c.status == RunStatus.IN_PROGRESS)
            if run is None or (asked and asked.id != run.id):
                raise StateError("no run is in progress" if run is None else "this run has ended", code="NoRun",
                                 hint="skylift status shows the newest run")
            if not run.cancelled:
                cancelled = f"cancelled by {self.actor}" + (f": {redact(reason)}" if reason else "")
                details = f"The run is being {cancelled}."
                note(verb.connection, Run, [run.id])
                verb.connection.execute(runs.update().where(runs.c.id == run.id).values(cancelled=cancelled, details=details))
                verb.log(f"run {run.run_id}", "cancel", why=redact(reason))
                run = replace(run, cancelled=cancelled, details=details)
            return run

    def refresh_status(self, id: UUID | None = None) -> Run | None:
        """The newest row. The store is always up to date here, so there is nothing to fetch from elsewhere."""
        with self.store.read() as connection:
            if id is not None:
                get_row(connection, Run, id)
            return newest_run(connection)

    def reset_cloud_data(self, id: UUID | None = None) -> None:
        """Forget how far each table was copied: the next run copies everything anew. No data is deleted.

        After a failed data upgrade this is the way back: the companies lose their upgrade status, for all their rows are replaced.
        """
        with self.verb(once=True) as verb:
            if id is not None:
                get_row(verb.connection, Run, id)
            verb.permit("reset_cloud_data")
            forget_copies(verb, Part())
            if verb.state is MigrationState.UPGRADE_FAILED:
                update_companies(verb.connection, upgrade_status=UpgradeStatus.NONE, upgrade_error="")
                verb.connection.execute(upgrade_tags.delete())
                note(verb.connection, UpgradeStep, sa.select(upgrade_steps.c.id), deleted=True)
                verb.connection.execute(upgrade_steps.delete())
                verb.move("reset")
            else:
                verb.log("migration", "reset")


def begin_run(verb: Verb, run: Run) -> None:
    """What a run that copies does to what was before, as its tables are settled: one that never comes so far leaves all as it was.

    The run that waits for its upgrade waits no more; a full run has every table copied whole. Full copies that have begun where
    nothing was copied yet go on.
    """
    if run.replication_type is ReplicationType.DIAGNOSTIC or count_tables(verb.connection, run.run_id):
        return
    for row in verb.connection.execute(sa.select(runs).where(runs.c.status == RunStatus.UPGRADE_PENDING)).mappings().all():
        verb.move_run(to_row(Run, row), "supersede", "a later run takes its place")
    part = from_text(run.scope)
    copied = verb.connection.execute(sa.select(registry.c.company_name, registry.c.table_name).where(registry.c.synced_version > 0))
    if run.replication_type is ReplicationType.FULL and any((row.company_name, row.table_name) in part for row in copied):
        forget_copies(verb, part)


def _check_companies(verb: Verb, part: Part) -> None:
    every = verb.connection.execute(
        sa.select(source_companies).where(source_companies.c.replicate).order_by(source_companies.c.name)).all()
    marked = [company for company in every if part.has_company(company.name)]
    if not marked:
        raise StateError("no company is marked for replication",
                         hint="mark at least one company (skylift companies --mark NAME; API: replicate = true)", code="50003")
    missing = [company.name for company in marked if not company.created]
    if missing:
        raise StateError(f"marked, but not created yet: {', '.join(missing)}", code="CompanyNotCreated",
                         hint="create them first (skylift companies --create; API: createCompaniesMarkedForReplication)")
    upgraded = [f"{company.name} ({company.upgrade_status})" for company in marked
                if company.upgrade_status not in (UpgradeStatus.NONE, UpgradeStatus.PENDING)]
    if upgraded:
        raise StateError(f"the data upgrade has already touched {', '.join(upgraded)}", hint="leave these companies out",
                         code="CompanyUpgraded")


def end_run(verb: Verb, run: Run) -> RunStatus:
    """Close a run that the engine has gone through: tables, details, run, companies and migration, as its tables say."""
    connection = verb.connection
    _close_tables(verb, run)
    counts = count_tables(connection, run.run_id)
    failed = counts.get(TableStatus.FAILED, 0)
    diagnostic = run.replication_type is ReplicationType.DIAGNOSTIC
    if failed and not counts.get(TableStatus.SUCCESSFUL) and not diagnostic:
        first = connection.scalar(sa.select(run_tables.c.errors).where(
            run_tables.c.run_id == run.run_id, run_tables.c.status == TableStatus.FAILED).order_by(run_tables.c.ended_at).limit(1))
        return fail_run(verb, run, f"No table could be copied. The first error: {first}")
    details = " ".join(filter(None, (_details(connection, run, counts), str(from_text(run.scope)))))
    upgrade = find_product(verb.row["product_id"]).upgrades and not diagnostic
    verb.move_run(run, "await_upgrade" if upgrade else "complete", details, details=details, ended_at=verb.after(run))
    if upgrade:
        await_upgrade(verb)
    _leave_replicating(verb, "await_upgrade" if upgrade else "replicated")
    return RunStatus.UPGRADE_PENDING if upgrade else RunStatus.COMPLETED


def _details(connection: sa.Connection, run: Run, counts: Mapping[TableStatus, int]) -> str:
    """What became of the tables. Unchanged ones are not called verified: nothing of them was read in this run."""
    good, failed = counts.get(TableStatus.SUCCESSFUL, 0), counts.get(TableStatus.FAILED, 0)
    unchanged = connection.scalar(sa.select(sa.func.count()).where(
        run_tables.c.run_id == run.run_id, run_tables.c.status == TableStatus.SUCCESSFUL, run_tables.c.mode == "unchanged")) or 0
    diagnostic = run.replication_type is ReplicationType.DIAGNOSTIC
    parts = [f"{good} could be read"] if diagnostic else [f"{good - unchanged} copied and verified"] if good > unchanged else []
    if unchanged:
        parts.append(f"{unchanged} unchanged since {'it was' if unchanged == 1 else 'they were'}")
    if not good and not failed:
        return "There was no table to go through."
    every, are, were = ("The only table", "is", "was") if good == 1 else (f"All {good} tables", "are", "were")
    if failed:
        why = "its error says why" if failed == 1 else "their errors say why"
        details = f"{failed} of {_tables(good + failed)} {_has(failed)} failed, {why}" + (f"; {', '.join(parts)}." if good else ".")
    elif diagnostic:
        details = f"{every} could be read."
    else:
        details = f"{every} {are} up to date: {', '.join(parts)}." if unchanged else f"{every} {were} copied and verified."
    if diagnostic:
        details = f"The diagnostic run has found {'errors' if failed else 'no errors'}. {details}"
    if warnings := counts.get(TableStatus.WARNING, 0):
        details += f" {_tables(warnings)} {_has(warnings)} a warning: {_warnings(connection, run, warnings)}."
    return details


def _warnings(connection: sa.Connection, run: Run, count: int) -> str:
    rows = connection.execute(sa.select(run_tables).where(run_tables.c.run_id == run.run_id, run_tables.c.status == TableStatus.WARNING)
                              .order_by(run_tables.c.company_name, run_tables.c.table_name).limit(NAMED))
    named = [f"{f'{row.company_name} {row.table_name}'.strip()}: {row.errors.rstrip('.')}" for row in rows]
    return "; ".join([*named, *(["..."] if count > NAMED else [])])


def _tables(count: int) -> str:
    return f"{count} table{'' if count == 1 else 's'}"


def _has(count: int) -> str:
    return "has" if count == 1 else "have"


def end_cancelled(verb: Verb, run: Run) -> RunStatus:
    """End a run that was cancelled; one that had gone through everything by then ends as if it had not been."""
    run = get_row(verb.connection, Run, run.id)
    counts = count_tables(verb.connection, run.run_id)
    if counts and not any(counts.get(status) for status in _OPEN):
        return end_run(verb, run)
    done = counts.get(TableStatus.SUCCESSFUL, 0)
    details = (f"The run was {run.cancelled.rstrip('.')}. {done} of {_tables(sum(counts.values()))} {'was' if done == 1 else 'were'} done; "
               "the next run goes on with the others.") if counts else f"The run was {run.cancelled.rstrip('.')}. Nothing had been done."
    if run.replication_type is ReplicationType.DIAGNOSTIC:
        details = f"Diagnostic run - {details}"
    _close_tables(verb, run, "The run was cancelled before the table was {done}.", "Cancelled")
    verb.move_run(run, "cancel", run.cancelled, details=details, ended_at=verb.after(run))
    _leave_replicating(verb, "run_cancelled")
    return RunStatus.FAILED


def fail_run(verb: Verb, run: Run, reason: str) -> RunStatus:
    """End a run as Failed. What it has copied stays copied."""
    reason = redact(reason)
    if run.replication_type is ReplicationType.DIAGNOSTIC:
        reason = f"Diagnostic run - {reason}"
    _close_tables(verb, run)
    verb.move_run(run, "fail", reason, details=reason, ended_at=verb.after(run))
    _leave_replicating(verb, "run_failed")
    return RunStatus.FAILED


def _close_tables(verb: Verb, run: Run, why: str = "The table was not {done}: the run ended before it.",
                  code: str = "NotReplicated") -> None:
    """Nothing of an ended run remains open for ever. A table that a diagnostic run has not come to is no table that failed."""
    still_open = sa.and_(run_tables.c.run_id == run.run_id, run_tables.c.status.in_(_OPEN))
    note(verb.connection, RunTable, sa.select(run_tables.c.id).where(still_open))
    if run.replication_type is ReplicationType.DIAGNOSTIC:
        values: dict[str, Any] = {"status": TableStatus.WARNING, "mode": "diagnostic", "errors": why.format(done="checked")}
    else:
        values = {"status": TableStatus.FAILED, "errors": why.format(done="replicated") + " Run the replication again."}
    verb.connection.execute(run_tables.update().where(still_open).values(**values, error_code=code, ended_at=verb.after(run)))


def await_upgrade(verb: Verb) -> None:
    """Every company of which something has been copied waits for its upgrade; one without tables does too."""
    copied = sa.exists().where(run_tables.c.company_name == source_companies.c.name, run_tables.c.status == TableStatus.SUCCESSFUL,
                               run_tables.c.mode != "diagnostic")
    has_tables = sa.exists().where(registry.c.company_name == source_companies.c.name)
    waiting = (source_companies.c.replicate, source_companies.c.upgrade_status == UpgradeStatus.NONE, sa.or_(copied, ~has_tables))
    for name in verb.connection.scalars(sa.select(source_companies.c.name).where(*waiting).order_by(source_companies.c.name)).all():
        verb.log(f"company {name}", "await_upgrade")
    update_companies(verb.connection, *waiting, upgrade_status=UpgradeStatus.PENDING)


def _leave_replicating(verb: Verb, event: str) -> None:
    """A diagnostic run leaves a pending upgrade pending: its run is still there."""
    if verb.connection.execute(sa.select(runs.c.id).where(runs.c.status == RunStatus.UPGRADE_PENDING).limit(1)).first():
        event = "await_upgrade"
    verb.move(event)
