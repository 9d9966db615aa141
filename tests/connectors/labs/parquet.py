"""A folder of Parquet files, read by DuckDB as anybody would read it: every file in a table's folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import duckdb

from skylift.connectors.lake_names import escape, unescape
from tests.connectors.labs import Lab, plain


class ParquetLab(Lab):
    examples = 25

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lake"
        self.url = f"parquet:///{self.path}"

    def files(self, name: str) -> list[str]:
        """That make up the table now."""
        return sorted(map(str, (self.path / "main" / escape(name)).glob("*.parquet")))

    def rows(self, name: str, schema: str = "main") -> Counter:
        files = f"{self.path}/{escape(schema)}/{escape(name)}/*.parquet"
        with duckdb.connect() as connection:
            return plain(connection.execute("select * from read_parquet(?)", [files]).fetchall())

    def names(self) -> set[str]:
        return {unescape(folder.name) for folder in (self.path / "main").glob("*")}
