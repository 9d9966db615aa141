"""Data files of a lake: written from batches, read as batches, searched for keys. All in the types in which values are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from skylift.buffers import spans
from skylift.connectors.lake_log import DataFile

# A file is one row group. Measured (135 k rows x 50 columns, 92 MB as Arrow): zstd at level 1 takes 0.28 s and 13.8 MB,
# snappy 0.30 s and 19.5 MB, level 3 the same time and 13.5 MB.
FILE_ROWS = 150_000               # rows of a file at most: a chunk (see lake.py) of short rows fits one
FILE_BYTES = 32 * 2**20           # Arrow bytes of a file at most, held by each worker while it is encoded (64 MiB: 100 MB more at the peak)
READ_ROWS = 8_192
READ_BYTES = 16 * 2**20           # of a batch that is read
PAGE_BYTES = 2**20
WIDE_BYTES = 1024                 # a column whose values are larger on average gets no dictionary and no statistics: each would copy them
LARGE_BYTES = 2**20               # a column whose values are larger on average is compressed only where that makes them smaller: pictures
SAMPLE_BYTES = 2**16              # and archives are compressed already, and the compressor's output would be a copy of them in memory
BOUND_CHARACTERS = 64             # longer texts are no bounds
_CODEC, _LEVEL = "zstd", 1


def write(store: Any, schema: pa.Schema, batches: Iterable[pa.RecordBatch], key: Sequence[str],
          new_path: Callable[[], str]) -> list[DataFile]:
    """Write batches of `schema` as files, each at a path of its own; bounds are kept for the columns of `key`."""
    files: list[DataFile] = []
    held: list[pa.RecordBatch] = []
    rows = size = 0

    def flush() -> None:
        nonlocal rows, size
        files.append(_write(store, new_path(), pa.Table.from_batches(held, schema), key))
        held.clear()
        rows = size = 0

    for batch in batches:
        while batch.num_rows:
            piece, batch = batch.slice(0, FILE_ROWS - rows), batch.slice(FILE_ROWS - rows)
            held.append(piece)
            rows += piece.num_rows
            size += piece.nbytes
            if rows == FILE_ROWS or size >= FILE_BYTES:
                flush()
    if held:
        flush()
    return files


def write_empty(store: Any, schema: pa.Schema, path: str) -> DataFile:
    """A file without rows: a table that is empty has its columns in it."""
    return _write(store, path, schema.empty_table(), ())


def _write(store: Any, path: str, table: pa.Table, key: Sequence[str]) -> DataFile:
    with store.told(), store.writer(path) as sink:
        # pyarrow looks at the size of a page, and of a dictionary, only after `write_batch_size` values.
        values = max(1, min(1024, PAGE_BYTES * table.num_rows // max(1, table.nbytes)))
        short = [name for name in table.column_names if table.column(name).nbytes < WIDE_BYTES * table.num_rows]
        squeezed = [name for name in table.column_names if not _is_squeezed_already(table.column(name))]
        with pq.ParquetWriter(sink, table.schema, write_batch_size=values, use_dictionary=short, write_statistics=short,
                              compression={name: _CODEC if name in squeezed else "none" for name in table.column_names},
                              compression_level=dict.fromkeys(squeezed, _LEVEL), write_page_checksum=True) as writer:
            writer.write_table(table, row_group_size=max(1, table.num_rows))
        size = sink.tell()
    return DataFile(path, table.num_rows, size, _bounds(writer.writer.metadata, table.schema, key))


def _is_squeezed_already(column: pa.ChunkedArray) -> bool:
    """Whether the values are large, and a sample from the middle of each batch gets no smaller by compressing it."""
    if column.nbytes <= LARGE_BYTES * len(column) or not (pa.types.is_binary(column.type) or pa.types.is_string(column.type)):
        return False
    samples = []
    for chunk in column.chunks:
        data, ends = spans(chunk)
        middle = (int(ends[0]) + int(ends[-1]) - SAMPLE_BYTES) // 2
        samples.append(data[max(int(ends[0]), middle):][:SAMPLE_BYTES])
    before, after = sum(len(sample) for sample in samples), sum(len(pa.compress(sample, _CODEC)) for sample in samples)
    return after > 0.95 * before


def _bounds(footer: pq.FileMetaData, schema: pa.Schema, key: Sequence[str]) -> dict[str, list[Any]]:
    found = {}
    for name in key:
        kind = schema.field(name).type
        statistics = footer.row_group(0).column(schema.get_field_index(name)).statistics
        if (pa.types.is_integer(kind) or pa.types.is_string(kind)) and statistics is not None and statistics.has_min_max:
            bounds = [statistics.min, statistics.max]
            if pa.types.is_integer(kind) or max(map(len, bounds)) <= BOUND_CHARACTERS:
                found[name] = bounds
    return found


def read(store: Any, file: DataFile, columns: Sequence[str], hits: np.ndarray | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a file, or those that are hit (bool of shape (rows,))."""
    with store.told():
        source = pq.ParquetFile(store.reader(file.path, file.size_bytes), pre_buffer=store.pre_buffer, page_checksum_verification=True)
    with source:
        row_bytes = sum(source.metadata.row_group(i).total_byte_size for i in range(source.metadata.num_row_groups)) // max(1, file.rows)
        rows = max(1, min(READ_ROWS, READ_BYTES // max(1, row_bytes)))
        batches = source.iter_batches(rows, columns=list(columns), use_threads=False)
        begin = 0
        while True:
            with store.told():
                batch = next(batches, None)
            if batch is None:
                return
            end = begin + batch.num_rows
            batch = batch.select(list(columns))        # pyarrow takes `a` for every column `a.b`, too
            if hits is None:
                yield batch
            elif hits[begin:end].any():
                yield batch.filter(pa.array(hits[begin:end]))
            del batch                                  # before the next one is read: a value may be large
            begin = end


def rows_of(store: Any, path: str, size_bytes: int) -> int:
    with store.told():
        return pq.ParquetFile(store.reader(path, size_bytes)).metadata.num_rows


def hits(store: Any, file: DataFile, keys: pa.Table) -> np.ndarray:
    """Which rows of a file have one of these keys: bool of shape (rows,). Reads nothing where the bounds tell."""
    keys = keys.filter(_within(file, keys)) if file.bounds else keys
    if not len(keys):
        return np.zeros(file.rows, bool)
    return np.concatenate([_match(batch, keys) for batch in read(store, file, keys.column_names)] or [np.zeros(0, bool)])


def _within(file: DataFile, keys: pa.Table) -> pa.ChunkedArray:
    """Which keys lie within the bounds of a file."""
    found = pa.chunked_array([np.ones(len(keys), bool)])
    for name, (lowest, highest) in file.bounds.items():
        column = keys.column(name)
        bounds = pa.scalar(lowest, column.type), pa.scalar(highest, column.type)
        found = pc.and_(found, pc.and_(pc.greater_equal(column, bounds[0]), pc.less_equal(column, bounds[1])))
    return found


def _match(batch: pa.RecordBatch, keys: pa.Table) -> np.ndarray:
    """Rows whose columns equal those of one key. Columns one by one tell which rows may; for keys of several columns, a join which do."""
    names, found = keys.column_names, np.ones(batch.num_rows, bool)
    wanted = pa.table({name: _plain(keys.column(name)) for name in names})
    there = {name: _plain(batch.column(batch.schema.get_field_index(name))) for name in names}
    for name in names:
        found &= pc.is_in(there[name], value_set=wanted.column(name).combine_chunks()).to_numpy(zero_copy_only=False)
    if len(names) == 1 or not found.any():
        return found
    places = np.flatnonzero(found)
    left = pa.table({**{str(i): there[name].take(pa.array(places)) for i, name in enumerate(names)}, "place": places})
    matched = left.join(wanted.rename_columns([str(i) for i in range(len(names))]), [str(i) for i in range(len(names))],
                        join_type="left semi", use_threads=False)
    found[:] = False
    found[matched.column("place").to_numpy()] = True
    return found


def _plain(column: Any) -> Any:
    """Extension types as what they are stored as; joins and look-ups know no others."""
    if not isinstance(column.type, pa.BaseExtensionType):
        return column
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    return column.storage
