"""DuckDB, asked: a transaction of DuckDB itself that may only read, over one statement that its own parser takes for a query."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import duckdb
import pyarrow as pa
from sqlalchemy.engine import URL

from skylift.connectors.asking import MOST_ROWS, Asker, bounded, lengths, nulls, numbers, overrun, refused
from skylift.connectors.duckdb import first_line
from skylift.connectors.duckdb_engine import engine
from skylift.connectors.duckdb_source import reading_sql
from skylift.connectors.sql import quote
from skylift.errors import CopyError

MEMORY = (32 * 2**20, 128 * 2**20, 512 * 2**20)     # of one question; one that needs more than the first is put again


def open_asker(url: URL, is_source: bool) -> Asker:
    return DuckDBAsker(Path(str(url.database)).absolute(), is_source)


class DuckDBAsker:
    dialect = "duckdb"
    tables_asked = 1                 # there is no round trip to save, and it takes longer to plan one large query

    def __init__(self, path: Path, is_source: bool) -> None:
        self._path, self._read_only = path, is_source
        self._engine = engine()
        self._name = self._engine.attach(path, read_only=is_source)

    def ask(self, sql: str, limit_s: float) -> list[tuple]:
        for size in MEMORY:
            try:
                return self._answer(sql, limit_s, size)
            except duckdb.OutOfMemoryException as error:
                problem = error
            except duckdb.InterruptException:
                raise overrun(limit_s) from None
            except duckdb.TransactionException as error:
                raise refused(first_line(error)) from None
            except duckdb.Error as error:
                raise CopyError(f"DuckDB file {self._path}: {first_line(error)}") from None
        raise CopyError(f"DuckDB file {self._path}: {first_line(problem)}", hint="have the query hold fewer groups or rows at once")

    def _answer(self, sql: str, limit_s: float, size: int) -> list[tuple]:
        with self._engine.memory.share() as memory, self._engine.cursor(self._name) as cursor:
            memory.at_least(size)
            statements = _parsed(cursor, f"select * from (\n{sql}\n) limit {MOST_ROWS + 1}", sql)
            cursor.execute("begin transaction read only")
            late = threading.Timer(limit_s, cursor.interrupt)
            late.start()
            try:
                return bounded(cursor.execute(statements[0]).fetchall())
            finally:
                late.cancel()
                late.join()
                with suppress(duckdb.Error):
                    cursor.execute("rollback")

    def table_sql(self, namespace: str, table: str) -> str:
        return f"{quote(namespace or 'main')}.{quote(table)}"

    def column_sql(self, column: str) -> str:
        return quote(column)

    def measures(self, field: pa.Field, declared: str) -> Mapping[str, str]:
        c = reading_sql(field.name, declared) if self._read_only and declared else quote(field.name)
        if pa.types.is_decimal(field.type):        # a sum has 38 digits, as the values have: the parts on both sides of the point
            return numbers(c, f"sum(trunc({c}))::varchar || '|' || sum({c} - trunc({c}))::varchar")
        if pa.types.is_integer(field.type):
            return numbers(c, f"sum({c})")
        if pa.types.is_string(field.type):
            return lengths(c, f"length({c})", f"sum(length({c}))")
        if pa.types.is_binary(field.type):
            return lengths(c, f"octet_length({c})", f"sum(octet_length({c}))")
        return {"nulls": nulls(c)}

    def close(self) -> None:
        self._engine.detach(self._path, read_only=self._read_only)


def _parsed(cursor: duckdb.DuckDBPyConnection, *texts: str) -> list[duckdb.Statement]:
    """The first text, which is one query, parsed; where it cannot be, the next text may tell why."""
    for text in texts:
        with suppress(duckdb.ParserException):
            statements = cursor.extract_statements(text)
            if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
                raise refused("it is not one query")
            if text == texts[0]:
                return statements
    return cursor.extract_statements(texts[0])         # raises what is wrong with it
