"""The life of a migration: once from end to end on each store, and in every order that Hypothesis can think of."""

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from skylift.connectors import TableState
from skylift.errors import CopyError, NotVerified, SkyliftError, StateError, TargetFailed
from skylift.migration import Migration, runner, upgrade
from skylift.model import Digest, Progress, Watermark
from skylift.runs import MIGRATION_TRANSITIONS, MigrationState, ReplicationType, RunStatus, TableStatus, UpgradeStatus
from skylift.sample import change_sample, create_sample
from skylift.settings import Settings
from skylift.store import open_store
from skylift.store.tables import run_tables, runs
from tests.migration.lab import ANY, Lab

M, R = MigrationState, RunStatus
SELDOM = st.integers(0, 5).map(lambda n: n == 5)    # what sends a life back to its beginning, or it would never get anywhere
KINDS = st.sampled_from([ReplicationType.NORMAL, ReplicationType.NORMAL, ReplicationType.FULL, ReplicationType.DIAGNOSTIC])
FATES = st.lists(st.sampled_from(["copied", "copied", "copied", "copied", "failed", "lost"]), min_size=1, max_size=3)


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


class FakeEngine:
    """Takes the place of the engine: what becomes of each table, and of the whole, is dealt out beforehand."""

    def __init__(self) -> None:
        self.fates: list[str] = []
        self.broken = False
        self.upgrade_fails = False

    def copy_tables(self, tasks, source, target, **options):
        states = {}
        for n, task in enumerate(tasks):
            yield Progress(task, TableStatus.IN_PROGRESS, total_rows=2, mode="full")
            fate = self.fates[n % len(self.fates)]
            if self.broken and n == 1:
                raise TargetFailed("the disk is full")
            if fate == "lost":
                continue
            if fate == "failed":
                yield Progress(task, TableStatus.FAILED, error=CopyError("cannot be copied"))
                continue
            states[task.target] = TableState(Digest(2), Watermark("change_log", 7, "x"), "{}")
            yield Progress(task, TableStatus.SUCCESSFUL, rows=2, total_rows=2, mode="full", watermark=Watermark("change_log", 7, "x"))
        with target.transaction() as transaction:
            transaction.set_states(states)

    def verify(self, target, tables, stop):
        if self.upgrade_fails:
            raise NotVerified("not what was copied")


class Life(RuleBasedStateMachine):
    """Verbs in any order, between them a coordinator that works or is cut off. What must always hold is below."""

    @initialize(new=SELDOM)
    def begin(self, new):
        self.folder = Path(tempfile.mkdtemp(prefix="skylift-life-"))
        shutil.copy(Life.sample, self.folder / "bc.db")
        config = Settings(home=self.folder / "home")
        self.lab = Lab(Migration(open_store(config.store), config), self.folder / "bc.db")
        self.engine = FakeEngine()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(runner, "copy_tables", self.engine.copy_tables)
        self.patch.setattr(upgrade, "_verify", self.engine.verify)
        if not new:
            self.lab.prepare()

    def teardown(self):
        if hasattr(self, "patch"):
            self.patch.undo()
            self.lab.store.close()
            shutil.rmtree(self.folder)

    def ask(self, verb, *arguments, **options):
        """A verb is carried out, or refused with a sentence and without a trace."""
        before = self.lab.dump()
        try:
            verb(*arguments, **options)
        except SkyliftError as error:
            assert error.message and error.code
            assert self.lab.dump() == before

    @rule()
    def set_up(self):
        if self.lab.state is M.NOT_SET_UP:
            self.ask(self.lab.migration.create_setup, self.lab.values)
        else:
            self.ask(self.lab.migration.change_setup, self.lab.setup.id, {}, ANY)

    @rule()
    def complete_setup(self):
        if self.lab.state is not M.NOT_SET_UP:
            self.ask(self.lab.migration.complete_setup, self.lab.setup.id)

    @rule(n=st.integers(0, 1), leave_out=SELDOM)
    def mark(self, n, leave_out):
        if self.lab.companies:
            self.ask(self.lab.migration.change_company, self.lab.companies[n].id, {"replicate": not leave_out}, ANY)

    @rule()
    def create_companies(self):
        if self.lab.companies:
            self.ask(self.lab.migration.create_companies, self.lab.companies[0].id)

    @rule(kind=KINDS)
    def run(self, kind):
        self.ask(self.lab.migration.run_replication, kind=kind)

    @rule(n=st.none() | st.integers(0, 2))
    def upgrade(self, n):
        ids = [run.id for run in self.lab.runs]
        self.ask(self.lab.migration.run_data_upgrade, ids[n] if n is not None and n < len(ids) else None)

    @rule()
    def reset(self):
        self.ask(self.lab.migration.reset_cloud_data)

    @rule(really=SELDOM)
    def disable(self, really):
        if really:
            self.ask(self.lab.migration.disable_replication)

    @rule(really=SELDOM)
    def complete(self, really):
        if really:
            self.ask(self.lab.migration.complete_cloud_migration)

    @rule(fates=FATES, broken=SELDOM, upgrade_fails=SELDOM)
    def work(self, fates, broken, upgrade_fails):
        self.engine.fates, self.engine.broken, self.engine.upgrade_fails = fates, broken, upgrade_fails
        self.lab.work()
        assert self.lab.state not in (M.CREATING_COMPANIES, M.REPLICATING, M.UPGRADING)

    @rule(looks=st.integers(1, 6))
    def work_that_is_cut_off(self, looks):
        self.engine.fates, self.engine.broken, self.engine.upgrade_fails = ["copied"], False, False
        left = iter(range(looks))
        self.lab.work(stop=lambda: next(left, None) is None)

    @rule(kind=KINDS, fates=FATES, broken=SELDOM)
    def replicate(self, kind, fates, broken):
        self.run(kind)
        self.work(fates, broken, False)

    @rule(kind=KINDS, looks=st.integers(1, 6))
    def replicate_with_an_interruption(self, kind, looks):
        self.run(kind)
        self.work_that_is_cut_off(looks)
        self.state_and_runs_agree()
        self.work(["copied"], False, False)

    @rule(upgrade_fails=SELDOM, looks=st.integers(1, 6))
    def replicate_and_upgrade(self, upgrade_fails, looks):
        self.replicate(ReplicationType.NORMAL, ["copied"], False)
        self.upgrade(None)
        self.work_that_is_cut_off(looks)
        self.state_and_runs_agree()
        self.work(["copied"], False, upgrade_fails)

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

    run_state_machine_as_test(Life, settings=settings(max_examples=30, stateful_step_count=30, deadline=None,
                                                      suppress_health_check=list(HealthCheck)))
