"""The data upgrade: may it begin, and what it does. Source: behaviour.md §3 (runDataUpgrade), §6; docs/upgrade.md.

Company by company it is proved that the target still holds what was verified when it was copied; then the upgrade packs transform the
rows, all of a company or nothing (upgrades/execute.py); and the upgrade tags record it, so that a finished company is never upgraded twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from skylift.connectors import TableState, Target, open_target
from skylift.errors import NotVerified, SkyliftError, StateError, TargetFailed, Transient
from skylift.migration.changes import update_companies
from skylift.migration.cutover import refuse_lag
from skylift.migration.packs import find, names_of, refuse_paths
from skylift.migration.replication import await_upgrade
from skylift.migration.scope import refuse_failed_tables, some
from skylift.migration.service import Service, Verb, get_migration, get_row, newest_run
from skylift.migration.upgrade_steps import enter_steps, note_step, settle_steps
from skylift.migration.validation import validate_automatically
from skylift.model import Run, TargetName
from skylift.products.naming import target_name
from skylift.products.registry import find_product
from skylift.runs import MigrationState, ReplicationType, RunStatus, UpgradeStatus
from skylift.store.tables import events, registry, run_tables, runs, source_companies, upgrade_steps, upgrade_tags
from skylift.upgrades.execute import Company, StepDone, upgrade_company
from skylift.upgrades.pack import Pack


class UpgradeVerbs(Service):
    def run_data_upgrade(self, id: UUID | None = None, *, packs: Sequence[str] | None = None, retry: str = "",
                         current: bool = False) -> Run:
        """Ask for the data upgrade of the marked companies; the coordinator does it. After a failure only the rest is done again.

        It follows the run that waits for it; of a product that needs none (Custom) the newest run, where packs are named.

        `packs`: the upgrade packs to go through, None = those of the settings, after a failure those that it had.
        `retry`: of the companies that failed only this one;
        `current`: only if nothing has changed in the source since it was copied, as far as its feeds know, else StateError (FeedLag).
        Raises SetupError for a pack that cannot be read, CompanyNotFailed for a `retry` of another company, and StateError, in this
        order: something is going on, a newer run is there, the product has no upgrade, tables or companies have failed, a marked
        company was not copied, the run does not wait for its upgrade.
        """
        if current:
            with self.store.read() as connection:
                row = get_migration(connection)
            if row["state"] is MigrationState.UPGRADE_PENDING or _may_follow(row):       # whatever else stands in the way is said below
                refuse_lag(self, row)
        with self.verb(commits=True, once=True) as verb:
            connection = verb.connection
            waiting = newest_run(connection, runs.c.status.in_((RunStatus.UPGRADE_PENDING, RunStatus.UPGRADE_FAILED)))
            optional = _may_follow(verb.row)
            if optional:
                waiting = _copied(connection)
            run = (waiting or newest_run(connection)) if id is None else get_row(connection, Run, id)
            if run is None or verb.state in (MigrationState.AWAITING_AGENT, MigrationState.REPLICATING, MigrationState.UPGRADING):
                raise verb.refusal()
            # Diagnostic runs and set-up rows do not take its place: a later run that copies moves the waiting one on.
            later = sa.select(runs.c.id).where(runs.c.ended_at > run.ended_at).limit(1)
            if id is not None and run != waiting and connection.execute(later).first():
                raise StateError("there is a newer run than this one", hint="use the newest", code="NotNewest")
            product = find_product(verb.row["product_id"])
            if optional:
                run = self._let_follow(verb, run, waiting, packs)
            elif not (product.upgrades or product.optional_upgrade):
                raise StateError(f"{product.display_name} needs no data upgrade", hint="complete the migration", code="NoUpgrade")
            verb.permit("run_data_upgrade")
            refuse_failed_tables(connection)
            again = verb.state is MigrationState.UPGRADE_FAILED
            marked = connection.execute(sa.select(source_companies).where(source_companies.c.replicate)).all()
            failed = sorted(row.name for row in marked if row.upgrade_status is UpgradeStatus.FAILED)
            if failed and not again:
                raise StateError(f"the upgrade of {', '.join(failed)} has failed", hint="leave these companies out",
                                 code="CompanyFailed")
            uncopied = sorted(row.name for row in marked if row.upgrade_status is not UpgradeStatus.PENDING and not (
                again and row.upgrade_status is not UpgradeStatus.NONE))
            if uncopied:
                raise StateError(f"marked, but not copied: {', '.join(uncopied)}", hint="run the replication, or leave them out",
                                 code="CompanyNotCopied")
            if run.status not in (RunStatus.UPGRADE_PENDING, RunStatus.UPGRADE_FAILED):
                hint = f"name the one that does ({waiting.id})" if waiting else "run the replication again"
                raise StateError("this run does not wait for an upgrade", hint=hint, code="NotPending")
            named = names_of(self, verb.row, packs)
            found, _ = find(self, verb.row, named)
            if again and named != verb.row["packs"].splitlines():
                _go_on_with(connection, found)
            if retry and retry not in failed:
                raise StateError(f"the upgrade of company '{retry}' has not failed", code="CompanyNotFailed",
                                 hint=f"failed are: {', '.join(failed)}" if failed else "run the upgrade of all: skylift upgrade")
            here = source_companies.c.name == retry if retry else source_companies.c.upgrade_status == UpgradeStatus.FAILED
            update_companies(connection, source_companies.c.replicate, here, upgrade_status=UpgradeStatus.PENDING)
            verb.set(packs="\n".join(named))
            verb.move_run(run, "upgrade", details="The data upgrade is in progress.")
            verb.move("upgrade")
            return get_row(connection, Run, run.id)

    def _let_follow(self, verb: Verb, run: Run, copied: Run | None, packs: Sequence[str] | None) -> Run:
        """Have the newest run that copied wait for the upgrade that its product does not need."""
        if copied is None:
            raise verb.refusal()
        product = find_product(verb.row["product_id"])
        found, why = find(self, verb.row, names_of(self, verb.row, packs))
        if not found:
            told = f" ({'; '.join(why)})" if why else ""
            raise StateError(f"{product.display_name} needs no data upgrade{told}", code="NoUpgrade",
                             hint="name upgrade packs (skylift upgrade --pack NAME; API v2.0: packs), or complete the migration")
        if run == copied and run.status is RunStatus.COMPLETED:
            verb.move_run(run, "await_upgrade", "upgrade packs were named")
            await_upgrade(verb)
            verb.move("await_upgrade")
        return get_row(verb.connection, Run, run.id)

    def run_named_upgrade(self, *, packs: Sequence[str] | None = None, retry: str = "", current: bool = False) -> None:
        """As run_data_upgrade, for whoever is not at this machine: packs are named, not pointed to."""
        refuse_paths(self, packs or ())
        self.run_data_upgrade(packs=packs, retry=retry, current=current)


def upgrade(service: Service, run: Run, stop: Callable[[], bool], check: Callable[[sa.Connection], None]) -> None:
    """The coordinator's part: company after company; one that fails does not hold up the others. Returns early when stopped.

    `check` raises inside each writing transaction if this coordinator's lease is lost.
    """
    with service.store.read() as connection:
        row = get_migration(connection)
        pending = connection.scalars(sa.select(source_companies.c.name).where(
            source_companies.c.replicate, source_companies.c.upgrade_status.in_((UpgradeStatus.PENDING, UpgradeStatus.STARTED)))
            .order_by(source_companies.c.name)).all()
    packs, _ = find(service, row, row["packs"].splitlines())
    tag = f"{row['product_id']}-{row['source_version']}-Verified"
    shared_error = ""
    with closing(open_target(service.box.open(row["target_url"]))) as target:
        states = target.states()
        _note_begin(service, run, check)
        for name in ["", *pending]:
            if not _start(service, name, tag, packs, check):
                continue
            error = ""
            try:
                company = _company(service, name, states, target)
                upgrade_company(target, company, packs, str(row["copy_id"]), limit_s=service.settings.upgrade_step_s, stop=stop,
                                report=lambda step: note_step(service, step, check))
            except (TargetFailed, Transient):
                raise
            except SkyliftError as problem:
                error = str(problem)
            if stop():
                return
            _finish(service, name, tag, error, check)
            shared_error = shared_error if name else error
    with service.verb() as verb:
        check(verb.connection)
        failed = verb.connection.execute(
            sa.select(source_companies.c.name, source_companies.c.upgrade_error).order_by(source_companies.c.name).where(
                source_companies.c.replicate, source_companies.c.upgrade_status == UpgradeStatus.FAILED)).all()
        errors = {**({"": shared_error} if shared_error else {}), **dict(map(tuple, failed))}
        end_upgrade(verb, run, "; ".join(_grouped(errors)))
        if not errors:
            validate_automatically(verb, service.settings)


def _grouped(errors: Mapping[str, str]) -> list[str]:
    """`errors` of companies as sentences, each once, also where it differs in nothing but the company's name."""
    alike: dict[str, list[str]] = {}
    for name, error in errors.items():
        alike.setdefault(error.replace(name or "\0", ""), []).append(name)
    return [f"{some([name or 'tables of all companies' for name in names])}: {errors[names[0]]}" for names in alike.values()]


def preview(service: Service, packs: Sequence[str] | None, companies: Sequence[str],
            report: Callable[[StepDone], None]) -> list[str]:
    """Carry the packs out in transactions that are rolled back; `report` is told every step with its statements.

    `companies`: only these, with what all share; empty = all marked ones. Returns why something is not done. Raises StateError where
    no upgrade is due, and what a step raises.
    """
    with service.store.read() as connection:
        row = get_migration(connection)
        marked = connection.scalars(sa.select(source_companies.c.name).order_by(source_companies.c.name).where(
            source_companies.c.replicate, source_companies.c.upgrade_status != UpgradeStatus.COMPLETED)).all()
        copied = _copied(connection)
    due = row["state"] in (MigrationState.UPGRADE_PENDING, MigrationState.UPGRADE_FAILED)
    if not (due or (copied and copied.status is RunStatus.COMPLETED and _may_follow(row))):
        raise StateError("no data upgrade is due", hint="run the replication first (skylift run)", code="NotPending")
    names = names_of(service, row, packs)
    found, why = find(service, row, names)
    done = 0
    with closing(open_target(service.box.open(row["target_url"]))) as target:
        states = target.states()
        for name in ["", *(name for name in marked if not companies or name in companies)]:
            done += upgrade_company(target, _company(service, name, states, target), found, str(row["copy_id"]), keep=False, report=report,
                                    limit_s=service.settings.upgrade_step_s)
    if not names:
        why.append("no upgrade pack is named (--pack NAME, or the setting packs)")
    elif found and not done:
        why.append("all steps are done" if marked else "no marked company is left to upgrade")
    return why


def _may_follow(row: Mapping[str, Any]) -> bool:
    """Whether nothing waits for an upgrade, and yet one may be asked for."""
    return row["state"] is MigrationState.READY and find_product(row["product_id"]).optional_upgrade


def _copied(connection: sa.Connection) -> Run | None:
    """The newest run that copied."""
    return newest_run(connection, runs.c.run_id.in_(sa.select(run_tables.c.run_id)), runs.c.replication_type != ReplicationType.DIAGNOSTIC)


def _go_on_with(connection: sa.Connection, packs: Sequence[Pack]) -> None:
    """Other packs after a failure: whoever is done goes through the steps that it does not have behind it.

    Raises StateError for a pack that some have behind them and the others would never get.
    """
    done = connection.scalars(sa.select(upgrade_steps.c.pack).where(upgrade_steps.c.status == UpgradeStatus.COMPLETED).distinct()).all()
    if left_out := sorted(set(done) - {pack.name for pack in packs}):
        raise StateError(f"steps of {', '.join(left_out)} are done for a part of the data, and the rest would go without them",
                         code="PacksDiffer", hint="leave --pack out to go on with the same packs, name these too, or reset the cloud data "
                         "(skylift reset) and replicate everything anew")
    update_companies(connection, source_companies.c.replicate, source_companies.c.upgrade_status == UpgradeStatus.COMPLETED,
                     upgrade_status=UpgradeStatus.PENDING)
    connection.execute(upgrade_tags.delete())


def _company(service: Service, name: str, states: Mapping[TargetName, TableState], target: Target) -> Company:
    """Raises NotVerified if the target holds fewer tables than were copied."""
    with service.store.read() as connection:
        tables = connection.execute(sa.select(registry.c.table_name, registry.c.synced_version, registry.c.preserve).where(
            registry.c.company_name == name).order_by(registry.c.table_name)).all()
    places = {row.table_name: target_name(name, row.table_name, target.max_name_bytes) for row in tables}
    schema = target_name(name, "", target.max_name_bytes).schema
    held = {place: state for place, state in states.items() if place.schema == schema}
    copied = sum(row.synced_version > 0 for row in tables)
    if len(held) < copied:
        raise NotVerified(f"the target holds {len(held)} of {copied} copied tables", hint="run the replication in full")
    return Company(name, schema, {table: place for table, place in places.items() if place in held}, held,
                   frozenset(places[row.table_name] for row in tables if row.preserve))


def end_upgrade(verb: Verb, run: Run, error: str) -> None:
    details = f"The data upgrade has failed. {error}" if error else "The data upgrade has been completed."
    verb.move_run(run, "fail" if error else "complete", details, details=details, ended_at=verb.after(run))
    verb.move("upgrade_failed" if error else "upgraded", error)


def _note_begin(service: Service, run: Run, check: Callable[[sa.Connection], None]) -> None:
    """In the event log, unless another coordinator has got further with it already."""
    with service.verb() as verb:
        check(verb.connection)
        last = verb.connection.scalar(sa.select(sa.func.max(events.c.id)).where(events.c.subject == f"run {run.run_id}"))
        if verb.connection.scalar(sa.select(events.c.event).where(events.c.id == last)) != "begin_upgrade":
            verb.log(f"run {run.run_id}", "begin_upgrade", about=run)


def _start(service: Service, company: str, tag: str, packs: Sequence[Pack], check: Callable[[sa.Connection], None]) -> bool:
    """Mark the company as started and enter its steps; False if this is behind it already."""
    with service.verb() as verb:
        check(verb.connection)
        done = sa.select(upgrade_tags.c.tag).where(upgrade_tags.c.company_name == company, upgrade_tags.c.tag == tag)
        if verb.connection.execute(done).first():
            return False
        update_companies(verb.connection, source_companies.c.name == company, upgrade_status=UpgradeStatus.STARTED, upgrade_error="")
        enter_steps(verb, company, packs)
        verb.log(f"company {company}", "start_upgrade")
        return True


def _finish(service: Service, company: str, tag: str, error: str, check: Callable[[sa.Connection], None]) -> None:
    with service.verb() as verb:
        check(verb.connection)
        status = UpgradeStatus.FAILED if error else UpgradeStatus.COMPLETED
        update_companies(verb.connection, source_companies.c.name == company, upgrade_status=status, upgrade_error=error)
        if not error:
            verb.connection.execute(upgrade_tags.insert().values(company_name=company, tag=tag, created_at=verb.now))
        settle_steps(verb, company, done=not error)
        verb.log(f"company {company}", "end_upgrade", UpgradeStatus.STARTED, status, error)
