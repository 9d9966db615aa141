import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa

from skylift.api.apis import APIS
from skylift.app import create_app
from skylift.migration import Migration
from skylift.runs import CompanyInit, CompanySetupStatus, ReplicationType, RunStatus, TableMappingType, TableStatus
from skylift.settings import Settings
from skylift.store import open_store
from skylift.store.tables import (
    TABLES,
    Enumerated,
    Short,
    UtcDateTime,
    companies,
    migration,
    run_tables,
    runs,
    source_companies,
    subscriptions,
    table_mappings,
)

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DETAILS = ((TableStatus.SUCCESSFUL,) * 3 + (TableStatus.FAILED, TableStatus.WARNING), (TableStatus.NOT_STARTED, TableStatus.IN_PROGRESS))


def number(n):
    """The UUID that stands for `n` in tests."""
    return UUID(int=n)


class Http:
    """Calls an ASGI application in this process; each request in an event loop of its own."""

    def __init__(self, app, service):
        self.app = app
        self.service = service

    def request(self, method, url, **options):
        async def ask():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
                return await client.request(method, url, **options)

        return asyncio.run(ask())

    def get(self, url, **options):
        return self.request("GET", url, **options)


class Client:
    """A caller of the API under one root, with a token of its own."""

    def __init__(self, http, token, root="/api/v1.0"):
        self.http = http
        self.token = token
        self.root = root

    def ask(self, method, path="", body=None, **headers):
        content = {} if body is None else {"content": body} if isinstance(body, bytes | str) else {"json": body}
        return self.http.request(method, f"{self.root}/{path}" if path else self.root, **content,
                                 headers={"Authorization": f"Bearer {self.token}"} | {k.replace("_", "-"): v for k, v in headers.items()})

    def get(self, path="", **headers):
        return self.ask("GET", path, **headers)

    def rows(self, path, **headers):
        """The value of a collection that must be there."""
        answer = self.get(path, **headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["value"]

    def error(self, path, method="GET", **more):
        """Status, code and message of a refusal."""
        answer = self.ask(method, path, **more)
        assert answer.status_code >= 400, answer.text
        error = answer.json()["error"]
        assert answer.json().keys() == {"error"} and error.keys() == {"code", "message"}
        message, _, correlation = error["message"].partition("  CorrelationId:  ")
        assert correlation == answer.headers["request-id"] + "."
        return answer.status_code, error["code"], message

    def as_role(self, role, name="other"):
        return Client(self.http, self.http.service.create_token(name, role), self.root)


def open_client(home, **settings):
    settings = Settings(home=home, **settings)
    service = Migration(open_store(settings.store), settings, "tester")
    http = Http(create_app(settings), service)
    return Client(http, service.create_token("admin", "administrator"))


@contextmanager
def served(home, *flags, scheme="http", verify=True, **settings):
    """A server process on the home folder: an HTTP client of it and the process, which is stopped afterwards if it still runs."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "skylift", "serve", "--home", str(home), "--port", str(port), *flags]
    with (home / "log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | Settings(home=home, **settings).environment())
    try:
        with httpx.Client(base_url=f"{scheme}://127.0.0.1:{port}", verify=verify, timeout=30) as http:
            for _ in range(400):
                try:
                    http.get("/health").raise_for_status()
                    break
                except httpx.HTTPError:
                    assert process.poll() is None, (home / "log").read_text()
                    time.sleep(0.05)
            yield http, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@pytest.fixture
def client(tmp_path):
    """An administrator's, on a new environment."""
    client = open_client(tmp_path / "home")
    yield client
    client.http.service.store.close()


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    """An administrator's, on an environment with rows that the tests only read."""
    client = open_client(tmp_path_factory.mktemp("full"), page_size=100)
    with client.http.service.store.write() as connection:
        fill(connection)
    yield client
    client.http.service.store.close()


def fill(connection):
    """12 runs, the newest still going; details of the last two; four source companies; a second company; one mapping."""
    connection.execute(companies.update().values(id=number(900)))
    connection.execute(companies.insert().values(id=number(901), name="Fabrikam (UK)", display_name="Fabrikam's", created_at=START,
                                                 modified_at=START, created_by=number(0), modified_by=number(0)))
    for n in range(12):
        newest = n == 11
        connection.execute(runs.insert().values(
            id=number(n + 1), run_id=f"run-{n:02}", started_at=START + timedelta(hours=n, microseconds=358_999),
            ended_at=None if newest else START + timedelta(hours=n, minutes=30),
            replication_type=ReplicationType.FULL if n == 0 else ReplicationType.NORMAL,
            status=RunStatus.IN_PROGRESS if newest else [RunStatus.COMPLETED, RunStatus.UPGRADE_PENDING, RunStatus.FAILED][n % 3],
            source="Dynamics 365 Business Central", details="" if n % 2 else f"100% of [{n}]_tables"))
    for run, statuses in zip((10, 11), DETAILS, strict=True):
        for n, status in enumerate(statuses):
            connection.execute(run_tables.insert().values(
                id=number(100 * run + n), run_id=f"run-{run}", company_name="" if n == 0 else "CRONUS", table_name=f"Table {n}$app",
                status=status, records_copied=10 * n, total_records=3_000_000_000 if n == 4 else 10 * n,
                errors="no such column" if status is TableStatus.FAILED else ""))
    for n, name in enumerate(("CRONUS International Ltd_", "Äpfel & Birnen", "äther", "Zebra*")):
        connection.execute(source_companies.insert().values(
            id=number(50 + n), name=name, display_name=name.replace("_", "."), replicate=n % 2 == 0, estimated_size=Decimal(n) / 8,
            status=list(CompanySetupStatus)[n], created=n > 1, init_status=list(CompanyInit)[n], init_error="x" if n == 2 else ""))
    connection.execute(table_mappings.insert().values(
        id=number(70), target_table_type=TableMappingType.TABLE_EXTENSION, app_id=number(7), extension_name="Mine", table_id=-5,
        table_name="T", source_table_name="S", per_company=False))


def furnish(connection):
    """What `fill` writes, and a row in every other table that an API shows."""
    fill(connection)
    values = {sa.Uuid: number(99), sa.Boolean: False, sa.Integer: 1, sa.BigInteger: 1, sa.Double: 1.0, UtcDateTime: START, sa.Text: "x",
              Short: "x"}
    for table in {TABLES[s.row] for api in APIS for s in api.sets if s.row in TABLES}:
        if isinstance(table, sa.Table) and connection.execute(sa.select(table).limit(1)).first() is None:
            connection.execute(table.insert().values({
                c.name: next(iter(c.type.values)) if isinstance(c.type, Enumerated) else values[type(c.type)] for c in table.columns}))
    connection.execute(subscriptions.update().values(expires_at=START.replace(year=9999)))
    connection.execute(migration.update().values(id=number(99)))


def table_count(client, table):
    with client.http.service.store.read() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(table))
