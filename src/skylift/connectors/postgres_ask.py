"""PostgreSQL, asked: a read-only transaction over a prepared statement, which can be one only, as a subquery, which can be a query only."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import psycopg
import pyarrow as pa
from psycopg import errors as pg
from sqlalchemy.engine import URL

from skylift.connectors.asking import MOST_ROWS, TABLES_ASKED, Asker, bounded, lengths, nulls, numbers, overrun, refused
from skylift.connectors.postgres import DEFAULT_SCHEMA, Connection, column_name, connect, explained, selected
from skylift.connectors.sql import quote


def open_asker(url: URL, is_source: bool) -> Asker:
    return PostgresAsker(url.difference_update_query(["feed"]))


class PostgresAsker:
    dialect = "postgresql"
    tables_asked = TABLES_ASKED

    def __init__(self, url: URL) -> None:
        self._url = url
        self._connection = self._connect()

    def _connect(self) -> Connection:
        connection = connect(self._url)
        connection.prepare_threshold = 1 << 30     # what asks to be prepared is; without any number it would not be
        return connection

    def ask(self, sql: str, limit_s: float) -> list[tuple]:
        connection = self._connection
        if connection.closed:
            connection = self._connection = self._connect()
        try:
            connection.execute("begin isolation level repeatable read, read only")
            connection.execute(f"set local statement_timeout = {max(1, round(limit_s * 1000))}")
            whole = f"select * from (\n{sql}\n) _skylift_question limit {MOST_ROWS + 1}"
            return bounded(connection.execute(whole.encode(), prepare=True).fetchall())
        except pg.QueryCanceled:
            raise overrun(limit_s) from None
        except (pg.ReadOnlySqlTransaction, pg.SyntaxError, pg.ActiveSqlTransaction) as error:
            raise refused(str(error).splitlines()[0]) from None
        except psycopg.Error as error:
            raise explained(error, self._url) from None
        finally:
            with suppress(psycopg.Error):
                connection.execute("rollback")

    def table_sql(self, namespace: str, table: str) -> str:
        return f"{quote(namespace or DEFAULT_SCHEMA)}.{quote(table)}"

    def column_sql(self, column: str) -> str:
        return quote(column_name(column))

    def measures(self, field: pa.Field, declared: str) -> Mapping[str, str]:
        name = column_name(field.name)
        c = selected(name, declared) if declared else quote(name)
        if pa.types.is_decimal(field.type) or pa.types.is_integer(field.type):
            return numbers(c, f"sum({c})")
        if pa.types.is_binary(field.type):
            return lengths(c, f"octet_length({c})", f"sum(octet_length({c}))")
        if pa.types.is_string(field.type) and not declared.startswith("character("):     # whose blanks count when it moves
            return lengths(c, f"char_length({c})", f"sum(char_length({c}))")
        return {"nulls": nulls(c)}

    def close(self) -> None:
        self._connection.close()
