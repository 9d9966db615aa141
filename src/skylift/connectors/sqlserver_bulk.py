"""Bulk copy into SQL Server, in a transaction of its own connection.

`cursor.bulkcopy_arrow` of mssql-python opens a connection for each bulk copy, so that no transaction can hold rows and their ledger
row together. The core that it calls (mssql_py_core) lets several statements and bulk copies follow each other on one connection:
that is what a Loader is. The core is not documented; both are pinned in the lock, and tests/connectors/test_sqlserver_target.py
proves that what a Loader rolls back is gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress

import mssql_py_core
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy.engine import URL

from skylift.connectors.casting import key_of
from skylift.connectors.silence import Wait, new_wires
from skylift.connectors.sqlserver import SETTINGS, Session, explained, watched_server
from skylift.errors import SkyliftError, ValueRefused
from skylift.losses import Losses
from skylift.model import Table

# Arrow type -> column type: the next one that holds every value; and the Arrow type that is loaded in the place of another.
COLUMN_TYPES = {"bool": "bit", "int8": "smallint", "int16": "smallint", "int32": "int", "int64": "bigint", "uint8": "tinyint",
                "uint16": "int", "uint32": "bigint", "float": "real", "double": "float", "date32[day]": "date",
                "time64[us]": "time(6)", "time64[ns]": "time(7)", "timestamp[us]": "datetime2(6)", "timestamp[ns]": "datetime2(7)",
                "timestamp[us, tz=UTC]": "datetimeoffset(6)", str(pa.uuid()): "uniqueidentifier"}
_LOADED = {"uint64": pa.decimal128(20, 0)}
_DAYS = (-719_162, 2_932_896)     # 0001-01-01 to 9999-12-31, counted from 1970
_NUMBER = re.compile(r"Sql Error: (\d+): Class \d+: State \d+: (.*?)(?: on \S* in .*)?$", re.DOTALL)


class Loader:
    """One connection for bulk copies and small statements. Statements end after 30 s, bulk copies when they are done."""

    def __init__(self, session: Session) -> None:
        """`session` knows how to log in; it is not used otherwise."""
        self._url = url = session.url
        with self._told(), new_wires(url.port) as self._wires:
            self._connection = mssql_py_core.PyCoreConnection(session.core_context())
            self._cursor = self._connection.cursor()
        self.run(SETTINGS)

    def run(self, sql: str) -> None:
        with self._watched(), self._told():
            self._cursor.execute(sql)
            self._cursor.fetchall()

    def load(self, name: str, table: Table, batches: Iterable[pa.RecordBatch]) -> None:
        """Append the rows to the table of this SQL name, whose columns are those of `table` in their order."""
        failure: list[BaseException] = []
        wanted = pa.schema([pa.field(field.name, _LOADED.get(str(field.type), field.type)) for field in table.schema])

        def guarded() -> Iterator[pa.RecordBatch]:
            try:
                for batch in batches:
                    wait.go_on()
                    yield batch if batch.schema.types == wanted.types else batch.cast(wanted)
            except BaseException as error:         # the core would make text of it: keep it and raise it again below
                failure.append(error)
                raise

        reader = pa.RecordBatchReader.from_batches(wanted, guarded())
        try:
            with self._watched() as wait, self._told(table.path):
                self._cursor.bulkcopy_arrow(name, reader, timeout=0, table_lock=True, keep_nulls=True)
        except SkyliftError:
            if failure:
                raise failure[0] from None
            raise

    def _told(self, table: str = "") -> _Told:
        return _Told(self._url, table)

    def _watched(self) -> AbstractContextManager[Wait]:
        return watched_server(self._url, self._wires.cut)

    def close(self) -> None:
        with suppress(RuntimeError):
            self._connection.close()
        self._wires.close()


class _Told:
    """The core's errors as ours: it raises ValueError for what it does not send, RuntimeError with the server's number for the rest."""

    def __init__(self, url: URL, table: str) -> None:
        self._url, self._table = url, table

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError):
            raise ValueRefused(f"{self._table}: {error}", hint="correct the row at the source") from None
        if isinstance(error, RuntimeError):
            found = _NUMBER.search(str(error))
            raise explained(self._url, found[2] if found else str(error), int(found[1]) if found else -1, self._table) from None


def column_type(field: pa.Field, max_length: int | None, in_key: bool, genuine: bool = True) -> str | None:
    """How the column of a target is declared; None if no type holds every value.

    Text and binary values are as long as their source lets them be, or as long as they like; in a key, where an index allows no
    more, up to 4,000 characters. Servers that only speak TDS (`genuine` False) have been seen to misread short decimals in a bulk
    copy, so there all have 38 digits.
    """
    kind = _LOADED.get(str(field.type), field.type)
    if pa.types.is_decimal128(kind):
        return f"decimal({kind.precision if genuine else 38},{kind.scale})"
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        name, most = ("nvarchar", 4000) if pa.types.is_string(kind) else ("varbinary", 8000)
        return f"{name}({max_length})" if max_length and max_length <= most else f"{name}({most if in_key else 'max'})"
    return COLUMN_TYPES.get(str(kind))


# ------------------------------------------------------------------ values


def fit(batch: pa.RecordBatch, table: Table, losses: Losses) -> pa.RecordBatch:
    """Refuses what SQL Server does not hold, naming table, column and key: floats that are no numbers, times outside of the years 1 to
    9999, steps finer than 100 ns. The first become null, the last are cut to the microsecond, where that is accepted.
    """
    columns = {}
    for i, field in enumerate(table.schema):
        column, kind = batch.column(i), field.type
        if pa.types.is_floating(kind):
            if not pc.all(pc.is_finite(column), min_count=0).as_py():
                for loss, hit in (("nan", pc.is_nan(column)), ("infinity", pc.is_inf(column))):
                    if pc.any(hit, min_count=0).as_py():
                        column = columns[i] = _changed(loss, hit, pc.if_else(hit, pa.scalar(None, kind), column), i, batch, table, losses,
                                                       f"the value is {'NaN' if loss == 'nan' else 'infinite'}")
        elif kind in (pa.timestamp("ns"), pa.time64("ns")):
            numbers = column.view(pa.int64())
            rest = np.asarray(numbers.fill_null(0)) % 100
            if rest.any():
                whole = pc.multiply(pc.divide(numbers, 1000), 1000).view(kind)
                columns[i] = _changed("ticks", pa.array(rest != 0), whole, i, batch, table, losses, "the time is finer than 100 ns")
        elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            numbers = column.view(pa.int64() if pa.types.is_timestamp(kind) else pa.int32())
            first, last = _DAYS if pa.types.is_date(kind) else (_DAYS[0] * 86_400_000_000, (_DAYS[1] + 1) * 86_400_000_000 - 1)
            limits = pc.min_max(numbers)
            if limits["min"].is_valid and not first <= limits["min"].as_py() <= limits["max"].as_py() <= last:
                hit = pc.or_(pc.less(numbers, first), pc.greater(numbers, last))
                _changed("", hit, column, i, batch, table, losses, "the time lies outside of the years 1 to 9999")
    return batch if not columns else pa.RecordBatch.from_arrays(
        [columns.get(i, column) for i, column in enumerate(batch.columns)], schema=batch.schema)


def _changed(loss: str, hit: pa.Array, changed: pa.Array, i: int, batch: pa.RecordBatch, table: Table, losses: Losses,
             what: str) -> pa.Array:
    """The changed column, counted, if the loss is accepted."""
    hit, field = hit.fill_null(False), table.schema.field(i)
    if loss not in losses.accepted or (field.name in table.key and loss != "ticks"):
        row = pc.index(hit, True).as_py()
        raise ValueRefused(f"{table.path}.{field.name}, key {key_of(batch, table, row)}: {what}, which SQL Server does not hold",
                           hint="correct the row at the source" + (f", or accept '{loss}' (setting accept)" if loss else ""))
    losses.count(loss, table.path, field.name, pc.sum(hit).as_py())
    return changed
