"""A database of its own on a throw-away PostgreSQL server, read by psycopg."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from uuid import uuid4

import psycopg
from sqlalchemy.engine import make_url

from tests import servers
from tests.connectors.labs import Lab, plain, quote


class PostgresTargetLab(Lab):
    def __init__(self, folder: Path) -> None:
        server = servers.postgres()
        name = f"lab_{uuid4().hex[:12]}"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"create database {name}")
        self.url = make_url(server).set(database=name).render_as_string(hide_password=False)

    name = staticmethod(quote)

    def lacks(self, value: object) -> bool:
        return isinstance(value, str) and "\0" in value

    def fetch(self, sql: str) -> list[tuple]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(sql).fetchall()

    def rows(self, name: str, schema: str = "public") -> Counter:
        return plain(self.fetch(f"select * from {quote(schema)}.{quote(name)}"))

    def names(self) -> set[str]:
        return {name for (name,) in self.fetch("select relname from pg_class where relnamespace = 'public'::regnamespace")}

    def execute(self, *statements: str) -> None:
        with psycopg.connect(self.url) as connection:
            for statement in statements:
                connection.execute(statement)
