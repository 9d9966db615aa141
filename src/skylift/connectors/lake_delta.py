"""Tables of a lake as Delta Lake tables (https://github.com/delta-io/delta/blob/master/PROTOCOL.md).

The lake's own log says what has happened; each table's `_delta_log` follows with one commit that removes and adds whole files, so
a reader sees a table before or after a transaction. Commits are written here, because no library writes those with column mapping;
everything else (reading the log, checkpoints, vacuum) is done by the `deltalake` package.

Column names that Spark refuses otherwise are allowed by column mapping, with physical names that are the names themselves.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from skylift.buffers import spans
from skylift.connectors import lake_files
from skylift.connectors.lake_log import DataFile, LakeTable, schema_of
from skylift.connectors.lake_names import folder_of
from skylift.connectors.lake_store import staged
from skylift.errors import CopyError, TargetFailed, ValueRefused
from skylift.model import Table, TargetName

# What values are stored as, and what Delta calls it. Types that Delta lacks go to the next one that holds every value, or to text.
_STORED: dict[str, tuple[pa.DataType, str]] = {
    "bool": (pa.bool_(), "boolean"), "int8": (pa.int8(), "byte"), "int16": (pa.int16(), "short"), "int32": (pa.int32(), "integer"),
    "int64": (pa.int64(), "long"), "uint8": (pa.int16(), "short"), "uint16": (pa.int32(), "integer"), "uint32": (pa.int64(), "long"),
    "uint64": (pa.decimal128(20, 0), "decimal(20,0)"), "float": (pa.float32(), "float"), "double": (pa.float64(), "double"),
    "string": (pa.string(), "string"), "binary": (pa.binary(), "binary"), "date32[day]": (pa.date32(), "date"),
    "timestamp[us]": (pa.timestamp("us"), "timestamp_ntz"), "timestamp[us, tz=UTC]": (pa.timestamp("us", "UTC"), "timestamp"),
    "timestamp[ns]": (pa.string(), "string"),      # 2026-01-31 12:00:00.123456789
    "time64[us]": (pa.string(), "string"),         # 12:00:00.123456
    "time64[ns]": (pa.string(), "string"),         # 12:00:00.123456789
    str(pa.uuid()): (pa.string(), "string"),       # 437dbf0e-84ff-417a-965d-ed2bb9650972
}
_DELTA_NAMES = {str(stored): name for stored, name in _STORED.values()}
_NEEDS_MAPPING = re.compile(r"[ ,;{}()\n\t=]")
_FEATURES = {"timestampNtz", "columnMapping"}      # of a table that this module writes; a reader needs them, too
# Others may have given a table these; they ask nothing of who adds and removes whole files.
_WRITABLE = _FEATURES | {"appendOnly", "invariants", "changeDataFeed", "deletionVectors", "variantType", "vacuumProtocolCheck"}
_WRITER_VERSIONS = {"writer version 1", "writer version 2", "writer version 7"}     # 7: what counts is the list of features
_MAPPING, _LAST_COLUMN = "delta.columnMapping.mode", "delta.columnMapping.maxColumnId"
_COLUMN, _PHYSICAL = "delta.columnMapping.id", "delta.columnMapping.physicalName"
_TIDY_EVERY = 10                                   # versions between checkpoints
_ATTEMPTS = 20                                     # of a commit, while others commit to the same table

Action = dict[str, Any]           # of a Delta log: one line


class DeltaForm:
    name = "delta"
    in_place = True
    holds_a_file = False

    def __init__(self, store: Any) -> None:
        self._store = store

    # -------------------------------------------------------------- values

    def stored_schema(self, table: Table) -> pa.Schema:
        fields, names = [], set()
        for field, declared in table.declared():
            stored = field.type if pa.types.is_decimal128(field.type) else _STORED.get(str(field.type), (None,))[0]
            if stored is None:
                raise ValueRefused(f"{table.path}.{field.name}: Delta Lake has no exact type for {declared or field.type}")
            if field.name.lower() in names:
                raise ValueRefused(f"{table.path}.{field.name}: Delta Lake takes column names that differ in case only for one",
                                   hint="rename one of them in the source")
            names.add(field.name.lower())
            fields.append(pa.field(field.name, stored))
        return pa.schema(fields)

    def encoded(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([_stored(column) for column in batch.columns], names=batch.schema.names)

    def decoded(self, batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
        if batch.schema.types == schema.types:
            return batch
        return pa.RecordBatch.from_arrays([_restored(c, f.type) for c, f in zip(batch.columns, schema, strict=True)], schema=schema)

    # -------------------------------------------------------------- what readers see

    def current(self, name: TargetName, table: LakeTable) -> LakeTable:
        """`table` with the files that its Delta log names: others may have compacted them, or changed rows."""
        folder = folder_of(name)
        delta = self._open(folder)
        if delta is None:
            raise CopyError(f"{name}: the Delta table at {folder} is gone", hint="copy it afresh: skylift run --kind full")
        _refuse_features(name, delta)
        adds = pa.table(delta.get_add_actions()).to_pylist()
        files = {f"{folder}/{unquote(add['path'])}": add for add in adds}
        if files.keys() == table.files.keys():
            return table
        if len(pa.table(delta.deletion_vectors().read_all())):
            raise CopyError(f"{name}: another program has given the Delta table deletion vectors, which skylift does not read",
                            hint="copy it afresh: skylift run --kind full")
        known = {path: table.files.get(path) or self._foreign(path, add) for path, add in files.items()}
        return replace(table, files=known)

    def _foreign(self, path: str, add: dict[str, Any]) -> DataFile:
        rows = add["num_records"] if add.get("num_records") is not None else lake_files.rows_of(self._store, path, add["size_bytes"])
        return DataFile(path, rows, add["size_bytes"])

    def show(self, tables: Mapping[TargetName, LakeTable | None], lake: str, number: int) -> None:
        origin = {"txn": {"appId": f"skylift-{lake}", "version": number}}
        self._store.each(lambda item: self._show(item[0], item[1], origin), tables.items())

    def _show(self, name: TargetName, table: LakeTable | None, origin: Action) -> None:
        folder = folder_of(name)
        if table is None:
            self._store.delete_folder(folder)
            return
        self._store.move({staged(path.rsplit("/", 1)[1]): path for path in table.files})
        for _ in range(_ATTEMPTS):
            delta = self._open(folder)
            actions = self._actions(name, table, delta)
            if not actions:
                return
            version = delta.version() + 1 if delta else 0
            text = "\n".join(json.dumps(action, separators=(",", ":")) for action in [*actions, origin])
            if self._store.create(f"{folder}/_delta_log/{version:020}.json", text.encode()):
                if version and version % _TIDY_EVERY == 0:
                    self._tidy(folder)
                return
        raise TargetFailed(f"{self._store.where}: others commit to the Delta table {folder} all the time")

    def _open(self, folder: str) -> DeltaTable | None:
        try:
            return DeltaTable(self._store.uri(folder), storage_options=self._store.storage_options)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise TargetFailed(f"{self._store.where}: the Delta table {folder} cannot be read: {_first_line(error)}") from None

    def _actions(self, name: TargetName, table: LakeTable, delta: DeltaTable | None) -> list[Action]:
        """What turns the Delta table into `table`; [] if it is that already."""
        now = int(time.time() * 1000)
        wanted = {path.rsplit("/", 1)[1]: file for path, file in table.files.items()}
        active = {add["path"]: add["size_bytes"] for add in pa.table(delta.get_add_actions()).to_pylist()} if delta else {}
        changes: list[Action] = _description(name, schema_of(table.schema), delta, now)
        changes += [{"remove": {"path": path, "deletionTimestamp": now, "dataChange": True, "extendedFileMetadata": True,
                                "partitionValues": {}, "size": size}} for path, size in active.items() if unquote(path) not in wanted]
        changes += [{"add": {"path": path, "partitionValues": {}, "size": file.size_bytes, "modificationTime": now, "dataChange": True,
                             "stats": _statistics(file)}} for path, file in wanted.items() if path not in active]
        info = {"commitInfo": {"timestamp": now, "operation": "WRITE", "operationParameters": {}, "engineInfo": "skylift"}}
        return [info, *changes] if changes else []

    def _tidy(self, folder: str) -> None:
        """A checkpoint, so that opening stays quick, and no files whose time (a week, unless configured) is over. Nothing depends on it."""
        try:
            delta = DeltaTable(self._store.uri(folder), storage_options=self._store.storage_options)
            delta.create_checkpoint()
            delta.cleanup_metadata()
            delta.vacuum(dry_run=False)
        except (DeltaError, OSError):
            pass


def _description(name: TargetName, schema: pa.Schema, delta: DeltaTable | None, now: int) -> list[Action]:
    """`protocol` and `metaData`, unless the table has these columns already; what its owner has configured stays."""
    types = {field.name: _delta_type(field.type) for field in schema}
    kept: dict[str, Any] = {field.name: field for field in delta.schema().fields} if delta else {}
    configuration: dict[str, str] = dict(delta.metadata().configuration) if delta else {}
    if delta:
        _refuse_features(name, delta)
        if [(f.name, getattr(f.type, "type", "")) for f in kept.values()] == list(types.items()):
            return []
    features = {"timestampNtz"} if "timestamp_ntz" in types.values() else set()
    fields: list[Action] = [{"name": column, "type": kind, "nullable": True, "metadata": {}} for column, kind in types.items()]
    if _MAPPING in configuration or any(map(_NEEDS_MAPPING.search, types)):
        features.add("columnMapping")
        last = int(configuration.get(_LAST_COLUMN, 0))
        for field in fields:
            known = kept[field["name"]].metadata.get(_COLUMN) if field["name"] in kept else None
            last = last if known else last + 1
            field["metadata"] = {_COLUMN: known or last, _PHYSICAL: field["name"]}
        configuration |= {_MAPPING: "name", _LAST_COLUMN: str(last)}
    return [_protocol(features, delta), {"metaData": {
        "id": str(delta.metadata().id if delta else uuid4()), "name": name.table, "format": {"provider": "parquet", "options": {}},
        "schemaString": json.dumps({"type": "struct", "fields": fields}), "partitionColumns": [], "configuration": configuration,
        "createdTime": now}}]


def _refuse_features(name: TargetName, delta: DeltaTable) -> None:
    protocol = delta.protocol()
    unknown = set(protocol.writer_features or ()) - _WRITABLE or {f"writer version {protocol.min_writer_version}"} - _WRITER_VERSIONS
    if unknown:
        raise CopyError(f"{name}: the Delta table has been given what skylift does not write: {', '.join(sorted(unknown))}",
                        hint="undo that, or delete its folder and copy it afresh: skylift run --kind full")


def _protocol(features: set[str], delta: DeltaTable | None) -> Action:
    kept = delta.protocol() if delta else None
    reading, writing = ({*features, *(others or ())} for others in (kept and kept.reader_features, kept and kept.writer_features))
    if not writing:
        return {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}
    return {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7,
                         "readerFeatures": sorted(reading), "writerFeatures": sorted(writing)}}


def _delta_type(stored: pa.DataType) -> str:
    return f"decimal({stored.precision},{stored.scale})" if pa.types.is_decimal128(stored) else _DELTA_NAMES[str(stored)]


def _statistics(file: DataFile) -> str:
    """Only of the key, and only where the bounds are exact."""
    return json.dumps({"numRecords": file.rows, "minValues": {name: bounds[0] for name, bounds in file.bounds.items()},
                       "maxValues": {name: bounds[1] for name, bounds in file.bounds.items()}})


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


# ------------------------------------------------------------------ values that Delta has no type for


def _stored(column: pa.Array) -> pa.Array:
    if column.type == pa.uuid():
        return _uuid_text(column.storage)
    stored = _STORED.get(str(column.type), (column.type,))[0]
    return column if column.type == stored else column.cast(stored)


def _restored(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if kind == pa.uuid():
        return pa.ExtensionArray.from_storage(pa.uuid(), _uuid_bytes(column))
    if not pa.types.is_string(column.type) or kind == column.type:
        return column.cast(kind)
    if pa.types.is_time64(kind):
        return pc.binary_join_element_wise("1970-01-01 ", column, "").cast(pa.timestamp(kind.unit)).cast(kind)
    # In two parts: the first second that a timestamp[ns] can hold a part of, it cannot hold as a whole.
    seconds = pc.utf8_slice_codeunits(column, 0, 19).cast(pa.timestamp("s")).cast(pa.int64())
    fraction = pc.utf8_slice_codeunits(column, 20, 29).cast(pa.int64())
    return pc.add(pc.multiply(seconds, 10**9), fraction).cast(kind)


_HYPHENS = (8, 13, 18, 23)
_DIGITS = [i for i in range(36) if i not in _HYPHENS]
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_NIL = "00000000-0000-0000-0000-000000000000"


def _uuid_text(column: pa.FixedSizeBinaryArray) -> pa.StringArray:
    """16 bytes as 36 characters, all at once."""
    raw = np.frombuffer(column.buffers()[1], np.uint8)[column.offset * 16:(column.offset + len(column)) * 16].reshape(-1, 16)
    text = np.full((len(column), 36), ord("-"), np.uint8)
    text[:, _DIGITS[0::2]], text[:, _DIGITS[1::2]] = _HEX[raw >> 4], _HEX[raw & 15]
    ends = pa.py_buffer(np.arange(0, 36 * (len(column) + 1), 36, dtype=np.int32))
    made = pa.StringArray.from_buffers(len(column), ends, pa.py_buffer(text))
    return pc.if_else(column.is_null(), pa.scalar(None, pa.string()), made) if column.null_count else made


def _uuid_bytes(column: pa.StringArray) -> pa.FixedSizeBinaryArray:
    full = column.fill_null(_NIL)
    data, ends = spans(full)
    text = data[ends[0]:ends[-1]].reshape(-1, 36)[:, _DIGITS]
    digits = np.where(text < ord("a"), text - ord("0"), text - ord("a") + 10).astype(np.uint8)
    raw = pa.py_buffer(np.ascontiguousarray(digits[:, 0::2] << 4 | digits[:, 1::2]))
    made = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(full), [None, raw])
    return pc.if_else(column.is_null(), pa.scalar(None, pa.binary(16)), made) if column.null_count else made
