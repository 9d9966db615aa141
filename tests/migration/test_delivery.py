"""Telling real receivers, which fail, hang, redirect, answer late and go away; and deliverers that are killed."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import UUID

import pytest
import sqlalchemy as sa

from skylift.migration import delivery
from skylift.migration.changes import MOST, note
from skylift.migration.coordinator import spawn_coordinator
from skylift.migration.delivery import DELIVERER, Deliverer
from skylift.migration.service import Service
from skylift.migration.webhooks import WebhookVerbs
from skylift.model import NO_ID, Delivery, Run, Subscription
from skylift.query import Attribute, Order, Query
from skylift.settings import Settings
from skylift.store import leases, select
from skylift.store.tables import changes, deliveries, events, subscriptions
from skylift.store.tables import leases as lease_table
from tests.receiver import Receiver

RUNS = "api/v1.0/companies(1)/cloudMigrationStatus"
IDS = [UUID(int=n + 1) for n in range(MOST + 100)]
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


class Desk:
    """An environment whose deliverer is this thread, or a process: subscribe, change something, let it tell."""

    def __init__(self, service):
        self.service = service
        self.store = service.store
        self.deliverer = Deliverer(service)

    def subscribe(self, url, entity_id=NO_ID, kind="Run", resource=RUNS, state="state of mind"):
        return self.service.create_subscription({"notification_url": url, "resource": resource, "client_state": state, "kind": kind,
                                                 "entity_id": entity_id, "most": 100}).id

    def change(self, *ids, **options):
        with self.store.write() as connection:
            note(connection, Run, ids, **options)

    def turn(self):
        """One look at what is due, and the end of the calls that it makes."""
        self.deliverer.turn()
        self.deliverer.wait(20)

    def until(self, condition, seconds=20):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not happen in time"
            self.turn()
            time.sleep(0.02)

    @property
    def log(self):
        return self.select(Delivery)

    @property
    def subscriptions(self):
        return {row.id: row for row in self.select(Subscription)}

    def select(self, kind):
        with self.store.read() as connection:
            return select.select(connection, kind, Query(order=(Order(Attribute("id")),)))

    def row(self, id):
        with self.store.read() as connection:
            return connection.execute(sa.select(subscriptions).where(subscriptions.c.id == id)).first()


@pytest.fixture
def desk(lab):
    settings = {"webhook_merge_s": 0.0, "webhook_retry_s": 0.05, "webhook_timeout_s": 10.0, "webhook_networks": "127.0.0.0/8"}
    return Desk(WebhookVerbs(lab.store, Settings(home=lab.migration.settings.home, poll_s=0.02, **settings), "tester"))


def with_settings(desk, **changed):
    return Desk(WebhookVerbs(desk.store, replace(desk.service.settings, **changed), "tester"))


@pytest.mark.rule("K4")
def test_what_a_receiver_is_told_is_exactly_this(desk, receiver):
    id = desk.subscribe(receiver.url("/hook?code=a%2Bb"))
    desk.change(IDS[0], created=True)
    desk.change(IDS[1])
    desk.change(IDS[2], deleted=True)
    desk.turn()

    [call] = receiver.calls()
    assert call["path"] == "/hook?code=a%2Bb" and call["headers"]["Content-Type"] == "application/json"
    assert call["body"].startswith("{") and json.loads(call["body"]).keys() == {"value"}
    expires = desk.subscriptions[id].expires_at
    for item, entity, change in zip(receiver.items(), IDS, ("created", "updated", "deleted"), strict=False):
        at = datetime.fromisoformat(item.pop("lastModifiedDateTime"))
        assert timedelta(0) <= datetime.now(UTC) - at < timedelta(seconds=20)
        assert abs(datetime.fromisoformat(item.pop("expirationDateTime")) - expires) < timedelta(milliseconds=1)
        assert item == {"subscriptionId": id, "clientState": "state of mind", "resource": f"{RUNS}({entity})", "changeType": change}
    desk.turn()
    assert len(receiver.calls()) == 1
    with desk.store.read() as connection:
        assert connection.execute(sa.select(changes)).all() == []


@pytest.mark.rule("K4")
def test_changes_join_for_a_while_after_the_first(desk, receiver):
    desk = with_settings(desk, webhook_merge_s=0.6)
    desk.subscribe(receiver.url())
    began = time.time()
    desk.change(IDS[0])
    desk.turn()
    assert receiver.calls() == []
    time.sleep(0.3)
    desk.change(IDS[0])
    desk.change(IDS[1], created=True)
    desk.until(receiver.calls)

    assert 0.6 <= receiver.calls()[0]["at"] - began < 3
    assert [item["changeType"] for item in receiver.items()] == ["updated", "created"]
    desk.change(IDS[0])
    desk.turn()
    assert len(receiver.calls()) == 1                    # another wait has begun
    desk.until(lambda: len(receiver.calls()) == 2)


@pytest.mark.rule("K4")
def test_above_a_thousand_a_receiver_is_told_where_to_look(desk, receiver):
    id = desk.subscribe(receiver.url())
    before = datetime.now(UTC)
    desk.change(*IDS)
    desk.turn()

    [item] = receiver.items()
    resource, _, since = item["resource"].partition("?$filter=lastModifiedDateTime%20gt%20")
    assert (item["subscriptionId"], item["changeType"], resource) == (id, "collection", RUNS)
    assert before - timedelta(milliseconds=2) <= datetime.fromisoformat(since) < datetime.fromisoformat(item["lastModifiedDateTime"])


@pytest.mark.rule("K4")
def test_subscriptions_with_one_address_share_a_call_and_the_others_have_their_own(desk, receiver):
    one, two = desk.subscribe(receiver.url("/a"), state="1"), desk.subscribe(receiver.url("/a"), entity_id=IDS[0], resource=f"{RUNS}(x)")
    desk.subscribe(receiver.url("/b"))
    desk.change(IDS[0], IDS[1])
    desk.turn()

    assert len(receiver.calls("/a")) == len(receiver.calls("/b")) == 1
    assert [(item["subscriptionId"], item["clientState"], item["resource"]) for item in receiver.items("/a")] == [
        (one, "1", f"{RUNS}({IDS[0]})"), (one, "1", f"{RUNS}({IDS[1]})"), (two, "state of mind", f"{RUNS}(x)")]


@pytest.mark.rule("K4")
def test_a_call_holds_a_thousand_items_at_most_and_the_next_one_the_rest(desk, receiver):
    ids = {desk.subscribe(receiver.url()) for _ in range(3)}
    desk.change(*IDS[:MOST - 300])
    desk.until(lambda: len(receiver.calls()) == 3)

    assert {len(json.loads(call["body"])["value"]) for call in receiver.calls()} == {MOST - 300}
    assert {item["subscriptionId"] for item in receiver.items()} == ids


# ------------------------------------------------------------------ receivers that do not take it


@pytest.mark.rule("K5")
@pytest.mark.parametrize("mode", [{"status": 408}, {"status": 429}, {"status": 500}, {"status": 503}, {"status": 599}, {"hang_up": True},
                                  {"wait_s": 2}, {"drip": 0.1}], ids=str)
def test_a_receiver_that_fails_is_told_again_what_it_has_missed_and_only_later(desk, receiver, mode):
    if mode.keys() & {"wait_s", "drip"}:
        desk = with_settings(desk, webhook_timeout_s=0.7)
    id = desk.subscribe(receiver.url())
    receiver.mode(**mode)
    desk.change(IDS[0], created=True)
    desk.turn()
    row = desk.row(id)
    assert row.attempts == 1 and row.failing_since and timedelta(0) < row.next_at - datetime.now(UTC) + timedelta(seconds=1)
    desk.change(IDS[0])
    desk.change(IDS[1])
    receiver.mode()
    calls = len(receiver.calls())
    desk.until(lambda: len(receiver.calls()) > calls)

    last = json.loads(receiver.calls()[-1]["body"])["value"]
    assert [(item["resource"][-3:-1], item["changeType"]) for item in last] == [("01", "created"), ("02", "updated")]
    row = desk.row(id)
    assert (row.attempts, row.failing_since, row.next_at, row.waiting_since) == (0, None, None, None)
    outcomes = [entry.outcome for entry in desk.log]
    assert outcomes[:-1] == ["again"] * (len(outcomes) - 1) and len(outcomes) > 1 and outcomes[-1] == "delivered"
    assert [entry.attempt for entry in desk.log] == list(range(1, len(outcomes) + 1))


@pytest.mark.rule("K5")
def test_nobody_there_is_a_failure_too_and_who_comes_back_is_told(desk, receiver):
    desk.subscribe(receiver.url())
    receiver.close()
    desk.change(IDS[0])
    desk.turn()
    desk.turn()
    assert desk.log[0].status == 0 and desk.log[0].error and desk.log[0].outcome == "again"
    receiver.start()
    desk.until(receiver.calls)
    assert len(receiver.items()) == 1


@pytest.mark.rule("K5")
def test_the_pauses_between_tries_double_up_to_an_hour(desk, receiver):
    desk = with_settings(desk, webhook_retry_s=30.0)
    id = desk.subscribe(receiver.url())
    receiver.mode(status=500)
    desk.change(IDS[0])
    pauses = []
    for _ in range(9):
        desk.turn()
        row = desk.row(id)
        pauses.append(round((row.next_at - datetime.now(UTC)).total_seconds() / 30))
        desk.turn()                                      # not before its time
        assert len(receiver.calls()) == len(pauses)
        with desk.store.write() as connection:
            connection.execute(subscriptions.update().values(next_at=datetime.now(UTC)))
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 120, 120]


@pytest.mark.rule("K5")
@pytest.mark.parametrize("status", [300, 302, 307, 400, 401, 404, 410, 422])
def test_any_other_answer_ends_the_subscription(desk, receiver, status):
    gone, kept = desk.subscribe(receiver.url("/gone")), desk.subscribe(receiver.url("/kept"))
    receiver.mode(**{"/gone": {"status": status, "headers": {"Location": receiver.url("/kept")}}, "/kept": {"status": 204}})
    desk.change(IDS[0])
    desk.turn()

    assert desk.subscriptions.keys() == {kept}
    assert {entry.outcome for entry in desk.log if entry.subscriptions == gone} == {"removed"}
    with desk.store.read() as connection:
        assert f"its receiver answered {status}" in connection.scalars(sa.select(events.c.why)).all()
    assert len(receiver.calls("/kept")) == 1


def test_a_subscription_that_its_receiver_has_ended_is_told_to_those_who_watch(desk, receiver, monkeypatch):
    told = []
    monkeypatch.setattr(desk.service, "telemetry", SimpleNamespace(on=True, emit=told.extend))
    gone = desk.subscribe(receiver.url("/gone"))
    receiver.mode(status=410)
    desk.change(IDS[0])
    desk.turn()

    assert [(signal.name, signal.subject, signal.dimensions) for signal in told if signal.failed] == [
        ("subscription.remove", f"subscription {gone}", {"HttpStatus": 410})]


@pytest.mark.rule("K5")
def test_after_a_day_and_a_half_of_failing_what_is_owed_is_dropped_and_later_changes_are_told(desk, receiver):
    id = desk.subscribe(receiver.url())
    receiver.mode(status=503)
    desk.change(IDS[0])
    desk.turn()
    with desk.store.write() as connection:
        connection.execute(subscriptions.update().values(failing_since=datetime.now(UTC) - timedelta(hours=35.9), next_at=None))
    desk.turn()
    with desk.store.write() as connection:
        connection.execute(subscriptions.update().values(failing_since=datetime.now(UTC) - timedelta(hours=36.1), next_at=None))
    desk.turn()

    assert [entry.outcome for entry in desk.log] == ["again", "again", "given up"]
    assert desk.row(id).waiting_since is None and desk.row(id).attempts == 0
    receiver.mode()
    desk.change(IDS[1])
    desk.turn()
    assert [item["resource"] for item in json.loads(receiver.calls()[-1]["body"])["value"]] == [f"{RUNS}({IDS[1]})"]


@pytest.mark.rule("K5")
def test_a_receiver_that_hangs_does_not_hold_up_the_others(desk, receiver):
    slow, quick = desk.subscribe(receiver.url("/slow")), desk.subscribe(receiver.url("/quick"))
    receiver.mode(**{"/slow": {"wait_s": 0.8}})
    for n in range(3):
        desk.change(IDS[n])
        desk.deliverer.turn()
        time.sleep(0.1)
    assert len(receiver.calls("/quick")) >= 2 and len(receiver.calls("/slow")) == 1      # one at a time to each address
    desk.until(lambda: len(receiver.items("/slow")) == 3)
    assert {desk.row(slow).waiting_since, desk.row(quick).waiting_since} == {None}


def test_what_changes_while_a_receiver_is_being_told_is_told_next(desk, receiver):
    desk.subscribe(receiver.url())
    receiver.mode(wait_s=0.4)
    desk.change(IDS[0])
    desk.deliverer.turn()
    time.sleep(0.1)
    desk.change(IDS[0])
    desk.change(IDS[1])
    desk.until(lambda: len(receiver.calls()) == 2)

    assert [item["resource"] for item in receiver.items()] == [f"{RUNS}({id})" for id in (IDS[0], IDS[0], IDS[1])]


@pytest.mark.rule("K6")
def test_an_address_that_has_become_private_is_not_called_but_tried_again(desk, receiver):
    id = desk.subscribe(receiver.url())
    desk = with_settings(desk, webhook_networks="")
    desk.change(IDS[0])
    desk.turn()
    assert receiver.calls() == [] and "is private" in desk.log[0].error and desk.row(id).attempts == 1


@pytest.mark.rule("K2")
def test_a_subscription_that_was_not_renewed_is_told_nothing_and_vanishes(desk, receiver):
    id = desk.subscribe(receiver.url())
    desk.change(IDS[0])
    with desk.store.write() as connection:
        connection.execute(subscriptions.update().values(expires_at=datetime.now(UTC)))
    assert not desk.deliverer.turn()
    assert receiver.calls() == [] and desk.row(id) is None
    with desk.store.read() as connection:
        assert "expire" in connection.scalars(sa.select(events.c.event)).all()


# ------------------------------------------------------------------ signature, log


def test_with_a_secret_notifications_are_signed_as_openssl_would(desk, receiver):
    desk = with_settings(desk, webhook_secret=SECRET)
    desk.subscribe(receiver.url())
    desk.change(IDS[0])
    desk.turn()
    [call] = receiver.calls()
    signed = f"{call['headers']['webhook-id']}.{call['headers']['webhook-timestamp']}.{call['body']}"
    key = base64.b64decode(SECRET.removeprefix("whsec_")).hex()
    judge = subprocess.run(["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{key}", "-binary"], input=signed.encode(),
                           capture_output=True, check=True)
    assert call["headers"]["webhook-signature"] == f"v1,{base64.b64encode(judge.stdout).decode()}"
    assert abs(int(call["headers"]["webhook-timestamp"]) - time.time()) < 20


def test_without_a_secret_nothing_is_signed_and_a_wrong_one_is_refused(desk, receiver):
    desk.subscribe(receiver.url())
    desk.change(IDS[0])
    desk.turn()
    assert not [name for name in receiver.calls()[0]["headers"] if name.lower().startswith("webhook-")]
    for wrong in ("secret", "whsec_", "whsec_!!!", "whsec_" + base64.b64encode(b"short").decode()):
        with pytest.raises(Exception, match="webhook_secret is not"):
            Settings(webhook_secret=wrong)


@pytest.mark.rule("K6")
def test_the_log_is_bounded_and_holds_no_secret(desk, receiver, caplog):
    desk = with_settings(desk, webhook_log=5)
    with caplog.at_level("DEBUG", "skylift"):
        desk.subscribe(receiver.url("/hook?code=geheim"), state="topsecret")
        for n in range(8):
            desk.change(IDS[n])
            desk.turn()
    assert [entry.id for entry in desk.log] == [4, 5, 6, 7, 8]
    assert {(entry.url, entry.items, entry.attempt, entry.status, entry.outcome) for entry in desk.log} == {
        (receiver.url("/hook"), 1, 1, 200, "delivered")}
    with desk.store.read() as connection:
        kept = repr(connection.execute(sa.select(deliveries)).all()) + repr(connection.execute(sa.select(events)).all())
    for secret in ("geheim", "topsecret"):
        assert secret not in kept and secret not in caplog.text


# ------------------------------------------------------------------ processes


DELIVER = """
import sys
from pathlib import Path
from types import SimpleNamespace
from skylift.migration.delivery import deliver
from skylift.migration.service import Service
from skylift.settings import load_settings
from skylift.store import open_store
settings = load_settings()
deliver(Service(open_store(settings.store), settings, "x"), lambda: False)
"""


def test_a_deliverer_that_is_killed_again_and_again_loses_nothing(desk, receiver):
    """kill -9 at any moment: between two calls, in one, and between a receiver's answer and its being written down."""
    desk = with_settings(desk, lease_s=0.3)
    ids = {path: desk.subscribe(receiver.url(path)) for path in ("/a", "/b")}
    receiver.mode(**{"/a": {"wait_s": 0.02}, "/b": {"status": 503}})
    told, kills = set(), 0
    while kills < 5:
        process = subprocess.Popen([sys.executable, "-c", DELIVER], env=os.environ | desk.service.settings.environment())
        before, end = len(receiver.calls("/a")), time.monotonic() + 30
        while len(receiver.calls("/a")) < before + 2:
            assert process.poll() is None and time.monotonic() < end
            desk.change(IDS[len(told)], created=True)
            told.add(f"{RUNS}({IDS[len(told)]})")
            time.sleep(0.02)
        time.sleep(0.017 * kills)
        process.kill()
        process.wait()
        kills += 1
    receiver.mode()
    desk.until(lambda: all(desk.row(id).waiting_since is None for id in ids.values()))

    for path in ids:
        assert {item["resource"] for item in receiver.items(path) if item["changeType"] == "created"} == told
    assert len(told) >= 10


def test_a_receiver_that_was_away_while_the_service_was_restarted_is_told_afterwards(desk, receiver):
    desk.subscribe(receiver.url())
    receiver.close()
    desk.change(IDS[0], created=True)
    first = spawn_coordinator(desk.service.settings)
    try:
        end = time.monotonic() + 20
        while not desk.log:
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        first.stop()
    receiver.start()
    second = spawn_coordinator(desk.service.settings)
    try:
        end = time.monotonic() + 20
        while not receiver.items():
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        second.stop()
    assert [item["changeType"] for item in receiver.items()] == ["created"]


def test_only_who_holds_the_lease_delivers_and_the_others_stand_by(desk, receiver):
    desk.subscribe(receiver.url())
    assert leases.acquire(desk.store, DELIVERER, "another", 60)
    child = spawn_coordinator(desk.service.settings)
    try:
        desk.change(IDS[0])
        time.sleep(1.0)
        assert receiver.calls() == []
        leases.release(desk.store, DELIVERER, "another")
        end = time.monotonic() + 20
        while not receiver.calls():
            assert time.monotonic() < end
            time.sleep(0.05)
        with desk.store.read() as connection:
            assert connection.scalar(sa.select(lease_table.c.holder).where(lease_table.c.name == DELIVERER)).split(":")[1] == str(child.pid)
    finally:
        child.stop()
    with desk.store.read() as connection:
        assert connection.scalar(sa.select(lease_table.c.holder).where(lease_table.c.name == DELIVERER)) is None


def test_without_subscriptions_nobody_takes_the_lease_or_writes(lab):
    """The deliverer of an idle service costs a small query a turn."""
    statements = []
    sa.event.listen(lab.store._readers, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    turns = iter([False] * 3 + [True] * 99)
    service = Service(lab.store, Settings(home=lab.migration.settings.home, poll_s=0.01), "x")
    statements.clear()
    delivery.deliver(service, lambda: next(turns))
    asked = [statement for statement in statements if "FROM subscriptions" in statement]
    assert asked and {" ".join(statement.split()) for statement in statements if statement not in asked} <= {
        "begin", "SELECT migration.one FROM migration"}


def test_a_process_that_ends_does_not_wait_for_a_receiver_that_hangs(desk, receiver):
    desk = with_settings(desk, webhook_timeout_s=30.0)
    desk.subscribe(receiver.url())
    receiver.mode(wait_s=20)
    desk.change(IDS[0])
    environment = os.environ | desk.service.settings.environment()
    process = subprocess.Popen([sys.executable, "-m", "skylift", "coordinate"], env=environment, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    end = time.monotonic() + 20
    while not receiver.calls():
        assert time.monotonic() < end
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    assert time.monotonic() - began < 8
