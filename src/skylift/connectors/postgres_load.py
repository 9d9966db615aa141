"""Arrow record batches -> binary COPY into PostgreSQL; pgpq encodes.

Every value is one that PostgreSQL holds exactly: `fit` sees to that before rows are hashed, refusing or, where it is accepted, changing.
"""

from __future__ import annotations

from collections.abc import Iterable

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from pgpq import ArrowToPostgresBinaryEncoder

from skylift.buffers import spans
from skylift.connectors.casting import key_of
from skylift.connectors.postgres_receive import SIGNATURE
from skylift.errors import ValueRefused
from skylift.losses import Losses
from skylift.model import ARROW, Table

# Arrow type -> column type, and the Arrow type that is on the wire where that differs. PostgreSQL has no unsigned integers, none
# of one byte and nothing finer than microseconds: the next type that holds every value, and for nanoseconds `fit`.
COLUMN_TYPES = {"bool": "boolean", "int8": "smallint", "int16": "smallint", "int32": "integer", "int64": "bigint", "uint8": "smallint",
                "uint16": "integer", "uint32": "bigint", "uint64": "numeric(20,0)", "float": "real", "double": "double precision",
                "string": "text", "binary": "bytea", "date32[day]": "date", "time64[us]": "time", "timestamp[us]": "timestamp",
                "timestamp[us, tz=UTC]": "timestamp with time zone", "timestamp[ns]": "timestamp", str(pa.uuid()): "uuid"}
_ON_THE_WIRE = {"int8": pa.int16(), "uint8": pa.int16(), "uint16": pa.int32(), "uint32": pa.int64(), "uint64": pa.decimal128(20, 0),
                "timestamp[ns]": pa.timestamp("us")}

# The first day and microsecond that PostgreSQL holds, counted from 1970: 4714-11-24 BC. The last microsecond lies beyond Arrow's.
_FIRST_DAY, _LAST_DAY, _FIRST_US = -2_440_588, 2_145_042_905, -210_866_803_200_000_000


def column_type(kind: pa.DataType) -> str | None:
    return f"numeric({kind.precision},{kind.scale})" if pa.types.is_decimal128(kind) else COLUMN_TYPES.get(str(kind))


def on_the_wire(schema: pa.Schema) -> pa.Schema:
    """The types that columns of `column_type` are sent and read as; the values are the same."""
    return pa.schema([pa.field(f.name, _ON_THE_WIRE.get(str(f.type), f.type)) for f in schema])


def copy_in(connection: psycopg.Connection, into: str, table: Table, batches: Iterable[pa.RecordBatch]) -> None:
    """Append rows in the table's format; `into` names table and columns. Raises psycopg.Error."""
    with connection.cursor() as cursor, cursor.copy(f"copy {into} from stdin (format binary)") as copy:
        if table.format != ARROW:
            copy.write(SIGNATURE + bytes(8))
            for batch in batches:
                data, ends = spans(batch.column(0))
                copy.write(data[ends[0]:ends[-1]].data)
            copy.write(b"\xff\xff")
        else:
            wire = on_the_wire(table.schema)
            encoder = ArrowToPostgresBinaryEncoder(wire)
            copy.write(encoder.write_header())
            for batch in batches:
                copy.write(encoder.write_batch(batch if batch.schema.types == wire.types else batch.cast(wire)))
            copy.write(encoder.finish())


def fit(batch: pa.RecordBatch, table: Table, losses: Losses) -> pa.RecordBatch:
    """Refuses what PostgreSQL does not hold, naming table, column and key: U+0000 in text, ticks finer than a microsecond, times before
    4714 BC. The first two are removed where that is accepted.
    """
    columns = {}
    for i, field in enumerate(table.schema):
        column = batch.column(i)
        if pa.types.is_string(field.type):
            if _has_nul(column):
                hit = pc.greater_equal(pc.find_substring(column, "\0"), 0)
                columns[i] = _changed("nul", hit, pc.replace_substring(column, "\0", ""), i, batch, table, losses,
                                      "the text holds a NUL character (U+0000)")
        elif field.type == pa.timestamp("ns"):
            whole = pc.floor_temporal(column, unit="microsecond")
            if not whole.equals(column):
                columns[i] = _changed("ticks", pc.not_equal(whole, column), whole, i, batch, table, losses,
                                      "the time is finer than a microsecond")
        elif pa.types.is_timestamp(field.type) or pa.types.is_date(field.type):
            first, last = (_FIRST_US, None) if pa.types.is_timestamp(field.type) else (_FIRST_DAY, _LAST_DAY)
            numbers = column.view(pa.int64() if pa.types.is_timestamp(field.type) else pa.int32())
            limits = pc.min_max(numbers)
            if limits["min"].is_valid and (limits["min"].as_py() < first or (last is not None and limits["max"].as_py() > last)):
                early = pc.less(numbers, first)
                _changed("", early if last is None else pc.or_(early, pc.greater(numbers, last)), column, i, batch, table, losses,
                         "the time lies before 4714 BC or after the year 5874897")
    return batch if not columns else pa.RecordBatch.from_arrays(
        [columns.get(i, column) for i, column in enumerate(batch.columns)], schema=batch.schema)


def _changed(loss: str, hit: pa.Array, changed: pa.Array, i: int, batch: pa.RecordBatch, table: Table, losses: Losses,
             what: str) -> pa.Array:
    """The changed column, counted, if the loss is accepted."""
    hit, field = hit.fill_null(False), table.schema.field(i)
    if loss not in losses.accepted:
        row = pc.index(hit, True).as_py()
        raise ValueRefused(f"{table.path}.{field.name}, key {key_of(batch, table, row)}: {what}, which PostgreSQL does not hold",
                           hint="correct the row at the source" + (f", or accept '{loss}' (setting accept)" if loss else ""))
    losses.count(loss, table.path, field.name, pc.sum(hit).as_py())
    return changed


def held(keys: pa.Table, losses: Losses) -> pa.Table:
    """Those of the source's keys that a row in PostgreSQL can have, as it has them (fit); none of the others is there to be found."""
    for i, field in enumerate(keys.schema):
        if pa.types.is_string(field.type) and any(map(_has_nul, keys.column(i).chunks)):
            found = pc.find_substring(keys.column(i), "\0")
            keys = keys.filter(pc.less(found, 0)) if "nul" not in losses.accepted else keys.set_column(
                i, field, pc.replace_substring(keys.column(i), "\0", ""))
        elif field.type == pa.timestamp("ns"):
            whole = pc.floor_temporal(keys.column(i), unit="microsecond")
            keys = keys.filter(pc.equal(whole, keys.column(i))) if "ticks" not in losses.accepted else keys.set_column(i, field, whole)
    return keys.group_by(keys.column_names).aggregate([]) if losses.accepted and len(keys) else keys


def _has_nul(column: pa.Array) -> bool:
    """Whether any byte of the text is 0: one pass over the buffer, a tenth of what looking into each value takes."""
    data, ends = spans(column)
    text = data[ends[0]:ends[-1]]
    return len(text) > 0 and text.min() == 0
