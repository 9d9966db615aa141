"""What every verb shares: one write transaction that begins with the migration's row, moves it by the transition tables, and logs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Self, TypeVar
from uuid import UUID, uuid4

import sqlalchemy as sa

from skylift.errors import Conflict, NotFound, StateError
from skylift.migration.changes import note
from skylift.migration.repeating import Request, keep, refuse_repeated
from skylift.migration.signals import of_event
from skylift.model import NO_ID, Run, Setup
from skylift.runs import ALLOWED, MigrationState, ReplicationType, RunStatus, TableStatus, advance
from skylift.settings import Settings
from skylift.store import Store, to_row
from skylift.store.secrets import SecretBox
from skylift.store.tables import TABLES, companies, events, migration, run_tables, runs
from skylift.telemetry import Signal, telemetry_of

T = TypeVar("T")
IfMatch = Callable[[Any], None]      # called with the current row; raises Conflict if it is not what the caller has seen

# Why a verb is refused in a state: sentence, hint, code. Source: behaviour.md §3, §4.3.
_REFUSED = {
    MigrationState.NOT_SET_UP: ("the migration is not set up", "connect a source first (skylift setup; API: POST setupCloudMigration)",
                                "NotSetUp"),
    MigrationState.AWAITING_AGENT: ("the migration waits for its integration runtime",
                                    "set it up again with runtimeName, or with sqlServerType AzureSQL", "AwaitingAgent"),
    MigrationState.ENABLED: ("no company has been created yet", "mark companies and create them (skylift companies --mark NAME --create; "
                             "API: replicate = true, completeSetup)", "SetupNotComplete"),
    MigrationState.CREATING_COMPANIES: ("companies are being created", "wait until it is done; if nobody works on it, "
                                        "skylift companies --create or skylift coordinate goes on with it", "CreatingCompanies"),
    MigrationState.CREATION_FAILED: ("creating companies failed: {creation_error}", "mend that and create the companies again "
                                     "(skylift companies --create)", "CreationFailed"),
    MigrationState.READY: ("there is nothing to upgrade", "run the replication first (skylift run; API: runReplication)",
                           "NothingToUpgrade"),
    MigrationState.REPLICATING: ("a replication run is in progress", "wait until it has ended, or cancel it (skylift cancel); "
                                 "if nobody works on it, skylift run or skylift coordinate goes on with it", "RunInProgress"),
    MigrationState.UPGRADE_PENDING: ("the data upgrade is pending", "run the data upgrade first (skylift upgrade; API: runDataUpgrade)",
                                    "UpgradePending"),
    MigrationState.UPGRADING: ("the data upgrade is in progress", "wait until it has ended; if nobody works on it, "
                               "skylift upgrade or skylift coordinate goes on with it", "UpgradeInProgress"),
    MigrationState.UPGRADE_FAILED: ("the data upgrade has failed", "run it again (skylift upgrade), or reset the cloud data "
                                    "(skylift reset) and replicate everything anew", "UpgradeFailed"),
    MigrationState.UPGRADED: ("the data has been upgraded; replicating again would mix raw rows with upgraded ones",
                              "complete the migration (skylift complete; API: completeCloudMigration)", "Upgraded"),
    MigrationState.DISABLED: ("the migration is disabled", "set it up again (skylift setup, then skylift "
                             "companies --create; API: PATCH setupCloudMigration, completeSetup)", "50016"),
}


class Service:
    """The store, the settings and who is acting. Cheap to copy; safe to use from several threads."""

    def __init__(self, store: Store, settings: Settings, actor: str = "system") -> None:
        self.store = store
        self.settings = settings
        self.actor = actor
        self.actor_id = NO_ID
        self.request: Request | None = None      # that is under way, where its caller has named it
        self.box = SecretBox(settings.home)
        self.telemetry = telemetry_of(settings)
        self._ensure_environment()

    def as_actor(self, name: str, id: UUID = NO_ID) -> Self:
        """The same service, acting for `name` in the event log, and for whom that `id` is."""
        other = copy.copy(self)
        other.actor, other.actor_id = name, id
        return other

    def once(self, key: str, digest: str) -> Self:
        """The same service, for a request that its caller has named. Raises Repeated if that was carried out before."""
        other = copy.copy(self)
        other.request = Request(f"{self.actor_id} {self.actor}", key, digest)
        with self.store.read() as connection:
            refuse_repeated(connection, other.request)
        return other

    @contextmanager
    def verb(self, name: str = "", *, commits: bool = False, once: bool = False) -> Iterator[Verb]:
        """The transaction of one verb. Raises StateError at once if the migration's state does not permit it (behaviour.md §4.3).

        `commits`: nothing that follows takes it back, also where several verbs are one transaction (odata.md B3).
        `once`: to do it again would do something else; raises Repeated for a request that its caller has named before.
        """
        with self.store.write() as connection:
            verb = Verb(connection, self.actor, self.actor_id, tells=self.telemetry.on)
            if once and self.request:
                refuse_repeated(connection, self.request)
            if name:
                verb.permit(name)
            yield verb
            if once and self.request:
                keep(connection, self.request, verb.run_id, verb.now)
        if verb.signals:
            self.store.then(lambda: self.telemetry.emit(verb.signals))
        if commits:
            self.store.commit()

    def _ensure_environment(self) -> None:
        """A new environment has a migration that is not set up and one company of its own."""
        query = sa.select(migration.c.one)
        with self.store.read() as connection:
            if connection.execute(query).first():
                return
        with self.store.write() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.text("lock table migration in exclusive mode"))
            if connection.execute(query).first():
                return
            now = datetime.now(UTC)
            connection.execute(migration.insert().values(one=1, id=uuid4(), consumer=uuid4()))
            connection.execute(companies.insert().values(company_row(self.settings.company, self.settings.company, now)))


class Verb:
    """One verb under way: its transaction, the migration's row as it stands, and the only ways to change a state."""

    def __init__(self, connection: sa.Connection, actor: str, actor_id: UUID = NO_ID, *, tells: bool = False) -> None:
        self.connection = connection
        self.actor, self.actor_id = actor, actor_id
        self.tells = tells             # whether anybody is told of what happens here
        self.signals: list[Signal] = []    # that are told once it is committed
        self.run_id: UUID | None = None    # of the run that it has added
        self.now = datetime.now(UTC)
        self.row = get_migration(connection, lock=True)

    @property
    def state(self) -> MigrationState:
        return self.row["state"]

    def permit(self, verb: str) -> None:
        if self.state not in ALLOWED[verb]:
            raise self.refusal()

    def refusal(self) -> StateError:
        sentence, hint, code = _REFUSED[self.state]
        return StateError(sentence.format(**self.row), hint=hint, code=code)

    def move(self, event: str, why: str = "", **values: Any) -> None:
        """Move the migration by `event` and set columns of its row. Raises StateError if its state does not know the event."""
        before, after = self.state, advance(self.state, event)
        note(self.connection, Setup, [self.row["id"]], created=before is MigrationState.NOT_SET_UP)
        done = self.connection.execute(migration.update().where(migration.c.state == before).values(state=after, **values))
        if done.rowcount != 1:
            raise Conflict("the migration was changed by somebody else")
        self.row.update(values, state=after)
        self.log("migration", event, before, after, why, about=why)

    def set(self, **values: Any) -> None:
        """Set columns of the migration's row other than its state."""
        self.connection.execute(migration.update().values(**values))
        self.row.update(values)

    def move_run(self, run: Run, event: str, why: str = "", **values: Any) -> None:
        after = advance(run.status, event)
        note(self.connection, Run, [run.id])
        done = self.connection.execute(
            runs.update().where(runs.c.id == run.id, runs.c.status == run.status).values(status=after, **values))
        if done.rowcount != 1:
            raise Conflict(f"run {run.run_id} was changed by somebody else")
        self.log(f"run {run.run_id}", event, run.status, after, why, about=run)

    def after(self, run: Run) -> datetime:
        """Now, but not before the run began (a new row's start is set behind that of the newest one)."""
        return max(self.now, run.started_at)

    def add_run(self, status: RunStatus, details: str, source: str, kind: ReplicationType = ReplicationType.NORMAL,
                event: str = "run", scope: str = "") -> Run:
        """A new newest row of the status list; ended at once unless it is InProgress.

        The rows of life-cycle events have an upper-case run id, those of the engine a lower-case one (behaviour.md §13.13).
        """
        newest = self.connection.scalar(sa.select(sa.func.max(runs.c.started_at)))
        started_at = max(self.now, newest + timedelta(microseconds=1)) if newest else self.now
        running = status is RunStatus.IN_PROGRESS
        run = Run(uuid4(), str(uuid4()) if running else str(uuid4()).upper(), started_at, None if running else started_at,
                  kind, status, source, details, scope)
        self.run_id = run.id
        note(self.connection, Run, [run.id], created=True)
        self.connection.execute(runs.insert().values({c.name: getattr(run, c.name) for c in runs.columns if hasattr(run, c.name)}))
        self.log(f"run {run.run_id}", event, "", status, details, about=run)
        return run

    def log(self, subject: str, event: str, before: str = "", after: str = "", why: str = "", about: Any = None) -> None:
        """A row of the event log, and a signal for those who watch; `about`: as `of_event` of signals.py takes it."""
        self.connection.execute(events.insert().values(at=self.now, actor=self.actor, actor_id=self.actor_id, subject=subject, event=event,
                                                       from_state=str(before), to_state=str(after), why=why))
        if self.tells:
            self.signals.append(of_event(self, subject, event, str(before), str(after), about))


def get_migration(connection: sa.Connection, *, lock: bool = False) -> dict[str, Any]:
    """The migration's row; `lock` keeps others from moving it until the transaction ends (SQLite's writers are alone anyway)."""
    query = sa.select(migration)
    return dict(connection.execute(query.with_for_update() if lock else query).mappings().one())


def get_row(connection: sa.Connection, kind: type[T], key: UUID | str) -> T:
    """The row of a model class by its key, without a run's counts. Raises NotFound."""
    table = TABLES[kind]
    row = connection.execute(sa.select(table).where(table.c.id == key)).mappings().first()
    if row is None:
        raise NotFound(f"there is no {kind.__name__} with the key {key}")
    return to_row(kind, row)


def count_tables(connection: sa.Connection, run_id: str) -> dict[TableStatus, int]:
    """How many tables of a run have which status."""
    rows = connection.execute(sa.select(run_tables.c.status, sa.func.count()).where(run_tables.c.run_id == run_id)
                              .group_by(run_tables.c.status))
    return dict(rows.all())


def newest_run(connection: sa.Connection, *where: sa.ColumnElement[bool]) -> Run | None:
    row = connection.execute(sa.select(runs).where(*where).order_by(runs.c.started_at.desc(), runs.c.id).limit(1)).mappings().first()
    return to_row(Run, row) if row else None


def company_row(name: str, display_name: str, now: datetime) -> Mapping[str, Any]:
    nobody = UUID(int=0)
    return {"id": uuid4(), "name": name, "display_name": display_name, "created_at": now, "modified_at": now,
            "created_by": nobody, "modified_by": nobody}
