"""A DuckDB file as it stands, as a source or a target: opened read-only, and not made where there is none."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
from sqlalchemy.engine import URL

from skylift.connectors import STATE, Source, TableState, Target, open_target
from skylift.connectors.duckdb import DuckDBTarget, declares, first_line
from skylift.connectors.duckdb_engine import engine
from skylift.connectors.duckdb_source import moves_as, open_source
from skylift.connectors.ledger import STATES, states_of
from skylift.connectors.looks import Forecast, Remark, SourceLook, StandingColumn, TargetLook
from skylift.errors import SetupError, Transient
from skylift.losses import Losses
from skylift.model import ARROW, Table, TargetName
from skylift.runs import Severity

_RESERVED = ("information_schema", "pg_catalog", "temp", "system")
_STANDING = """
select c.schema_name, c.table_name, c.column_name, c.data_type, c.is_nullable, exists (select 1 from duckdb_constraints() k
    where k.table_name = c.table_name and k.schema_name = c.schema_name and k.database_oid = c.database_oid
        and k.constraint_type = 'PRIMARY KEY' and list_contains(k.constraint_column_names, c.column_name))
from duckdb_columns() c join duckdb_tables() t using (database_oid, schema_name, table_name)
where c.database_name = current_database() and not c.internal order by 1, 2, c.column_index"""


def look_at_source(url: URL) -> SourceLook:
    return DuckDBSourceLook(url)


def look_at_target(url: URL) -> TargetLook:
    """Raises SetupError if the file cannot be read, Transient if somebody writes to it."""
    if not url.database or url.database == ":memory:":
        raise SetupError("the DuckDB target names no file", hint="write duckdb:///relative/path.duckdb")
    path = Path(url.database).absolute()
    try:
        return DuckDBTargetLook(path)
    except duckdb.Error as error:
        if "lock" in str(error).lower() or "already attached" in str(error):
            raise Transient(f"DuckDB file {path} is open in another program that may write to it", code="InUse",
                            hint="close it, or wait until the run has ended, and assess again") from None
        raise SetupError(f"DuckDB file {path} cannot be read: {first_line(error)}",
                         hint="check that it is an undamaged DuckDB database that may be read") from None


class DuckDBSourceLook:
    def __init__(self, url: URL) -> None:
        self.source: Source = open_source(url)
        self.server = f"DuckDB {duckdb.__version__}"

    def remarks(self, tables: Sequence[Table]) -> list[Remark]:
        return []

    def feeds(self, tables: Sequence[Table]) -> Mapping[str, Forecast]:
        forecast = Forecast(STATE, "DuckDB keeps no log of changes: once the file has changed, source and target are compared")
        return dict.fromkeys((table.path for table in tables), forecast)

    def close(self) -> None:
        self.source.close()


class DuckDBTargetLook:
    max_name_bytes = DuckDBTarget.max_name_bytes
    chunk_rows = DuckDBTarget.chunk_rows
    formats: Container[str] = (ARROW,)

    def __init__(self, path: Path) -> None:
        """Raises what DuckDB raises."""
        self.losses = Losses()
        self.server = f"DuckDB {duckdb.__version__}"
        self._path = path
        self._attached = engine().attach(path, read_only=True) if path.exists() else ""

    def declares(self, table: Table) -> dict[str, str]:
        return declares(table)

    def fit(self, batch: pa.RecordBatch, table: Table) -> pa.RecordBatch:
        return batch

    def states(self) -> dict[TargetName, TableState]:
        there = self._rows("select 1 from duckdb_tables() where database_name = current_database() and table_name = '_skylift_tables'")
        return states_of(self._rows(f"select {STATES} from _skylift_tables")) if there else {}

    def remarks(self, names: Sequence[TargetName]) -> list[Remark]:
        found, folder = [], existing(self._path.parent)
        for place in [folder, *([self._path] if self._path.exists() else [])]:
            if not os.access(place, os.W_OK):
                found.append(Remark("Permission", Severity.BLOCKING, f"the account that skylift runs under may not write {place}",
                                    "grant it, or name another target"))
        views = {(schema.casefold(), view.casefold()) for schema, view in self._rows(
            "select schema_name, view_name from duckdb_views() where database_name = current_database() and not internal")}
        found += [Remark("Obstacle", Severity.BLOCKING, "a view stands where the table is to be", "drop or rename the view", str(name))
                  for name in names if ((name.schema or "main").casefold(), name.table.casefold()) in views]
        return found

    def reserved(self, schema: str) -> bool:
        return schema.casefold() in _RESERVED

    def standing(self, names: Sequence[TargetName]) -> Mapping[TargetName, Sequence[StandingColumn]]:
        wanted = {((name.schema or "main").casefold(), name.table.casefold()): name for name in names}
        found: dict[TargetName, list[StandingColumn]] = {}
        for schema, table, column, declared, nullable, in_key in self._rows(_STANDING):
            if name := wanted.get((schema.casefold(), table.casefold())):
                found.setdefault(name, []).append(StandingColumn(column, declared, moves_as(declared)[0], None, nullable, in_key))
        return found

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(existing(self._path.parent)).free

    @contextmanager
    def scratch(self, allowed: bool) -> Iterator[Target | None]:
        with scratch_files("duckdb", "scratch.duckdb") as target:
            yield target

    def _rows(self, sql: str) -> list[tuple]:
        if not self._attached:
            return []
        with engine().cursor(self._attached) as cursor:
            return cursor.execute(sql).fetchall()

    def close(self) -> None:
        if self._attached:
            engine().detach(self._path, read_only=True)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.exists())


@contextmanager
def scratch_files(scheme: str, name: str) -> Iterator[Target]:
    """A target of that kind in a folder for temporary files, gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="skylift-assess-") as folder:
        target = open_target(f"{scheme}:///{folder}/{name}")
        try:
            yield target
        finally:
            target.close()
