"""The built-in packs that move tables from one app to another: each value is where the newer version looks for it, and nowhere else."""

import os

import duckdb
import psycopg
import pytest

from skylift.migration.verification import compare
from skylift.model import UpgradeStep
from skylift.query import Query
from skylift.runs import MigrationState
from skylift.sample import BASE, RENTAL
from tests import servers

CRONUS, CONTOSO = "CRONUS International Ltd_", "Contoso A_S _Nordic_"
FOUNDATION = "f3552374-a1f2-4356-848e-196002525837"
TEXT = "NVARCHARTEXT(20)"


def tables_of(company):
    setup, series = f'"{company}$Source Code Setup${BASE}', f'"{company}$No_ Series${BASE}"'
    return [
        f'create table {setup}" (timestamp bigint, "Primary Key" {TEXT} primary key, "Sales" {TEXT}, "Purchases" {TEXT})',
        f'create table {setup}$ext" (timestamp bigint, "Primary Key" {TEXT} primary key, "Rental${RENTAL}" {TEXT})',
        f"insert into {setup}\" values (7, '', 'SALES', 'PURCH')", f"insert into {setup}$ext\" values (8, '', 'RENT')",
        f'create table {series} (timestamp bigint, "Code" {TEXT} primary key, "Description" {TEXT}, "Default Nos_" smallint,'
        f' "Manual Nos_" smallint, "Date Order" smallint, "VAT Register" {TEXT})',
        f"insert into {series} values (1, 'S-INV', 'Sales', 1, 0, 0, 'V1'), (2, 'P-INV', 'Buy', 0, 1, 0, 'V2')"]


@pytest.fixture
def older(lab):
    """A source of version 23, in which what was moved later is still in the Base Application."""
    lab.in_source(*tables_of(CRONUS), *tables_of(CONTOSO),
                  f'create table "No_ Series Tenant${BASE}" ("Code" {TEXT} primary key, "Last Used" {TEXT})',
                  f"insert into \"No_ Series Tenant${BASE}\" values ('T1', '0042')",
                  "update \"$ndo$tenantproperty\" set applicationversion = '23.5.0.0'")
    return lab


def target(lab, kind):
    """An empty target, and a way to ask it."""
    if kind == "duckdb":
        def ask(sql):
            with duckdb.connect(str(lab.migration.settings.home / "target.duckdb")) as database:
                return database.execute(sql).fetchall()
        return ask
    url, name = servers.postgres(), f"moves_{os.getpid()}"
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(f"drop database if exists {name} with (force)")
        server.execute(f"create database {name}")
    here = url.rsplit("/", 1)[0] + "/" + name
    object.__setattr__(lab.migration.settings, "target", here)

    def ask(sql):
        with psycopg.connect(here) as database:
            return database.execute(sql).fetchall()
    return ask


def upgrade(lab, *packs):
    lab.migration.run_data_upgrade(packs=packs)
    lab.work()


@pytest.mark.parametrize("kind", ["duckdb", "postgresql"])
def test_tables_go_to_the_new_app_and_fields_that_it_does_not_know_to_their_companion(older, kind):
    ask = target(older, kind)
    older.prepare()
    older.run()
    upgrade(older, "number-series", "audit-codes")

    assert older.state is MigrationState.UPGRADED, older.runs[0].details
    for company in (CRONUS, CONTOSO):
        setup, series = f'"{company}"."Source Code Setup${FOUNDATION}', f'"{company}"."No_ Series${FOUNDATION}'
        assert ask(f'select * from {setup}"') == [(7, "")]
        assert ask(f'select "Primary Key", "Sales${BASE}", "Purchases${BASE}", "Rental${RENTAL}" from {setup}$ext"') == [
            ("", "SALES", "PURCH", "RENT")]
        assert ask(f'select "Code", "Description", "Default Nos_", "Manual Nos_", "Date Order" from {series}" order by 1') == [
            ("P-INV", "Buy", 0, 1, 0), ("S-INV", "Sales", 1, 0, 0)]
        assert ask(f'select "Code", "VAT Register${BASE}" from {series}$ext" order by 1') == [("P-INV", "V2"), ("S-INV", "V1")]
    assert ask(f'select * from "No_ Series Tenant${FOUNDATION}"') == [("T1", "0042")]
    left = ask(f"select table_name from information_schema.tables where table_name like '%Series%{BASE}%' "
               f"or table_name like 'Source Code%{BASE}%'")
    assert left == []
    if kind == "postgresql":
        keys = ask(f"select 1 from pg_constraint where contype = 'p' and conrelid::regclass::text like '%{FOUNDATION}%'")
        assert len(keys) == 2 * 4 + 1
    notes = {step.notes for step in older.migration.select(UpgradeStep, Query()) if "No_ Series$" in step.notes}
    assert any(f"2 rows moved to No_ Series${FOUNDATION}, of which VAT Register stay fields of app {BASE}" in note for note in notes)
    found = list(compare(older.migration))
    assert all(difference.equal for difference in found)
    assert {d.task.table_name for d in found if d.upgraded and d.task.company == CRONUS} == {
        f"Source Code Setup${BASE}", f"Source Code Setup${BASE}$ext", f"No_ Series${BASE}"}
    older.migration.complete_cloud_migration()
    assert older.state is MigrationState.DISABLED


def test_a_source_that_has_the_move_behind_it_is_left_as_it_is(older):
    ask = target(older, "duckdb")
    older.in_source("update \"$ndo$tenantproperty\" set applicationversion = '25.1.0.0'")
    older.prepare()
    older.run()
    object.__setattr__(older.migration.settings, "packs", "number-series audit-codes")     # for every migration, as far as they are for it
    older.migration.run_data_upgrade()
    older.work()

    assert older.state is MigrationState.UPGRADED, older.runs[0].details
    assert ask(f"select count(*) from duckdb_tables() where contains(table_name, '{FOUNDATION}')") == [(0,)]
    assert ask(f'select "Sales" from "{CRONUS}"."Source Code Setup${BASE}"') == [("SALES",)]


def test_after_a_failure_and_a_new_copy_the_moved_tables_hold_the_new_rows_only(older, tmp_path):
    ask = target(older, "duckdb")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "pack.toml").write_text('name = "fails"\nversion = "1"\n[[step]]\nid = "one"\nsql = "one.sql"')
    (tmp_path / "pack" / "one.sql").write_text('select * from {{Nowhere}}')
    older.prepare()
    older.run()
    older.migration.run_data_upgrade(packs=["number-series", str(tmp_path / "pack")])
    older.work()
    assert older.state is MigrationState.UPGRADE_FAILED
    assert ask(f"select count(*) from duckdb_tables() where contains(table_name, '{FOUNDATION}')") == [(1,)]   # what all share was done
    older.migration.reset_cloud_data()
    older.in_source(f"update \"No_ Series Tenant${BASE}\" set \"Last Used\" = '0043'")
    older.run()
    upgrade(older, "number-series")

    assert older.state is MigrationState.UPGRADED, older.runs[0].details
    assert ask(f'select * from "No_ Series Tenant${FOUNDATION}"') == [("T1", "0043")]
