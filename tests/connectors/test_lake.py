"""A folder of data files as a target: what readers see at every moment, what a crash at every step leaves, names, sizes, refusals.

The judge is DuckDB, which reads the folder as anybody would; what the log says is compared with what DuckDB sees.
"""

import errno
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skylift.connectors import lake_files, lake_s3, lake_store, open_source, open_target
from skylift.engine.hashing import digest_all
from skylift.engine.pool import copy_tables
from skylift.errors import SetupError, TargetFailed, Transient, ValueRefused
from skylift.model import CopyTask, Table, TargetName
from tests.connectors.labs import OTHER_PLACES, TARGETS, SqliteLab, migrate
from tests.connectors.test_conformance import ITEM, KEY, insert, simple, successful


@pytest.fixture
def source(tmp_path):
    return SqliteLab(tmp_path)


@pytest.fixture(params=["parquet", "delta"])
def target(request, tmp_path):
    return TARGETS[request.param](tmp_path)


@pytest.fixture(params=["parquet", "delta", "parquet_s3", "delta_s3"])
def anywhere(request, tmp_path):
    return (TARGETS | OTHER_PLACES)[request.param](tmp_path)


# ------------------------------------------------------------------ what readers see


def test_readers_see_the_old_rows_or_the_new_ones_whenever_they_look(source, target):
    """Every run changes every row of a table of several files, or copies it whole; a reader looks all the while."""
    source.execute(source.ddl("t", {"id": "int", "v": "int"}, ("id",)), ("insert into t values (?, 0)", [(i,) for i in range(900)]))
    migrate(source.url, target.url, "c0", chunk_rows=300)
    seen, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            try:
                rows = target.rows("t")
            except duckdb.Error as error:              # the folder changed between listing and reading: an error, never a wrong answer
                assert re.search(r"No files found|No such file|Cannot open", str(error)), error
                continue
            seen.append((rows.total(), len({v for _, (_, v) in rows})))

    reader = threading.Thread(target=look)
    reader.start()
    for run in range(1, 200):
        if run > 12 and len(seen) > 5:                 # on a fast disk runs are over before anybody has looked
            break
        source.execute(f"update t set v = {run}")
        successful(migrate(source.url, target.url, f"c{run}", chunk_rows=300, full=run % 2 == 0))
    stop.set()
    reader.join()

    assert len(seen) > 5 and set(seen) == {(900, 1)}


def test_nothing_is_seen_of_a_copy_that_has_not_ended(source, anywhere):
    source.execute(source.ddl("big", ITEM, KEY), insert("big", simple(0, 2_000)))
    reader, writer = open_source(source.url), open_target(anywhere.url)
    writer.chunk_rows = 500
    tasks = [CopyTask("", t.name, t, TargetName("", t.name)) for t in reader.tables()]
    seen = []
    for progress in copy_tables(tasks, reader, writer, copy_id="c", consumer="tests", workers=1, stop=lambda: len(seen) >= 3):
        seen.append(progress.rows)
        assert anywhere.names() == set()
    writer.close()
    reader.close()

    assert anywhere.names() == set()
    successful(migrate(source.url, anywhere.url, "c"))
    assert anywhere.rows("big") == source.rows("big")


# ------------------------------------------------------------------ being killed


class Killed(BaseException):
    """The process is gone: nothing runs any more, not even what tidies up."""


STEPS = [*((store, name) for store in (lake_store.Folder, lake_s3.Bucket)
           for name in ("create", "writer", "sync", "show", "delete", "move")),
         (lake_s3.Bucket, "_copied"), (os, "link"),
         (lake_store, "_sync"), (lake_store, "_change_places"), (lake_store.shutil, "rmtree"), (pq.ParquetWriter, "write_table")]


class Killer:
    """Lets the given number of steps happen, and nothing from then on."""

    def __init__(self, monkeypatch):
        self.left = 10**9
        for owner, name in STEPS:
            honest = getattr(owner, name)
            monkeypatch.setattr(owner, name, self._counted(honest))

    def _counted(self, honest):
        def step(*args, **kwargs):
            if self.left <= 0:
                raise Killed
            self.left -= 1
            return honest(*args, **kwargs)
        return step


def run_until_killed(source, target, copy_id, killer, after):
    """True if the run ended before it was killed."""
    reader, writer = open_source(source.url), open_target(target.url)
    writer.chunk_rows = 200
    tasks = [CopyTask("", t.name, t, TargetName("", t.name)) for t in reader.tables()]
    killer.left = after
    try:
        list(copy_tables(tasks, reader, writer, copy_id=copy_id, consumer="tests", workers=1))
        return True
    except Killed:
        return False
    finally:
        killer.left = 10**9
        writer._store.close()
        reader.close()


@pytest.mark.slow
def test_a_run_killed_at_every_single_step_leaves_readers_and_log_in_agreement_and_resumes(source, anywhere, monkeypatch):
    """The n-th run dies before its n-th step. After each, whoever opens the lake puts it right, and each table is as old or as new."""
    killer = Killer(monkeypatch)
    source.execute(source.ddl("big", ITEM, KEY), insert("big", simple(0, 500)), source.ddl("a", ITEM, KEY), insert("a", simple(0, 9)),
                   source.ddl("b", {"x": "text"}), insert("b", [("y",)]))
    migrate(source.url, anywhere.url, "first", chunk_rows=200)
    tables = {name: open_source(source.url).tables()[i] for i, name in enumerate(("a", "b", "big"))}
    steps, new = 0, {name: anywhere.rows(name) for name in tables}
    remote = anywhere.url.count("+s3")
    for kind in range(2):                              # changes; changes and a full copy
        ended, steps_here = False, 0
        while not ended:
            steps_here += 1 + 4 * remote               # a server takes longer: every fifth step
            old = new
            source.execute(f"update big set name = 'k{kind} s{steps_here}' where line % 7 = {steps_here % 7}",
                           "delete from big where line = (select max(line) from big)", f"update a set name = 'k{kind} s{steps_here}'",
                           insert("b", [(f"k{kind} s{steps_here}",)]), insert("big", simple(10_000 * (kind + 1) + steps_here, 1)))
            if kind == 1:
                writer = open_target(anywhere.url)
                with writer.transaction() as t:        # forgotten, so that it is copied in chunks and swapped in
                    t._change(TargetName("", "big"), state=None)
                writer.close()
            new = {name: source.rows(name) for name in tables}
            ended = run_until_killed(source, anywhere, f"k{kind} s{steps_here}", killer, steps_here)

            opened = open_target(anywhere.url)
            for name, table in tables.items():
                seen, state = anywhere.rows(name), opened.states().get(TargetName("", name))
                assert seen in (old[name], new[name]), (kind, steps_here, name)
                if state:
                    assert state.digest == digest_all(b for part in opened.read_parts(TargetName("", name), table, 1) for b in part)
                    assert state.digest.rows == seen.total()
            opened.close()
            successful(migrate(source.url, anywhere.url, f"k{kind} s{steps_here} again"))
            assert {name: anywhere.rows(name) for name in tables} == new
        steps += steps_here
    assert steps > 40
    if not remote:                                     # there, a day must pass
        assert not [path for path in (anywhere.path / "_skylift/staging").rglob("*") if path.is_file()]


CHILD = """
import sys
from skylift.connectors.lake import LakeTarget
LakeTarget.chunk_rows = 500
from tests.connectors.labs import migrate
for progress in migrate(*sys.argv[1:4]).values():
    if progress.error:
        sys.exit(f"{type(progress.error).__name__}: {progress.error}")
"""


def child(source, target, copy_id, before=""):
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(before) + CHILD, source.url, target.url, copy_id],
                            stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_and_ends_exact(source, target):
    """kill -9 at random moments of full and incremental runs with two workers; the judge compares every row."""
    source.execute(source.ddl("big", ITEM, KEY), insert("big", simple(0, 12_000)), source.ddl("keyless", {"a": "text"}),
                   *(source.ddl(f"small{i}", ITEM, KEY) for i in range(4)), *(insert(f"small{i}", simple(0, 40)) for i in range(4)))
    chance, kills, whole = random.Random(7), 0, 4.0
    for run in range(30):
        if run >= 2 and kills >= 4:
            break
        while True:
            begun, process = time.monotonic(), child(source, target, f"run {run}")
            try:
                process.wait(timeout=chance.uniform(0.4, 1.3) * whole if kills < 8 else None)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
            if process.wait() == 0:
                whole = time.monotonic() - begun
                break
            assert process.returncode == -signal.SIGKILL, process.stderr.read()
        for name in ("big", "keyless", "small1"):
            assert target.rows(name) == source.rows(name), (run, name)
        source.execute(f"delete from big where line % 17 = {run}", f"update small1 set name = 'run {run}'",
                       insert("big", simple(100_000 + run * 1_000, 400)), insert("keyless", [(f"{run}",)]))
    assert kills >= 4


# ------------------------------------------------------------------ failing


def test_a_full_disk_ends_the_run_with_its_reason_and_the_next_run_finishes(source, target):
    source.execute(source.ddl("small", ITEM, KEY), insert("small", simple(0, 40)))
    migrate(source.url, target.url, "c0")
    source.execute(source.ddl("big", ITEM, KEY), insert("big", simple(0, 9_000)))
    source.execute("pragma journal_mode=delete")
    source.url += "?mode=ro"                           # which writes nothing, so that the limit meets the target alone

    process = child(source, target, "c1", """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        """)
    errors = process.communicate()[1]

    assert process.returncode == 1 and "TargetFailed" in errors and str(target.path) in errors and "File too large" in errors
    assert target.rows("small") == source.rows("small")
    successful(migrate(source.url, target.url, "c1"))
    assert target.rows("big") == source.rows("big")


def test_a_disk_that_fills_up_after_the_commit_is_put_right_by_the_next_run(source, target, monkeypatch):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 40)))
    migrate(source.url, target.url, "c0")
    source.execute("update t set name = 'new'")

    def full(store, act, items):
        if items:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lake_store.Folder, "each", full)
        with pytest.raises(TargetFailed, match=r"No space left.*committed, before readers could see"):
            migrate(source.url, target.url, "c1")
    assert successful(migrate(source.url, target.url, "c2")) == {"t": "unchanged"}
    assert target.rows("t") == source.rows("t")


@pytest.mark.parametrize("missing", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_links_or_exchange_holds_the_same_rows(source, target, monkeypatch, missing):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 400)))
    migrate(source.url, target.url, "c0", chunk_rows=100)

    def cannot(*paths):
        raise OSError(missing, os.strerror(missing))

    for change, module, name in (("update t set name = 'new' where line < 50", os, "link"),
                                 ("delete from t where line > 350", lake_store, "_change_places")):
        source.execute(change)
        with monkeypatch.context() as patch:
            patch.setattr(module, name, cannot)
            successful(migrate(source.url, target.url, change))
        assert target.rows("t") == source.rows("t")


def test_files_that_are_not_skylifts_stay_where_they_are(source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 40)))
    migrate(source.url, target.url, "c0")
    (target.path / "main/t/README").write_text("mine")
    source.execute("update t set name = 'new'")

    successful(migrate(source.url, target.url, "c1"))

    assert target.rows("t") == source.rows("t") and (target.path / "main/t/README").read_text() == "mine"


def test_places_that_cannot_be_written_say_so(target, tmp_path):
    with pytest.raises(SetupError, match="cannot be written"):
        open_target(target.url.replace(str(tmp_path), "/proc/nowhere"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(SetupError, match="cannot be written"):
        open_target(f"parquet:///{tmp_path}/file")
    with pytest.raises(SetupError, match="names no folder"):
        open_target("parquet://")
    with pytest.raises(SetupError, match="unknown option nonsense"):
        open_target(target.url + "?nonsense=1")


def test_a_lake_has_one_writer_at_a_time(target):
    first = open_target(target.url)
    with pytest.raises(Transient, match="in use by another program"):
        open_target(target.url)
    first.close()
    open_target(target.url).close()


def test_a_log_with_a_hole_is_not_read_over(source, target):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 4)))
    migrate(source.url, target.url, "c0")
    opened = open_target(target.url)
    for _ in range(3):
        with opened.transaction() as t:
            t.set_states(opened.states())
            t.create(TargetName("", "_skylift_x"), Table("x", pa.schema([("a", pa.int64())])))
    opened._store.close()
    entries = sorted(path for path in (target.path / "_skylift/log").iterdir() if "checkpoint" not in path.name)
    entries[1].unlink()
    with pytest.raises(SetupError, match=r"entry .* of the log is missing"):
        open_target(target.url)


# ------------------------------------------------------------------ values, sizes


EVERY_TYPE = {
    "bool": (pa.bool_(), [True, False]), "i8": (pa.int8(), [-128, 127]), "i16": (pa.int16(), [-2**15, 2**15 - 1]),
    "i32": (pa.int32(), [-2**31, 2**31 - 1]), "i64": (pa.int64(), [-2**63, 2**63 - 1]), "u8": (pa.uint8(), [0, 255]),
    "u16": (pa.uint16(), [0, 2**16 - 1]), "u32": (pa.uint32(), [0, 2**32 - 1]), "u64": (pa.uint64(), [0, 2**64 - 1]),
    "f32": (pa.float32(), [-0.0, float("nan")]), "f64": (pa.float64(), [-0.0, float("nan")]),
    "date": (pa.date32(), [-719162, 2932896]), "t6": (pa.time64("us"), [0, 86_399_999_999]),
    "t9": (pa.time64("ns"), [1, 86_399_999_999_999]), "ts": (pa.timestamp("us"), [-62135596800000000, 253402300799999999]),
    "tz": (pa.timestamp("us", "UTC"), [-62135596800000000, 253402300799999999]), "tn": (pa.timestamp("ns"), [-2**63 + 1, 2**63 - 1]),
    "text": (pa.string(), ["", "nul \0 é😀"]), "bytes": (pa.binary(), [b"", b"\0\xff"]),
    "uuid": (pa.uuid(), [b"\0" * 16, bytes(range(16))]),
    "dec": (pa.decimal128(38, 20), ["-999999999999999999.99999999999999999999", "0.00000000000000000001"]),
    "dec9": (pa.decimal128(9, 2), ["-9999999.99", "0.00"]),
}


def column(kind, values):
    if isinstance(kind, pa.ExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(values, pa.binary(16)))
    return pa.array(values, pa.string()).cast(kind) if pa.types.is_decimal(kind) else pa.array(values, kind)


def every_type(rows=2):
    batch = pa.RecordBatch.from_arrays([column(kind, [*values, None]) for kind, values in EVERY_TYPE.values()], names=list(EVERY_TYPE))
    return Table("every", batch.schema), batch


def test_every_type_is_read_back_as_it_was_written(anywhere):
    table, batch = every_type()
    name, opened = TargetName("", "every"), open_target(anywhere.url)
    with opened.transaction() as t:
        t.create(name, table)
        t.insert(name, table, iter([batch]))
        assert digest_all(t.read(name, table)) == digest_all([batch])
    back = pa.Table.from_batches([b for part in opened.read_parts(name, table, 2) for b in part])
    opened.close()

    assert back.schema == batch.schema and back.drop(["f32", "f64"]).equals(pa.Table.from_batches([batch]).drop(["f32", "f64"]))
    assert repr(back.column("f64").to_pylist()) == "[-0.0, nan, None]"


@pytest.mark.parametrize("kind", EVERY_TYPE)
def test_rows_are_found_and_deleted_by_keys_of_every_type(target, kind):
    """Also beside a second column of the key, where the first value occurs with another one."""
    type_, values = EVERY_TYPE[kind]
    for second in (False, True):
        keys = column(type_, [values[0], values[1], values[0]]) if second else column(type_, values)
        arrays = {"k": keys, **({"n": pa.array([1, 2, 3])} if second else {}), "v": pa.array([f"v{i}" for i in range(len(keys))])}
        batch = pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
        table = Table("keyed", batch.schema, ("k", "n") if second else ("k",))
        name, opened = TargetName("", "keyed"), open_target(target.url)
        wanted = pa.Table.from_batches([batch.select(list(table.key)).slice(0, 1)])
        with opened.transaction() as t:
            t.create(name, table)
            t.insert(name, table, iter([batch]))
            assert [row for b in t.read(name, table, wanted) for row in b.column("v").to_pylist()] == ["v0"], (kind, second)
            t.delete(name, wanted)
            assert sorted(row for b in t.read(name, table) for row in b.column("v").to_pylist()) == ["v1", "v2"][:1 + second]
            assert list(t.read(name, table, wanted)) == [] and t.count(name) == 1 + second
        opened.close()


def test_a_type_that_it_cannot_hold_is_refused_by_name(target):
    opened = open_target(target.url)
    table = Table("t", pa.schema([("a", pa.int64()), ("l", pa.list_(pa.int64()))]), source_types=("bigint", "bigint[]"))
    with pytest.raises(ValueRefused, match=r"t\.l: .* has no exact type for bigint\[\]"), opened.transaction() as t:
        t.create(TargetName("", "t"), table)
    opened.close()


def test_columns_are_told_apart_whatever_they_are_called(target):
    names = ["a", "a.b", "A b", 'q"', "[x]", "é"]
    batch = pa.RecordBatch.from_arrays([pa.array([i]) for i in range(len(names))], names=names)
    table, name, opened = Table("t", batch.schema, ("a.b",)), TargetName("", "t"), open_target(target.url)
    with opened.transaction() as t:
        t.create(name, table)
        t.insert(name, table, iter([batch]))
        assert [b.to_pydict() for b in t.read(name, Table("t", pa.schema([batch.schema.field("a")])))] == [{"a": [0]}]
        assert digest_all(t.read(name, table, pa.table({"a.b": [1]}))) == digest_all([batch])
    opened.close()

    with duckdb.connect() as connection:
        assert connection.execute("select * from read_parquet(?)", [f"{target.path}/main/t/*.parquet"]).fetchall() == [(0, 1, 2, 3, 4, 5)]


def test_many_small_changes_leave_few_files_and_rewrite_little(source, target):
    source.execute(source.ddl("t", {"id": "int", "v": "text"}, ("id",)), ("insert into t values (?, 'x')", [(i,) for i in range(3000)]))
    migrate(source.url, target.url, "c", chunk_rows=1000)
    written = []
    honest = lake_files._write

    def counted(*args):
        file = honest(*args)
        written.append(file.rows)
        return file

    lake_files._write = counted
    try:
        for run in range(40):
            source.execute(("insert into t values (?, 'new')", [(10_000 + 10 * run + i,) for i in range(10)]))
            successful(migrate(source.url, target.url, f"r{run}"))
    finally:
        lake_files._write = honest

    assert target.rows("t") == source.rows("t")
    assert len(target.files("t")) <= 12
    assert sum(written) < 400 * 12


def test_a_change_rewrites_only_the_files_that_hold_its_keys(source, anywhere):
    source.execute(source.ddl("t", {"id": "int", "v": "text"}, ("id",)), ("insert into t values (?, 'x')", [(i,) for i in range(100_000)]))
    migrate(source.url, anywhere.url, "c", chunk_rows=10_000)
    before = set(anywhere.files("t"))
    source.execute("update t set v = 'new' where id in (25000, 25001)", "delete from t where id = 29999")

    successful(migrate(source.url, anywhere.url, "r"))

    after = set(anywhere.files("t"))
    assert len(before) >= 9 and len(before - after) == 1 and anywhere.rows("t") == source.rows("t")


def test_a_table_that_is_emptied_and_filled_again_stays_readable(source, anywhere):
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 40)))
    for run, change in enumerate(("delete from t", insert("t", simple(3, 4)), "delete from t where line = 3", "delete from t")):
        migrate(source.url, anywhere.url, f"before {run}")
        source.execute(change)
        successful(migrate(source.url, anywhere.url, f"after {run}"))
        assert anywhere.rows("t") == source.rows("t") and len(anywhere.files("t")) <= 2


def test_a_checkpoint_takes_the_place_of_the_entries_before_it(source, target, monkeypatch):
    monkeypatch.setattr("skylift.connectors.lake_log._MIN_CHECKPOINT_BYTES", 3_000)
    source.execute(source.ddl("t", ITEM, KEY), insert("t", simple(0, 4)))
    migrate(source.url, target.url, "c0")
    opened = open_target(target.url)
    for _ in range(40):
        with opened.transaction() as t:
            t.set_states({name: replace(state, columns=state.columns + " ") for name, state in opened.states().items()})
    opened._store.close()                              # killed: nothing is gathered when it closes

    entries = list((target.path / "_skylift/log").iterdir())
    assert len(entries) < 12 and sum("checkpoint" in path.name for path in entries) == 1
    opened = open_target(target.url)
    assert opened.states()[TargetName("", "t")].columns.endswith(" " * 40)
    opened.close()


@pytest.mark.slow
def test_values_of_50_mb_arrive_within_bounded_memory(source, anywhere):
    source.execute(source.ddl("t", {"id": "int", "b": "blob"}, ("id",)),
                   ("insert into t values (?, randomblob(?))", [(i, 50_000_000 if i % 10 == 0 else 2_000_000) for i in range(30)]))
    peak = r"re.search(r'VmHWM:\s+(\d+)', open('/proc/self/status').read())[1]"     # ru_maxrss counts who started the process, too
    code = f"import atexit, re; atexit.register(lambda: print(int({peak}) // 1024))\n"
    process = subprocess.run([sys.executable, "-c", code + CHILD, source.url, anywhere.url, "c"], capture_output=True, text=True)

    assert process.returncode == 0, process.stderr
    assert anywhere.rows("t") == source.rows("t")
    assert int(process.stdout) < 600


def test_large_values_are_compressed_where_that_makes_them_smaller(tmp_path):
    size = 2 * lake_files.LARGE_BYTES
    table = pa.table({"id": [1, 2], "text": ["a" * size, "b" * size], "picture": [os.urandom(size), os.urandom(size)], "none": [b"", None]})
    store = lake_store.Folder(tmp_path)

    [file] = lake_files.write(store, table.schema, table.to_batches(), ["id"], lambda: "t.parquet")
    store.close()

    group = pq.ParquetFile(tmp_path / "t.parquet").metadata.row_group(0)
    assert [group.column(i).compression for i in range(4)] == ["ZSTD", "ZSTD", "UNCOMPRESSED", "ZSTD"]
    assert 2 * size < file.size_bytes < 2.1 * size
    assert pq.read_table(tmp_path / "t.parquet").equals(table)
