"""SQLite, asked in a process of its own, whose authorizer lets nothing but reading pass.

Two copies of SQLite in one process drop each other's file locks (connectors/sqlite.py), and only the sqlite3 module has an authorizer
(https://www.sqlite.org/c3ref/set_authorizer.html) and a way to end a statement.
"""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote as url_quote

import pyarrow as pa
from sqlalchemy.engine import URL

from skylift.connectors.asking import MOST_ROWS, TABLES_ASKED, Asker, bounded, nulls, overrun, refused
from skylift.connectors.sql import quote
from skylift.errors import CopyError, Transient

_CHILD = """
import pickle, sqlite3, struct, sys, time
reads = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
connection = sqlite3.connect(sys.argv[1], uri=True, isolation_level=None)
connection.execute("pragma busy_timeout = 30000")
connection.execute("pragma query_only = 1")
connection.execute("select 1 from pragma_foreign_key_list('')")    # its first use declares it, which the authorizer would deny
harmful = ("load_extension", "writefile", "fts3_tokenizer")
told = (sqlite3.SQLITE_PRAGMA, "foreign_key_list")
connection.set_authorizer(lambda action, one, two, *rest: sqlite3.SQLITE_OK if (action, one) == told or action in reads and not (
    action == sqlite3.SQLITE_FUNCTION and two in harmful) else sqlite3.SQLITE_DENY)
until = 0.0
connection.set_progress_handler(lambda: time.monotonic() > until, 10_000)
while head := sys.stdin.buffer.read(8):
    sql, limit_s = pickle.loads(sys.stdin.buffer.read(struct.unpack("<q", head)[0]))
    until = time.monotonic() + limit_s
    try:
        answer = "rows", connection.execute(sql).fetchall()
    except sqlite3.OperationalError as error:
        answer = "late" if str(error) == "interrupted" else "busy" if "locked" in str(error) else "wrong", str(error)
    except (sqlite3.DatabaseError, sqlite3.Warning, OverflowError) as error:
        answer = "denied" if "not authorized" in str(error) or "one statement" in str(error) else "wrong", str(error)
    text = pickle.dumps(answer)
    sys.stdout.buffer.write(struct.pack("<q", len(text)) + text)
    sys.stdout.buffer.flush()
"""


def open_asker(url: URL, is_source: bool) -> Asker:
    return SqliteAsker(Path(str(url.database)).absolute(), str(url.query.get("mode", "rw")))


class SqliteAsker:
    dialect = "sqlite"
    tables_asked = TABLES_ASKED

    def __init__(self, path: Path, mode: str) -> None:
        self._path = path
        self._child = subprocess.Popen([sys.executable, "-I", "-c", _CHILD, f"file:{url_quote(str(path))}?mode={mode}"],
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def ask(self, sql: str, limit_s: float) -> list[tuple]:
        assert self._child.stdin and self._child.stdout
        question = pickle.dumps((f"select * from (\n{sql}\n) limit {MOST_ROWS + 1}", limit_s))
        try:
            self._child.stdin.write(struct.pack("<q", len(question)) + question)
            self._child.stdin.flush()
            head = self._child.stdout.read(8)
            kind, answer = pickle.loads(self._child.stdout.read(struct.unpack("<q", head)[0]))
        except (OSError, struct.error, EOFError):
            raise CopyError(f"SQLite file {self._path} cannot be read: the process that asks it has ended",
                            hint="check that it is there, and undamaged") from None
        if kind == "late":
            raise overrun(limit_s)
        if kind == "denied":
            raise refused(answer)
        if kind == "busy":
            raise Transient(f"{self._path}: {answer}", hint="it is tried again")
        if kind == "wrong":
            raise CopyError(f"SQLite file {self._path}: {answer}")
        return bounded(answer)

    def table_sql(self, namespace: str, table: str) -> str:
        return quote(table)

    def column_sql(self, column: str) -> str:
        return quote(column)

    def measures(self, field: pa.Field, declared: str) -> Mapping[str, str]:
        """A cell may hold anything, whatever its column declares: what it moves as only the connector knows."""
        return {"nulls": nulls(quote(field.name))}

    def close(self) -> None:
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe:
                pipe.close()
        self._child.terminate()
        self._child.wait()
