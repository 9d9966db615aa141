"""The nouns of the field, frozen. Times are aware UTC datetimes, sizes are bytes, identifiers are UUIDs.

The first half is what the engine and the connectors speak of; the second half is what the store keeps
and the faces show (`None` for a time means "not yet").
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa

from skylift.errors import SkyliftError
from skylift.runs import (
    AssessmentStatus,
    ChecklistStep,
    CompanyInit,
    CompanySetupStatus,
    MigrationState,
    ReplicationType,
    RunStatus,
    Severity,
    SqlServerType,
    TableMappingType,
    TableStatus,
    UpgradeStatus,
    ValidationStatus,
    WarningType,
)

NO_ID = UUID(int=0)
ARROW = "arrow"     # record batches with the columns of the table's schema; every source and target speaks it


def new_id() -> UUID:
    """A GUID behind those made before it (version 7 of RFC 9562), so that many of them go into one place of an index."""
    random = secrets.randbits(74)
    return UUID(int=time.time_ns() // 1_000_000 << 80 | 7 << 76 | random >> 62 << 64 | 2 << 62 | random & (1 << 62) - 1)


def time_text(value: datetime) -> str:
    """UTC, up to three decimals, trailing zeros cut (odata.md H4)."""
    milliseconds = value.microsecond // 1000
    fraction = f".{milliseconds:03d}".rstrip("0") if milliseconds else ""
    return f"{value.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat()}{fraction}Z"


# ------------------------------------------------------------------ what moves


@dataclass(frozen=True, slots=True)
class Table:
    """A table as its source describes it."""

    name: str                       # as the source spells it, within its namespace
    schema: pa.Schema               # columns in order, with the Arrow type each value is moved as
    key: tuple[str, ...] = ()       # primary key columns in key order; () = no key
    rows: int | None = None         # estimate, None = unknown
    size_bytes: int | None = None   # estimate, None = unknown
    source_types: tuple[str, ...] = ()  # declared types, parallel to schema
    namespace: str = ""             # the source's schema, '' = its default one
    format: str = ARROW             # what its batches look like: ARROW, or a native format that source and target share

    @property
    def path(self) -> str:
        """The name that no other table of the source has."""
        return f"{self.namespace}.{self.name}" if self.namespace else self.name

    def declared(self) -> list[tuple[pa.Field, str]]:
        """The columns, each with its declared type, '' where that is not known."""
        return list(zip(self.schema, self.source_types or [""] * len(self.schema), strict=True))


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Rows whose key k satisfies lo <= k < hi, as row values; None = open. The unit of parallel work and of resuming."""

    lo: tuple[Any, ...] | None = None
    hi: tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """One key range of one full copy; `id` counts from 0 within the copy."""

    id: int
    keys: KeyRange


@dataclass(frozen=True, slots=True)
class Digest:
    """Row count and order-independent 128-bit hash of a set of rows; digests of disjoint sets add up (engine/hashing.py)."""

    rows: int = 0
    lo: int = 0
    hi: int = 0

    def __add__(self, other: Digest) -> Digest:
        return Digest(self.rows + other.rows, (self.lo + other.lo) % 2**64, (self.hi + other.hi) % 2**64)

    def __sub__(self, other: Digest) -> Digest:
        return Digest(self.rows - other.rows, (self.lo - other.lo) % 2**64, (self.hi - other.hi) % 2**64)

    def __str__(self) -> str:
        return f"{self.hi:016x}{self.lo:016x}"


@dataclass(frozen=True, slots=True)
class Watermark:
    """How far a target copy reflects its source: `position` in `feed` of the source `incarnation`."""

    feed: str            # such as 'change_log' (connectors name their own)
    position: int        # 0 = never copied
    incarnation: str     # identity of the source database; another one means: copy whole
    why: str = field(default="", compare=False)    # of the feed 'sweep': why there is no better one, in words; not kept


@dataclass(frozen=True, slots=True)
class TargetName:
    """Where a table goes: `schema` is the company's ('' = the target's default schema)."""

    schema: str
    table: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}" if self.schema else self.table


@dataclass(frozen=True, slots=True)
class CopyTask:
    """One table of one company, to be brought up to date in the target."""

    company: str         # '' = cross-company
    table_name: str      # without the company prefix, as detail rows show it
    table: Table
    target: TargetName
    full: bool = False   # copy whole even if the target's ledger would allow an incremental copy
    preserve: bool = False   # keep the target's rows, add only those whose key it lacks (engine/preserve.py)


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a task that the target has committed, and how long it took. Times are nanoseconds since 1970."""

    name: str            # 'begin', 'chunk', 'finish' of a large table; 'pack' of small ones; 'changes', 'sweep', 'preserve'
    began_ns: int
    ended_ns: int
    rows: int = 0
    size_bytes: int = 0
    chunk: int | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one task has come; yielded after the target has committed what it says."""

    task: CopyTask
    status: TableStatus
    rows: int = 0                  # rows read from the source and committed so far
    resumed: int = 0               # of these, rows that had arrived before the engine began: the copy goes on
    total_rows: int = 0            # rows of the source table (estimate until the task has ended)
    size_bytes: int = 0            # Arrow bytes moved so far
    mode: str = ""                 # 'full', 'incremental' or 'unchanged'
    reason: str = ""               # why a full copy or a comparison was made where changes were asked for
    losses: str = ""               # which values were changed as the setting `accept` allows, counted
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    orphans: int = 0               # of a preserved table: rows of the target whose key the source does not have
    kept: int = 0                  # of a preserved table: rows of the target that differ from the source's under the same key
    digest: Digest | None = None   # of the whole target table, once verified
    watermark: Watermark | None = None
    error: SkyliftError | None = None
    steps: tuple[Step, ...] = ()   # what has been committed since the Progress before


class Reading:
    """Told how far a look at source and target is. Does nothing; who wants to know overrides it."""

    def begin(self, rows: int) -> None:
        """So many rows will be read. Called anew where it has to be begun again."""

    def passed(self, rows: int) -> None:
        """So many more were. From any thread."""


UNTOLD = Reading()


# ------------------------------------------------------------------ what is kept


@dataclass(frozen=True, slots=True)
class Run:
    """A replication run, or a life-cycle event shown as one (behaviour.md §1 "Run"). API: cloudMigrationStatus."""

    id: UUID
    run_id: str
    started_at: datetime
    ended_at: datetime | None
    replication_type: ReplicationType
    status: RunStatus
    source: str                    # display name of the source product
    details: str
    scope: str = ""                # as store/tables.py keeps it; not in API v1.0
    cancelled: str = ""            # who has cancelled it and why; not in API v1.0
    tables_successful: int = 0     # the three counts are counted in SQL from the run's tables
    tables_failed: int = 0
    tables_remaining: int = 0


TABLE_ROWS = 100    # what a table costs besides its rows, in rows: the size of a table is known only when its turn comes


@dataclass(frozen=True, slots=True)
class RunProgress(Run):
    """A run and what its tables add up to, in SQL. Not in API v1.0."""

    tables_total: int = 0
    tables_with_warnings: int = 0
    records_copied: int = 0
    resumed: int = 0
    total_records: int = 0
    size_bytes: int = 0
    work_done: int = 0             # of `work`: a table that has ended counts whole

    @property
    def work(self) -> int:
        """Rows and tables, in rows."""
        return self.total_records + TABLE_ROWS * self.tables_total


@dataclass(frozen=True, slots=True)
class RunTable:
    """One table of one company in one run. API: cloudMigrationStatusDetail."""

    id: UUID
    run_id: str
    company_name: str              # '' = cross-company
    table_name: str
    status: TableStatus
    records_copied: int = 0
    total_records: int = 0
    errors: str = ""


@dataclass(frozen=True, slots=True)
class RunTableProgress(RunTable):
    """The same table, and all else that is known of it. Not in API v1.0."""

    error_code: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    mode: str = ""                 # as Progress.mode
    reason: str = ""
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    size_bytes: int = 0
    target_rows: int | None = None  # rows of the target table, once verified
    digest: str = ""               # 32 hex digits once verified
    orphans: int = 0               # as Progress.orphans
    kept: int = 0                  # as Progress.kept
    resumed: int = 0               # of records_copied, those that an earlier run had brought


@dataclass(frozen=True, slots=True)
class Scope:
    """What a run goes through: of the marked companies, of their tables, of those. Nothing named = everything."""

    companies: tuple[str, ...] = ()     # names, or display names; what all companies share comes with them
    tables: tuple[str, ...] = ()        # whole names, or names without app id (products/naming.py, is_called)
    failed: bool = False                # only tables that have failed and were not copied since


@dataclass(frozen=True, slots=True)
class TableSwitch:
    """A table that can take part, and how it does. Not in API v1.0."""

    id: UUID
    company_name: str              # '' = cross-company
    table_name: str
    replicate: bool = True
    preserve: bool = False         # keep the target's rows, add only missing ones
    blocked: bool = False          # its last copy failed
    synced_version: int = 0        # as store/tables.py keeps it


@dataclass(frozen=True, slots=True)
class SourceCompany:
    """A company found in the source. API: cloudMigrationCompany."""

    id: UUID
    name: str
    display_name: str
    replicate: bool = False
    estimated_size: Decimal = Decimal(0)                   # GB
    status: CompanySetupStatus = CompanySetupStatus.NONE
    created: bool = False
    init_status: CompanyInit = CompanyInit.UNKNOWN
    init_error: str = ""
    upgrade_status: UpgradeStatus = UpgradeStatus.NONE     # this and the next not in API v1.0
    upgrade_error: str = ""


@dataclass(frozen=True, slots=True)
class Company:
    """A company of the environment itself. API: company."""

    id: UUID
    name: str
    display_name: str
    created_at: datetime
    modified_at: datetime
    created_by: UUID = NO_ID
    modified_by: UUID = NO_ID
    system_version: str = ""
    business_profile_id: str = ""


@dataclass(frozen=True, slots=True)
class Setup:
    """The migration's configuration (one row at most). API: setupCloudMigration; secrets only in the answer that sets them."""

    id: UUID
    product_id: str
    sql_server_type: SqlServerType = SqlServerType.SQL_SERVER
    sql_connection_string: str = ""
    runtime_name: str = ""
    runtime_key: str = ""
    state: MigrationState = MigrationState.NOT_SET_UP      # not in API v1.0


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the migration stands (one row). Not in API v1.0."""

    id: UUID
    state: MigrationState
    product_id: str
    sql_server_type: SqlServerType
    source_version: str
    creation_error: str
    disabled_reason: str           # '', Completed, Paused or Abandoned
    still_tracked: bool            # disabled, and the source still holds what skylift installed there
    source_url: str = field(repr=False)     # as Migration answers it: without secrets
    target_url: str = field(repr=False)
    headline: str = ""
    verbs: tuple[str, ...] = ()    # that its state permits


@dataclass(frozen=True, slots=True)
class ProductType:
    id: str
    display_name: str


@dataclass(frozen=True, slots=True)
class TableMapping:
    id: UUID
    target_table_type: TableMappingType = TableMappingType.TABLE
    app_id: UUID = NO_ID
    extension_name: str = ""
    table_id: int = 0
    table_name: str = ""
    source_table_name: str = ""
    per_company: bool = True


@dataclass(frozen=True, slots=True)
class Subscription:
    id: str
    notification_url: str
    resource: str
    user_id: UUID
    client_state: str
    expires_at: datetime
    created_at: datetime
    modified_at: datetime
    created_by: UUID = NO_ID
    modified_by: UUID = NO_ID


@dataclass(frozen=True, slots=True)
class Delivery:
    """A call to a receiver of webhooks."""

    id: int
    at: datetime
    url: str                       # without its query
    subscriptions: str             # ids, separated by blanks
    items: int
    attempt: int                   # 1 = the first
    status: int                    # of HTTP; 0 = no answer
    outcome: str                   # delivered, again, removed, given up
    error: str
    duration_ms: int


@dataclass(frozen=True, slots=True)
class UpgradeStep:
    """A step of an upgrade pack in one company."""

    id: UUID
    company_name: str              # '' = what all companies share
    pack: str
    step: str
    position: int                  # in the order of the packs and their steps
    checksum: str
    status: UpgradeStatus          # Pending also: it was done and undone again, because a later one failed
    statements: int = 0            # that were carried out
    notes: str = ""                # what the step has said, a line each
    error: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class MigrationWarning:
    """Something that somebody should look at after a run in which nothing need have failed. Not in API v1.0."""

    id: UUID
    type: WarningType
    message: str
    created_at: datetime
    ignored: bool = False
    ignored_by: str = ""


@dataclass(frozen=True, slots=True)
class ChecklistItem:
    """A step that people do, in a company. Not in API v1.0."""

    id: UUID
    company_name: str
    step: ChecklistStep
    about: str
    done: bool = False
    done_by: str = ""
    done_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What an assessment has found. Not in API v1.0."""

    id: UUID
    code: str                      # docs/assess.md lists them
    severity: Severity
    company_name: str              # '' = of no company, or of all
    table_name: str                # without the company prefix; '' = of no table
    column_name: str
    count: int                     # of rows, values or whatever the message speaks of; 0 = not counted
    message: str
    fix: str
    found_at: datetime
    accepted_by: str = ""
    accepted_at: datetime | None = None
    why: str = ""                  # it was accepted
    scanned: bool = False          # only reading every row finds it


@dataclass(frozen=True, slots=True)
class Assessment:
    """The newest assessment; there is one row. Not in API v1.0."""

    id: UUID
    status: AssessmentStatus
    scan: bool = False             # every row of every table is read
    progress: str = ""
    details: str = ""              # what came of it, in words, or why it failed
    product_id: str = ""
    source: str = ""               # URLs without passwords
    target: str = ""
    tables: int = 0
    rows: int = 0                  # estimated
    size_bytes: int = 0            # estimated
    duration_s: float = 0.0        # estimated, of the first run
    asked_by: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Validation:
    """A validation that was asked for: which suites go through which companies."""

    id: UUID
    requested_at: datetime
    requested_by: str
    status: ValidationStatus
    suites: str = ""               # their ids, a line each
    companies: str = ""            # their names, a line each; '' = all marked ones
    force: bool = False            # nothing that was validated before counts
    total: int = 0                 # (company, suite, table) that it goes through, 0 until that is known
    details: str = ""
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ValidationSuite:
    """A suite as it is declared (validation/), with what it has found."""

    id: str
    description: str
    automatic: bool
    errors_should_fail_migration: bool
    error_count: int = 0
    warning_count: int = 0


@dataclass(frozen=True, slots=True)
class ValidationTest:
    """A test of a suite as it is declared, with what it has found: the exact number, also where not every row is kept."""

    id: str                        # <suite>.<test>
    suite: str
    test: str
    entity: str                    # '' = each table
    description: str
    fail_count: int = 0
    ignored: bool = False


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """Something that a test has found not to be as expected. Rows of a test beyond a bound are counted only."""

    id: UUID
    suite: str
    test: str                      # '' = the suite itself could not go through this table
    company_name: str              # '' = what all companies share
    table_name: str                # or another entity that the test is about
    key: str
    expected: str
    actual: str
    is_warning: bool
    message: str
    found_at: datetime


@dataclass(frozen=True, slots=True)
class App:
    """An extension found in the source and taken as published in the target."""

    id: UUID
    name: str
    publisher: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """A row of the event log: who moved what from where to where, when and why."""

    id: int
    at: datetime
    actor: str
    subject: str                   # 'migration', 'run <run_id>', 'company <name>', ...
    event: str
    from_state: str
    to_state: str
    why: str = ""
    actor_id: UUID = NO_ID         # of their token; NO_ID = the command line, or skylift itself


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request, however they signed in."""

    id: UUID
    name: str
    role: str                      # reader, operator, administrator; '' = known, but allowed nothing


@dataclass(frozen=True, slots=True)
class Token:
    """An API token; only its hash is kept."""

    id: UUID
    name: str
    role: str                      # reader, operator, administrator
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
