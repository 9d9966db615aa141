"""A database of its own on a throw-away PostgreSQL server, written and read by psycopg."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import psycopg
from sqlalchemy.engine import make_url

from tests import servers
from tests.connectors.labs import Lab, plain, quote


class PostgresTargetLab(Lab):
    def __init__(self, folder: Path, *options: str) -> None:
        """`options`: settings of the server, which is another one then."""
        self.server = server = servers.postgres(*options)
        name = f"lab_{uuid4().hex[:12]}"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"create database {name}")
        self.database = make_url(server).set(database=name).render_as_string(hide_password=False)
        self.url = self.database

    name = staticmethod(quote)

    def lacks(self, value: object) -> bool:
        return isinstance(value, str) and "\0" in value

    def fetch(self, sql: str) -> list[tuple]:
        with psycopg.connect(self.database) as connection:
            return connection.execute(sql).fetchall()

    def rows(self, name: str, schema: str = "public") -> Counter:
        return plain(self.fetch(f"select * from {quote(schema)}.{quote(name)}"))

    def names(self) -> set[str]:
        return {name for (name,) in self.fetch("select relname from pg_class where relnamespace = 'public'::regnamespace")}

    def execute(self, *statements: str | tuple[str, list[tuple]]) -> None:
        with psycopg.connect(self.database) as connection, connection.cursor() as cursor:
            for statement in statements:
                if isinstance(statement, str):
                    cursor.execute(statement)
                elif statement[1]:
                    cursor.executemany(statement[0].replace("%", "%%").replace("?", "%s"), statement[1])


class PostgresLab(PostgresTargetLab):
    """As an owner of its tables sees it, on a server that may decode its log. Every database under test may have a slot."""

    types: ClassVar = {
        "int": "bigint",
        "decimal": "numeric(38,20)",
        "datetime": "timestamp",
        "text": "varchar(100)",
        "note": "text",
        "blob": "bytea",
        "double": "double precision",
    }

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder, "wal_level=logical", "max_replication_slots=1000", *options)

    def put(self, name: str, key: tuple[str, ...], row: tuple) -> tuple[str, list[tuple]]:
        """In place of the rows that have the same value in a column that is unique."""
        table = f"'{quote(name)}'::regclass"
        columns = self.fetch(f"select attname, format_type(atttypid, atttypmod) from pg_attribute where attrelid = {table} and attnum > 0"
                             " order by attnum")
        unique = self.fetch(f"select attname from pg_index join pg_attribute on attrelid = indrelid and attnum = indkey[0]"
                            f" where indrelid = {table} and indisunique")
        given = ", ".join(f"?::text::{kind} as {quote(column)}" for column, kind in columns)
        same = " or ".join(f"t.{quote(column)} = n.{quote(column)}" for (column,) in unique)
        return (f"with n as (select {given}), d as (delete from {quote(name)} t using n where {same} returning 1)"
                f" insert into {quote(name)} select n.* from n where (select count(*) from d) >= 0", [row])


class PostgresTriggersLab(PostgresLab):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.url += "?feed=triggers"
