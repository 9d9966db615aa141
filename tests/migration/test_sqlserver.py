"""The whole life of a migration to SQL Server: assessed, locked, copied, validated, upgraded, completed."""

import secrets
from contextlib import closing, suppress
from decimal import Decimal

import mssql_python
import pyarrow as pa
import pytest

from skylift.connectors import open_target
from skylift.connectors.sql import quote
from skylift.connectors.sqlserver_url import driver_keywords
from skylift.errors import SkyliftError
from skylift.migration.upgrade import preview
from skylift.migration.verification import compare
from skylift.model import Table, TargetName
from skylift.runs import MigrationState, ReplicationType, RunStatus, UpgradeStatus
from skylift.sample import BASE, RENTAL
from tests.connectors.labs import SqlServerTargetLab
from tests.migration.assessing import findings_of
from tests.migration.test_moves import FOUNDATION, tables_of
from tests.migration.test_packs import CONTOSO, CRONUS, CUSTOMER, EXACT, SAMPLE, sql_pack, steps, upgrade, write_pack
from tests.migration.validating import NUMBER, PLACE, found, results, set_up, validate, write_suite

LIMIT = 'select convert(varchar(60), sum("Credit Limit (LCY)")), count(case when "Blocked" = 0 then 1 end) from "{}"."' + CUSTOMER + '"'
BLOCKED = 'select convert(bigint, sum("Blocked")), count(*) from "{}"."' + CUSTOMER + '"'
LONG = "Long " * 14 + "name"
BOTH = (CRONUS, CONTOSO)


@pytest.fixture
def lab(lab):
    """The migration of the sample, with an empty database of a TDS server as its target."""
    lab.target = SqlServerTargetLab()
    lab.ask = lab.target.fetch
    object.__setattr__(lab.migration.settings, "target", lab.target.url)
    if unusual := [name for (name,) in lab.in_source("select name from sqlite_master where type = 'table'")[0] if is_unusual(name)]:
        try:
            with closing(open_target(lab.target.url)) as target, target.transaction() as transaction:
                transaction.create(TargetName("", LONG), Table(LONG, pa.schema([("id", pa.int64())]), ("id",)))
            lab.target.execute(f'drop table "{LONG}"')
        except (SkyliftError, mssql_python.Error) as error:
            print(f"this server has no names of more than 63 characters ({error}): {', '.join(unusual)} left out")
            lab.in_source(*(f"drop table {quote(name)}" for name in unusual))
    return lab


def is_unusual(name):
    """`Record Link` goes to a longer name."""
    return "]" in name or name == "Record Link" or len(name.removeprefix(f"{CRONUS}$").removeprefix(f"{CONTOSO}$")) > 63


def everything(lab):
    """The rows of what the packs below change."""
    with closing(open_target(lab.target.url)) as target:
        return {str(name): lab.target.rows(name.table, name.schema or "dbo") for name in target.states()
                if name.table.startswith(("Customer$", "Rental Fleet$"))}


# ------------------------------------------------------------------ upgrade packs


def test_packs_are_tried_carried_out_once_per_company_and_restored_where_they_fail(lab, tmp_path):
    fails = write_pack(tmp_path / "pack", '[[step]]\nid = "one"\nsql = "one.sql"\n[[step]]\nid = "two"\npython = "two.py:go"',
                       one__sql='update {{Customer}} set "Blocked" = "Blocked" + 1',
                       two__py="from pathlib import Path\n\ndef go(step):\n    if step.company == "
                               f"{CONTOSO!r} and not Path({str(tmp_path)!r}, 'mended').exists():\n"
                               "        step.execute('select * from nowhere')\n")
    lab.prepare()
    lab.run()
    before, seen = everything(lab), []
    limits, blocked = {n: lab.ask(LIMIT.format(n))[0] for n in BOTH}, {n: lab.ask(BLOCKED.format(n))[0] for n in BOTH}

    preview(lab.migration, [str(SAMPLE)], [CRONUS], seen.append)
    done = [step for step in seen if step.seconds is not None]
    assert [(step.company, step.step) for step in done] == [("", "030-fleet"), (CRONUS, "010-raise"), (CRONUS, "020-count")]
    assert done[1].statements[0].startswith(f'update "{CRONUS}"."{CUSTOMER}" set "Credit Limit (LCY)"')
    assert everything(lab) == before and lab.state is MigrationState.UPGRADE_PENDING

    upgrade(lab, str(SAMPLE), "companions", fails)
    assert lab.state is MigrationState.UPGRADE_FAILED
    assert "upgrade step two of pack test" in lab.runs[0].details and "statement: select * from nowhere" in lab.runs[0].details
    assert {name: rows for name, rows in everything(lab).items() if name.startswith(CONTOSO)} == {
        name: rows for name, rows in before.items() if name.startswith(CONTOSO)}
    assert {c.name: c.upgrade_status for c in lab.companies} == {CRONUS: UpgradeStatus.COMPLETED, CONTOSO: UpgradeStatus.FAILED}

    (tmp_path / "mended").touch()
    upgrade(lab, str(SAMPLE), "companions", fails, retry=CONTOSO)
    assert lab.state is MigrationState.UPGRADED, lab.runs[0].details
    for name in BOTH:
        (total, count), (sum_, rows) = limits[name], blocked[name]
        now, _ = lab.ask(LIMIT.format(name))[0]
        assert Decimal(now) == EXACT.add(Decimal(total), 10 * count)
        assert lab.ask(BLOCKED.format(name)) == [(sum_ + rows, rows)]
        assert steps(lab)[name, "020-count"].notes == f"{count} customers of {name} may buy for 10 more"
    tags = lab.ask("select company_name, pack, step from dbo._skylift_upgrades")
    assert len(tags) == len(set(tags)) == 2 + 2 * 5 and ("", "credit-limits", "030-fleet") in tags
    differences = list(compare(lab.migration))
    assert all(difference.equal for difference in differences)
    assert {(d.task.company, d.task.table_name.split("$")[0]) for d in differences if d.upgraded} == {
        (CRONUS, "Customer"), (CONTOSO, "Customer"), ("", "Rental Fleet")}


def test_a_step_that_takes_too_long_is_ended_and_its_company_is_as_it_was(lab, tmp_path):
    slow = "update {{Customer}} set \"Blocked\" = 9; select count_big(*) from sys.all_objects a, sys.all_objects b, sys.all_objects c"
    lab.prepare()
    lab.run()
    before = everything(lab)
    object.__setattr__(lab.migration.settings, "upgrade_step_s", 2)
    upgrade(lab, sql_pack(tmp_path / "loop", slow))

    assert "upgrade step one of pack test took longer than 2 s and was ended" in lab.runs[0].details
    assert everything(lab) == before


def test_codes_companions_and_moved_tables_are_what_the_newer_version_looks_for(lab, tmp_path):
    table, company = f'"{CRONUS}${CUSTOMER}"', 'update "$ndo$tenantproperty" set applicationversion = \'23.5.0.0\''
    first, second = (row[0] for row in lab.in_source(f"select No_ from {table} order by rowid limit 2")[0])
    lab.in_source(*tables_of(CRONUS), *tables_of(CONTOSO), company,
                  f"update {table} set No_ = ' ab1 ' where No_ = '{first}'",
                  f"delete from \"{CRONUS}${CUSTOMER}$ext\" where No_ = '{second}'")
    lab.prepare()
    lab.run()
    upgrade(lab, "code-fields", "companions", "number-series", "audit-codes")

    assert lab.state is MigrationState.UPGRADED, lab.runs[0].details
    assert lab.ask(f"select No_ from {PLACE} where No_ like '%1' and upper(No_) like '%AB%'") == [("AB1",)]
    companion = f'"{CRONUS}"."{CUSTOMER}$ext"'
    assert lab.ask(f"select count(*) from {PLACE} b where not exists (select 1 from {companion} c where c.No_ = b.No_)") == [(0,)]
    for name in BOTH:
        setup, series = f'"{name}"."Source Code Setup${FOUNDATION}', f'"{name}"."No_ Series${FOUNDATION}'
        assert lab.ask(f'select * from {setup}"') == [(7, "")]
        assert lab.ask(f'select "Primary Key", "Sales${BASE}", "Purchases${BASE}", "Rental${RENTAL}" from {setup}$ext"') == [
            ("", "SALES", "PURCH", "RENT")]
        assert lab.ask(f'select "Code", "VAT Register${BASE}" from {series}$ext" order by 1') == [("P-INV", "V2"), ("S-INV", "V1")]
    assert lab.ask(f"select name from sys.tables where name like '%Series%{BASE}%' or name like 'Source Code%{BASE}%'") == []
    keys = "select count(*) from sys.indexes i join sys.tables t on t.object_id = i.object_id where i.is_primary_key = 1 and t.name like "
    assert lab.ask(f"{keys}'%{FOUNDATION}%'") == [(2 * 4,)]
    assert all(difference.equal for difference in compare(lab.migration))
    lab.migration.complete_cloud_migration()
    assert lab.state is MigrationState.DISABLED


def test_codes_that_would_become_one_are_named_and_nothing_is_changed(lab):
    table = f'"{CRONUS}${CUSTOMER}"'
    for n, name in enumerate(("xy1", "XY1 ")):
        lab.in_source(f"update {table} set No_ = '{name}' where rowid = (select rowid from {table} order by rowid limit 1 offset {n})")
    lab.prepare()
    lab.run()
    before = everything(lab)
    upgrade(lab, "code-fields")

    assert f"rows would get the same key: {CRONUS} {CUSTOMER}: 2 rows with the key XY1" in lab.runs[0].details
    assert {n: rows for n, rows in everything(lab).items() if n.startswith(CRONUS)} == {
        n: rows for n, rows in before.items() if n.startswith(CRONUS)}


# ------------------------------------------------------------------ the lock


@pytest.fixture
def locked(lab):
    """Its target is to be locked; `clerk` is another login there, who may write to the first company."""
    lab.clerk, lab.password = f"skylift_clerk_{secrets.token_hex(6)}", f"Aa1_{secrets.token_hex(8)}"

    def forget():
        for what in ("user", "login"):
            with suppress(mssql_python.Error):         # who is not there, or has rights to a schema that goes with the database
                lab.target.execute(f"drop {what} {lab.clerk}")

    lab.forget = forget
    lab.target.execute(f"create login {lab.clerk} with password = '{lab.password}'")
    lab.target.execute(f"create user {lab.clerk} for login {lab.clerk}")
    lab.prepare(lock_target=True)
    yield lab
    lab.forget()


def grant(lab, schema=CRONUS):
    lab.target.execute(f'grant select, insert, update, delete on schema::"{schema}" to {lab.clerk}')


def as_clerk(lab, statement):
    address = lab.target.address.set(username=lab.clerk, password=lab.password)
    with closing(mssql_python.connect("", autocommit=True, **driver_keywords(address))) as connection:
        cursor = connection.cursor()
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else cursor.rowcount


def refused(lab, place=PLACE, table=CUSTOMER):
    """Every kind of write; how many rows can be read all the same."""
    column = "Name" if table == CUSTOMER else "Description"
    for write in (f"update {place} set \"{column}\" = 'x'", f"delete from {place}",
                  f'insert into {place} select top (0) * from {place}'):
        with pytest.raises(mssql_python.Error, match=f"skylift is migrating to table {CRONUS}"):
            as_clerk(lab, write)
    return as_clerk(lab, f"select count(*) from {place}")[0][0]


def triggers(lab):
    return lab.ask("select count(*) from sys.triggers where name like '[_]skylift[_]lock%'")[0][0]


def copied_tables(lab):
    """How many the newest run has copied, or found as they should be."""
    return sum(table.target_rows is not None for table in lab.tables(lab.runs[0]).values())


def test_others_read_and_do_not_write_until_the_migration_is_completed_whatever_runs_do(locked):
    locked.in_source(*tables_of(CRONUS), *tables_of(CONTOSO), 'update "$ndo$tenantproperty" set applicationversion = \'23.5.0.0\'')
    locked.migration.change_setup(locked.setup.id, {}, lambda row: None)
    locked.run()
    grant(locked)
    rows = refused(locked)
    assert rows == 20 and triggers(locked) == copied_tables(locked)

    locked.in_source(f'delete from "{CRONUS}${CUSTOMER}" where "No_" = (select max("No_") from "{CRONUS}${CUSTOMER}")')
    assert locked.tables(locked.run())[CRONUS, CUSTOMER].mode == "incremental"
    assert refused(locked) == 19
    full = locked.run(kind=ReplicationType.FULL)
    assert {row.mode for row in locked.tables(full).values() if row.target_rows is not None} == {"full"}     # every table is another one
    grant(locked)
    assert refused(locked) == 19

    upgrade(locked, "number-series")
    grant(locked)
    moved = f"No_ Series${FOUNDATION}"
    assert locked.state is MigrationState.UPGRADED, locked.runs[0].details
    assert refused(locked) == 19 and refused(locked, f'"{CRONUS}"."{moved}"', moved) == 2
    locked.migration.complete_cloud_migration()
    assert triggers(locked) == 0 and not locked.ask("select 1 from sys.tables where name = '_skylift_locked'")
    as_clerk(locked, f"delete from {PLACE}")
    assert locked.ask(f"select count(*) from {PLACE}") == [(0,)]


def test_large_tables_that_are_swapped_in_are_locked_and_what_was_there_before_is(locked, monkeypatch):
    monkeypatch.setattr("skylift.connectors.sqlserver_target.SqlServerTarget.chunk_rows", 7)
    locked.migration.change_setup(locked.setup.id, {"lock_target": False}, lambda row: None)
    assert locked.run().status is RunStatus.UPGRADE_PENDING
    assert triggers(locked) == 0
    locked.migration.change_setup(locked.setup.id, {"lock_target": True}, lambda row: None)
    locked.run()
    assert triggers(locked) == copied_tables(locked)
    locked.run(kind=ReplicationType.FULL)
    assert triggers(locked) == copied_tables(locked)
    grant(locked)
    assert refused(locked) == 20
    locked.migration.pause()
    assert refused(locked) == 20
    locked.migration.disable_replication()
    assert triggers(locked) == 0


# ------------------------------------------------------------------ assessment


def test_an_assessment_looks_at_both_sides_and_changes_neither(lab):
    with_keys = lab.target.ddl("t", {"id": "int", "name": "text"}, ("id",))
    lab.target.execute(with_keys, "insert into t values (1, 'x')", "create index by_name on t (name)")
    before = lab.ask("select name from sys.objects order by 1")
    rows = findings_of(lab.migration, f"sqlite:///{lab.source}", lab.target.url, "DynamicsBCLast", with_scan=True)

    assert lab.ask("select name from sys.objects order by 1") == before
    assert not [row for row in rows.values() if row.severity.name == "BLOCKING"], rows


# ------------------------------------------------------------------ validation


def test_validation_is_silent_about_a_true_copy_and_names_what_was_changed(lab, tmp_path):
    own = f"""
[[test]]
id = "count"
source = 'select count(*) from {{{{Customer}}}}'
target = 'select count(*) from {{{{{CUSTOMER}}}}}'
[[test]]
id = "limits"
source = 'select "No_", "Credit Limit (LCY)" from {{{{Customer}}}}'
target = 'select "No_", "Credit Limit (LCY)" from {{{{Customer}}}}'
[[test]]
id = "writes"
target = 'delete from {{{{Customer}}}}'
expected = 2
[[test]]
id = "endless"
target = 'select count_big(*) as n from sys.all_objects a, sys.all_objects b, sys.all_objects c'
expected = 2
"""
    lab.prepare()
    lab.run()
    assert validate(lab).details.startswith("0 errors and 0 warnings in ") and found(lab) == []

    first, last = lab.ask(f"select min(No_), max(No_) from {PLACE}")[0]
    lab.target.execute(f"update {PLACE} set {NUMBER} = {NUMBER} + 1 where No_ = '{first}'", f"delete from {PLACE} where No_ = '{last}'")
    validate(lab, force=True)
    told = {(row.suite, row.test, row.key) for row in results(lab)}
    assert {("rows", "count", ""), ("keys", "missing", f"('{last}',)"), ("columns", "sum", "Credit Limit (LCY)")} <= told
    assert {(row.company_name, row.table_name.removesuffix("$ext")) for row in results(lab)} == {(CRONUS, CUSTOMER)}

    ask = lab.ask
    lab = set_up(lab, target=lab.target.url, validation_query_s=2, validation_suites=write_suite(tmp_path / "own", own))
    validate(lab, "own", companies=[CRONUS])
    rows = {(row.test, row.key): row for row in results(lab) if row.suite == "own"}
    assert set(rows) == {("count", ""), ("limits", first), ("limits", last), ("writes", ""), ("endless", "")}
    assert int(rows["count", ""].expected) == int(rows["count", ""].actual) + 1
    assert rows["writes", ""].is_warning and "took longer than 2 s" in rows["endless", ""].message
    assert str(ask(f"select count(*) from {PLACE}")[0][0]) == rows["count", ""].actual
