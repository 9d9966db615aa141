"""Aggregates of every column of a table, each exact: from the database's own SQL where its type allows, else of the rows as they stream.

    nulls                            of any type
    sum, least, greatest             numbers; booleans and times as the integers that Arrow stores, without SQL
    shortest, longest, length        text in characters (code points), binary in bytes; `length` is the sum
    checksum                         text, binary, UUIDs: the sum of DuckDB's hash of each value, or null; floats: of their bits

Nothing here is compared by a database's rules: what a collation takes for equal, blanks at the end and times of day count.
"""

from __future__ import annotations

import decimal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from skylift.connectors.asking import Asker
from skylift.model import Table

COLUMNS_ASKED = 100               # in one query: databases limit how many expressions it may have
EXACT = decimal.Context(prec=200)

Value = decimal.Decimal | None    # None: there is no value to say it of
Columns = dict[str, dict[str, Value]]


@dataclass
class Census:
    rows: int = 0
    columns: Columns = field(default_factory=dict)


def wanted(kind: pa.DataType) -> tuple[str, ...]:
    """The aggregates that a column of this type has."""
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_temporal(kind):
        return "nulls", "sum", "least", "greatest"
    if _has_length(kind):
        return "nulls", "shortest", "longest", "length", "checksum"
    return "nulls", "checksum"


@dataclass(frozen=True, slots=True)
class Question:
    """What SQL is to say of one table. `place`: as SQL spells it; `measured`: of its columns too, not only how many rows there are."""

    place: str
    table: Table
    declared: bool                # the columns' types are those of this database
    measured: bool = True


def asked(asker: Asker, questions: Sequence[Question], limit_s: float) -> list[Census]:
    """What the database's SQL says of each; only the aggregates that it computes exactly. One query asks for many tables."""
    found = [Census() for _ in questions]
    for parts in _packed(questions, asker.tables_asked):
        selects: list[str] = []
        fields: list[tuple[int, str, str]] = []        # of the answer: of which question, column and measure; '' = the rows
        for n, (which, some) in enumerate(parts):
            question = questions[which]
            measures = [(f.name, name, sql) for f, kind in some
                        for name, sql in asker.measures(f, kind if question.declared else "").items()]
            columns = [f"count(*) as n{n}", *(f"{sql} as m{len(fields) + i}" for i, (_, _, sql) in enumerate(measures, 1))]
            selects.append(f"select {', '.join(columns)} from {question.place}")
            fields += [(which, "", ""), *((which, column, name) for column, name, _ in measures)]
        sql = selects[0] if len(selects) == 1 else "select * from " + " cross join ".join(f"({one}) q{n}" for n, one in enumerate(selects))
        [values] = asker.ask(sql, limit_s)
        for (which, column, name), value in zip(fields, values, strict=True):
            if column:
                found[which].columns.setdefault(column, {})[name] = _number(value)
            else:
                found[which].rows = int(value)
    return found


def _packed(questions: Sequence[Question], tables: int) -> Iterator[list[tuple[int, list[tuple[pa.Field, str]]]]]:
    """For each query the tables (which of the questions) that it asks for, with their columns."""
    parts: list[tuple[int, list[tuple[pa.Field, str]]]] = []
    width = 0
    for which, question in enumerate(questions):
        declared = question.table.declared() if question.measured else []
        for i in range(0, max(1, len(declared)), COLUMNS_ASKED):
            some = declared[i:i + COLUMNS_ASKED]
            if parts and (width + len(some) > COLUMNS_ASKED or len(parts) == tables):
                yield parts
                parts, width = [], 0
            parts.append((which, some))
            width += len(some)
    if parts:
        yield parts


def streamed(readers: Sequence[Iterable[pa.RecordBatch]], schema: pa.Schema, workers: int) -> Census:
    """What the rows themselves say, all aggregates. Memory: a few batches a worker."""
    census = Census(0, {f.name: dict.fromkeys(wanted(f.type), None) for f in schema})
    lock = threading.Lock()

    def read(batches: Iterable[pa.RecordBatch]) -> None:
        part = _Part(schema)
        part.take(batches)
        with lock:
            census.rows += part.rows
            for column, measures in part.found.items():
                for name, value in measures.items():
                    known = census.columns[column]
                    known[name] = _merged(name, known[name], value)

    if len(readers) > 1:
        with ThreadPoolExecutor(workers, "census") as pool:
            list(pool.map(read, readers))
    else:
        for reader in readers:
            read(reader)
    for measures in census.columns.values():
        measures["nulls"] = measures["nulls"] or decimal.Decimal(0)
    return census


def combined(asked: Census, streamed: Census) -> Census:
    """Where the database itself has said something, that."""
    return Census(asked.rows, {column: measures | asked.columns.get(column, {}) for column, measures in streamed.columns.items()})


def needs_rows(table: Table, census: Census, measures: Iterable[str]) -> list[str]:
    """The columns of which an aggregate is missing."""
    return [f.name for f in table.schema if set(wanted(f.type)) & set(measures) - census.columns.get(f.name, {}).keys()]


def shown(kind: pa.DataType, name: str, value: Value) -> str:
    """For people: the least and greatest of times as times, everything else as a number."""
    if value is None:
        return "no value"
    if name in ("least", "greatest") and pa.types.is_temporal(kind):
        width = pa.int32() if kind.bit_width == 32 else pa.int64()
        return str(pa.array([int(value)], width).view(kind).cast(pa.string())[0])
    return f"{value:f}"


class _Part:
    """The aggregates of one stream."""

    def __init__(self, schema: pa.Schema) -> None:
        self.rows = 0
        self.found: Columns = {f.name: {} for f in schema}
        self._schema = schema

    def take(self, batches: Iterable[pa.RecordBatch]) -> None:
        hashed = [f for f in self._schema if "checksum" in wanted(f.type) and not pa.types.is_floating(f.type)]
        failure: list[BaseException] = []

        def passing() -> Iterator[pa.RecordBatch]:
            try:
                for batch in batches:
                    batch = batch if batch.schema.types == self._schema.types else batch.cast(self._schema)
                    self._add(batch)
                    yield pa.RecordBatch.from_arrays([batch.column(f.name) for f in hashed], [f"c{n}" for n in range(len(hashed))])
            except BaseException as error:             # DuckDB would turn it into text
                failure.append(error)
                raise

        if not hashed:
            for _ in passing():
                pass
            return
        # DuckDB finds the variable by its name; registering a view costs 0.5 ms.
        _skylift_stream = pa.RecordBatchReader.from_batches(pa.schema([(f"c{n}", f.type) for n, f in enumerate(hashed)]), passing())
        try:
            with _hasher().cursor() as cursor:
                [values] = cursor.execute("select sum(columns(*)) from (select hash(columns(*))::hugeint from _skylift_stream)").fetchall()
        except duckdb.Error:
            if failure:
                raise failure[0] from None
            raise
        for f, value in zip(hashed, values, strict=True):
            self.found[f.name]["checksum"] = _number(value)

    def _add(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        for f, column in zip(self._schema, batch.columns, strict=True):
            values = {"nulls": decimal.Decimal(column.null_count), **_values(column, f.type)}
            known = self.found[f.name]
            for name, value in values.items():
                known[name] = _merged(name, known.get(name), value)


def _values(column: pa.Array, kind: pa.DataType) -> dict[str, Value]:
    if pa.types.is_floating(kind):
        wide = column.cast(pa.float64())
        bits = pc.if_else(pc.is_nan(wide), pa.scalar(float("nan")), wide).view(pa.int64())
        return {"checksum": _sum(bits)}
    if pa.types.is_decimal(kind):
        ends = pc.min_max(column)
        total = pc.sum(column.cast(pa.decimal256(76, kind.scale))).as_py()
        return {"sum": total, "least": ends["min"].as_py(), "greatest": ends["max"].as_py()}
    if _has_length(kind):
        size = pc.utf8_length(column) if pa.types.is_string(kind) or pa.types.is_large_string(kind) else pc.binary_length(column)
        ends = pc.min_max(size)
        return {"length": _sum(size), "shortest": _number(ends["min"].as_py()), "longest": _number(ends["max"].as_py())}
    if "sum" in wanted(kind):
        whole = column.cast(pa.int64()) if kind.bit_width < 32 else column.view(pa.int32() if kind.bit_width == 32 and not (
            pa.types.is_uint32(kind)) else pa.uint32() if kind.bit_width == 32 else pa.uint64() if pa.types.is_uint64(kind) else pa.int64())
        ends = pc.min_max(whole)
        return {"sum": _sum(whole), "least": _number(ends["min"].as_py()), "greatest": _number(ends["max"].as_py())}
    return {}


def _sum(column: pa.Array) -> Value:
    """The exact sum of integers, whatever its size: of both halves of each."""
    values = np.asarray(column.drop_null())
    if not len(values):
        return None
    values = values if values.dtype == np.uint64 else values.astype(np.int64)
    return decimal.Decimal((int((values >> values.dtype.type(32)).sum()) << 32) + int((values & values.dtype.type(0xFFFFFFFF)).sum()))


def _merged(name: str, one: Value, other: Value) -> Value:
    if one is None or other is None:
        return other if one is None else one
    if name in ("least", "shortest"):
        return min(one, other)
    if name in ("greatest", "longest"):
        return max(one, other)
    return EXACT.add(one, other)


def _number(value: Any) -> Value:
    """An aggregate as a driver hands it out; a sum may come as the text of its two parts (connectors/asking.py)."""
    if value is None:
        return None
    if isinstance(value, str):
        parts = [decimal.Decimal(part) for part in value.split("|")]
        return EXACT.add(parts[0], parts[1]) if len(parts) > 1 else parts[0]
    return value if isinstance(value, decimal.Decimal) else decimal.Decimal(value)


def _has_length(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary))


@cache
def _hasher() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(":memory:", config={"threads": 1, "memory_limit": "64MB"})
