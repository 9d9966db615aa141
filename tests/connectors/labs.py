"""One lab per database: makes a source with SQL, reads a target back with an independent judge.

A later connector joins every test of the conformance suite by one more entry in SOURCES or TARGETS.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import duckdb

from skylift.connectors import open_source, open_target
from skylift.engine.pool import copy_tables
from skylift.model import CopyTask, Progress, TargetName


class SqliteLab:
    """A SQLite file, written and read by Python's own sqlite3 module."""

    types: ClassVar = {
        "int": "INTEGER",
        "decimal": "DECIMALTEXT(38,20)",
        "datetime": "DATETIMETEXT",
        "text": "NVARCHARTEXT(100)",
        "note": "NTEXT",
        "blob": "BLOB",
        "double": "DOUBLE",
    }

    def __init__(self, folder: Path) -> None:
        self.path = folder / "source.db"
        self.url = f"sqlite:///{self.path}"
        self.execute("pragma journal_mode=wal")

    def execute(self, *statements: str | tuple[str, list[tuple]]) -> None:
        """All statements in one transaction; a tuple is (statement, rows)."""
        with closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as connection:
            if len(statements) > 1:
                connection.execute("begin")
            for statement in statements:
                if isinstance(statement, str):
                    connection.execute(statement)
                else:
                    connection.executemany(*statement)
            if connection.in_transaction:
                connection.execute("commit")

    def ddl(self, name: str, columns: dict[str, str], key: tuple[str, ...] = ()) -> str:
        parts = [f'"{c}" {self.types[t]}{" NOT NULL" if c in key else ""}' for c, t in columns.items()]
        if key:
            parts.append(f"primary key ({', '.join(f'{chr(34)}{c}{chr(34)}' for c in key)})")
        return f"create table {quote(name)} ({', '.join(parts)})"

    def rows(self, name: str) -> Counter:
        with closing(sqlite3.connect(self.path, timeout=30)) as connection:
            return Counter(map(_plain, connection.execute(f"select * from {quote(name)}").fetchall()))


class DuckDBLab:
    """A DuckDB file, read by a connection of its own."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "target.duckdb"
        self.url = f"duckdb:///{self.path}"

    def rows(self, name: str, schema: str = "main") -> Counter:
        with duckdb.connect(str(self.path), read_only=True) as connection:
            types = dict(
                connection.execute(
                    "select column_name, data_type from information_schema.columns where table_schema = ? and table_name = ?",
                    [schema, name],
                ).fetchall()
            )
            # what the source holds as text is compared as text, digit by digit
            columns = ", ".join(
                f'"{c}"'
                if t in ("BIGINT", "DOUBLE", "BLOB", "VARCHAR")
                else f"strftime(\"{c}\", '%Y-%m-%d %H:%M:%S.%g')"
                if t == "TIMESTAMP"
                else f'"{c}"::varchar'
                for c, t in types.items()
            )
            return Counter(map(_plain, connection.execute(f"select {columns} from {quote(schema)}.{quote(name)}").fetchall()))

    def names(self) -> set[str]:
        with duckdb.connect(str(self.path), read_only=True) as connection:
            return {name for (name,) in connection.execute("select table_name from information_schema.tables").fetchall()}


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _plain(row: tuple) -> tuple:
    """Hashable, and with the type beside each value, so that 1 is not 1.0 and not '1'."""
    return tuple((type(v).__name__, repr(v) if isinstance(v, float) else v) for v in row)


SOURCES = {"sqlite": SqliteLab}
TARGETS = {"duckdb": DuckDBLab}


def migrate(source_url: str, target_url: str, copy_id: str, *, full: bool = False, only: set[str] | None = None) -> dict[str, Progress]:
    """One run over every table, as the coordinator would make it; the last Progress of each table, by name."""
    source, target = open_source(source_url), open_target(target_url)
    try:
        tasks = [CopyTask("", t.name, t, TargetName("", t.name), full) for t in source.tables() if only is None or t.name in only]
        return {p.task.table.name: p for p in copy_tables(tasks, source, target, copy_id=copy_id, consumer="tests", workers=2)}
    finally:
        target.close()
        source.close()
