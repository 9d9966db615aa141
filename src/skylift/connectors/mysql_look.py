"""A MySQL or MariaDB source as it stands: opened as with mode=ro, whatever the URL says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from sqlalchemy.engine import URL

from skylift.connectors import SWEEP
from skylift.connectors.looks import Forecast, Remark, SourceLook, folded
from skylift.connectors.mysql import MySqlSource, open_source
from skylift.connectors.mysql_connection import is_mariadb, quote, run, texts, told
from skylift.connectors.mysql_log import READ_ONLY, TABLES, is_replica
from skylift.model import Table
from skylift.runs import Severity

_GRANT = re.compile(r"GRANT (?P<rights>.*?) ON (?:TABLE )?(?P<database>\*|`(?:[^`]|``)*`)\.(?P<table>\*|`(?:[^`]|``)*`) TO ", re.DOTALL)
SETUP_S = 0.01                     # 7 to 12 ms a table; up to ten times that where others keep the server's disk busy
_LOG_RIGHTS = ("CREATE", "DROP", "INSERT", "UPDATE", "DELETE")


def look_at_source(url: URL) -> SourceLook:
    return MySqlLook(url)


class Rights:
    """What `show grants` says. `certain`: no role is granted, whose rights it may leave out."""

    def __init__(self, grants: Sequence[str], database: str) -> None:
        self.certain = all(" ON " in grant for grant in grants)
        self._granted: list[tuple[set[str], str]] = []        # rights, and the table that they are on, '*' = all
        for grant in grants:
            if match := _GRANT.match(grant):
                pattern = match["database"].strip("`").replace("``", "`")
                if pattern == "*" or re.fullmatch(_pattern(pattern), database, re.IGNORECASE):
                    rights = {right.strip().upper() for right in re.sub(r"\([^)]*\)", "", match["rights"]).split(",")}
                    self._granted.append((rights, match["table"].strip("`").replace("``", "`")))

    def has(self, right: str, table: str) -> bool:
        return any((right in rights or "ALL PRIVILEGES" in rights) and on in ("*", table) for rights, on in self._granted)


def _pattern(text: str) -> str:
    """The regular expression of a database's name in a grant, in which _ and % are patterns unless escaped."""
    parts = {"_": ".", "%": ".*"}
    return "".join(re.escape(piece[1]) if piece[0] == "\\" else parts.get(piece, re.escape(piece))
                   for piece in re.findall(r"\\.|.", text, re.DOTALL))


class MySqlLook:
    source: MySqlSource

    def __init__(self, url: URL) -> None:
        self._to_be_written = url.query.get("mode") != "ro"
        source = open_source(url.update_query_dict({"mode": "ro"}))
        assert isinstance(source, MySqlSource)
        self.source = source
        with source.connection() as c, told(url):
            [(version,)] = texts(run(c, "select version()"))
            self.server = f"{'MariaDB' if is_mariadb(c) else 'MySQL'} {version.partition('-')[0]}"
            [(account,)] = texts(run(c, "select current_user()"))
            self._rights = Rights([grant for (grant,) in texts(run(c, "show grants"))], source.name)
            self._replica = is_replica(c)
        name, _, host = account.rpartition("@")
        self._account = f"'{name}'@'{host}'"

    def remarks(self, tables: Sequence[Table]) -> list[Remark]:
        found = self._folded(tables)
        if not self._rights.certain:
            return found
        found += [self._missing(right, table.name, Severity.BLOCKING, table.path)
                 for right in ("SELECT",) for table in tables if not self._rights.has(right, table.name)]
        if self._to_be_written:
            found += [self._missing("TRIGGER", table.name, Severity.WARNING, table.path)
                      for table in tables if not self._rights.has("TRIGGER", table.name)]
            found += [self._missing(right, log, Severity.WARNING) for log in TABLES for right in _LOG_RIGHTS
                      if not self._rights.has(right, log)]
        return found

    def _folded(self, tables: Sequence[Table]) -> list[Remark]:
        keys = {(table.name, column): table.path for table in tables for column in table.key}
        with self.source.connection() as c:
            rows = texts(run(c, "select table_name, column_name, collation_name from information_schema.columns where table_schema = "
                                "database() and collation_name not like '%%\\_bin' and collation_name not like '%%\\_cs' and"
                                " collation_name not in ('binary', 'utf8mb4_0900_bin') order by 1, ordinal_position"))
        return [folded(keys[name, column], column, rule) for name, column, rule in rows if (name, column) in keys]

    def _missing(self, right: str, table: str, severity: Severity, path: str = "") -> Remark:
        place = f"{quote(self.source.name)}.{quote(table)}".replace("%%", "%")
        return Remark("Permission", severity, f"user {self._account} lacks the right {right} on {place}",
                      f"grant {right.lower()} on {place} to {self._account}", path)

    def feeds(self, tables: Sequence[Table]) -> Mapping[str, Forecast]:
        return {table.path: self._feed(table) for table in tables}

    def _feed(self, table: Table) -> Forecast:
        lacks = self._rights.certain and not (self._rights.has("TRIGGER", table.name) and all(
            self._rights.has(right, log) for log in TABLES for right in _LOG_RIGHTS))
        reasons = {READ_ONLY: not self._to_be_written, self._replica: bool(self._replica),
                   "the user lacks rights to keep a change log": lacks}
        why = next((why for why, holds in reasons.items() if holds), "") or self.source.feed.unfit(table)
        if not why:
            return Forecast("change_log", setup_s=SETUP_S)
        return Forecast(SWEEP, f"source and target are compared in each run: {why}", "skylift grants prints what the user must be allowed"
                        if lacks else "")

    def close(self) -> None:
        self.source.close()
