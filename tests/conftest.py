"""Databases for the tests that want one."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests import servers

MEMORY_DISK = "/dev/shm"
ROOM, MEMORY = 8 * 2**30, 16 * 2**30      # a suite leaves 5 GB


def pytest_configure() -> None:
    """Files of tests lie in memory where there is room: nothing here is about power cuts, and each fsync of a disk takes milliseconds.

    They go with the run that wrote them; whoever wants to see them sets PYTEST_DEBUG_TEMPROOT to another folder.
    """
    with suppress(OSError):
        there = os.statvfs(MEMORY_DISK)
        fits = there.f_bavail * there.f_frsize >= ROOM and os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >= MEMORY
        if fits and "PYTEST_DEBUG_TEMPROOT" not in os.environ:                       # workers find what the first process has set
            folder = os.environ["PYTEST_DEBUG_TEMPROOT"] = tempfile.mkdtemp(prefix="skylift-tests-", dir=MEMORY_DISK)
            atexit.register(shutil.rmtree, folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url() -> str:
    """URL of a server on which databases may be made."""
    return servers.postgres()


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """URL of a new, empty database."""
    with _database(postgres_url) as url:
        yield url


@pytest.fixture(scope="module")
def module_database(postgres_url: str) -> Iterator[str]:
    """URL of a database for the tests of a module."""
    with _database(postgres_url) as url:
        yield url


@contextmanager
def _database(postgres_url: str) -> Iterator[str]:
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


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a certificate for 127.0.0.1 that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key, name, now = ec.generate_private_key(ec.SECP256R1()), x509.Name([]), datetime.now(UTC)
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
            .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=True)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256()))
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                                       serialization.NoEncryption()))
    (folder / "locked.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                                          serialization.BestAvailableEncryption(b"x")))
    return folder
