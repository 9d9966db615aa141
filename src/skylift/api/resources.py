"""Every entity set, property, navigation and bound action of the Cloud Migration API v1.0, declared once.

Source: odata.md §2 (M2-M4), behaviour.md §2 and §3.
"""

from __future__ import annotations

from skylift.api.declare import (
    DECIMAL,
    FLAG,
    GUID,
    INT,
    STRING,
    TIME,
    Action,
    Api,
    EntityDefinition,
    EntitySet,
    Navigation,
    Property,
)
from skylift.api.metadata import entity_definitions
from skylift.migration import Migration
from skylift.model import Company, ProductType, Run, RunTable, Setup, SourceCompany, Subscription, TableMapping
from skylift.runs import (
    CompanyInit,
    CompanySetupStatus,
    ReplicationType,
    RunStatus,
    SqlServerType,
    TableMappingType,
    TableStatus,
)

_AUDIT = (
    Property("systemCreatedAt",  TIME, "created_at"),
    Property("systemCreatedBy",  GUID, "created_by"),
    Property("systemModifiedAt", TIME, "modified_at"),
    Property("systemModifiedBy", GUID, "modified_by"),
)

_MODIFIED = (Property("lastModifiedDateTime", TIME, "modified_at"),)

SOURCE_COMPANIES = EntitySet(
    "cloudMigrationCompanies", "cloudMigrationCompany", SourceCompany,
    "The companies found in the source. Those with `replicate` take part in the next runs.",
    properties=(
        #        property                        type     attribute         length
        Property("id",                          GUID,    "id"),
        Property("name",                        STRING,  "name",            50),
        Property("replicate",                   FLAG,    "replicate",       writable=True),
        Property("displayName",                 STRING,  "display_name",    250),
        Property("estimatedSize",               DECIMAL, "estimated_size"),
        Property("status",                      "companySetupStatus", "status", values=CompanySetupStatus),
        Property("created",                     FLAG,    "created"),
        Property("companyInitializationStatus", STRING,  "init_status",     values=CompanyInit),
        Property("companyInitializationError",  STRING,  "init_error"),
    ),
    order=("name",),
    actions=(
        Action("createCompaniesMarkedForReplication", Migration.create_companies, "Create every marked company in the target."),
        Action("initializeCompany", Migration.initialize_company, "Initialise this company."),
    ),
    change=Migration.change_company,
    filterable=_MODIFIED,
    aliases=("cloudMigrationCompanys",),
)

RUNS = EntitySet(
    "cloudMigrationStatus", "cloudMigrationStatus", Run,
    "One row per replication run and per life-cycle event (set-up done, disabled, completed), newest first.",
    properties=(
        Property("id",               GUID,   "id"),
        Property("runId",            STRING, "run_id",            50),
        Property("startTime",        TIME,   "started_at"),
        Property("endTime",          TIME,   "ended_at"),
        Property("replicationType",  STRING, "replication_type",  values=ReplicationType),
        Property("status",           STRING, "status",            values=RunStatus),
        Property("source",           STRING, "source",            250),
        Property("details",          STRING, "details"),
        Property("tablesSuccessful", INT,    "tables_successful"),
        Property("tablesFailed",     INT,    "tables_failed"),
        Property("tablesRemaining",  INT,    "tables_remaining"),
    ),
    order=("-started_at",),
    navigations=(Navigation("cloudMigrationStatusDetails", lambda: RUN_TABLES, on=("run_id", "run_id"),
                            partner="cloudMigrationStatus"),),
    actions=(
        Action("runReplication", Migration.run_replication, "Start a run: what changed since the last one, or all where there is none."),
        Action("runDataUpgrade", Migration.run_data_upgrade, "Run the upgrade that follows the newest run of a product with upgrades."),
        Action("refreshStatus", Migration.refresh_status, "Bring the rows up to date; skylift's always are."),
        Action("resetCloudData", Migration.reset_cloud_data, "Make the next run copy every table whole. No data is deleted."),
        Action("completeCloudMigration", Migration.complete_cloud_migration, "End the migration, once everything has arrived."),
        Action("disableReplication", Migration.disable_replication, "End replication for now."),
    ),
    filterable=_MODIFIED,
    aliases=("cloudMigrationStatuss",),
)

RUN_TABLES: EntitySet = EntitySet(
    "cloudMigrationStatusDetails", "cloudMigrationStatusDetail", RunTable,
    "One row per run, table and company. `companyName` is empty for tables that belong to no company.",
    properties=(
        Property("id",            GUID,   "id"),
        Property("runId",         STRING, "run_id",        50),
        Property("companyName",   STRING, "company_name",  250),
        Property("tableName",     STRING, "table_name",    250),
        Property("status",        STRING, "status",        values=TableStatus),
        Property("recordsCopied", INT,    "records_copied"),
        Property("totalRecords",  INT,    "total_records"),
        Property("errors",        STRING, "errors",        2048),
    ),
    order=("run_id", "table_name", "company_name"),
    navigations=(Navigation("cloudMigrationStatus", lambda: RUNS, many=False, on=("run_id", "run_id"), path="run",
                            partner="cloudMigrationStatusDetails"),),
    filterable=_MODIFIED,
)

SETUP = EntitySet(
    "setupCloudMigration", "setupCloudMigration", Setup,
    "The migration's set-up: one row at most, made by POST and changed by PATCH. Connection string and runtime are answered "
    "to the call that sets them and are empty afterwards. Writes and actions need an administrator.",
    properties=(
        Property("id",                  GUID,   "id"),
        Property("productId",           STRING, "product_id",            250, writable=True),
        Property("sqlServerType",       STRING, "sql_server_type",       values=SqlServerType, writable=True),
        Property("sqlConnectionString", STRING, "sql_connection_string", writable=True, secret=True),
        Property("runtimeName",         STRING, "runtime_name",          writable=True, secret=True),
        Property("runtimeKey",          STRING, "runtime_key",           secret=True),
    ),
    actions=(
        Action("installedIntegrationRuntime", Migration.installed_integration_runtime,
               "The integration runtime is there: connect the source."),
        Action("completeSetup", Migration.complete_setup, "Record default mappings and create the marked companies."),
    ),
    create=Migration.create_setup, change=Migration.change_setup,
    filterable=_MODIFIED,
    administrator=True,
    aliases=("setupCloudMigrations",),
)

PRODUCTS = EntitySet(
    "sourceProductTypes", "sourceProductType", ProductType,
    "The source products that skylift knows.",
    properties=(
        Property("id",          STRING, "id",           250),
        Property("displayName", STRING, "display_name", 250),
    ),
)

MAPPINGS = EntitySet(
    "tableMappings", "tableMapping", TableMapping,
    "Which source table feeds which target table, where the names alone do not say it. Send `appId` before the names.",
    properties=(
        Property("id",              GUID,   "id"),
        Property("targetTableType", "migrationTableType", "target_table_type", values=TableMappingType, writable=True),
        Property("appId",           GUID,   "app_id",            writable=True),
        Property("extensionName",   STRING, "extension_name",    250),
        Property("tableId",         INT,    "table_id",          writable=True),
        Property("tableName",       STRING, "table_name",        30,  writable=True),
        Property("sourceTableName", STRING, "source_table_name", 128, writable=True),
        Property("dataPerCompany",  FLAG,   "per_company",       writable=True),
    ),
    actions=(
        Action("restoreDefaults", Migration.restore_defaults, "Delete all mappings and insert the product's."),
        Action("deleteAllForExtension", Migration.delete_all_for_extension, "Delete every mapping with this row's appId."),
    ),
    create=Migration.create_mapping, change=Migration.change_mapping, delete=Migration.delete_mapping,
    filterable=_MODIFIED,
)


SUBSCRIPTIONS = EntitySet(
    "subscriptions", "subscriptions", Subscription,
    "Webhook subscriptions: to a set of this API or to one entity of it, but not to `companies` and `sourceProductTypes`. The address "
    "`notificationUrl` must answer a `POST` with the `validationToken` of its query, at first and whenever the subscription is "
    "renewed by `PATCH`; it is told later what was created, updated or deleted.",
    properties=(
        Property("subscriptionId",       STRING, "id",               150),
        Property("notificationUrl",      STRING, "notification_url", writable=True),
        Property("resource",             STRING, "resource",         writable=True),
        Property("userId",               GUID,   "user_id"),
        Property("lastModifiedDateTime", TIME,   "modified_at"),
        Property("clientState",          STRING, "client_state",     2048, writable=True),
        Property("expirationDateTime",   TIME,   "expires_at",       ignored=True),
        *_AUDIT,
    ),
    create=Migration.create_subscription, change=Migration.change_subscription, delete=Migration.delete_subscription,
    in_company=False,
)

IN_COMPANY = (SOURCE_COMPANIES, RUNS, RUN_TABLES, SETUP, PRODUCTS, MAPPINGS)

COMPANIES = EntitySet(
    "companies", "company", Company,
    "The companies of the environment. A call is made in the context of one; all show the same rows.",
    properties=(
        Property("id",                GUID,   "id"),
        Property("systemVersion",     STRING, "system_version"),
        Property("name",              STRING, "name",                30),
        Property("displayName",       STRING, "display_name",        250),
        Property("businessProfileId", STRING, "business_profile_id", 250),
        *_AUDIT,
    ),
    order=("name",),
    navigations=tuple(Navigation(s.name, s) for s in IN_COMPANY),
    in_company=False,
)

DEFINITIONS = EntitySet(
    "entityDefinitions", "entityMetadata", EntityDefinition,
    "Names and captions of all types, for programs that show them.",
    properties=(
        Property("entityName",        STRING, "name"),
        Property("entitySetName",     STRING, "set_name"),
        Property("entityCaptions",    "Collection(Microsoft.NAV.entityMetadataLabel)",      "captions"),
        Property("entitySetCaptions", "Collection(Microsoft.NAV.entityMetadataLabel)",      "set_captions"),
        Property("properties",        "Collection(Microsoft.NAV.entityMetadataField)",      "properties"),
        Property("actions",           "Collection(Microsoft.NAV.entityMetadataAction)",     "actions"),
        Property("enumMembers",       "Collection(Microsoft.NAV.entityMetadataEnumMember)", "enum_members"),
    ),
    in_company=False,
    rows=lambda _: entity_definitions(V1),
)

V1: Api = Api("microsoft", "cloudMigration", "v1.0", (COMPANIES, *IN_COMPANY, SUBSCRIPTIONS, DEFINITIONS), short=True)
