"""The best unverified pipeline that 30 lines of the same libraries make: SQLite -> DuckDB, one table with an integer key.

Two threads each read half of the keys with the ADBC driver, cast in Arrow, and insert through a DuckDB connection of their own.
"""
import re
import sqlite3
import sys
import threading

import adbc_driver_sqlite.dbapi as adbc
import duckdb
import pyarrow as pa


def pipeline(source: str, table: str, key: str, target: str) -> None:
    columns = [(n, t) for _, n, t, *_ in sqlite3.connect(source).execute(f'pragma table_info("{table}")')]
    last, = sqlite3.connect(source).execute(f'select max("{key}") from "{table}"').fetchone()
    arrow = {"INTEGER": pa.int64(), "BLOB": pa.binary(), "DOUBLE": pa.float64(), "DATETIMETEXT": pa.timestamp("us")}
    decimal = [re.match(r"DECIMALTEXT\((\d+),(\d+)\)", t) for _, t in columns]
    schema = pa.schema([(n, pa.decimal128(int(d[1]), int(d[2])) if d else arrow.get(t, pa.string()))
                        for (n, t), d in zip(columns, decimal, strict=True)])
    typed = ",".join({"INTEGER": "0", "BLOB": "x''", "DOUBLE": "0.0"}.get(t, "''") + f' "{n}"' for n, t in columns)
    database = duckdb.connect(target, config={"threads": 1, "memory_limit": "150MB", "max_vacuum_tasks": 0})
    database.register("empty", schema.empty_table())
    database.execute("create table copied as select * from empty")

    def half(low: int, high: int) -> None:
        with adbc.connect(f"file:{source}?mode=ro") as connection, connection.cursor() as cursor:
            cursor.execute("pragma busy_timeout = 10000")
            cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": 16384})
            cursor.execute(f'select {typed} union all select * from "{table}" where "{key}" >= {low} and "{key}" < {high}')
            batches = cursor.fetch_record_batch()
            first = [batches.read_next_batch().slice(1).cast(schema)]
            own = database.cursor()
            own.register("rows", pa.RecordBatchReader.from_batches(schema, (b.cast(schema) for part in (first, batches) for b in part)))
            own.execute("insert into copied select * from rows")
    threads = [threading.Thread(target=half, args=bounds) for bounds in ((-2**62, last // 2), (last // 2, 2**62))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    database.close()


if __name__ == "__main__":
    pipeline(*sys.argv[1:])
