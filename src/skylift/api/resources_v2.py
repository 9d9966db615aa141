"""The additive API v2.0: what skylift has and the Cloud Migration API v1.0 does not show. Source: behaviour.md §12."""

from __future__ import annotations

from dataclasses import replace

from skylift.api import resources as v1
from skylift.api.bounds import Limit, limits
from skylift.api.declare import DECIMAL, FLAG, GUID, INT, LONG, STRING, STRINGS, TIME, Action, Api, EntitySet, Navigation, Property
from skylift.api.metadata import entity_definitions
from skylift.migration import Migration, progress
from skylift.model import (
    Assessment,
    ChecklistItem,
    Delivery,
    Event,
    Finding,
    MigrationWarning,
    Run,
    RunProgress,
    RunTable,
    RunTableProgress,
    Setup,
    Standing,
    TableSwitch,
    UpgradeStep,
    Validation,
    ValidationResult,
    ValidationSuite,
    ValidationTest,
)
from skylift.runs import (
    AssessmentStatus,
    ChecklistStep,
    MigrationState,
    ReplicationType,
    RunStatus,
    Severity,
    SqlServerType,
    TableStatus,
    UpgradeStatus,
    ValidationStatus,
    WarningType,
)

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
        Property("recordsResumed",     LONG,    "resumed",           about="of these, rows that an earlier run had brought"),
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
    create=Migration.start_run, null_is_unsent=True,
    filterable=_MODIFIED,
    noted=Run,
)

RUN_TABLES: EntitySet = EntitySet(
    "runTables", "runTable", RunTableProgress,
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
        Property("recordsResumed",   LONG,    "resumed",        about="of these, rows that an earlier run had brought, whose copy goes on"),
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
    noted=RunTable,
)

MIGRATIONS = EntitySet(
    "migrations", "migration", Standing,
    "The migration as it stands, one row from the beginning; it is set up through v1.0.",
    properties=(
        Property("id",                   GUID,    "id"),
        Property("state",                STRING,  "state",             values=MigrationState),
        Property("headline",             STRING,  "headline",          computed=True, about="the state in a sentence"),
        Property("verbs",                STRINGS, "verbs",             computed=True, about="what the state permits now, by name: actions "
                 "of this set and of v1.0, and `runReplication` (`POST runs`), `cancel`, `changeTables`, `changeCompany`, `changeMappings` "
                 "and `setUp`. A verb may look at more than the state, and then refuses by itself"),
        Property("productId",            STRING,  "product_id",        250),
        Property("sqlServerType",        STRING,  "sql_server_type",   values=SqlServerType),
        Property("sourceVersion",        STRING,  "source_version",    about="application version; empty where the product has none"),
        Property("source",               STRING,  "source_url",        computed=True, about="URL without secrets"),
        Property("target",               STRING,  "target_url",        computed=True, about="URL without secrets"),
        Property("creationError",        STRING,  "creation_error",    about="why companies could not be created"),
        Property("disabledReason",       STRING,  "disabled_reason",   about="`Completed`, `Paused`, `Abandoned`; empty = none was given, "
                 "or it is not disabled"),
        Property("sourceTracked",        FLAG,    "still_tracked",     about="the source still holds what was installed there"),
    ),
    actions=(
        Action("assess", Migration.ask_assessment, "Have the coordinator assess source and target when it has nothing else to do.",
               (Property("scan", FLAG, "scan", about="read every row of every table"),), of_row=False),
        Action("validate", Migration.validate, "Have the coordinator go through the target with validation suites.",
               (Property("suites", STRINGS, "suites", about="their ids; empty = all"),
                Property("companies", STRINGS, "companies", about="by name; empty = all that are marked"),
                Property("force", FLAG, "force", about="delete what was found before, and validate everything anew")), of_row=False),
        Action("pause", Migration.pause, "Stop migrating for now: what feeds changes in the source stays, so that after another set-up "
               "only changes are moved.", (_REASON,), of_row=False),
        Action("abandon", Migration.abandon, "Give the migration up: the source forgets skylift, everything copied stays.", (_REASON,),
               of_row=False),
        Action("disableReplication", Migration.disable_replication, "End replication for now, as in v1.0.", of_row=False),
        Action("resetCloudData", Migration.reset_cloud_data, "Make the next run copy every table whole, as in v1.0.", of_row=False),
        Action("runDataUpgrade", Migration.run_named_upgrade, "Run the upgrade that follows the newest run; of product Custom, which needs "
               "none, where packs are named.",
               (Property("packs", STRINGS, "packs", about="the upgrade packs to go through, in this order, instead of those of the setting "
                         "`packs`: built-in ones by name, one's own by the name of their folder under `packs` in the home folder"),
                Property("company", STRING, "retry", 50, about="of the companies whose upgrade has failed only this one"),
                Property("ifCurrent", FLAG, "current", about="only if no run has still to move what has changed in the source")),
               of_row=False),
        Action("completeCloudMigration", Migration.complete_cloud_migration, "End the migration, once everything has arrived, as in v1.0.",
               of_row=False),
        Action("forceCompletion", Migration.force_completion, "End the migration whatever is open; that is recorded, too.",
               (replace(_REASON, required=True),), of_row=False, administrator=True),
    ),
    filterable=_MODIFIED,
    noted=Setup,
)

TABLES = EntitySet(
    "tables", "table", TableSwitch,
    "The tables that can take part in runs, and how. What is switched counts for the next run.",
    properties=(
        Property("id",            GUID,   "id"),
        Property("companyName",   STRING, "company_name", 250, about="empty for tables that belong to no company"),
        Property("tableName",     STRING, "table_name",   250),
        Property("replicate",     FLAG,   "replicate",    writable=True, about="false = left out; what was copied of it stays"),
        Property("preserve",      FLAG,   "preserve",     writable=True, about="keep the target's rows, add those it lacks: only for "
                 "tables that belong to no company. Back to false, it is copied whole"),
        Property("blocked",       FLAG,   "blocked",      writable=True, about="its last copy failed. Set to false: that is accepted and "
                 "holds up neither upgrade nor completion"),
        Property("syncedVersion", LONG,   "synced_version", about="position of the source's feed that the target reflects; 0 or less = "
                 "the next copy is whole"),
    ),
    order=("company_name", "table_name"),
    change=Migration.change_table,
    filterable=_MODIFIED,
)

SOURCE_COMPANIES = replace(
    v1.SOURCE_COMPANIES, name="sourceCompanies", entity="sourceCompany", aliases=(), actions=(),
    about="The companies found in the source, as `cloudMigrationCompanies` of v1.0, and what became of their data upgrade.",
    properties=(
        *v1.SOURCE_COMPANIES.properties,
        Property("upgradeStatus", STRING, "upgrade_status", values=UpgradeStatus),
        Property("upgradeError",  STRING, "upgrade_error"),
    ))

UPGRADE_STEPS = EntitySet(
    "upgradeSteps", "upgradeStep", UpgradeStep,
    "The steps of upgrade packs, company by company, since the data upgrade was asked for.",
    properties=(
        Property("id",          GUID,   "id"),
        Property("companyName", STRING, "company_name", 250, about="empty for what belongs to no company"),
        Property("pack",        STRING, "pack"),
        Property("step",        STRING, "step"),
        Property("position",    INT,    "position",     about="in the order of the packs and their steps, from 0"),
        Property("status",      STRING, "status",       values=UpgradeStatus, about="`Pending` also if undone: a later one failed"),
        Property("startTime",   TIME,   "started_at"),
        Property("endTime",     TIME,   "ended_at"),
        Property("statements",  INT,    "statements",   about="that were carried out"),
        Property("notes",       STRING, "notes",        about="what the step has said, a line each"),
        Property("error",       STRING, "error"),
        Property("checksum",    STRING, "checksum"),
    ),
    order=("company_name", "position"),
    filterable=_MODIFIED,
)

FINDINGS = EntitySet(
    "findings", "finding", Finding,
    "What the newest assessment has found; `assess` of `migrations` asks for one. What is `Blocking` and not accepted holds up runs.",
    properties=(
        Property("id",          GUID,   "id"),
        Property("code",        STRING, "code"),
        Property("severity",    STRING, "severity",     values=Severity),
        Property("companyName", STRING, "company_name", 250, about="empty = of no company, or of all"),
        Property("tableName",   STRING, "table_name",   250, about="empty = of no table"),
        Property("columnName",  STRING, "column_name"),
        Property("count",       LONG,   "count",        about="of rows, values or what the message speaks of; 0 = not counted"),
        Property("message",     STRING, "message"),
        Property("fix",         STRING, "fix",          about="what can be done about it"),
        Property("time",        TIME,   "found_at"),
        Property("scanned",     FLAG,   "scanned",      about="only reading every row finds it"),
        Property("acceptedBy",  STRING, "accepted_by",  about="empty = nobody"),
        Property("acceptedAt",  TIME,   "accepted_at",  nullable=True, about="null = nobody has"),
        Property("reason",      STRING, "why",          about="it was accepted for"),
    ),
    order=("code", "company_name", "table_name", "column_name"),
    actions=(Action("accept", Migration.accept_finding, "Accept it: it blocks nothing, as long as an assessment finds the same.",
                    (replace(_REASON, required=True),)),),
    filterable=_MODIFIED,
)

ASSESSMENTS = EntitySet(
    "assessments", "assessment", Assessment,
    "The newest assessment, one row at most. Sizes and times are estimates.",
    properties=(
        Property("id",              GUID,   "id"),
        Property("status",          STRING, "status",     values=AssessmentStatus),
        Property("scan",            FLAG,   "scan",       about="every row of every table is read"),
        Property("progress",        STRING, "progress"),
        Property("details",         STRING, "details",    about="what came of it, or why it failed"),
        Property("productId",       STRING, "product_id", 250),
        Property("source",          STRING, "source",     about="URL without secrets"),
        Property("target",          STRING, "target",     about="URL without secrets"),
        Property("tables",          INT,    "tables"),
        Property("rows",            LONG,   "rows"),
        Property("sizeBytes",       LONG,   "size_bytes", about="bytes"),
        Property("firstRunSeconds", LONG,   "duration_s", read=lambda row: round(row.duration_s), about="seconds of the first run"),
        Property("askedBy",         STRING, "asked_by"),
        Property("startTime",       TIME,   "started_at"),
        Property("endTime",         TIME,   "ended_at"),
    ),
)

VALIDATIONS = EntitySet(
    "validations", "validation", Validation,
    "The validations that were asked for, newest first; `validate` of `migrations` asks for one.",
    properties=(
        Property("id",        GUID,   "id"),
        Property("startTime", TIME,   "requested_at"),
        Property("endTime",   TIME,   "ended_at"),
        Property("askedBy",   STRING, "requested_by"),
        Property("status",    STRING, "status",    values=ValidationStatus),
        Property("suites",    STRING, "suites",    about="their ids, a line each"),
        Property("companies", STRING, "companies", about="their names, a line each; empty = all that are marked"),
        Property("force",     FLAG,   "force",     about="nothing that was validated before counts"),
        Property("checks",    INT,    "total",     about="how many times a suite goes through a table; 0 until that is known"),
        Property("details",   STRING, "details",   about="what came of it, or why it failed"),
    ),
    order=("-requested_at",),
    filterable=_MODIFIED,
)

VALIDATION_SUITES = EntitySet(
    "validationSuites", "validationSuite", ValidationSuite,
    "The suites that there are, those of skylift first, and how much each has found.",
    properties=(
        Property("id",                        STRING, "id", 20),
        Property("description",               STRING, "description"),
        Property("automatic",                 FLAG,   "automatic", computed=True,
                 about="follows runs and upgrades, where the setting `validation` says so"),
        Property("errorsShouldFailMigration", FLAG,   "errors_should_fail_migration", computed=True,
                 about="its errors hold up the completion"),
        Property("errorCount",                LONG,   "error_count", computed=True, about="found, exact"),
        Property("warningCount",              LONG,   "warning_count", computed=True, about="found, exact"),
    ),
    rows=Migration.validation_suites,
)

VALIDATION_TESTS = EntitySet(
    "validationTests", "validationTest", ValidationTest,
    "The tests of all suites, and how much each has found.",
    properties=(
        Property("id",          STRING, "id",         60, about="`<suite>.<code>`"),
        Property("suite",       STRING, "suite",      20),
        Property("code",        STRING, "test",       30),
        Property("entity",      STRING, "entity",     about="that it is about; empty = each table"),
        Property("description", STRING, "description"),
        Property("failCount",   LONG,   "fail_count", computed=True, about="exact, also where not every result is kept"),
        Property("ignore",      FLAG,   "ignored",    writable=True, computed=True,
                 about="it logs nothing; what it has found is forgotten"),
    ),
    change=Migration.change_validation_test,
    rows=Migration.validation_tests,
)

VALIDATION_RESULTS = EntitySet(
    "validationResults", "validationResult", ValidationResult,
    "What suites have found not to be as expected. Of each test the setting `validation_rows` are kept.",
    properties=(
        Property("id",          GUID,   "id"),
        Property("suite",       STRING, "suite",        20),
        Property("test",        STRING, "test",         30, about="empty = the suite itself could not go through the table"),
        Property("companyName", STRING, "company_name", 250, about="empty = what belongs to no company"),
        Property("tableName",   STRING, "table_name",   250, about="or another entity that the test is about"),
        Property("key",         STRING, "key"),
        Property("expected",    STRING, "expected",     about="`***` where the test does not show it"),
        Property("actual",      STRING, "actual",       about="likewise"),
        Property("isWarning",   FLAG,   "is_warning",   about="it does not hold up the completion"),
        Property("message",     STRING, "message"),
        Property("time",        TIME,   "found_at"),
    ),
    order=("company_name", "table_name", "suite", "test", "key"),
    filterable=_MODIFIED,
)

EVENTS = EntitySet(
    "events", "event", Event,
    "The log of what happened: who moved what from where to where, newest first.",
    properties=(
        Property("id",        LONG,   "id"),
        Property("time",      TIME,   "at"),
        Property("actor",     STRING, "actor",      about="whose token, or which part of skylift"),
        Property("actorId",   GUID,   "actor_id",   about="of that token; zeros = the command line, or skylift itself"),
        Property("subject",   STRING, "subject",    about="`migration`, `run <runId>`, `company <name>`, `table <name>`, ..."),
        Property("event",     STRING, "event"),
        Property("fromState", STRING, "from_state"),
        Property("toState",   STRING, "to_state"),
        Property("reason",    STRING, "why"),
    ),
    order=("-id",),
)

WARNINGS = EntitySet(
    "warnings", "warning", MigrationWarning,
    "What somebody should look at after a run in which no table need have failed; of a type one at most, while it is true.",
    properties=(
        Property("id",        GUID,   "id"),
        Property("type",      STRING, "type",       values=WarningType),
        Property("message",   STRING, "message",    1024),
        Property("time",      TIME,   "created_at"),
        Property("ignored",   FLAG,   "ignored",    writable=True, about="until it says something else"),
        Property("ignoredBy", STRING, "ignored_by"),
    ),
    order=("-created_at",),
    change=Migration.change_warning,
    filterable=_MODIFIED,
)

CHECKLIST = EntitySet(
    "checklistItems", "checklistItem", ChecklistItem,
    "What people do before and after the migration is completed, in each company. Ticking a step in one ticks it in all.",
    properties=(
        Property("id",          GUID,   "id"),
        Property("companyName", STRING, "company_name", 250),
        Property("step",        STRING, "step",         values=ChecklistStep),
        Property("about",       STRING, "about"),
        Property("done",        FLAG,   "done",         writable=True, about="`EndMigration` is ticked by itself"),
        Property("doneBy",      STRING, "done_by"),
        Property("doneTime",    TIME,   "done_at",      nullable=True, about="UTC; null = not ticked, or ticked by itself"),
    ),
    rows=lambda service: service.checklist(),
    change=Migration.change_checklist,
)

DELIVERIES = EntitySet(
    "deliveries", "delivery", Delivery,
    "The calls of webhooks' receivers, newest first; the setting `webhook_log` says how many are kept.",
    properties=(
        Property("id",            LONG,   "id"),
        Property("time",          TIME,   "at"),
        Property("url",           STRING, "url",           about="without its query"),
        Property("subscriptions", STRING, "subscriptions", about="ids, separated by blanks"),
        Property("changes",       INT,    "items",         about="that it was told of"),
        Property("attempt",       INT,    "attempt",       about="1 = the first"),
        Property("httpStatus",    INT,    "status",        about="0 = no answer"),
        Property("outcome",       STRING, "outcome",       about="`delivered`, `again`, `removed` or `given up`"),
        Property("error",         STRING, "error"),
        Property("durationMs",    INT,    "duration_ms",   about="milliseconds"),
    ),
    order=("-id",),
)

LIMITS = EntitySet(
    "limits", "limit", Limit,
    "What skylift bounds, in one place.",
    properties=(
        Property("name",    STRING, "name"),
        Property("value",   LONG,   "value",   nullable=True, about="in `unit`; null = no limit"),
        Property("unit",    STRING, "unit"),
        Property("setting", STRING, "setting", about="that changes it; empty = none does"),
        Property("about",   STRING, "about"),
    ),
    rows=limits,
)

SUBSCRIPTIONS = replace(
    v1.SUBSCRIPTIONS, about="Webhook subscriptions to a set of this API with a GUID as key (but not to `companies`), or to an entity of "
    "it. Otherwise as in v1.0.")

IN_COMPANY: tuple[EntitySet, ...] = (
    MIGRATIONS, RUNS, RUN_TABLES, TABLES, SOURCE_COMPANIES, UPGRADE_STEPS, FINDINGS, ASSESSMENTS, VALIDATIONS, VALIDATION_SUITES,
    VALIDATION_TESTS, VALIDATION_RESULTS, WARNINGS, CHECKLIST, EVENTS, DELIVERIES, LIMITS)

COMPANIES = replace(v1.COMPANIES, navigations=tuple(Navigation(s.name, s) for s in IN_COMPANY))

DEFINITIONS = replace(v1.DEFINITIONS, rows=lambda _: entity_definitions(V2))

V2: Api = Api("skylift", "cloudMigration", "v2.0", (COMPANIES, *IN_COMPANY, SUBSCRIPTIONS, DEFINITIONS))
