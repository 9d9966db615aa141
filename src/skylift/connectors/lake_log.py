"""The log of a lake: what each table consists of, and what the ledger knows of it, as of one moment after another.

A transaction happens when its entry `_skylift/log/<number>.json` comes into being, by one operation that fails if there is an
entry of that number (a rename on a local disk, `PUT` with `If-None-Match: *` on S3). Everything else follows from the entries:
what a reader sees is brought in line right after, and once more when the lake is opened next.

An entry holds a patch per table. A checkpoint `<number>.checkpoint.json` holds all tables as they stand after that entry, and
takes the place of it and of all before; it is made only when everything up to it has been shown to readers.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from uuid import uuid4

import pyarrow as pa

from skylift.connectors import CopyPlan, TableState
from skylift.connectors.lake_store import OWN
from skylift.errors import SetupError, SkyliftError, TargetFailed
from skylift.model import Digest, TargetName, Watermark

LOG = f"{OWN}/log"
_VERSION = 1                      # of the format that this module reads and writes
_MIN_CHECKPOINT_BYTES = 2**20     # of entries before they are gathered in a checkpoint; later, as many as the last one had
Patch = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DataFile:
    """A Parquet file with rows of one table."""

    path: str
    rows: int
    size_bytes: int
    bounds: Mapping[str, Sequence[Any]] = field(default_factory=dict)     # column of the key: lowest and highest value, where known


@dataclass(frozen=True, slots=True)
class LakeTable:
    schema: str = ""                                   # of what is stored, see `schema_text`
    files: Mapping[str, DataFile] = field(default_factory=dict)           # by path
    state: TableState | None = None
    copy: tuple[str, CopyPlan] | None = None           # copy id and plan of the full copy that builds it
    chunks: Mapping[int, Digest] = field(default_factory=dict)


class Log:
    """The entries of one lake, replayed; several threads may append."""

    def __init__(self, store: Any, form: str) -> None:
        self._store = store
        self._form = form
        self._lock = threading.Lock()
        self._unshown = 0                              # transactions that have happened and that readers may not see yet
        self._failed = False
        self.tables: dict[TargetName, LakeTable] = {}
        self.recent: dict[TargetName, None] = {}       # tables of entries after the last checkpoint
        self._load()

    # -------------------------------------------------------------- reading

    def _load(self) -> None:
        names = sorted(path.rsplit("/", 1)[1] for path in self._store.files(LOG) if path.endswith(".json"))
        checkpoints = [name for name in names if name.endswith(".checkpoint.json")]
        if not checkpoints:
            if names:
                raise SetupError(f"{self._store.where}: the log has no beginning", hint="its first files are gone; restore them")
            head = {"skylift": _VERSION, "form": self._form, "lake": uuid4().hex, "tables": []}
            self._store.create(_path(0, checkpoint=True), _bytes(head))
            checkpoints = [_path(0, checkpoint=True).rsplit("/", 1)[1]]
        data = self._store.get(f"{LOG}/{checkpoints[-1]}")
        head = json.loads(data)
        if head.get("skylift") != _VERSION:
            raise SetupError(f"{self._store.where} was written by another version of skylift", hint="open it with that version")
        if head["form"] != self._form:
            raise SetupError(f"{self._store.where} holds {head['form']}, not {self._form}",
                             hint=f"write {head['form']}:// or name another place")
        self.lake: str = head["lake"]                  # identity: another log in the same place is another lake
        self.number = _number(checkpoints[-1])
        self._checkpoint_bytes, self._entry_bytes = len(data), 0
        self._apply(head["tables"])
        for name in names:
            if not name.endswith(".checkpoint.json") and _number(name) > self.number:
                if _number(name) != self.number + 1:
                    raise SetupError(f"{self._store.where}: entry {self.number + 1} of the log is missing", hint="restore it")
                self._replay(self._store.get(f"{LOG}/{name}"))

    def _replay(self, data: bytes) -> None:
        patches = json.loads(data)["tables"]
        self._apply(patches)
        self.recent.update(dict.fromkeys(TargetName(*patch["name"]) for patch in patches))
        self.number += 1
        self._entry_bytes += len(data)

    def _apply(self, patches: Iterable[Patch]) -> None:
        tables = dict(self.tables)                     # who has begun to read goes on with what there was
        for patch in patches:
            name = TargetName(*patch["name"])
            table = patched(tables.get(name), patch)
            if table is None:
                tables.pop(name, None)
            else:
                tables[name] = table
        self.tables = tables

    # -------------------------------------------------------------- writing

    def append(self, patches: list[Patch]) -> int:
        """One transaction happens; returns its number. `shown` must follow when readers see it.

        Raises TargetFailed if it has not happened, or if nobody can tell.
        """
        transaction = uuid4().hex
        data = _bytes({"transaction": transaction, "at": datetime.now(UTC).isoformat(timespec="milliseconds"), "tables": patches})
        touched = {TargetName(*patch["name"]) for patch in patches}
        with self._lock:
            if self._failed:
                raise TargetFailed(f"{self._store.where}: an earlier transaction ended in doubt",
                                   hint="run again: the log tells what has arrived")
            try:
                while not self._create(data, transaction):
                    before = dict.fromkeys(self.recent)
                    self.recent.clear()
                    self._replay(self._store.get(_path(self.number + 1)))
                    foreign = self.recent.keys() & touched
                    self.recent |= before
                    if foreign:
                        raise TargetFailed(f"{self._store.where}: another program has changed {', '.join(map(str, foreign))}",
                                           hint="let one skylift at a time write to it")
            except (SkyliftError, OSError):
                self._failed = True
                raise
            self._replay(data)
            self._unshown += 1
            return self.number

    def _create(self, data: bytes, transaction: str) -> bool:
        """True if the next entry is ours, also where the answer to the first attempt was lost on its way."""
        path = _path(self.number + 1)
        return self._store.create(path, data) or json.loads(self._store.get(path)).get("transaction") == transaction

    def hold(self) -> None:
        """Readers do not see everything: the entries stay until they do."""
        self._unshown += 1

    def shown(self) -> None:
        """Readers see a transaction; when there are no others under way, the entries may be gathered."""
        with self._lock:
            self._unshown -= 1
            if self._entry_bytes > max(_MIN_CHECKPOINT_BYTES, self._checkpoint_bytes):
                self._gather()

    def close(self) -> None:
        with self._lock, suppress(SkyliftError, OSError):      # nothing is lost with a checkpoint that is not made
            if self._entry_bytes:
                self._gather()

    def _gather(self) -> None:
        if self._unshown or self._failed:
            return
        self._store.settle()
        data = _bytes({"skylift": _VERSION, "form": self._form, "lake": self.lake,
                       "tables": [patch_of(name, None, table) for name, table in self.tables.items()]})
        self._store.create(_path(self.number, checkpoint=True), data)
        self._checkpoint_bytes, self._entry_bytes = len(data), 0
        self.recent.clear()
        self._store.delete([path for path in self._store.files(LOG) if path.endswith(".json")
                            and _number(path.rsplit("/", 1)[1]) <= self.number and path != _path(self.number, checkpoint=True)])


# ------------------------------------------------------------------ tables as JSON


def schema_text(schema: pa.Schema) -> str:
    """Exactly, as Arrow writes it: https://arrow.apache.org/docs/format/Columnar.html#schema-message"""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


@lru_cache(maxsize=256)
def schema_of(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def patch_of(name: TargetName, before: LakeTable | None, after: LakeTable | None) -> Patch:
    """What turns `before` into `after`; a table that was not there before, or is another one now, is written out whole."""
    patch: Patch = {"name": [name.schema, name.table]}
    if after is None:
        return patch | {"gone": True}
    if before is None:
        patch["new"] = after.schema
        before = LakeTable(after.schema)
    if added := [file for path, file in after.files.items() if path not in before.files]:
        patch["add"] = [[f.path, f.rows, f.size_bytes, f.bounds] for f in added]
    if removed := [path for path in before.files if path not in after.files]:
        patch["remove"] = removed
    if after.state != before.state and after.state:
        patch["state"] = [*_digest_json(after.state.digest), _mark_json(after.state.watermark), after.state.columns]
    if after.copy != before.copy:
        patch["copy"] = after.copy and [after.copy[0], _mark_json(after.copy[1].watermark), after.copy[1].ranges]
    if chunks := {chunk: _digest_json(digest) for chunk, digest in after.chunks.items() if chunk not in before.chunks}:
        patch["chunks"] = chunks
    return patch


def patched(table: LakeTable | None, patch: Patch) -> LakeTable | None:
    if "gone" in patch:
        return None
    table = LakeTable(patch["new"]) if "new" in patch else table
    assert table is not None
    removed = set(patch.get("remove", ()))
    files = {path: file for path, file in table.files.items() if path not in removed} if removed else dict(table.files)
    files |= {path: DataFile(path, rows, size, bounds) for path, rows, size, bounds in patch.get("add", ())}
    table = replace(table, files=files)
    if "state" in patch:
        rows, digest, mark, columns = patch["state"]
        table = replace(table, state=TableState(_digest(rows, digest), Watermark(*mark), columns))
    if "copy" in patch:
        copy = patch["copy"]
        table = replace(table, copy=copy and (copy[0], CopyPlan(Watermark(*copy[1]), copy[2])), chunks={})
    if "chunks" in patch:
        table = replace(table, chunks={**table.chunks, **{int(c): _digest(*d) for c, d in patch["chunks"].items()}})
    return table


def _digest_json(digest: Digest) -> list[Any]:
    return [digest.rows, str(digest)]


def _digest(rows: int, text: str) -> Digest:
    return Digest(rows, int(text[16:], 16), int(text[:16], 16))


def _mark_json(mark: Watermark) -> list[Any]:
    return [mark.feed, mark.position, mark.incarnation]


def _path(number: int, checkpoint: bool = False) -> str:
    return f"{LOG}/{number:012}{'.checkpoint' if checkpoint else ''}.json"


def _number(name: str) -> int:
    return int(name.split(".")[0])


def _bytes(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
