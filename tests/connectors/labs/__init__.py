"""One lab per database: makes a source with SQL, reads any side back with an independent judge.

A later connector joins every test of the conformance suite by one more entry in SOURCES or TARGETS. What each lab has:

    url                      of its database, empty when the lab is made
    name(table)              a table as SQL spells it
    execute(*statements)     all in one transaction; a tuple is (statement with ? marks, rows)
    ddl(name, columns, key)  `create table`, from the abstract types of TYPES
    put(name, key, row)      a (statement, rows) that inserts a row, or replaces the one with its key (and whatever else is in its way)
    fetch(sql)               rows of a query, as the database's own driver hands them out
    rows(name)               Counter of the table's rows as `plain` values; a target's also takes the schema
    names()                  tables of a target's default schema
    lacks(value)             whether the database cannot hold it, whatever the column
    same_key(text)           texts of which this is equal are one and the same key
    spelt(name)              how the catalogue spells it: some servers keep no capitals
    examples                 how many random histories to try
    fed                      do tables without a key, too, have a feed that says what changed?

Statements of the suite quote names with double quotes, so a lab of another dialect switches that on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from skylift.connectors import open_source, open_target
from skylift.engine.pool import copy_tables
from skylift.model import CopyTask, Progress, TargetName

# The abstract types: decimal is decimal(38,20), datetime is without time zone, text holds 100 characters, note any number.
TYPES = ("int", "decimal", "datetime", "text", "note", "blob", "double")


class Lab:
    """What most databases have in common."""

    examples = 10                 # random histories: opening a server's database takes longer than a file
    fed = True
    types: ClassVar[dict[str, str]]       # what the database calls the abstract types

    def ddl(self, name: str, columns: dict[str, str], key: tuple[str, ...] = ()) -> str:
        parts = [f"{quote(c)} {self.types[t]}{' NOT NULL' if c in key else ''}" for c, t in columns.items()]
        if key:
            parts.append(f"primary key ({', '.join(map(quote, key))})")
        return f"create table {quote(name)} ({', '.join(parts)})"

    def lacks(self, value: object) -> bool:
        return False

    def same_key(self, text: str) -> str:
        return text

    def spelt(self, name: str) -> str:
        return name


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def plain(rows: Iterable[tuple]) -> Counter:
    """Rows with the type beside each value, so that 1 is not 1.0 and not '1'; floats by their bits, decimals and times by value."""
    return Counter(tuple((type(v).__name__, repr(v) if isinstance(v, float) else v) for v in map(_bytes, row)) for row in rows)


def _bytes(value: Any) -> Any:
    return bytes(value) if isinstance(value, bytearray | memoryview) else value


def migrate(source_url: str, target_url: str, copy_id: str, *, full: bool = False, only: set[str] | None = None,
            chunk_rows: int | None = None, through: Callable[[Any], Any] = lambda target: target) -> dict[str, Progress]:
    """One run over every table, as the coordinator would make it; the last Progress of each table, by path.

    `chunk_rows` cuts tables into smaller chunks than the target likes; `through` wraps the target.
    """
    source, target = open_source(source_url), open_target(target_url)
    try:
        if chunk_rows:
            target.chunk_rows = chunk_rows
        tasks = [CopyTask("", t.name, t, TargetName("", t.name), full) for t in source.tables() if only is None or t.name in only]
        return {p.task.table.path: p for p in copy_tables(tasks, source, through(target), copy_id=copy_id, consumer="tests", workers=2)}
    finally:
        target.close()
        source.close()


class Altering:
    """A target that alters batches on their way in: what a broken driver would do."""

    def __init__(self, target: Any, fault: Callable) -> None:
        self._target, self._fault = target, fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    @contextmanager
    def transaction(self):
        with self._target.transaction() as transaction:
            honest = transaction.insert
            transaction.insert = lambda name, table, batches: honest(name, table, map(self._fault, batches))
            yield transaction


from tests.connectors.labs.delta import DeltaLab  # noqa: E402
from tests.connectors.labs.duckdb import DuckDBLab, DuckDBSourceLab  # noqa: E402
from tests.connectors.labs.mysql import MySqlLab  # noqa: E402
from tests.connectors.labs.parquet import ParquetLab  # noqa: E402
from tests.connectors.labs.postgres import PostgresLab, PostgresTargetLab, PostgresTriggersLab  # noqa: E402
from tests.connectors.labs.s3 import DeltaS3Lab, ParquetS3Lab  # noqa: E402
from tests.connectors.labs.sqlite import SqliteLab  # noqa: E402
from tests.connectors.labs.sqlserver import SqlServerLab, SqlServerTargetLab  # noqa: E402

SOURCES: dict[str, Callable[[Path], Any]] = {"sqlite": SqliteLab, "duckdb": DuckDBSourceLab, "mysql": MySqlLab, "postgres": PostgresLab,
                                             "sqlserver": SqlServerLab}
OTHER_FEEDS: dict[str, Callable[[Path], Any]] = {"postgres by triggers": PostgresTriggersLab}     # of databases that have several
TARGETS: dict[str, Callable[[Path], Any]] = {"duckdb": DuckDBLab, "parquet": ParquetLab, "delta": DeltaLab, "postgres": PostgresTargetLab,
                                             "sqlserver": SqlServerTargetLab}
OTHER_PLACES: dict[str, Callable[[Path], Any]] = {"parquet_s3": ParquetS3Lab, "delta_s3": DeltaS3Lab}     # of targets, for one source
