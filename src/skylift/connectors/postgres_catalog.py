"""What a PostgreSQL source says about its tables, in one query.

Ordinary and partitioned tables are copied, a partitioned one through its parent. Left out are views, foreign tables, temporary tables,
tables without columns, what belongs to an extension or to the database itself, and whatever is named `_skylift*`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import psycopg
import pyarrow as pa

from skylift.connectors.postgres import DEFAULT_SCHEMA, PG_BINARY, arrow_type
from skylift.connectors.sql import quote
from skylift.errors import SetupError
from skylift.model import ARROW, Table

# Types whose binary form is the same on every server: built-in, without object ids, locale or libraries in it. Arrays of them too.
_SAME_EVERYWHERE = set(re.findall(r"[^,\s][^,]*", """
boolean,smallint,integer,bigint,real,double precision,numeric,text,character varying,character,"char",name,bytea,date,uuid,
time without time zone,time with time zone,timestamp without time zone,timestamp with time zone,interval,json,jsonb,inet,cidr,macaddr,
macaddr8,bit,bit varying,point,line,lseg,box,path,polygon,circle,int4range,int8range,numrange,tsrange,tstzrange,daterange,tsvector,
pg_lsn"""))
_MODIFIER = re.compile(r"\(-?\d+(,-?\d+)?\)|\[\]")

# A domain moves as what it is made of. A key is the primary key, or else the narrowest unique index without a nullable column.
# `relation` changes when rows change without a statement that any feed could tell of: the table is another one or was rewritten
# (truncate, vacuum full, alter table), a partition came or went, an upgrade of the operating system sorts its text keys otherwise.
_QUERY = """
with recursive domains(oid, base, modifier) as (
    select oid, typbasetype, typtypmod from pg_type where typtype = 'd'
    union all select d.oid, t.typbasetype, case when d.modifier = -1 then t.typtypmod else d.modifier end
    from domains d join pg_type t on t.oid = d.base where t.typtype = 'd'
), keys as (
    select distinct on (i.indrelid) i.indrelid, i.indisprimary, i.indisreplident, (i.indkey::int2[])[0:i.indnkeyatts - 1] as columns
    from pg_index i where i.indisunique and i.indisvalid and i.indislive and i.indpred is null and i.indexprs is null and not exists (
        select from pg_attribute a where a.attrelid = i.indrelid and not a.attnotnull
            and a.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
    order by i.indrelid, i.indisprimary desc, i.indisreplident desc, i.indnkeyatts, i.indexrelid
), chosen as (
    select c.*, n.nspname, k.columns as key, k.indisprimary, k.indisreplident
    from pg_class c join pg_namespace n on n.oid = c.relnamespace left join keys k on k.indrelid = c.oid
    where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence <> 't' and c.relname not like '\\_skylift%%'
        and n.nspname not like 'pg\\_%%' and n.nspname not like '\\_skylift%%' and n.nspname <> 'information_schema'
        and not exists (select from pg_depend where classid = 'pg_class'::regclass and objid = c.oid and deptype = 'e')
        and (%(names)s::text[] is null or (n.nspname, c.relname) in (select * from unnest(%(namespaces)s::text[], %(names)s::text[])))
)
select c.oid::int8, c.nspname, c.relname, c.relkind = 'p', pg_has_role(c.relowner, 'usage'),
    c.key is not null and p.identified and (c.relkind = 'p' or c.relreplident <> 'i' or c.indisreplident),
    p.oids, p.names, p.permanent, p.local, exists (select from pg_inherits where c.oid in (inhrelid, inhparent)) or exists
        (select from pg_subscription_rel where srrelid = any (p.oids)) as by_row,
    md5(concat_ws('/', p.files, (select string_agg(case a.attcollation when 0 then '' when 100 then %(default_collation)s
        else concat(a.attcollation, pg_collation_actual_version(a.attcollation)) end, ',' order by a.attnum)
        from pg_attribute a where a.attrelid = c.oid and a.attnum = any (c.key)))), p.files,
    case when row_security_active(c.oid) then 'BYPASSRLS'
        when not has_schema_privilege(c.relnamespace, 'usage') then 'USAGE on schema ' || quote_ident(c.nspname)
        when not (select bool_and(has_column_privilege(c.oid, attnum, 'select')) from pg_attribute
            where attrelid = c.oid and attnum > 0 and not attisdropped)
        then format('SELECT on table %%I.%%I', c.nspname, c.relname) else '' end,
    columns.names, columns.types,
    array(select a.attname from unnest(c.key) with ordinality k(number, place) join pg_attribute a
        on a.attrelid = c.oid and a.attnum = k.number order by k.place)::text[]
from chosen c, lateral (
    select array_agg(l.oid::int8 order by l.oid) as oids,
        array_agg(format('%%I.%%I', n.nspname, l.relname) order by l.oid) as names,
        bool_and(l.relkind = 'p' or l.relreplident = 'f' or l.relreplident = 'i' and l.oid = c.oid or l.relreplident = 'd'
            and c.indisprimary and exists (select from pg_index where indrelid = l.oid and indisprimary)) as identified,
        bool_and(l.relpersistence = 'p') as permanent, bool_and(l.relkind <> 'f') as local,
        string_agg(concat(l.oid, ':', pg_relation_filenode(l.oid)), ',' order by l.oid) as files
    from pg_class l join pg_namespace n on n.oid = l.relnamespace
    where l.oid = c.oid or c.relkind = 'p' and l.oid in (select relid from pg_partition_tree(c.oid))
) p, lateral (
    select array_agg(a.attname::text order by a.attnum) as names,
        array_agg(format_type(coalesce(d.base, a.atttypid), case when a.atttypmod = -1 then coalesce(d.modifier, -1) else a.atttypmod end)
            order by a.attnum) as types
    from pg_attribute a left join domains d on d.oid = a.atttypid and not exists
        (select from pg_type t where t.oid = d.base and t.typtype = 'd')
    where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
) columns
where columns.names is not null order by c.nspname, c.relname
"""
# The same as `files`, now. What a transaction has locked by reading it stays as it was read.
FILES = """select string_agg(concat(l.oid, ':', pg_relation_filenode(l.oid)), ',' order by l.oid) from pg_class l
    where l.oid in (select %(oid)s::oid union select relid from pg_partition_tree(%(oid)s::oid::regclass))"""
# The version of the default collation; whether the server can tell it directly.
_DEFAULT_COLLATION = {
    True: "select concat(oid, pg_database_collation_actual_version(oid)) from pg_database where datname = current_database()",
    False: """select concat(d.oid, max(pg_collation_actual_version(c.oid))) from pg_database d left join pg_collation c
        on c.collname = d.datcollate and c.collprovider = 'c' where d.datname = current_database() group by d.oid"""}


@dataclass(frozen=True, slots=True)
class Facts:
    """What the engine need not know of a table."""

    oid: int
    oids: tuple[int, ...]           # with those of all partitions
    partitioned: bool
    owned: bool                     # by a role that this one belongs to
    identified: bool                # WAL names the key of every updated and deleted row (replica identity)
    permanent: bool                 # neither unlogged itself nor in a partition
    local: bool                     # no partition is a foreign table
    by_row: bool                    # statements on other tables touch its rows: inheritance, logical replication into it
    relation: str                   # another value: rows may have changed without a statement
    files: str                      # of the table and its partitions
    lacking: str                    # a right without which its rows cannot be read
    key: tuple[tuple[str, str], ...]    # names and declared types
    name: str                       # as SQL spells it
    names: tuple[str, ...]          # of it and of all partitions
    sql: str                        # what a query reads exactly its rows from


def read_catalogue(connection: psycopg.Connection, only: Iterable[Table] | None = None) -> list[tuple[Table, Facts]]:
    """Every table that is copied, or those of them that are asked for. Raises SetupError if two have one name, psycopg.Error."""
    wanted = None if only is None else [(table.namespace or DEFAULT_SCHEMA, table.name) for table in only]
    [(collation,)] = connection.execute(_DEFAULT_COLLATION[connection.info.server_version >= 150000]).fetchall()
    values = {"default_collation": collation, "namespaces": [n for n, _ in wanted] if wanted is not None else None,
              "names": [n for _, n in wanted] if wanted is not None else None}
    found: dict[str, tuple[Table, Facts]] = {}
    for (oid, namespace, name, partitioned, owned, identified, oids, spelled, permanent, local, by_row, relation, files, lacking, columns,
         types, names) in connection.execute(_QUERY, values):
        table = Table(name, pa.schema([pa.field(c, arrow_type(t)) for c, t in zip(columns, types, strict=True)]), tuple(names),
                      source_types=tuple(types), namespace="" if namespace == DEFAULT_SCHEMA else namespace,
                      format=PG_BINARY if all(_MODIFIER.sub("", t) in _SAME_EVERYWHERE for t in types) else ARROW)
        if table.path in found:
            raise SetupError(f"two tables are called {table.path}: one is '{name}' in schema '{namespace}'", hint="rename one of them")
        declared = dict(zip(columns, types, strict=True))
        full = f"{quote(namespace)}.{quote(name)}"
        found[table.path] = table, Facts(oid, tuple(oids), partitioned, owned, identified, permanent, local, by_row or partitioned,
                                         relation, files, lacking, tuple((k, declared[k]) for k in names), full, tuple(spelled),
                                         full if partitioned else f"only {full}")
    return list(found.values())
