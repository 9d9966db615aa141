"""Assessment: what stands in the way of a migration, how large it is and how long it will take. Nothing is written to either side.

Whoever is at the command line assesses in that very process: reading leaves nothing to hand over, and findings are recorded in one
transaction at the end, so an assessment that is killed has not happened. Through the API the wish is recorded, and the coordinator
does it when there is no run to do. Source: behaviour.md §5.7, §5.8, §11, §12.6.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa

from skylift.connectors import check_apart, look_at_source, look_at_target
from skylift.connectors.looks import Remark, SourceLook, TargetLook
from skylift.engine.assess import Found, about, look, measured
from skylift.engine.census import CountingLosses, scan
from skylift.engine.pace import Estimate, estimate
from skylift.engine.plan import Plan, lay_out, of_companies
from skylift.errors import CopyError, NotFound, SetupError, SkyliftError, StateError, Transient, redact
from skylift.losses import Losses
from skylift.migration.blocking import NEVER_ACCEPTED, own_tables
from skylift.migration.changes import note
from skylift.migration.mappings import all_mappings
from skylift.migration.service import Service, Verb, get_migration, get_row
from skylift.migration.verification import switched
from skylift.model import Assessment, CopyTask, Finding
from skylift.products import Product
from skylift.products.naming import is_called
from skylift.products.registry import find_product
from skylift.runs import ALLOWED, AssessmentStatus, MigrationState, Severity
from skylift.store import to_row
from skylift.store.tables import assessments, findings, registry, source_companies

# Errors that say what is wrong with the source or the target itself: they are findings. Others mean that nobody could look.
FINDINGS = {"50001", "50003", "50017", "50018", "50021", "NameCollision", "CompanyName", "NotBusinessCentral", "NoTables", "Permission",
             "ReadOnly"}
TAKEOVERS = 3                      # coordinators that an assessment may end
LOOK_S = 0.5                       # between two looks whether a run waits
AT_ONCE = 500                      # rows that one statement names
TELL_S = 1.0                       # between two writings of the progress

Tell = Callable[[int, int], None]  # rows read, of how many


@dataclass(frozen=True, slots=True)
class Sides:
    """What is assessed."""

    product: Product
    source_url: str
    target_url: str


@dataclass(frozen=True, slots=True)
class Size:
    """Of a company, '' = of what all companies share; estimated."""

    company: str
    tables: int
    rows: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an assessment has come to. `keys`: the (company, table) that it was about."""

    sides: Sides
    scan: bool
    found: list[Found]
    keys: frozenset[tuple[str, str]]
    estimate: Estimate
    sizes: list[Size]
    source: str                    # what each side is, with its version
    target: str
    read_rows: int = 0             # by a scan

    @property
    def details(self) -> str:
        """A sentence or two."""
        if not self.keys:
            return f"{self.source} to {self.target}: nothing could be looked at beyond this."
        how = "every row was read" if self.scan else "catalogues and statistics were read"
        if not self.estimate.duration_s:
            return f"{self.source} to {self.target}: {how}."
        loaded = "read, loaded into a scratch table and compared" if self.estimate.loaded else "read; loading them was not measured"
        return (f"{self.source} to {self.target}: {how}. The first run will take about {spell(self.estimate.duration_s)}, "
                f"told from {self.estimate.sampled_rows:,} rows that were {loaded}"
                f"{f', and {spell(self.estimate.setup_s)} for what feeds changes' if self.estimate.setup_s >= 1 else ''}.")


class AssessmentVerbs(Service):
    def ask_assessment(self, scan: bool = False) -> Assessment:
        """Have the coordinator assess the migration, with `scan` by reading every row. Asked twice, it does the deeper one."""
        with self.verb(once=True) as verb:
            verb.permit("assess")
            row = _row(verb.connection)
            if row and row.status is AssessmentStatus.RUNNING:
                raise StateError("an assessment is in progress", hint="wait until it has ended", code="AssessmentInProgress")
            waiting = row is not None and row.status is AssessmentStatus.ASKED
            _put(verb.connection, status=AssessmentStatus.ASKED, scan=scan or bool(waiting and row and row.scan), asked_by=self.actor,
                 progress="", details="", attempts=0)
            verb.log("assessment", "ask", why="every row" if scan else "")
            found = _row(verb.connection)
            assert found is not None
            return found

    def accept_finding(self, id: UUID, reason: str) -> Finding:
        """Accept what was found: it blocks nothing, as long as an assessment finds the same. Raises SetupError without a reason."""
        with self.verb(once=True) as verb:
            _accept(verb, [get_row(verb.connection, Finding, id)], reason)
            return get_row(verb.connection, Finding, id)

    def accept_findings(self, name: str, reason: str) -> list[Finding]:
        """Accept every finding that goes by a name CODE[:TABLE[.COLUMN]]. Raises NotFound if none does."""
        with self.verb() as verb:
            known = [to_row(Finding, row) for row in verb.connection.execute(sa.select(findings)).mappings()]
            if not (hits := [finding for finding in known if _is_named(finding, name)]):
                raise NotFound(f"nothing was found that is called '{name}'", code="FindingNotFound",
                               hint="write CODE, CODE:TABLE or CODE:TABLE.COLUMN; skylift assess --show lists the findings")
            _accept(verb, hits, reason)
            return [get_row(verb.connection, Finding, finding.id) for finding in hits]


# ------------------------------------------------------------------ looking


def sides_of(service: Service) -> Sides:
    """What is set up. Raises StateError before, and while a run or an upgrade works on it."""
    with service.verb() as verb:
        if verb.state in (MigrationState.REPLICATING, MigrationState.UPGRADING):
            raise verb.refusal()
        row = verb.row
    if not row["source_url"] or not row["target_url"]:
        raise StateError("no source is connected yet", code="NotSetUp", hint="name it: skylift assess --product P --source URL")
    return Sides(find_product(row["product_id"]), service.box.open(row["source_url"]), service.box.open(row["target_url"]))


def assess(service: Service, sides: Sides, *, with_scan: bool = False, allow_scratch: bool = False,
           stop: Callable[[], bool] = lambda: False, tell: Tell = lambda rows, of: None) -> Outcome | None:
    """Look at both sides; None if stopped. Raises SkyliftError where one of them cannot be looked at."""
    check_apart(sides.source_url, sides.target_url)
    accepted = Losses(service.settings.accept)
    try:
        with closing(look_at_source(sides.source_url, accepted)) as source, closing(look_at_target(sides.target_url, accepted)) as target:
            whole, shared, version = _plan(service, sides, source, target)
            tasks, found = measured(whole.tasks, source)
            found += shared
            found += look(tasks, source, target)
            found += _strangers(service, tasks, target, sides.target_url)
            found += [Found(Remark(item.code, Severity.WARNING, item.why), item.company, item.table_name) for item in whole.left_out]
            with target.scratch(allow_scratch) as scratch:
                told = estimate(tasks, source.source, target, scratch, service.settings.workers, _setup_s(tasks, source))
            servers = source.server + (f" with application version {version}" if version else ""), target.server
    except (SetupError, CopyError) as error:            # a CopyError is about the tables in which the source keeps its catalogue
        if isinstance(error, SetupError) and error.code not in FINDINGS:
            raise
        return Outcome(sides, with_scan, [Found(Remark(error.code, Severity.BLOCKING, error.message, error.hint))], frozenset(),
                       Estimate(0, 0, 0, 0.0), [], redact(sides.source_url), redact(sides.target_url))
    keys = frozenset((task.company, task.table_name) for task in whole.tasks)
    outcome = Outcome(sides, with_scan, _merged(found), keys, told, _sizes(tasks), *servers)
    return _scanned(service, outcome, tasks, stop, tell) if with_scan else outcome


def _scanned(service: Service, outcome: Outcome, tasks: list[CopyTask], stop: Callable[[], bool], tell: Tell) -> Outcome | None:
    """The outcome once every row has been read, all accepted changes made and counted: the columns' types are those that go with that."""
    losses, sides, total = CountingLosses(), outcome.sides, outcome.estimate.rows
    with closing(look_at_source(sides.source_url, losses)) as source, closing(look_at_target(sides.target_url, losses)) as target:
        tables = {table.path: table for table in source.source.tables()}
        same = [replace(task, table=tables[task.table.path]) for task in tasks if task.table.path in tables]
        done = scan(same, source.source, target, accepted=Losses(service.settings.accept).accepted,
                    codes=sides.product.id.startswith("DynamicsBC"), workers=service.settings.workers, stop=stop,
                    tell=lambda rows: tell(rows, total))
    if done is None:
        return None
    known = {(item.remark.code, item.company, item.table_name, item.remark.column) for item in done.found}
    kept = [item for item in outcome.found if (key := (item.remark.code, item.company, item.table_name, item.remark.column)) not in known
            and not (item.remark.code == "50011" and key[1:] in done.harmless)]
    return replace(outcome, found=_merged([*kept, *done.found]), read_rows=done.rows)


def _setup_s(tasks: list[CopyTask], source: SourceLook) -> float:
    tables = {task.table.path: task.table for task in tasks}
    return sum(forecast.setup_s for forecast in source.feeds([*tables.values()]).values())


def _plan(service: Service, sides: Sides, source: SourceLook, target: TargetLook) -> tuple[Plan, list[Found], str]:
    """What would be copied: of the marked companies, or of all where none is marked or there is another set-up; the source's notes,
    and the application's version.
    """
    catalogue = sides.product.discover(source.source)
    with service.store.read() as connection:
        row = get_migration(connection)
        mine = bool(row["source_url"]) and (service.box.open(row["source_url"]), row["product_id"]) == (sides.source_url, sides.product.id)
        mappings = all_mappings(connection) if mine else []
        marked = connection.scalars(sa.select(source_companies.c.name).where(source_companies.c.replicate)).all() if mine else []
        switches = {(row.company_name, row.table_name): row for row in connection.execute(sa.select(registry))} if mine else {}
    preserved = {(table.company, table.table_name) for table in catalogue.tables if table.preserve}
    whole = of_companies(lay_out(catalogue, mappings, source.source.tables, target.max_name_bytes),
                         marked or [company.name for company in catalogue.companies])
    found = [Found(Remark("Note" if not text[:5].isdecimal() else text[:5], Severity.WARNING, text.removeprefix(f"{text[:5]}: ")))
             for text in (*catalogue.notes, *source.source.notes())]
    return replace(whole, tasks=switched(whole.tasks, switches, preserved)), found, catalogue.version


def _strangers(service: Service, tasks: list[CopyTask], target: TargetLook, target_url: str) -> list[Found]:
    """Tables that a run would replace although only another migration has copied them."""
    with service.store.read() as connection:
        own = own_tables(connection, target_url)
    tasks = [task for task in tasks if (task.company, task.table_name) not in own]
    held = target.states()
    standing = target.standing([task.target for task in tasks if task.target in held])
    return [about(task, Remark("TargetInUse", Severity.BLOCKING, "another migration has copied a table to its place in the target, and the "
                               "run refuses to replace that", "name another target, or drop the table there if its rows are not "
                               "needed")) for task in tasks if task.target in standing]


def _merged(found: Iterable[Found]) -> list[Found]:
    """One of each code, table and column: several that differ in words become one."""
    merged: dict[tuple[str, str, str, str], Found] = {}
    for item in found:
        key = (item.remark.code, item.company, item.table_name, item.remark.column)
        if other := merged.get(key):
            texts = ["; ".join(dict.fromkeys(filter(None, pair))) for pair in ((other.remark.message, item.remark.message),
                                                                             (other.remark.fix, item.remark.fix))]
            severity = min(other.remark.severity, item.remark.severity, key=list(Severity).index)
            item = replace(other, remark=replace(other.remark, severity=severity, message=texts[0], fix=texts[1]))
        merged[key] = item
    return list(merged.values())


def _sizes(tasks: Iterable[CopyTask]) -> list[Size]:
    sizes: dict[str, Size] = {}
    for task in tasks:
        so_far = sizes.get(task.company, Size(task.company, 0, 0, 0))
        sizes[task.company] = Size(task.company, so_far.tables + 1, so_far.rows + (task.table.rows or 0),
                                   so_far.size_bytes + (task.table.size_bytes or 0))
    return sorted(sizes.values(), key=lambda size: size.company)


# ------------------------------------------------------------------ keeping


def record(service: Service, outcome: Outcome, check: Callable[[sa.Connection], None] = lambda connection: None) -> list[Finding]:
    """Put what was found in the place of what was found before, and return it.

    What somebody has accepted stays accepted where it is found again, no worse and no more of it. What only a scan finds stays when
    catalogues alone were read, as long as its table takes part.
    """
    with service.verb() as verb:
        check(verb.connection)
        connection, sides = verb.connection, outcome.sides
        place = {"product_id": sides.product.id, "source": redact(sides.source_url), "target": redact(sides.target_url)}
        before = _row(connection)
        same_sides = before is not None and all(getattr(before, name) == value for name, value in place.items())
        known = {_key(row): row for row in (to_row(Finding, row) for row in connection.execute(sa.select(findings)).mappings())}
        kept = {key: row for key, row in known.items() if same_sides and not outcome.scan and row.scanned and key[1:3] in outcome.keys}
        rows = [*kept.values()]
        for item in outcome.found:
            new = Finding(uuid4(), item.remark.code, item.remark.severity, item.company, item.table_name, item.remark.column,
                          item.remark.count, redact(item.remark.message), redact(item.remark.fix), verb.now, scanned=item.scanned)
            if (key := _key(new)) in kept:
                continue
            if (old := known.get(key)) and same_sides:
                new = replace(new, id=old.id)
                if old.accepted_at and _is_same(old, new):
                    new = replace(new, accepted_by=old.accepted_by, accepted_at=old.accepted_at, why=old.why)
                if replace(new, found_at=old.found_at) == old:
                    new = old
            rows.append(new)
        _exchange(connection, list(known.values()), rows)
        told = outcome.estimate
        _put(connection, status=AssessmentStatus.COMPLETED, scan=outcome.scan, progress="", details=outcome.details, **place,
             tables=told.tables, rows=told.rows, size_bytes=told.size_bytes, duration_s=told.duration_s, ended_at=verb.now,
             asked_by=before.asked_by if before and before.status is AssessmentStatus.RUNNING else service.actor)
        open_ = sum(row.severity is Severity.BLOCKING and row.accepted_at is None for row in rows)
        verb.log("assessment", "complete", why=f"{len(rows)} findings, {open_} of them block")
        return rows


def _exchange(connection: sa.Connection, before: list[Finding], after: list[Finding]) -> None:
    """Put findings in the place of others; what stays as it was is not touched, so that nobody is told that it had changed."""
    same = {row.id for row in before} & {row.id for row in after}
    unchanged = {row.id for row in set(before) & set(after)}
    gone, changed = [row.id for row in before if row.id not in same], [row for row in after if row.id in same - unchanged]
    new = [row for row in after if row.id not in same]
    for ids, what in ((gone, {"deleted": True}), ([row.id for row in changed], {}), ([row.id for row in new], {"created": True})):
        note(connection, Finding, ids, **what)
    for some in (gone[i:i + AT_ONCE] for i in range(0, len(gone), AT_ONCE)):
        connection.execute(findings.delete().where(findings.c.id.in_(some)))
    for row in changed:
        connection.execute(findings.update().where(findings.c.id == row.id).values(asdict(row)))
    if new:
        connection.execute(findings.insert(), [asdict(row) for row in new])


def _is_same(old: Finding, new: Finding) -> bool:
    """Whether what was accepted is what is found now: as severe, no more of it, in the same words but for numbers."""
    words = ["".join(char for char in row.message if not char.isdigit() and char not in ",.") for row in (old, new)]
    return old.severity is new.severity and new.count <= old.count and words[0] == words[1]


def _key(finding: Finding) -> tuple[str, str, str, str]:
    return finding.code, finding.company_name, finding.table_name, finding.column_name


def _row(connection: sa.Connection) -> Assessment | None:
    row = connection.execute(sa.select(assessments)).mappings().first()
    return to_row(Assessment, row) if row else None


def _put(connection: sa.Connection, **values: Any) -> None:
    if connection.execute(assessments.update().values(**values)).rowcount == 0:
        connection.execute(assessments.insert().values(id=uuid4(), **values))


def _accept(verb: Verb, found: list[Finding], reason: str) -> None:
    if not reason.strip():
        raise SetupError("a reason is missing", hint="say why it may stay as it is (skylift assess --accept NAME --reason TEXT)",
                         code="ReasonMissing")
    if refused := next((finding for finding in found if finding.code in NEVER_ACCEPTED), None):
        raise SetupError(f"{refused.code} cannot be accepted: a run refuses it all the same", hint=refused.fix, code="NotAcceptable")
    ids = [finding.id for finding in found]
    note(verb.connection, Finding, ids)
    verb.connection.execute(findings.update().where(findings.c.id.in_(ids)).values(
        accepted_by=verb.actor, accepted_at=verb.now, why=redact(reason)))
    for finding in found:
        place = f"{finding.company_name} {finding.table_name}".strip() + (f".{finding.column_name}" if finding.column_name else "")
        verb.log(f"finding {finding.code} {place}".strip(), "accept", why=redact(reason))


def _is_named(finding: Finding, name: str) -> bool:
    code, _, rest = name.partition(":")
    if code.casefold() != finding.code.casefold():
        return False
    if not rest:
        return True
    table, dot, column = rest.rpartition(".")
    return (finding.table_name != "" and is_called(finding.table_name, rest)) or (
        dot != "" and is_called(finding.table_name, table) and column.casefold() == finding.column_name.casefold())


def spell(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# ------------------------------------------------------------------ the coordinator's part


def is_waiting(connection: sa.Connection) -> bool:
    """Whether the coordinator has an assessment to do, or to do again because the one before has not come to its end."""
    row = _row(connection)
    return row is not None and row.status in (AssessmentStatus.ASKED, AssessmentStatus.RUNNING) and (
        get_migration(connection)["state"] in ALLOWED["assess"])


def carry_out(service: Service, stop: Callable[[], bool], check: Callable[[sa.Connection], None]) -> None:
    """Assess as asked. When stopped, or when a run waits, it is left to be done again: nothing of it has been recorded."""
    with service.store.write() as connection:
        check(connection)
        row = connection.execute(sa.select(assessments)).mappings().one()
        attempts = row["attempts"] + 1
        began = row["started_at"] if attempts > 1 else datetime.now(UTC)
        _put(connection, status=AssessmentStatus.RUNNING, attempts=attempts, started_at=began)
    try:
        if attempts > TAKEOVERS:
            raise SkyliftError(f"{attempts - 1} coordinators have ended while assessing", hint="the coordinator's log says why",
                               code="Takeovers")
        outcome = assess(service, sides_of(service), with_scan=row["scan"], stop=_patience(service, stop), tell=_telling(service, check))
    except SkyliftError as error:
        if error.code == "Store":
            raise
        with service.verb() as verb:
            check(verb.connection)
            _put(verb.connection, status=AssessmentStatus.FAILED, details=redact(str(error)), progress="", ended_at=verb.now)
            verb.log("assessment", "fail", why=redact(str(error)))
        return
    if outcome is not None:
        record(service, outcome, check)
    elif not stop():
        with service.store.write() as connection:
            check(connection)
            _put(connection, status=AssessmentStatus.ASKED, progress="", attempts=0)


def _patience(service: Service, stop: Callable[[], bool]) -> Callable[[], bool]:
    """Stops also when something else is to be done."""
    looked, waits = time.monotonic(), False

    def stopping() -> bool:
        nonlocal looked, waits
        if not waits and time.monotonic() - looked >= LOOK_S:
            looked = time.monotonic()
            with suppress(Transient), service.store.read() as connection:
                waits = get_migration(connection)["state"] not in ALLOWED["assess"]
        return waits or stop()

    return stopping


def _telling(service: Service, check: Callable[[sa.Connection], None]) -> Tell:
    written = time.monotonic()

    def tell(rows: int, of: int) -> None:
        nonlocal written
        if time.monotonic() - written < TELL_S:
            return
        written = time.monotonic()
        with suppress(Transient), service.store.write() as connection:
            check(connection)
            _put(connection, progress=f"{rows:,} of about {of:,} rows read")

    return tell
