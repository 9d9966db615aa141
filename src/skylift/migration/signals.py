"""What rows of the event log, and tables that a run goes through, mean as telemetry. Read inside the transaction, told after its commit.

Only what is named here leaves: ids, names, states, codes, numbers. The text of an error may hold a value of a row: it stays in the store.
Source: behaviour.md §10, §12.15; telemetry/catalogue.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import sqlalchemy as sa

from skylift.model import NO_ID, Run, RunTableProgress, SourceCompany, Step
from skylift.runs import CompanyInit, MigrationState, ReplicationType, RunStatus, TableStatus, UpgradeStatus
from skylift.store.tables import events, run_tables, runs, source_companies
from skylift.telemetry import Signal, Value

if TYPE_CHECKING:
    from skylift.migration.service import Verb

CODES = 5                         # error codes that are named in `Details`; of more, how many there are
Told = tuple[Sequence[str], Mapping[str, Value]]


def of_event(verb: Verb, subject: str, event: str, before: str, after: str, about: Any) -> Signal:
    """The signal that a row of the event log is. `about`: the run or company that it is about, or how it is told to people."""
    noun, _, name = subject.partition(" ")
    rule = next((rule for key in (event, f"{event} from {before}", f"{event} to {after}") if (rule := _RULES.get((noun, key)))), None)
    ids, dimensions = rule(verb, name, about) if rule else ((), {})
    run = about if isinstance(about, Run) else None
    more: dict[str, Any] = {}
    if run is not None:
        ended = before == RunStatus.IN_PROGRESS
        more = {"trace": UUID(run.run_id), "span": run.id} if ended else {"trace": UUID(run.run_id), "parent": run.id}
        more |= {"began": run.started_at} if ended else {}
    failed = after in (RunStatus.FAILED, RunStatus.UPGRADE_FAILED, MigrationState.CREATION_FAILED, CompanyInit.INITIALIZATION_FAILED)
    return Signal(f"{noun}.{event}", verb.after(run) if run else verb.now, tuple(ids), dimensions, verb.actor, verb.actor_id, subject,
                  before, after, failed, **more)


def of_table(run: Run, row: RunTableProgress, values: Mapping[str, Any], steps: Sequence[Step]) -> Signal:
    """A table of a run has ended; `values`: what its row says from now on, `steps`: the last ones."""
    names = {"mode": "Mode", "records_copied": "RowsCopied", "total_records": "RowsTotal", "size_bytes": "BytesCopied",
             "inserted": "Inserted", "updated": "Updated", "deleted": "Deleted", "error_code": "ErrorCode"}
    failed = values["status"] is TableStatus.FAILED
    at = values["ended_at"]
    began = min((*(_time(step.began_ns) for step in steps), row.started_at or at, at))
    return Signal(f"table.{'failed' if failed else 'copied'}", at, (), {
        "CompanyName": row.company_name, "TableName": row.table_name, **_type(run), "Status": str(values["status"]),
        **{told: values[name] for name, told in names.items() if values[name] != ""},
    }, failed=failed, began=began, trace=UUID(run.run_id), span=row.id, parent=run.id)


def of_step(run: Run, row: RunTableProgress, step: Step) -> Signal:
    """The target has committed a part of a table."""
    chunk = {} if step.chunk is None else {"Chunk": step.chunk}
    return Signal(f"table.{step.name}", _time(step.ended_ns), (), {
        "CompanyName": row.company_name, "TableName": row.table_name, "Rows": step.rows, "Bytes": step.size_bytes, **chunk,
    }, began=_time(step.began_ns), trace=UUID(run.run_id), parent=row.id)


def of_left_out(run: Run, at: datetime, company: str, table: str, code: str) -> Signal:
    """A table cannot be copied: a mapping names one that is not there, or the source has lost it."""
    return Signal("table.left_out", at, ("AL0000MRO",) if code == "50004" else (),
                  {"CompanyName": company, "TableName": table, "ErrorCode": code}, trace=UUID(run.run_id), parent=run.id)


# ------------------------------------------------------------------ what is told of a row of the event log, by noun and event


def _run_asked(verb: Verb, name: str, run: Run) -> Told:
    return ["AL0000K0J", *_by_api(verb, "AL0000JMN")], _run(verb, run)


def _run_ended(verb: Verb, name: str, run: Run) -> Told:
    here = run_tables.c.run_id == run.run_id
    counts: dict[TableStatus, int] = dict(verb.connection.execute(
        sa.select(run_tables.c.status, sa.func.count()).where(here).group_by(run_tables.c.status)).all())
    rows, size = verb.connection.execute(sa.select(sa.func.sum(run_tables.c.records_copied), sa.func.sum(run_tables.c.size_bytes)).where(
        here)).one()
    codes = verb.connection.execute(sa.select(run_tables.c.error_code, sa.func.count()).where(
        here, run_tables.c.status == TableStatus.FAILED).group_by(run_tables.c.error_code).order_by(sa.func.count().desc())).all()
    failed = counts.get(TableStatus.FAILED, 0)
    status, cancelled = verb.connection.execute(sa.select(runs.c.status, runs.c.cancelled).where(runs.c.id == run.id)).one()
    dimensions = {**_run(verb, run), "Tables": sum(counts.values()), "RowsCopied": int(rows or 0), "BytesCopied": int(size or 0)}
    if not failed and status is not RunStatus.FAILED:
        return ["AL0000K0H"], dimensions
    told = [f"{count} of {sum(counts.values())} tables: {code or 'no code'}" for code, count in codes[:CODES]]
    told += [f"and {len(codes) - CODES} other codes"] if len(codes) > CODES else []
    details = "; ".join([*(["cancelled"] if cancelled else []), *told]) or "it ended before its first table"
    return ["AL0000K0I"], {**dimensions, "HasFailures": True, "NumberOfFailedTables": failed, "Details": details}


def _upgrade_asked(verb: Verb, name: str, run: Any) -> Told:
    return ["AL0000K0K", *_by_api(verb, "AL0000JMO")], {"SourceProduct": verb.row["product_id"]}


def _upgrade_begun(verb: Verb, name: str, run: Any) -> Told:
    return ["LC0175"], _upgrade(verb)


def _upgrade_done(verb: Verb, name: str, run: Run) -> Told:
    return ["LC0176"], {**_upgrade(verb), "totalTime": _upgrade_s(verb, run)}


def _upgrade_failed(verb: Verb, name: str, run: Run) -> Told:
    failed = verb.connection.scalars(sa.select(source_companies.c.name).order_by(source_companies.c.name).where(
        source_companies.c.upgrade_error != "")).all()
    return ["LC0177"], {**_upgrade(verb), "totalTime": _upgrade_s(verb, run),
                        "failureReason": f"failed: {', '.join(failed)}" if failed else "it ended before its first company"}


def _company_begun(verb: Verb, name: str, about: Any) -> Told:
    return (["AL00007EB"], {"CompanyName": name}) if name else (["AL0000CA0"], {})


def _company_failed(verb: Verb, name: str, about: Any) -> Told:
    return (["AL00007KD"], {"CompanyName": name}) if name else (["AL0000CA1"], {})


def _company_done(verb: Verb, name: str, about: Any) -> Told:
    return (["AL00007EC"], {"CompanyName": name}) if name else (["AL0000CA2"], {})


def _set_up(verb: Verb, name: str, about: Any) -> Told:
    return _by_api(verb, "AL0000JML"), {"Product": verb.row["product_id"]}


def _agent(verb: Verb, name: str, about: Any) -> Told:
    return (["AL0000EV4", "AL0000EV5", *_by_api(verb, "AL0000JML")],
            {"Product": verb.row["product_id"], "RuntimeName": verb.row["runtime_name"]})


def _setup_completed(verb: Verb, name: str, about: Any) -> Told:
    return ["AL0000EUR", *_by_api(verb, "AL0000JMM")], _sizes(verb)


def _disabled(verb: Verb, name: str, details: Any) -> Told:
    reason = verb.row["disabled_reason"]
    dimensions = {"DisabledReason": reason, "DisabledReasonDescription": str(details or ""), "SourceProduct": verb.row["product_id"]}
    if reason != "Completed":
        return ["AL0000IGC", *_by_api(verb, "AL0000JMP")], dimensions
    return ["AL0000IGC", "AL0000JMR", *_by_api(verb, "AL0000JV6")], {
        **dimensions, **_sizes(verb), "MigrationDateTime": verb.now.isoformat().replace("+00:00", "Z")}


def _included(verb: Verb, name: str, company: SourceCompany) -> Told:
    return ["AL0000MRI"], {"Company Name": company.name, "Display Name": company.display_name,
                           "Estimated size": float(company.estimated_size)}


def _validation(verb: Verb, name: str, about: Any) -> Told:
    return ["AL0000SEV"], {}


def _no_validation(verb: Verb, name: str, about: Any) -> Told:
    return ["AL0000SEU"], {}


def _waits(verb: Verb, name: str, about: Any) -> Told:
    return ["AL0000FXD"], {"CompanyName": name}


def _switched(id: str, value: str) -> Callable[[Verb, str, Any], Told]:
    return lambda verb, name, about: ([id], {"TablesModified": 1, "NewValue": value})


_IN_PROGRESS, _UPGRADING = RunStatus.IN_PROGRESS, RunStatus.UPGRADE_IN_PROGRESS
_RULES: dict[tuple[str, str], Callable[[Verb, str, Any], Told]] = {
    ("run", "run_replication"): _run_asked,
    **{("run", f"{event} from {_IN_PROGRESS}"): _run_ended for event in ("complete", "await_upgrade", "fail", "cancel")},
    ("migration", "upgrade"): _upgrade_asked,
    ("run", "begin_upgrade"): _upgrade_begun,
    ("run", f"complete from {_UPGRADING}"): _upgrade_done,
    ("run", f"fail from {_UPGRADING}"): _upgrade_failed,
    ("company", "start_upgrade"): _company_begun,
    ("company", f"end_upgrade to {UpgradeStatus.FAILED}"): _company_failed,
    ("company", f"end_upgrade to {UpgradeStatus.COMPLETED}"): _company_done,
    ("company", "await_upgrade"): _waits,
    ("company", "include"): _included,
    ("validation", "validate"): _validation,
    ("validation", "not_validated"): _no_validation,
    ("migration", "register_agent"): _agent,
    ("migration", "enable"): _set_up,
    ("set-up", "complete"): _setup_completed,
    **{("migration", event): _disabled for event in ("disable", "disabled", "paused", "abandoned", "completed")},
    ("table", "include"): _switched("AL0000MRJ", "true"),
    ("table", "leave_out"): _switched("AL0000MRJ", "false"),
    ("table", "preserve"): _switched("AL0000MRK", "true"),
    ("table", "replace"): _switched("AL0000MRK", "false"),
}


def _by_api(verb: Verb, id: str) -> list[str]:
    """`id` where the API was used: there every caller has an id."""
    return [id] if verb.actor_id != NO_ID else []


def _run(verb: Verb, run: Run) -> dict[str, Value]:
    return {**_type(run), "SourceProduct": verb.row["product_id"]}


def _type(run: Run) -> dict[str, Value]:
    return {"ReplicationType": "Diagnostic" if run.replication_type is ReplicationType.DIAGNOSTIC else "Data Replication",
            "RunType": str(run.replication_type)}


def _upgrade(verb: Verb) -> dict[str, Value]:
    return {"applicationFamily": verb.row["product_id"], "environmentVersion": verb.row["source_version"]}


def _upgrade_s(verb: Verb, run: Run) -> float:
    """Seconds since the upgrade of the run was asked for the last time."""
    asked = verb.connection.scalar(sa.select(sa.func.max(events.c.id)).where(events.c.subject == f"run {run.run_id}",
                                                                             events.c.event == "upgrade"))
    at = verb.connection.scalar(sa.select(events.c.at).where(events.c.id == asked))
    return (verb.now - at).total_seconds() if at else 0.0


def _sizes(verb: Verb) -> dict[str, Value]:
    """Companies and sizes in GB, of those that take part and of all."""
    c = source_companies.c
    rows = verb.connection.execute(sa.select(c.replicate, sa.func.count(), sa.func.sum(c.estimated_size)).group_by(c.replicate)).all()
    marked = [row for row in rows if row[0]]
    return {"TotalNumberOfOnPremCompanies": sum(row[1] for row in rows), "NumberOfCompanies": sum(row[1] for row in marked),
            "TotalMigrationSize": float(sum(row[2] or 0 for row in marked)), "TotalOnPremSize": float(sum(row[2] or 0 for row in rows)),
            "Product": verb.row["product_id"]}


def _time(ns: int) -> datetime:
    return datetime.fromtimestamp(ns / 1e9, UTC)
