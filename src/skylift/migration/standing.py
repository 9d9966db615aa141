"""Where the migration stands, for people and programs that ask: in a sentence, and as the verbs that its state permits.

Source: behaviour.md §4.3, §4.6, §12.10.
"""

from __future__ import annotations

from dataclasses import replace

import sqlalchemy as sa

from skylift.errors import redact
from skylift.migration.service import count_tables, newest_run
from skylift.model import Run, Standing
from skylift.products.registry import PRODUCTS
from skylift.runs import ALLOWED, MIGRATION_TRANSITIONS, MigrationState, RunStatus, TableStatus
from skylift.store.secrets import SecretBox

_HEADLINES = {
    MigrationState.NOT_SET_UP: "The migration is not set up.",
    MigrationState.AWAITING_AGENT: "The migration waits for its integration runtime.",
    MigrationState.ENABLED: "The source is connected; companies are to be chosen and created.",
    MigrationState.CREATING_COMPANIES: "Companies are being created.",
    MigrationState.CREATION_FAILED: "Creating companies has failed.",
    MigrationState.READY: "The migration is ready for replication.",
    MigrationState.REPLICATING: "A run is in progress.",
    MigrationState.UPGRADE_PENDING: "The data upgrade is pending.",
    MigrationState.UPGRADING: "The data upgrade is in progress.",
    MigrationState.UPGRADE_FAILED: "The data upgrade has failed.",
    MigrationState.UPGRADED: "The data has been upgraded; the migration can be completed.",
}
_ENDED = {"": "The migration is disabled.", "Completed": "The migration is completed.", "Paused": "The migration is paused.",
          "Abandoned": "The migration was abandoned."}
_BETWEEN_RUNS = (MigrationState.READY, MigrationState.UPGRADE_PENDING)


def complete(connection: sa.Connection, row: Standing, box: SecretBox) -> Standing:
    """`row` as the store has it, with its URLs readable and without their secrets, and what follows from its state."""
    newest = newest_run(connection)
    return replace(row, source_url=redact(box.open(row.source_url)) if row.source_url else "",
                   target_url=redact(box.open(row.target_url)) if row.target_url else "", headline=_headline(connection, row, newest),
                   verbs=_verbs(row, newest))


def _headline(connection: sa.Connection, row: Standing, newest: Run | None) -> str:
    if row.state is MigrationState.DISABLED:
        return _ENDED[row.disabled_reason]
    sentence = _HEADLINES[row.state]
    if row.state is MigrationState.CREATION_FAILED:
        return f"{sentence[:-1]}: {redact(row.creation_error)}"
    if newest and row.state in _BETWEEN_RUNS:
        if newest.status is RunStatus.FAILED:
            return f"{sentence} The newest run has failed: {newest.details}"
        if failed := count_tables(connection, newest.run_id).get(TableStatus.FAILED):
            return f"{sentence} Of the newest run's tables {failed} failed."
    return sentence


def _verbs(row: Standing, newest: Run | None) -> tuple[str, ...]:
    """In the API's spelling. A verb may look at more than the state, and then refuses by itself."""
    permitted = [verb for verb, states in ALLOWED.items() if row.state in states]
    product = PRODUCTS.get(row.product_id)
    if row.state is MigrationState.READY and product and product.optional_upgrade:
        permitted.append("run_data_upgrade")
    if (row.state, "enable") in MIGRATION_TRANSITIONS:
        permitted.append("set_up")
    if newest and newest.status is RunStatus.IN_PROGRESS and not newest.cancelled:
        permitted.append("cancel")
    return tuple(sorted(_camel(verb) for verb in permitted))


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)
