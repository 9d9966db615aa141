"""A DuckDB file, read by a connection of its own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import duckdb

from tests.connectors.labs import Lab, plain, quote


class DuckDBLab(Lab):
    examples = 25

    def __init__(self, folder: Path) -> None:
        self.path = folder / "target.duckdb"
        self.url = f"duckdb:///{self.path}"

    name = staticmethod(quote)

    def fetch(self, sql: str) -> list[tuple]:
        with duckdb.connect(str(self.path), read_only=True) as connection:
            return connection.execute(sql).fetchall()

    def rows(self, name: str, schema: str = "main") -> Counter:
        with duckdb.connect(str(self.path), read_only=True) as connection:
            return plain(connection.execute(f"select * from {quote(schema)}.{quote(name)}").fetchall())

    def names(self) -> set[str]:
        with duckdb.connect(str(self.path), read_only=True) as connection:
            return {name for (name,) in connection.execute("select table_name from information_schema.tables").fetchall()}
