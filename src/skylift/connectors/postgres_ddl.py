"""The SQL that makes, replaces and finishes a target's tables in PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import psycopg
from psycopg import sql

from skylift.connectors.postgres import DEFAULT_SCHEMA, column_name
from skylift.connectors.postgres_load import column_type
from skylift.connectors.sql import GIVE_WAY, not_replaced, quote
from skylift.errors import CopyError, ValueRefused
from skylift.model import ARROW, Table, TargetName

# What stands at a name: what forbids to drop it, in words, and the statements that bring back what is dropped with it.
_STANDING = """
select n.nspname, c.relname, array(
    select 'the view ' || r.ev_class::regclass from pg_depend d join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
        where d.refclassid = 'pg_class'::regclass and d.refobjid = c.oid and r.ev_class <> c.oid
    union select 'the rule ' || rulename from pg_rewrite where ev_class = c.oid and c.relkind = 'r'
    union select 'the foreign key ' || conname || ' of ' || conrelid::regclass from pg_constraint
        where contype = 'f' and c.oid in (conrelid, confrelid)
    union select 'the trigger ' || tgname from pg_trigger where tgrelid = c.oid and not tgisinternal and tgname <> '_skylift_lock'
    union select 'the policy ' || polname from pg_policy where polrelid = c.oid
    union select 'the publication ' || pubname from pg_publication_rel p join pg_publication b on b.oid = p.prpubid where p.prrelid = c.oid
    union select 'inheritance, with ' || (case c.oid when inhrelid then inhparent else inhrelid end)::regclass from pg_inherits
        where c.oid in (inhrelid, inhparent)
    union select 'its kind (it is no ordinary table)' where c.relkind <> 'r'
    order by 1
), array(
    select pg_get_indexdef(indexrelid) from pg_index where indrelid = c.oid and not exists
        (select from pg_constraint where conindid = indexrelid and contype in ('p', 'u', 'x'))
    union all select format('alter table %%I.%%I add constraint %%I %%s', n.nspname, c.relname, conname, pg_get_constraintdef(oid))
        from pg_constraint where conrelid = c.oid and contype in ('u', 'x', 'c')
    union all select format('grant %%s on %%I.%%I to %%s', privilege_type, n.nspname, c.relname, case grantee when 0 then 'public'
        else quote_ident(pg_get_userbyid(grantee)) end) || case when is_grantable then ' with grant option' else '' end
        from aclexplode(c.relacl) where grantee <> c.relowner
    union all select format('grant %%s (%%I) on %%I.%%I to %%s', privilege_type, attname, n.nspname, c.relname, case grantee
        when 0 then 'public' else quote_ident(pg_get_userbyid(grantee)) end) from pg_attribute, aclexplode(attacl) where attrelid = c.oid
)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where (n.nspname, c.relname) in (select * from unnest(%s::text[], %s::text[]))
"""


def table_sql(name: TargetName) -> str:
    return f"{quote(name.schema or DEFAULT_SCHEMA)}.{quote(name.table)}"


def column_list(columns: Iterable[str]) -> str:
    """Source names of columns as PostgreSQL has them."""
    return ", ".join(quote(column_name(column)) for column in columns)


def declares(table: Table) -> dict[str, str]:
    """How the columns are declared, by their names here. Raises ValueRefused for a type that has no exact counterpart."""
    kinds = {}
    for field, declared in table.declared():
        kind = declared if table.format != ARROW else column_type(field.type)
        if kind is None:
            raise ValueRefused(f"{table.path}.{field.name}: PostgreSQL has no exact type for {declared or field.type}")
        kinds[column_name(field.name)] = kind
    return kinds


def create_sql(name: TargetName, table: Table) -> list[str]:
    """An empty table with the columns' types, or in a native format with those that they have in the source.

    A name that had to be cut keeps the true one as a comment. Raises ValueRefused for a type that has no exact counterpart.
    """
    kinds, columns, comments = declares(table), [], []
    for field in table.schema:
        column = column_name(field.name)
        columns.append(f"{quote(column)} {kinds[column]}{' not null' if field.name in table.key else ''}")
        if column != field.name:
            comments.append(f"comment on column {table_sql(name)}.{quote(column)} is {_literal(field.name)}")
    if name.table not in table.path:
        comments.append(f"comment on table {table_sql(name)} is {_literal(table.path)}")
    return [f"create table {table_sql(name)} ({', '.join(columns)})", *comments]


def key_sql(name: TargetName, columns: Sequence[str]) -> str:
    """`columns` as PostgreSQL has them."""
    return f"alter table {table_sql(name)} add primary key ({', '.join(map(quote, columns))})"


def missing_schemas(connection: psycopg.Connection, names: Collection[TargetName]) -> list[str]:
    """Of these tables' schemas those that are to be created. Raises CopyError naming the right that the user lacks."""
    found = _schemas(connection, names)
    for text, grant in lacking_schemas(found):
        raise CopyError(text, hint=grant)
    return [schema for schema, missing, *_ in found if missing]


def _schemas(connection: psycopg.Connection, names: Collection[TargetName]) -> list[tuple]:
    wanted = sorted({name.schema or DEFAULT_SCHEMA for name in names})
    return connection.execute(
        "select s, n.oid is null, case when n.oid is null then has_database_privilege(current_database(), 'create') "
        "else has_schema_privilege(n.oid, 'create') end, current_database(), current_user "
        "from unnest(%s::text[]) s left join pg_namespace n on nspname = s", [wanted]).fetchall()


def lacking(connection: psycopg.Connection, names: Collection[TargetName]) -> list[tuple[str, str]]:
    """Which rights the user lacks to make these tables, in words, each with the statement that grants it."""
    return list(dict.fromkeys(lacking_schemas(_schemas(connection, names))))


def lacking_schemas(found: Iterable[tuple]) -> Iterator[tuple[str, str]]:
    for schema, missing, allowed, database, user in found:
        if not allowed:
            what = f"database {quote(database)}" if missing else f"schema {quote(schema)}"
            yield f"user '{user}' lacks the right CREATE on {what}", f"grant create on {what} to {quote(user)}"


def give_way(connection: psycopg.Connection, names: Sequence[TargetName]) -> list[str]:
    """Make sure that what stands at these names may be dropped; the statements that bring back what goes with it.

    Grants, further indexes and constraints come back. Raises CopyError naming what else hangs on a table and would be lost.
    """
    found = standing(connection, names)
    for schema, table, obstacles, _ in found:
        if obstacles:
            raise CopyError(not_replaced(f"{schema}.{table}", obstacles), hint=GIVE_WAY)
    return [statement for *_, restoring in found for statement in restoring]


def standing(connection: psycopg.Connection, names: Sequence[TargetName]) -> list[tuple[str, str, list[str], list[str]]]:
    """What stands at these names: schema, table, what forbids to drop it, what brings back what is dropped with it."""
    return connection.execute(_STANDING, [[name.schema or DEFAULT_SCHEMA for name in names], [name.table for name in names]]).fetchall()


def _literal(text: str) -> str:
    """For comments, which take no bound value."""
    return sql.Literal(text).as_string(None)
