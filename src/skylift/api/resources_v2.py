"""The additive API v2.0: what skylift has and the Cloud Migration API v1.0 does not show. Source: behaviour.md §12."""

from __future__ import annotations

from dataclasses import replace

from skylift.api import resources as v1
from skylift.api.declare import DECIMAL, FLAG, GUID, INT, LONG, STRING, STRINGS, TIME, Action, Api, EntitySet, Navigation, Property
from skylift.api.metadata import entity_definitions
from skylift.migration import Migration, progress
from skylift.model import RunProgress, RunTable
from skylift.runs import ReplicationType, RunStatus, TableStatus

_MODIFIED = (Property("lastModifiedDateTime", TIME, "modified_at"),)
_REASON = Property("reason", STRING, "reason", 250, about="recorded with it")
_ENDS = "UTC; estimated from `startTime` and what has been done since"

RUNS = EntitySet(
    "runs", "run", RunProgress,
    "Replication runs, and the events of the migration's life that v1.0 shows among them, newest first. `POST` starts a run.",
    properties=(
        Property("id",                 GUID,    "id"),
        Property("runId",              STRING,  "run_id",            50),
        Property("replicationType",    STRING,  "replication_type",  values=ReplicationType, writable=True),
        Property("companies",          STRINGS, "companies",         writable=True, read=progress.companies,
                 about="the only companies that it goes through, by name; empty = all that are marked"),
        Property("tables",             STRINGS, "tables",            writable=True, read=progress.tables,
                 about="the only tables, by name without the company; empty = all"),
        Property("failedOnly",         FLAG,    "failed_only",       writable=True, read=progress.failed_only,
                 about="only tables that had failed and were not copied since"),
        Property("status",             STRING,  "status",            values=RunStatus),
        Property("startTime",          TIME,    "started_at"),
        Property("endTime",            TIME,    "ended_at"),
        Property("source",             STRING,  "source",            250),
        Property("details",            STRING,  "details"),
        Property("cancelled",          STRING,  "cancelled",         about="who has cancelled it and why; empty = nobody"),
        Property("tablesTotal",        INT,     "tables_total"),
        Property("tablesSuccessful",   INT,     "tables_successful"),
        Property("tablesWithWarnings", INT,     "tables_with_warnings"),
        Property("tablesFailed",       INT,     "tables_failed"),
        Property("tablesRemaining",    INT,     "tables_remaining"),
        Property("recordsCopied",      LONG,    "records_copied",    about="rows"),
        Property("totalRecords",       LONG,    "total_records",     about="rows; of a table whose turn has not come perhaps 0"),
        Property("sizeBytes",          LONG,    "size_bytes",        about="bytes moved, in Arrow's format"),
        Property("rowsPerSecond",      DECIMAL, "rows_per_s",        read=progress.rows_per_s, nullable=True,
                 about="rows a second, on average since `startTime`"),
        Property("bytesPerSecond",     LONG,    "bytes_per_s",       read=progress.bytes_per_s, nullable=True,
                 about="bytes a second, on average since `startTime`"),
        Property("estimatedEndTime",   TIME,    "ends_at",           read=progress.run_ends_at, nullable=True,
                 about=f"{_ENDS}, of all tables; only while it is in progress"),
    ),
    order=("-started_at",),
    navigations=(Navigation("runTables", lambda: RUN_TABLES, on=("run_id", "run_id"), partner="run"),),
    actions=(Action("cancel", Migration.cancel_replication, "Stop the run within seconds. What has arrived stays, and the next run goes "
                    "on from there.", (_REASON,)),),
    create=Migration.start_run,
    filterable=_MODIFIED,
)

RUN_TABLES: EntitySet = EntitySet(
    "runTables", "runTable", RunTable,
    "What became of a table in a run. `companyName` is empty for tables that belong to no company.",
    properties=(
        Property("id",               GUID,    "id"),
        Property("runId",            STRING,  "run_id",         50),
        Property("companyName",      STRING,  "company_name",   250),
        Property("tableName",        STRING,  "table_name",     250),
        Property("status",           STRING,  "status",         values=TableStatus),
        Property("startTime",        TIME,    "started_at"),
        Property("endTime",          TIME,    "ended_at"),
        Property("mode",             STRING,  "mode",           about="`full`, `incremental`, `unchanged` or `diagnostic`, empty at first"),
        Property("reason",           STRING,  "reason",         about="why it was copied whole, or compared, where changes were asked for"),
        Property("recordsCopied",    LONG,    "records_copied", about="rows read from the source and committed in the target"),
        Property("totalRecords",     LONG,    "total_records",  about="rows of the source's table"),
        Property("inserted",         LONG,    "inserted",       about="rows that an incremental copy has added"),
        Property("updated",          LONG,    "updated",        about="rows that it has replaced"),
        Property("deleted",          LONG,    "deleted",        about="rows that it has deleted"),
        Property("sizeBytes",        LONG,    "size_bytes",     about="bytes moved, in Arrow's format"),
        Property("rowsPerSecond",    DECIMAL, "rows_per_s",     read=progress.rows_per_s, nullable=True,
                 about="rows a second, on average from `startTime` to `endTime` or now"),
        Property("bytesPerSecond",   LONG,    "bytes_per_s",    read=progress.bytes_per_s, nullable=True,
                 about="bytes a second, likewise"),
        Property("estimatedEndTime", TIME,    "ends_at",        read=progress.table_ends_at, nullable=True,
                 about=f"{_ENDS}; only of a full copy that is in progress"),
        Property("targetRows",       LONG,    "target_rows",    nullable=True, about="rows of the target's table, once compared"),
        Property("digest",           STRING,  "digest",         32, about="hash of all rows of the target's table, once compared"),
        Property("orphans",          LONG,    "orphans",        about="of a preserved table: rows of the target that the source lacks"),
        Property("kept",             LONG,    "kept",           about="of a preserved table: rows that differ from the source's"),
        Property("errorCode",        STRING,  "error_code"),
        Property("errors",           STRING,  "errors",         2048),
    ),
    order=("run_id", "table_name", "company_name"),
    navigations=(Navigation("run", lambda: RUNS, many=False, on=("run_id", "run_id"), path="run", partner="runTables"),),
    filterable=_MODIFIED,
)

SUBSCRIPTIONS = replace(
    v1.SUBSCRIPTIONS, about="Webhook subscriptions to a set of this API with a GUID as key (but not to `companies`), or to an entity of "
    "it. Otherwise as in v1.0.")

IN_COMPANY: tuple[EntitySet, ...] = (RUNS, RUN_TABLES)

COMPANIES = replace(v1.COMPANIES, navigations=tuple(Navigation(s.name, s) for s in IN_COMPANY))

DEFINITIONS = replace(v1.DEFINITIONS, rows=lambda: entity_definitions(V2))

V2: Api = Api("skylift", "cloudMigration", "v2.0", (COMPANIES, *IN_COMPANY, SUBSCRIPTIONS, DEFINITIONS))
