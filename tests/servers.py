"""Database servers for tests: throw-away ones, in a folder and on a port of their own, never one that is already there.

Each function starts its server when it is first asked for and stops it when the test process ends. A URL in the environment
takes its place. Where neither can be had, the test that asks is left out with the reason.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import MySQLdb
import pytest


@cache
def postgres(*options: str) -> str:
    """URL of an empty PostgreSQL server on which databases may be made; `options`: settings such as 'wal_level=logical'."""
    if given := os.environ.get("SKYLIFT_TEST_POSTGRES_URL"):
        return given
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    found = binaries[-1] if binaries else shutil.which("initdb")
    if not found:
        pytest.skip("no PostgreSQL server is installed and SKYLIFT_TEST_POSTGRES_URL is not set")
    folder, port = server_folder("pg", "postgres"), free_port()

    def run(program: str, *arguments: str) -> None:
        as_owner("postgres", folder, str(Path(found).with_name(program)), "-D", str(folder / "data"), *arguments)

    run("initdb", "-U", "skylift", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
    settings = ("fsync=off", "listen_addresses=127.0.0.1", *options)
    run("pg_ctl", "start", "-w", "-o", f"-p {port} -k {folder} " + " ".join(f"-c {setting}" for setting in settings))
    atexit.register(run, "pg_ctl", "stop", "-w", "-m", "immediate")
    url = f"postgresql://skylift@127.0.0.1:{port}/postgres"
    _controls[url] = lambda *arguments: run("pg_ctl", *arguments, "-w", "-m", "immediate")
    _folders[url] = folder / "data"
    return url


_controls: dict[str, Callable[..., None]] = {}
_folders: dict[str, Path] = {}


def postgres_folder(url: str) -> Path:
    """Where the server's data is."""
    if url not in _folders:
        pytest.skip("only a server that the tests have started is stopped by them")
    return _folders[url]


def signal_postgres(url: str, number: int) -> None:
    """Send all processes of the server a signal, such as SIGSTOP."""
    postmaster = int((postgres_folder(url) / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, number)
    for child in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split():
        with suppress(ProcessLookupError):
            os.kill(int(child), number)


def control_postgres(url: str, *arguments: str) -> None:
    """pg_ctl with `arguments`, such as 'restart' or 'stop'; the server crashes and, where it is started again, recovers."""
    if url not in _controls:
        pytest.skip("only a server that the tests have started is stopped by them")
    _controls[url](*arguments)


def server_folder(name: str, owner: str) -> Path:
    """A folder that is gone when the test process has ended."""
    folder = Path(tempfile.mkdtemp(prefix=f"skylift-{name}-"))
    if os.geteuid() == 0:
        shutil.chown(folder, owner, owner)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def as_owner(owner: str, folder: Path, *command: str) -> None:
    """Run a program of a server, which refuses to be run as root. Leaves the test out if it fails."""
    if os.geteuid() == 0:
        command = ("setpriv", f"--reuid={owner}", "--init-groups", *command)
    with (folder / "log").open("ab") as log:
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    if done.returncode:
        pytest.skip(f"{Path(command[-3]).name} does not start: {(folder / 'log').read_text()[-500:]}")


@cache
def mariadb() -> str:
    """URL of an empty MariaDB (or MySQL) server on which databases may be made; its user may do everything."""
    return os.environ.get("SKYLIFT_TEST_MYSQL_URL") or MariaDB().url


class MariaDB:
    """A server of one's own, which may be killed and started again. Leaves the test out where none is installed."""

    def __init__(self) -> None:
        server = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
        if not server:
            pytest.skip("no MariaDB server is installed and SKYLIFT_TEST_MYSQL_URL is not set")
        self._folder, self._port = folder, port = server_folder("mariadb", "mysql"), free_port()
        as_owner("mysql", folder, "mariadb-install-db", "--no-defaults", f"--datadir={folder}/data",
                 "--auth-root-authentication-method=normal", "--skip-test-db")
        self._command = [server, "--no-defaults", f"--datadir={folder}/data", f"--port={port}", "--bind-address=127.0.0.1",
                         f"--socket={folder}/socket", f"--pid-file={folder}/pid", "--innodb-flush-log-at-trx-commit=0",
                         "--max-allowed-packet=128M",       # large values come in one piece
                         f"--tmpdir={folder}",     # a server that starts deletes temporary tables of others there
                         *(["--user=mysql"] if os.geteuid() == 0 else [])]
        self.url = f"mysql://skylift:secret@127.0.0.1:{port}/"
        self.start()
        atexit.register(lambda: self.process.kill() or self.process.wait())
        root = MySQLdb.connect(unix_socket=f"{folder}/socket", user="root")
        root.cursor().execute("create user skylift@'127.0.0.1' identified by 'secret'")
        root.cursor().execute("grant all on *.* to skylift@'127.0.0.1' with grant option")
        root.close()

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until = time.monotonic() + 30
        while not _listens(self._port):
            if self.process.poll() is not None or time.monotonic() > until:
                pytest.skip(f"MariaDB does not start: {(self._folder / 'log').read_text()[-500:]}")
            time.sleep(0.1)


@cache
def s3() -> str:
    """Endpoint of an S3-compatible server that takes any key and secret."""
    if given := os.environ.get("SKYLIFT_TEST_S3_ENDPOINT"):
        return given
    folder, port = Path(tempfile.mkdtemp(prefix="skylift-s3-")), free_port()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    start_s3(folder, port)
    return f"http://127.0.0.1:{port}"


def start_s3(folder: Path, port: int) -> subprocess.Popen:
    """One that is stopped when the test process ends, or by whoever started it."""
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], cwd=folder,
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    atexit.register(process.wait)
    atexit.register(process.kill)
    until = time.monotonic() + 60
    while not _listens(port):
        if process.poll() is not None or time.monotonic() > until:
            pytest.skip(f"the S3 server does not start: {(folder / 'log').read_text()[-500:]}")
        time.sleep(0.1)
    return process


@cache
def sqlserver() -> str:
    """URL of a TDS server on which databases may be made; only one that is given: none can be installed from Debian or PyPI."""
    if given := os.environ.get("SKYLIFT_TEST_SQLSERVER_URL"):
        return given
    pytest.skip("SKYLIFT_TEST_SQLSERVER_URL is not set; no SQL Server can be installed from a package registry")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
