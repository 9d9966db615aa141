"""Being killed, edited, restored, filled up: what a copy survives, and what it says."""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager

import pytest

from skylift.connectors import open_source, open_target
from skylift.engine.pool import copy_tables
from skylift.engine.verify import compare_tables
from skylift.errors import SetupError, SourceChanged, TargetFailed, Transient
from skylift.model import CopyTask, TargetName
from skylift.runs import TableStatus
from tests.connectors.labs import DuckDBLab, SqliteLab, migrate
from tests.connectors.test_conformance import ITEM, KEY, insert, simple, successful

CHILD = """
import sys
import skylift.connectors.duckdb
skylift.connectors.duckdb.DuckDBTarget.chunk_rows = 500
from tests.connectors.labs import migrate
results = migrate(*sys.argv[1:4])
for progress in results.values():
    if progress.error:
        sys.exit(f"{type(progress.error).__name__}: {progress.error}")
"""


def child(source, target, copy_id, code=CHILD, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), source.url, target.url, copy_id], stderr=subprocess.PIPE, text=True, **kwargs
    )


def fill(source, tables=4):
    source.execute(
        *(source.ddl(f"small{i}", ITEM, KEY) for i in range(tables)),
        *(insert(f"small{i}", simple(0, 40)) for i in range(tables)),
        source.ddl("big", ITEM, KEY),
        insert("big", simple(0, 12_000)),
        source.ddl("keyless", {"a": "text"}),
        insert("keyless", [("x",)] * 7),
    )


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_and_ends_exact(source, target, tmp_path):
    """kill -9 at random moments of full and incremental runs; the judge compares every row of every table."""
    fill(source)
    begun = time.monotonic()
    assert child(source, DuckDBLab(tmp_path / "unhurt"), "timing").wait() == 0
    whole = time.monotonic() - begun               # of a run that nobody kills: kills fall anywhere within
    chance = random.Random(11)
    names = ["big", "keyless", *(f"small{i}" for i in range(4))]
    kills = 0
    for run in range(30):
        if run >= 4 and kills >= 6:
            break
        for attempt in itertools.count():
            begun = time.monotonic()
            process = child(source, target, f"run {run}")
            try:
                process.wait(timeout=whole * chance.uniform(0.3, 0.9 + attempt / 3) if kills < 12 else None)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
            if process.wait() == 0:
                whole = time.monotonic() - begun    # the machine's pace now: others may be using it
                break
            assert process.returncode == -signal.SIGKILL, process.stderr.read()
        for name in names:
            assert target.rows(name) == source.rows(name), (run, name)
        source.execute(
            f"delete from big where line % 17 = {run}",
            f"update small1 set name = 'run {run}' where line % 3 = 0",
            insert("big", simple(100_000 + run * 1_000, 400)),
            insert("keyless", [(f"{run}",)]),
            "update big set amount = '-1.50000000000000000000' where line % 29 = 0",
        )
    assert kills >= 6


def test_a_copy_that_stops_after_two_chunks_loads_only_the_others_when_called_again(source, target, monkeypatch):
    monkeypatch.setattr("skylift.connectors.duckdb.DuckDBTarget.chunk_rows", 500)
    source.execute(source.ddl("big", ITEM, KEY), insert("big", simple(0, 2_000)))
    reader, writer = open_source(source.url), open_target(target.url)
    tasks = [CopyTask("", t.name, t, TargetName("", t.name)) for t in reader.tables()]
    seen = []
    for progress in copy_tables(tasks, reader, writer, copy_id="c", consumer="tests", workers=1, stop=lambda: len(seen) >= 3):
        seen.append(progress.rows)
    assert seen[-1] < 2_000

    loaded = []
    honest = reader.read
    monkeypatch.setattr(reader, "read", lambda table, keys: loaded.append(keys) or honest(table, keys))
    [*_, last] = copy_tables(tasks, reader, writer, copy_id="c", consumer="tests", workers=1)
    writer.close()

    assert last.status is TableStatus.SUCCESSFUL and len(loaded) < 4
    assert target.rows("big") == source.rows("big")


class LosingItsConnection:
    """A target whose connection is lost in every other commit: after the transaction has happened, but before anybody is told."""

    def __init__(self, target):
        self._target, self.lost = target, 0

    def __getattr__(self, name):
        return getattr(self._target, name)

    @contextmanager
    def transaction(self):
        with self._target.transaction() as transaction:
            yield transaction
        self.lost += 1
        if self.lost % 2:
            raise Transient("the connection was lost while a transaction was committed")


def test_a_commit_that_is_not_told_is_not_done_twice(source, target, monkeypatch):
    monkeypatch.setattr("skylift.connectors.duckdb.DuckDBTarget.chunk_rows", 500)
    fill(source, tables=2)
    names = ["big", "keyless", "small0", "small1"]

    results = migrate(source.url, target.url, "c1", through=LosingItsConnection)

    assert set(successful(results)) == set(names)
    assert {name: results[name].digest.rows for name in names} == {"big": 12_000, "keyless": 7, "small0": 40, "small1": 40}
    for name in names:
        assert target.rows(name) == source.rows(name)

    source.execute("delete from big where line < 100", "update small0 set name = 'new'", insert("small1", simple(40, 5)))
    results = migrate(source.url, target.url, "c2", through=LosingItsConnection)

    assert successful(results) == {"big": "incremental", "keyless": "unchanged", "small0": "incremental", "small1": "incremental"}
    assert {name: results[name].digest.rows for name in names} == {"big": 11_900, "keyless": 7, "small0": 40, "small1": 45}
    assert successful(migrate(source.url, target.url, "c3")) == dict.fromkeys(names, "unchanged")
    for name in names:
        assert target.rows(name) == source.rows(name)


def test_rows_edited_during_the_copy_arrive_as_the_source_ends(source, target, monkeypatch):
    """Every read is followed by an edit of rows already read and not yet read, and of keys at both edges."""
    monkeypatch.setattr("skylift.connectors.duckdb.DuckDBTarget.chunk_rows", 500)
    source.execute(
        source.ddl("big", ITEM, KEY), insert("big", simple(100, 3_000)), source.ddl("small", ITEM, KEY), insert("small", simple(0, 9))
    )
    reader, writer = open_source(source.url), open_target(target.url)
    tasks = [CopyTask("", t.name, t, TargetName("", t.name)) for t in reader.tables()]
    honest, edits = reader.read, iter(range(100))

    def read_and_edit(table, keys):
        yield from honest(table, keys)
        n = next(edits)
        script = f"""
        import sqlite3
        c = sqlite3.connect({str(source.path)!r}, timeout=30)
        c.execute("delete from big where line = ?", [110 + {n}]); c.execute("update big set name = 'edited' where line in (?, ?)",
            [200 + {n}, 3000 - {n}])
        c.execute("insert into big select 'A{n}', {-n - 1}, amount, at, name, note, data, ratio from big limit 1")
        c.execute("insert into big select 'Z{n}', {9000 + n}, amount, at, name, note, data, ratio from big limit 1")
        c.execute("update small set name = 'edited {n}'"); c.commit()
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)

    monkeypatch.setattr(reader, "read", read_and_edit)
    results = {p.task.table.name: p for p in copy_tables(tasks, reader, writer, copy_id="c", consumer="tests", workers=2)}
    writer.close()
    assert results["big"].status is TableStatus.SUCCESSFUL and results["big"].deleted > 0
    successful(migrate(source.url, target.url, "c2"))  # what was edited after the last look at a table

    assert target.rows("big") == source.rows("big")
    assert target.rows("small") == source.rows("small")


def test_a_recreated_table_and_a_restored_backup_are_copied_whole_and_say_why(source, target, tmp_path):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 20)), source.ddl("other", ITEM, KEY), insert("other", simple(0, 3)))
    migrate(source.url, target.url, "c1")
    source.execute("pragma wal_checkpoint(truncate)")
    shutil.copy(source.path, tmp_path / "backup.db")
    source.execute("drop table t", source.ddl("t", ITEM, KEY), insert("t", simple(5, 20)))

    results = migrate(source.url, target.url, "c2")

    assert successful(results) == {"t": "full", "other": "unchanged"} and "recreated" in results["t"].reason
    assert target.rows("t") == source.rows("t")

    for leftover in source.path.parent.glob("source.db-*"):
        leftover.unlink()
    shutil.copy(tmp_path / "backup.db", source.path)
    source.execute(insert("t", simple(700, 90)), "delete from other")

    results = migrate(source.url, target.url, "c3")

    assert successful(results) == {"t": "full", "other": "full"} and "backup" in results["t"].reason
    assert target.rows("t") == source.rows("t") and target.rows("other").total() == 0


def test_a_read_only_source_is_never_written_and_is_compared_when_it_changed(source, target):
    source.execute(
        source.ddl("t", ITEM, KEY),
        insert("t", simple(0, 20)),
        "create table keyless (a int)",
        "insert into keyless values (1)",
    )
    source.execute("pragma journal_mode=delete")
    before = source.path.read_bytes()
    url = source.url + "?mode=ro"

    assert successful(migrate(url, target.url, "c1")) == {"t": "full", "keyless": "full"}
    assert successful(migrate(url, target.url, "c2")) == {"t": "unchanged", "keyless": "unchanged"}
    assert source.path.read_bytes() == before
    source.execute(insert("t", simple(20, 5)), "delete from t where line = 3", "update t set name = 'new' where line = 4")
    changed = source.path.read_bytes()
    results = migrate(url, target.url, "c3")

    assert successful(results) == {"t": "incremental", "keyless": "full"} and "no primary key" in results["keyless"].reason
    assert (results["t"].inserted, results["t"].updated, results["t"].deleted) == (5, 1, 1)
    assert target.rows("t") == source.rows("t") and source.path.read_bytes() == changed


def test_untrack_leaves_the_source_as_it_was_found(source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 20)))
    with open_judge(source) as judge:
        before = judge.execute("select * from sqlite_schema where name not like 'sqlite_%'").fetchall()
    migrate(source.url, target.url, "c1")
    reader = open_source(source.url)
    reader.track(reader.tables(), "another environment")
    reader.untrack("tests")
    assert reader.query("select count(*) from sqlite_schema where type = 'trigger'") == [(3,)]
    reader.untrack("another environment")
    reader.close()

    with open_judge(source) as judge:
        assert judge.execute("select * from sqlite_schema where name not like 'sqlite_%'").fetchall() == before


def open_judge(source):
    import sqlite3
    from contextlib import closing

    return closing(sqlite3.connect(source.path))


def test_the_log_forgets_what_has_arrived_and_keeps_what_another_environment_has_not_read(source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 20)))
    migrate(source.url, target.url, "c1")
    source.execute("update t set name = 'a'")
    migrate(source.url, target.url, "c2")
    reader = open_source(source.url)
    assert reader.query("select count(*) from _skylift_log") == [(0,)]
    other = reader.track(reader.tables(), "other")
    reader.close()
    source.execute("update t set name = 'b'")
    migrate(source.url, target.url, "c3")
    migrate(source.url, target.url, "c4")

    reader = open_source(source.url)
    reader.track(reader.tables(), "other")
    with reader.changes(reader.tables()[0], other["t"]) as changes:
        assert len(changes.keys) == 20
    reader.close()


def test_a_full_disk_ends_the_run_with_its_reason_and_the_next_run_finishes(source, target):
    fill(source, tables=1)
    migrate(source.url, target.url, "c0", only={"small0"})
    limited = CHILD.replace(
        "import sys\n",
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({target.path.stat().st_size},) * 2)\n",
        1,
    )

    process = child(source, target, "c1", limited)
    errors = process.communicate()[1]

    assert process.returncode == 1 and "TargetFailed" in errors and str(target.path) in errors
    assert target.rows("small0") == source.rows("small0")
    successful(migrate(source.url, target.url, "c1"))
    assert target.rows("big") == source.rows("big")


def test_a_target_in_use_and_a_target_that_cannot_be_written_say_so(target, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import duckdb, time; c = duckdb.connect({str(target.path)!r}); print(1, flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    with pytest.raises(Transient, match="in use by another program"):
        open_target(target.url)
    holder.kill()
    holder.wait()
    (tmp_path / "text.duckdb").write_text("not a database at all, but long enough to be looked at" * 500)
    with pytest.raises(SetupError, match=r"text\.duckdb"):
        open_target(f"duckdb:///{tmp_path}/text.duckdb")
    with pytest.raises(SetupError, match="cannot be"):
        open_target("duckdb:////proc/nowhere/t.duckdb")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("not a url", "is not a URL"),
        ("oracle://host/db", "'oracle' is not a source"),
        ("sqlite://", "names no file"),
        ("sqlite:////nowhere/x.db", "cannot be read"),
        ("sqlite:///{folder}", "cannot be read"),
        ("sqlite:///{folder}/empty.db", "not a SQLite database"),
        ("sqlite:///{folder}/text.db", "not a SQLite database"),
        ("sqlite:///{folder}/broken.db", "malformed"),
        ("sqlite:///{folder}/good.db?mode=rwc", "no other option"),
        ("parquet:///x", "not a source"),
    ],
)
def test_a_source_that_is_none_is_told_at_once(tmp_path, url, words):
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("hello")
    lab = SqliteLab(tmp_path)
    lab.execute("create table t (a)")
    lab.execute("pragma wal_checkpoint(truncate)")
    (tmp_path / "broken.db").write_bytes(lab.path.read_bytes()[:100] + b"\xde\xad" * 4_000)
    with pytest.raises(SetupError, match=words):
        open_source(url.format(folder=tmp_path)).tables()


def test_a_password_in_a_malformed_string_is_not_repeated():
    with pytest.raises(SetupError) as error:
        open_source("sqlite//user:geheim@host;Password=geheim")
    assert "geheim" not in str(error.value)


def test_an_edit_that_a_read_only_source_cannot_log_is_refused(source, target, monkeypatch):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 20)))
    reader, writer = open_source(source.url + "?mode=ro"), open_target(target.url)
    honest = reader.read

    def read_and_edit(table, keys):
        yield from honest(table, keys)
        time.sleep(0.01)
        subprocess.run(
            ["sqlite3", str(source.path)]
            if False
            else [
                sys.executable,
                "-c",
                (f"import sqlite3; c = sqlite3.connect({str(source.path)!r}); c.execute('update t set name = random()'); c.commit()"),
            ],
            check=True,
        )

    monkeypatch.setattr(reader, "read", read_and_edit)
    tasks = [CopyTask("", t.name, t, TargetName("", t.name)) for t in reader.tables()]
    [*_, last] = copy_tables(tasks, reader, writer, copy_id="c", consumer="tests", workers=1)
    writer.close()

    assert last.status is TableStatus.FAILED and isinstance(last.error, SourceChanged) and "mode=ro" in str(last.error)


def test_verify_names_missing_extra_and_different_rows(source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 300)), source.ddl("same", ITEM, KEY), insert("same", simple(0, 3)))
    migrate(source.url, target.url, "c1")
    import duckdb

    with duckdb.connect(str(target.path)) as tamper:
        tamper.execute(
            "delete from t where line = 7; update t set name = 'x', ratio = 0 where line = 9; insert into t by name"
            " (select * replace ('new' as no) from t where line = 11)"
        )
    source.execute(source.ddl("later", ITEM, KEY))
    reader, writer = open_source(source.url), open_target(target.url)
    tasks = [CopyTask("", t.name, t, TargetName("", t.name)) for t in reader.tables()]

    found = {d.task.table.name: d for d in compare_tables(tasks, reader, writer, writer.states())}
    writer.close()

    assert found["same"].equal and not found["t"].equal
    assert (found["t"].missing, found["t"].extra) == (("('N000007', 7)",), ("('new', 11)",))
    assert found["t"].different == ("('N000009', 9): name, ratio",)
    assert "no finished copy" in found["later"].note


def test_a_dead_connection_to_the_target_is_told_as_the_targets_failure(source, target, monkeypatch):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 3)))
    reader, writer = open_source(source.url), open_target(target.url)
    tasks = [CopyTask("", t.name, t, TargetName("", t.name)) for t in reader.tables()]
    writer.close()
    with pytest.raises(TargetFailed):
        list(copy_tables(tasks, reader, writer, copy_id="c", consumer="tests", workers=1))


def test_a_target_table_that_another_source_table_fills_from_now_on_is_copied_whole(source, target):
    """The feed of the new source table says nothing about the rows of the old one, however alike the two are."""
    source.execute(source.ddl("a", ITEM, KEY), insert("a", simple(0, 20)), source.ddl("b", ITEM, KEY), insert("b", simple(500, 20)))
    for copy_id, name in (("c1", "a"), ("c2", "b")):
        reader, writer = open_source(source.url), open_target(target.url)
        [table] = [t for t in reader.tables() if t.name == name]
        task = CopyTask("", "t", table, TargetName("", "t"))
        [*_, last] = copy_tables([task], reader, writer, copy_id=copy_id, consumer="tests", workers=1)
        writer.close()
        assert (last.status, last.mode) == (TableStatus.SUCCESSFUL, "full")

    assert last.reason == "it was filled from 'a' before"
    assert target.rows("t") == source.rows("b")
