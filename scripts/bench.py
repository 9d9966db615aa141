"""Measures skylift beside its peers and limits in one run, prints the table and writes docs/benchmarks.md. Called by scripts/bench.

Every figure is taken in a process of its own, whose clock starts when its code is loaded, as a coordinator's is; contenders take
turns, and the median counts. Ratios are claims; seconds belong to the machine that the page names.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

ENTRIES = "G_L Entry$437dbf0e-84ff-417a-965d-ed2bb9650972"
LOADS = {"status": "newest run ($orderby=startTime desc&$top=1)", "details": "100 details, filtered and ordered",
         "patch": "PATCH of a company", "metadata": "$metadata"}
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the table that is copied (default 1000000)")
    parser.add_argument("--large", type=int, default=10_000_000, help="rows for the memory measurement; 0 leaves it out")
    parser.add_argument("--routes", type=int, default=300_000, help="rows for the routes between servers; 0 leaves them out")
    parser.add_argument("--runs", type=int, default=3, help="runs of each contender, taking turns (default 3)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="skylift-bench-", dir=os.environ.get("TMPDIR")))
    try:
        lines = [*full(folder, options.rows, options.runs), *incremental(folder, options.rows, options.runs),
                 *small(folder, options.runs), *routes(folder, options.routes, options.runs), *api()]
        if options.large:
            lines += large(folder, options.large)
    finally:
        shutil.rmtree(folder)
    write(lines)


# ------------------------------------------------------------------ what is measured


def full(folder: Path, rows: int, runs: int) -> list[tuple[str, ...]]:
    source = make(folder / "one.db", rows)
    contenders = ("peer", "verified", "unverified")
    taken: dict[str, list[dict]] = {name: [] for name in contenders}
    for name in contenders * runs:
        taken[name].append(measure("copy", name, source, folder / f"{name}.duckdb"))
    peer, verified, unverified = (statistics.median(t["seconds"] for t in taken[name]) for name in contenders)
    memory = max(t["memory_mb"] for t in taken["verified"])
    return [(f"SQLite → DuckDB, {rows:,} rows × 50 columns, verified, against the unverified 30-line pipeline", f"{verified:.2f} s",
             f"{peer:.2f} s", f"{peer / verified:.2f} ×", "≥ 0.8 ×"),
            ("the same without verification", f"{unverified:.2f} s", f"{peer:.2f} s", f"{peer / unverified:.2f} ×", "–"),
            ("verification (hash, read back, compare) as a part of the copy", f"{verified - unverified:.2f} s", f"{unverified:.2f} s",
             f"{(verified - unverified) / unverified:.0%}", "≤ 25 %"),
            (f"peak memory at {rows:,} rows", f"{memory:.0f} MB", "–", "–", "≤ 600 MB")]


def large(folder: Path, rows: int) -> list[tuple[str, ...]]:
    source = make(folder / "large.db", rows)
    taken = measure("copy", "verified", source, folder / "large.duckdb")
    return [(f"peak memory at {rows:,} rows (copied in {taken['seconds']:.0f} s, {rows / taken['seconds']:,.0f} rows/s, verified)",
             f"{taken['memory_mb']:.0f} MB", "–", "–", "≤ 600 MB")]


def incremental(folder: Path, rows: int, runs: int) -> list[tuple[str, ...]]:
    taken = measure("incremental", folder / "one.db", folder / "incremental.duckdb", str(rows // 1000), str(runs))
    return [(f"run after 0.1 % of the rows changed ({taken['deleted']:,} of {rows // 1000:,} were deletes), against the full run "
             "of the same process", f"{taken['seconds']:.3f} s", f"{taken['full']:.2f} s",
             f"{taken['seconds'] / taken['full']:.1%}", "≤ 3 %")]


def small(folder: Path, runs: int) -> list[tuple[str, ...]]:
    import sqlite3
    source = folder / "small.db"
    with sqlite3.connect(source) as connection:
        for i in range(2_000):
            connection.execute(f"create table t{i} (id integer primary key, name nvarchartext(50), amount decimaltext(38,20))")
            connection.executemany(f"insert into t{i} values (?, ?, ?)", [(j, f"row {j}", f"{j}.00000000000000000001") for j in range(20)])
    connection.close()
    seconds = statistics.median(measure("copy", "all", source, folder / "small.duckdb")["seconds"] for _ in range(runs))
    return [("2,000 tables × 20 rows, verified, with change log set up", f"{seconds / 2_000 * 1000:.2f} ms a table", "–", "–", "≤ 5 ms")]


def routes(folder: Path, rows: int, runs: int) -> list[tuple[str, ...]]:
    from bench_routes import measure_routes
    return measure_routes(folder / "one.db", rows, runs) if rows else []


def api() -> list[tuple[str, ...]]:
    few, many = (measure("api", str(tables)) for tables in (1_000, 1_000_000))
    lines = [("GET cloudMigrationStatus?$orderby=startTime desc&$top=1 with 1,000,000 detail rows, against 1,000 (median of 300)",
              f"{many['ms']:.2f} ms", f"{few['ms']:.2f} ms", f"{many['ms'] / few['ms']:.2f} ×", "the same")]
    rows = measure("load")["rows"]
    limits = {row["connections"]: row for row in rows if row["request"] == "constant"}
    bars = {"status": "≥ 35 % of the limit", "details": "p99 < 5 × p50"}
    for row in rows:
        limit = limits[row["connections"]]
        if row is not limit:
            lines.append((f"API under load, {row['connections']} connection{'s' if row['connections'] > 1 else ''}: "
                          f"{LOADS[row['request']]}; p50 {row['p50']:.2f}, p99 {row['p99']:.2f}, slowest {row['worst']:.0f} ms, "
                          f"{row['errors']} failed", f"{row['rate']:,.0f} /s", f"{limit['rate']:,.0f} /s (p50 {limit['p50']:.2f}, "
                          f"p99 {limit['p99']:.2f})", f"{row['rate'] / limit['rate']:.0%}", bars.get(row["request"], "–") + ", none > 1 s"))
    return lines


def make(path: Path, rows: int) -> Path:
    from skylift.sample import create_sample
    print(f"making {path.name}: {rows:,} rows", file=sys.stderr, flush=True)
    create_sample(path, companies=1, rows=rows, tables=12)
    return path


def measure(*arguments: str | Path) -> dict:
    done = subprocess.run([sys.executable, __file__, "--child", *map(str, arguments)], stdout=subprocess.PIPE, check=True, text=True,
                          env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"})
    result = json.loads(done.stdout.splitlines()[-1])
    print("  ", *(Path(a).name for a in map(str, arguments)), result, file=sys.stderr, flush=True)
    return result


# ------------------------------------------------------------------ one measurement, in a process of its own


def copy(kind: str, source: str, target: str) -> dict:
    """`kind`: peer, verified, unverified (the G/L entries only), or all (every table, verified)."""
    from bench_peer import pipeline

    from skylift.engine.warm import warm_up
    warm_up(f"sqlite:///{source}", f"duckdb:///{target}")
    for leftover in Path(target).parent.glob(Path(target).name + "*"):
        leftover.unlink()
    begun = time.perf_counter()
    if kind == "peer":
        pipeline(source, f"CRONUS International Ltd_${ENTRIES}", "Entry No_", target)
    else:
        run(source, target, every=kind == "all", verify=kind != "unverified")
    taken = {"seconds": time.perf_counter() - begun, "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if kind == "peer":                                  # it verifies nothing, so the referee does
        import duckdb
        [(rows, whole)] = duckdb.connect(target).execute('select count(*), max("Entry No_") from copied').fetchall()
        assert rows == whole, f"the peer has lost rows: {rows} of {whole}"
    return taken


def incrementally(source: str, target: str, changes: str, runs: str) -> dict:
    """A full run and then incremental ones in the same process, as the coordinator makes them; the source is edited by another."""
    begun = time.perf_counter()
    run(source, target)
    full, seconds = time.perf_counter() - begun, []
    for seed in range(int(runs)):
        edit = f"from pathlib import Path; from skylift.sample import change_sample; change_sample(Path({source!r}), {changes}, {seed})"
        subprocess.run([sys.executable, "-c", edit], check=True)
        begun = time.perf_counter()
        [*_, last] = run(source, target)
        seconds.append(time.perf_counter() - begun)
        assert last.mode == "incremental" and last.deleted
    return {"full": full, "seconds": statistics.median(seconds), "deleted": last.deleted}


def run(source: str, target: str, every: bool = False, verify: bool = True) -> list:
    from skylift.connectors import opened
    from skylift.engine.pool import copy_tables
    from skylift.model import CopyTask, TargetName
    from skylift.runs import TableStatus
    with opened(f"sqlite:///{source}", f"duckdb:///{target}") as (reader, open_target):
        tables = [table for table in reader.tables() if every or table.name.endswith(f"${ENTRIES}")]
        tasks = [CopyTask("", table.name, table, TargetName("", table.name)) for table in tables]
        progress = list(copy_tables(tasks, reader, open_target(), copy_id=uuid.uuid4().hex, consumer="bench", workers=2, verify=verify))
    assert all(p.status is not TableStatus.FAILED for p in progress), [p.error for p in progress]
    return progress


def status(details: str) -> dict:
    """Median milliseconds of the newest-run query, worked out anew each time, in the application without a server around it."""
    import tempfile as folders
    from urllib.parse import quote_plus

    from bench_api import COMPANY, fill

    from skylift.api.routes import serve
    from skylift.api.urls import parse_url
    from skylift.migration import Migration
    from skylift.model import Caller
    from skylift.settings import load_settings
    from skylift.store import open_store
    with folders.TemporaryDirectory() as home:
        settings = load_settings({"home": home})
        store = open_store(settings.store)
        service = Migration(store, settings)
        fill(store, int(details))
        caller = Caller(uuid.uuid4(), "bench", "reader")
        query = f"$orderby={quote_plus('startTime desc')}&$top=1".encode()
        taken = []
        for _ in range(350):
            url = parse_url("http://bench", f"{COMPANY}/cloudMigrationStatus".encode(), query)
            assert url is not None
            begun = time.perf_counter()
            answer = serve(service, caller, "GET", url, {}, b"")
            taken.append(time.perf_counter() - begun)
            assert json.loads(answer.body)["value"][0]["tablesSuccessful"] == 500, answer.body
        store.close()
        return {"ms": statistics.median(taken[50:]) * 1000}


def load() -> dict:
    from bench_api import measure as measure_api
    return {"rows": measure_api()}


# ------------------------------------------------------------------ the page


def write(lines: list[tuple[str, ...]]) -> None:
    head = ("what", "skylift", "peer or limit", "ratio", "to reach")
    table = ["| " + " | ".join(line) + " |" for line in (head, ("---",) * 5, *lines)]
    machine = f"{cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    print("\n".join(table))
    (ROOT / "docs" / "benchmarks.md").write_text(
        "# Benchmarks\n\nWritten by `scripts/bench`; medians of interleaved runs, each in a process of its own whose code "
        "is loaded when its clock starts. Ratios are claims; "
        f"seconds belong to this machine: {machine}; {datetime.now(UTC):%Y-%m-%d}.\n\n" + "\n".join(table) + "\n\n"
        "The API was loaded with wrk on the same two cores while a run wrote its progress, with 1,000,000 detail rows in the store "
        "(`scripts/bench_api.py`); the limit beside it is a constant answer of the same server.\n\n"
        "Routes between servers (`scripts/bench_routes.py`): PostgreSQL and MariaDB are started for the occasion, and source, target and "
        "client share the two cores. pgloader and pgcopydb are Debian's.\n\n"
        "The 30-line pipeline is `scripts/bench_peer.py`: the same drivers, two threads, the same DuckDB settings, no ledger, no hash, "
        "no change log, nothing read back. skylift's figures contain all of that.\n")


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


CHILDREN: dict[str, Callable[..., dict]] = {"copy": copy, "incremental": incrementally, "api": status, "load": load}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.stdout.reconfigure(line_buffering=True)
        print(json.dumps(CHILDREN[sys.argv[2]](*sys.argv[3:])))
    else:
        main()
