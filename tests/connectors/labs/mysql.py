"""A database of its own on the MariaDB or MySQL server, written and read by MySQLdb with its own conversions."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import MySQLdb
from sqlalchemy.engine import make_url

from tests import servers
from tests.connectors.labs import Lab, plain, quote


class MySqlLab(Lab):
    types: ClassVar = {
        "int": "BIGINT",
        "decimal": "DECIMAL(38,20)",
        "datetime": "DATETIME(3)",
        "text": "VARCHAR(100)",
        "note": "LONGTEXT",
        "blob": "LONGBLOB",
        "double": "DOUBLE",
    }

    def __init__(self, folder: Path, server_url: str = "") -> None:
        server = make_url(server_url or servers.mariadb())
        self._url = server.set(database=f"lab_{uuid4().hex[:16]}")
        with closing(connect(server)) as connection:       # a collation in which texts are equal only if they are the same
            connection.cursor().execute(f"create database {self._url.database} character set utf8mb4 collate {exact_collation()}")
        self.url = self._url.render_as_string(hide_password=False)

    name = staticmethod(quote)

    def execute(self, *statements: str | tuple[str, list[tuple]]) -> None:
        with closing(self.connect()) as connection:
            cursor = connection.cursor()
            for statement in statements:
                if isinstance(statement, str):
                    cursor.execute(statement)
                else:
                    cursor.executemany(statement[0].replace("%", "%%").replace("?", "%s"), statement[1])
            connection.commit()

    def connect(self) -> MySQLdb.Connection:
        return connect(self._url)

    def put(self, name: str, key: tuple[str, ...], row: tuple) -> tuple[str, list[tuple]]:
        return f"replace into {quote(name)} values ({','.join('?' * len(row))})", [row]

    def rows(self, name: str) -> Counter:
        return plain(self.fetch(f"select * from {quote(name)}"))

    def lacks(self, value: object) -> bool:
        return isinstance(value, float) and not math.isfinite(value)

    def fetch(self, sql: str) -> list[tuple]:
        with closing(self.connect()) as connection:
            cursor = connection.cursor()
            cursor.execute(sql)
            return list(cursor.fetchall())


def connect(url) -> MySQLdb.Connection:
    return MySQLdb.connect(host=url.host, port=url.port, user=url.username, password=url.password, database=url.database or "",
                           charset="utf8mb4", sql_mode="ANSI_QUOTES,STRICT_ALL_TABLES", init_command="set time_zone = '+00:00'")


@cache
def exact_collation() -> str:
    with closing(connect(make_url(servers.mariadb()))) as connection:
        return "utf8mb4_nopad_bin" if "MariaDB" in connection.get_server_info() else "utf8mb4_0900_bin"
