"""A lake as it stands, or would be made: its log is read, no file is written, no lock is taken."""

from __future__ import annotations

import os
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from sqlalchemy.engine import URL

from skylift.connectors import TableState, Target
from skylift.connectors.duckdb_look import existing, scratch_files
from skylift.connectors.lake import CHUNK_ROWS, LakeTarget, check_place, make_form
from skylift.connectors.lake_log import LOG, LakeTable, Log, schema_of
from skylift.connectors.lake_store import Folder
from skylift.connectors.looks import Remark, StandingColumn, TargetLook
from skylift.losses import Losses
from skylift.model import ARROW, Table, TargetName
from skylift.runs import Severity


def look_at_target(url: URL) -> TargetLook:
    return LakeLook(url)


class _Unlocked(Folder):
    """A folder that is only read: others may write to it meanwhile."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.where = f"folder {root}"

    def close(self) -> None: ...


class LakeLook:
    max_name_bytes = LakeTarget.max_name_bytes
    chunk_rows = CHUNK_ROWS
    formats: Container[str] = (ARROW,)

    def __init__(self, url: URL) -> None:
        self.losses = Losses()
        form, _, place = url.drivername.partition("+")
        check_place(url, form, place)
        self._kind = form
        self._root = None if place else Path(url.database or "").absolute()
        self._store: Any = _Unlocked(self._root) if self._root else _bucket(url)
        self._form = make_form(form, self._store)
        self.server = f"{'Delta Lake tables' if form == 'delta' else 'Parquet files'} in {self._store.where}"
        self._tables: Mapping[TargetName, LakeTable] = {}
        if any(path.endswith(".checkpoint.json") for path in self._store.files(LOG)):       # else there is no lake yet
            log = Log(self._store, self._form.name)
            self._tables = log.tables
            log.close()

    def declares(self, table: Table) -> dict[str, str]:
        return {field.name: str(field.type) for field in self._form.stored_schema(table)}

    def fit(self, batch: pa.RecordBatch, table: Table) -> pa.RecordBatch:
        return batch

    def states(self) -> dict[TargetName, TableState]:
        return {name: table.state for name, table in self._tables.items() if table.state}

    def remarks(self, names: Sequence[TargetName]) -> list[Remark]:
        place = existing(self._root) if self._root else None
        if place is None or (os.access(place, os.W_OK) and place.is_dir()):
            return []
        return [Remark("Permission", Severity.BLOCKING, f"the account that skylift runs under may not write {place}, or it is no folder",
                       "grant it, or name another target")]

    def reserved(self, schema: str) -> bool:
        return False                               # lake_names.py escapes what a file system does not take

    def standing(self, names: Sequence[TargetName]) -> Mapping[TargetName, Sequence[StandingColumn]]:
        return {name: [StandingColumn(field.name, str(field.type), field.type) for field in schema_of(self._tables[name].schema)]
                for name in names if name in self._tables}

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(existing(self._root)).free if self._root else None

    @contextmanager
    def scratch(self, allowed: bool) -> Iterator[Target | None]:
        with scratch_files(self._kind, "lake") as target:
            yield target

    def close(self) -> None:
        self._store.close()


def _bucket(url: URL) -> Any:
    from skylift.connectors.lake_s3 import Bucket
    return Bucket(url)
