"""SQL Server, asked. It has no transaction that may only read: a question stands in parentheses that it cannot leave (asking.py),
where only a query can stand, and what it runs in is rolled back.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import pyarrow as pa
from sqlalchemy.engine import URL

from skylift.connectors.asking import MOST_ROWS, TABLES_ASKED, Asker, bounded, enclosed, lengths, numbers, overrun, refused
from skylift.connectors.sql import quote
from skylift.connectors.sqlserver import ServerError, Session, StatementOverrun, full_name
from skylift.connectors.sqlserver_ddl import column_name
from skylift.errors import SkyliftError, Transient

_WORDS = (102, 156, 319, 1033, 8155)   # a statement, `with`, `order by` or a column without a name where none may stand


def open_asker(url: URL, is_source: bool) -> Asker:
    return SqlServerAsker(Session(url))


class SqlServerAsker:
    dialect = "mssql"
    tables_asked = TABLES_ASKED

    def __init__(self, session: Session) -> None:
        self._session = session

    def ask(self, sql: str, limit_s: float) -> list[tuple]:
        enclosed(sql)
        try:
            names = ", ".join(f"c{n}" for n in range(self._columns(sql)))
            try:
                self._session.run("begin transaction")
                with self._session.limited(limit_s):
                    return bounded(self._session.run(f"select top ({MOST_ROWS + 1}) * from (\n{sql}\n) as _skylift_question"
                                                     f"{f' ({names})' if names else ''}"))
            finally:
                with suppress(SkyliftError):           # of a lost connection nothing is left
                    self._session.run("if @@trancount > 0 rollback transaction")
        except ServerError as error:
            if error.number in _WORDS:
                raise refused(error.message) from None
            raise
        except StatementOverrun:
            self._renew()
            raise overrun(limit_s) from None
        except Transient:
            self._renew()
            raise

    def _renew(self) -> None:
        self._session.close()
        self._session = Session(self._session.url)

    def _columns(self, sql: str) -> int:
        """How many columns the answer has, which must all have names here; 0 where the server does not tell."""
        try:
            return int(self._session.run("select count(*) from sys.dm_exec_describe_first_result_set(?, null, 0) where is_hidden = 0 "
                                         "and error_number is null", sql)[0][0])
        except ServerError:                            # other servers that speak TDS have no such function
            return 0

    def table_sql(self, namespace: str, table: str) -> str:
        return full_name(namespace, table)

    def column_sql(self, column: str) -> str:
        return quote(column_name(column))

    def measures(self, field: pa.Field, declared: str) -> Mapping[str, str]:
        """Text is measured as it moves: LEN counts other things."""
        c = quote(column_name(field.name))
        missing = f"count_big(case when {c} is null then 1 end)"
        if declared.startswith(("money", "smallmoney", "timestamp", "rowversion", "sql_variant", "bit")):
            return {"nulls": missing}
        if pa.types.is_decimal(field.type):
            # A sum has 38 digits, as the values have: the parts on both sides of the point.
            whole = f"convert(varchar(50), sum(convert(decimal(38,0), round({c}, 0, 1))))"
            return numbers(c, f"{whole} + '|' + convert(varchar(50), sum({c} % 1))") | {
                "nulls": missing, "least": f"convert(varchar(50), min({c}))", "greatest": f"convert(varchar(50), max({c}))"}
        if pa.types.is_integer(field.type):
            return numbers(c, f"convert(varchar(50), sum(convert(decimal(38,0), {c})))") | {"nulls": missing}
        if pa.types.is_binary(field.type):
            return lengths(c, f"convert(bigint, datalength({c}))", f"sum(convert(bigint, datalength({c})))") | {"nulls": missing}
        return {"nulls": missing}

    def close(self) -> None:
        self._session.close()
