"""Routes between real servers beside their peers, each started for the occasion: what scripts/bench prints for PostgreSQL and MariaDB.

Every contender moves the same table, `rows` G/L entries of 50 columns (or many small tables), in a process of its own; they take
turns and the median counts. Peers verify nothing; skylift verifies unless the line says otherwise.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.engine import make_url

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
TABLE = "gl_entry"
PEER_S = 600                      # a peer that takes longer is left out

Line = tuple[str, ...]


def measure_routes(sample: Path, rows: int, runs: int) -> list[Line]:
    """One line per claim of libraries.md §3 that a server can be had for."""
    from tests import servers

    postgres = servers.postgres("max_wal_size=4GB", "shared_buffers=256MB", "checkpoint_timeout=30min")
    plain = sample.parent / "plain.db"
    if not plain.exists():
        _plain_copy(sample, plain, rows)
    source = _postgres_source(postgres, plain)
    lines = [*_sqlite_to_postgres(plain, postgres, rows, runs), *_postgres_to_postgres(source, postgres, rows, runs),
             *_mariadb_to_postgres(plain, servers.mariadb(), postgres, rows, runs),
             *sqlserver_to_others(plain, postgres, rows, runs), *_small(sample.parent, postgres, runs),
             *_postgres_to_lakes(source, sample.parent, rows, runs)]
    return lines


def compete(contenders: dict[str, Callable[[], float]], runs: int) -> dict[str, float]:
    """Median seconds of each; one that cannot be run is left out, and why stands on stderr."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(runs):
        for name, contender in contenders.items():
            try:
                taken[name].append(contender())
            except (subprocess.SubprocessError, AssertionError) as error:
                print(f"   {name}: {error}", file=sys.stderr)
                continue
            print(f"   {name}: {taken[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return {name: statistics.median(seconds) for name, seconds in taken.items() if seconds}


def line(what: str, ours: float, peer: float | None, bar: str) -> Line:
    return (what, f"{ours:.2f} s", f"{peer:.2f} s" if peer else "not to be had", f"{peer / ours:.2f} ×" if peer else "–", bar)


def verification(taken: dict[str, float]) -> Line:
    more = taken["skylift"] - taken["unverified"]
    return ("verification as a part of that copy", f"{more:.2f} s", f"{taken['unverified']:.2f} s",
            f"{more / taken['unverified']:.0%}", "≤ 25 %")


# ------------------------------------------------------------------ routes


def _sqlite_to_postgres(plain: Path, server: str, rows: int, runs: int) -> list[Line]:
    taken = compete({
        "skylift": lambda: skylift(f"sqlite:///{plain}?mode=ro", database(server)),
        "unverified": lambda: skylift(f"sqlite:///{plain}?mode=ro", database(server), verify=False),
        "pgloader": lambda: pgloader(f"sqlite://{plain}", database(server), rows, "sqlite"),
    }, runs)
    return [line(f"SQLite → PostgreSQL, {rows:,} rows × 50 columns, verified, against pgloader", taken["skylift"], taken.get("pgloader"),
                 "≥ 2.5 ×"),
            verification(taken)]


def _postgres_to_postgres(source: str, server: str, rows: int, runs: int) -> list[Line]:
    taken = compete({
        "skylift": lambda: skylift(source, database(server)),
        "unverified": lambda: skylift(source, database(server), verify=False),
        "pgcopydb": lambda: pgcopydb(source, database(server), rows),
        "pipe": lambda: pipe(source, database(server), rows),
    }, runs)
    return [line(f"PostgreSQL → PostgreSQL, {rows:,} rows × 50 columns, verified, against pgcopydb", taken["skylift"],
                 taken.get("pgcopydb"), "≥ 1.2 ×"),
            line("the same without verification, against psql piped into psql", taken["unverified"], taken.get("pipe"), "≥ 0.85 ×"),
            verification(taken)]


def _mariadb_to_postgres(plain: Path, mariadb: str, server: str, rows: int, runs: int) -> list[Line]:
    source = _mariadb_source(mariadb, plain)
    taken = compete({
        "skylift": lambda: skylift(source, database(server)),
        "pgloader": lambda: pgloader(source, database(server), rows, "mysql"),
    }, runs)
    return [line(f"MariaDB → PostgreSQL, {rows:,} rows × 50 columns, verified, against pgloader", taken["skylift"], taken.get("pgloader"),
                 "≥ 2.8 ×")]


def sqlserver_to_others(plain: Path, server: str, rows: int, runs: int) -> list[Line]:
    """What the driver takes to hand out the rows is what a copy of them cannot be quicker than."""
    given = os.environ.get("SKYLIFT_TEST_SQLSERVER_URL")
    if not given:
        return [("SQL Server → PostgreSQL", "left out: SKYLIFT_TEST_SQLSERVER_URL is not set", "–", "–", "≥ 60 %")]
    with _sqlserver_source(given, plain) as source, tempfile.TemporaryDirectory(dir=plain.parent) as folder:
        for kind in ("duckdb", "parquet", "delta"):            # for their memory
            skylift(source, f"{kind}:///{folder}/{kind}")
        taken = compete({"read": lambda: child("--read", source)["seconds"], "skylift": lambda: skylift(source, database(server))}, runs)
    return [(f"SQL Server → PostgreSQL, {rows:,} rows × 53 columns, verified, against reading alone", f"{taken['skylift']:.2f} s",
             f"{taken['read']:.2f} s", f"{100 * taken['read'] / taken['skylift']:.0f} %", "≥ 60 %")]


def _small(folder: Path, server: str, runs: int) -> list[Line]:
    """Two thousand tables of twenty rows."""
    import psycopg

    many = database(server)
    with psycopg.connect(many) as connection:
        for i in range(2_000):
            connection.execute(f"create table t{i} as select n as id, 'row ' || n as name, n::numeric(38,20) as amount"
                               " from generate_series(1, 20) n")
            connection.execute(f"alter table t{i} add primary key (id)")
    taken = compete({"skylift": lambda: skylift(many, database(server), every=True)}, runs)
    return [("PostgreSQL → PostgreSQL, 2,000 tables × 20 rows, verified", f"{taken['skylift'] / 2_000 * 1000:.2f} ms a table", "–", "–",
             "≤ 5 ms")]


def _postgres_to_lakes(source: str, folder: Path, rows: int, runs: int) -> list[Line]:
    """Into folders of files, with the memory that it takes."""
    lines: list[Line] = []
    for name in ("Parquet", "Delta"):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            taken = [run(source, f"{name.lower()}:///{place}/{uuid.uuid4().hex}") for _ in range(runs)]
        seconds, memory = statistics.median(t["seconds"] for t in taken), max(t["memory_mb"] for t in taken)
        lines += [(f"PostgreSQL → {name}, {rows:,} rows × 50 columns, verified", f"{seconds:.2f} s", "–", "–", "–"),
                  (f"its peak memory ({name})", f"{memory:.0f} MB", "–", "–", "≤ 600 MB")]
    return lines


# ------------------------------------------------------------------ contenders


def skylift(source: str, target: str, verify: bool = True, every: bool = False) -> float:
    taken: float = run(source, target, verify, every)["seconds"]
    return taken


def run(source: str, target: str, verify: bool = True, every: bool = False) -> dict:
    return child("--copy", source, target, json.dumps({"verify": verify, "every": every}))


def child(*arguments: str) -> dict:
    """What a copy, or reading alone, took."""
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, check=True, text=True)
    taken = json.loads(done.stdout.splitlines()[-1])
    print(f"   peak memory {taken['memory_mb']:.0f} MB", file=sys.stderr)
    assert taken["memory_mb"] < 600, taken
    return taken


def pgloader(source: str, target: str, rows: int, kind: str) -> float:
    casts = ("type decimaltext to numeric keep typemod, type nvarchartext to text drop typemod, type datetimetext to timestamp, "
             "type guidtext to text drop typemod") if kind == "sqlite" else "type decimal to numeric keep typemod"
    return _timed(["pgloader", "--no-ssl-cert-verification", _script(
        f"load database from {source} into {target} with include drop, create tables, no truncate, create indexes, reset no sequences, "
        f"workers = 2, concurrency = 1 cast {casts};")], target, rows)


def pgcopydb(source: str, target: str, rows: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return _timed(["pgcopydb", "clone", "--source", source, "--target", target, "--dir", folder, "--table-jobs", "2",
                       "--index-jobs", "2", "--no-acl", "--no-owner", "--skip-vacuum"], target, rows)


def pipe(source: str, target: str, rows: int) -> float:
    ddl = subprocess.run(["pg_dump", "--schema-only", "--section=pre-data", source], stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["psql", "-q", target], input=ddl, stdout=subprocess.DEVNULL, check=True)
    return _timed(["sh", "-c", f"psql '{source}' -c 'copy {TABLE} to stdout (format binary)' | psql '{target}' -c 'copy {TABLE} from stdin "
                   "(format binary)'"], target, rows)


def _timed(command: Sequence[str], target: str, rows: int) -> float:
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        try:
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True, timeout=PEER_S)
        except subprocess.SubprocessError:
            log.seek(0)
            print(log.read()[-2000:].decode(errors="replace"), file=sys.stderr)
            raise
    seconds = time.perf_counter() - begun
    count = ["psql", "-At", target, "-c", f"select count(*) from {TABLE}"]
    found = subprocess.run(count, capture_output=True, text=True, check=True).stdout
    assert int(found) == rows, f"{command[0]} moved {found.strip()} of {rows} rows"
    return seconds


def _script(text: str) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".load", delete=False) as file:
        file.write(text)
    return file.name


# ------------------------------------------------------------------ sources


def database(server: str) -> str:
    """URL of a new, empty database."""
    import psycopg

    name = f"bench_{uuid.uuid4().hex[:10]}"
    with psycopg.connect(server, autocommit=True) as connection:
        for (old,) in connection.execute("select datname from pg_database where datname like 'bench\\_%' and datname <> 'bench_source'"
                                         " and age(datfrozenxid) > 1000000000").fetchall():
            connection.execute(f'drop database "{old}" with (force)')
        connection.execute(f"create database {name}")
    return make_url(server).set(database=name).render_as_string(hide_password=False)


def _plain_copy(sample: Path, plain: Path, rows: int) -> None:
    """The G/L entries alone, under names that every peer can spell, without the integers that pgloader loses (over 62 bits)."""
    import sqlite3

    with sqlite3.connect(sample) as connection:
        [(name, sql)] = connection.execute("select name, sql from sqlite_schema where type = 'table' and name like '%$G/_L Entry$%'"
                                           " escape '/' order by name limit 1").fetchall()
        columns = connection.execute(f'pragma table_info("{name}")').fetchall()
        names = [column for _, column, *_ in columns]
        values = ", ".join(f'"{c}" / 4' if "INT" in kind and not pk else f'"{c}"' for _, c, kind, _, _, pk in columns)
        renamed = {old: f"c{i}_{''.join(c if c.isalnum() else '_' for c in old.lower())}"[:50] for i, old in enumerate(names)}
        for old in sorted(names, key=len, reverse=True):
            sql = sql.replace(f'"{old}"', f'"{renamed[old]}"')
        sql = sql.replace(f'"{name}"', f'"{TABLE}"')
        connection.execute("attach ? as plain", [str(plain)])
        connection.execute(sql.replace("CREATE TABLE ", "CREATE TABLE plain.", 1))
        connection.execute(f'insert into plain."{TABLE}" select {values} from "{name}" limit {rows}')
    connection.close()


def _postgres_source(server: str, plain: Path) -> str:
    target = database(server)
    skylift(f"sqlite:///{plain}?mode=ro", target)
    subprocess.run(["psql", "-q", target, "-c", "drop table _skylift_tables, _skylift_copies, _skylift_ledger",
                    "-c", "vacuum analyze"], check=True)
    return target


def _mariadb_source(server: str, plain: Path) -> str:
    """The table with MariaDB's own types, loaded from CSV."""
    import re
    import sqlite3

    import MySQLdb

    url = make_url(server)
    name = "bench"
    with sqlite3.connect(plain) as connection, tempfile.NamedTemporaryFile("w", suffix=".csv", newline="", dir=plain.parent) as file:
        columns = connection.execute(f"pragma table_info({TABLE})").fetchall()
        kinds = {c: ("bigint" if "INT" in t else "blob" if "BLOB" in t else "double" if "DOUB" in t else "datetime(6)" if "DATETIME" in t
                     else re.sub(r"DECIMALTEXT", "decimal", t) if "DECIMAL" in t else "varchar(250)") for _, c, t, *_ in columns}
        selected = ", ".join(f"coalesce(hex({c}), '\\N')" if kind == "blob" else f"case when {c} is null then '\\N' else "
                             f"replace(replace({c}, '\\', '\\\\'), char(9), '\\t') end" for c, kind in kinds.items())
        for row in connection.execute(f"select {selected} from {TABLE}"):
            file.write("\t".join(map(str, row)) + "\n")
        file.flush()
        admin = MySQLdb.connect(host=url.host, port=url.port, user=url.username, password=url.password, local_infile=True,
                                charset="utf8mb4")
        cursor = admin.cursor()
        cursor.execute(f"create database if not exists {name} character set utf8mb4")
        cursor.execute(f"use {name}")
        cursor.execute(f"drop table if exists {TABLE}")
        key = next(c for _, c, _, _, _, pk in columns if pk)
        cursor.execute(f"create table {TABLE} ({', '.join(f'{c} {kind}' for c, kind in kinds.items())}, primary key ({key})) "
                       "default character set utf8mb4")
        into = ", ".join(f"@{c}" if kind == "blob" else c for c, kind in kinds.items())
        sets = ", ".join(f"{c} = unhex(@{c})" for c, kind in kinds.items() if kind == "blob")
        cursor.execute(f"load data local infile '{file.name}' into table {TABLE} character set utf8mb4 ({into}) "
                       + (f"set {sets}" if sets else ""))
        admin.commit()
        admin.close()
    return url.set(database=name).render_as_string(hide_password=False)


@contextmanager
def _sqlserver_source(given: str, plain: Path) -> Iterator[str]:
    """A database with the table, made by a copy; dropped at the end."""
    from skylift.connectors import parse_url
    from skylift.connectors.sqlserver import Session

    server, name = parse_url(given), f"bench_{uuid.uuid4().hex[:10]}"
    admin, source = Session(server), server.set(database=name)
    admin.run(f"create database {name}")
    try:
        skylift(f"sqlite:///{plain}?mode=ro", source.render_as_string(hide_password=False))
        loaded = Session(source)
        columns = loaded.run(f"select c.name, t.name from sys.columns c join sys.types t on t.user_type_id = c.user_type_id "
                             f"where c.object_id = object_id('dbo.{TABLE}') order by c.column_id")
        texts = ", ".join(f"cast({name} as nvarchar(250)) as {name}" if kind == "nvarchar" else name for name, kind in columns)
        [(key,)] = loaded.run(f"select col_name(object_id, column_id) from sys.index_columns where object_id = object_id('dbo.{TABLE}')")
        loaded.run(f"select {texts} into dbo.loaded from dbo.{TABLE}")     # as long as texts are declared in such tables
        for statement in (f"drop table dbo.{TABLE}", *(f"drop table dbo._skylift_{name}" for name in ("tables", "copies", "ledger")),
                          f"exec sp_rename 'dbo.loaded', '{TABLE}', 'object'", f"alter table dbo.{TABLE} add primary key ({key})"):
            loaded.run(statement)
        loaded.close()
        yield source.render_as_string(hide_password=False)
    finally:
        admin.run(f"drop database {name}")
        admin.close()


# ------------------------------------------------------------------ one copy, in a process of its own


def read(source: str) -> dict:
    """All rows as the driver hands them out, and no more."""
    from skylift.connectors import parse_url
    from skylift.connectors.sqlserver import Session

    session = Session(parse_url(source))
    begun = time.perf_counter()
    for _ in session.batches(f"select * from {TABLE}"):
        pass
    return {"seconds": time.perf_counter() - begun, "memory_mb": memory_mb()}


def memory_mb() -> float:
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def copy(source: str, target: str, options: dict) -> dict:
    from skylift.engine.warm import warm_up
    warm_up(source, target)
    from skylift.connectors import opened
    from skylift.engine.pool import copy_tables
    from skylift.model import CopyTask, TargetName
    from skylift.runs import TableStatus
    begun = time.perf_counter()
    with opened(source, target) as (reader, open_target):
        tables = [table for table in reader.tables() if options["every"] or table.name == TABLE]
        tasks = [CopyTask("", table.name, table, TargetName("", table.name)) for table in tables]
        progress = list(copy_tables(tasks, reader, open_target(), copy_id=uuid.uuid4().hex, consumer="bench", workers=2,
                                    verify=options["verify"]))
    assert all(p.status is not TableStatus.FAILED for p in progress), [p.error for p in progress if p.error]
    return {"seconds": time.perf_counter() - begun, "memory_mb": memory_mb()}


if __name__ == "__main__":
    if sys.argv[1] == "--copy":
        print(json.dumps(copy(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))))
    elif sys.argv[1] == "--read":
        print(json.dumps(read(sys.argv[2])))
    else:
        for found in measure_routes(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1):
            print(found, os.linesep, end="")
