"""How a MySQL or MariaDB source tells what changed: a change log kept by triggers, in the same database, named `_skylift_*`.

    _skylift_log(seq, salt, t, batch, k0 .. k15)   one row a touched key, each key column as the bytes it is stored or spelt as
    _skylift_tables(t, name, since, emptied, def)  which tables are logged, from which position on, and when one was found empty
    _skylift_tokens(position, token)               one each time a watermark is handed out: a restored backup lacks the newest
    _skylift_consumers(consumer, t, position)      who reads which table's log, and how far it has confirmed

The log holds keys only; rows are read again from their table, so no value passes through it.

**No order of commits is assumed.** A transaction may write its log rows first and commit last, so "all rows up to number n" would
miss it. Instead a log row has batch 0 until a reader has seen it committed. `changes` reads, in one consistent snapshot, the rows of
its table with batch 0 and those of batches after the watermark; then it takes a new position and stamps exactly the rows that it saw
unstamped with it. What commits later stays at batch 0 and belongs to the next batch, whenever it was written. Positions only grow;
one reader at a time reads one table's log (get_lock), so for each table: every row of a batch <= p was committed before position p
was taken. Hence a full copy that begins at position p needs the rows of batch 0 and of batches > p, no others. Where a table has one
consumer only, what it saw is not stamped but remembered, and deleted once it is confirmed: who comes later reads the table itself.

**The log never makes writers wait.** `seq` is uuid_short() and no auto-increment, whose lock an UPDATE with triggers holds to its end
under innodb_autoinc_lock_mode=1 (https://mariadb.com/kb/en/auto_increment-handling-in-innodb/); `salt` keeps it unique should the
server's clock be set back. Log rows are stamped and deleted by their whole primary key, which locks no gaps.

**What no trigger sees.** TRUNCATE: afterwards every row of the table has been inserted, and logged. So one row more than there are
touched keys proves that there was none; a table with fewer rows is counted and its keys are compared (Changes.rows_now, keys_now).
That an untouched table has become empty is noted in `emptied`. Actions of foreign keys, partitions that come and go, tables without
transactions: those tables have no log, they are compared with the target (SWEEP). Recreated, renamed and altered tables: their
triggers or their definition are not those that were noted, so they are copied whole. Statements that a replica gets from its primary
as rows: a replica has no log at all.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

import MySQLdb
import numpy as np
import pyarrow as pa

from skylift.connectors import SWEEP, Batches, Changes
from skylift.connectors.mysql_connection import LOCK_WAIT_S, Connection, connect, lacks_right, quote, run, texts, told
from skylift.connectors.mysql_rows import read_result
from skylift.connectors.mysql_types import all_selected, declared_of, logged_value, may_be_logged, moved, same_key
from skylift.errors import SkyliftError, SourceChanged, Transient
from skylift.model import Table, Watermark

if TYPE_CHECKING:
    from skylift.connectors.mysql import MySqlSource

READ_ONLY = "the source is opened with mode=ro"
KEY_COLUMNS = 16                   # that a log row has room for
READER_WAIT_S = 60                 # for another run that reads the log of the same table
TRIGGER_WAIT_S = 5                 # for transactions that hold a table which is to get its triggers; others queue behind that
TRIGGER_TRIES = 3
TRIGGER_MAKERS = 4                 # connections that make triggers: 83 ms a table with one, 24 with four, on a busy disk
BY_KEY = 500                       # log rows in one statement; MariaDB makes a join of lists over 1000
REMEMBERED = 1_000_000             # log rows of a table that are remembered, at 16 bytes each, more are stamped

_KEYS = [f"k{i}" for i in range(KEY_COLUMNS)]
TABLES = {
    "_skylift_log": "seq bigint unsigned not null, salt int unsigned not null, t int unsigned not null,"
                    f" batch bigint unsigned not null default 0, {', '.join(f'{k} varbinary(3072)' for k in _KEYS)},"
                    " primary key (seq, salt), key (t, batch)",
    "_skylift_tables": "t int unsigned not null auto_increment primary key, name varchar(64) not null unique,"
                       " since bigint unsigned not null, emptied bigint unsigned, def varchar(64) not null",
    "_skylift_tokens": "position bigint unsigned not null auto_increment primary key, token char(32) not null",
    "_skylift_consumers": "consumer varchar(255) not null, t int unsigned not null, position bigint unsigned not null,"
                          " primary key (consumer, t)",
}


class ChangeLog:
    """Triggers that log the key of every inserted, updated and deleted row."""

    def __init__(self, source: MySqlSource) -> None:
        self._source = source
        self._logged: dict[str, tuple[int, int]] = {}    # table name -> (t, since), as track found them
        self._tokens: set[str] = set()
        self._created: dict[str, str] = {}               # table name -> when it was created, as track found it
        self._seen: dict[int, list[tuple[int, np.ndarray]]] = {}    # t -> log rows of its only consumer, by position
        self.swept: dict[str, str] = {}                  # table name -> why it has no log
        self.read_in_parts: set[str] = set()             # tables read by several statements: altered in between, they make no sense

    # -------------------------------------------------------------- installing

    def track(self, tables: Sequence[Table], consumer: str) -> dict[str, Watermark]:
        self.swept |= {table.name: why for table in tables if (why := self._unfit(table))}
        logged = [table for table in tables if table.name not in self.swept]
        mark = None
        if logged:
            with self._source.connection() as c, told(self._source.url), _locked(c, self._source.name, "track"):
                try:
                    why = is_replica(c)
                    if not why:
                        self._install(c)
                        mark = self._track(c, logged, consumer)
                except MySQLdb.Error as error:
                    if not lacks_right(error):
                        raise
                    why = f"the user cannot keep a change log: {error.args[-1]}"
                self.swept |= {table.name: why for table in logged if why}
        return {table.path: Watermark(SWEEP, 1, "", why=self.swept[table.name]) if table.name in self.swept or not mark else mark
                for table in tables}

    def _unfit(self, table: Table) -> str:
        return READ_ONLY if self._source.read_only else self.unfit(table)

    def unfit(self, table: Table) -> str:
        """Why no log can be kept of a table in a source that may be written, '' if one can."""
        if len(table.key) > KEY_COLUMNS or not all(may_be_logged(declared_of(table, column)) for column in table.key):
            return "its key has a type or a number of columns that the change log cannot hold"
        return self._source.facts(table).unseen

    def _install(self, c: Connection) -> None:
        """Make the tables of the log that are not there, and touch each: triggers of a user who may not would make the application fail."""
        there = {name for (name,) in texts(run(c, "select table_name from information_schema.tables where table_schema = database()"
                                                  " and table_name like '\\_skylift\\_%%'"))}
        for name, columns in TABLES.items():
            if name not in there:
                run(c, f"create table {name} ({columns}) engine=InnoDB row_format=dynamic default charset=utf8mb4 collate=utf8mb4_bin")
            column = columns.split()[0]
            for statement in (f"insert into {name} select * from {name} where 1 = 0", f"update {name} set {column} = {column} where 1 = 0",
                              f"delete from {name} where 1 = 0"):
                run(c, statement)

    def _track(self, c: Connection, tables: Sequence[Table], consumer: str) -> Watermark:
        for part in _parts([table.name for table in tables]):
            run(c, f"insert ignore into _skylift_tables (name, since, def) values {', '.join(['(%s, 0, %s)'] * len(part))}",
                [value for name in part for value in (name, "")])
        known = {name: (int(t), int(since), definition) for t, name, since, definition in
                 texts(run(c, "select t, name, since, def from _skylift_tables"))}
        standing = set(texts(run(c, "select event_object_table, trigger_name from information_schema.triggers"
                                    " where trigger_schema = database() and trigger_name like '\\_skylift\\_%%'")))
        self._created = self._created_at(c)
        begun: dict[int, str] = {}
        due: dict[str, tuple[set[str], dict[str, str]]] = {}
        for table in tables:
            t, since, definition = known[table.name]
            triggers = _triggers(table, t)
            if definition != (now := self._definition(table)) or not {(table.name, name) for name in triggers} <= standing:
                # New, recreated, renamed or altered: what happened before this moment is in no log.
                stale = {name for _, name in standing if name.startswith(f"_skylift_{t}_")}
                due[table.name] = stale, triggers
                begun[t] = now
            self._logged[table.name] = (t, since)
        for name, why in self._set_all_triggers(c, due).items():
            self.swept[name] = why
            begun.pop(self._logged.pop(name)[0])
        self._stamp(c, [self._logged[table.name][0] for table in tables if table.name not in self.swept])
        position, token = _new_token(c)
        for t, definition in begun.items():
            run(c, "update _skylift_tables set since = %s, def = %s, emptied = null where t = %s", [position, definition, t])
        self._logged |= {table.name: (known[table.name][0], position) for table in tables if known[table.name][0] in begun}
        self._forget_dropped(c, known)
        self._note_empty(c, tables, position)
        logged = [self._logged[table.name][0] for table in tables if table.name not in self.swept]
        for part in _parts(logged):                # what follows this moment is kept until it is confirmed
            run(c, f"insert ignore into _skylift_consumers values {', '.join(['(%s, %s, %s)'] * len(part))}",
                [value for t in part for value in (consumer, t, position)])
        self._tokens = {token for (token,) in texts(run(c, "select token from _skylift_tokens"))}
        return Watermark("change_log", position, token)

    def _set_all_triggers(self, c: Connection, due: Mapping[str, tuple[set[str], dict[str, str]]]) -> dict[str, str]:
        """By table, why its triggers cannot be made. Several at a time: at each the server waits for its disk (8 to 80 ms, measured)."""
        left, found = [*due], {}

        def set_those(connection: Connection) -> None:
            with suppress(IndexError):             # none is left
                while True:
                    name = left.pop()
                    found[name] = _set_triggers(connection, *due[name])

        def help_out() -> None:
            try:
                connection = connect(self._source.url)
            except SkyliftError:                   # there is none to be had
                return
            with closing(connection):
                set_those(connection)

        with ThreadPoolExecutor(TRIGGER_MAKERS, "triggers") as pool:
            helping = [pool.submit(help_out) for _ in range(min(TRIGGER_MAKERS, len(due)) - 1)]
            try:
                set_those(c)
            finally:
                left.clear()
            for helper in helping:
                helper.result()
        return {name: why for name, why in found.items() if why}

    def _stamp(self, c: Connection, tables: Sequence[int]) -> None:
        """Give a batch to what has been committed: a full copy that begins now need not look at it again."""
        fresh = {int(t) for (t,) in texts(run(c, "select t from _skylift_log group by t having min(batch) = 0"))}
        for t in fresh.intersection(tables):
            with _locked(c, self._source.name, str(t)):
                rows = _log_rows(c, f"t = {t} and batch = 0")
                _by_key(c, _stamped(_new_token(c)[0]), rows)

    def _created_at(self, c: Connection, *names: str) -> dict[str, str]:
        """By name, when the tables (or all) were created or last rebuilt."""
        few = f" and table_name in ({', '.join(['%s'] * len(names))})" if names else ""
        rows = run(c, f"select table_name, create_time from information_schema.tables where table_schema = database(){few}", names)
        return {row[0]: row[1] for row in texts(rows)}

    def _definition(self, table: Table) -> str:
        """What a table was when its triggers were made: its columns and key, and when it was last created or rebuilt."""
        parts = (self._created.get(table.name), table.schema.names, table.source_types, table.key)
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def _forget_dropped(self, c: Connection, known: Mapping[str, tuple[int, int, str]]) -> None:
        for name in known.keys() - self._created.keys():
            for ledger in ("_skylift_consumers", "_skylift_tables"):
                run(c, f"delete from {ledger} where t = %s", [known[name][0]])
            _by_key(c, _DELETE, _log_rows(c, f"t = {known[name][0]}"))

    def _note_empty(self, c: Connection, tables: Sequence[Table], position: int) -> None:
        """Keep since which position a table is known to be empty."""
        numbers = {self._logged[table.name][0]: table.name for table in tables if table.name not in self.swept}
        empty = self._empty(c, numbers)
        noted = {int(t) for (t,) in texts(run(c, "select t from _skylift_tables where emptied is not null"))}
        for value, those in ((position, empty - noted), (None, noted & numbers.keys() - empty)):
            for part in _parts(sorted(those)):
                run(c, f"update _skylift_tables set emptied = %s where t in ({', '.join(map(str, part))})", [value])

    def _empty(self, c: Connection, numbers: Mapping[int, str]) -> set[int]:
        """Which of the tables (t -> name) have no row."""
        found: set[int] = set()
        for part in _parts(sorted(numbers), 100):
            found |= {int(t) for (t,) in texts(run(c, " union all ".join(
                f"select {t} from dual where not exists (select 1 from {quote(numbers[t])})" for t in part)))}
        return found

    # -------------------------------------------------------------- reading

    def usable(self, table: Table, since: Watermark) -> str:
        if since.feed == SWEEP:
            return ""
        if since.incarnation not in self._tokens:
            return "the source is another database than at the last copy, or a backup restored from before it"
        if self._logged[table.name][1] > since.position:
            return "the change log of the table begins after the last copy (table recreated, altered or renamed, or triggers removed)"
        return ""

    def changed(self, since: Mapping[str, Watermark]) -> set[str]:
        positions = {self._logged[name][0]: (name, mark.position) for name, mark in since.items() if mark.feed != SWEEP}
        if not positions:
            return set()
        with self._source.connection() as c, told(self._source.url):
            touched = {int(t) for t, first, last in texts(run(c, "select t, min(batch), max(batch) from _skylift_log group by t"))
                       if int(t) in positions and (first == "0" or int(last) > positions[int(t)][1])}
            untouched = {t: name for t, (name, _) in positions.items() if t not in touched}
            if empty := self._empty(c, untouched):
                noted = {int(t): int(at) for t, at in texts(run(c, "select t, emptied from _skylift_tables where emptied is not null"))}
                touched |= {t for t in empty if noted.get(t, positions[t][1] + 1) > positions[t][1]}
            touched |= {t for t, name in untouched.items() if name in self.read_in_parts and not self._stands(c, name)}
        return {positions[t][0] for t in touched}

    @contextmanager
    def changes(self, table: Table, since: Watermark) -> Iterator[Changes]:
        source, t = self._source, self._logged[table.name][0]
        keys = _key_table(table)
        columns = ", ".join(_KEYS[:len(table.key)]) or "1"
        where = f"t = {t} and (batch = 0 or batch > {since.position})"
        distinct = f"(select distinct {columns} from _skylift_log where {where}) l"
        pairs = list(zip(_KEYS, table.key, keys.source_types, strict=False))
        same = " and ".join(same_key(f"r.{quote(name)}", f"l.{k}", declared) for k, name, declared in pairs) or "0"
        with source.connection() as c, told(source.url, table.path), _locked(c, source.name, str(t)):
            if not self._stands(c, table.name):
                raise SourceChanged(f"{table.path}: the table was altered or recreated during the run")
            run(c, "start transaction with consistent snapshot")     # one for log, keys and rows
            fresh = _log_rows(c, f"t = {t} and batch = 0")
            touched = pa.Table.from_batches(source.rows(
                c, keys, [logged_value(f"l.{k}", declared) for k, _, declared in pairs], f"from {distinct}"), keys.schema
                ) if pairs else keys.schema.empty_table()
            [(count,)] = run(c, f"select count(*) from (select 1 from {quote(table.name)} limit {len(touched) + 1}) few")
            rows_now = int(count or 0)
            if not table.key and (len(fresh) or run(c, f"select 1 from _skylift_log where {where} limit 1")):
                raise SourceChanged(f"{table.path}: rows changed, and without a primary key the log cannot tell which")

            def seal() -> Watermark:
                run(c, "commit")
                position, token = _new_token(c)
                [(consumers,)] = run(c, "select count(*) from _skylift_consumers where t = %s", [t])
                if consumers == b"1" and len(fresh) <= REMEMBERED:
                    self._seen.setdefault(t, []).append((position, fresh))
                else:
                    _by_key(c, _stamped(position), fresh)
                if not rows_now:
                    run(c, "update _skylift_tables set emptied = %s where t = %s and emptied is null", [position, t])
                self._tokens.add(token)
                return Watermark("change_log", position, token)

            def keys_now() -> Batches:
                return source.rows(c, keys, all_selected(keys), f"from {quote(table.name)}")

            rows = source.rows(c, table, all_selected(table, "r."), f"from {distinct} straight_join {quote(table.name)} r on {same}")
            if rows_now > len(touched):            # a row that is not in the log: nothing has emptied the table since
                yield Changes(touched, rows, None, seal)
            else:
                yield Changes(touched, rows, rows_now, seal, keys_now if table.key else None)

    def _stands(self, c: Connection, name: str) -> bool:
        """Whether the table is still the one that `track` has found, with its triggers."""
        [(triggers,)] = run(c, "select count(*) from information_schema.triggers where trigger_schema = database()"
                               " and event_object_schema = database() and event_object_table = %s and trigger_name like %s",
                            [name, f"\\_skylift\\_{self._logged[name][0]}\\_%"])
        return int(triggers or 0) == 3 and self._created_at(c, name).get(name) == self._created.get(name)

    # -------------------------------------------------------------- forgetting

    def confirm(self, consumer: str, positions: Mapping[str, int]) -> None:
        confirmed = [(consumer, self._logged[name][0], position) for name, position in positions.items() if name in self._logged]
        if not confirmed:
            return
        with self._source.connection() as c, told(self._source.url):
            for part in _parts(confirmed):
                run(c, f"replace into _skylift_consumers values {', '.join(['(%s, %s, %s)'] * len(part))}",
                    [value for row in part for value in row])
            for _, t, reached in confirmed:
                kept = self._seen.pop(t, [])
                for _, rows in (done for done in kept if done[0] <= reached):
                    _by_key(c, _DELETE, rows)
                self._seen[t] = [seen for seen in kept if seen[0] > reached]
            for number, least in texts(run(c, "select t, min(position) from _skylift_consumers where t in"
                                            " (select distinct t from _skylift_log) group by t")):
                while len(done := _log_rows(c, f"t = {number} and batch between 1 and {least} limit 50000")):
                    _by_key(c, _DELETE, done)
            run(c, "delete from _skylift_tokens where position < (select min(position) from _skylift_consumers)")

    def untrack(self, consumer: str) -> None:
        with self._source.connection() as c, told(self._source.url), _locked(c, self._source.name, "track"):
            there = {name for (name,) in texts(run(c, "select table_name from information_schema.tables where table_schema = database()"
                                                      " and table_name like '\\_skylift\\_%%'"))} & TABLES.keys()
            if self._source.read_only or not there:
                return
            if "_skylift_consumers" in there:
                run(c, "delete from _skylift_consumers where consumer = %s", [consumer])
                if run(c, "select 1 from _skylift_consumers limit 1"):
                    return
            # Triggers first: one whose log is gone would make every write to its table fail.
            for (name,) in texts(run(c, "select trigger_name from information_schema.triggers where trigger_schema = database()"
                                        " and trigger_name like '\\_skylift\\_%%'")):
                run(c, f"drop trigger {quote(name)}")
            for name in there:
                run(c, f"drop table {name}")


# ------------------------------------------------------------------ statements


@contextmanager
def _locked(c: Connection, database: str, what: str) -> Iterator[None]:
    """One at a time of those that lock `what` of this database; the server ends it with the connection."""
    name = f"skylift {hashlib.blake2b(database.encode(), digest_size=8).hexdigest()} {what}"
    [(got,)] = run(c, "select get_lock(%s, %s)", [name, READER_WAIT_S])
    if got != b"1":
        raise Transient(f"{database}: another run is reading the change log", hint="it is tried again")
    yield
    run(c, "select release_lock(%s)", [name])


def _new_token(c: Connection) -> tuple[int, str]:
    token = secrets.token_hex(16)
    run(c, "insert into _skylift_tokens (token) values (%s)", [token])
    [(position,)] = run(c, "select last_insert_id()")
    return int(position or 0), token


def _log_rows(c: Connection, condition: str) -> np.ndarray:
    """The primary keys of log rows: uint64 of shape (rows, 2)."""
    batches = list(read_result(c, f"select seq, salt from _skylift_log where {condition}", [pa.uint64(), pa.uint64()]))
    return np.concatenate([np.stack([column.to_numpy() for column in batch.columns], 1) for batch in batches]
                          or [np.zeros((0, 2), np.uint64)])


_DELETE = "delete l from _skylift_log l force index (primary)"


def _stamped(position: int) -> str:
    return f"update _skylift_log force index (primary) set batch = {position}"


def _by_key(c: Connection, statement: str, rows: np.ndarray) -> None:
    """Carry out a statement for these log rows. By the primary key, forced: a scan would wait for the rows of open transactions."""
    for start in range(0, len(rows), BY_KEY):
        pairs = rows[start:start + BY_KEY].tolist()
        if len(pairs) == 1:                        # MariaDB would not use the index for (seq, salt) in ((1, 2))
            run(c, f"{statement} where seq = {pairs[0][0]} and salt = {pairs[0][1]}")
        else:
            run(c, f"{statement} where (seq, salt) in ({', '.join(f'({seq}, {salt})' for seq, salt in pairs)})")


def _set_triggers(c: Connection, stale: set[str], triggers: Mapping[str, str]) -> str:
    """Put `triggers` in the place of the stale ones, which are all that stand; why that cannot be done, '' if it is."""
    run(c, f"set session lock_wait_timeout = {TRIGGER_WAIT_S}")
    try:
        for attempt in range(1, TRIGGER_TRIES + 1):
            try:
                for name in stale if attempt == 1 else stale | triggers.keys():
                    run(c, f"drop trigger if exists {quote(name)}")
                for statement in triggers.values():
                    run(c, statement)
                return ""
            except MySQLdb.Error as error:
                if lacks_right(error):
                    return f"the user cannot keep a change log: {error.args[-1]}"
                if error.args[0] != 1205:
                    raise
                if attempt == TRIGGER_TRIES:
                    return "its triggers could not be made, since open transactions hold the table"
    finally:
        run(c, f"set session lock_wait_timeout = {LOCK_WAIT_S}")
    raise AssertionError("unreachable")


def _triggers(table: Table, t: int) -> dict[str, str]:
    """Statements by trigger name; a name says what the trigger does, so that another key or body is another name."""
    columns = ", ".join(["seq", "salt", "t", *_KEYS[:len(table.key)]])

    def logs(row: str) -> str:
        values = ", ".join(["uuid_short()", "floor(rand() * 4294967296)", str(t), *(f"{row}.{quote(k)}" for k in table.key)])
        return f"insert into _skylift_log ({columns}) values ({values});"

    update = logs("old") + (f" if {moved(table.key)} then {logs('new')} end if;" if table.key else "")
    bodies = {"insert": logs("new"), "update": update, "delete": logs("old")}
    return {name: f"create trigger {name} after {event} on {quote(table.name)} for each row begin {body} end"
            for event, body in bodies.items()
            for name in [f"_skylift_{t}_{event}_{hashlib.blake2b(body.encode(), digest_size=4).hexdigest()}"]}


def _key_table(table: Table) -> Table:
    return Table(table.name, pa.schema([table.schema.field(k) for k in table.key]),
                 source_types=tuple(declared_of(table, column) for column in table.key))


def is_replica(c: Connection) -> str:
    """Why a server that gets rows from another keeps no log, '' if it gets none as far as the user may know."""
    for statement in ("show all slaves status", "show replica status", "show slave status", "show global status like 'Slaves_running'"):
        try:
            rows = run(c, statement)
        except MySQLdb.Error:
            continue                               # the other server's words, or a right that is lacking
        if rows and rows[0] not in ((b"Slaves_running", b"0"),):
            return "the server is a replica, and no trigger sees what its primary sends"
    return ""


def _parts(values: Sequence, size: int = 500) -> Iterator[Sequence]:
    for start in range(0, len(values), size):
        yield values[start:start + size]
