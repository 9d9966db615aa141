"""A folder of Delta Lake tables, read by DuckDB over the files that the `deltalake` package finds in a table's own log."""

from __future__ import annotations

from collections import Counter
from urllib.parse import unquote

from deltalake import DeltaTable

from skylift.connectors.lake_names import escape, unescape
from tests.connectors.labs.parquet import ParquetLab


class DeltaLab(ParquetLab):
    form = "delta"

    def table(self, name: str, schema: str = "main") -> DeltaTable:
        return DeltaTable(f"{self.path}/{escape(schema)}/{escape(name)}")

    def files(self, name: str, schema: str = "main") -> list[str]:
        return sorted(unquote(uri) for uri in self.table(name, schema).file_uris())

    def rows(self, name: str, schema: str = "main") -> Counter:
        return super().rows(name, schema) if self.files(name, schema) else Counter()     # a table without rows has no file

    def names(self, schema: str = "main") -> set[str]:
        return {unescape(folder.parent.name) for folder in (self.path / escape(schema)).glob("*/_delta_log")}
