"""MySQL and MariaDB, asked: a read-only transaction, and one statement at a time, as a subquery, which can be a query only."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from typing import Any

import MySQLdb
import pyarrow as pa
from MySQLdb.constants import FIELD_TYPE, FLAG
from sqlalchemy.engine import URL

from skylift.connectors.asking import MOST_ROWS, TABLES_ASKED, Asker, bounded, lengths, nulls, numbers, overrun, refused
from skylift.connectors.mysql_connection import connect, explained, is_mariadb
from skylift.connectors.mysql_types import selected
from skylift.errors import CopyError, SourceChanged

_LATE = {1969, 3024}               # max_statement_time, max_execution_time
_WRITES = {1792, 1290, 1064, 1295, 1305, 1415}
_WHOLE = (FIELD_TYPE.TINY, FIELD_TYPE.SHORT, FIELD_TYPE.LONG, FIELD_TYPE.LONGLONG, FIELD_TYPE.INT24, FIELD_TYPE.YEAR)
_NUMBERS = {FIELD_TYPE.DECIMAL: Decimal, FIELD_TYPE.NEWDECIMAL: Decimal, FIELD_TYPE.FLOAT: float, FIELD_TYPE.DOUBLE: float,
            **dict.fromkeys(_WHOLE, int)}
_SINGLE_STATEMENTS = 1             # MYSQL_OPTION_MULTI_STATEMENTS_OFF of mysql.h; the driver's own default is on


def open_asker(url: URL, is_source: bool) -> Asker:
    return MySqlAsker(url)


class MySqlAsker:
    dialect = "mysql"
    tables_asked = TABLES_ASKED

    def __init__(self, url: URL) -> None:
        self._url = url
        self._connection = connect(url)
        self._connection.set_server_option(_SINGLE_STATEMENTS)
        self._connection.query("set character_set_results = utf8mb4")
        self._limit = "set max_statement_time = {}" if is_mariadb(self._connection) else "set max_execution_time = {}"
        self._unit = 1 if is_mariadb(self._connection) else 1000

    def ask(self, sql: str, limit_s: float) -> list[tuple]:
        connection = self._connection
        try:
            connection.query(self._limit.format(max(1 if self._unit > 1 else 0.001, limit_s * self._unit)))
            connection.query("start transaction read only")
            connection.query(f"select * from (\n{sql}\n) _skylift_question limit {MOST_ROWS + 1}".encode())
            result = connection.store_result()
            kinds = [_reader(kind, flags) for (_, kind, *_), flags in zip(result.describe(), result.field_flags(), strict=True)]
            return bounded([tuple(None if value is None else read(value) for read, value in zip(kinds, row, strict=True))
                            for row in result.fetch_row(0)])
        except MySQLdb.Error as error:
            code = error.args[0] if error.args else 0
            if code in _LATE:
                raise overrun(limit_s) from None
            if code in _WRITES:
                raise refused(str(error.args[1])) from None
            problem = explained(error, self._url)
            raise CopyError(problem.message) if isinstance(problem, SourceChanged) else problem from None
        finally:
            with suppress(MySQLdb.Error):
                connection.query("rollback")

    def table_sql(self, namespace: str, table: str) -> str:
        return quote(table)

    def column_sql(self, column: str) -> str:
        return quote(column)

    def measures(self, field: pa.Field, declared: str) -> Mapping[str, str]:
        c = selected(quote(field.name), declared)
        if pa.types.is_decimal(field.type) or pa.types.is_integer(field.type):
            return numbers(c, f"sum({c})")
        if pa.types.is_string(field.type):
            return lengths(c, f"char_length({c})", f"sum(char_length({c}))")
        if pa.types.is_binary(field.type):
            return lengths(c, f"length({c})", f"sum(length({c}))")
        return {"nulls": nulls(c)}

    def close(self) -> None:
        with suppress(MySQLdb.Error):              # it is closed already
            self._connection.close()


def quote(name: str) -> str:
    """As in mysql_connection.py, but for statements that are not formatted."""
    return "`" + name.replace("`", "``") + "`"


def _reader(kind: int, flags: int) -> Any:
    if kind in _NUMBERS:
        return lambda value: _NUMBERS[kind](value.decode())
    if kind == FIELD_TYPE.BIT or (flags & FLAG.BINARY and kind in (FIELD_TYPE.TINY_BLOB, FIELD_TYPE.MEDIUM_BLOB, FIELD_TYPE.LONG_BLOB,
                                                                   FIELD_TYPE.BLOB)):
        return bytes
    return lambda value: value.decode(errors="backslashreplace")
