"""The data upgrade: may it begin, and what it does. Source: behaviour.md §3 (runDataUpgrade), §6.

Upgrade steps of a product transform copied rows into those of a newer version. The products that skylift can read need none
so far; what is always done is to prove, company by company, that the target still holds what was verified when it was
copied, and to record that in the upgrade tags, so that a finished company is never upgraded twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from uuid import UUID

import pyarrow as pa
import sqlalchemy as sa

from skylift.connectors import TableState, Target, open_target
from skylift.engine.columns import table_of
from skylift.engine.hashing import digest_all
from skylift.errors import NotVerified, SkyliftError, StateError, TargetFailed, Transient
from skylift.migration.changes import update_companies
from skylift.migration.scope import refuse_failed_tables
from skylift.migration.service import Service, Verb, get_migration, get_row, newest_run
from skylift.model import Run, TargetName
from skylift.products.naming import target_name
from skylift.products.registry import find_product
from skylift.runs import MigrationState, RunStatus, UpgradeStatus
from skylift.store.tables import registry, runs, source_companies, upgrade_tags


class UpgradeVerbs(Service):
    def run_data_upgrade(self, id: UUID | None = None) -> None:
        """Ask for the data upgrade of the marked companies; the coordinator does it. After a failure only the rest is done again.

        Raises StateError, in this order: something is going on, a newer run is there, the product has no upgrade, tables or
        companies have failed, a marked company was not copied, the run does not wait for its upgrade.
        """
        with self.verb(commits=True) as verb:
            connection = verb.connection
            waiting = newest_run(connection, runs.c.status.in_((RunStatus.UPGRADE_PENDING, RunStatus.UPGRADE_FAILED)))
            run = (waiting or newest_run(connection)) if id is None else get_row(connection, Run, id)
            if run is None or verb.state in (MigrationState.AWAITING_AGENT, MigrationState.REPLICATING, MigrationState.UPGRADING):
                raise verb.refusal()
            # Diagnostic runs and set-up rows do not take its place: a later run that copies moves the waiting one on.
            later = sa.select(runs.c.id).where(runs.c.ended_at > run.ended_at).limit(1)
            if run != waiting and connection.execute(later).first():
                raise StateError("there is a newer run than this one", hint="use the newest", code="NotNewest")
            product = find_product(verb.row["product_id"])
            if not product.upgrades:
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
                raise StateError("this run does not wait for an upgrade", hint="run the replication again", code="NotPending")
            verb.move_run(run, "upgrade", details="The data upgrade is in progress.")
            verb.move("upgrade")


def upgrade(service: Service, run: Run, stop: Callable[[], bool], check: Callable[[sa.Connection], None]) -> None:
    """The coordinator's part: company after company; one that fails does not hold up the others. Returns early when stopped.

    `check` raises inside each writing transaction if this coordinator's lease is lost.
    """
    with service.store.read() as connection:
        row = get_migration(connection)
        pending = connection.scalars(sa.select(source_companies.c.name).where(
            source_companies.c.replicate, source_companies.c.upgrade_status != UpgradeStatus.COMPLETED,
            source_companies.c.upgrade_status != UpgradeStatus.NONE).order_by(source_companies.c.name)).all()
        synced: dict[str, int] = dict(connection.execute(sa.select(registry.c.company_name, sa.func.count()).where(
            registry.c.synced_version > 0).group_by(registry.c.company_name)).all())
        preserved = set(connection.scalars(sa.select(registry.c.table_name).where(registry.c.preserve)))
    tag = f"{row['product_id']}-{row['source_version']}-Verified"
    target = open_target(service.box.open(row["target_url"]))
    try:
        states = target.states()
        errors = []
        for company in ["", *pending]:
            if not _start(service, company, tag, check):
                continue
            schema = target_name(company, "", target.max_name_bytes).schema
            held = {name: state for name, state in states.items() if name.schema == schema}
            error = ""
            try:
                if len(held) < synced.get(company, 0):
                    raise NotVerified(f"the target holds {len(held)} of {synced[company]} copied tables",
                                      hint="run the replication in full")
                kept = {target_name("", name, target.max_name_bytes) for name in preserved}     # their rows may be others' work
                _verify(target, {name: state for name, state in held.items() if name not in kept}, stop)
            except (TargetFailed, Transient):
                raise
            except SkyliftError as problem:
                error = str(problem)
            if stop():
                return
            _finish(service, company, tag, error, check)
            if error:
                errors.append(f"{company or 'Tables of all companies'}: {error}")
    finally:
        target.close()
    with service.verb() as verb:
        check(verb.connection)
        end_upgrade(verb, run, "; ".join(errors))


def end_upgrade(verb: Verb, run: Run, error: str) -> None:
    details = f"The data upgrade has failed. {error}" if error else "The data upgrade has been completed."
    verb.move_run(run, "fail" if error else "complete", details, details=details, ended_at=verb.after(run))
    verb.move("upgrade_failed" if error else "upgraded", error)


def _start(service: Service, company: str, tag: str, check: Callable[[sa.Connection], None]) -> bool:
    """Mark the company as started; False if this step is behind it already."""
    with service.verb() as verb:
        check(verb.connection)
        done = sa.select(upgrade_tags.c.tag).where(upgrade_tags.c.company_name == company, upgrade_tags.c.tag == tag)
        if verb.connection.execute(done).first():
            return False
        update_companies(verb.connection, source_companies.c.name == company, upgrade_status=UpgradeStatus.STARTED, upgrade_error="")
        verb.log(f"company {company}", "start_upgrade")
        return True


def _finish(service: Service, company: str, tag: str, error: str, check: Callable[[sa.Connection], None]) -> None:
    with service.verb() as verb:
        check(verb.connection)
        status = UpgradeStatus.FAILED if error else UpgradeStatus.COMPLETED
        update_companies(verb.connection, source_companies.c.name == company, upgrade_status=status, upgrade_error=error)
        if not error:
            verb.connection.execute(upgrade_tags.insert().values(company_name=company, tag=tag, created_at=verb.now))
        verb.log(f"company {company}", "end_upgrade", UpgradeStatus.STARTED, status, error)


def _verify(target: Target, tables: Mapping[TargetName, TableState], stop: Callable[[], bool]) -> None:
    """Raises NotVerified for the first table whose rows are not those that its copy was verified with."""
    for name, state in tables.items():
        [part] = target.read_parts(name, table_of(str(name), state.columns), 1)
        found = digest_all(_until(stop, part))
        if not stop() and found != state.digest:
            raise NotVerified(f"{name}: the target holds {found.rows} rows with hash {found}, copied were {state.digest.rows} "
                              f"with hash {state.digest}", hint="somebody has changed the target: run the replication in full")


def _until(stop: Callable[[], bool], batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if stop():
            return
        yield batch
