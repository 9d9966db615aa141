"""A SQLite source as it stands. It is opened as with mode=ro, whatever the URL says, so that no byte of it changes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from sqlalchemy.engine import URL

from skylift.connectors.looks import Forecast, Remark, SourceLook
from skylift.connectors.sqlite import SqliteSource, open_source
from skylift.model import Table
from skylift.runs import Severity

_KEYED = """select t.name, group_concat(c.name, ', ') from pragma_table_list t join pragma_table_xinfo(t.name) c
where t.schema = 'main' and t.type = 'table' and c.pk > 0 group by 1"""


def look_at_source(url: URL) -> SourceLook:
    return SqliteLook(url)


class SqliteLook:
    source: SqliteSource

    def __init__(self, url: URL) -> None:
        self._to_be_written = url.query.get("mode") != "ro"
        source = open_source(url.update_query_dict({"mode": "ro"}))
        assert isinstance(source, SqliteSource)
        self.source = source
        [(version,)] = source.query("select sqlite_version()")
        self.server = f"SQLite {version}"

    def remarks(self, tables: Sequence[Table]) -> list[Remark]:
        found, path = [], self.source.path
        if self._to_be_written and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
            found.append(Remark("Permission", Severity.BLOCKING, f"the account that skylift runs under may not write {path} or its folder, "
                                "where the log of changes is kept", f"grant it (see skylift grants --source sqlite:///{path}), or add "
                                "?mode=ro to the URL and do without the log"))
        without = {table.name: table.path for table in tables if not table.key}
        found += [Remark("NullKey", Severity.WARNING, f"rows have NULL in the primary key ({columns}), so it tells no rows apart",
                         "give these rows a key at the source", without[name])
                  for name, columns in self.source.query(_KEYED) if name in without]
        return found

    def feeds(self, tables: Sequence[Table]) -> Mapping[str, Forecast]:
        forecast = Forecast("change_log") if self._to_be_written else Forecast(
            "fingerprint", "the URL says mode=ro, so nothing logs changes: once anything has changed, the table is copied whole",
            "leave out mode=ro, if triggers may be made in the source")
        return dict.fromkeys((table.path for table in tables), forecast)

    def close(self) -> None:
        self.source.close()
