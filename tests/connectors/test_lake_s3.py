"""Lakes in buckets: what is wrong is told at once, a network that fails loses and doubles nothing, and nothing secret is repeated."""

import re
import socket
import threading
import time
import urllib.request
from contextlib import suppress
from dataclasses import replace

import pyarrow as pa
import pytest

from skylift.connectors import lake_s3, open_target
from skylift.errors import SetupError, SkyliftError, TargetFailed
from skylift.model import Digest, Table, TargetName, Watermark
from tests import servers
from tests.connectors.labs import OTHER_PLACES, SqliteLab, migrate
from tests.connectors.test_conformance import ITEM, KEY, insert, simple, successful

ONE = Table("one", pa.schema([("a", pa.int64())]))
SECRET = "se/cr+et"


class Gate:
    """A way to a server that can be shut, fall silent, or lose the answer to a request."""

    def __init__(self, port):
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.shut = self.silent = False
        self.lose = None                               # pattern of the request whose answer is lost, once
        self.lost = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            client, _ = self._listener.accept()
            if self.shut:
                client.close()
            else:
                threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client):
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            losing = threading.Event()

            def back():
                with suppress(OSError):                # the other direction has ended
                    while data := server.recv(65536):
                        if losing.is_set() or self.shut:
                            client.shutdown(socket.SHUT_RDWR)
                            return
                        if not self.silent:
                            client.sendall(data)

            answers = threading.Thread(target=back, daemon=True)
            answers.start()
            with suppress(OSError):
                while data := client.recv(65536):
                    if self.shut:
                        return
                    if self.lose and re.search(self.lose, data):
                        self.lose = None
                        self.lost += 1
                        losing.set()
                    server.sendall(data)


@pytest.fixture
def source(tmp_path):
    return SqliteLab(tmp_path)


@pytest.fixture(params=["parquet_s3", "delta_s3"])
def target(request, tmp_path):
    return OTHER_PLACES[request.param](tmp_path)


@pytest.fixture
def gate(target, monkeypatch):
    """The target behind a gate; patience ends sooner than it does in earnest."""
    made = Gate(int(target.endpoint.rsplit(":", 1)[1]))
    target.url = target.url.replace(target.endpoint, made.url)
    monkeypatch.setitem(lake_s3._RETRIES, "max_retries", 2)
    monkeypatch.setitem(lake_s3._TIMEOUTS, "read_timeout", "2s")
    yield made
    made.shut = True


def refusal(url):
    with pytest.raises(SetupError) as error:
        open_target(url)
    assert SECRET not in str(error.value) and "se%2Fcr" not in str(error.value)
    return str(error.value)


def test_a_bucket_that_is_missing_is_named(target):
    assert re.search(r"bucket nowhere-\w+/some where/ü: NoSuchBucket.*create the bucket first",
                     refusal(target.url.replace(target.bucket, "nowhere-x")))


def test_a_server_that_is_not_there_is_told_soon(target):
    begun = time.monotonic()
    assert "check endpoint and network" in refusal(target.url.replace(target.endpoint, f"http://127.0.0.1:{servers.free_port()}"))
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(("old", "new", "words"), [
    ("key:se%2Fcr%2Bet@", "key@", "a key needs a secret"), ("&region=us-east-1", "&nonsense=1", "unknown option nonsense"),
    ("+s3:", "+gopher:", "not a target that skylift knows"),
])
def test_a_url_that_is_none_is_told(target, old, new, words):
    assert words in refusal(target.url.replace(old, new))


def test_credentials_that_are_rejected_are_told_without_repeating_them(target, tmp_path):
    """A server of its own that checks them."""
    port = servers.free_port()
    (tmp_path / "s3").mkdir()
    process = servers.start_s3(tmp_path / "s3", port)
    endpoint = f"http://127.0.0.1:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})).close()

    found = refusal(target.url.replace(target.endpoint, endpoint))
    process.kill()

    assert "InvalidAccessKeyId" in found and "check key and secret" in found


def test_who_gives_no_credentials_is_told_how_to(target, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://169.254.0.1:1")
    monkeypatch.setitem(lake_s3._RETRIES, "max_retries", 0)
    monkeypatch.setitem(lake_s3._TIMEOUTS, "connect_timeout", "1s")
    assert "no credentials were found" in refusal(target.url.replace("key:se%2Fcr%2Bet@", ""))


def test_credentials_come_from_the_usual_variables(source, target, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 9)))
    successful(migrate(source.url, target.url.replace("key:se%2Fcr%2Bet@", ""), "c0"))
    assert target.rows("t") == source.rows("t")


@pytest.mark.parametrize("how", ["shut", "silent"])
def test_a_server_that_goes_away_in_mid_copy_ends_the_run_with_its_reason_and_the_next_run_finishes(source, target, gate, how):
    source.execute(source.ddl("big", ITEM, KEY), insert("big", simple(0, 3_000)))
    begun = time.monotonic()

    class Cutting:
        """Shuts the gate when the third chunk is asked for."""

        def __init__(self, target):
            self._target, self._chunks = target, 0

        def __getattr__(self, name):
            return getattr(self._target, name)

        def transaction(self):
            self._chunks += 1
            setattr(gate, how, self._chunks >= 4)
            return self._target.transaction()

    with pytest.raises(TargetFailed, match=r"bucket lab-.*check endpoint and network"):
        migrate(source.url, target.url, "c0", chunk_rows=300, through=Cutting)
    assert time.monotonic() - begun < 60
    setattr(gate, how, False)

    successful(migrate(source.url, target.url, "c0", chunk_rows=300))
    assert target.rows("big") == source.rows("big")


def test_a_commit_whose_answer_is_lost_happens_once(source, target, gate):
    """The server has the entry; the client asks again and is told that there is one: its own."""
    source.execute(source.ddl("big", ITEM, KEY), insert("big", simple(0, 900)))
    successful(migrate(source.url, target.url, "c0", chunk_rows=300))
    for number in range(3):
        source.execute(f"update big set name = 'n{number}' where line % 3 = {number}", insert("big", simple(5_000 + number, 1)))
        gate.lose = rb"PUT [^ ]*/_skylift/log/\d+\.json" if number < 2 else rb"PUT [^ ]*(_delta_log|_skylift/log)/\d+\.json"

        successful(migrate(source.url, target.url, f"c{number + 1}"))

        assert target.rows("big") == source.rows("big")
    assert gate.lost == 3


def test_two_writers_of_different_tables_do_not_lose_each_others_work_and_of_one_table_the_later_fails(target):
    first, second = open_target(target.url), open_target(target.url)
    for number in range(3):
        for writer, name in ((first, "a"), (second, "b")):
            with writer.transaction() as t:
                t.create(TargetName("", f"{name}{number}"), ONE)
                t.insert(TargetName("", f"{name}{number}"), ONE, iter([pa.RecordBatch.from_pydict({"a": [number]})]))
    with first.transaction() as t:
        t.create(TargetName("", "same"), ONE)
    with pytest.raises(TargetFailed, match="another program has changed same"), second.transaction() as t:
        t.create(TargetName("", "same"), ONE)
    first.close()

    found = open_target(target.url)
    assert sorted(name.table for name in found._log.tables) == ["a0", "a1", "a2", "b0", "b1", "b2", "same"]
    found.close()
    assert target.rows("b2") == target.rows("a2")


def test_a_lake_that_another_writer_has_gathered_meanwhile_is_read_again(target, monkeypatch):
    monkeypatch.setattr("skylift.connectors.lake_log._MIN_CHECKPOINT_BYTES", 1_000)
    for number in range(8):
        opened = open_target(target.url)
        with opened.transaction() as t:
            t.create(TargetName("", f"t{number}"), ONE)
            t.set_states({TargetName("", f"t{number}"): state(number)})
        if number % 2:
            opened.close()

    opened = open_target(target.url)
    assert {name.table: s.digest.rows for name, s in opened.states().items()} == {f"t{n}": n for n in range(8)}
    opened.close()


def state(rows):
    from skylift.connectors import TableState
    return replace(TableState(Digest(), Watermark("f", 1, "i"), "{}"), digest=Digest(rows))


def test_an_error_of_the_store_is_one_of_ours_wherever_it_is_met(target, gate):
    opened = open_target(target.url)
    gate.shut = True
    store, calls = opened._store, 0
    for call in (lambda: store.get("x"), lambda: store.create("x", b""), lambda: store.files("x"), lambda: store.delete(["x"]),
                 lambda: store.move({"x": "y"}), lambda: store.show("x", ["y"], bool), lambda: store.delete_folder("x")):
        with pytest.raises(SkyliftError, match="bucket lab-"):
            call()
        calls += 1
    assert calls == 7
    opened.close()
