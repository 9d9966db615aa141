"""SQL Server: a trigger on each replicated table that refuses what other logins write.

The table dbo._skylift_locked is the lock, and holds skylift's login: a target that finds it when it opens gives every table that it makes
or replaces such a trigger, in the same transaction. A right that is denied would not do: it does not bind the owner of a table, and
would have to be taken back from each user alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from contextlib import closing

from sqlalchemy.engine import URL

from skylift.connectors.sql import quote
from skylift.connectors.sqlserver import DEFAULT_SCHEMA, Session, full_name, literal
from skylift.connectors.sqlserver_ddl import TRIGGER, table_sql
from skylift.errors import CopyError, SetupError
from skylift.model import TargetName

_AT_ONCE = 100                    # triggers that one round trip makes or drops
_MARK = "dbo._skylift_locked"
_IS_LOCK = f"name like '{TRIGGER.replace('_', '[_]')}%'"
_OPEN = f"""select schema_name(o.schema_id), o.name from sys.tables o
where not exists (select 1 from sys.triggers t where t.parent_id = o.object_id and t.{_IS_LOCK})"""
_LOCKS = f"select schema_name(o.schema_id), t.name from sys.triggers t join sys.tables o on o.object_id = t.parent_id where t.{_IS_LOCK}"


def locked_for(session: Session) -> str:
    """The login that alone may write, '' = nobody is held off."""
    if session.run("select 1 from sys.tables where schema_id = schema_id('dbo') and name = '_skylift_locked'"):
        for (login,) in session.run(f"select login from {_MARK}"):
            return str(login)
    return ""


def trigger_sql(names: Iterable[TargetName], login: str) -> list[str]:
    """For tables that have just been made. The session's first login counts, whomever it acts as."""
    statements = []
    for name in names:
        told = f"skylift is migrating to table {name}: nobody else writes to it until the migration has ended"
        trigger = full_name(name.schema, f"{TRIGGER}_{secrets.token_hex(6)}")            # its name is one of the schema's
        statements.append(
            f"create trigger {trigger} on {table_sql(name)} after insert, update, delete as begin set nocount on; "
            f"if original_login() <> {literal(login)} begin; throw 50000, {literal(told)}, 1; end end")
    return [f"exec({literal(statement)})" for statement in statements]      # each has to be alone in its batch


def lock(url: URL) -> None:
    with closing(Session(url)) as session:
        try:
            session.run("begin transaction")
            [(login,)] = session.run("select original_login()")
            if (before := locked_for(session)) != login:
                if before:
                    _unlock(session)
                session.run(f"create table {_MARK} (login nvarchar(128) not null)")
                session.run(f"insert into {_MARK} values (?)", login)
            if session.run("select 1 from sys.tables where schema_id = schema_id('dbo') and name = '_skylift_tables'"):
                _run(session, trigger_sql(_open(session), login))
            session.run("commit transaction")
        except CopyError as error:
            raise SetupError(error.message, hint=error.hint, code=error.code) from None


def _open(session: Session) -> list[TargetName]:
    """The replicated tables that stand there without a lock. Their names are compared here: both columns have collations of their own."""
    ours = {((schema or DEFAULT_SCHEMA).casefold(), table.casefold())
            for schema, table in session.run("select schema_name, table_name from dbo._skylift_tables")}
    return [TargetName(schema, table) for schema, table in session.run(_OPEN) if (schema.casefold(), table.casefold()) in ours]


def unlock(url: URL) -> None:
    with closing(Session(url)) as session:
        session.run("begin transaction")
        _unlock(session)
        session.run("commit transaction")


def _unlock(session: Session) -> None:
    _run(session, [f"drop trigger {quote(schema)}.{quote(name)}" for schema, name in session.run(_LOCKS)])
    session.run(f"drop table if exists {_MARK}")


def _run(session: Session, statements: list[str]) -> None:
    for begin in range(0, len(statements), _AT_ONCE):
        session.run("; ".join(statements[begin:begin + _AT_ONCE]))
