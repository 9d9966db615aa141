"""The verbs of a migration, and what can be seen of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from skylift.cli.follow import WORKING, Tally, equals, meter, newest_run, tables_of, unattended, wait, wait_for_run
from skylift.cli.frame import FAILED, OK, Session, absolute_url, command
from skylift.errors import NotFound, SetupError, StateError
from skylift.model import Run, RunTableProgress, Scope, Setup, SourceCompany, TableSwitch
from skylift.query import Attribute, Order, Query
from skylift.runs import MigrationState, ReplicationType, RunStatus, SqlServerType, TableStatus


class Kind(StrEnum):
    NORMAL = "normal"
    FULL = "full"
    DIAGNOSTIC = "diagnostic"

ALIKE = 5                         # failed tables that are named although all say the same


@command("skylift sample bc.db --companies 3 --rows 1000000 --tables 150")
def sample(
    session: Session,
    path: Annotated[Path, typer.Argument(help="The SQLite file to make, or with --change to change.")],
    companies: Annotated[int, typer.Option(help="Number of companies.")] = 3,
    rows: Annotated[int, typer.Option(help="G/L entries of the first company; each further company has a quarter of the one before, "
                                           "other tables have a tenth or less.")] = 1_000_000,
    tables: Annotated[int, typer.Option(help="Number of tables of each company.")] = 150,
    seed: Annotated[int, typer.Option(help="The same seed gives the same database.")] = 1,
    change: Annotated[int, typer.Option(help="Change that many rows of an existing sample instead: inserts, updates, deletes.")] = 0,
) -> None:
    """Make a Business-Central-shaped source database, to try things out on."""
    from rich.progress import Progress

    from skylift.sample import change_sample, create_sample, sample_rows

    if change:
        done = change_sample(path, change, seed)
        session.table(("table", "inserted", "updated", "deleted"), [(table, *counts) for table, counts in done.items()])
        session.answer([{"table": table, "inserted": i, "updated": u, "deleted": d} for table, (i, u, d) in done.items()])
        return
    with Progress(console=session.progress, disable=session.as_json or not session.progress.is_terminal) as bar:
        task = bar.add_task("writing rows", total=sample_rows(companies, rows, tables))
        written = create_sample(path, companies=companies, rows=rows, tables=tables, seed=seed,
                                progress=lambda rows: bar.update(task, advance=rows))
    session.say(f"{path}: {companies:,} companies, {len(written):,} tables, {sum(written.values()):,} rows{_of_the_system(path, written)}")
    session.answer({"path": path, "companies": companies, "tables": len(written), "rows": sum(written.values())})


def _of_the_system(path: Path, written: Mapping[str, int]) -> str:
    """How much of a sample takes no part in a migration, so that its numbers are those of an assessment."""
    from skylift.connectors import open_source
    from skylift.products.business_central import DYNAMICS_BC_LAST

    with closing(open_source(f"sqlite:///{path}?mode=ro")) as source:
        part = {found.table.name for found in DYNAMICS_BC_LAST.discover(source).tables}
    others = [rows for name, rows in written.items() if name not in part]
    return f"; of these {len(others):,} tables with {sum(others):,} rows are the system's own (versions, apps, users) and do not move"


@command("skylift setup --product DynamicsBCLast --source sqlite:///bc.db", target=True)
def setup(
    session: Session,
    product: Annotated[str, typer.Option(help="DynamicsBC, DynamicsBCLast or Custom, which is any other database.")],
    source: Annotated[str, typer.Option(metavar="URL", help="The source database; may be left out when it is known already.")] = "",
    lock: Annotated[bool | None, typer.Option("--lock/--no-lock", help="From the next run until the migration ends, only skylift's user "
                                              "writes to the replicated tables (PostgreSQL).")] = None,
) -> None:
    """Connect a source: read its companies, tables and apps; --target is kept with it. Calling again changes the set-up."""
    product = product_named(product)
    values: dict[str, Any] = {"product_id": product, "sql_server_type": SqlServerType.AZURE_SQL}     # without an agent
    if source:
        values["sql_connection_string"] = absolute_url(source)
    if lock is not None:
        values["lock_target"] = lock
    migration = session.migration
    known = migration.select(Setup, Query())
    done = migration.change_setup(known[0].id, values, lambda row: None) if known else migration.create_setup(values)
    session.say(f"{product} connected; state: {done.state}; target: {migration.target}")
    session.say(find_newest(session).details)
    show_companies(session)


@command("skylift companies --mark 'CRONUS International Ltd_' --create", target=True)
def companies(
    session: Session,
    mark: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Include this company in the next runs (repeatable).")] = None,
    mark_all: Annotated[bool, typer.Option("--mark-all", help="Include every company.")] = False,
    unmark: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Leave this company out (repeatable).")] = None,
    create: Annotated[bool, typer.Option("--create", help="Create the marked companies in the target and wait for it.")] = False,
) -> int | None:
    """List the companies of the source, choose which take part, and create them in the target."""
    find_setup(session)
    migration = session.migration
    found = list_companies(session)
    if both := {name.casefold() for name in mark or ()} & {name.casefold() for name in unmark or ()}:
        raise SetupError(f"company '{min(both)}' is to be marked and not to be", hint="choose one", code="Usage")
    wanted = {company.id: True for company in found} if mark_all else {}
    wanted |= {find_company(found, name).id: True for name in mark or ()}
    wanted |= {find_company(found, name).id: False for name in unmark or ()}
    for company in found:
        if company.id in wanted and company.replicate != wanted[company.id]:
            migration.change_company(company.id, {"replicate": wanted[company.id]}, lambda row: None)
    if create:
        if not any(company.replicate for company in list_companies(session)):
            raise StateError("no company is marked", hint="mark at least one: skylift companies --mark NAME --create", code="50003")
        try:
            migration.complete_setup(find_setup(session).id)    # the product's default mappings, and then the companies
        except StateError as error:
            if error.code != "CreatingCompanies":
                raise
            session.note("companies are being created already, going on with it")
        state = wait(session, lambda: find_setup(session).state, lambda state: state != MigrationState.CREATING_COMPANIES)
        session.say(f"state: {state}")
    show_companies(session)
    return FAILED if create and state == MigrationState.CREATION_FAILED else OK


@command("skylift run --company 'CRONUS International Ltd_' --table Customer", target=True)
def run(
    session: Session,
    kind: Annotated[Kind, typer.Option(help="normal: what changed since the last run; full: every table whole; "
                                            "diagnostic: check, write nothing.")] = Kind.NORMAL,
    failed: Annotated[bool, typer.Option("--failed", help="Only tables that have failed and were not copied since.")] = False,
    company: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this marked company and what all share "
                                                                           "(repeatable).")] = None,
    table: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this table, of each company; its whole name, or the one "
                                                                         "without app id (repeatable).")] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return as soon as the run is recorded; a coordinator works on it.")] = False,
) -> int:
    """Copy the marked companies and verify every table; goes on with a run that is under way. Exit code 1 if a table failed."""
    wanted = ReplicationType(kind.capitalize())
    scope = Scope(tuple(company or ()), tuple(table or ()), failed)
    try:
        started = session.migration.run_replication(kind=wanted, scope=scope)
    except StateError as error:
        joins = error.code == "RunInProgress" and not no_wait and scope == Scope()
        under_way = under_way_run(session, RunStatus.IN_PROGRESS) if joins else None
        if under_way is None:
            raise
        if wanted not in (ReplicationType.NORMAL, under_way.replication_type):
            raise StateError(f"a run of another kind ({under_way.replication_type.lower()}) is in progress",
                             hint="go on with it first: skylift run", code=error.code) from None
        session.note("a run is under way already, going on with it")
        started = under_way
    if no_wait:
        session.say(f"run {started.run_id} is recorded; skylift serve or skylift coordinate carries it out")
        session.answer(started)
        return OK
    return report_run(session, wait_for_run(session, started))


@command("skylift cancel --reason 'the line is needed'", target=True)
def cancel(
    session: Session,
    reason: Annotated[str, typer.Option(help="Kept with the run.")] = "",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return as soon as it is asked for; a coordinator ends the run.")] = False,
) -> None:
    """Stop the run that is in progress. What it has copied stays, and the next run goes on from there."""
    asked = session.migration.cancel_replication(reason=reason)
    ended = asked if no_wait else wait(session, lambda: session.migration.get(Run, asked.id), lambda run: run.status not in WORKING)
    session.say(f"{ended.status}: {ended.details}")
    session.answer({"state": find_setup(session).state, "run": ended})


@command("skylift status --watch")
def status(
    session: Session,
    watch: Annotated[bool, typer.Option("--watch", help="Stay until the run has ended.")] = False,
) -> int:
    """Where the migration stands: its state, the newest run, failed tables. Exit code 1 if the newest run failed."""
    newest = newest_run(session)
    if watch and newest:
        said = ""
        with meter(session) as show:
            while newest.status in WORKING:
                show(newest, tables_of(session, newest))
                alone = unattended(session, newest)
                if alone and alone != said:
                    session.note(alone)
                said = alone
                time.sleep(1)
                newest = session.migration.get(Run, newest.id)
    known = session.migration.select(Setup, Query())
    session.say(f"state: {known[0].state if known else MigrationState.NOT_SET_UP}")
    if newest is None:
        session.answer({"state": known[0].state if known else MigrationState.NOT_SET_UP, "run": None, "tables": []})
        return OK
    return report_run(session, newest)


@command("skylift reset --yes")
def reset(
    session: Session,
    yes: Annotated[bool, typer.Option("--yes", help="Needed where a finished run waits for its upgrade: the upgrade then waits "
                                                "for another run.")] = False,
) -> None:
    """Forget how far the tables are copied, so that the next run copies them whole. No data is deleted."""
    newest = find_newest(session)
    if find_setup(session).state is MigrationState.UPGRADE_PENDING and not yes:
        raise StateError("everything is copied and waits for its upgrade; after a reset it has to be copied again", code="NotConfirmed",
                         hint="if that is meant: skylift reset --yes")
    session.migration.reset_cloud_data(newest.id)
    session.say("the next run copies every table whole")
    session.answer({"state": find_setup(session).state})


def product_named(name: str) -> str:
    """The id of a product, however it is spelt."""
    from skylift.products.registry import PRODUCTS

    return next((id for id in PRODUCTS if id.casefold() == name.casefold()), name)


def list_companies(session: Session) -> list[SourceCompany]:
    return session.migration.select(SourceCompany, Query(order=(Order(Attribute("name")),)))


def find_company(found: list[SourceCompany], name: str) -> SourceCompany:
    hits = [company for company in found if name.casefold() in (company.name.casefold(), company.display_name.casefold())]
    if not hits:
        raise NotFound(f"the source has no company '{name}'", hint=f"it has: {', '.join(c.name for c in found) or 'none yet'}",
                       code="CompanyNotFound")
    return hits[0]


def show_companies(session: Session) -> None:
    found = list_companies(session)
    session.table(("company", "display name", "marked", "created", "initialised", "GB"),
                  [(c.name, c.display_name, "yes" if c.replicate else "no", "yes" if c.created else "no", c.init_status,
                    round(float(c.estimated_size), 3)) for c in found])
    session.answer(found)


def find_setup(session: Session) -> Setup:
    known = session.migration.select(Setup, Query())
    if not known:
        raise StateError("there is no set-up yet", hint="connect a source first: skylift setup --product P --source URL", code="NotSetUp")
    return known[0]


def find_newest(session: Session) -> Run:
    find_setup(session)
    newest = newest_run(session)
    if newest is None:
        raise StateError("no source was connected yet", hint="connect one first: skylift setup --product P --source URL", code="NotSetUp")
    return newest


def under_way_run(session: Session, status: RunStatus) -> Run | None:
    """The run of that status, for a command that joins it; there is one at most."""
    runs = session.migration.select(Run, Query(where=equals("status", status)))
    return runs[0] if runs else None


def say_state(session: Session) -> None:
    state = find_setup(session).state
    session.say(f"state: {state}")
    session.answer({"state": state})


def report_run(session: Session, run: Run, **more: Any) -> int:
    """Show a run, its companies and its failed tables; the exit code that it deserves."""
    tables = tables_of(session, run)
    failed = [table for table in tables if table.status is TableStatus.FAILED]
    outcome = f"{run.status}, but not every table" if failed and run.status is not RunStatus.FAILED else run.status
    session.say(f"{outcome}: {Tally.of(tables) if tables else run.details}")
    if tables:
        session.table(("company", "tables", "rows", "copied", "inserted", "updated", "deleted"), [
            (company or "(all companies)", *_sums([table for table in tables if table.company_name == company]))
            for company in sorted({table.company_name for table in tables})])
        session.say(run.details)
    if kept := _preserved(session, tables):
        session.say(kept)
    if alone := unattended(session, run):
        session.say(alone)
    session.table(("failed table", "error"), _errors(failed))
    session.answer({"state": find_setup(session).state, "run": run, "tables": tables, **more})
    return FAILED if failed or run.status in (RunStatus.FAILED, RunStatus.UPGRADE_FAILED) else OK


def _preserved(session: Session, tables: list[RunTableProgress]) -> str:
    """Why less rows were copied than the source has; '' if no table keeps the target's."""
    kept = {switch.table_name for switch in session.migration.select(TableSwitch, Query(where=equals("preserve", True)))}
    names = [table.table_name for table in tables if not table.company_name and table.table_name in kept and table.mode != "diagnostic"]
    return f"preserved, so that only rows are copied that the target lacks: {', '.join(names)}" if names else ""


def _errors(failed: list[RunTableProgress]) -> list[tuple[str, str]]:
    """The failed tables and why; where many say the same (a run that was cancelled), the first and how many more."""
    alike: dict[str, list[str]] = {}
    for table in failed:
        alike.setdefault(table.errors, []).append(f"{table.company_name} {table.table_name}".strip())
    return [(name, error) for error, names in alike.items()
            for name in (names if len(names) <= ALIKE else [f"{names[0]} and {len(names) - 1:,} more"])]


def _sums(tables: list[RunTableProgress]) -> tuple[int, ...]:
    return (len(tables), *(sum(getattr(table, name) for table in tables)
                           for name in ("total_records", "records_copied", "inserted", "updated", "deleted")))
