"""Values of 2 to 50 MB arrive, and the process that moves them stays small: measured in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

from skylift.connectors import opened
from skylift.engine.pool import copy_tables
from skylift.model import CopyTask, TargetName
from tests.connectors.labs import SOURCES, TARGETS
from tests.connectors.test_conformance import insert

SIZES = [2 * 2**20 + i * 48 * 2**20 // 11 for i in range(12)]      # 2 to 50 MiB
MOST_MB = 600                 # the programs take 280 of it; the rest is three to five copies of one value: driver, Arrow, encoder, page
# Measured 550 to 565 and 520 to 645: how much DuckDB has in memory depends on how soon its checkpoints come, which a busy machine delays.
DUCKDB_MB, MIXED_DUCKDB_MB = 650, 800


def copy(source_url, target_url):
    with opened(source_url, target_url) as (source, open_target):
        tasks = [CopyTask("", table.name, table, TargetName("", table.name)) for table in source.tables()]
        done = list(copy_tables(tasks, source, open_target(), copy_id="c1", consumer="tests", workers=2))
    assert all(p.error is None for p in done), [p.error for p in done]
    with open("/proc/self/status") as status:      # of this program alone; ru_maxrss also counts what stood here before it was started
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return {"peak_mb": peak / 1024, "rows": done[-1].rows}


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system does not tell a program's peak of memory")
@pytest.mark.parametrize(("source_kind", "target_kind"), [
    ("sqlite", "parquet"), ("sqlite", "delta"), ("sqlite", "postgres"), ("sqlite", "duckdb"), ("postgres", "duckdb"), ("mysql", "duckdb"),
])
def test_values_of_50_mb_arrive_in_bounded_memory(source_kind, target_kind, tmp_path):
    source, target = SOURCES[source_kind](tmp_path), TARGETS[target_kind](tmp_path)
    source.execute(source.ddl("t", {"id": "int", "v": "blob"}, ("id",)))
    source.execute(insert("t", [(i, os.urandom(size)) for i, size in enumerate(SIZES)]))

    assert_bounded(source, target, len(SIZES), MOST_MB if target_kind != "duckdb" else DUCKDB_MB)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the system does not tell a program's peak of memory")
@pytest.mark.parametrize("target_kind", ["parquet", "duckdb"])
def test_a_large_value_now_and_then_takes_no_more(target_kind, tmp_path):
    """Twelve of 50 MB among 2,400 rows, so that a chunk of small ones may have several."""
    source, target = SOURCES["sqlite"](tmp_path), TARGETS[target_kind](tmp_path)
    source.execute(source.ddl("t", {"id": "int", "v": "blob"}, ("id",)))
    for first in range(0, 2400, 200):
        source.execute(insert("t", [(i, os.urandom(50 * 2**20 if i == first + 100 else 10_000)) for i in range(first, first + 200)]))

    assert_bounded(source, target, 2400, MOST_MB if target_kind != "duckdb" else MIXED_DUCKDB_MB)


def assert_bounded(source, target, rows, most_mb):
    done = subprocess.run([sys.executable, "-m", "tests.engine.test_large_values", source.url, target.url], capture_output=True, text=True,
                          check=False)

    assert done.returncode == 0, done.stderr
    taken = json.loads(done.stdout.splitlines()[-1])
    print(f"{source.url} -> {target.url}: {taken['peak_mb']:.0f} MB")
    assert taken["rows"] == rows and taken["peak_mb"] < most_mb


if __name__ == "__main__":
    from skylift.engine.warm import warm_up
    warm_up(*sys.argv[1:3])
    print(json.dumps(copy(*sys.argv[1:3])))
