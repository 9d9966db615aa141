"""How a SQLite source tells what changed: a change log kept by triggers, or else a fingerprint of the file.

The log holds keys only; rows are read again from their table, so no value passes through it. Everything in the source is
named `_skylift_*`:

    _skylift_log(seq, t, k0, k1, ..)         one row a touched key; untyped columns keep every key value as it is
    _skylift_log_tables(t, name, since, def) which tables are logged, from which position on, by which triggers
    _skylift_tokens(token, position)         one token each time a watermark is handed out: a restored backup lacks the newest
    _skylift_consumers(consumer, t, position)  who reads which table's log, and how far it has confirmed
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from skylift.connectors import STATE, Batches, Changes
from skylift.connectors.sql import quote
from skylift.errors import SourceChanged
from skylift.model import Table, Watermark

if TYPE_CHECKING:
    from skylift.connectors.sqlite import SqliteSource

_TABLES = (
    "create table if not exists _skylift_log (seq integer primary key autoincrement, t integer not null, k0)",
    "create index if not exists _skylift_log_t on _skylift_log (t, seq)",
    "create table if not exists _skylift_log_tables"
    " (t integer primary key, name text not null unique, since integer not null, def text not null)",
    "create table if not exists _skylift_tokens (token text primary key, position integer not null) without rowid",
    "create table if not exists _skylift_consumers"
    " (consumer text, t integer, position integer not null, primary key (consumer, t)) without rowid",
)
_TRIGGERS_NOW = "select name, sql from sqlite_schema where type = 'trigger' and name like '\\_skylift\\_%' escape '\\'"
_POSITION = "select coalesce((select seq from sqlite_sequence where name = '_skylift_log'), 0)"


class ChangeLog:
    """Triggers that log the key of every inserted, updated and deleted row."""

    def __init__(self, source: SqliteSource) -> None:
        self._source = source
        self._logged: dict[str, tuple[int, int]] = {}    # table name -> (t, since), as track found them
        self._tokens: set[str] = set()

    def track(self, tables: Sequence[Table], consumer: str) -> dict[str, Watermark]:
        source, token = self._source, secrets.token_hex(16)
        with source.writing() as run:
            for statement in _TABLES:
                run(statement)
            [(position,)] = run(_POSITION)
            width = len(run("select 1 from pragma_table_info('_skylift_log') where name like 'k%'"))
            for i in range(width, max((len(t.key) for t in tables), default=0)):
                run(f"alter table _skylift_log add column k{i}")
            known = {name: (t, since, definition) for t, name, since, definition in
                     run("select t, name, since, def from _skylift_log_tables")}
            standing = dict(run(_TRIGGERS_NOW))
            numbers = max((t for t, _, _ in known.values()), default=0)
            begun: int | None = None                # the position from which tables are logged that were not before
            for table in tables:
                t, since, definition = known.get(table.name, (0, 0, ""))
                if not t:
                    numbers += 1
                    t = numbers
                triggers = _triggers(table, t)
                if definition != _definition(table) or any(standing.get(name) != sql for name, sql in triggers.items()):
                    # New, recreated or altered: what happened before this moment is in no log.
                    for name, sql in triggers.items():
                        run(f"drop trigger if exists {name}")
                        run(sql)
                    if begun is None:               # a position of its own, that no watermark can stand at yet
                        run("insert into _skylift_log(t) values (0)")
                        [(position,)] = run(_POSITION)
                        begun = position
                    since = begun
                    run("insert or replace into _skylift_log_tables values (?, ?, ?, ?)", t, table.name, since, _definition(table))
                self._logged[table.name] = (t, since)
            for name in known.keys() - {name for (name,) in run("select name from sqlite_schema where type = 'table'")}:
                for ledger in ("_skylift_log_tables", "_skylift_consumers", "_skylift_log"):     # the table is gone for good
                    run(f"delete from {ledger} where t = ?", known[name][0])
            for table in tables:                    # what follows this moment is kept until it is confirmed
                run("insert or ignore into _skylift_consumers values (?, ?, ?)", consumer, self._logged[table.name][0], position)
            run("insert into _skylift_tokens values (?, ?)", token, position)
            self._tokens = {token for (token,) in run("select token from _skylift_tokens")}
        return dict.fromkeys((table.path for table in tables), Watermark("change_log", position, token))

    def usable(self, table: Table, since: Watermark) -> str:
        if since.feed != "change_log":
            return "the last copy was made without a change log"
        if since.incarnation not in self._tokens:
            return "the source is another database than at the last copy, or a backup restored from before it"
        if self._logged[table.name][1] > since.position:
            return "the change log of the table begins after the last copy (table recreated, key changed, or triggers removed)"
        return ""

    def changed(self, since: Mapping[str, Watermark]) -> set[str]:
        last = dict(self._source.query("select t, max(seq) from _skylift_log group by t"))
        return {name for name, mark in since.items() if last.get(self._logged[name][0], 0) > mark.position}

    @contextmanager
    def changes(self, table: Table, since: Watermark) -> Iterator[Changes]:
        source, t = self._source, self._logged[table.name][0]
        where = f"from _skylift_log where t = {t} and seq > {since.position}"
        keys = f"(select distinct {', '.join(f'k{i} as {quote(k)}' for i, k in enumerate(table.key)) or '0'} {where})"
        same = " and ".join(f"r.{quote(k)} = l.{quote(k)}" for k in table.key)
        # `keys` has columns without affinity, so it is the outer loop and each row is found through the table's key index.
        touched_rows = f"from (select r.* from {keys} l cross join {quote(table.name)} r on {same or '0'}) where 1"
        fields = [table.schema.field(k) for k in table.key]
        key_table = Table(table.name, pa.schema(fields), source_types=tuple(
            table.source_types[table.schema.get_field_index(k)] for k in table.key))
        with source.connection() as c:
            source.run(c, "begin")                  # one snapshot for position, keys and rows
            [(position,)] = source.run(c, _POSITION)
            [(touched,)] = source.run(c, f"select count(*) {where}")
            if touched and not table.key:
                raise SourceChanged(f"{table.name}: rows changed, and without a primary key the log cannot tell which")
            batches = list(source.read_sql(c, key_table, f"from {keys} where 1")) if touched else []
            if any(batch.column(i).null_count for batch in batches for i in range(len(table.key))):
                raise SourceChanged(f"{table.name}: a row with NULL in its primary key was changed")
            # INSERT OR REPLACE over a second unique index deletes rows without firing delete triggers
            # (https://www.sqlite.org/lang_conflict.html), so there the feed's deletes are proven by counting.
            counted = touched and source.run(c, """select 1 from pragma_index_list(?) where "unique" and origin <> 'pk' limit 1""",
                                             [table.name])
            rows_now = source.run(c, f"select count(*) from {quote(table.name)}")[0][0] if counted else None

            def seal() -> Watermark:
                source.run(c, "commit")             # first: in rollback-journal mode a reader keeps writers out
                if not touched:
                    return since
                token = secrets.token_hex(16)
                with source.writing() as run:
                    run("insert into _skylift_tokens values (?, ?)", token, position)
                self._tokens.add(token)
                return Watermark("change_log", position, token)

            yield Changes(pa.Table.from_batches(batches, key_table.schema),
                          source.read_sql(c, table, touched_rows), rows_now, seal)

    def confirm(self, consumer: str, positions: Mapping[str, int]) -> None:
        with self._source.writing() as run:
            for name, position in positions.items():
                run("update _skylift_consumers set position = ? where consumer = ? and t = ?", position, consumer, self._logged[name][0])
            run("delete from _skylift_log where seq <= coalesce((select min(position) from _skylift_consumers c"
                " where c.t = _skylift_log.t), seq)")
            run("delete from _skylift_tokens where position < (select min(position) from _skylift_consumers)")

    def untrack(self, consumer: str) -> None:
        with self._source.writing() as run:
            if not run("select 1 from sqlite_schema where name = '_skylift_consumers'"):
                return
            run("delete from _skylift_consumers where consumer = ?", consumer)
            if run("select 1 from _skylift_consumers limit 1"):
                return
            for name, _ in run(_TRIGGERS_NOW):
                run(f"drop trigger {quote(name)}")
            for name in ("_skylift_log", "_skylift_log_tables", "_skylift_tokens", "_skylift_consumers"):
                run(f"drop table if exists {name}")


class Fingerprint:
    """For a file that must not be written: has anything at all changed? Where it has, tables are compared (the feed STATE)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _mark(self) -> Watermark:
        """Header counters (https://www.sqlite.org/fileformat.html#file_change_counter), sizes and times of file and WAL."""
        state = hashlib.blake2b(digest_size=16)
        for path in (self._path, Path(f"{self._path}-wal")):
            if path.exists():
                stat = path.stat()
                state.update(f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino};".encode())
        with self._path.open("rb") as file:
            state.update(file.read(100))
        return Watermark(STATE, 1, state.hexdigest())

    def track(self, tables: Sequence[Table], consumer: str) -> dict[str, Watermark]:
        return dict.fromkeys((table.path for table in tables), self._mark())

    def usable(self, table: Table, since: Watermark) -> str:
        return "" if since == self._mark() else "the source has changed and is opened read-only, so there is no change log"

    def changed(self, since: Mapping[str, Watermark]) -> set[str]:
        now = self._mark()
        return {name for name, mark in since.items() if mark != now}

    @contextmanager
    def changes(self, table: Table, since: Watermark) -> Iterator[Changes]:
        if since != self._mark():
            raise SourceChanged(f"{table.name}: the source was written during the copy, and read-only there is no change log",
                                hint="copy while nobody writes, or leave out mode=ro so that skylift can log changes")
        key = pa.schema([table.schema.field(k) for k in table.key])
        yield Changes(key.empty_table(), _nothing(), None, lambda: since)

    def confirm(self, consumer: str, positions: Mapping[str, int]) -> None:
        return

    def untrack(self, consumer: str) -> None:
        return


def _nothing() -> Batches:
    yield from ()


def _triggers(table: Table, t: int) -> dict[str, str]:
    into = "insert into _skylift_log(t" + "".join(f", k{i}" for i in range(len(table.key))) + ")"

    def keys(row: str) -> str:
        return "".join(f", {row}.{quote(k)}" for k in table.key)

    moved = " or ".join(f"old.{quote(k)} is not new.{quote(k)}" for k in table.key)
    update = f"{into} values ({t}{keys('old')});" + (f" {into} select {t}{keys('new')} where {moved};" if moved else "")
    bodies = {"insert": f"{into} values ({t}{keys('new')});", "update": update, "delete": f"{into} values ({t}{keys('old')});"}
    return {name: f"CREATE TRIGGER {name} after {event} on {quote(table.name)} begin {body} end"
            for event, body in bodies.items() for name in [f"_skylift_{event}_{t}"]}


def _definition(table: Table) -> str:
    return repr(table.key)

