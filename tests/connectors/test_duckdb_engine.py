"""DuckDB's memory limit follows the work: what is wider than it, or larger, still arrives, and one waits for the other."""

import hashlib
import subprocess
import sys
import threading
import time

import duckdb
import pyarrow as pa
import pytest

from skylift.connectors import duckdb_engine, open_source, open_target
from skylift.connectors.duckdb import DuckDBTransaction
from skylift.connectors.duckdb_engine import IDLE, MOST, Memory, engine, need
from skylift.engine.pool import copy_tables
from skylift.model import CopyTask, TargetName
from skylift.runs import TableStatus
from tests.connectors.labs import DuckDBLab, SqliteLab, migrate


@pytest.fixture
def labs(tmp_path):
    return SqliteLab(tmp_path), DuckDBLab(tmp_path)


def test_a_table_of_300_text_columns_is_copied_and_brought_up_to_date(labs):
    source, target = labs
    names = [f"c{i}" for i in range(300)]
    row = [hashlib.md5(name.encode()).hexdigest() for name in names]
    source.execute(source.ddl("wide", {"id": "int", **dict.fromkeys(names, "note")}, ("id",)),
                   (f'insert into "wide" values ({", ".join("?" * 301)})', [(i, *row[i % 300:], *row[:i % 300]) for i in range(17_000)]))
    [copied] = migrate(source.url, target.url, "a", chunk_rows=5_000).values()
    assert (copied.status, copied.rows) == (TableStatus.SUCCESSFUL, 17_000), copied.error
    source.execute('''update "wide" set c7 = 'changed' where id % 100 = 0''', 'delete from "wide" where id % 1000 = 1')
    [changed] = migrate(source.url, target.url, "b").values()
    assert (changed.mode, changed.updated, changed.deleted) == ("incremental", 170, 17), changed.error
    assert source.rows("wide") == target.rows("wide")


def test_values_far_above_the_limit_arrive(labs):
    source, target = labs
    source.execute(source.ddl("blobs", {"id": "int", "data": "blob"}, ("id",)))
    sizes = [50_000_000, 2_000_000, 20_000_000] * 4
    for i, size in enumerate(sizes):
        source.execute(('insert into "blobs" values (?, ?)', [(i, bytes([i]) * size)]))
    [copied] = migrate(source.url, target.url, "a").values()
    assert copied.status is TableStatus.SUCCESSFUL, copied.error
    with duckdb.connect(target.path, read_only=True) as judge:
        assert judge.execute("select id, octet_length(data), md5(data) from blobs order by id").fetchall() == [
            (i, size, hashlib.md5(bytes([i]) * size).hexdigest()) for i, size in enumerate(sizes)]


def test_a_limit_that_proves_too_low_is_raised_and_the_work_is_done_again(labs, monkeypatch):
    monkeypatch.setattr(duckdb_engine, "NEW_TABLE", 0)
    monkeypatch.setattr(duckdb_engine, "FIXED", 1)
    monkeypatch.setattr(duckdb_engine, "VARIABLE", 1)
    monkeypatch.setattr(duckdb_engine, "_engine", None)
    monkeypatch.setattr(duckdb_engine, "IDLE", 2 ** 20)
    source, target = labs
    for i in range(150):
        source.execute(source.ddl(f"t{i}", {"id": "int", "a": "note"}, ("id",)),
                       (f'insert into "t{i}" values (?, ?)', [(k, f"row {k}") for k in range(20)]))
    done = migrate(source.url, target.url, "a").values()
    assert [p.error for p in done if p.status is not TableStatus.SUCCESSFUL] == [] and len(done) == 150
    assert target.rows("t149") == source.rows("t149")


def test_a_limit_is_raised_only_so_far():
    memory, times = Memory(duckdb.connect()), 0
    while memory.allow_more():
        times += 1
    assert 3 < times < 8


def test_work_waits_for_memory_and_never_for_itself():
    memory = Memory(duckdb.connect())
    order: list[str] = []
    with memory.share() as first:
        first.at_least(MOST - 1)

        def other() -> None:
            with memory.share() as second:
                second.at_least(2)
                order.append("second")
                second.at_least(2 * MOST)                # what has begun goes on

        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"] and not thread.is_alive()


def test_the_limit_is_what_is_under_way_and_no_more():
    connection = duckdb.connect()
    memory = Memory(connection)

    def limit() -> int:
        [(text,)] = connection.execute("select current_setting('memory_limit')").fetchall()
        return round(float(text.split()[0])) * 2 ** 20

    assert limit() == IDLE
    wide = pa.schema([(f"c{i}", pa.string()) for i in range(500)])
    with memory.share() as share:
        share.at_least(need(wide))
        assert limit() == IDLE + need(wide) > MOST


FULL_DISK = """
import os, resource, signal, sys
from skylift.errors import TargetFailed
from tests.connectors.labs import migrate
source, target, path = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
migrate(source, target, "a", only={"small"})
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path), resource.RLIM_INFINITY))
for copy_id in "bc":
    try:
        migrate(source, target, copy_id)
    except TargetFailed as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
"""


def test_a_process_whose_disk_was_full_goes_on_when_there_is_room(labs):
    """A coordinator lives on, and DuckDB trusts no engine that could not write a commit."""
    source, target = labs
    for name, rows in (("small", 10), ("big", 40_000)):
        source.execute(source.ddl(name, {"id": "int", "a": "note"}, ("id",)),
                       (f'insert into "{name}" values (?, ?)', [(i, hashlib.md5(str(i).encode()).hexdigest()) for i in range(rows)]))
    done = subprocess.run([sys.executable, "-c", FULL_DISK, source.url, target.url, str(target.path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("free space") == 1 and str(target.path) in done.stdout, done.stdout
    assert target.rows("big") == source.rows("big") and target.rows("small") == source.rows("small")


def test_a_schema_that_is_named_like_the_file_is_no_other_database(labs):
    source, target = labs
    source.execute(source.ddl("t", {"id": "int"}, ("id",)), ('insert into "t" values (?)', [(1,), (2,)]))
    reader, writer = open_source(source.url), open_target(target.url)
    [table] = reader.tables()
    task = CopyTask(target.path.stem, "t", table, TargetName(target.path.stem, "t"))
    [*_, last] = copy_tables([task], reader, writer, copy_id="a", consumer="tests", workers=1)
    writer.close()
    assert last.status is TableStatus.SUCCESSFUL, last.error


def test_a_commit_that_lacked_memory_is_tried_again_with_more(labs, monkeypatch):
    """DuckDB says so in another error than where a statement lacks it. What it says was seen with thirty values of 2 to 50 MB."""
    source, target = labs
    source.execute(source.ddl("t", {"id": "int"}, ("id",)), ('insert into "t" values (?)', [(1,), (2,)]))
    said, limits = ["failed to pin block of size 7.0 MiB (301.4 MiB/296.7 MiB used)", "could not allocate block of size 41.0 MiB"], []
    honest = DuckDBTransaction.set_states

    def set_states(self, states):
        honest(self, states)
        limits.append(engine().memory._limit)
        if said:
            raise duckdb.TransactionException(f"TransactionContext Error: Failed to commit: {said.pop()}")

    monkeypatch.setattr(DuckDBTransaction, "set_states", set_states)

    assert migrate(source.url, target.url, "a")["t"].error is None

    assert limits == sorted(set(limits)) and len(limits) == 3
    assert target.rows("t") == source.rows("t")
