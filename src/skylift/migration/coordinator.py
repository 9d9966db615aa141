"""The coordinator: the one process that does the work which verbs ask for. Whoever holds the lease is it; others stand by."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import sqlalchemy as sa

from skylift.engine.warm import warm_up
from skylift.errors import SkyliftError, Transient
from skylift.migration import assessment
from skylift.migration.companies import create_marked, initialize_scheduled
from skylift.migration.delivery import deliver
from skylift.migration.figures import Figures
from skylift.migration.lease import COORDINATOR, Lease, LeaseLost, pause, process
from skylift.migration.replication import fail_run
from skylift.migration.runner import is_cancelled, replicate
from skylift.migration.service import Service, get_migration, newest_run
from skylift.migration.upgrade import end_upgrade, upgrade
from skylift.migration.validation import pending
from skylift.migration.validator import fail, go_through
from skylift.model import Run, Validation
from skylift.runs import MigrationState, RunStatus
from skylift.settings import Settings
from skylift.store import Store, leases, open_store
from skylift.store.tables import runs, source_companies, validations

PARENT = "SKYLIFT_PARENT_PID"     # set for a child: it ends when that process does
TRIES = 5                         # of a run that fails for a passing reason
TAKEOVERS = 100                   # coordinators that a run may outlive without moving on
RESTART_S = 1.0

_log = logging.getLogger("skylift.coordinator")


def coordinate(store: Store, settings: Settings, stop: Callable[[], bool], patience_s: float = math.inf) -> None:
    """Do what there is to do, as long as `stop()` is false and whenever no other coordinator holds the lease.

    When stopped in the middle of a run it hands over within moments, leaving the run InProgress for the next one.
    Raises Transient once the store has not answered, or could not be written, for `patience_s`.
    """
    parent = os.environ.get(PARENT)

    def ending() -> bool:
        return stop() or (parent is not None and os.getppid() != int(parent))

    service = Service(store, settings, "coordinator")
    threading.Thread(target=_warm_up, args=(service,), name="warm-up", daemon=True).start()
    ended = threading.Event()
    deliverer = threading.Thread(target=deliver, args=(service, lambda: ending() or ended.is_set()), name="deliverer", daemon=True)
    deliverer.start()
    try:
        _work(service, ending, patience_s)
    finally:
        ended.set()
        deliverer.join()


def _warm_up(service: Service) -> None:
    """For the databases of the migration, if it has been set up by now; else their drivers are loaded by the first run."""
    with suppress(SkyliftError):
        with service.store.read() as connection:
            row = get_migration(connection)
        warm_up(*(service.box.open(url) for url in (row["source_url"], row["target_url"]) if url))


def _work(service: Service, ending: Callable[[], bool], patience_s: float) -> None:
    store, settings = service.store, service.settings
    figures = Figures(store)
    healthy = time.monotonic()
    while not ending():
        lease = Lease(store, settings.lease_s)
        try:
            if not lease.take():
                pause(settings.poll_s, ending)
                continue
            with lease, service.telemetry.measuring(figures.read):
                worker = Worker(service, lease, lambda: ending() or lease.lost())  # noqa: B023 (used within this turn only)
                while not (ending() or lease.lost()):
                    worked = worker.work()
                    healthy = time.monotonic()
                    if not worked:
                        pause(settings.poll_s, lambda: ending() or lease.lost())  # noqa: B023
        except LeaseLost:
            _log.warning("lease lost to another coordinator")
        except Transient as error:                      # the store does not answer: nothing can be done or noted
            _log.warning("%s", error)
            if time.monotonic() - healthy > patience_s:
                raise
            pause(max(1.0, settings.poll_s), ending)


def is_coordinated(store: Store) -> bool:
    """Whether some coordinator holds the lease: what is in progress moves on only then."""
    with store.read() as connection:
        return leases.is_held(connection, COORDINATOR)


class Worker:
    """Looks for work and does it; errors end the run that they belong to, never the coordinator."""

    def __init__(self, service: Service, lease: Lease, stop: Callable[[], bool]) -> None:
        self._service, self._lease, self._stop = service, lease, stop
        self._tries: dict[str, int] = {}                # run id -> failures for a passing reason
        self._taken: set[str] = set()

    def work(self) -> bool:
        """Do one piece of work; False if there is none."""
        with self._service.store.read() as connection:
            state = get_migration(connection)["state"]
            scheduled = connection.execute(sa.select(source_companies.c.id).where(source_companies.c.init_scheduled).limit(1)).first()
            status = {MigrationState.REPLICATING: RunStatus.IN_PROGRESS, MigrationState.UPGRADING: RunStatus.UPGRADE_IN_PROGRESS}.get(state)
            run = newest_run(connection, runs.c.status == status) if status else None
            assessing = assessment.is_waiting(connection)
            validation = None if status else pending(connection)
        if state is MigrationState.CREATING_COMPANIES:
            create_marked(self._service)
        elif scheduled:
            initialize_scheduled(self._service)
        elif run:
            self._carry_out(run)
        elif assessing:
            assessment.carry_out(self._service, self._stop, self._lease.check)
        elif validation:
            self._validate(validation)
        else:
            return False
        return True

    def _carry_out(self, run: Run) -> None:
        _log.info("run %s: %s", run.run_id, run.status)
        try:
            self._take_up(runs, run.id, run.run_id)
            if run.status is RunStatus.IN_PROGRESS:
                replicate(self._service, run, self._service.settings.workers, self._stop, self._lease.check)
            else:
                upgrade(self._service, run, self._stop, self._lease.check)
        except LeaseLost:
            raise
        except Transient as error:
            if error.code == "Store":
                raise
            tries = self._tries[run.run_id] = self._tries.get(run.run_id, 0) + 1
            _log.warning("run %s, try %s: %s", run.run_id, tries, error)
            if tries >= TRIES:
                self._fail(run, str(error))
            else:
                pause(2.0 ** (tries - 1), lambda: self._stop() or is_cancelled(self._service, run))
        except SkyliftError as error:
            self._fail(run, str(error))
        except Exception as error:
            _log.exception("run %s", run.run_id)
            self._fail(run, f"skylift itself failed: {type(error).__name__}: {error} (the coordinator's log says more)")

    def _validate(self, validation: Validation) -> None:
        try:
            self._take_up(validations, validation.id, str(validation.id))
            go_through(self._service, validation, self._stop, self._lease.check)
        except LeaseLost:
            raise
        except Transient as error:
            if error.code == "Store":
                raise
            tries = self._tries[str(validation.id)] = self._tries.get(str(validation.id), 0) + 1
            _log.warning("validation, try %s: %s", tries, error)
            if tries >= TRIES:
                fail(self._service, validation, str(error), self._lease.check)
            else:
                pause(2.0 ** (tries - 1), self._stop)
        except SkyliftError as error:
            fail(self._service, validation, str(error), self._lease.check)
        except Exception as error:
            _log.exception("validation")
            fail(self._service, validation, f"skylift itself failed: {type(error).__name__}: {error} (the coordinator's log says more)",
                 self._lease.check)

    def _take_up(self, table: sa.Table, id: UUID, name: str) -> None:
        """Note that a coordinator takes a run or validation up. One that kills every coordinator must not do so for ever."""
        if name in self._taken:
            return
        self._taken.add(name)
        with self._service.store.write() as connection:
            self._lease.check(connection)
            attempts = connection.scalar(sa.select(table.c.attempts).where(table.c.id == id)) or 0
            connection.execute(table.update().where(table.c.id == id).values(attempts=attempts + 1))
        if attempts >= TAKEOVERS:
            raise SkyliftError(f"{attempts} coordinators have ended while working on it, without getting on",
                               hint="the coordinator's log says why", code="Takeovers")

    def _fail(self, run: Run, reason: str) -> None:
        with self._service.verb() as verb:
            self._lease.check(verb.connection)
            if run.status is RunStatus.IN_PROGRESS:
                fail_run(verb, run, reason)
            else:
                end_upgrade(verb, run, reason)


class CoordinatorProcess:
    """A coordinator in a child process, started again when it dies; it ends with this process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._command = [sys.executable, "-m", "skylift", "coordinate", "--home", str(settings.home)]
        self._environment = {**os.environ, **settings.environment(), PARENT: str(os.getpid())}
        self._log_file = Path(settings.home) / "logs" / "coordinator.log"
        self._log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._child = self._start()
        self._thread = threading.Thread(target=self._watch, name="coordinator-watch", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        return self._child.pid

    def stop(self, seconds: float = 30.0) -> None:
        """Ask the child to hand over and wait for it; kill it if it does not end in time (its run resumes all the same)."""
        with self._starting:                            # after this no other child is started
            self._stopping.set()
        self._child.terminate()
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self._child.kill()
        self._thread.join()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log_file.open("ab") as log:          # a session of its own: Ctrl-C is for the parent, which then stops the child
            return subprocess.Popen(self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                    start_new_session=True)

    def _watch(self) -> None:
        while True:
            self._child.wait()
            if self._stopping.wait(RESTART_S):
                return
            _log.warning("coordinator %s has ended with %s, starting another", self._child.pid, self._child.returncode)
            self._release(self._child.pid)
            with self._starting:
                if self._stopping.is_set():
                    return
                self._child = self._start()

    def _release(self, pid: int) -> None:
        """The child is dead for certain: its successor need not wait until the lease runs out."""
        with suppress(SkyliftError):
            store = open_store(self._settings.store)
            leases.release_process(store, COORDINATOR, process(pid))
            store.close()


def spawn_coordinator(settings: Settings) -> CoordinatorProcess:
    return CoordinatorProcess(settings)
