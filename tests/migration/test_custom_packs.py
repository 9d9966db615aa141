"""Packs of one's own for product Custom, which needs no upgrade: they are named, and all goes as with a product that needs one."""

import pytest

from skylift.errors import SetupError, StateError
from skylift.migration import Migration
from skylift.migration.upgrade import preview
from skylift.model import Run, UpgradeStep
from skylift.query import Query
from skylift.runs import MigrationState, RunStatus, UpgradeStatus
from skylift.settings import Settings
from skylift.store import open_store
from tests.migration.lab import Lab

TITLES = "select Title from shop.Album order by 1"


@pytest.fixture
def shop(tmp_path):
    """A SQLite database of one company, copied; own packs stand where the service looks for them."""
    settings = Settings(home=tmp_path / "home", poll_s=0.02)
    store = open_store(settings.store)
    lab = Lab(Migration(store, settings, "tester"), tmp_path / "shop.db")
    lab.in_source("create table Album (Id integer primary key, Title text)", "insert into Album values (1, 'a'), (2, 'b')")
    write(settings.home, "upper", "update {{Album}} set Title = upper(Title)", 'product = "Custom"')
    lab.prepare(product_id="Custom")
    assert lab.run().status is RunStatus.COMPLETED
    yield lab
    store.close()


def write(home, name, sql, more=""):
    folder = home / "packs" / name
    folder.mkdir(parents=True)
    (folder / "pack.toml").write_text(f'name = "{name}"\nversion = "1"\n{more}\n[[step]]\nid = "one"\nsql = "one.sql"\n')
    (folder / "one.sql").write_text(sql)


def test_a_pack_that_is_named_upgrades_the_newest_run_and_the_migration_completes(shop):
    shop.migration.run_named_upgrade(packs=["upper"], current=True)
    assert (shop.state, shop.runs[0].status) == (MigrationState.UPGRADING, RunStatus.UPGRADE_IN_PROGRESS)
    shop.work()

    assert (shop.state, shop.runs[0].status) == (MigrationState.UPGRADED, RunStatus.COMPLETED)
    assert shop.in_target(TITLES) == [("A",), ("B",)]
    assert [(s.company_name, s.pack, s.status) for s in shop.migration.select(UpgradeStep, Query())] == [
        ("shop", "upper", UpgradeStatus.COMPLETED)]
    with pytest.raises(StateError, match="replicating again would mix raw rows with upgraded ones"):
        shop.run()
    shop.migration.complete_cloud_migration()
    assert shop.state is MigrationState.DISABLED and shop.in_target(TITLES) == [("A",), ("B",)]


def test_a_pack_that_fails_leaves_the_rows_as_copied_and_goes_on_once_it_is_mended(shop):
    write(shop.migration.settings.home, "broken", "update {{Album}} set Title = 'x'; select * from nowhere")
    shop.migration.run_data_upgrade(packs=["broken"])
    shop.work()
    assert shop.state is MigrationState.UPGRADE_FAILED and shop.in_target(TITLES) == [("a",), ("b",)]
    with pytest.raises(StateError, match="the data upgrade has failed"):
        shop.migration.complete_cloud_migration()

    (shop.migration.settings.home / "packs" / "broken" / "one.sql").write_text("update {{Album}} set Title = 'x'")
    shop.migration.run_data_upgrade()
    shop.work()
    assert shop.state is MigrationState.UPGRADED and shop.in_target(TITLES) == [("x",), ("x",)]


def test_a_dry_run_changes_nothing_and_what_is_not_done_has_its_reason(shop):
    seen = []
    assert preview(shop.migration, ["upper"], [], seen.append) == []
    assert [step.statements for step in seen if step.seconds is not None] == [('update "shop"."Album" set Title = upper(Title)',)]
    assert preview(shop.migration, None, [], seen.append) == ["no upgrade pack is named (--pack NAME, or the setting packs)"]
    assert shop.state is MigrationState.READY and shop.in_target(TITLES) == [("a",), ("b",)]


def test_without_packs_there_is_nothing_to_upgrade_and_nothing_changes(shop):
    before = shop.dump()
    for packs, why in ((None, "Custom Migration needs no data upgrade"), ([], "Custom Migration needs no data upgrade")):
        with pytest.raises(StateError, match=why) as refused:
            shop.migration.run_data_upgrade(packs=packs)
        assert refused.value.code == "NoUpgrade" and "name upgrade packs" in refused.value.hint
    for pack, code in (("number-series", "PackProduct"), ("nowhere", "Pack")):
        with pytest.raises(SetupError) as refused:
            shop.migration.run_data_upgrade(packs=[pack])
        assert refused.value.code == code
    for path in ("../packs/upper", "/etc", str(shop.migration.settings.home / "packs" / "upper"), ".."):
        with pytest.raises(SetupError, match="is not the name of an upgrade pack"):
            shop.migration.run_named_upgrade(packs=[path])
    assert shop.dump() == before


def test_after_a_run_that_has_failed_and_before_any_there_is_nothing_to_upgrade(shop):
    shop.in_source("drop table Album", "create table Other (Id integer primary key)")
    shop.migration.run_replication()
    shop.migration.cancel_replication()
    shop.work()
    assert shop.migration.get(Run, shop.runs[0].id).status is RunStatus.FAILED
    shop.in_source("drop table Other", "create table Album (Id integer primary key, Title text)")
    assert shop.run().status is RunStatus.COMPLETED
    shop.migration.reset_cloud_data()
    with pytest.raises(StateError, match="yet to be copied"):
        shop.migration.run_data_upgrade(packs=["upper"])
    assert shop.state is MigrationState.READY and shop.runs[0].status is RunStatus.COMPLETED


def test_packs_of_the_settings_have_to_be_gone_through_before_the_migration_completes(shop):
    object.__setattr__(shop.migration.settings, "packs", "upper number-series")       # the latter is for another product
    with pytest.raises(StateError, match="the data has not been upgraded"):
        shop.migration.complete_cloud_migration()
    shop.migration.run_data_upgrade(shop.runs[0].id)
    shop.work()
    shop.migration.complete_cloud_migration()
    assert shop.in_target(TITLES) == [("A",), ("B",)] and shop.state is MigrationState.DISABLED
