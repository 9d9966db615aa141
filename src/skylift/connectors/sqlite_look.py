"""A SQLite source as it stands, of which no byte changes.

Who opens a file in WAL mode makes -wal and -shm beside it where they are not; only a connection that may write takes them away again
when it is the last to close, and then it has written nothing, for nothing was in the log. Where they are there, such a connection
would at its end move into the file what somebody else has left in the log: there, one that may only read changes nothing.
Source: https://www.sqlite.org/wal.html#read_only_databases
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from sqlalchemy.engine import URL

from skylift.connectors import STATE
from skylift.connectors.looks import Forecast, Remark, SourceLook, folded
from skylift.connectors.sqlite import SqliteSource, open_source
from skylift.model import Table
from skylift.runs import Severity

_KEYED = """select t.name, group_concat(c.name, ', ') from pragma_table_list t join pragma_table_xinfo(t.name) c
where t.schema = 'main' and t.type = 'table' and c.pk > 0 group by 1"""

# A key's index says by which rule it compares; the key of an ordinary integer has none, and needs none.
_FOLDED = """select t.name, x.name, x.coll from pragma_table_list t join pragma_index_list(t.name) l join pragma_index_xinfo(l.name) x
where t.schema = 'main' and t.type = 'table' and l.origin = 'pk' and x.key and upper(x.coll) <> 'BINARY' and x.name is not null
order by 1, 2"""


def look_at_source(url: URL) -> SourceLook:
    return SqliteLook(url)


def _may_write(path: Path) -> bool:
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


class SqliteLook:
    source: SqliteSource

    def __init__(self, url: URL) -> None:
        self._to_be_written = url.query.get("mode") != "ro"
        mode = "rw" if self._to_be_written and self._is_clean(Path(url.database or "")) else "ro"
        source = open_source(url.update_query_dict({"mode": mode}))
        assert isinstance(source, SqliteSource)
        self.source = source
        [(version,)] = source.query("select sqlite_version()")
        self.server = f"SQLite {version}"

    def _is_clean(self, path: Path) -> bool:
        return _may_write(path) and not any(Path(f"{path}{suffix}").exists() for suffix in ("-wal", "-shm", "-journal"))

    def remarks(self, tables: Sequence[Table]) -> list[Remark]:
        found, path = [], self.source.path
        if self._to_be_written and not _may_write(path):
            found.append(Remark("Permission", Severity.BLOCKING, f"the account that skylift runs under may not write {path} or its folder, "
                                "where the log of changes is kept", f"grant it (see skylift grants --source sqlite:///{path}), or add "
                                "?mode=ro to the URL and do without the log"))
        without = {table.name: table.path for table in tables if not table.key}
        found += [Remark("NullKey", Severity.WARNING, f"rows have NULL in the primary key ({columns}), so it tells no rows apart",
                         "give these rows a key at the source", without[name])
                  for name, columns in self.source.query(_KEYED) if name in without]
        paths = {table.name: table.path for table in tables}
        found += [folded(paths[name], column, rule) for name, column, rule in self.source.query(_FOLDED) if name in paths]
        return found

    def feeds(self, tables: Sequence[Table]) -> Mapping[str, Forecast]:
        forecast = Forecast("change_log", setup_s=0.001) if self._to_be_written else Forecast(
            STATE, "the URL says mode=ro, so nothing logs changes: once anything in the file has changed, the table is compared row by row",
            "leave out mode=ro, if triggers may be made in the source")
        return dict.fromkeys((table.path for table in tables), forecast)

    def close(self) -> None:
        self.source.close()
