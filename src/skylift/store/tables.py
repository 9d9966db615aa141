"""The tables of the store. A column is named as the attribute of the model class whose rows it holds (`TABLES`).

What no model class shows (secrets, tasks, leases) is here only. Changing a table means a new file in migrations/versions;
a test holds both equal. Text sorts and compares by code point on every database.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.sql.elements import Grouping
from sqlalchemy.types import TypeDecorator

from skylift import model
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

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


class UtcDateTime(TypeDecorator):
    """An aware UTC datetime; SQLite keeps it as text of fixed width, so that it sorts as time."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Enumerated(TypeDecorator):
    """A StrEnum, kept as the text of its value."""

    impl = TEXT
    cache_ok = True

    def __init__(self, values: type[StrEnum]) -> None:
        super().__init__()
        self.values = values

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Any) -> StrEnum | None:
        return None if value is None else self.values(value)


def rank(column: Any, values: Sequence[str]) -> sa.Case[int]:
    """The place of an option among `values`, as text without parameters, so that an index on it is recognised."""
    ranks = {sa.literal_column(f"'{value}'", TEXT): sa.literal_column(str(n), sa.Integer) for n, value in enumerate(values)}
    return sa.case(ranks, value=column, else_=sa.literal_column("0", sa.Integer))


class Short(TypeDecorator):
    """Text cut to what `errors` may have (behaviour.md §2.5) and PostgreSQL takes into an index: 2,048 characters, 2,500 bytes."""

    impl = TEXT
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return value and value[:2048].encode()[:2500].decode(errors="ignore")


class Gigabytes(TypeDecorator):
    """A Decimal with six places. SQLite has no decimals: there it is a double, exact for sizes under a billion GB."""

    impl = sa.Numeric(20, 6)
    cache_ok = True

    def load_dialect_impl(self, dialect: Any) -> Any:
        return dialect.type_descriptor(sa.Double() if dialect.name == "sqlite" else self.impl)

    def process_bind_param(self, value: Decimal | None, dialect: Any) -> Any:
        return float(value) if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Any) -> Decimal | None:
        return None if value is None else Decimal(f"{value:.6f}").normalize() + 0


metadata = sa.MetaData(naming_convention={
    "ix": "ix_%(table_name)s_%(column_0_N_name)s", "uq": "uq_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"})


def _table(name: str, *items: Any) -> sa.Table:
    """A table whose columns are NOT NULL unless they say otherwise."""
    for item in items:
        if isinstance(item, sa.Column) and item.nullable and "null" not in item.info:
            item.nullable = False
    return sa.Table(name, metadata, *items)


def _text(name: str, default: str = "", **options: Any) -> sa.Column:
    return sa.Column(name, TEXT, default=default, **options)


def _number(name: str, kind: Any = sa.Integer) -> sa.Column:
    return sa.Column(name, kind, default=0)


def _flag(name: str, default: bool = False) -> sa.Column:
    return sa.Column(name, sa.Boolean, default=default)


def _time(name: str, *, null: bool = False) -> sa.Column:
    return sa.Column(name, UtcDateTime, info={"null": True} if null else {})


def _modified() -> sa.Column:
    """When the row was last written, kept by SQLAlchemy: what `lastModifiedDateTime` in the link of a webhook is compared with."""
    return sa.Column("modified_at", UtcDateTime, default=_now, onupdate=_now)


def _now() -> datetime:
    return datetime.now(UTC)


migration = _table(                                    # one row: the environment's migration
    "migration",
    sa.Column("one", sa.Integer, sa.CheckConstraint("one = 1", name="ck_migration_one"), primary_key=True, autoincrement=False),
    sa.Column("id", sa.Uuid),
    sa.Column("state", Enumerated(MigrationState), default=MigrationState.NOT_SET_UP),
    sa.Column("consumer", sa.Uuid),                    # this environment, as the source's change feed knows it
    _text("product_id"),
    sa.Column("sql_server_type", Enumerated(SqlServerType), default=SqlServerType.SQL_SERVER),
    _text("source_url"),                               # encrypted
    _text("target_url"),                               # encrypted
    _text("runtime_name"),
    _text("runtime_key"),                              # encrypted
    _text("source_version"),                           # application version, '' if the product has none
    _text("creation_task"),                            # '', InProgress, Failed or Completed
    _text("creation_error"),
    _text("disabled_reason"),                          # '', Completed, Paused or Abandoned
    _flag("still_tracked"),                            # disabled, and the source still holds what skylift installed there
    sa.Column("copy_id", sa.Uuid, default=uuid4),      # full copies that have begun under it go on with the next run
    _flag("lock_target"),                              # nobody else is to write there until the migration ends
    _flag("locked"),                                   # so it is, or it may be
    _text("packs"),                                    # of the data upgrade that was asked for last, a line each
    sa.Column("media_rows", sa.BigInteger, info={"null": True}),    # that the target held of media after the last run
    _modified(),
)

source_companies = _table(
    "source_companies",
    sa.Column("id", sa.Uuid, primary_key=True),
    _text("name", unique=True),
    _text("display_name"),
    _flag("replicate"),
    sa.Column("estimated_size", Gigabytes, default=Decimal(0)),
    sa.Column("status", Enumerated(CompanySetupStatus), default=CompanySetupStatus.NONE),
    _flag("created"),
    sa.Column("init_status", Enumerated(CompanyInit), default=CompanyInit.UNKNOWN),
    _text("init_error"),
    _flag("init_scheduled"),
    sa.Column("upgrade_status", Enumerated(UpgradeStatus), default=UpgradeStatus.NONE),
    _text("upgrade_error"),
    _modified(),
)

companies = _table(
    "companies",
    sa.Column("id", sa.Uuid, primary_key=True),
    _text("name", unique=True),
    _text("display_name"),
    _time("created_at"),
    _time("modified_at"),
    sa.Column("created_by", sa.Uuid),
    sa.Column("modified_by", sa.Uuid),
    _text("system_version"),
    _text("business_profile_id"),
)

runs = _table(
    "runs",
    sa.Column("id", sa.Uuid, primary_key=True),
    _text("run_id", unique=True),
    _time("started_at"),
    _time("ended_at", null=True),
    sa.Column("replication_type", Enumerated(ReplicationType)),
    sa.Column("status", Enumerated(RunStatus), index=True),
    _text("source"),
    _text("details"),
    _number("attempts"),                               # coordinators that took it up since it last moved on
    _text("scope"),                                    # what of the marked companies it goes through: migration/scope.py; '' = all
    _text("target"),                                   # place of the target that its tables go to; '' = it has not named them
    _text("cancelled"),                                # '' or who has cancelled it and why; it ends as soon as the coordinator has stopped
    _modified(),
    sa.Index("ix_runs_started_at_id", "started_at", "id"),
)

run_tables = _table(
    "run_tables",
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("run_id", TEXT, sa.ForeignKey("runs.run_id", name="fk_run_tables_run_id")),
    _text("company_name"),
    _text("table_name"),
    sa.Column("status", Enumerated(TableStatus)),
    _number("records_copied", sa.BigInteger),
    _number("total_records", sa.BigInteger),
    sa.Column("errors", Short, default=""),
    _text("error_code"),
    _time("started_at", null=True),
    _time("ended_at", null=True),
    _text("mode"),
    _text("reason"),
    _number("inserted", sa.BigInteger),
    _number("updated", sa.BigInteger),
    _number("deleted", sa.BigInteger),
    _number("size_bytes", sa.BigInteger),
    sa.Column("target_rows", sa.BigInteger, info={"null": True}),
    _text("digest"),
    _number("orphans", sa.BigInteger),
    _number("kept", sa.BigInteger),
    _number("resumed", sa.BigInteger),
    _modified(),
    sa.UniqueConstraint("run_id", "table_name", "company_name"),
    sa.Index("ix_run_tables_run_id_status", "run_id", "status"),
    # "failed and not mentioned again later" (behaviour.md §4.4) looks at one table's rows and at the failed ones only
    sa.Index("ix_run_tables_company_name_table_name_ended_at", "company_name", "table_name", "ended_at"),
    sa.Index("ix_run_tables_failed", "company_name", "table_name",
             sqlite_where=sa.text("status = 'Failed'"), postgresql_where=sa.text("status = 'Failed'")),
    # What the API may filter and order by among all runs' rows; the run itself is in the indexes above.
    *(sa.Index(f"ix_run_tables_{name}_id", name, "id")
      for name in ("company_name", "table_name", "records_copied", "total_records", "errors", "error_code")),
    sa.Index("ix_run_tables_modified_at", "modified_at"),
)
sa.Index("ix_run_tables_rank_id", Grouping(rank(run_tables.c.status, list(TableStatus))), run_tables.c.id)

registry = _table(                                     # every table that takes part, as the source last showed it
    "registry",
    sa.Column("company_name", TEXT, primary_key=True),
    sa.Column("table_name", TEXT, primary_key=True),
    sa.Column("id", sa.Uuid, default=uuid4),
    sa.Column("app_id", sa.Uuid, info={"null": True}),
    _number("synced_version", sa.BigInteger),          # 0 = the next copy is full; -1 = so it is, but nobody waits for it (unblocked)
    _flag("blocked"),                                  # its last copy failed
    _flag("replicate", default=True),
    _flag("preserve"),                                 # keep the target's rows, add only missing ones
    _modified(),
    sa.Index("ix_registry_id", "id", unique=True),
)

table_mappings = _table(
    "table_mappings",
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("target_table_type", Enumerated(TableMappingType)),
    sa.Column("app_id", sa.Uuid),
    _text("extension_name"),
    _number("table_id"),
    _text("table_name"),
    _text("source_table_name"),
    _flag("per_company", default=True),
    _modified(),
)

apps = _table(
    "apps",
    sa.Column("id", sa.Uuid, primary_key=True),
    _text("name"),
    _text("publisher"),
    _text("version"),
)

upgrade_tags = _table(                                 # upgrade steps that are done
    "upgrade_tags",
    sa.Column("company_name", TEXT, primary_key=True),
    sa.Column("tag", TEXT, primary_key=True),
    _time("created_at"),
)

upgrade_steps = _table(                                # of upgrade packs, as people see them; the target's tags are the truth
    "upgrade_steps",
    sa.Column("id", sa.Uuid, primary_key=True),
    _text("company_name"),
    _text("pack"),
    _text("step"),
    _number("position"),
    _text("checksum"),
    sa.Column("status", Enumerated(UpgradeStatus), default=UpgradeStatus.PENDING),
    _number("statements"),
    _text("notes"),
    _text("error"),
    _time("started_at", null=True),
    _time("ended_at", null=True),
    _modified(),
    sa.UniqueConstraint("company_name", "pack", "step"),
)

migration_warnings = _table(                           # of a type one at most
    "migration_warnings",
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("type", Enumerated(WarningType)),
    _text("message"),
    _flag("ignored"),
    _text("ignored_by"),
    _time("created_at"),
    _modified(),
    sa.UniqueConstraint("type"),
)

idempotency = _table(                                  # requests that were named by their callers and have been done
    "idempotency",
    sa.Column("actor", TEXT, primary_key=True),
    sa.Column("key", TEXT, primary_key=True),
    _text("digest"),                                   # of the request
    sa.Column("run_id", sa.Uuid, info={"null": True}), # `id` of the run that it has begun
    _time("done_at"),
)

checklist = _table(                                    # the steps that are ticked, for all companies
    "checklist",
    sa.Column("step", Enumerated(ChecklistStep), primary_key=True),
    _text("done_by"),
    _time("done_at"),
)

findings = _table(                                     # of the newest assessment
    "findings",
    sa.Column("id", sa.Uuid, primary_key=True),
    _text("code"),
    sa.Column("severity", Enumerated(Severity)),
    _text("company_name"),
    _text("table_name"),
    _text("column_name"),
    _number("count", sa.BigInteger),
    _text("message"),
    _text("fix"),
    _time("found_at"),
    _text("accepted_by"),
    _time("accepted_at", null=True),
    _text("why"),
    _flag("scanned"),
    _modified(),
    sa.UniqueConstraint("code", "company_name", "table_name", "column_name"),
)

assessments = _table(                                  # one row at most
    "assessments",
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("status", Enumerated(AssessmentStatus)),
    _flag("scan"),
    _text("progress"),
    _text("details"),
    _text("product_id"),
    _text("source"),
    _text("target"),
    _number("tables"),
    _number("rows", sa.BigInteger),
    _number("size_bytes", sa.BigInteger),
    sa.Column("duration_s", sa.Double, default=0.0),
    _text("asked_by"),
    _number("attempts"),                               # coordinators that have taken it up
    _time("started_at", null=True),
    _time("ended_at", null=True),
)

validations = _table(
    "validations",
    sa.Column("id", sa.Uuid, primary_key=True),
    _time("requested_at"),
    _text("requested_by"),
    sa.Column("status", Enumerated(ValidationStatus)),
    _text("suites"),
    _text("companies"),
    _flag("force"),
    _number("total"),
    _number("attempts"),                               # coordinators that took it up since it last moved on
    _text("details"),
    _time("ended_at", null=True),
    _modified(),
)

validation_progress = _table(                          # what a suite has gone through
    "validation_progress",
    sa.Column("company_name", TEXT, primary_key=True),
    sa.Column("suite", TEXT, primary_key=True),
    sa.Column("table_name", TEXT, primary_key=True),   # '' = a suite of expectations, as a whole
    sa.Column("validation_id", sa.Uuid),
    _time("ended_at"),
    _number("errors", sa.BigInteger),                  # exact, also where not every row is kept
    _number("warnings", sa.BigInteger),
    _text("counts"),                                   # {test: [errors, warnings]} as JSON, '' where there are none
    _text("note"),                                     # why it was not compared
    _flag("fails_migration"),                          # the suite's errors do
)

validation_results = _table(
    "validation_results",
    sa.Column("id", sa.Uuid, primary_key=True),
    _text("suite"),
    _text("test"),
    _text("company_name"),
    _text("table_name"),
    _text("unit"),                                     # table_name of the progress that it belongs to
    _text("key"),
    _text("expected"),
    _text("actual"),
    _flag("is_warning"),
    _text("message"),
    _time("found_at"),
    _modified(),
    sa.Index("ix_validation_results_company_name_suite_unit", "company_name", "suite", "unit"),
)

validation_ignored = _table(                           # tests that log nothing
    "validation_ignored",
    sa.Column("suite", TEXT, primary_key=True),
    sa.Column("test", TEXT, primary_key=True),
)

subscriptions = _table(
    "subscriptions",
    sa.Column("id", TEXT, primary_key=True),
    _text("notification_url"),
    _text("resource"),
    sa.Column("user_id", sa.Uuid),
    _text("client_state"),
    _time("expires_at"),
    _time("created_at"),
    _time("modified_at"),
    sa.Column("created_by", sa.Uuid),
    sa.Column("modified_by", sa.Uuid),
    _text("kind"),                                     # model class of the entities that it is about
    sa.Column("entity_id", sa.Uuid, default=model.NO_ID),  # NO_ID = all of them
    _number("told", sa.BigInteger),                    # position in `changes` up to which the receiver knows
    _time("waiting_since", null=True),                 # when the first change happened that it does not know
    _time("next_at", null=True),                       # not to be called before, after a call that failed
    _time("failing_since", null=True),
    _number("attempts"),                               # calls that failed since
)

changes = _table(                                      # the outbox: what subscribers are to be told, a row an entity
    "changes",
    sa.Column("kind", TEXT, primary_key=True),
    sa.Column("entity_id", sa.Uuid, primary_key=True),  # NO_ID = many of that kind
    _number("position", sa.BigInteger),                # of the last change
    _number("created", sa.BigInteger),                 # position at which it was made; 0 = before anybody asked
    _flag("deleted"),
    _time("at"),                                       # of the last change
    sa.Index("ix_changes_kind_position", "kind", "position"),
)

change_counter = _table(                               # one row, locked by who writes changes: positions become visible in their order
    "change_counter",
    sa.Column("one", sa.Integer, sa.CheckConstraint("one = 1", name="ck_change_counter_one"), primary_key=True, autoincrement=False),
    _number("position", sa.BigInteger),
)

deliveries = _table(                                   # the log of calls to receivers, its newest rows
    "deliveries",
    sa.Column("id", sa.Integer, primary_key=True),
    _time("at"),
    _text("url"),                                      # without its query, which may hold secrets
    _text("subscriptions"),                            # ids, separated by blanks
    _number("items"),
    _number("attempt"),
    _number("status"),                                 # of HTTP; 0 = no answer
    _text("outcome"),                                  # delivered, again, removed, given up
    _text("error"),
    _number("duration_ms"),
)

events = _table(
    "events",
    sa.Column("id", sa.Integer, primary_key=True),
    _time("at"),
    sa.Column("actor", Short, default=""),
    sa.Column("actor_id", sa.Uuid, default=model.NO_ID),   # of their token; NO_ID = the command line, or skylift itself
    sa.Column("subject", Short, default=""),
    _text("event"),
    _text("from_state"),
    _text("to_state"),
    _text("why"),
    *(sa.Index(f"ix_events_{name}_id", name, "id") for name in ("at", "actor", "subject", "event")),
)

leases = _table(
    "leases",
    sa.Column("name", TEXT, primary_key=True),
    _text("holder"),
    _time("expires_at"),
)

tokens = _table(
    "tokens",
    sa.Column("id", sa.Uuid, primary_key=True),
    _text("name"),
    _text("role"),
    sa.Column("hash", sa.LargeBinary(32), unique=True),  # SHA-256 of a 256-bit random secret
    _time("created_at"),
    _time("expires_at", null=True),
    _time("revoked_at", null=True),
)

# The migration as v2.0 shows it: there from the beginning. What is sealed, and what is worked out, migration/standing.py adds.
_standing = sa.select(*(migration.c[name] for name in (
    "id", "state", "product_id", "sql_server_type", "source_version", "creation_error", "disabled_reason", "still_tracked", "modified_at",
    "source_url", "target_url"))).subquery("standing")

# The set-up as the API shows it: absent until there is one, and never with a secret.
_setup = sa.select(
    migration.c.id, migration.c.product_id, migration.c.sql_server_type, migration.c.state, migration.c.modified_at,
    *(sa.literal("", TEXT).label(name) for name in ("sql_connection_string", "runtime_name", "runtime_key")),
).where(migration.c.state != MigrationState.NOT_SET_UP).subquery("setup")

TABLES: dict[type, sa.FromClause] = {                  # ProductType is not stored: products/registry.py
    model.Run: runs, model.RunProgress: runs, model.RunTable: run_tables, model.RunTableProgress: run_tables,
    model.SourceCompany: source_companies, model.Company: companies,
    model.Setup: _setup, model.TableMapping: table_mappings, model.Subscription: subscriptions, model.App: apps,
    model.Event: events, model.Token: tokens, model.Delivery: deliveries, model.TableSwitch: registry,
    model.UpgradeStep: upgrade_steps, model.Standing: _standing,
    model.MigrationWarning: migration_warnings, model.Finding: findings, model.Assessment: assessments,
    model.Validation: validations, model.ValidationResult: validation_results,
}
