"""Rows to be queried, on both databases."""

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from skylift.runs import CompanyInit, ReplicationType, RunStatus, TableStatus
from skylift.store import open_store
from skylift.store.tables import run_tables, runs, source_companies

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
NAMES = ["", "a", "A", "b_", "b%", "[x]", "Ärger", "ärger", "Z*z", "ab\\c", "😀", "straße", "a b", "G_L Entry$437d"]


@contextmanager
def filled(url):
    store = open_store(url)
    with store.write() as connection:
        fill(connection)
    yield store
    store.close()


@pytest.fixture(scope="session")
def sqlite_rows(tmp_path_factory):
    with filled(f"sqlite:///{tmp_path_factory.mktemp('select')}/store.sqlite") as store:
        yield store


@pytest.fixture(scope="session")
def postgres_rows(postgres_url):
    url = sa.engine.make_url(postgres_url)
    server = sa.create_engine(url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    name = f"test_{uuid4().hex[:12]}"
    with server.connect() as connection:
        connection.exec_driver_sql(f'create database "{name}"')
        with filled(url.set(database=name).render_as_string(hide_password=False)) as store:
            yield store
        connection.exec_driver_sql(f'drop database "{name}" with (force)')
    server.dispose()


def fill(connection):
    for n in range(6):
        connection.execute(runs.insert().values(
            id=UUID(int=n + 1), run_id=f"r{n}", started_at=START + timedelta(hours=n, microseconds=137_358 * n),
            ended_at=None if n % 3 == 2 else START, replication_type=ReplicationType.NORMAL, status=list(RunStatus)[n], source=NAMES[n],
            details=NAMES[-n]))
    for n in range(len(NAMES) * 2):
        connection.execute(run_tables.insert().values(
            id=UUID(int=100 + n), run_id=f"r{n % 5}", company_name=NAMES[n // 2], table_name=NAMES[n % len(NAMES)] + str(n % 3),
            status=list(TableStatus)[n % 5], records_copied=n, total_records=n * n % 17, errors=NAMES[-n % len(NAMES)],
            ended_at=None if n % 2 else START + timedelta(minutes=n)))
    for n, name in enumerate(NAMES[1:]):
        connection.execute(source_companies.insert().values(
            id=UUID(int=200 + n), name=name, display_name=name, estimated_size=Decimal(n) / 8, replicate=n % 2 == 0, created=n % 3 == 0,
            init_status=list(CompanyInit)[n % 4]))
