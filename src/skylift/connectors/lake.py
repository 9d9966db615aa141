"""A folder of Parquet files or Delta Lake tables as a target: `parquet:///path/to/folder`, `delta:///path/to/folder`.

On S3 and what speaks like it: `parquet+s3://key:secret@bucket/prefix?region=..&endpoint=https://..`, `delta+s3://..`; without
key and secret, the usual AWS variables or the machine's role. A table is a folder `<company>/<table>` (connectors/lake_names.py).

What has happened is what the log says (connectors/lake_log.py): a transaction writes new files under names that nothing else
has, then one entry of the log. Files never change; a row that changes takes a new file instead of the one that held it.
What readers without the log can see meanwhile stands in docs/lake.md.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import time
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
from sqlalchemy.engine import URL

from skylift.connectors import Batches, CopyPlan, Hashes, TableState, Target, lake_files
from skylift.connectors.lake_forms import Form, ParquetForm
from skylift.connectors.lake_log import DataFile, LakeTable, Log, Patch, patch_of, schema_of, schema_text
from skylift.connectors.lake_names import HIDDEN, folder_of
from skylift.connectors.lake_store import STAGING, Folder, staged
from skylift.errors import CopyError, SetupError, SkyliftError, TargetFailed
from skylift.losses import Losses
from skylift.model import ARROW, Digest, Table, TargetName

CHUNK_ROWS = 131_072              # one file and one row group; DuckDB, Spark and others read such in parallel
MERGED_ROWS = CHUNK_ROWS // 2     # a file with more rows is left alone

_ODD = set("%[]^|")               # what the `deltalake` package cannot open


def open_target(url: URL) -> Target:
    """The lake at `url`, made if missing. Raises SetupError if it cannot be written, Transient if it is in use."""
    form, _, place = url.drivername.partition("+")
    check_place(url, form, place)
    store = _bucket(url) if place else Folder(Path(url.database or "").absolute())
    try:
        return LakeTarget(store, make_form(form, store))
    except TargetFailed as error:
        store.close()
        raise SetupError(error.message, hint=error.hint) from None
    except BaseException:
        store.close()
        raise


def grants(url: URL) -> str:
    """For a bucket a policy of IAM, which is JSON and has no comments."""
    if not url.host:
        return (f"-- The account that skylift runs under needs the rights to read, write, make, rename and delete files and folders in\n"
                f"-- {url.database}, which lies on one file system.\n")
    prefix = f"{url.database.strip('/')}/" if url.database and url.database.strip("/") else ""
    bucket = f"arn:aws:s3:::{url.host}"
    return json.dumps({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": bucket,
         **({"Condition": {"StringLike": {"s3:prefix": f"{prefix}*"}}} if prefix else {})},
        {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
         "Resource": f"{bucket}/{prefix}*"}]}, indent=2) + "\n"


def check_place(url: URL, form: str, place: str) -> None:
    """Raises SetupError for a URL that names no place where a lake can be."""
    if place not in ("", "s3"):
        raise SetupError(f"'{url.drivername}' is not a target that skylift knows", hint=f"write {form}:///folder or {form}+s3://bucket/prefix")
    if form == "delta" and (odd := _ODD & set(url.database or "")):
        raise SetupError(f"{url.database}: Delta Lake tables cannot lie in a folder with {' '.join(sorted(odd))} in its name",
                         hint="name another folder")
    if not place and not url.database:
        raise SetupError(f"the {form} target names no folder", hint=f"write {form}:///relative/folder or {form}:////absolute/folder")
    if not place and url.query:
        raise SetupError(f"{form}:///{url.database}: unknown option {', '.join(url.query)}")


def _bucket(url: URL) -> Any:
    from skylift.connectors.lake_s3 import Bucket
    return Bucket(url)


def make_form(name: str, store: Any) -> Form:
    if name == "parquet":
        return ParquetForm(store)
    from skylift.connectors.lake_delta import DeltaForm  # only where it is asked for: it loads a large library
    return DeltaForm(store)


class LakeTarget:
    """One lake. Transactions touch tables of their own, as the engine's units of work do; their entries go one after another."""

    max_name_bytes = 1 << 16
    chunk_rows = CHUNK_ROWS
    formats: Container[str] = (ARROW,)
    dialect = ""
    holds_values = False
    hashes: Hashes | None = None
    losses: Losses

    def __init__(self, store: Any, form: Form) -> None:
        self._store = store
        self._form = form
        self._log = Log(store, form.name)
        try:
            self._show(self._log.recent)               # what a killed process has committed and readers may not see yet
        except CopyError:                              # of one table, which tells it when it is used
            self._log.hold()

    def close(self) -> None:
        self._log.close()
        self._store.close()

    def declares(self, table: Table) -> dict[str, str]:
        return {field.name: str(field.type) for field in self._form.stored_schema(table)}

    def fit(self, batch: pa.RecordBatch, table: Table) -> pa.RecordBatch:
        return batch                                   # every value of a type that is stored at all

    @contextmanager
    def transaction(self) -> Iterator[LakeTransaction]:
        transaction = LakeTransaction(self._store, self._form, self._log.tables)
        try:
            yield transaction
            patches = transaction.settled()
            self._store.sync(transaction.new_files())
        except BaseException:
            self._forget(transaction.written)
            raise
        if patches:
            self._log.append(patches)
            try:
                self._show(transaction.seen())
            except Exception as error:                 # trying again would do it twice: this ends the run, and the next one shows it
                text = error.message if isinstance(error, SkyliftError) else str(error).splitlines()[0]
                raise TargetFailed(f"{text} (after rows had been committed, before readers could see them)",
                                   hint="free space or restore access, then run again: it is put right first") from None
            self._log.shown()
        self._forget(transaction.superfluous())

    def _show(self, names: Iterable[TargetName]) -> None:
        tables = {name: self._log.tables.get(name) for name in names if not name.table.startswith(HIDDEN)}
        self._form.show(tables, self._log.lake, self._log.number)

    def _forget(self, paths: list[str]) -> None:
        with suppress(SkyliftError, OSError):          # what stays is found and deleted by the next run
            self._store.delete(paths)

    # -------------------------------------------------------------- what the log knows

    def states(self) -> dict[TargetName, TableState]:
        return {name: table.state for name, table in self._log.tables.items() if table.state}

    def copies(self, copy_id: str) -> dict[TargetName, CopyPlan]:
        return {name: table.copy[1] for name, table in self._log.tables.items() if table.copy and table.copy[0] == copy_id}

    def chunks_done(self, build: TargetName, copy_id: str) -> dict[int, Digest]:
        table = self._log.tables.get(build)
        return dict(table.chunks) if table and table.copy and table.copy[0] == copy_id else {}

    def read_parts(self, name: TargetName, table: Table, parts: int) -> list[Batches]:
        shares: list[tuple[int, int, list[DataFile]]] = [(0, i, []) for i in range(max(1, parts))]
        found = self._log.tables.get(name) or LakeTable()
        if not name.table.startswith(HIDDEN):
            found = self._form.current(name, found)
        for file in sorted(found.files.values(), key=lambda file: -file.rows):
            rows, i, files = heapq.heappop(shares)     # to whom has least so far
            heapq.heappush(shares, (rows + file.rows, i, [*files, file]))
        return [self._part(table, files) for _, _, files in shares if files] or [self._part(table, [])]

    def _part(self, table: Table, files: list[DataFile]) -> Batches:
        for file in files:
            for batch in lake_files.read(self._store, file, table.schema.names):
                yield self._form.decoded(batch, table.schema)
                del batch

    def discard_copies(self, keep: str) -> None:
        """Also deletes what killed transactions have left behind."""
        for name in [name for name, table in self._log.tables.items() if table.copy and table.copy[0] != keep]:
            with self.transaction() as transaction:
                transaction.drop(name)
        known = {path for table in self._log.tables.values() for path in table.files}
        old = time() - self._store.orphan_age_s
        self._store.delete([path for path, changed in self._store.files(STAGING).items() if path not in known and changed <= old])


class LakeTransaction:
    """Drafts of the tables that it touches, over the tables as they were when it began."""

    def __init__(self, store: Any, form: Form, tables: Mapping[TargetName, LakeTable]) -> None:
        self._store = store
        self._form = form
        self._tables = tables
        self._drafts: dict[TargetName, LakeTable | None] = {}
        self._new: set[TargetName] = set()             # drafts that are no successors of what was there
        self._looked: set[TargetName] = set()          # drafts whose files have been compared with what readers see
        self._found: tuple[pa.Table | None, dict[str, np.ndarray]] = (None, {})     # keys looked for last, and hits by file
        self.written: list[str] = []                   # every file begun here

    # -------------------------------------------------------------- tables

    def create(self, name: TargetName, table: Table) -> None:
        self._put(name, LakeTable(schema_text(self._form.stored_schema(table))))

    def drop(self, name: TargetName) -> None:
        if self._find(name):
            self._put(name, None)

    def swap(self, build: TargetName, name: TargetName) -> None:
        built = self._table(build)
        self._put(name, LakeTable(built.schema, built.files))
        self._put(build, None)

    # -------------------------------------------------------------- upgrade steps: there is no SQL to write them in

    def execute(self, sql: str, params: Sequence[Any] = (), limit_s: float = 0) -> list[tuple]:
        raise CopyError("a folder of files has no SQL", hint="upgrade packs need DuckDB, PostgreSQL or SQL Server as the target")

    def standing(self, schema: str) -> dict[str, list[str]]:
        raise CopyError("a folder of files has no SQL", hint="upgrade packs need DuckDB, PostgreSQL or SQL Server as the target")

    def table_sql(self, name: TargetName) -> str:
        return str(name)

    def column_sql(self, column: str) -> str:
        return column

    # -------------------------------------------------------------- rows

    def insert(self, name: TargetName, table: Table, batches: Iterable[pa.RecordBatch]) -> None:
        draft = self._as_seen(name)
        new = self._write(name, draft, (self._form.encoded(batch) for batch in batches), table.key)
        old = dict(draft.files)
        if not name.table.startswith(HIDDEN):
            new = self._merged(name, draft, old, new, table.key)
        self._change(name, files=old | {file.path: file for file in new})

    def _write(self, name: TargetName, draft: LakeTable, batches: Iterable[pa.RecordBatch], key: Sequence[str]) -> list[DataFile]:
        return lake_files.write(self._store, schema_of(draft.schema), batches, key, lambda: self._new_path(name))

    def _new_path(self, name: TargetName) -> str:
        file = f"{uuid4().hex}.parquet"
        in_place = self._form.in_place and not name.table.startswith(HIDDEN)
        self.written.append(f"{folder_of(name)}/{file}" if in_place else staged(file))
        return self.written[-1]

    def _merged(self, name: TargetName, draft: LakeTable, old: dict[str, DataFile], new: list[DataFile],
                key: Sequence[str]) -> list[DataFile]:
        """New files, written once more together with small old ones, which leave `old`: runs leave no trail of tiny files.

        A file joins that has at most twice the rows gathered so far, so a row is written again only as often as the
        logarithm of the table grows.
        """
        gathered, rows = list(new), sum(file.rows for file in new)
        for file in sorted(old.values(), key=lambda file: file.rows):
            if not new or file.rows > 2 * rows or rows + file.rows > MERGED_ROWS:
                break
            gathered.append(old.pop(file.path))
            rows += file.rows
        if len(gathered) == len(new):
            return new
        return self._write(name, draft, (batch for file in gathered for batch in self._stored(draft, file)), key)

    def _stored(self, draft: LakeTable, file: DataFile, hits: np.ndarray | None = None) -> Iterator[pa.RecordBatch]:
        return lake_files.read(self._store, file, schema_of(draft.schema).names, hits)

    def delete(self, name: TargetName, keys: pa.Table) -> None:
        found, draft = self._hits(name, keys), self._as_seen(name)
        files = dict(draft.files)
        for path, hits in found.items():
            if hits.any():
                for rest in self._write(name, draft, self._stored(draft, files.pop(path), ~hits), keys.column_names):
                    files[rest.path] = rest
                    self._found[1][rest.path] = np.zeros(rest.rows, bool)
        self._change(name, files=files)

    def read(self, name: TargetName, table: Table, keys: pa.Table | None = None) -> Batches:
        found = None if keys is None else self._hits(name, keys)
        for path, file in self._as_seen(name).files.items():
            if found is None or found[path].any():
                for batch in lake_files.read(self._store, file, table.schema.names, None if found is None else found[path]):
                    yield self._form.decoded(batch, table.schema)
                    del batch

    def count(self, name: TargetName) -> int:
        return sum(file.rows for file in self._as_seen(name).files.values())

    def _hits(self, name: TargetName, keys: pa.Table) -> dict[str, np.ndarray]:
        """Per file, which rows have one of these keys; what the last look has told is not looked up again."""
        if self._found[0] is not keys:
            self._found = (keys, {})
        known = self._found[1]
        stored = pa.Table.from_batches([self._form.encoded(batch) for batch in keys.to_batches()]) if len(keys) else keys
        files = self._as_seen(name).files
        for path, file in files.items():
            if path not in known:
                known[path] = lake_files.hits(self._store, file, stored)
        return {path: known[path] for path in files}

    # -------------------------------------------------------------- the ledger

    def begin_copy(self, build: TargetName, name: TargetName, copy_id: str, plan: CopyPlan) -> None:
        self._change(build, copy=(copy_id, plan))

    def chunk_done(self, build: TargetName, copy_id: str, chunk: int, digest: Digest) -> None:
        self._change(build, chunks={**self._table(build).chunks, chunk: digest})

    def end_copy(self, build: TargetName) -> None:
        if self._find(build):
            self._change(build, copy=None, chunks={})

    def set_states(self, states: Mapping[TargetName, TableState]) -> None:
        for name, state in states.items():
            self._change(name, state=state)

    # -------------------------------------------------------------- drafts

    def _find(self, name: TargetName) -> LakeTable | None:
        return self._drafts[name] if name in self._drafts else self._tables.get(name)

    def _table(self, name: TargetName) -> LakeTable:
        table = self._find(name)
        if table is None:
            raise CopyError(f"{name}: the lake has no such table", hint="copy it afresh: skylift run --kind full")
        return table

    def _as_seen(self, name: TargetName) -> LakeTable:
        """The draft, over the files that readers see; asked for once."""
        table = self._table(name)
        if name not in self._looked and name not in self._new and not name.table.startswith(HIDDEN):
            table = self._form.current(name, table)
            self._drafts[name] = table
        self._looked.add(name)
        return table

    def _put(self, name: TargetName, table: LakeTable | None) -> None:
        self._drafts[name] = table
        self._new.add(name)

    def _change(self, name: TargetName, **parts: Any) -> None:
        self._drafts[name] = replace(self._table(name), **parts)

    # -------------------------------------------------------------- what happens when it ends

    def settled(self) -> list[Patch]:
        """What the log has to say of it. Files of tables that readers see get the paths where they will lie."""
        for name, draft in self._drafts.items():
            if draft and draft != self._tables.get(name) and not name.table.startswith(HIDDEN):
                self._drafts[name] = replace(draft, files=self._placed(name, draft))
        patches = []
        for name, draft in self._drafts.items():
            before = self._tables.get(name)
            if draft != before or name in self._new:
                patches.append(patch_of(name, None if name in self._new else before, draft))
        return patches

    def _placed(self, name: TargetName, draft: LakeTable) -> dict[str, DataFile]:
        """Files without rows stay only where a table must have a file."""
        files = [file for file in draft.files.values() if file.rows]
        if not files and self._form.holds_a_file:
            files = list(draft.files.values())[:1] or [lake_files.write_empty(self._store, schema_of(draft.schema), self._new_path(name))]
        folder = folder_of(name)
        placed = (replace(file, path=f"{folder}/{_stem(file.path)}.parquet") for file in files)
        return {file.path: file for file in placed}

    def _kept(self) -> set[str]:
        return {_stem(path) for draft in self._drafts.values() if draft for path in draft.files}

    def new_files(self) -> list[str]:
        kept = self._kept()
        return [path for path in self.written if _stem(path) in kept]

    def seen(self) -> list[TargetName]:
        """Tables that change for readers."""
        return [name for name, draft in self._drafts.items()
                if name in self._new or (draft and draft.files != getattr(self._tables.get(name), "files", None))]

    def superfluous(self) -> list[str]:
        """Files that nobody needs once it has happened; of tables that readers see, their form decides."""
        kept = self._kept()
        before = (path for name in self._drafts if name.table.startswith(HIDDEN) and name in self._tables
                  for path in self._tables[name].files)
        return [path for path in (*self.written, *before) if _stem(path) not in kept]


def _stem(path: str) -> str:
    """The name of a file, the same in staging and in its table's folder."""
    return path.rsplit("/", 1)[1].removesuffix(".parquet")
