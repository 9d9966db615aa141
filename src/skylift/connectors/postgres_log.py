"""A change log of a PostgreSQL source, kept by triggers.

    _skylift.log(t, x, k)                        a touched key of table t as text, and the transaction that touched it
    _skylift.tables(oid, generation, triggers)   which tables are logged, by which triggers

The triggers run once a statement and log what its transition tables hold, in one `insert .. select`. Where statements on other tables
touch the rows (partitions, inheritance, logical replication into the table) they run once a row. They fire always, also for replicas'
sessions, and as someone who disables and enables them leaves a trace of that, the log has no unseen gap. TRUNCATE and whatever rewrites a
table give it another file (postgres_catalog.py). A transaction that commits late is not missed: its number is not below the watermark.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from skylift.connectors.postgres_catalog import Facts
from skylift.connectors.sql import quote
from skylift.errors import Transient

if TYPE_CHECKING:
    from skylift.connectors.postgres_source import PostgresSource

WAIT = "2s"                        # for writers of a table, before its triggers are made; applications wait behind that
_SCHEMA = """
create table _skylift.tables (oid int8 primary key, generation text not null, triggers text not null);
create table _skylift.log (t int8 not null, x int8 not null, k text[]);
create index log_t_x on _skylift.log (t, x)
"""
_NOW = "pg_current_xact_id()::text::int8"
# The triggers of tables and of their partitions as they stand, as one text a table.
_STANDING = """
select m.root, md5(string_agg(concat(g.tgrelid, pg_get_triggerdef(g.oid), g.tgenabled, p.prosrc, p.proconfig), ''
    order by g.tgrelid, g.tgname))
from unnest(%s::int8[], %s::int8[]) m(root, member) join pg_trigger g on g.tgrelid = m.member join pg_proc p on p.oid = g.tgfoid
where g.tgname like '\\_skylift\\_%%' group by m.root
"""
# Types whose text does not depend on the settings of an application's session.
_PLAIN = re.compile(r'smallint|integer|bigint|numeric.*|text|character.*|uuid|boolean|name|"char"|inet|cidr|macaddr8?|bit.*')


class ChangeLog:
    def __init__(self, source: PostgresSource) -> None:
        self._source = source

    def install(self, connection: psycopg.Connection, tables: Sequence[Facts]) -> dict[int, str]:
        """The generation of each table's log, by object id; a table that cannot be logged now is not among them."""
        if not tables:
            return {}
        if not _is_there(connection):              # `if not exists` would wait for everybody who writes a logged table
            connection.execute(_SCHEMA)
        known = {oid: (generation, triggers) for oid, generation, triggers in
                 connection.execute("select oid, generation, triggers from _skylift.tables")}
        standing = self._standing(connection, tables)
        generations = {}
        for facts in tables:
            generation, triggers = known.get(facts.oid, ("", ""))
            if not generation or triggers != standing.get(facts.oid, "") + _definition(facts):
                generation = secrets.token_hex(8)
                if not self._make(connection, facts, generation):
                    continue
            generations[facts.oid] = generation
        return generations

    def _make(self, connection: psycopg.Connection, facts: Facts, generation: str) -> bool:
        """Make the triggers, in one transaction that waits for writers of this table alone; False if that takes too long."""
        try:
            connection.execute(f"begin; set local lock_timeout = '{WAIT}'; set local synchronous_commit = off; {_triggers(facts)}")
            triggers = self._standing(connection, [facts])[facts.oid] + _definition(facts)
            connection.execute("insert into _skylift.tables values (%s, %s, %s) on conflict (oid) do update set"
                               " generation = excluded.generation, triggers = excluded.triggers", (facts.oid, generation, triggers))
            connection.execute("commit")
        except (psycopg.errors.LockNotAvailable, psycopg.errors.InsufficientPrivilege, psycopg.errors.DeadlockDetected):
            connection.execute("rollback")
            return False
        return True

    def _standing(self, connection: psycopg.Connection, tables: Iterable[Facts]) -> dict[int, str]:
        members = [(facts.oid, oid) for facts in tables for oid in facts.oids]
        return dict(connection.execute(_STANDING, ([root for root, _ in members], [oid for _, oid in members])).fetchall())

    def touched(self, connection: psycopg.Connection, positions: Mapping[int, int]) -> set[int]:
        """Which of the tables were touched by transactions that their positions do not cover."""
        return {oid for (oid,) in connection.execute("""
            select t from unnest(%s::int8[], %s::int8[]) w(t, x)
            where exists (select from _skylift.log l where l.t = w.t and l.x >= w.x)""", (list(positions), list(positions.values())))}

    def keys(self, connection: psycopg.Connection, oid: int, position: int) -> list[Sequence[str]] | None:
        """The keys touched since, as text; None if they cannot be told."""
        found = [k for (k,) in connection.execute("select distinct k from _skylift.log where t = %s and x >= %s", (oid, position))]
        return None if None in found else found

    def prune(self, connection: psycopg.Connection) -> None:
        if _is_there(connection):
            connection.execute("""
                delete from _skylift.log using (select oid, min(position) as position from _skylift.consumers group by oid) c
                where t = c.oid and x < c.position""")
            connection.execute("delete from _skylift.tables where not exists (select from pg_class where pg_class.oid = tables.oid)")

    def remove(self, connection: psycopg.Connection) -> None:
        """Drop the triggers table by table, so that applications wait for one lock at a time. Raises Transient if one is not had."""
        functions = connection.execute("select oid::regprocedure::text from pg_proc where pronamespace = to_regnamespace('_skylift')")
        for (name,) in functions.fetchall():
            try:
                connection.execute(f"begin; set local lock_timeout = '{WAIT}'; drop function {name} cascade; commit")
            except psycopg.errors.LockNotAvailable:
                connection.execute("rollback")
                raise Transient(f"a trigger of {name} cannot be dropped: its table is in use", hint="try again when it is not") from None


def _is_there(connection: psycopg.Connection) -> bool:
    return connection.execute("select to_regclass('_skylift.log') is not null").fetchall()[0][0]


def _definition(facts: Facts) -> str:
    """What the triggers depend on besides themselves."""
    return f"/{'row' if facts.by_row else 'statement'}/{facts.key}"


def _triggers(facts: Facts) -> str:
    """The statements that make a table's trigger function and triggers, in place of those that there are."""
    function, body = f"_skylift.touch_{facts.oid}", _by_row(facts) if facts.by_row else _by_statement(facts)
    names = sql.Literal([name for name, _ in facts.key]).as_string()
    guarded = f"""
        begin
            if (select count(*) from pg_attribute where attrelid = tg_relid and attname = any ({names}::text[]) and not attisdropped)
                    = {len(facts.key)} then
                {body}
            else
                insert into _skylift.log values ({facts.oid}, {_NOW}, null);
            end if;
            return null;
        end"""
    plain = all(_PLAIN.fullmatch(declared) for _, declared in facts.key)
    settings = "" if plain else ("set datestyle = 'ISO, YMD' set timezone = 'UTC' set intervalstyle = 'iso_8601' set extra_float_digits = 1"
                                 " set bytea_output = 'hex'")
    statements = [f"drop function if exists {function} cascade",
                  f"create function {function}() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp"
                  f" {settings} as {sql.Literal(guarded).as_string()}"]
    for event in ("insert", "update", "delete"):
        new = "new table as skylift_new" if event != "delete" else ""
        old = "old table as skylift_old" if event != "insert" else ""
        each = "for each row" if facts.by_row else f"referencing {old} {new} for each statement"
        statements.append(f"create trigger _skylift_{event} after {event} on {facts.name} {each} execute function {function}()")
    always = ", ".join(f"enable always trigger _skylift_{event}" for event in ("insert", "update", "delete"))
    statements += [f"alter table only {name} {always}" for name in facts.names]
    return "; ".join(statements)


def _by_statement(facts: Facts) -> str:
    into = f"insert into _skylift.log select {facts.oid}, (select {_NOW}), "
    if not facts.key:
        return f"""
            if tg_op = 'DELETE' then {into} '{{}}'::text[] where exists (select from skylift_old);
            else {into} '{{}}'::text[] where exists (select from skylift_new);
            end if;"""
    return f"""
        if tg_op = 'INSERT' then {into} {_key(facts, "n")} from skylift_new n;
        elsif tg_op = 'DELETE' then {into} {_key(facts, "o")} from skylift_old o;
        else {into} k from (select {_key(facts, "o")} as k from skylift_old o union select {_key(facts, "n")} from skylift_new n) u;
        end if;"""


def _by_row(facts: Facts) -> str:
    old, new = (f"insert into _skylift.log values ({facts.oid}, {_NOW}, {_key(facts, row)});" for row in ("old", "new"))
    return f"""
        if tg_op <> 'INSERT' then {old} end if;
        if tg_op = 'INSERT' then {new} elsif tg_op = 'UPDATE' and {_key(facts, "old")} <> {_key(facts, "new")} then {new} end if;"""


def _key(facts: Facts, row: str) -> str:
    """As the types' output functions write it, which a cast to text does not always do (boolean, character); compared byte by byte."""
    texts = [f'concat({row}.{quote(name)}) collate "C"' for name, _ in facts.key]
    return f"array[{', '.join(texts)}]::text[]"
