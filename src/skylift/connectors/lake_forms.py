"""The two forms of a lake: plain Parquet files here, Delta Lake tables in connectors/lake_delta.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

import pyarrow as pa

from skylift.connectors.lake_log import LakeTable
from skylift.connectors.lake_names import folder_of
from skylift.errors import ValueRefused
from skylift.model import Table, TargetName

# Parquet has a logical type for each of these (https://github.com/apache/parquet-format/blob/master/LogicalTypes.md);
# decimals up to 38 digits besides.
_STORED = {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float", "double", "string", "binary",
           "date32[day]", "time64[us]", "time64[ns]", "timestamp[us]", "timestamp[us, tz=UTC]", "timestamp[ns]", str(pa.uuid())}
OURS = re.compile(r"[0-9a-f]{32}\.parquet").fullmatch     # what skylift calls a data file


class Form(Protocol):
    """How tables are stored and shown. Values are stored in `stored_schema`; what that does not hold exactly is refused by name."""

    name: str
    in_place: bool            # whether a new file of a table may lie in its folder without being seen
    holds_a_file: bool        # whether a table without rows needs a file to be one

    def stored_schema(self, table: Table) -> pa.Schema: ...
    def encoded(self, batch: pa.RecordBatch) -> pa.RecordBatch: ...
    def decoded(self, batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch: ...
    def current(self, name: TargetName, table: LakeTable) -> LakeTable:
        """`table` with the files that readers see now. Raises CopyError if others have made them what cannot be read."""

    def show(self, tables: Mapping[TargetName, LakeTable | None], lake: str, number: int) -> None:
        """Bring what readers see in line with the log's entry `number`; None = the table is gone. Doing it again does no harm."""


class ParquetForm:
    name = "parquet"
    in_place = False
    holds_a_file = True

    def __init__(self, store: Any) -> None:
        self._store = store

    def stored_schema(self, table: Table) -> pa.Schema:
        for field, declared in table.declared():
            if str(field.type) not in _STORED and not pa.types.is_decimal128(field.type):
                raise ValueRefused(f"{table.path}.{field.name}: Parquet has no exact type for {declared or field.type}")
        return table.schema

    def encoded(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return batch

    def decoded(self, batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
        return batch if batch.schema.types == schema.types else batch.cast(schema)

    def current(self, name: TargetName, table: LakeTable) -> LakeTable:
        return table

    def show(self, tables: Mapping[TargetName, LakeTable | None], lake: str, number: int) -> None:
        self._store.each(self._show, tables.items())

    def _show(self, item: tuple[TargetName, LakeTable | None]) -> None:
        name, table = item
        self._store.show(folder_of(name), [path.rsplit("/", 1)[1] for path in table.files] if table else [], OURS)
