"""The API under load: requests per second and latency of four requests beside a constant answer of the same server.

The store holds a million detail rows; the load comes from wrk, over one connection and over 32; a run writes its progress
meanwhile, as a coordinator does. Called by scripts/bench.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from skylift.migration import Migration
from skylift.model import new_id
from skylift.settings import Settings, load_settings
from skylift.store import Store, open_store, tables

TABLES = 1_000                    # of a run
SECONDS = 5
ROOT = "/BC/api/microsoft/cloudMigration/v1.0"
COMPANY = f"{ROOT}/companies(name='CRONUS')"
STATUS = f"{COMPANY}/cloudMigrationStatus?$orderby=startTime%20desc&$top=1"


def measure(detail_rows: int = 1_000_000, seconds: int = SECONDS) -> list[dict]:
    """One row per request and number of connections: requests per second, p50 and p99 in ms, errors, slowest in ms."""
    with tempfile.TemporaryDirectory(prefix="skylift-bench-api-") as home:
        settings = load_settings({"home": home, "api_requests": 10**9, "api_running": 64})
        store = open_store(settings.store)
        service = Migration(store, settings)
        token = service.create_token("bench", "administrator")
        newest = fill(store, detail_rows)
        company = mark(store)
        requests = {
            "constant": ("GET", "/", ""), "status": ("GET", STATUS, ""), "metadata": ("GET", f"{ROOT}/$metadata", ""),
            "details": ("GET", f"{COMPANY}/cloudMigrationStatusDetails?$filter=runId%20eq%20'{newest}'%20and%20status%20eq%20"
                        "'Successful'&$orderby=recordsCopied%20desc&$top=100", ""),
            "patch": ("PATCH", f"{COMPANY}/cloudMigrationCompanies({company})", '{"replicate": true}')}
        rows = []
        with server("skylift.app:create_app", settings, factory=True) as url, \
                server("bench_api:constant", settings, factory=False) as limit, writing(store, newest):
            for connections in (1, 32):
                for name, (method, path, body) in requests.items():
                    base = limit if name == "constant" else url
                    rows.append({"request": name, "connections": connections,
                                 **load(base, method, path, body, token, connections, seconds)})
        store.close()
        return rows


def fill(store: Store, detail_rows: int) -> str:
    """Runs of a thousand tables each, the newest in progress; its run id."""
    now = datetime.now(UTC) - timedelta(days=1)
    with store.write() as connection:
        for run in range(detail_rows // TABLES):
            run_id = str(uuid.uuid4())
            last = run == detail_rows // TABLES - 1
            connection.execute(tables.runs.insert(), {
                "id": uuid.uuid4(), "run_id": run_id, "started_at": now + timedelta(seconds=run), "ended_at": None,
                "replication_type": "Normal", "status": "InProgress" if last else "Completed", "source": "bench", "details": ""})
            connection.execute(tables.run_tables.insert(), [
                {"id": new_id(), "run_id": run_id, "company_name": "", "table_name": f"Table {t}$437dbf0e-84ff-417a-965d-ed2bb9650972",
                 "records_copied": t * 37 % 1009, "total_records": 1009, "status": "Successful" if t % 2 else "NotStarted"}
                for t in range(TABLES)])
    return run_id


def mark(store: Store) -> uuid.UUID:
    key = uuid.uuid4()
    with store.write() as connection:
        connection.execute(tables.source_companies.insert(), {"id": key, "name": "BENCH", "display_name": "BENCH"})
        connection.execute(tables.migration.update().values(state="Ready"))
    return key


@contextmanager
def writing(store: Store, run_id: str) -> Iterator[None]:
    """What a busy run writes: a hundred details of its tables, four times a second."""
    ended = threading.Event()

    def write() -> None:
        turn = 0
        while not ended.wait(0.25):
            turn += 1
            with store.write() as connection:
                connection.execute(tables.run_tables.update().where(
                    tables.run_tables.c.run_id == run_id, tables.run_tables.c.table_name == sa.bindparam("name")),
                    [{"name": f"Table {turn * 100 % TABLES + t}$437dbf0e-84ff-417a-965d-ed2bb9650972", "records_copied": turn}
                     for t in range(100)])

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def server(application: str, settings: Settings, factory: bool) -> Iterator[str]:
    """The application served as `skylift serve` does, in a process of its own; its base URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = ("import sys; sys.path.insert(0, sys.argv[4]); from granian import Granian; from granian.constants import HTTPModes, Interfaces;"
            "Granian(sys.argv[1], '127.0.0.1', int(sys.argv[2]), interface=Interfaces.ASGI, http=HTTPModes.http1, workers=1,"
            "websockets=False, factory=sys.argv[3] == 'True', log_access=False, log_enabled=False).serve()")
    process = subprocess.Popen([sys.executable, "-c", code, application, str(port), str(factory), str(Path(__file__).parent)],
                               env={**os.environ, **settings.environment()}, stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                with socket.create_connection(("127.0.0.1", port), 1):
                    break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


async def constant(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
    """The limit: what the server can answer when there is nothing to find out, through the same framework."""
    if scope["type"] == "http":
        from starlette.responses import Response
        await Response(CONSTANT, 200, {"Content-Type": "application/json"})(scope, receive, send)


CONSTANT = json.dumps({"value": [{"id": str(uuid.UUID(int=0)), "text": "x" * 500}]}).encode()


def load(base: str, method: str, path: str, body: str, token: str, connections: int, seconds: int) -> dict:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "If-Match": "*"}
    once = urllib.request.Request(base + path, body.encode() or None, headers, method=method)
    with urllib.request.urlopen(once, timeout=30) as answer:
        assert answer.status == 200, answer.status
    script = (f"wrk.method = {json.dumps(method)}\nwrk.body = {json.dumps(body)}\n" if body else "") + "".join(
        f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}\n" for name, value in headers.items())
    script += ("done = function(s, l, r) io.write(string.format('RESULT %f %f %f %f %d %d\\n', s.requests / s.duration * 1e6, "
               "l:percentile(50) / 1000, l:percentile(99) / 1000, l.max / 1000, s.errors.status + s.errors.read + s.errors.write "
               "+ s.errors.connect, s.errors.timeout)) end\n")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        done = subprocess.run(["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", file.name, base + path],
                              capture_output=True, text=True, check=True)
    rate, p50, p99, worst, errors, timeouts = map(float, re.search(r"RESULT (.+)", done.stdout)[1].split())  # type: ignore[index]
    return {"rate": rate, "p50": p50, "p99": p99, "worst": worst, "errors": int(errors + timeouts)}


if __name__ == "__main__":
    for row in measure(*map(int, sys.argv[1:])):
        print(row)
