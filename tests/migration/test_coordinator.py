"""Who works, and what happens when the worker dies: real threads, real child processes, real kills."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from skylift.errors import Transient
from skylift.migration import coordinator, runner
from skylift.migration.coordinator import coordinate, spawn_coordinator
from skylift.migration.lease import COORDINATOR, Lease, LeaseLost
from skylift.model import Run
from skylift.runs import MigrationState, RunStatus, TableStatus
from skylift.settings import Settings
from skylift.store import leases
from skylift.store.tables import leases as lease_table

SOON_S = 20.0


def until(condition, seconds=SOON_S):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def holder(lab):
    with lab.store.read() as connection:
        return connection.scalar(sa.select(lease_table.c.holder)) or ""


@contextmanager
def coordinating(lab, **options):
    """A coordinator in a thread; the event yielded stops it."""
    stop = threading.Event()
    settings = Settings(home=lab.migration.settings.home, poll_s=0.02, **options)
    thread = threading.Thread(target=coordinate, args=(lab.store, settings, stop.is_set))
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(SOON_S)
        assert not thread.is_alive()


def test_a_coordinator_does_what_verbs_ask_for_and_gives_the_lease_back(ready):
    with coordinating(ready):
        ready.migration.run_replication()
        until(lambda: ready.state is MigrationState.UPGRADE_PENDING)
        ready.migration.run_data_upgrade()
        until(lambda: ready.state is MigrationState.UPGRADED)

    assert holder(ready) == ""


def test_two_coordinators_never_work_at_once(ready):
    with coordinating(ready) as first:
        until(lambda: holder(ready))
        working = holder(ready)
        with coordinating(ready):
            run = ready.migration.run_replication()
            until(lambda: ready.migration.get(Run, run.id).status is RunStatus.UPGRADE_PENDING)
            assert holder(ready) == working
            first.set()
            until(lambda: holder(ready) not in ("", working))
    assert [event.event for event in ready.events if event.subject == f"run {run.run_id}"] == ["run_replication", "await_upgrade"]


def test_a_long_step_does_not_cost_the_lease(ready, monkeypatch):
    real = runner.copy_tables

    def slow(*arguments, **options):
        time.sleep(3.0)
        yield from real(*arguments, **options)

    monkeypatch.setattr(runner, "copy_tables", slow)
    with coordinating(ready, lease_s=1.0):
        run = ready.migration.run_replication()
        until(lambda: holder(ready))
        assert not leases.acquire(ready.store, COORDINATOR, "another", 60)
        time.sleep(2.5)
        assert not leases.acquire(ready.store, COORDINATOR, "another", 60)
        until(lambda: ready.migration.get(Run, run.id).status is RunStatus.UPGRADE_PENDING)


def test_who_has_lost_the_lease_writes_no_more(ready):
    lease = Lease(ready.store, 60)
    assert lease.take()
    with ready.store.write() as connection:
        lease.check(connection)
        connection.execute(lease_table.update().values(holder="another"))

    with pytest.raises(LeaseLost), ready.store.write() as connection:
        lease.check(connection)
    assert lease.lost()
    assert not lease.take()


def test_a_lease_that_could_not_be_renewed_is_lost_on_time_even_for_its_holder(ready):
    lease = Lease(ready.store, 0.1)
    assert lease.take() and not lease.lost()
    time.sleep(0.12)
    assert lease.lost()


def test_a_lost_lease_in_the_middle_of_a_run_leaves_the_run_to_the_other(ready, monkeypatch):
    real, robbed = runner.copy_tables, threading.Event()

    def rob(*arguments, **options):
        for progress in real(*arguments, **options):
            if not robbed.is_set():
                with ready.store.write() as connection:
                    connection.execute(lease_table.update().values(holder="another"))
                robbed.set()
            yield progress

    monkeypatch.setattr(runner, "copy_tables", rob)
    with coordinating(ready):
        run = ready.migration.run_replication()
        assert robbed.wait(SOON_S)
        time.sleep(0.5)
        assert ready.migration.get(Run, run.id).status is RunStatus.IN_PROGRESS
        assert not any(table.status is TableStatus.SUCCESSFUL for table in ready.tables(run).values())
        leases.release(ready.store, COORDINATOR, "another")
        until(lambda: ready.migration.get(Run, run.id).status is RunStatus.UPGRADE_PENDING)


def test_a_child_that_is_killed_is_replaced_and_its_run_goes_on(ready, monkeypatch):
    monkeypatch.setattr(coordinator, "RESTART_S", 0.1)
    settings = Settings(home=ready.migration.settings.home, poll_s=0.02, lease_s=60)      # the dead one's lease is not waited for
    ready.in_source(*(f'create table "Extra {n}" as select name from pragma_table_list' for n in range(250)))
    child = spawn_coordinator(settings)
    try:
        until(lambda: f":{child.pid}:" in holder(ready))
        run = ready.migration.run_replication()
        until(lambda: any(table.status is TableStatus.SUCCESSFUL for table in ready.tables(run).values()))
        killed = child.pid
        os.kill(killed, signal.SIGKILL)
        until(lambda: ready.migration.get(Run, run.id).status is not RunStatus.IN_PROGRESS)
        assert child.pid != killed
    finally:
        child.stop()

    ended, tables = ready.migration.get(Run, run.id), ready.tables(run)
    assert (ended.status, ended.tables_successful) == (RunStatus.UPGRADE_PENDING, len(tables))
    assert ready.in_target('select count(*) from "Extra 7"')[0][0] == tables["", "Extra 7"].total_records > 0
    assert holder(ready) == ""
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_a_child_ends_with_its_parent(ready):
    code = ("import sys, time; from pathlib import Path; from skylift.settings import Settings;"
            "from skylift.migration.coordinator import spawn_coordinator;"
            "child = spawn_coordinator(Settings(home=Path(sys.argv[1]), poll_s=0.02)); print(child.pid, flush=True); time.sleep(600)")
    parent = subprocess.Popen([sys.executable, "-c", code, str(ready.migration.settings.home)], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    until(lambda: f":{pid}:" in holder(ready))

    parent.kill()
    parent.communicate()

    until(lambda: holder(ready) == "")


def test_a_store_that_cannot_be_written_ends_a_patient_coordinator_after_its_patience(ready, monkeypatch):
    """A server waits for ever for its store; a command on a full disk must end and say why."""
    ready.migration.run_replication()

    @contextmanager
    def full():
        raise Transient("the store did not answer: database or disk is full", code="Store")
        yield

    monkeypatch.setattr(ready.store, "write", full)
    begun = time.monotonic()
    with pytest.raises(Transient, match="disk is full"):
        coordinate(ready.store, Settings(home=ready.migration.settings.home, poll_s=0.02), lambda: False, patience_s=0.5)
    monkeypatch.undo()

    assert time.monotonic() - begun > 0.5
    with coordinating(ready):                          # with room again, the run goes on
        until(lambda: ready.state is MigrationState.UPGRADE_PENDING)
