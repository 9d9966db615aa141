"""A DuckDB file, written and read by a connection of its own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import ClassVar

import duckdb

from tests.connectors.labs import Lab, plain, quote


class DuckDBLab(Lab):
    examples = 25
    file = "target.duckdb"

    def __init__(self, folder: Path) -> None:
        self.path = folder / self.file
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


class DuckDBSourceLab(DuckDBLab):
    types: ClassVar = {
        "int": "BIGINT",
        "decimal": "DECIMAL(38,20)",
        "datetime": "TIMESTAMP",
        "text": "VARCHAR(100)",
        "note": "VARCHAR",
        "blob": "BLOB",
        "double": "DOUBLE",
    }
    file = "source.duckdb"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.execute()

    def execute(self, *statements: str | tuple[str, list[tuple]]) -> None:
        with duckdb.connect(str(self.path)) as connection:
            connection.execute("begin")
            for statement in statements:
                if isinstance(statement, str):
                    connection.execute(statement)
                elif statement[1]:
                    connection.executemany(*statement)
            connection.execute("commit")

    def put(self, name: str, key: tuple[str, ...], row: tuple) -> tuple[str, list[tuple]]:
        """In place of the rows that have the same value in a column that is unique; they go before, in a transaction of their own:
        within one, DuckDB keeps the keys of deleted rows (https://duckdb.org/docs/current/sql/indexes)."""
        columns = [column for (column,) in self.fetch(f"select column_name from duckdb_columns() where table_name = '{name}'")]
        unique = [column for (column,) in self.fetch(
            "select unnest(constraint_column_names) from duckdb_constraints() where constraint_type = 'PRIMARY KEY'"
            f" and table_name = '{name}' union select regexp_extract(expressions, '\\w+') from duckdb_indexes()"
            f" where table_name = '{name}' and is_unique")]
        self.execute((f"delete from {quote(name)} where {' or '.join(f'{quote(column)} = ?' for column in unique)}",
                      [tuple(row[columns.index(column)] for column in unique)]))
        return f"insert into {quote(name)} values ({','.join('?' * len(row))})", [row]
