"""How a migration ends: disabled, paused, abandoned or completed, and the gate before the latter. Source: behaviour.md §2.3, §3, §4.2.

The source forgets skylift in the transaction that ends the migration: nobody can begin a run while its feed is being removed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from skylift.connectors import open_source
from skylift.connectors.locking import unlock
from skylift.errors import Conflict, NotFound, SetupError, SkyliftError, StateError, Transient, redact
from skylift.migration.changes import note, update_companies
from skylift.migration.cutover import refuse_unproven
from skylift.migration.packs import named_packs
from skylift.migration.scope import left_out, refuse_failed_tables
from skylift.migration.service import Service, Verb, newest_run
from skylift.migration.validation import refuse_invalid
from skylift.model import UNTOLD, Reading, Setup
from skylift.products.registry import find_product
from skylift.runs import MigrationState, RunStatus, UpgradeStatus
from skylift.store.tables import runs, source_companies

RETRY_S = 2.0                     # pause before tear-down is tried once more (behaviour.md §3, completeCloudMigration)
BUSY_TRIES = 15                   # of looking at a source or target that is in use
_DONE = "The cloud migration has been completed."
COMPLETED, PAUSED, ABANDONED = "Completed", "Paused", "Abandoned"       # disabled reasons, §2.3; '' = disabled through the API


class EndingVerbs(Service):
    def disable_replication(self, id: UUID | None = None) -> None:
        """Stop migrating: the source forgets skylift, everything copied stays.

        Where the source is out of reach the migration is disabled all the same, and the status row says what was left there;
        a later call tries again to remove it, and raises what stands in the way. Else a repeated call does nothing.
        """
        self._end(id, "disable_replication", "The migration has been disabled.", "")

    def pause(self, reason: str = "", id: UUID | None = None) -> None:
        """Stop migrating for now: what feeds changes in the source stays, so that after another set-up only changes are moved."""
        self._end(id, "pause", _with_reason("The migration has been paused.", reason), PAUSED)

    def abandon(self, reason: str = "", id: UUID | None = None) -> None:
        """Give the migration up: as disabling, with the reason."""
        self._end(id, "abandon", _with_reason("The migration has been abandoned.", reason), ABANDONED)

    def complete_cloud_migration(self, id: UUID | None = None, *, force: bool = False, reason: str = "",
                                 reading: Reading = UNTOLD) -> None:
        """End the migration for good, once everything has arrived.

        Raises StateError while a table is failed or yet to be copied, the data upgrade is not done, the source has changed since, or
        the target does not hold what was copied. Tables that were left out hold nothing up; they are named. `force` skips all that and
        needs a `reason`, which is recorded with what was open.
        `reading` is told how far the look at source and target is.
        If the source cannot be cleaned up, tried twice, the error is raised and the migration stays as it is, unless forced.
        """
        if force and not reason.strip():
            raise SetupError("a completion that is forced needs a reason", hint="skylift complete --force --reason TEXT",
                             code="ReasonMissing")
        with self.verb(commits=True) as verb:
            self._bound(verb.connection, id)
            if _is_completed(verb):
                return
            self._gate(verb, force)
            row, newest, upgraded = dict(verb.row), newest_run(verb.connection), _is_upgraded(verb)
        if not (force or self._prove(row, upgraded, reading)):
            return
        problem: SkyliftError | None = None
        for last in (False, True):
            with self.verb(commits=True) as verb:
                if _is_completed(verb):                    # somebody else was quicker
                    return
                still_open = self._gate(verb, force)
                if not force and newest_run(verb.connection) != newest:
                    raise Conflict("a run was made while source and target were compared", hint="complete once more", code="Changed")
                tracked, locked = self._untracked(verb.row), self._unlocked(verb)
                problem = tracked or locked
                if problem is None or (last and force):
                    details = f"The cloud migration has been completed, forced by {self.actor}:" if force else _DONE
                    told = (_with_reason(details, reason), still_open, left_out(verb.connection), _left(tracked, locked))
                    self._disable(verb, " ".join(filter(None, told)), COMPLETED, still_tracked=tracked is not None)
                    return
            if not last:
                time.sleep(RETRY_S)
        assert problem is not None
        raise problem

    def force_completion(self, reason: str) -> None:
        """End the migration for good, whatever is open."""
        self.complete_cloud_migration(force=True, reason=reason)

    def _prove(self, row: Mapping[str, Any], upgraded: bool, reading: Reading) -> bool:
        """Look at source and target, as soon as they are free; False if somebody else has completed the migration meanwhile."""
        for tries_left in range(BUSY_TRIES, -1, -1):
            try:
                refuse_unproven(self, row, upgraded, reading)
                break
            except Transient:                              # such as a DuckDB file that another administrator's look holds
                if not tries_left:
                    raise
            time.sleep(RETRY_S)
            with self.verb() as verb:
                if _is_completed(verb):
                    return False
        return True

    def _gate(self, verb: Verb, force: bool) -> str:
        """What stands in the way of completion and is told at once; a sentence about it where it does not count."""
        verb.permit("force_completion" if force else "complete_cloud_migration")
        try:
            product = find_product(verb.row["product_id"])
            if not _is_upgraded(verb) and (product.upgrades or named_packs(self, verb.row)):
                raise StateError("the data has not been upgraded", code="NotUpgraded",
                                 hint="replicate, then run the data upgrade (skylift upgrade; API: runDataUpgrade), then complete")
            refuse_failed_tables(verb.connection)
            refuse_invalid(verb.connection)
        except SkyliftError as error:                      # a pack or a suite that cannot be read holds it up, too
            if not force:
                raise
            return f"Still open: {error.message}."
        return ""

    def _end(self, id: UUID | None, name: str, details: str, reason: str) -> None:
        with self.verb(commits=True) as verb:
            self._bound(verb.connection, id)
            if verb.state is MigrationState.DISABLED:
                self._end_again(verb, details, reason)
                return
            verb.permit(name)
            problem = None if reason == PAUSED else self._untracked(verb.row)
            locked = None if reason == PAUSED else self._unlocked(verb)
            left = f"{details} {_left(problem, locked)}".strip()
            self._disable(verb, left, reason, still_tracked=reason == PAUSED or problem is not None)

    def _end_again(self, verb: Verb, details: str, reason: str) -> None:
        """Do what is left to do: remove what is still in the source, or give up for good what was only paused or disabled."""
        now, tracked = verb.row["disabled_reason"], verb.row["still_tracked"]
        if reason == PAUSED:
            if now != PAUSED:
                raise verb.refusal()
            return
        if now == COMPLETED and reason == ABANDONED:
            raise StateError("the migration is completed", hint="there is nothing left to abandon", code=COMPLETED)
        if tracked and (problem := self._untracked(verb.row)):
            raise problem
        if problem := self._unlocked(verb):
            raise problem
        if now == PAUSED or (reason == ABANDONED and now != ABANDONED):
            self._disable(verb, details, reason, still_tracked=False)
        elif tracked:
            note(verb.connection, Setup, [verb.row["id"]])
            verb.set(still_tracked=False)
            verb.log("migration", "untrack")

    def _disable(self, verb: Verb, details: str, reason: str, *, still_tracked: bool) -> None:
        if verb.state is MigrationState.DISABLED:
            note(verb.connection, Setup, [verb.row["id"]])
            verb.set(disabled_reason=reason, still_tracked=still_tracked)
            verb.log("migration", reason.lower() or "disabled", why=details, about=details)
        else:
            verb.move("disable", details, disabled_reason=reason, still_tracked=still_tracked, creation_task="", creation_error="")
        update_companies(verb.connection, source_companies.c.init_scheduled, init_scheduled=False)
        verb.add_run(RunStatus.COMPLETED, details, find_product(verb.row["product_id"]).display_name,
                     event="complete" if reason == COMPLETED else reason.lower() or "disable")

    def _untracked(self, row: Mapping[str, Any]) -> SkyliftError | None:
        """Remove what was installed in the source; what stood in the way of it."""
        try:
            source = open_source(self.box.open(row["source_url"]))
            try:
                source.untrack(str(row["consumer"]))
            finally:
                source.close()
        except SkyliftError as error:
            return error
        return None

    def _unlocked(self, verb: Verb) -> SkyliftError | None:
        """Let everybody write to the target again; what stood in the way of it."""
        if verb.row["locked"]:
            try:
                unlock(self.box.open(verb.row["target_url"]))
            except SkyliftError as error:
                return error
            verb.set(locked=False)
            verb.log("target", "unlock", "Locked", "Unlocked")
        return None

    def _bound(self, connection: sa.Connection, id: UUID | None) -> None:
        """Any row of the status list will do as binding target, but it has to exist (odata.md A2)."""
        if id is not None and connection.execute(sa.select(runs.c.id).where(runs.c.id == id)).first() is None:
            raise NotFound(f"there is no run with the id {id}")


def _is_completed(verb: Verb) -> bool:
    return verb.state is MigrationState.DISABLED and verb.row["disabled_reason"] == COMPLETED


def _is_upgraded(verb: Verb) -> bool:
    statuses = verb.connection.scalars(sa.select(source_companies.c.upgrade_status).where(source_companies.c.replicate)).all()
    return verb.state is MigrationState.UPGRADED or (verb.state is MigrationState.DISABLED and set(statuses) == {UpgradeStatus.COMPLETED})


def _with_reason(sentence: str, reason: str) -> str:
    return f"{sentence} {redact(reason).strip()}".strip()


def _left(tracked: SkyliftError | None, locked: SkyliftError | None) -> str:
    told = [(tracked, "What skylift installed in the source could not be removed", "source"),
            (locked, "The target is still locked", "target")]
    return " ".join(f"{what}: {redact(problem.message)}. Disable once more when the {side} is back."
                    for problem, what, side in told if problem)
