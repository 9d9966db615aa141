"""Statuses of a migration, a run and a table in it, and the one table of allowed moves for each life.

Members are named as the API's member names; how the wire spells them is decided in api/render.py alone.
Source: behaviour.md §2.3 (values), §4.2 (states x events).
"""

from __future__ import annotations

from enum import StrEnum

from skylift.errors import StateError


class RunStatus(StrEnum):
    FAILED = "Failed"
    IN_PROGRESS = "InProgress"                  # tables are being copied
    COMPLETED = "Completed"
    UPGRADE_PENDING = "UpgradePending"          # the copy has ended; runDataUpgrade is the next verb
    UPGRADE_IN_PROGRESS = "UpgradeInProgress"
    UPGRADE_FAILED = "UpgradeFailed"
    REPAIR_DATA_PENDING = "RepairDataPending"   # legacy: read, never assigned


class ReplicationType(StrEnum):
    NORMAL = "Normal"
    DIAGNOSTIC = "Diagnostic"
    FULL = "Full"
    AZURE_DATA_LAKE = "AzureDataLake"


class TableStatus(StrEnum):
    FAILED = "Failed"
    IN_PROGRESS = "InProgress"
    SUCCESSFUL = "Successful"
    WARNING = "Warning"
    NOT_STARTED = "NotStarted"


class CompanyInit(StrEnum):
    UNKNOWN = "Unknown"
    NOT_INITIALIZED = "NotInitialized"
    INITIALIZATION_FAILED = "InitializationFailed"
    INITIALIZED = "Initialized"


class CompanySetupStatus(StrEnum):
    NONE = "None"
    COMPLETED = "Completed"
    IN_PROGRESS = "InProgress"
    ERROR = "Error"
    MISSING_PERMISSION = "MissingPermission"


class SqlServerType(StrEnum):
    SQL_SERVER = "SQLServer"
    AZURE_SQL = "AzureSQL"


class TableMappingType(StrEnum):
    TABLE = "Table"
    TABLE_EXTENSION = "TableExtension"


class UpgradeStatus(StrEnum):
    NONE = "None"
    PENDING = "Pending"
    STARTED = "Started"
    COMPLETED = "Completed"
    FAILED = "Failed"


class Severity(StrEnum):
    """Of what an assessment finds."""

    BLOCKING = "Blocking"                       # a run or a table would fail: nothing begins until it is mended or accepted
    WARNING = "Warning"                         # it goes, but not as one would expect
    INFORMATION = "Information"


class AssessmentStatus(StrEnum):
    NEVER = "Never"
    ASKED = "Asked"                             # the coordinator does it when it has nothing else to do
    RUNNING = "Running"
    COMPLETED = "Completed"
    FAILED = "Failed"


class ValidationStatus(StrEnum):
    IN_PROGRESS = "InProgress"
    COMPLETED = "Completed"                     # whatever was found
    FAILED = "Failed"                           # it could not be done
    REPLACED = "Replaced"                       # another one was asked for before its end


class WarningType(StrEnum):
    RECORD_LINK = "RecordLink"
    TENANT_MEDIA = "TenantMedia"
    MIGRATION_VALIDATOR = "MigrationValidator"  # a validation suite could not be carried out


class ChecklistStep(StrEnum):
    USERS_OUT = "UsersOut"
    FINAL_RUN = "FinalRun"
    VERIFY = "Verify"
    END = "EndMigration"
    PERMISSIONS = "UsersAndPermissions"
    USER_MAPPINGS = "UserMappings"
    RECORD_LINKS = "RecordLinks"
    INTEGRATIONS = "Integrations"
    MONITOR = "Monitor"


class MigrationState(StrEnum):
    NOT_SET_UP = "NotSetUp"
    AWAITING_AGENT = "AwaitingAgent"            # runtime name and key handed out, no source connected yet
    ENABLED = "Enabled"                         # source connected, companies read
    CREATING_COMPANIES = "CreatingCompanies"
    CREATION_FAILED = "CreationFailed"
    READY = "Ready"
    REPLICATING = "Replicating"
    UPGRADE_PENDING = "UpgradePending"
    UPGRADING = "Upgrading"
    UPGRADE_FAILED = "UpgradeFailed"
    UPGRADED = "Upgraded"
    DISABLED = "Disabled"


S = RunStatus
RUN_TRANSITIONS: dict[tuple[RunStatus, str], RunStatus] = {
    # from                    event               to
    (S.IN_PROGRESS,          "complete"):         S.COMPLETED,
    (S.IN_PROGRESS,          "await_upgrade"):    S.UPGRADE_PENDING,
    (S.IN_PROGRESS,          "fail"):             S.FAILED,
    (S.IN_PROGRESS,          "cancel"):           S.FAILED,
    (S.FAILED,               "unblock"):          S.UPGRADE_PENDING,     # its last failed table was accepted as it is
    (S.COMPLETED,            "await_upgrade"):    S.UPGRADE_PENDING,     # packs were named for a product that needs no upgrade
    (S.UPGRADE_PENDING,      "upgrade"):          S.UPGRADE_IN_PROGRESS,
    (S.UPGRADE_PENDING,      "supersede"):        S.COMPLETED,           # a later run takes its place
    (S.UPGRADE_IN_PROGRESS,  "complete"):         S.COMPLETED,
    (S.UPGRADE_IN_PROGRESS,  "fail"):             S.UPGRADE_FAILED,
    (S.UPGRADE_FAILED,       "upgrade"):          S.UPGRADE_IN_PROGRESS,  # the steps resume, finished companies are skipped
}

M = MigrationState
MIGRATION_TRANSITIONS: dict[tuple[MigrationState, str], MigrationState] = {
    # from                    event               to
    (M.NOT_SET_UP,           "register_agent"):   M.AWAITING_AGENT,
    (M.AWAITING_AGENT,       "register_agent"):   M.AWAITING_AGENT,
    (M.NOT_SET_UP,           "enable"):           M.ENABLED,
    (M.AWAITING_AGENT,       "enable"):           M.ENABLED,
    (M.ENABLED,              "enable"):           M.ENABLED,
    (M.READY,                "enable"):           M.READY,
    (M.CREATION_FAILED,      "enable"):           M.CREATION_FAILED,
    (M.UPGRADE_PENDING,      "enable"):           M.UPGRADE_PENDING,
    (M.DISABLED,             "enable"):           M.ENABLED,
    (M.ENABLED,              "create_companies"): M.CREATING_COMPANIES,
    (M.READY,                "create_companies"): M.CREATING_COMPANIES,
    (M.CREATION_FAILED,      "create_companies"): M.CREATING_COMPANIES,
    (M.UPGRADE_PENDING,      "create_companies"): M.CREATING_COMPANIES,
    (M.CREATING_COMPANIES,   "created"):          M.READY,
    (M.CREATING_COMPANIES,   "creation_failed"):  M.CREATION_FAILED,
    (M.READY,                "replicate"):        M.REPLICATING,
    (M.UPGRADE_PENDING,      "replicate"):        M.REPLICATING,
    (M.REPLICATING,          "replicated"):       M.READY,
    (M.REPLICATING,          "await_upgrade"):    M.UPGRADE_PENDING,
    (M.REPLICATING,          "run_failed"):       M.READY,
    (M.REPLICATING,          "run_cancelled"):    M.READY,
    (M.READY,                "unblock"):          M.UPGRADE_PENDING,
    (M.READY,                "await_upgrade"):    M.UPGRADE_PENDING,
    (M.UPGRADE_PENDING,      "upgrade"):          M.UPGRADING,
    (M.UPGRADE_FAILED,       "upgrade"):          M.UPGRADING,
    (M.UPGRADE_FAILED,       "reset"):            M.READY,           # the next run copies everything anew
    (M.UPGRADING,            "upgraded"):         M.UPGRADED,
    (M.UPGRADING,            "upgrade_failed"):   M.UPGRADE_FAILED,
    **{(state, "disable"): M.DISABLED for state in (
        M.ENABLED, M.CREATING_COMPANIES, M.CREATION_FAILED, M.READY, M.UPGRADE_PENDING, M.UPGRADE_FAILED, M.UPGRADED)},
}

# Which states permit which verb (behaviour.md §4.3, with "skylift:" corrections). What a verb looks at besides stands with it.
_BEFORE = {M.NOT_SET_UP, M.AWAITING_AGENT}
_WORKING = {M.REPLICATING, M.UPGRADING}
ALLOWED: dict[str, set[MigrationState]] = {
    "complete_setup":            {M.ENABLED, M.CREATION_FAILED, M.READY, M.UPGRADE_PENDING},
    "create_companies":          {M.ENABLED, M.CREATION_FAILED, M.READY, M.UPGRADE_PENDING},
    "initialize_company":        set(M) - _BEFORE - _WORKING - {M.DISABLED},
    "change_company":            set(M) - _BEFORE - {M.UPGRADING},
    "change_mappings":           set(M) - _BEFORE - {M.UPGRADING},
    "run_replication":           {M.READY, M.UPGRADE_PENDING},
    "run_data_upgrade":          {M.UPGRADE_PENDING, M.UPGRADE_FAILED},
    "reset_cloud_data":          set(M) - _BEFORE - _WORKING - {M.UPGRADED},
    "disable_replication":       set(M) - _BEFORE - _WORKING,                       # once disabled it does nothing
    "pause":                     set(M) - _BEFORE - _WORKING,
    "abandon":                   set(M) - _BEFORE - _WORKING,
    "complete_cloud_migration":  set(M) - _BEFORE - _WORKING - {M.UPGRADE_PENDING, M.UPGRADE_FAILED},
    "force_completion":          set(M) - _BEFORE - _WORKING,
    "change_tables":             set(M) - _BEFORE - _WORKING,
    "assess":                    set(M) - _BEFORE - _WORKING,
    "validate":                  set(M) - _BEFORE - _WORKING,
}


def advance(status: StrEnum, event: str) -> StrEnum:
    """The status that `event` leads to. Raises StateError naming the events possible now."""
    table = RUN_TRANSITIONS if isinstance(status, RunStatus) else MIGRATION_TRANSITIONS
    try:
        return table[status, event]  # type: ignore[index]
    except KeyError:
        possible = sorted(e for s, e in table if s is status)
        raise StateError(f"'{event}' is not possible in state {status}",
                         hint=f"possible now: {', '.join(possible) or 'nothing'}") from None
