"""A folder of Parquet files, read by DuckDB as anybody would read it: every file in a table's folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import duckdb

from skylift.connectors.lake_names import escape, unescape
from tests.connectors.labs import Lab, plain, quote


class ParquetLab(Lab):
    form = "parquet"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lake"
        self.url = f"{self.form}:///{self.path}"

    name = staticmethod(quote)

    def files(self, name: str, schema: str = "main") -> list[str]:
        """That make up the table now."""
        return sorted(map(str, (self.path / escape(schema) / escape(name)).glob("*.parquet")))

    def fetch(self, sql: str, schema: str = "main") -> list[tuple]:
        """A table is a view of its files."""
        with duckdb.connect() as connection:
            connection.execute("set TimeZone='UTC'")
            for name in self.names(schema):
                if files := self.files(name, schema):
                    connection.execute(f"create view {quote(name)} as select * from read_parquet({files})")
            return connection.execute(sql).fetchall()

    def rows(self, name: str, schema: str = "main") -> Counter:
        files = self.files(name, schema)
        with duckdb.connect() as connection:
            return plain(connection.execute("select * from read_parquet(?)", [files or f"{self.path}/{schema}/{name}/*"]).fetchall())

    def names(self, schema: str = "main") -> set[str]:
        return {unescape(folder.name) for folder in (self.path / escape(schema)).glob("*")}
