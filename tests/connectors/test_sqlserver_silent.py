"""A SQL Server that accepts the connection and says nothing any more, as source and as target, behind a relay that is held."""

import threading
import time
from contextlib import closing

import pytest

from skylift.connectors import open_source, open_target, silence, sqlserver
from skylift.connectors.sqlserver import Session
from skylift.connectors.sqlserver_bulk import Loader
from skylift.connectors.sqlserver_source import SqlServerSource
from skylift.connectors.sqlserver_target import SqlServerTransaction
from skylift.errors import SetupError, SourceFailed, TargetFailed, Transient
from tests.connectors.labs import DuckDBLab, SqliteLab, SqlServerLab, SqlServerTargetLab, migrate
from tests.connectors.relay import relay_elsewhere
from tests.connectors.test_conformance import ITEM, KEY, insert, simple, successful

LONG = ("declare @n bigint = 0; while @n < 8 begin select @n = @n + 1 from (select count_big(*) as n from sys.all_columns a cross join "
        "sys.all_columns b where a.object_id < b.object_id) s end")
PAIRS = "select top 60000 a.name, b.name, replicate('x', 100) from sys.all_columns a cross join sys.all_columns b"
MANY = ("create table t (id int not null primary key, v nvarchar(100))",
        "insert into t select top (30000) row_number() over (order by (select 1)), replicate(N'v', 60) "
        "from sys.all_columns a cross join (select top (30) 1 as x from sys.all_columns) b")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("skylift.connectors.pooling.RECONNECT_S", 1)
    monkeypatch.setattr("skylift.connectors.silence.SILENT_S", 1)
    monkeypatch.setattr("skylift.connectors.sqlserver.LOGIN_TIMEOUT_S", 2)
    monkeypatch.setattr("skylift.connectors.sqlserver._patience", {})
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < 120


@pytest.fixture
def behind():
    """Of a lab: the address through a relay, and the relay, which is let go at the end."""
    opened = []

    def through(lab):
        context = relay_elsewhere(lab.address.host, lab.address.port or 1433)
        relay = context.__enter__()
        opened.append((context, relay))
        return lab.address.set(host="127.0.0.1", port=relay.port), relay

    yield through
    for context, relay in opened:
        relay.let_go()
        context.__exit__(None, None, None)


def text(address):
    return address.render_as_string(hide_password=False)


def test_a_source_that_falls_silent_while_rows_are_read_ends_the_run_and_the_next_goes_on(tmp_path, monkeypatch, impatient, behind):
    lab, target = SqlServerLab(), DuckDBLab(tmp_path)
    lab.execute(*MANY)
    address, relay = behind(lab)
    honest = SqlServerSource.read

    def read(self, table, keys):
        for batch in honest(self, table, keys):
            yield batch
            relay.hold()

    with monkeypatch.context() as patch:
        patch.setattr(SqlServerSource, "read", read)
        with pytest.raises(SourceFailed, match=rf"{lab.address.database}' on 127.0.0.1,{relay.port}: .*[Tt]imeout"):
            migrate(text(address), target.url, "c1", chunk_rows=10_000)
    relay.let_go()

    assert successful(migrate(text(address), target.url, "c1", chunk_rows=10_000)) == {"t": "full"}
    assert target.rows("t") == lab.rows("t")


def test_a_source_that_falls_silent_before_it_answers_ends_the_run(tmp_path, monkeypatch, impatient, behind):
    lab, target = SqlServerLab(), DuckDBLab(tmp_path)
    lab.execute(*MANY)
    address, relay = behind(lab)
    honest = SqlServerSource.read
    monkeypatch.setattr(SqlServerSource, "read", lambda self, table, keys: (relay.hold(), honest(self, table, keys))[1])

    with pytest.raises(SourceFailed, match=r"[Tt]imeout"):
        migrate(text(address), target.url, "c1")


@pytest.mark.parametrize("moment", ["while rows are sent", "in the commit"])
def test_a_target_that_falls_silent_ends_the_run_and_the_next_goes_on(tmp_path, monkeypatch, impatient, behind, moment):
    source, target = SqliteLab(tmp_path), SqlServerTargetLab()
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 20_000)))
    address, relay = behind(target)
    with monkeypatch.context() as patch:
        if moment == "in the commit":
            commit = SqlServerTransaction.commit
            patch.setattr(SqlServerTransaction, "commit", lambda self: (relay.hold(), commit(self)))
        else:
            load = Loader.load
            patch.setattr(Loader, "load", lambda *given: (relay.hold(), load(*given)))
        with pytest.raises(TargetFailed, match=rf"on 127.0.0.1,{relay.port}: .*[Tt]imeout"):
            migrate(source.url, text(address), "c1", chunk_rows=5_000)
    relay.let_go()

    assert successful(migrate(source.url, text(address), "c1", chunk_rows=5_000)) == {"t": "full"}
    assert target.rows("t") == source.rows("t")


def test_who_waits_is_told_that_the_server_answers_nobody(impatient, behind):
    address, relay = behind(SqlServerLab())
    with closing(Session(address)) as session:
        relay.hold()
        with pytest.raises(Transient, match=rf"on 127.0.0.1,{relay.port}: the connection was lost: the server has said nothing for 1 s"):
            session.run("select 1")


def test_a_server_that_is_silent_from_the_beginning_says_where(impatient, behind):
    address, relay = behind(SqlServerLab())
    relay.hold()
    for opened in (open_source, open_target):
        with pytest.raises(SetupError, match=rf"on 127.0.0.1,{relay.port}: .*[Tt]imeout"):
            opened(text(address))


def test_a_step_that_takes_long_is_waited_for_while_the_server_answers(monkeypatch):
    monkeypatch.setattr("skylift.connectors.silence.SILENT_S", 0.2)
    asked = []
    honest = sqlserver._connected
    monkeypatch.setattr(sqlserver, "_connected", lambda *given: asked.append(1) or honest(*given))
    with closing(Session(SqlServerLab().address)) as session:
        session.run(LONG)

    assert len(asked) > 1                          # the session's own, and at least one to ask


def test_a_pause_in_the_middle_of_a_result_is_waited_for_longer_each_time(monkeypatch, impatient, behind):
    address, relay = behind(SqlServerLab())
    waited = []
    for _ in range(2):
        with closing(Session(address)) as session:
            rows = session.batches(PAIRS)
            next(rows)
            relay.hold()
            begun = time.monotonic()
            with pytest.raises(Transient, match="in the middle of a result"):
                list(rows)
            waited.append(time.monotonic() - begun)
            relay.let_go()

    assert 1 <= waited[0] < 4 <= waited[1]


def test_only_the_wires_of_the_connection_are_cut(behind):
    lab = SqlServerLab()
    with closing(Session(lab.address)) as one, closing(Session(lab.address)) as other:
        loader = Loader(other)
        one._wires.cut()
        with pytest.raises(Transient, match="connection was lost"):
            one.run("select 1")
        assert other.run("select 1") == [(1,)]
        loader.run("select 1")
        loader.close()


def test_whoever_returns_in_time_is_left_alone(monkeypatch):
    monkeypatch.setattr(silence, "SILENT_S", 0.05)
    asking, cut = threading.Event(), []

    def answers():
        asking.set()
        time.sleep(0.2)
        return False

    with silence.watched("somewhere", answers, lambda: cut.append(1)):
        assert asking.wait(5)
    time.sleep(0.4)

    assert not cut
