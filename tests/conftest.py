"""A PostgreSQL server for the tests that want one: SKYLIFT_TEST_POSTGRES_URL, or a throw-away cluster of the installed server."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a server on which databases may be made; it is empty and gone afterwards unless it was given."""
    if given := os.environ.get("SKYLIFT_TEST_POSTGRES_URL"):
        yield given
        return
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    found = binaries[-1] if binaries else shutil.which("initdb")
    if not found:
        pytest.skip("no PostgreSQL server is installed and SKYLIFT_TEST_POSTGRES_URL is not set")
    folder = Path(tempfile.mkdtemp(prefix="skylift-pg-"))
    as_owner = []
    if os.geteuid() == 0:                                  # initdb refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
        as_owner = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def run(program: str, *arguments: str) -> None:
        command = [*as_owner, str(Path(found).with_name(program)), "-D", str(folder / "data"), *arguments]
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if done.returncode:
            pytest.skip(f"PostgreSQL does not start: {log_file.read_text()[-500:]}")

    log_file = folder / "log"
    try:
        with log_file.open("w") as log:
            run("initdb", "-U", "skylift", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
            run("pg_ctl", "start", "-w", "-o", f"-p {port} -k {folder} -c fsync=off -c listen_addresses=127.0.0.1")
            yield f"postgresql://skylift@127.0.0.1:{port}/postgres"
            run("pg_ctl", "stop", "-w", "-m", "immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """URL of a new, empty database."""
    name = f"test_{uuid4().hex[:12]}"
    server = sa.create_engine(sa.engine.make_url(postgres_url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f'create database "{name}"')
    yield sa.engine.make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    with suppress(sa.exc.DBAPIError), server.connect() as connection:
        connection.exec_driver_sql(f'drop database "{name}" with (force)')
    server.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that does not exist yet, on each database that can hold one."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_database")
    return f"sqlite:///{tmp_path}/store.sqlite"
