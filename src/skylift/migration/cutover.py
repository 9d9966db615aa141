"""What has to be true before a migration is completed and only source and target can tell: nothing has changed since, all is there.

Where the source's feed can say cheaply that a table has not changed, it is asked; where it cannot, the table is read once more and its
rows are hashed. Where no upgrade has changed the target's rows, they are read back and compared with what was verified when they came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from skylift.connectors import SWEEP, Batches, Source, TableState, Target, opened
from skylift.engine.columns import schema_change, table_of
from skylift.engine.hashing import digest_all
from skylift.engine.preserve import overlap
from skylift.engine.verify import source_readers
from skylift.errors import CopyError, StateError
from skylift.losses import Losses
from skylift.migration.scope import list_tables
from skylift.migration.service import Service
from skylift.migration.verification import taking_part
from skylift.model import ARROW, UNTOLD, CopyTask, Digest, Reading, Table, TargetName, Watermark
from skylift.products.registry import find_product
from skylift.runs import MigrationState

States = Mapping[TargetName, TableState]
_SINCE = ("has changed in the source since", "have changed in the source since")


def refuse_unproven(service: Service, row: Mapping[str, Any], upgraded: bool, reading: Reading = UNTOLD) -> None:
    """Raises StateError naming the tables that are not there, have changed in the source, or are not what was copied.

    `row`: the migration's, as it was when the cheap conditions held; `upgraded`: whether its rows have been. What was left of copies that
    never ended is dropped.
    """
    product = find_product(row["product_id"])
    sides = opened(service.box.open(row["source_url"]), service.box.open(row["target_url"]), Losses(service.settings.accept))
    with sides as (source, open_target), ThreadPoolExecutor(service.settings.workers, "cut-over") as pool:
        found = product.discover(source)
        target = open_target()
        tasks = taking_part(service, found, source, target)
        states = target.states()
        _refuse([task for task in tasks if task.target not in states], ("is not in the target", "are not in the target"),
                "TablesNotCopied", "copy them again (skylift run), or leave them out (skylift tables --exclude NAME)")
        # A migration that is disabled has no feed any more, and must not get one again.
        fed = row["state"] is not MigrationState.DISABLED
        unsure = _unsure(tasks, states, source, str(row["consumer"])) if fed else tasks
        reading.begin(sum(states[task.target].digest.rows for task in [*unsure, *([] if upgraded else tasks)]))
        behind = _changed(tasks, unsure, states, source)
        behind |= _those_not(unsure, pool, lambda task: _same_source(task, states[task.target], source, target, reading))
        _refuse([task for task in tasks if task.target in behind], _SINCE, "FeedLag",
                "what has changed there will not arrive: the data is upgraded. Force the completion if that does not matter"
                if upgraded else "let nobody work in the source, and run the replication once more (skylift run)")
        if not upgraded:
            differing = _those_not(tasks, pool, lambda task: _same_target(task, states[task.target], source, target, reading))
            what = ("holds other rows than were copied", "hold other rows than were copied")
            _refuse([task for task in tasks if task.target in differing], what, "NotVerified",
                    "skylift verify names the rows and has the next run copy them again")
        target.discard_copies(keep="")


def refuse_lag(service: Service, row: Mapping[str, Any]) -> None:
    """Raises StateError naming the tables of which a feed says that they have changed in the source; one without a feed is not read."""
    product = find_product(row["product_id"])
    with opened(service.box.open(row["source_url"]), service.box.open(row["target_url"]), Losses()) as (source, open_target):
        found = product.discover(source)
        target = open_target()
        tasks = taking_part(service, found, source, target)
        states = target.states()
        tasks = [task for task in tasks if task.target in states]
        behind = _changed(tasks, _unsure(tasks, states, source, str(row["consumer"])), states, source)
    _refuse([task for task in tasks if task.target in behind], _SINCE, "FeedLag", "run the replication once more (skylift run); "
            "to upgrade without these changes, which will not arrive: skylift upgrade --force")


def _those_not(tasks: Sequence[CopyTask], pool: ThreadPoolExecutor, holds: Callable[[CopyTask], bool]) -> set[TargetName]:
    return {task.target for task, good in zip(tasks, pool.map(holds, tasks), strict=True) if not good}


def _refuse(tasks: Sequence[CopyTask], what: tuple[str, str], code: str, hint: str) -> None:
    """`what`: said of one table, and of several."""
    if tasks:
        count = f"1 table {what[0]}" if len(tasks) == 1 else f"{len(tasks)} tables {what[1]}"
        raise StateError(f"{count}: {list_tables([(task.company, task.table_name) for task in tasks])}", hint=hint, code=code)


def _unsure(tasks: Sequence[CopyTask], states: States, source: Source, consumer: str) -> list[CopyTask]:
    """The tables whose feed cannot say whether they have changed since they were copied."""
    marks = source.track([task.table for task in tasks], consumer)
    return [task for task in tasks if SWEEP in (marks[task.table.path].feed, states[task.target].watermark.feed)
            or source.usable(task.table, states[task.target].watermark)]


def _changed(tasks: Sequence[CopyTask], unsure: Sequence[CopyTask], states: States, source: Source) -> set[TargetName]:
    """The targets of tables that the feed says were touched. One table may fill several targets: its oldest copy counts."""
    oldest: dict[str, Watermark] = {}
    doubted = {task.target for task in unsure}
    sure = [task for task in tasks if task.target not in doubted]
    for task in sure:
        mark = states[task.target].watermark
        known = oldest.get(task.table.path)
        oldest[task.table.path] = mark if known is None or mark.position < known.position else known
    changed = source.changed(oldest) if oldest else set()
    return {task.target for task in sure if task.table.path in changed}


def _same_source(task: CopyTask, state: TableState, source: Source, target: Target, reading: Reading) -> bool:
    """Whether the rows that the source holds now are those that were copied."""
    kept = table_of(task.table.path, state.columns)
    table = replace(source.measure(task.table), format=task.table.format if kept.format == task.table.format else ARROW)
    if schema_change(kept, table):
        return False
    if task.preserve:
        return _covered(table, task, source, target)
    return sum(map(digest_all, source_readers(table, source, target, reading)()), Digest()) == state.digest


def _same_target(task: CopyTask, state: TableState, source: Source, target: Target, reading: Reading) -> bool:
    """Whether the target holds the rows that were copied; of a preserved table, whether it lacks none."""
    if task.preserve:
        return _covered(replace(source.measure(task.table), format=ARROW), task, source, target)
    try:
        parts = target.read_parts(task.target, table_of(task.table.path, state.columns), 1)
        return sum((digest_all(_told(part, reading)) for part in parts), Digest()) == state.digest
    except CopyError:                                  # it is not there any more, or has other columns
        return False


def _told(batches: Batches, reading: Reading) -> Batches:
    for batch in batches:
        yield batch
        reading.passed(batch.num_rows)


def _covered(table: Table, task: CopyTask, source: Source, target: Target) -> bool:
    return not overlap(table, source_readers(table, source, target), lambda: target.read_parts(task.target, table, 1), 1).missing
