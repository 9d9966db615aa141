"""The life of a migration: once from end to end on each store, and in every order that Hypothesis can think of."""

import itertools
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from skylift.connectors import TableState
from skylift.errors import CopyError, NotVerified, SkyliftError, StateError, TargetFailed
from skylift.migration import Migration, ending, runner
from skylift.migration.scope import failed_tables
from skylift.migration.service import get_migration
from skylift.model import Digest, Progress, Scope, Watermark
from skylift.runs import MIGRATION_TRANSITIONS, MigrationState, ReplicationType, RunStatus, TableStatus, UpgradeStatus
from skylift.sample import change_sample, create_sample
from skylift.settings import Settings
from skylift.store import open_store
from skylift.store.tables import leases, registry, run_tables, runs, upgrade_tags
from skylift.upgrades import execute
from tests.migration.lab import ANY, Lab
from tests.migration.model import Model

M, R = MigrationState, RunStatus
SELDOM = st.integers(0, 5).map(lambda n: n == 5)    # what sends a life back to its beginning, or it would never get anywhere
KINDS = st.sampled_from([ReplicationType.NORMAL, ReplicationType.NORMAL, ReplicationType.FULL, ReplicationType.DIAGNOSTIC])
NAMES = ("CRONUS International Ltd_", "Contoso A_S _Nordic_")


@pytest.fixture
def lab_on_each_store(store_url, tmp_path, sample_file):
    shutil.copy(sample_file, tmp_path / "bc.db")
    config = Settings(home=tmp_path / "home", store=store_url, poll_s=0.02)
    store = open_store(store_url)
    yield Lab(Migration(store, config), tmp_path / "bc.db")
    store.close()


def test_from_set_up_to_completion(lab_on_each_store):
    lab = lab_on_each_store
    lab.prepare()
    first = lab.run()
    change_sample(lab.source, 30)
    second = lab.run()
    lab.migration.run_data_upgrade(second.id)
    lab.work()
    lab.migration.complete_cloud_migration()

    assert (first.replication_type, second.replication_type) == (ReplicationType.FULL, ReplicationType.NORMAL)
    assert [run.status for run in lab.runs] == [R.COMPLETED] * 4
    moved = [table for table in lab.tables(second).values() if table.mode == "incremental"]
    assert moved and all(table.status is TableStatus.SUCCESSFUL for table in moved)
    assert sum(table.deleted for table in moved) > 0
    assert [(event.from_state, event.to_state) for event in lab.events if event.subject == "migration"] == [
        ("NotSetUp", "Enabled"), ("Enabled", "CreatingCompanies"), ("CreatingCompanies", "Ready"), ("Ready", "Replicating"),
        ("Replicating", "UpgradePending"), ("UpgradePending", "Replicating"), ("Replicating", "UpgradePending"),
        ("UpgradePending", "Upgrading"), ("Upgrading", "Upgraded"), ("Upgraded", "Disabled")]


def test_of_those_who_ask_for_a_run_at_once_one_gets_it(lab_on_each_store):
    lab_on_each_store.prepare()

    def ask(_):
        try:
            return lab_on_each_store.migration.run_replication().run_id
        except StateError as error:
            return error.code

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    assert answers.count("RunInProgress") == 3
    assert len([run for run in lab_on_each_store.runs if run.status is R.IN_PROGRESS]) == 1


class Killed(BaseException):
    """The coordinator's process is gone: nothing of it gets any further."""


class FakeEngine:
    """Takes the place of the engine: what becomes of each company's tables, and of the whole, is dealt out beforehand."""

    def __init__(self) -> None:
        self.fates: dict[str, str] = {}
        self.broken = False
        self.upgrade_fails = False
        self.lag = False

    def copy_tables(self, tasks, source, target, **options):
        if self.broken:
            raise TargetFailed("the disk is full")
        states = {task.target: TableState(Digest(2), Watermark("change_log", 7, "x"), "{}")
                  for task in tasks if self.fates[task.company] == "copied"}
        with target.transaction() as transaction:
            if states:
                transaction.set_states(states)
        yield from self._tell(tasks, "full")

    def check_tables(self, tasks, source, target, **options):
        if self.broken:
            raise TargetFailed("the disk is full")
        yield from self._tell(tasks, "diagnostic")

    def _tell(self, tasks, mode):
        for task in tasks:
            match self.fates[task.company]:
                case "copied":
                    yield Progress(task, TableStatus.SUCCESSFUL, rows=2, total_rows=2, mode=mode, watermark=Watermark("change_log", 7, "x"))
                case "failed":
                    yield Progress(task, TableStatus.FAILED, mode=mode, error=CopyError("cannot be copied"))

    def verify(self, transaction, company, stop):
        if self.upgrade_fails:
            raise NotVerified("not what was copied")

    def refuse_unproven(self, service, row, upgraded, reading):
        if self.lag:
            raise StateError("1 table has changed in the source since", code="FeedLag")


FATE = st.sampled_from(["copied", "copied", "copied", "copied", "failed", "lost"])
FATES = st.fixed_dictionaries(dict.fromkeys(("", *NAMES), FATE))
GOOD = dict.fromkeys(("", *NAMES), "copied")


class Life(RuleBasedStateMachine):
    """Verbs in any order, between them a coordinator that works, or is killed before any of its writes. The model says what follows."""

    @initialize(new=SELDOM)
    def begin(self, new):
        self.folder = Path(tempfile.mkdtemp(prefix="skylift-life-"))
        shutil.copy(Life.sample, self.folder / "bc.db")
        config = Settings(home=self.folder / "home")
        self.lab = Lab(Migration(open_store(config.store), config), self.folder / "bc.db")
        self.model = Model(NAMES)
        self.engine = FakeEngine()
        self.upgraded: set[str] = set()                 # companies that an upgrade which was cut off had behind it
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(runner, "copy_tables", self.engine.copy_tables)
        self.patch.setattr(runner, "check_tables", self.engine.check_tables)
        self.patch.setattr(runner, "FLUSH_S", 60)       # all progress is written at once: nothing depends on the machine's pace
        self.patch.setattr(execute, "verify", self.engine.verify)
        self.patch.setattr(ending, "refuse_unproven", self.engine.refuse_unproven)
        if not new:
            self.lab.prepare()
            self.model.set_up()
            for name in NAMES:
                self.model.mark(name, True)
            self.model.create_companies()
            self.model.create()

    def teardown(self):
        if hasattr(self, "patch"):
            self.patch.undo()
            self.lab.store.close()
            shutil.rmtree(self.folder)

    def ask(self, expected, verb, *arguments, **options):
        """A verb does what the model says, or is refused with the code that the model says, with a sentence and without a trace."""
        before = self.lab.dump()
        try:
            verb(*arguments, **options)
        except SkyliftError as error:
            assert error.message and error.code == expected
            assert self.lab.dump() == before
        else:
            assert expected == "ok"

    @rule()
    def set_up(self):
        if self.lab.state is M.NOT_SET_UP:
            self.ask(self.model.set_up(), self.lab.migration.create_setup, self.lab.values)
        else:
            self.ask(self.model.set_up(), self.lab.migration.change_setup, self.lab.setup.id, {}, ANY)

    @rule()
    def complete_setup(self):
        if self.lab.state is not M.NOT_SET_UP:
            self.ask(self.model.complete_setup(), self.lab.migration.complete_setup, self.lab.setup.id)

    @rule(n=st.integers(0, 1), leave_out=SELDOM)
    def mark(self, n, leave_out):
        if self.lab.companies:
            company = self.lab.companies[n]
            self.ask(self.model.mark(company.name, not leave_out), self.lab.migration.change_company, company.id,
                     {"replicate": not leave_out}, ANY)

    @rule()
    def create_companies(self):
        if self.lab.companies:
            self.ask(self.model.create_companies(), self.lab.migration.create_companies, self.lab.companies[0].id)

    @rule(kind=KINDS, company=st.none() | st.sampled_from(NAMES), failed=SELDOM)
    def run(self, kind, company, failed):
        if company is None or self.lab.companies:
            self.ask(self.model.start(kind, company, failed), self.lab.migration.run_replication, kind=kind,
                     scope=Scope((company,) if company else (), (), failed))

    @rule()
    def cancel(self):
        self.ask(self.model.cancel(), self.lab.migration.cancel_replication)

    @rule()
    def upgrade(self):
        self.ask(self.model.upgrade(), self.lab.migration.run_data_upgrade)

    @rule()
    def reset(self):
        self.ask(self.model.reset(), self.lab.migration.reset_cloud_data)

    @rule(really=SELDOM, reason=st.sampled_from(["", "Paused", "Abandoned"]))
    def end(self, really, reason):
        if really:
            m = self.lab.migration
            self.ask(self.model.end(reason), {"": m.disable_replication, "Paused": m.pause, "Abandoned": m.abandon}[reason])

    @rule(really=SELDOM, force=st.booleans(), lag=st.booleans())
    def complete(self, really, force, lag):
        if really:
            self.engine.lag = lag
            self.ask(self.model.complete(force, lag), self.lab.migration.complete_cloud_migration, force=force, reason="so be it")

    @rule(fates=FATES, broken=SELDOM, upgrade_fails=SELDOM, killed_at=st.none() | st.integers(0, 9))
    def work(self, fates, broken=False, upgrade_fails=False, killed_at=None):
        self.engine.fates, self.engine.broken, self.engine.upgrade_fails = fates, broken, upgrade_fails
        killed = False
        try:
            with self._mortal(killed_at):
                self.lab.work()
        except Killed:
            killed = True
            with self.lab.store.write() as connection:  # as the one who watches it does
                connection.execute(leases.delete())
        {M.CREATING_COMPANIES: self._follow_creation, M.REPLICATING: self._follow_run,
         M.UPGRADING: self._follow_upgrade}.get(M(self.model.state), lambda killed: None)(killed)
        assert killed or self.lab.state not in (M.CREATING_COMPANIES, M.REPLICATING, M.UPGRADING)

    @contextmanager
    def _mortal(self, killed_at):
        """The coordinator dies before its write number `killed_at` after it has taken the lease."""
        honest, writes = self.lab.store.write, itertools.count(-1)

        def write():
            if next(writes) == killed_at:
                raise Killed
            return honest()

        with pytest.MonkeyPatch.context() as patch:
            if killed_at is not None:
                patch.setattr(self.lab.store, "write", write)
            yield

    def _follow_creation(self, killed):
        if not killed or self.lab.state is not M.CREATING_COMPANIES:
            self.model.create()

    def _follow_run(self, killed):
        asked, model = self.model.run, self.model
        run = next(run for run in self.lab.runs if run.replication_type is not None and run.run_id == run.run_id.lower())
        rows = self.lab.tables(run).values()
        ended = run.status is not R.IN_PROGRESS
        if killed and not ended:
            entered = bool(rows)
            told = any(row.status in (TableStatus.SUCCESSFUL, TableStatus.FAILED) for row in rows)
        else:
            entered = not asked.cancelled
            told = entered and not self.engine.broken
        if entered:
            model.enter()
        if told:
            model.tell(self.engine.fates)
        if ended or not killed:
            model.finish_run(self.engine.broken and not asked.cancelled)

    def _follow_upgrade(self, killed):
        with self.lab.store.read() as connection:
            done = set(connection.scalars(sa.select(upgrade_tags.c.company_name)))
        if killed and self.lab.state is M.UPGRADING:
            self.upgraded = done
            return
        pending = {"", *(name for name in NAMES if self.model.places[name].marked and
                         self.model.places[name].upgrade not in ("None", "Completed"))}
        self.model.finish_upgrade(self.engine.upgrade_fails and bool(pending - self.upgraded), self.upgraded)
        self.upgraded = done

    @rule(kind=KINDS, fates=FATES, broken=SELDOM)
    def replicate(self, kind, fates, broken):
        self.run(kind, None, False)
        self.work(fates, broken)

    @rule(kind=KINDS, killed_at=st.integers(0, 5), fates=FATES)
    def replicate_with_a_death(self, kind, killed_at, fates):
        self.run(kind, None, False)
        self.work(fates, killed_at=killed_at)
        self.both_agree()
        self.state_and_runs_agree()
        self.work(GOOD)

    @rule(upgrade_fails=SELDOM, killed_at=st.integers(0, 9))
    def replicate_and_upgrade(self, upgrade_fails, killed_at):
        self.replicate(ReplicationType.NORMAL, GOOD, False)
        self.upgrade()
        self.work(GOOD, killed_at=killed_at)
        self.both_agree()
        self.state_and_runs_agree()
        self.work(GOOD, upgrade_fails=upgrade_fails)

    @invariant()
    def both_agree(self):
        if not hasattr(self, "lab"):
            return
        model, lab = self.model, self.lab
        assert lab.state == model.state
        with lab.store.read() as connection:
            row = get_migration(connection)
            failed = {company for company, _ in failed_tables(connection)}
            copied = dict(connection.execute(sa.select(registry.c.company_name, sa.func.min(registry.c.synced_version)).group_by(
                registry.c.company_name)).all())
        assert row["disabled_reason"] == (model.reason if model.state == "Disabled" else "")
        if model.state != "Replicating":               # what a run under way has written down so far, nobody decides by
            assert failed == model.failed()
        for company in lab.companies:
            place = model.places[company.name]
            assert (company.replicate, company.created) == (place.marked, place.created)
            if model.state != "Upgrading":
                assert company.upgrade_status == place.upgrade
        for name, least in copied.items():
            assert (least > 0) == model.places[name].copied

    @invariant()
    def state_and_runs_agree(self):
        if not hasattr(self, "lab"):
            return
        with self.lab.store.read() as connection:
            found = connection.execute(sa.select(runs)).all()
            tables = connection.execute(sa.select(run_tables)).all()
        state = self.lab.state
        by_status = {status: [run for run in found if run.status is status] for status in R}
        assert len(by_status[R.IN_PROGRESS]) == (state is M.REPLICATING)
        assert len(by_status[R.UPGRADE_IN_PROGRESS]) == (state is M.UPGRADING)
        assert len(by_status[R.UPGRADE_PENDING]) <= 1
        if state is M.UPGRADE_PENDING:
            assert len(by_status[R.UPGRADE_PENDING]) == 1
        if state is M.UPGRADE_FAILED:
            assert by_status[R.UPGRADE_FAILED]
        for run in found:
            assert run.details
            assert (run.ended_at is None) == (run.status is R.IN_PROGRESS)
            assert run.ended_at is None or run.ended_at >= run.started_at
        ended = {run.run_id for run in found if run.ended_at}
        for table in tables:
            still_open = table.status in (TableStatus.NOT_STARTED, TableStatus.IN_PROGRESS)
            assert not (still_open and table.run_id in ended)
            assert bool(table.errors) == (table.status in (TableStatus.FAILED, TableStatus.WARNING))
            assert (table.ended_at is None) == still_open

    @invariant()
    def companies_agree(self):
        if hasattr(self, "lab"):
            for company in self.lab.companies:
                assert company.upgrade_status is UpgradeStatus.NONE or company.created
                if self.lab.state is M.UPGRADED and company.replicate:
                    assert company.upgrade_status in (UpgradeStatus.COMPLETED, UpgradeStatus.NONE, UpgradeStatus.PENDING)

    @invariant()
    def every_move_is_logged_and_follows_from_the_one_before(self):
        if hasattr(self, "lab"):
            at = M.NOT_SET_UP
            for event in self.lab.events:
                if event.subject == "migration" and event.to_state:
                    assert event.from_state == at
                    assert MIGRATION_TRANSITIONS[at, event.event] == event.to_state
                    at = M(event.to_state)
            assert at is self.lab.state


@pytest.mark.slow
def test_no_order_of_verbs_and_accidents_leads_astray(tmp_path):
    Life.sample = tmp_path / "bc.db"
    create_sample(Life.sample, companies=2, rows=5, tables=3)
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(Life, settings=settings(max_examples=40, stateful_step_count=30, deadline=None,
                                                      suppress_health_check=list(HealthCheck)))
