"""A folder of Delta Lake tables, read by DuckDB over the files that the `deltalake` package finds in a table's own log."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import duckdb
from deltalake import DeltaTable

from skylift.connectors.lake_names import escape, unescape
from tests.connectors.labs import plain


class DeltaLab:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "lake"
        self.url = f"delta:///{self.path}"

    def table(self, name: str, schema: str = "main") -> DeltaTable:
        return DeltaTable(f"{self.path}/{escape(schema)}/{escape(name)}")

    def files(self, name: str, schema: str = "main") -> list[str]:
        """That make up the table now."""
        return sorted(unquote(uri) for uri in self.table(name, schema).file_uris())

    def rows(self, name: str, schema: str = "main") -> Counter:
        files = self.files(name, schema)
        with duckdb.connect() as connection:
            return plain(connection.execute("select * from read_parquet(?)", [files]).fetchall()) if files else Counter()

    def names(self) -> set[str]:
        return {unescape(folder.parent.name) for folder in (self.path / "main").glob("*/_delta_log")}
