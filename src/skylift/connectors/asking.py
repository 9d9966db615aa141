"""Databases that are asked and never told: each question is one query, in a transaction that may only read and is always rolled back.

A second way into source and target that shares nothing with how rows are copied and hashed: what validation (validation/) finds out it
has from the databases' own SQL. A lake has none. One file a database, as for the connectors.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Protocol

import pyarrow as pa

from skylift.connectors import parse_url
from skylift.errors import CopyError
from skylift.model import Table


class QueryRefused(CopyError):
    """What was asked is no single query, or tries to write."""

    code = "QueryRefused"


class QueryOverrun(CopyError):
    code = "QueryOverrun"


class Asker(Protocol):
    """One connection, for one thread."""

    dialect: str                    # of its SQL, as `Target.dialect`
    tables_asked: int               # how many one query had better ask for where there are many

    def ask(self, sql: str, limit_s: float) -> list[tuple]:
        """The rows of one query. Raises QueryRefused if it is anything else, writes, or has more than MOST_ROWS rows; QueryOverrun
        after `limit_s` seconds; CopyError for what the database says is wrong with it.
        """

    def table_sql(self, namespace: str, table: str) -> str:
        """The quoted name of a table; namespace '' = the default one."""

    def column_sql(self, column: str) -> str:
        """The quoted name that a source's column goes by here."""

    def measures(self, field: pa.Field, declared: str) -> Mapping[str, str]:
        """The aggregates that this database computes exactly as the column moves: their names (validation/census.py) and SQL.

        `declared`: the column's type in this database where it is known, else ''.
        """

    def close(self) -> None: ...


MOST_ROWS = 100_000                # of an answer, which is held in memory
TABLES_ASKED = 40                  # in one query, which saves round trips; MySQL takes 61, SQLite 64

_ASKERS = {"sqlite": "sqlite_ask", "duckdb": "duckdb_ask", "postgresql": "postgres_ask", "mysql": "mysql_ask", "mariadb": "mysql_ask",
           "mssql": "sqlserver_ask"}


def open_asker(url: str, *, is_source: bool) -> Asker | None:
    """None where there is no SQL: a lake. Raises what opening the source or target there raises."""
    parsed = parse_url(url)
    module = _ASKERS.get(parsed.get_backend_name())
    if module is None:
        return None
    asker: Asker = importlib.import_module(f"skylift.connectors.{module}").open_asker(parsed, is_source)
    return asker


def source_sql(asker: Asker, table: Table) -> str:
    return asker.table_sql(table.namespace, table.name)


def numbers(c: str, total: str) -> dict[str, str]:
    """`total`: the expression of the exact sum, whatever its size."""
    return {"nulls": nulls(c), "sum": total, "least": f"min({c})", "greatest": f"max({c})"}


def lengths(c: str, length: str, total: str) -> dict[str, str]:
    """`length`: of a value, in characters of text or bytes of a binary value; `total` of them all."""
    return {"nulls": nulls(c), "shortest": f"min({length})", "longest": f"max({length})", "length": total}


def nulls(c: str) -> str:
    return f"count(*) - count({c})"


def overrun(limit_s: float) -> QueryOverrun:
    return QueryOverrun(f"the query took longer than {limit_s:g} s and was ended",
                        hint="make it cheaper, or allow more with the setting validation_query_s")


def bounded(rows: list[tuple]) -> list[tuple]:
    """An answer of which one row more than allowed was asked for."""
    if len(rows) > MOST_ROWS:
        raise refused(f"it has more than {MOST_ROWS:,} rows")
    return rows


def refused(why: str) -> QueryRefused:
    return QueryRefused(f"not carried out: {why}", hint="an expectation is one query that only reads")


# Text, quoted names, and comments of T-SQL; what stands outside of them is looked at.
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|\[(?:[^\]]|\]\])*\]""")


def enclosed(sql: str) -> str:
    """`sql`, of which nothing can get out of the parentheses that it is to be put in. Raises QueryRefused.

    For a server without transactions that only read, where several statements need nothing between them.
    """
    bare = _QUOTED.sub("''", sql)
    if any(sign in bare for sign in ("--", "/*", ";")) or bare.count("'") % 2 or set('"[') & set(bare):
        raise refused("it holds a comment, a semicolon or an open quote")
    depth = 0
    for sign in bare:
        depth += (sign == "(") - (sign == ")")
        if depth < 0:
            raise refused("a parenthesis is closed that was not opened")
    if depth:
        raise refused("a parenthesis is not closed")
    return sql
