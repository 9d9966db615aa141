"""Every state x every action (behaviour.md §4.3): permitted, or refused with which code, and a refusal changes nothing."""

import shutil

import pytest
import sqlalchemy as sa

from skylift.errors import SkyliftError
from skylift.migration import Migration
from skylift.model import App, Run, Scope, TableSwitch
from skylift.query import Query
from skylift.runs import MigrationState, RunStatus, TableStatus
from skylift.settings import Settings
from skylift.store import open_store
from skylift.store.tables import metadata, registry, run_tables
from tests.migration.lab import ANY, Lab

M = MigrationState
STATES = (M.NOT_SET_UP, M.AWAITING_AGENT, M.ENABLED, M.CREATING_COMPANIES, M.CREATION_FAILED, M.READY, M.REPLICATING,
          M.UPGRADE_PENDING, M.UPGRADING, M.UPGRADE_FAILED, M.UPGRADED, M.DISABLED)
RUN_STATUS = {M.REPLICATING: RunStatus.IN_PROGRESS, M.UPGRADE_PENDING: RunStatus.UPGRADE_PENDING,
              M.UPGRADING: RunStatus.UPGRADE_IN_PROGRESS, M.UPGRADE_FAILED: RunStatus.UPGRADE_FAILED}
CODES = {"no": "NotSetUp", "ag": "AwaitingAgent", "se": "SetupNotComplete", "cc": "CreatingCompanies", "cf": "CreationFailed",
         "rn": "RunInProgress", "up": "UpgradePending", "ug": "UpgradeInProgress", "uf": "UpgradeFailed", "ud": "Upgraded",
         "di": "50016", "nf": "NotFound", "ex": "SetupExists", "nu": "NotUpgraded", "nt": "NothingToUpgrade", "nr": "NoRun", "ok": "ok"}
GRID = {
    # state:            no. aw. en. cr. cf. re. rn. up. ug. uf. ud. di.     in the order of STATES
    "create_setup":     "ok  ex  ex  ex  ex  ex  ex  ex  ex  ex  ex  ex",
    "change_setup":     "nf  ok  ok  cc  ok  ok  rn  ok  ug  uf  ud  ok",
    "agent_installed":  "nf  ok  ok  cc  ok  ok  rn  ok  ug  uf  ud  ok",
    "complete_setup":   "nf  ag  ok  cc  ok  ok  rn  ok  ug  uf  ud  di",
    "change_company":   "no  ag  ok  ok  ok  ok  ok  ok  ug  ok  ok  ok",
    "create_companies": "no  ag  ok  cc  ok  ok  rn  ok  ug  uf  ud  di",
    "initialize":       "no  ag  ok  ok  ok  ok  rn  ok  ug  ok  ok  di",
    "run":              "no  ag  se  cc  cf  ok  rn  ok  ug  uf  ud  di",
    "run_part":         "no  ag  se  cc  cf  ok  rn  ok  ug  uf  ud  di",
    "cancel":           "nr  nr  nr  nr  nr  nr  ok  nr  ug  nr  nr  nr",
    "refresh":          "ok  ok  ok  ok  ok  ok  ok  ok  ok  ok  ok  ok",
    "upgrade":          "no  ag  se  cc  cf  nt  rn  ok  ug  ok  ud  di",
    "reset":            "no  ag  ok  ok  ok  ok  rn  ok  ug  ok  ud  ok",
    "disable":          "no  ag  ok  ok  ok  ok  rn  ok  ug  ok  ok  ok",
    "pause":            "no  ag  ok  ok  ok  ok  rn  ok  ug  ok  ok  di",
    "abandon":          "no  ag  ok  ok  ok  ok  rn  ok  ug  ok  ok  ok",
    "force_completion": "no  ag  ok  ok  ok  ok  rn  ok  ug  ok  ok  ok",
    "change_table":     "no  ag  ok  ok  ok  ok  rn  ok  ug  ok  ok  ok",
    "unblock_table":    "no  ag  ok  ok  ok  ok  rn  ok  ug  ok  ok  ok",
    "assess":           "no  ag  ok  ok  ok  ok  rn  ok  ug  ok  ok  ok",
    "accept":           "ok  ok  ok  ok  ok  ok  ok  ok  ok  ok  ok  ok",
    "complete":         "no  ag  nu  nu  nu  nu  rn  up  ug  uf  ok  nu",
    "create_mapping":   "no  ag  ok  ok  ok  ok  ok  ok  ug  ok  ok  ok",
    "change_mapping":   "no  ag  ok  ok  ok  ok  ok  ok  ug  ok  ok  ok",
    "delete_mapping":   "no  ag  ok  ok  ok  ok  ok  ok  ug  ok  ok  ok",
    "restore_defaults": "no  ag  ok  ok  ok  ok  ok  ok  ug  ok  ok  ok",
    "delete_extension": "no  ag  ok  ok  ok  ok  ok  ok  ug  ok  ok  ok",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, sample_file):
    folder = tmp_path_factory.mktemp("matrix")
    shutil.copy(sample_file, folder / "bc.db")
    settings = Settings(home=folder / "home")
    store = open_store(settings.store)
    lab = Lab(Migration(store, settings, "tester"), folder / "bc.db")
    lab.prepare()
    lab.run()
    lab.migration.ask_assessment()
    lab.work()
    yield lab, lab.dump()
    store.close()


@pytest.fixture
def furnished(made):
    """Set up, companies created and copied, the product's mapping, an upgrade pending: from there any state can be forced."""
    lab, dump = made
    restore(lab, dump)
    return lab


def fail_a_table(lab):
    """One table's last copy has failed, and it is left out, so that it holds up nothing."""
    with lab.store.write() as connection:
        row = connection.execute(sa.select(run_tables).where(run_tables.c.company_name != "").limit(1)).one()
        connection.execute(run_tables.update().where(run_tables.c.id == row.id).values(status=TableStatus.FAILED, errors="no"))
        connection.execute(registry.update().where(registry.c.company_name == row.company_name, registry.c.table_name == row.table_name)
                           .values(blocked=True, replicate=False))


def actions(lab):
    m, setup_id, company, mapping = lab.migration, lab.setup.id, lab.companies[0], lab.mappings[0]
    [blocked] = [table for table in m.select(TableSwitch, Query()) if table.blocked]
    renamed = {"app_id": "rental", "table_name": "New Buffer", "source_table_name": "Import Buffer"}
    return {
        "create_setup": lambda: m.create_setup(lab.values),
        "change_setup": lambda: m.change_setup(setup_id, lab.values, ANY),
        "agent_installed": lambda: m.installed_integration_runtime(setup_id),
        "complete_setup": lambda: m.complete_setup(setup_id),
        "change_company": lambda: m.change_company(company.id, {"replicate": False}, ANY),
        "create_companies": lambda: m.create_companies(company.id),
        "initialize": lambda: m.initialize_company(company.id),
        "run": lambda: m.run_replication(),
        "run_part": lambda: m.run_replication(scope=Scope(companies=(company.name,))),
        "cancel": lambda: m.cancel_replication(),
        "refresh": lambda: m.refresh_status(),
        "upgrade": lambda: m.run_data_upgrade(),
        "reset": lambda: m.reset_cloud_data(),
        "disable": lambda: m.disable_replication(),
        "pause": lambda: m.pause("until Monday"),
        "abandon": lambda: m.abandon("no longer wanted"),
        "complete": lambda: m.complete_cloud_migration(),
        "force_completion": lambda: m.complete_cloud_migration(force=True, reason="the rest is archived"),
        "change_table": lambda: m.change_table(blocked.id, {"replicate": True}, ANY),
        "unblock_table": lambda: m.unblock_table(blocked.id),
        "assess": lambda: m.ask_assessment(scan=True),
        "accept": lambda: m.accept_findings("NoKey", "it has always been so"),
        "create_mapping": lambda: m.create_mapping({**renamed, "app_id": rental(lab)}),
        "change_mapping": lambda: m.change_mapping(mapping.id, {"source_table_name": "[Record Link]"}, ANY),
        "delete_mapping": lambda: m.delete_mapping(mapping.id, ANY),
        "restore_defaults": lambda: m.restore_defaults(mapping.id),
        "delete_extension": lambda: m.delete_all_for_extension(mapping.id),
    }


def rental(lab):
    return next(app.id for app in lab.migration.select(App, Query()) if app.name == "Rental")


@pytest.mark.parametrize("n", range(len(STATES)), ids=STATES)
def test_what_a_state_permits(furnished, n):
    lab, state = furnished, STATES[n]
    fail_a_table(lab)
    before = lab.dump()
    todo = actions(lab)
    wrong = []
    for action, row in GRID.items():
        expected = CODES[row.split()[n]]
        restore(lab, before)
        lab.force(state, RUN_STATUS.get(state, RunStatus.COMPLETED), runtime_name="agent", creation_error="no space")
        forced = lab.dump()
        try:
            todo[action]()
            got = "ok"
        except SkyliftError as error:
            got = error.code
            if lab.dump() != forced:
                wrong.append(f"{action}: refused, and yet something has changed")
        if got != expected:
            wrong.append(f"{action}: {got} instead of {expected}")
    assert wrong == []


def restore(lab, dump):
    with lab.store.write() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
        for table in metadata.sorted_tables:
            if dump[table.name]:
                connection.execute(table.insert(), [dict(zip(table.c.keys(), row, strict=True)) for row in dump[table.name]])


@pytest.mark.parametrize("state, sentence", [
    (M.AWAITING_AGENT, "the migration waits for its integration runtime"),
    (M.ENABLED, "no company has been created yet"),
    (M.CREATING_COMPANIES, "companies are being created"),
    (M.CREATION_FAILED, "creating companies failed: no space"),
    (M.REPLICATING, "a replication run is in progress"),
    (M.UPGRADING, "the data upgrade is in progress"),
    (M.UPGRADE_FAILED, "the data upgrade has failed"),
    (M.UPGRADED, "the data has been upgraded; replicating again would mix raw rows with upgraded ones"),
    (M.DISABLED, "the migration is disabled"),
])
def test_a_refused_run_says_why_and_what_to_do(furnished, state, sentence):
    furnished.force(state, creation_error="no space")

    with pytest.raises(SkyliftError) as raised:
        furnished.migration.run_replication()

    assert raised.value.message == sentence
    assert raised.value.hint


def test_a_row_that_is_not_there_is_told_for_every_action_that_names_one(furnished):
    m, missing = furnished.migration, furnished.setup.id.__class__(int=7)
    for call in (lambda: m.change_setup(missing, {}, ANY), lambda: m.complete_setup(missing),
                 lambda: m.installed_integration_runtime(missing), lambda: m.change_company(missing, {}, ANY),
                 lambda: m.create_companies(missing), lambda: m.initialize_company(missing),
                 lambda: m.run_replication(missing), lambda: m.refresh_status(missing), lambda: m.run_data_upgrade(missing),
                 lambda: m.reset_cloud_data(missing), lambda: m.disable_replication(missing), lambda: m.complete_cloud_migration(missing),
                 lambda: m.change_mapping(missing, {}, ANY), lambda: m.delete_mapping(missing, ANY), lambda: m.restore_defaults(missing),
                 lambda: m.delete_all_for_extension(missing),
                 lambda: m.cancel_replication(missing), lambda: m.pause("", missing),
                 lambda: m.abandon("", missing), lambda: m.change_table(missing, {}, ANY), lambda: m.unblock_table(missing),
                 lambda: m.accept_finding(missing, "why not"), lambda: m.get(Run, missing)):
        with pytest.raises(SkyliftError, match="there is no") as raised:
            call()
        assert raised.value.code == "NotFound"
