"""A SQL Server for what no server at hand can do: change tracking, steps of 100 ns, half surrogate pairs, missing rights.

It answers the statements that skylift sends with results of the shapes that the driver hands out, from a table kept in memory, and
knows the rules of change tracking as Microsoft's documentation states them. A statement that it does not know fails the test.
"""

from __future__ import annotations

import re
from typing import Any

import mssql_python
import pyarrow as pa


class FakeSqlServer:
    """One database with the table dbo.t (id int primary key, v ...), whose values are handed out as `arrow` of its column."""

    url = "mssql://me:secret@fake/db"

    def __init__(self, declared: tuple[str, int, int, int] = ("nvarchar", 40, 0, 0), arrow: pa.DataType | None = None) -> None:
        self.rows: dict[int, Any] = {}
        self.log: list[tuple[int, int]] = []       # (version, id)
        self.version = 0
        self.first_valid = 0                       # lowest version that change tracking can still tell from
        self.object_id = 1001
        self.fork = "6F9619FF-8B86-D011-B42D-00C04FC964FF"
        self.tracked = self.may_ask = True
        self.retention: tuple[int, float] | None = (1, 5.0)
        self.compatibility = 150
        self.product = "15.0.4000.5"
        self.may_read_all = True
        self.masked = self.encrypted = self.filtered = 0
        self.declared, self.arrow = declared, arrow or pa.large_string()
        self.denied: set[str] = set()              # pieces of statements that this login must not run
        self.unreadable = False                    # SELECT on the table is not granted
        self.utf16: dict[int, bytes] = {}          # what a text really is, where Arrow cannot say it
        self.fine: set[int] = set()                # ids whose time has steps of 100 ns
        self.sent: list[str] = []

    def connect(self, *args: Any, **kwargs: Any) -> _Connection:
        return _Connection(self)

    # -------------------------------------------------------------- what an application does

    def put(self, id: int, value: Any) -> None:
        self.version += 1
        self.rows[id] = value
        self.log.append((self.version, id))

    def delete(self, id: int) -> None:
        self.version += 1
        del self.rows[id]
        self.log.append((self.version, id))

    def truncate(self) -> None:
        """Is not tracked: change tracking can only tell from here on."""
        self.version += 1
        self.rows.clear()
        self.first_valid = self.version

    def touched(self, since: int) -> list[int]:
        return sorted({id for version, id in self.log if version > since})

    # -------------------------------------------------------------- answers

    def answer(self, sql: str, params: tuple) -> tuple[list[str], list[tuple]]:
        """Names and rows of the result; without names there is none."""
        self.sent.append(sql)
        for piece in self.denied - {"DATABASE STATE"}:
            if piece in sql:
                raise mssql_python.ProgrammingError("Syntax error or access violation", f"[SQL Server]permission was denied on {piece}")
        flat = " ".join(sql.split())
        simple = {
            r"set |begin transaction|commit transaction": None,
            r"select @@error": [(262,)],
            r"select has_perms_by_name\(db_name\(\), 'DATABASE', 'SELECT'\)": [(int(self.may_read_all),)],
            r"select cast\(serverproperty": [(self.product, 3, self.compatibility)],
            r"select snapshot_isolation_state": [(1,)],
            r"select cast\(recovery_fork_guid": [(self.fork,)],
            r"select convert\(varchar": [("identity",)],
            r"select cast\(min_active_rowversion": [(100,)],
            r"select change_tracking_current_version": [(self.version,)],
            r"select t.object_id, t.min_valid_version": [(self.object_id, self.first_valid, int(self.may_ask))] if self.tracked else [],
            r"select is_auto_cleanup_on": [self.retention] if self.retention else [],
            r"select schema_name\(o.schema_id\), o.name from sys.tables o where .*'SELECT'\) = 0": [("dbo", "t")] * self.unreadable,
            r"select has_perms_by_name\(null, 'DATABASE', 'VIEW DATABASE STATE'\)": [(0 if "DATABASE STATE" in self.denied else 1,)],
            r"select (p.)?object_id, sum": [(self.object_id, len(self.rows), 100 * len(self.rows))],
            r"select count_big\(\*\)": [(len(self.rows),)],
        }
        for pattern, rows in simple.items():
            if re.match(pattern, flat):
                return (["c"] * len(rows[0]) if rows else ["c"], rows) if rows is not None else ([], [])
        if "from sys.tables o" in flat:
            flags = (0, self.encrypted, self.masked, self.filtered)
            return ["c"] * 13, [("dbo", "t", "id", "int", 4, 10, 0, 1, self.object_id, 0, 0, 0, self.filtered),
                                ("dbo", "t", "v", *self.declared[:1], *self.declared[1:], None, self.object_id, *flags)]
        if match := re.search(r'select (\d+) where exists \(select 1 from changetable\(changes "dbo"."t", (\d+)\) as c\)', flat):
            return ["c"], [(int(match[1]),)] if self.touched(int(match[2])) else []
        if re.search(r"where exists .*datepart\(nanosecond", flat):
            return ["c"], []                       # none among the first and the last rows
        if match := re.search(r'from changetable\(changes "dbo"."t", (\d+)\) as x\) as c left join', flat):
            ids = self.touched(int(match[1]))
            assert int(match[1]) >= self.first_valid, "asked for what is no longer valid"
            return ["id", "v", "k"], [(id if id in self.rows else None, self.rows.get(id), id) for id in ids]
        if "as varbinary" in flat and "as nvarchar(max)" in flat:
            return ["b", "id"], [(self.utf16.get(id, str(v).encode("utf-16-le")), id) for id, v in self.rows.items()]
        if "datepart(nanosecond" in flat and "select top (1)" in flat:
            return ["c"], [(id,) for id in sorted(self.fine)]
        if re.match(r'select "id", .* from "dbo"."t" as r where 1 = 1', flat):
            flagged = "then 1 else 0 end" in flat
            return ["id", "v", *(["f"] if flagged else [])], [
                (id, v, *([int(id in self.fine)] if flagged else [])) for id, v in sorted(self.rows.items())]
        raise AssertionError(f"the fake server does not know: {flat}")


class _Connection:
    def __init__(self, server: FakeSqlServer) -> None:
        self._server = server

    def cursor(self) -> _Cursor:
        return _Cursor(self._server)

    def close(self) -> None: ...


class _Cursor:
    def __init__(self, server: FakeSqlServer) -> None:
        self._server = server
        self.description: list[str] = []
        self._rows: list[tuple] = []

    def execute(self, sql: str, *params: Any) -> None:
        self.description, self._rows = self._server.answer(sql, params)

    def fetchall(self) -> list[tuple]:
        return self._rows

    def nextset(self) -> bool:
        return False

    def arrow_batch(self, rows: int) -> pa.RecordBatch:
        some, self._rows = self._rows[:rows], self._rows[rows:]
        kinds = {"id": pa.int32(), "k": pa.int32(), "f": pa.int32(), "v": self._server.arrow, "b": pa.large_binary()}
        columns = [pa.array([row[i] for row in some], kinds.get(name)) for i, name in enumerate(self.description)]
        return pa.RecordBatch.from_arrays(columns, names=[f"{name}{i}" for i, name in enumerate(self.description)])

    def close(self) -> None: ...
