"""PostgreSQL: a trigger on each replicated table that refuses what other users write, all calling one function.

The function is the lock: a target that finds it when it opens gives every table that it makes or replaces such a trigger, in the same
transaction (postgres_target.py), and dropping it drops them all. Its owner, superusers included, has to be another user to be refused.
"""

from __future__ import annotations

from collections.abc import Iterable

import psycopg
from psycopg import sql
from sqlalchemy.engine import URL

from skylift.connectors.postgres import DEFAULT_SCHEMA, Connection, connect, told, where
from skylift.connectors.postgres_ddl import table_sql
from skylift.connectors.sql import quote
from skylift.errors import SetupError
from skylift.model import TargetName

TRIGGER = "_skylift_lock"
FUNCTION = "public._skylift_refuse_writes"

_FUNCTION = f"""create or replace function {FUNCTION}() returns trigger language plpgsql set search_path = pg_catalog as $$
begin
    if current_user <> {{user}} then
        raise exception 'skylift is migrating to table %.%: nobody else writes to it until the migration has ended', tg_table_schema,
            tg_table_name using errcode = 'object_not_in_prerequisite_state',
            hint = 'work in the source; skylift complete, disable or abandon lifts the lock';
    end if;
    return null;
end $$"""
_ON_ALL = f"""do $$ declare t record; begin
    for t in select n.nspname, c.relname from public._skylift_tables s
            join pg_namespace n on n.nspname = coalesce(nullif(s.schema_name, ''), '{DEFAULT_SCHEMA}')
            join pg_class c on c.relnamespace = n.oid and c.relname = s.table_name and c.relkind = 'r'
        where not exists (select from pg_trigger where tgrelid = c.oid and tgname = '{TRIGGER}') loop
        execute format('create trigger {TRIGGER} before insert or update or delete or truncate on %I.%I execute function {FUNCTION}()',
            t.nspname, t.relname);
    end loop;
end $$"""


def is_locked(connection: Connection) -> bool:
    return connection.execute("select to_regprocedure(%s)", [f"{FUNCTION}()"]).fetchall() != [(None,)]


def trigger_sql(names: Iterable[TargetName]) -> list[str]:
    """For tables that have just been made."""
    return [f"create trigger {TRIGGER} before insert or update or delete or truncate on {table_sql(name)} execute function {FUNCTION}()"
            for name in names]


def lock(url: URL) -> None:
    with connect(url) as connection, told(url), connection.transaction():
        [(user, there)] = connection.execute("select current_user, to_regclass('public._skylift_tables')").fetchall()
        try:
            connection.execute(_FUNCTION.format(user=sql.Literal(user).as_string(None)))
        except psycopg.errors.InsufficientPrivilege:
            raise SetupError(f"{where(url)}: user '{user}' may not make a function in the schema public, which locks the target",
                             hint=f"grant create on schema public to {quote(user)}", code="Permission") from None
        if there:
            connection.execute(_ON_ALL)


def unlock(url: URL) -> None:
    with connect(url) as connection, told(url):
        connection.execute(f"drop function if exists {FUNCTION}() cascade")
