"""The foreign keys that a database declares, as its catalogue tells them; a lake declares none."""

from __future__ import annotations

from dataclasses import dataclass

from skylift.connectors.asking import Asker

# Name, namespace and table, column, namespace and table referred to, column there ('' = that of its primary key), position.
# A namespace is '' where it is the default one. What refers to another database is left out.
_DECLARED = {
    "sqlite": """
select cast(f.id as text), '', m.name, f."from", '', f."table", coalesce(f."to", ''), f.seq
from sqlite_master m join pragma_foreign_key_list(m.name) f where m.type = 'table'""",
    "duckdb": """
select c.constraint_name, n.namespace, c.table_name, c.constraint_column_names[i], n.namespace, c.referenced_table,
    c.referenced_column_names[i], i
from duckdb_constraints() c, lateral (select case c.schema_name when 'main' then '' else c.schema_name end as namespace) n,
    lateral (select unnest(range(1, len(c.constraint_column_names) + 1)) as i) p
where c.constraint_type = 'FOREIGN KEY' and c.database_name = current_database()""",
    "postgresql": """
select c.conname::text, case n.nspname when 'public' then '' else n.nspname::text end, t.relname::text, a.attname::text,
    case rn.nspname when 'public' then '' else rn.nspname::text end, r.relname::text, ra.attname::text, k.i
from pg_constraint c join pg_class t on t.oid = c.conrelid join pg_namespace n on n.oid = t.relnamespace
    join pg_class r on r.oid = c.confrelid join pg_namespace rn on rn.oid = r.relnamespace
    cross join lateral unnest(c.conkey, c.confkey) with ordinality k(a, ra, i)
    join pg_attribute a on a.attrelid = t.oid and a.attnum = k.a join pg_attribute ra on ra.attrelid = r.oid and ra.attnum = k.ra
where c.contype = 'f' and c.conparentid = 0""",
    "mysql": """
select constraint_name, '' as namespace, table_name, column_name, '' as referred, referenced_table_name, referenced_column_name,
    ordinal_position
from information_schema.key_column_usage
where table_schema = database() and referenced_table_schema = table_schema""",
    "mssql": """
select f.name as a, case s.name when 'dbo' then '' else s.name end as b, t.name as c, pc.name as d,
    case rs.name when 'dbo' then '' else rs.name end as e, r.name as f, rc.name as g, k.constraint_column_id as h
from sys.foreign_keys f join sys.foreign_key_columns k on k.constraint_object_id = f.object_id
    join sys.tables t on t.object_id = f.parent_object_id join sys.schemas s on s.schema_id = t.schema_id
    join sys.tables r on r.object_id = f.referenced_object_id join sys.schemas rs on rs.schema_id = r.schema_id
    join sys.columns pc on pc.object_id = t.object_id and pc.column_id = k.parent_column_id
    join sys.columns rc on rc.object_id = r.object_id and rc.column_id = k.referenced_column_id""",
}


@dataclass(frozen=True, slots=True)
class Reference:
    """Rows of one table refer to rows of another one."""

    columns: tuple[str, ...]
    namespace: str                # of the table that is referred to
    table: str
    referred: tuple[str, ...]     # its columns; '' = those of its primary key


def declared_references(asker: Asker, limit_s: float) -> dict[tuple[str, str], list[Reference]]:
    """By namespace and name of the referring table, in lower case: SQLite and MySQL spell them in a declaration as they like."""
    rows = asker.ask(_DECLARED[asker.dialect], limit_s)
    found: dict[tuple, list[tuple]] = {}
    for name, namespace, table, column, other_namespace, other, referred, position in rows:
        found.setdefault((namespace, table.lower(), name, other_namespace, other), []).append((position, column, referred))
    references: dict[tuple[str, str], list[Reference]] = {}
    for (namespace, table, _, other_namespace, other), columns in sorted(found.items()):
        columns.sort()
        references.setdefault((namespace.lower(), table), []).append(Reference(
            tuple(column for _, column, _ in columns), other_namespace, other, tuple(referred for *_, referred in columns)))
    return references
