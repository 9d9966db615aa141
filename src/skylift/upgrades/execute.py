"""One company's way through the packs: everything in one transaction of the target, so that all of it happens or nothing.

The tags that say which steps are done are rows of the target, written in that transaction; so is, for each table that it changed,
a mark in the ledger. A process that is killed before the commit has changed nothing, one that is killed after it finds the tags.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from skylift.connectors import TableState, Target, Transaction
from skylift.engine.columns import mark_upgraded, table_of, upgraded_as
from skylift.engine.hashing import digest_all
from skylift.errors import CopyError, NotVerified, StateError, TargetFailed, Transient
from skylift.model import Table, TargetName
from skylift.products.naming import is_called, same_name, target_name
from skylift.upgrades.pack import COMPANY, SHARED, Pack, Step, statements

TAGS = TargetName("", "_skylift_upgrades")
_COLUMNS = ("company_name", "pack", "step", "checksum", "copy_id")
_SHOWN = 300                      # characters of a statement that an error repeats


class StepFailed(CopyError):
    """A step of an upgrade pack could not be done; its company is as it was."""

    code = "StepFailed"


class Overrun(BaseException):
    """The time of a step is up; raised in its thread from outside, and not caught by a step that catches every Exception."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step as it begins (`seconds` None) or has ended; what it has done stands in the target once its company has been finished."""

    company: str
    pack: str
    step: str
    checksum: str
    statements: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Company:
    """What is upgraded: '' = what all companies share. `names`: its tables, each with its place in the target and its ledger row.

    Rows of `preserved` tables may be others' work, so that they are not what was copied says nothing.
    """

    name: str
    schema: str
    names: Mapping[str, TargetName]
    states: Mapping[TargetName, TableState]
    preserved: frozenset[TargetName] = frozenset()

    @property
    def scope(self) -> str:
        return COMPANY if self.name else SHARED


@dataclass(slots=True)
class Context:
    """What a Python step is given: SQL on the target, in its company's transaction."""

    company: str
    dialect: str                                   # duckdb, postgresql or mssql
    max_name_bytes: int                            # names of tables and columns are cut behind them
    options: Mapping[str, Any]                     # [options] of pack.toml
    _of: Company
    _transaction: Transaction
    _until: float
    statements: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def execute(self, sql: str, params: Sequence[Any] = ()) -> list[tuple]:
        """Carry out one statement; the rows of its result. Each `?` is a parameter where there are some."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise Overrun
        self.statements.append(sql)
        return self._transaction.execute(sql, params, left)

    def tables(self) -> list[str]:
        """The names (without company) of the tables that were copied and stand in the target."""
        standing = _standing(self._transaction, self._of.schema)
        return [name for name, target in self._of.names.items() if same_name(target.table) in standing]

    def table(self, name: str) -> str:
        """The quoted SQL name of a table: its whole name, or the one without app id where only one table goes by it."""
        return self._transaction.table_sql(self._of.names[self._found(name)])

    def layout(self, name: str) -> Table:
        """The columns that the table was copied with, and its key."""
        found = self._found(name)
        return table_of(found, self._of.states[self._of.names[found]].columns)

    def column(self, name: str) -> str:
        return self._transaction.column_sql(name)

    def create(self, table: Table, values: Mapping[str, str], rows_of: str) -> str:
        """A table of these columns and this key, in place of whatever stands there, and its rows; its quoted SQL name.

        `table.name`: without company. `values`: for each column an SQL expression over what `rows_of`, a FROM clause, names.
        """
        place = target_name(self.company, table.name, self.max_name_bytes)
        name = self._transaction.table_sql(place)
        columns = {column: self.column(column) for column in table.schema.names}
        if self.dialect == "mssql":                    # what its transaction makes is hidden until the commit
            self.execute(f"drop table if exists {name}")
            selected = ", ".join(f"{values[column]} as {quoted}" for column, quoted in columns.items())
            self.execute(f"select {selected} into {name} from {rows_of}")
            self.execute(f"alter table {name} add primary key ({', '.join(columns[k] for k in table.key)})")
        else:
            self._transaction.create(place, table)
            self._transaction.count(place)             # statements that make tables may be waiting for the first that needs them
            selected = ", ".join(values[column] for column in columns)
            self.execute(f"insert into {name} ({', '.join(columns.values())}) select {selected} from {rows_of}")
        return name

    def note(self, text: str) -> None:
        """Say something about what was found or done; it is kept with the step."""
        self.notes.append(text)

    def _found(self, name: str) -> str:
        whole = [known for known in self._of.names if same_name(known) == same_name(name)]
        hits = whole or [known for known in self._of.names if is_called(known, name) and not known.endswith("$ext")]
        if len(hits) != 1:
            raise StepFailed(f"{len(hits) or 'no'} table{'s' if len(hits) != 1 else ''} of {self.company or 'all companies'} "
                             f"{'is' if not hits else 'are'} called '{name}'",
                             hint=f"write the whole name of one: {', '.join(hits)}" if hits else "see skylift tables for the names")
        return hits[0]


def upgrade_company(target: Target, company: Company, packs: Sequence[Pack], copy_id: str, *, limit_s: float,
                    report: Callable[[StepDone], None] = lambda step: None, stop: Callable[[], bool] = lambda: False,
                    keep: bool = True) -> bool:
    """Carry out every step that is not done yet; False if there was none. `keep` False: everything is rolled back again (a dry run).

    Raises NotVerified if the target does not hold what was copied, StepFailed naming step and statement (nothing has changed then),
    StateError for a step that was edited after it ran.
    """
    if packs and not target.dialect:
        raise StepFailed("upgrade packs cannot change a folder of files: nothing there is undone when a step fails",
                         hint="choose DuckDB, PostgreSQL or SQL Server as the target, or leave the setting `packs` empty", code="NoSql")
    at = _Place()
    try:
        with target.transaction() as transaction:
            done = _tags(transaction, copy_id, target.dialect) if packs else {}
            todo = [(pack, step) for pack in packs for step in pack.steps
                    if step.scope == company.scope and (company.name, pack.name, step.id) not in done]
            refuse_edited(packs, done)
            if todo or not any(tagged == company.name for tagged, *_ in done):
                verify(transaction, company, stop)
            for pack, step in todo:
                if stop():
                    raise Stopped
                at.step = StepDone(company.name, pack.name, step.id, step.checksum)
                report(at.step)
                began = time.monotonic()
                at.context = context = Context(company.name, target.dialect, target.max_name_bytes, pack.options, company,
                                               transaction, began + limit_s)
                with _limited(limit_s, at):
                    _carry_out(step, context)
                report(replace(at.step, statements=tuple(context.statements), notes=tuple(context.notes), seconds=time.monotonic() - began))
                _tag(transaction, company.name, pack, step, copy_id)
            at.context = None
            if todo and keep:
                transaction.set_states(_marks(transaction, company, stop))
            if stop():
                raise Stopped
            if not keep:
                raise DryRun
    except (DryRun, Stopped):
        return not stop()
    except (TargetFailed, Transient, StateError, NotVerified):
        raise
    except (Exception, Overrun) as error:              # a pack's Python may raise anything
        if at.step is None:
            raise
        failed = _told(error, at, limit_s)
        report(replace(at.step, statements=tuple(at.context.statements if at.context else ()), seconds=0.0, error=str(failed)))
        raise failed from error
    return bool(todo)


class DryRun(Exception):
    """Ends a transaction without keeping it."""


class Stopped(Exception):
    """Likewise, because the coordinator stops."""


@dataclass(slots=True)
class _Place:
    step: StepDone | None = None
    context: Context | None = None
    overrun: bool = False


def _carry_out(step: Step, context: Context) -> None:
    if step.function:
        step.function(context)
        return
    sql = step.sql.get(context.dialect, step.sql.get(""))
    if sql is None:
        raise StepFailed(f"it has no SQL for {context.dialect}", hint=f"add a file for it; there are some for {', '.join(step.sql)}")
    for statement in statements(sql, context.table):
        context.execute(statement)


@contextmanager
def _limited(seconds: float, at: _Place) -> Iterator[None]:
    """Raise Overrun in this thread once the time is up: a step's Python may loop without any statement that could be ended."""
    lock, thread, over = threading.Lock(), threading.get_ident(), False

    def end() -> None:
        with lock:
            if not over:
                at.overrun = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Overrun))

    timer = threading.Timer(seconds + 0.5, end)        # statements end by themselves, a little earlier
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            over = True
        timer.cancel()


def _told(error: BaseException, at: _Place, limit_s: float) -> StepFailed:
    assert at.step is not None
    last = at.context.statements[-1] if at.context and at.context.statements else ""
    place = f"upgrade step {at.step.step} of pack {at.step.pack}"
    shown = f"; statement: {' '.join(last.split())[:_SHOWN]}" if last else ""
    late = at.context is not None and time.monotonic() >= at.context._until - 0.05
    if at.overrun or isinstance(error, Overrun) or late:
        return StepFailed(f"{place} took longer than {limit_s:g} s and was ended{shown}", code="StepOverrun",
                          hint="nothing has changed; mend the step, or allow more with the setting upgrade_step_s")
    text = error.message if isinstance(error, CopyError) else f"{type(error).__name__}: {error}".split("\n", 1)[0]
    hint = error.hint if isinstance(error, CopyError) else ""
    return StepFailed(f"{place}: {text}{shown}", code=error.code if isinstance(error, StepFailed) else "",
                      hint=hint or "nothing has changed; mend the step or the rows, then retry this company")


# -------------------------------------------------------------- tags and marks


def _tags(transaction: Transaction, copy_id: str, dialect: str) -> dict[tuple[str, str, str], str]:
    """(company, pack, step) -> checksum, of the steps that were done to this copy of the data."""
    if TAGS.table not in transaction.standing(""):
        text = "nvarchar(400)" if dialect == "mssql" else "varchar(400)"
        columns = ", ".join(f"{column} {text}" for column in _COLUMNS)
        transaction.execute(f"create table {transaction.table_sql(TAGS)} ({columns})")
    rows = transaction.execute(f"select {', '.join(_COLUMNS)} from {transaction.table_sql(TAGS)}")
    return {(company, pack, step): checksum for company, pack, step, checksum, copied in rows if copied == copy_id}


def _tag(transaction: Transaction, company: str, pack: Pack, step: Step, copy_id: str) -> None:
    transaction.execute(f"insert into {transaction.table_sql(TAGS)} values (?, ?, ?, ?, ?)",
                        [company, pack.name, step.id, step.checksum, copy_id])


def refuse_edited(packs: Iterable[Pack], done: Mapping[tuple[str, str, str], str]) -> None:
    """Raises StateError naming a step that is not what it was when it ran."""
    now = {(pack.name, step.id): step.checksum for pack in packs for step in pack.steps}
    for (company, pack, step), checksum in done.items():
        if now.get((pack, step), checksum) != checksum:
            raise StateError(f"upgrade step {step} of pack {pack} was edited after it ran for {company or 'all companies'}",
                             code="PackEdited", hint="put it back as it was and write what is to change as a step of its own (another id), "
"or copy everything anew (skylift reset, skylift run)")


def verify(transaction: Transaction, company: Company, stop: Callable[[], bool]) -> None:
    """Raises NotVerified for the first table whose rows are not those that its copy, or an earlier upgrade, was verified with."""
    for name, state in company.states.items():
        if name in company.preserved:
            continue
        expected, marked = str(state.digest), upgraded_as(state.columns)
        if marked is not None:
            expected = marked
            if not expected:                           # its columns are others now
                continue
        found = digest_all(_until(stop, transaction.read(name, table_of(str(name), state.columns))))
        if not stop() and str(found) != expected:
            raise NotVerified(f"{name}: the target holds {found.rows} rows with hash {found}, copied were {state.digest.rows} "
                              f"with hash {state.digest}", hint="somebody has changed the target: run the replication in full")


def _marks(transaction: Transaction, company: Company, stop: Callable[[], bool]) -> dict[TargetName, TableState]:
    """The ledger rows of the tables that hold something else now than was copied."""
    marks: dict[TargetName, TableState] = {}
    standing = _standing(transaction, company.schema)
    for name, state in company.states.items():
        table = table_of(str(name), state.columns)
        columns = {same_name(transaction.column_sql(column)) for column in table.schema.names}
        if not columns <= standing.get(same_name(name.table), set()):
            marks[name] = replace(state, columns=mark_upgraded(state.columns, ""))
            continue
        if name in company.preserved:
            continue
        found = digest_all(_until(stop, transaction.read(name, table)))
        if found != state.digest:
            marks[name] = replace(state, columns=mark_upgraded(state.columns, str(found)))
    return marks


def _standing(transaction: Transaction, schema: str) -> dict[str, set[str]]:
    """The tables that stand there and their columns as SQL has them, in a spelling that is the same on servers that keep no capitals."""
    return {same_name(table): {same_name(transaction.column_sql(column)) for column in columns}
            for table, columns in transaction.standing(schema).items()}


def _until(stop: Callable[[], bool], batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        if stop():
            return
        yield batch
