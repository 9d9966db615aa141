"""A SQLite file, written and read by Python's own sqlite3 module."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

from tests.connectors.labs import Lab, plain, quote


class SqliteLab(Lab):
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

    name = staticmethod(quote)
    examples = 25

    def execute(self, *statements: str | tuple[str, list[tuple]]) -> None:
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

    def put(self, name: str, key: tuple[str, ...], row: tuple) -> tuple[str, list[tuple]]:
        """REPLACE over a second unique index deletes rows without telling delete triggers."""
        return f"insert or replace into {quote(name)} values ({','.join('?' * len(row))})", [row]

    def fetch(self, sql: str) -> list[tuple]:
        with closing(sqlite3.connect(self.path, timeout=30)) as connection:
            return connection.execute(sql).fetchall()

    def rows(self, name: str) -> Counter:
        """SQLite keeps decimals and times as text: read as what they were declared as."""
        with closing(sqlite3.connect(self.path, timeout=30)) as connection:
            declared = [kind for _, _, kind, *_ in connection.execute(f"pragma table_info({quote(name)})")]
            return plain(tuple(_value(v, kind) for v, kind in zip(row, declared, strict=True))
                         for row in connection.execute(f"select * from {quote(name)}"))


def _value(value: Any, declared: str) -> Any:
    if value is not None and declared.startswith("DECIMAL"):
        return Decimal(repr(value) if isinstance(value, float) else value)
    return datetime.fromisoformat(value) if value is not None and declared.startswith("DATETIME") else value
