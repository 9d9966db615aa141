"""The T-SQL that makes, replaces and finishes a target's tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from skylift.connectors.sql import GIVE_WAY, fit, not_replaced, quote
from skylift.connectors.sqlserver import DEFAULT_SCHEMA, MAX_NAME_BYTES, Session, full_name, literal
from skylift.connectors.sqlserver_bulk import column_type
from skylift.connectors.sqlserver_types import MAX_LENGTH, spelt
from skylift.errors import CopyError, ValueRefused
from skylift.model import Table, TargetName

KEY_BYTES = 900                    # of a clustered index; one that is not clustered holds 1,700 (SQL Server 2016 and later)

TRIGGER = "_skylift_lock"          # how the name of each trigger begins that locks a table (sqlserver_lock.py)

# What hangs on a table and would be lost with it, in words; indexes that are not its primary key too.
_STANDING = f"""
select 'the foreign key ' + name from sys.foreign_keys where {{id}} in (parent_object_id, referenced_object_id)
union all select 'the trigger ' + name from sys.triggers where parent_id = {{id}} and name not like '{TRIGGER.replace("_", "[_]")}%'
union all select 'the index ' + name from sys.indexes where object_id = {{id}} and index_id > 0 and is_primary_key = 0"""
_BOUND = """
union all select 'the schema-bound ' + object_name(referencing_id) from sys.sql_expression_dependencies
where referenced_id = {id} and is_schema_bound_reference = 1 and referencing_id <> {id}
union all select 'its system versioning' from sys.tables where object_id = {id} and temporal_type <> 0
union all select 'the right ' + permission_name collate database_default + ' of ' + user_name(grantee_principal_id)
from sys.database_permissions where class = 1 and major_id = {id}"""


def table_sql(name: TargetName) -> str:
    return full_name(name.schema, name.table)


def column_name(name: str) -> str:
    """What a column is called in the target: its name, cut where it is too long, the same way each time."""
    return fit(name, MAX_NAME_BYTES)


def column_list(columns: Sequence[str]) -> str:
    return ", ".join(quote(column_name(column)) for column in columns)


def column_types(table: Table, genuine: bool = True) -> dict[str, str]:
    """How the columns of a new table are declared. Raises ValueRefused for a type that has no exact counterpart."""
    types = {}
    for field, declared in table.declared():
        length = (field.metadata or {}).get(MAX_LENGTH)
        kind = column_type(field, int(length) if length else None, field.name in table.key, genuine)
        if kind is None:
            raise ValueRefused(f"{table.path}.{field.name}: SQL Server has no exact type for {declared or field.type}")
        types[column_name(field.name)] = kind
    return types


def create_sql(name: TargetName, table: Table, genuine: bool = True) -> str:
    """An empty table, without its key."""
    key = {column_name(column) for column in table.key}
    columns = [f"{quote(column)} {kind} {'not null' if column in key else 'null'}" for column, kind in column_types(table, genuine).items()]
    return f"create table {table_sql(name)} ({', '.join(columns)})"


def key_sql(name: TargetName, declared: Mapping[str, str], columns: Sequence[str], constraint: str) -> str:
    """A primary key; clustered where the longest possible key fits such an index. `declared`: the columns' types."""
    # Some servers keep no capitals.
    clustered = sum(_index_bytes(declared.get(column) or declared[column.lower()]) for column in columns) <= KEY_BYTES
    return (f"alter table {table_sql(name)} add constraint {quote(fit(constraint, MAX_NAME_BYTES))} primary key "
            f"{'clustered' if clustered else 'nonclustered'} ({', '.join(map(quote, columns))})")


def _index_bytes(declared: str) -> int:
    kind, _, length = declared.rstrip(")").partition("(")
    if kind in ("nvarchar", "nchar", "varbinary", "binary", "varchar", "char"):
        return (1 << 20 if length == "max" else int(length)) * (2 if kind[0] == "n" else 1)
    return 17                       # the longest of the others


def declared_types(session: Session, name: TargetName) -> dict[str, str]:
    """How the columns that stand there are declared, by name; empty if there is no such table."""
    rows = session.run(
        "select c.name, t.name, cast(c.max_length as int), cast(c.precision as int), cast(c.scale as int) from sys.tables o "
        "join sys.columns c on c.object_id = o.object_id join sys.types t on t.user_type_id = c.system_type_id "
        "where o.schema_id = schema_id(?) and o.name = ? order by c.column_id", name.schema or DEFAULT_SCHEMA, name.table)
    return {column: spelt(*rest) for column, *rest in rows}


def swap(session: Session, builds: Mapping[TargetName, TargetName], genuine: bool, more: Sequence[str] = ()) -> None:
    """Put each table (name -> build) in the place of the one that stands there. Raises CopyError naming what would be lost with that.

    `more`: statements for the tables in their places, in the same round trip.
    """
    if not builds:
        return
    standing, statements = give_way(session, list(builds), genuine), []
    for name, build in builds.items():
        if name in standing:
            statements.append(f"drop table {table_sql(name)}")
        statements.append(f"exec sp_rename {literal(table_sql(build))}, {literal(name.table)}, N'OBJECT'")
    session.run("; ".join([*statements, *more]), table=", ".join(map(str, builds)) if len(builds) < 3 else "")


def give_way(session: Session, names: Sequence[TargetName], genuine: bool) -> set[TargetName]:
    """Which of these tables are there, to be dropped. Raises CopyError naming what would be lost with one."""
    found = set()
    for name, lost in obstacles(session, names, genuine):
        found.add(name)
        if lost:
            raise CopyError(not_replaced(str(name), lost), hint=GIVE_WAY)
    return found


def obstacles(session: Session, names: Sequence[TargetName], genuine: bool) -> Iterator[tuple[TargetName, list[str]]]:
    """Those of these tables that are there, each with what would be lost if it were dropped."""
    standing = _standing(session, names)
    for name in names:
        if (number := standing.get((name.schema or DEFAULT_SCHEMA).casefold() + "." + name.table.casefold())) is not None:
            yield name, [what for (what,) in session.run((_STANDING + (_BOUND if genuine else "")).format(id=number))]


def _standing(session: Session, names: Sequence[TargetName]) -> dict[str, int]:
    """Object ids of those tables that are there, by schema and name in lower case."""
    wanted = " or ".join(["o.schema_id = schema_id(?) and o.name = ?"] * len(names))
    rows = session.run(f"select schema_name(o.schema_id), o.name, o.object_id from sys.tables o where {wanted}",
                       *(part for name in names for part in (name.schema or DEFAULT_SCHEMA, name.table)))
    return {f"{schema.casefold()}.{name.casefold()}": object_id for schema, name, object_id in rows}
