"""A database on a TDS server, written and read through the driver's plain cursor; the server casts to text what would lose digits."""

from __future__ import annotations

import atexit
import os
from collections import Counter
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import mssql_python
from sqlalchemy.engine import URL

from skylift.connectors import parse_url
from skylift.connectors.sqlserver_url import driver_keywords
from tests import servers
from tests.connectors.labs import Lab, plain, quote

# How the judge reads a column, and what it makes of the text.
_READ = {
    "decimal": ("convert(varchar(48), {})", Decimal),
    "money": ("convert(varchar(48), {}, 2)", Decimal),
    "float": ("convert(varchar(48), {}, 3)", float),
    "datetime2": ("convert(varchar(48), {}, 126)", lambda text: datetime.fromisoformat(text[:26])),
    "datetime": ("convert(varchar(48), {}, 126)", datetime.fromisoformat),
}


class SqlServerLab(Lab):
    types: ClassVar = {
        "int": "bigint",
        "decimal": "decimal(38,20)",
        "datetime": "datetime2(3)",
        "text": "nvarchar(100)",
        "note": "nvarchar(max)",
        "blob": "varbinary(max)",
        "double": "float",
    }
    name = staticmethod(quote)
    examples = 4
    fed = False                   # only what is tracked, or has a column of type rowversion

    def lacks(self, value: object) -> bool:
        """No float is infinite; SQL Server itself would hold a NUL, other servers do not."""
        return value == float("inf") or (isinstance(value, str) and "\0" in value)

    def spelt(self, name: str) -> str:
        """SQL Server keeps capitals."""
        self.execute('create table "Aa" (a int)')
        kept = "Aa" in self.names()
        self.execute('drop table "Aa"')
        return name if kept else name.lower()

    def same_key(self, text: str) -> str:
        """By the collation of the database, which pads with blanks to compare."""
        return text.rstrip(" ").casefold()

    role = "source"

    def __init__(self, folder: Path | None = None) -> None:
        self.address = _empty_database(self.role)
        self.url = self.address.render_as_string(hide_password=False)

    def connect(self, autocommit: bool = False) -> Any:
        return mssql_python.connect("", autocommit=autocommit, **driver_keywords(self.address))

    def execute(self, *statements: str | tuple[str, list[tuple]]) -> None:
        connection = self.connect()
        try:
            cursor = connection.cursor()
            for statement in statements:
                if isinstance(statement, str) and statement.strip():
                    cursor.execute(statement.replace(" add column ", " add "))
                elif not isinstance(statement, str):
                    for row in statement[1]:
                        cursor.execute(_without_nulls(statement[0], row), *(value for value in row if value is not None))
            connection.commit()
        finally:
            connection.close()

    def put(self, name: str, key: tuple[str, ...], row: tuple) -> tuple[str, list[tuple]]:
        """Whatever has the row's value in a column of a unique index is in its way."""
        columns = [column for column, _ in self._columns("dbo", name)]
        unique = {column for (column,) in self._rows(
            "select col_name(c.object_id, c.column_id) from sys.indexes i join sys.index_columns c on c.object_id = i.object_id "
            "and c.index_id = i.index_id where i.is_unique = 1 and object_name(i.object_id) = ?", name)} | set(key)
        taken = [i for i, column in enumerate(columns) if column in unique]
        statement = (f"delete from {quote(name)} where {' or '.join(f'{quote(columns[i])} = ?' for i in taken)}; "
                     f"insert into {quote(name)} values ({','.join('?' * len(row))})")
        return statement, [(*(row[i] for i in taken), *row)]

    def fetch(self, sql: str) -> list[tuple]:
        return self._rows(sql)

    def rows(self, name: str, schema: str = "dbo") -> Counter:
        kinds = self._columns(schema, name)
        columns = ", ".join(_READ.get(kind, ("{}",))[0].format(quote(column)) for column, kind in kinds)
        makers = [_READ.get(kind, (None, lambda value: value))[1] for _, kind in kinds]
        return plain(tuple(None if value is None else make(value) for make, value in zip(makers, row, strict=True))
                     for row in self._rows(f"select {columns} from {quote(schema)}.{quote(name)}"))

    def names(self) -> set[str]:
        return {name for (name,) in self._rows("select name from sys.tables where schema_id = schema_id('dbo')")}

    def _columns(self, schema: str, name: str) -> list[tuple]:
        return self._rows("select c.name, t.name from sys.tables o join sys.columns c on c.object_id = o.object_id "
                          "join sys.types t on t.user_type_id = c.system_type_id where schema_name(o.schema_id) = ? and o.name = ? "
                          "order by c.column_id", schema, name)

    def _rows(self, sql: str, *params: Any) -> list[tuple]:
        connection = self.connect(autocommit=True)
        try:
            cursor = connection.cursor()
            cursor.execute(sql, *params)
            return [tuple(row) for row in cursor.fetchall()]
        finally:
            connection.close()


class SqlServerTargetLab(SqlServerLab):
    role = "target"


def _without_nulls(sql: str, row: tuple) -> str:
    """A parameter that is None has no type, and columns of some types take none of another: written into the statement."""
    pieces = sql.split("?")
    marks = ["null" if value is None else "?" for value in row]
    return "".join(piece + mark for piece, mark in zip(pieces, [*marks, ""], strict=True))


@cache
def _database(role: str) -> URL:
    """A database of this process."""
    server = parse_url(servers.sqlserver())
    name = f"skylift_{role}_{os.getpid()}"
    connection = mssql_python.connect("", autocommit=True, **driver_keywords(server))
    cursor = connection.cursor()
    cursor.execute(f"drop database if exists {name}")
    cursor.execute(f"create database {name}")
    connection.close()
    atexit.register(_drop, server, name)
    return server.set(database=name)


def _drop(server: URL, name: str) -> None:
    with suppress(Exception):                      # somebody may still be connected
        connection = mssql_python.connect("", autocommit=True, **driver_keywords(server))
        connection.cursor().execute(f"drop database {name}")
        connection.close()


def _empty_database(role: str) -> URL:
    url = _database(role)
    connection = mssql_python.connect("", autocommit=True, **driver_keywords(url))
    cursor = connection.cursor()
    cursor.execute("select schema_name(schema_id), object_name(parent_object_id), name from sys.foreign_keys")
    for schema, table, name in cursor.fetchall():
        cursor.execute(f"alter table {quote(schema)}.{quote(table)} drop constraint {quote(name)}")
    cursor.execute("select schema_name(schema_id), name from sys.tables")
    for schema, name in cursor.fetchall():
        cursor.execute(f"drop table {quote(schema)}.{quote(name)}")
    cursor.execute("select name from sys.schemas where schema_id > 4 and schema_id < 16384 and name not in ('dbo', 'guest', 'sys')")
    for (name,) in cursor.fetchall():
        cursor.execute(f"drop schema {quote(name)}")
    connection.close()
    return url
