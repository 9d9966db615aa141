"""PostgreSQL as a source where things are not as they should be: servers that fail, feeds that are lost, rights that are missing.

And servers on either side that fall silent. Judge: psycopg, and DuckDB.
"""

import signal
import threading
import time
from contextlib import closing, contextmanager

import psycopg
import pytest
from sqlalchemy.engine import make_url

from skylift.connectors import open_source, open_target, postgres, postgres_source, postgres_target
from skylift.connectors.postgres_source import PostgresSource
from skylift.engine.pool import copy_tables
from skylift.errors import CopyError, SetupError, SourceFailed, TargetFailed, Transient
from skylift.model import CopyTask, TargetName
from skylift.runs import TableStatus
from tests import servers
from tests.connectors.labs import DuckDBLab, PostgresLab, PostgresTargetLab, SqliteLab, migrate
from tests.connectors.test_conformance import ITEM, KEY, insert, simple, successful

FEEDS = ("", "triggers", "none")
ROWS = 20_000


@pytest.fixture
def source(tmp_path):
    return PostgresLab(tmp_path)


@pytest.fixture
def own(tmp_path):
    """A source on a server that this test may crash and freeze."""
    return PostgresLab(tmp_path, "max_connections=22")


@pytest.fixture
def target(tmp_path):
    return DuckDBLab(tmp_path)


def fill(lab, name="t", rows=ROWS):
    lab.execute(f"create table {name} (id int primary key, v text)",
                f"insert into {name} select i, repeat('v' || i, 20) from generate_series(1, {rows}) i")


def once(monkeypatch, happening):
    """`happening` takes place after the first batch of a read of the source, once; says whether it has."""
    happened = []
    honest = postgres_source.copy_out

    def copy_out(connection, sql):
        for batch in honest(connection, sql, 64 * 1024):
            yield batch
            if not happened:
                happened.append(True)
                happening()

    monkeypatch.setattr(postgres_source, "copy_out", copy_out)
    return happened


class Late:
    """Has something happen when the watermarks have been taken and nothing has been read."""

    def __init__(self, monkeypatch, happening):
        honest, done = PostgresSource.track, []

        def track(self, tables, consumer):
            marks = honest(self, tables, consumer)
            if not done:
                done.append(True)
                happening()
            return marks

        monkeypatch.setattr(PostgresSource, "track", track)


# ------------------------------------------------------------------ servers that fail


@pytest.mark.parametrize("feed", FEEDS)
def test_a_source_that_is_restarted_in_mid_copy_is_read_on(own, target, feed, monkeypatch):
    fill(own)
    crashed = once(monkeypatch, lambda: servers.control_postgres(own.server, "restart"))

    results = migrate(f"{own.database}?feed={feed}" if feed else own.database, target.url, "c1", chunk_rows=5_000)

    assert crashed and successful(results) == {"t": "full"}
    assert target.rows("t") == own.rows("t")


def test_a_source_that_stays_away_ends_the_run_and_the_next_goes_on(own, target, monkeypatch):
    fill(own)
    monkeypatch.setattr("skylift.connectors.pooling.RECONNECT_S", 1)
    begun = time.monotonic()
    with monkeypatch.context() as patch:
        once(patch, lambda: servers.control_postgres(own.server, "stop"))
        with pytest.raises(SourceFailed, match="Connection refused"):
            migrate(own.url, target.url, "c1", chunk_rows=5_000)
    assert time.monotonic() - begun < 60
    servers.control_postgres(own.server, "restart")

    assert successful(migrate(own.url, target.url, "c1", chunk_rows=5_000)) == {"t": "full"}
    assert target.rows("t") == own.rows("t")


@contextmanager
def frozen(server):
    """Says when to freeze the server; it is thawed at the end."""
    try:
        yield lambda: servers.signal_postgres(server, signal.SIGSTOP)
    finally:
        servers.signal_postgres(server, signal.SIGCONT)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("skylift.connectors.pooling.RECONNECT_S", 1)
    monkeypatch.setattr("skylift.connectors.silence.SILENT_S", 1)
    monkeypatch.setitem(postgres._PARAMETERS, "connect_timeout", "2")


def test_a_source_that_freezes_is_not_waited_for_without_end(own, target, monkeypatch, impatient):
    fill(own)
    begun = time.monotonic()
    with frozen(own.server) as freeze, monkeypatch.context() as patch:
        once(patch, freeze)
        with pytest.raises(SourceFailed, match=r"timeout expired|answers nobody"):
            migrate(own.url, target.url, "c1", chunk_rows=5_000)
        assert time.monotonic() - begun < 60

    assert successful(migrate(own.url, target.url, "c1", chunk_rows=5_000)) == {"t": "full"}
    assert target.rows("t") == own.rows("t")


def test_a_source_that_stands_still_for_a_while_is_waited_for(own, target, monkeypatch, impatient):
    fill(own)
    with frozen(own.server) as freeze:
        def freeze_a_while():
            freeze()
            threading.Timer(2, servers.signal_postgres, (own.server, signal.SIGCONT)).start()

        once(monkeypatch, freeze_a_while)
        assert successful(migrate(own.url, target.url, "c1", chunk_rows=5_000)) == {"t": "full"}
    assert target.rows("t") == own.rows("t")


def test_a_statement_that_takes_long_is_waited_for_while_its_server_lives(source, impatient):
    with closing(open_source(source.url)) as reader, reader.connection() as connection:
        assert reader.row(connection, "select 'done', pg_sleep(4)")[0] == "done"


@pytest.mark.parametrize("moment", ["while rows are sent", "in the commit"])
def test_a_target_that_freezes_is_not_waited_for_without_end(tmp_path, monkeypatch, impatient, moment):
    source, target = SqliteLab(tmp_path), PostgresTargetLab(tmp_path, "max_connections=22")
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, ROWS)))
    begun = time.monotonic()
    with frozen(target.server) as freeze, monkeypatch.context() as patch:
        if moment == "in the commit":
            commit = postgres_target.PostgresTransaction.commit
            patch.setattr(postgres_target.PostgresTransaction, "commit", lambda self: (freeze(), commit(self)))
        else:
            honest = postgres_target.copy_in
            patch.setattr(postgres_target, "copy_in", lambda *given: (freeze(), honest(*given)))
        with pytest.raises(TargetFailed, match=r"timeout expired|answers nobody"):
            migrate(source.url, target.url, "c1", chunk_rows=5_000)
        assert time.monotonic() - begun < 60

    assert successful(migrate(source.url, target.url, "c1", chunk_rows=5_000)) == {"t": "full"}
    assert target.rows("t") == source.rows("t")


def test_a_target_that_has_become_a_standby_is_told_as_read_only(tmp_path):
    source, target = SqliteLab(tmp_path), PostgresTargetLab(tmp_path, "max_connections=23", "hot_standby=on")
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 3)))
    writer, reader = open_target(target.url), open_source(source.url)
    mark = servers.postgres_folder(target.server) / "standby.signal"
    with closing(reader), closing(writer):
        mark.touch()
        servers.control_postgres(target.server, "restart")
        tasks = [CopyTask("", t.name, t, TargetName("", t.name)) for t in reader.tables()]
        with pytest.raises(TargetFailed, match="read-only"):
            list(copy_tables(tasks, reader, writer, copy_id="c", consumer="tests", workers=2))
        with pytest.raises(SetupError, match=r"read-only.*primary"):
            open_target(target.url)
    mark.unlink()
    servers.control_postgres(target.server, "restart")

    successful(migrate(source.url, target.url, "c"))
    assert target.rows("t") == source.rows("t")


# ------------------------------------------------------------------ feeds that are lost


def overflow(own):
    """More write-ahead log than the slot may keep: it is invalidated at the next checkpoint."""
    with psycopg.connect(own.database, autocommit=True) as connection:
        connection.execute("alter system set max_slot_wal_keep_size = '1MB'")
        connection.execute("select pg_reload_conf()")
        for _ in range(4):
            connection.execute("create table if not exists noise (a int)")
            connection.execute("insert into noise values (1)")
            connection.execute("select pg_switch_wal()")
        connection.execute("checkpoint")
        connection.execute("drop table noise")
        assert connection.execute("select wal_status from pg_replication_slots where slot_name like '%skylift%'"
                                  " and database = current_database()").fetchall() == [("lost",)]
        connection.execute("alter system reset max_slot_wal_keep_size")
        connection.execute("select pg_reload_conf()")


def without_slot(own):
    own.execute("select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = current_database()")


def without_publication(own):
    [(name,)] = own.fetch("select pubname from pg_publication")
    own.execute(f"drop publication {name}")


def left_out(own):
    [(name,)] = own.fetch("select pubname from pg_publication")
    own.execute(f"alter publication {name} drop table t")


@pytest.mark.parametrize(("loss", "reason"), [
    (overflow, "more had been written than max_slot_wal_keep_size"), (without_slot, "slot or its publication is gone"),
    (without_publication, "slot or its publication is gone"), (left_out, "feed begins after the last copy")])
def test_a_lost_feed_leads_to_a_full_copy_that_says_why_and_a_new_feed(own, target, loss, reason):
    fill(own, rows=100)
    migrate(own.url, target.url, "c1")
    own.execute("update t set v = 'unheard' where id = 1", "delete from t where id = 2")
    loss(own)
    own.execute("update t set v = 'unheard' where id = 4")

    results = migrate(own.url, target.url, "c2")

    assert successful(results) == {"t": "full"} and reason in results["t"].reason
    assert target.rows("t") == own.rows("t")
    own.execute("update t set v = 'heard' where id = 3")
    assert successful(migrate(own.url, target.url, "c3")) == {"t": "incremental"}
    assert target.rows("t") == own.rows("t")


@pytest.mark.parametrize("loss", [without_slot, without_publication, left_out])
def test_a_feed_that_is_lost_in_mid_run_leads_to_a_full_copy(own, target, loss, monkeypatch):
    fill(own, rows=100)
    migrate(own.url, target.url, "c1")
    own.execute("update t set v = 'unheard' where id = 1")
    Late(monkeypatch, lambda: loss(own))

    successful(migrate(own.url, target.url, "c2"))

    assert target.rows("t") == own.rows("t")


# ------------------------------------------------------------------ rights, limits, settings


@contextmanager
def role(source, *grants, options="login"):
    """URL of the source for a new role that may do what `grants` say."""
    name = "limited_" + make_url(source.url).database
    source.execute(f"create role {name} {options}", *(g.format(name) for g in grants))
    try:
        yield make_url(source.url).set(username=name).render_as_string()
    finally:
        source.execute(f"reassign owned by {name} to skylift", f"drop owned by {name} cascade", f"drop role {name}")


def test_a_right_that_is_missing_is_named_and_the_other_tables_go_on(source, target):
    source.execute("create schema hidden", "create sequence numbers", *(
        f"create table {name} (id int primary key, v text)" for name in ("fine", "forbidden", "hidden.away", "half", "filtered")),
        "create table numbered (id int default nextval('numbers') primary key)",
        "insert into numbered default values", "alter table filtered enable row level security")
    grants = ("grant select on fine, filtered, numbered to {}", "grant select on hidden.away to {}", "grant select (id) on half to {}")
    with role(source, *grants) as url:
        user = make_url(url).username
        results = migrate(url, target.url, "c1")

        errors = {path: str(p.error) for path, p in results.items() if p.error}
        assert errors == {
            "forbidden": f'forbidden: user "{user}" lacks the right SELECT on table public.forbidden'
                         f' (grant SELECT on table public.forbidden to "{user}")',
            "half": f'half: user "{user}" lacks the right SELECT on table public.half (grant SELECT on table public.half to "{user}")',
            "hidden.away": f'hidden.away: user "{user}" lacks the right USAGE on schema hidden (grant USAGE on schema hidden to "{user}")',
            "filtered": f'filtered: user "{user}" lacks the right BYPASSRLS (alter role "{user}" bypassrls)'}
        assert all(p.status is TableStatus.SUCCESSFUL for path, p in results.items() if path not in errors)     # no sequence is asked for
        source.execute(f"grant select on forbidden, half to {user}", f"grant usage on schema hidden to {user}",
                       f"alter role {user} bypassrls")
        successful(migrate(url, target.url, "c2"))


def test_an_owner_without_replication_has_a_change_log_instead_of_a_slot(source, target):
    with role(source, "grant create on schema public to {}", f"grant create on database {make_url(source.url).database} to {{}}") as url:
        fill(source, rows=100)
        source.execute(f"alter table t owner to {make_url(url).username}")
        successful(migrate(url, target.url, "c1"))
        with closing(open_source(url)) as reader:
            assert {mark.feed for mark in reader.track(reader.tables(), "tests").values()} == {"change_log"}
        source.execute("update t set v = 'x' where id = 1", "delete from t where id = 2")
        assert successful(migrate(url, target.url, "c2")) == {"t": "incremental"}
        assert target.rows("t") == source.rows("t")


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_run_gets_along_with_few_connections_or_says_that_there_are_too_few(source, target, limit, monkeypatch):
    monkeypatch.setattr("skylift.connectors.pooling.RECONNECT_S", 2)
    for name in "abcd":
        fill(source, name, 2_000)
    with role(source, "grant select on all tables in schema public to {}", options=f"login connection limit {limit}") as url:
        begun = time.monotonic()
        if limit == 1:                             # one holds the snapshot that the others read
            with pytest.raises((Transient, SourceFailed), match="too many connections for role"):
                migrate(url, target.url, "c1", chunk_rows=500)
        else:
            successful(migrate(url, target.url, "c1", chunk_rows=500))
            assert all(target.rows(name) == source.rows(name) for name in "abcd")
        assert time.monotonic() - begun < 60


def test_timeouts_of_role_and_database_do_not_cut_a_copy_short(source, target, monkeypatch):
    fill(source)
    timeouts = ("statement_timeout", "idle_in_transaction_session_timeout")
    with role(source, "grant select on all tables in schema public to {}",
              *(f"alter role {{}} set {name} = '100ms'" for name in timeouts)) as url:
        once(monkeypatch, lambda: time.sleep(1))
        assert successful(migrate(url, target.url, "c1", chunk_rows=5_000)) == {"t": "full"}
    assert target.rows("t") == source.rows("t")


def test_a_rejected_login_and_one_that_is_locked_out_later_are_told(source, target, monkeypatch):
    monkeypatch.setattr("skylift.connectors.pooling.RECONNECT_S", 1)
    fill(source)
    with pytest.raises(SetupError, match=r'role "nobody" does not exist.*check user and password'):
        open_source(make_url(source.url).set(username="nobody").render_as_string())
    with role(source, "grant select on all tables in schema public to {}") as url:
        user = make_url(url).username
        once(monkeypatch, lambda: source.execute(
            f"alter role {user} nologin", f"select pg_terminate_backend(pid) from pg_stat_activity where usename = '{user}'"))
        with pytest.raises(SourceFailed, match="not permitted to log in"):
            migrate(url, target.url, "c1", chunk_rows=5_000)


# ------------------------------------------------------------------ tables that change under the copy


def test_tables_dropped_or_altered_between_plan_and_copy_fail_by_name_and_the_others_go_on(source, target, monkeypatch):
    for name in ("fine", "dropped", "renamed", "narrower", "wider"):
        fill(source, name, 100)
    Late(monkeypatch, lambda: source.execute("drop table dropped", "alter table renamed rename to elsewhere",
                                             "alter table narrower drop column v", "alter table wider add column w int"))

    results = migrate(source.url, target.url, "c1")

    errors = {path: p.error for path, p in results.items() if p.error}
    assert errors.keys() == {"dropped", "renamed", "narrower"}
    for path, words in (("dropped", "does not exist"), ("renamed", "does not exist"), ("narrower", 'column "v" does not exist')):
        assert isinstance(errors[path], CopyError) and str(errors[path]).startswith(f"{path}: ") and words in str(errors[path])
    assert target.rows("fine") == source.rows("fine")


REWRITES = {"another type": "alter table t alter v type varchar(200)", "emptied": "truncate t",
            "refilled": "truncate t; insert into t select i, 'new' from generate_series(1, 50) i",
            "longer": "alter table t add column w int default random()"}


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("feed", FEEDS)
def test_a_table_rewritten_between_watermark_and_copy_is_never_taken_for_empty(source, target, rewrite, feed, monkeypatch):
    """A snapshot sees a table that was rewritten after it as an empty one."""
    fill(source, rows=2_000)
    Late(monkeypatch, lambda: source.execute(REWRITES[rewrite]))

    results = migrate(f"{source.database}?feed={feed}" if feed else source.database, target.url, "c1", chunk_rows=500)

    assert results["t"].error is None
    assert target.fetch("select id, v from t order by id") == source.fetch("select id, v from t order by id")


def test_an_incremental_run_under_which_the_table_is_rewritten_loses_no_row(source, target, monkeypatch):
    fill(source, rows=2_000)
    migrate(source.url, target.url, "c1")
    source.execute("update t set v = 'x' where id < 10")
    Late(monkeypatch, lambda: source.execute("alter table t alter v type varchar(300) using v || ''"))

    successful(migrate(source.url, target.url, "c2"))

    assert target.rows("t") == source.rows("t")


def test_a_table_dropped_in_mid_copy_waits_and_one_that_was_altered_is_told_by_the_next_run(source, target, monkeypatch):
    """A reader's lock holds both back until its range has been read."""
    fill(source)
    threads = []

    def drop():
        threads.append(threading.Thread(target=source.execute, args=("alter table t drop column v",)))
        threads[0].start()
        time.sleep(0.3)

    once(monkeypatch, drop)
    results = migrate(source.url, target.url, "c1", chunk_rows=5_000)
    threads[0].join()

    assert "t" not in target.names() or not results["t"].error
    if results["t"].error:
        assert 'column "v" does not exist' in str(results["t"].error)
    assert successful(migrate(source.url, target.url, "c2", full=True)) == {"t": "full"}
    assert target.fetch("select count(*) from t") == [(ROWS,)]


def test_tables_of_one_name_in_several_schemas_are_each_their_own(source, target):
    source.execute("create schema one", "create schema two")
    for schema in ("one", "two", "public"):
        source.execute(f"create table {schema}.t (id int primary key, v text)", f"insert into {schema}.t values (1, '{schema}')")

    def run(copy_id):
        with closing(open_source(source.url)) as reader, closing(open_target(target.url)) as writer:
            tasks = [CopyTask(t.namespace, t.name, t, TargetName(t.namespace, t.name)) for t in reader.tables()]
            for progress in copy_tables(tasks, reader, writer, copy_id=copy_id, consumer="tests", workers=2):
                assert progress.error is None, progress.error

    run("c1")
    source.execute("update one.t set v = 'changed'", "delete from two.t")
    run("c2")

    assert target.fetch("select v from one.t union all select v from two.t union all select v from main.t") == [("changed",), ("public",)]
