"""Upgrade packs: all of a company or nothing, once, and what goes wrong is told with its place."""

import os
import random
import signal
import subprocess
import sys
import time
from decimal import Context
from pathlib import Path

import psycopg
import pytest

from skylift.connectors.sql import quote
from skylift.errors import SetupError, StateError
from skylift.migration.upgrade import preview
from skylift.migration.verification import compare
from skylift.model import App, UpgradeStep
from skylift.query import Query
from skylift.runs import MigrationState, UpgradeStatus
from skylift.sample import RENTAL
from skylift.upgrades.pack import load_pack, statements
from tests import servers

CRONUS, CONTOSO = "CRONUS International Ltd_", "Contoso A_S _Nordic_"
CUSTOMER = "Customer$437dbf0e-84ff-417a-965d-ed2bb9650972"
EXACT = Context(prec=60)
SAMPLE = Path(__file__).parents[2] / "examples" / "credit-limits"
BLOCKED = 'select sum("Blocked")::bigint, count(*) from "{}"."' + CUSTOMER + '"'


@pytest.fixture
def copied(ready):
    ready.run()
    return ready


def write_pack(folder, steps, name="test", options="", **files):
    folder.mkdir(exist_ok=True)
    (folder / "pack.toml").write_text(f'name = "{name}"\nversion = "1"\n[options]\n{options}\n{steps}')
    for file, text in files.items():
        (folder / file.replace("__", ".")).write_text(text)
    return str(folder)


def sql_pack(folder, sql):
    return write_pack(folder, '[[step]]\nid = "one"\nsql = "one.sql"', one__sql=sql)


def python_pack(folder, body):
    return write_pack(folder, '[[step]]\nid = "one"\npython = "one.py:go"', one__py=f"import time\n\ndef go(step):\n{body}")


def upgrade(lab, *packs, retry=""):
    lab.migration.run_data_upgrade(packs=packs, retry=retry)
    lab.work()


def steps(lab):
    return {(s.company_name, s.step): s for s in lab.migration.select(UpgradeStep, Query())}


def everything(lab):
    """Every row of every copied table in the target, told by DuckDB itself."""
    names = lab.in_target("select schema_name, table_name from duckdb_tables() where not starts_with(table_name, '_skylift')")
    return {(schema, table): sorted(lab.in_target(f"from {quote(schema)}.{quote(table)}"), key=repr) for schema, table in names}


def test_the_sample_pack_is_carried_out_once_per_company_and_verification_says_what_it_changed(copied):
    limit = 'select sum("Credit Limit (LCY)"), sum(("Blocked" = 0)::int)::int from "{}"."' + CUSTOMER + '"'
    before = {name: copied.in_target(limit.format(name))[0] for name in (CRONUS, CONTOSO)}
    upgrade(copied, str(SAMPLE))

    assert copied.state is MigrationState.UPGRADED, copied.runs[0].details
    for name, (total, count) in before.items():
        assert count and copied.in_target(limit.format(name))[0][0] == EXACT.add(total, 10 * count)
        assert steps(copied)[name, "020-count"].notes == f"{count} customers of {name} may buy for 10 more"
    assert {s.status for s in steps(copied).values()} == {UpgradeStatus.COMPLETED} and len(steps(copied)) == 5
    assert copied.in_target("select company_name, step from _skylift_upgrades order by all") == [
        ("", "030-fleet"), *((name, step) for name in (CRONUS, CONTOSO) for step in ("010-raise", "020-count"))]
    found = list(compare(copied.migration))
    assert all(difference.equal for difference in found)
    assert {(d.task.company, d.task.table_name.split("$")[0]) for d in found if d.upgraded} == {
        (CRONUS, "Customer"), (CONTOSO, "Customer"), ("", "Rental Fleet")}


def test_a_company_whose_step_fails_is_as_it_was_the_others_go_on_and_it_alone_is_retried(copied, tmp_path):
    pack = write_pack(tmp_path / "pack", '[[step]]\nid = "one"\nsql = "one.sql"\n[[step]]\nid = "two"\npython = "two.py:go"',
                      one__sql='update {{Customer}} set "Blocked" = "Blocked" + 1',
                      two__py="from pathlib import Path\n\ndef go(step):\n    if step.company == "
                              f"{CONTOSO!r} and not Path({str(tmp_path)!r}, 'mended').exists():\n"
                              "        step.execute('select * from nowhere')\n")
    before = {name: copied.in_target(BLOCKED.format(name))[0] for name in (CRONUS, CONTOSO)}
    upgrade(copied, pack)

    assert copied.state is MigrationState.UPGRADE_FAILED
    assert "upgrade step two of pack test" in copied.runs[0].details and "statement: select * from nowhere" in copied.runs[0].details
    assert copied.in_target(BLOCKED.format(CONTOSO))[0] == before[CONTOSO]
    assert (steps(copied)[CONTOSO, "one"].status, steps(copied)[CONTOSO, "two"].status) == (UpgradeStatus.PENDING, UpgradeStatus.FAILED)
    with pytest.raises(StateError, match=f"the upgrade of company '{CRONUS}' has not failed"):
        copied.migration.run_data_upgrade(packs=[pack], retry=CRONUS)

    (tmp_path / "mended").touch()
    upgrade(copied, pack, retry=CONTOSO)
    assert copied.state is MigrationState.UPGRADED, copied.runs[0].details
    for name, (total, count) in before.items():
        assert copied.in_target(BLOCKED.format(name))[0] == (total + count, count)


def test_after_a_failure_the_upgrade_goes_on_with_the_packs_that_it_had_and_not_with_others(copied, tmp_path):
    pack = python_pack(tmp_path / "pack", "    from pathlib import Path\n"
                       f"    assert step.company != {CONTOSO!r} or Path({str(tmp_path)!r}, 'mended').exists(), 'not yet'\n"
                       "    step.execute(f'update {step.table(\"Customer\")} set \"Blocked\" = 7')")
    upgrade(copied, pack)
    assert copied.state is MigrationState.UPGRADE_FAILED
    for others in ([], ["companions"]):
        with pytest.raises(StateError, match="steps of test are done for a part of the data"):
            copied.migration.run_data_upgrade(packs=others)
    (tmp_path / "mended").touch()
    copied.migration.run_data_upgrade(retry=CONTOSO)
    copied.work()

    assert copied.state is MigrationState.UPGRADED, copied.runs[0].details
    for name in (CRONUS, CONTOSO):
        assert copied.in_target(f'select distinct "Blocked" from "{name}"."{CUSTOMER}"') == [(7,)]


def test_a_pack_that_is_added_after_a_failure_is_gone_through_by_those_that_were_done(copied, tmp_path):
    pack = python_pack(tmp_path / "pack", "    from pathlib import Path\n"
                       f"    assert step.company != {CONTOSO!r} or Path({str(tmp_path)!r}, 'mended').exists(), 'not yet'")
    upgrade(copied, pack)
    assert {c.name: c.upgrade_status for c in copied.companies} == {CRONUS: UpgradeStatus.COMPLETED, CONTOSO: UpgradeStatus.FAILED}
    more = write_pack(tmp_path / "more", '[[step]]\nid = "all"\nsql = "all.sql"\n[[step]]\nid = "shared"\nscope = "shared"\nsql = "s.sql"',
                      name="more", all__sql='update {{Customer}} set "Blocked" = 7',
                      s__sql="""update {{Rental Fleet}} set "Description" = 'x'""")
    (tmp_path / "mended").touch()
    upgrade(copied, pack, more)

    assert copied.state is MigrationState.UPGRADED, copied.runs[0].details
    for name in (CRONUS, CONTOSO):
        assert copied.in_target(f'select distinct "Blocked" from "{name}"."{CUSTOMER}"') == [(7,)]
    assert copied.in_target(f'select distinct "Description" from "Rental Fleet${RENTAL}"') == [("x",)]


def test_an_upgrade_of_which_nothing_is_done_may_be_asked_for_with_other_packs(copied, tmp_path):
    upgrade(copied, sql_pack(tmp_path / "pack", "select * from nowhere"))
    assert copied.state is MigrationState.UPGRADE_FAILED
    upgrade(copied, str(SAMPLE))

    assert copied.state is MigrationState.UPGRADED, copied.runs[0].details


def test_a_step_that_was_edited_after_it_ran_is_refused_with_what_to_do(copied, tmp_path):
    pack = write_pack(tmp_path / "pack", '[[step]]\nid = "one"\nsql = "one.sql"\n[[step]]\nid = "two"\npython = "two.py:go"',
                      one__sql='update {{Customer}} set "Blocked" = "Blocked" + 1',
                      two__py=f"def go(step):\n    assert step.company != {CONTOSO!r}, 'not this one'\n")
    upgrade(copied, pack)
    (tmp_path / "pack" / "one.sql").write_text('update {{Customer}} set "Blocked" = 7')
    before = everything(copied)
    upgrade(copied, pack, retry=CONTOSO)

    assert copied.state is MigrationState.UPGRADE_FAILED
    assert f"upgrade step one of pack test was edited after it ran for {CRONUS} (put it back as it was" in copied.runs[0].details
    assert everything(copied) == before


@pytest.mark.parametrize("loop", ["sql", "python", "statements"])
def test_a_step_that_loops_is_ended_by_its_time(copied, tmp_path, loop):
    object.__setattr__(copied.migration.settings, "upgrade_step_s", 0.5)
    if loop == "sql":
        pack = sql_pack(tmp_path / "pack", "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n")
    else:
        body = "    while True:\n        " + ("pass" if loop == "python" else "step.execute('select 1')")
        pack = python_pack(tmp_path / "pack", body)
    before, began = everything(copied), time.monotonic()
    upgrade(copied, pack)

    assert time.monotonic() - began < 60
    assert "upgrade step one of pack test took longer than 0.5 s and was ended" in copied.runs[0].details
    assert everything(copied) == before


def test_a_dry_run_prints_every_statement_and_changes_nothing(copied):
    before, seen = everything(copied), []
    preview(copied.migration, [str(SAMPLE)], [CRONUS], seen.append)

    done = [step for step in seen if step.seconds is not None]
    assert [(step.company, step.step) for step in done] == [("", "030-fleet"), (CRONUS, "010-raise"), (CRONUS, "020-count")]
    assert done[1].statements[0].startswith(f'update "{CRONUS}"."{CUSTOMER}" set "Credit Limit (LCY)"') and len(done[1].statements) == 2
    assert everything(copied) == before and copied.state is MigrationState.UPGRADE_PENDING


def test_an_upgrade_killed_at_any_moment_loses_nothing_and_repeats_nothing(copied, tmp_path):
    pack = write_pack(tmp_path / "pack", '[[step]]\nid = "one"\nsql = "one.sql"\n[[step]]\nid = "two"\npython = "two.py:go"',
                      one__sql='update {{Customer}} set "Blocked" = "Blocked" + 1',
                      two__py="import time\n\ndef go(step):\n    time.sleep(0.4)\n")
    before = {name: copied.in_target(BLOCKED.format(name))[0] for name in (CRONUS, CONTOSO)}
    command = [sys.executable, "-m", "skylift", "upgrade", "--pack", pack, "--home", str(copied.migration.settings.home)]
    environment = {**os.environ, "SKYLIFT_LEASE_S": "0.5", "SKYLIFT_POLL_S": "0.05"}
    chance, kills = random.Random(), 0
    print("seed", seed := chance.randrange(10**6))
    chance.seed(seed)
    for _ in range(12):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while copied.state is MigrationState.UPGRADE_PENDING and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 2.5 if kills else 0.7))      # two companies take 0.8 s at least: the first time always hits
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        if copied.state is MigrationState.UPGRADED or kills >= 4:
            break
    time.sleep(0.6)                                     # the lease of the killed one
    if copied.state is not MigrationState.UPGRADED:
        copied.work()

    assert kills, "nothing was killed"
    assert copied.state is MigrationState.UPGRADED, copied.runs[0].details
    for name, (total, count) in before.items():
        assert copied.in_target(BLOCKED.format(name))[0] == (total + count, count)




def rename_customer(lab, *names):
    """Give the first customers of the first company these numbers, in the source."""
    table = f'"{CRONUS}${CUSTOMER}"'
    for n, name in enumerate(names):
        lab.in_source(f"update {table} set No_ = '{name}' where rowid = (select rowid from {table} order by rowid limit 1 offset {n})")


def test_codes_are_sanitised(ready):
    rename_customer(ready, " ab1 ", "zz9")
    ready.run()
    upgrade(ready, "code-fields")

    assert ready.state is MigrationState.UPGRADED, ready.runs[0].details
    assert ready.in_target(f'select "No_" from "{CRONUS}"."{CUSTOMER}" where "No_" in (\'AB1\', \'ZZ9\', \'zz9\') order by 1') == [
        ("AB1",), ("ZZ9",)]
    assert f"{CUSTOMER}: 2 rows sanitised" in steps(ready)[CRONUS, "company"].notes


def test_codes_that_would_become_one_are_named_and_nothing_is_changed(ready):
    rename_customer(ready, "ab1", "AB1 ")
    ready.run()
    before = everything(ready)
    upgrade(ready, "code-fields")

    assert f"rows would get the same key: {CRONUS} {CUSTOMER}: 2 rows with the key AB1" in ready.runs[0].details
    assert {key: rows for key, rows in everything(ready).items() if key[0] == CRONUS} == {
        key: rows for key, rows in before.items() if key[0] == CRONUS}


def test_missing_companion_rows_are_made_and_orphans_are_reported(ready):
    ready.in_source(f'delete from "{CRONUS}${CUSTOMER}$ext" where rowid = (select min(rowid) from "{CRONUS}${CUSTOMER}$ext")')
    ready.in_source(f'delete from "{CRONUS}${CUSTOMER}" where rowid = (select max(rowid) from "{CRONUS}${CUSTOMER}")')
    ready.run()
    upgrade(ready, "companions")

    assert ready.state is MigrationState.UPGRADED, ready.runs[0].details
    base, companion = (f'"{CRONUS}"."{CUSTOMER}{end}"' for end in ("", "$ext"))
    assert ready.in_target(f'select count(*) from {base} anti join {companion} using ("No_")') == [(0,)]
    assert f"{CUSTOMER}$ext: 1 missing rows made" in steps(ready)[CRONUS, "company"].notes
    assert f"{CUSTOMER}$ext: 1 rows without a row in {CUSTOMER}" in steps(ready)[CRONUS, "company"].notes


@pytest.mark.parametrize("target", ["delta", "parquet"])
def test_a_lake_refuses_packs_and_stays_as_it_is(lab, tmp_path, target):
    object.__setattr__(lab.migration.settings, "target", f"{target}:///{tmp_path}/lake")
    lab.prepare()
    lab.run()
    upgrade(lab, str(SAMPLE))

    assert lab.state is MigrationState.UPGRADE_FAILED
    assert "upgrade packs cannot change a folder of files" in lab.runs[0].details
    upgrade(lab)
    assert lab.state is MigrationState.UPGRADED


def test_postgresql_goes_through_the_sample_pack_and_restores_what_fails(lab, tmp_path):
    url = servers.postgres()
    name = f"packs_{os.getpid()}"
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(f"drop database if exists {name}")
        server.execute(f"create database {name}")
    here = url.rsplit("/", 1)[0] + "/" + name
    object.__setattr__(lab.migration.settings, "target", here)
    lab.prepare()
    lab.run()

    def ask(sql):
        with psycopg.connect(here) as database:
            return database.execute(sql).fetchall()

    limit = f'select sum("Credit Limit (LCY)"), count(*) filter (where "Blocked" = 0) from "{CRONUS}"."{CUSTOMER}"'
    [(total, count)] = ask(limit)
    object.__setattr__(lab.migration.settings, "upgrade_step_s", 2)
    upgrade(lab, str(SAMPLE), sql_pack(tmp_path / "loop", "select pg_sleep(60)"))
    assert "upgrade step one of pack test took longer than 2 s" in lab.runs[0].details and ask(limit) == [(total, count)]

    upgrade(lab, str(SAMPLE), "companions")
    assert lab.state is MigrationState.UPGRADED, lab.runs[0].details
    assert ask(limit) == [(EXACT.add(total, 10 * count), count)]
    assert all(difference.equal for difference in compare(lab.migration))


@pytest.mark.parametrize(("manifest", "message"), [
    ("name = 1", "has no 'version'"), ('name = "a"\nversion = "1"', "has no [[step]]"), ("name", "cannot be read"),
    ('name = "a"\nversion = "1"\ncolour = 1', "'colour' is not known"),
    ('name = "a"\nversion = "1"\n[[step]]\nid = "x"', "step x needs either sql or python"),
    ('name = "a"\nversion = "1"\n[[step]]\nid = "x"\nsql = "x.sql"', "x.sql is not there"),
    ('name = "a"\nversion = "1"\n[[step]]\nid = "x"\npython = "x.py:f"', "x.py cannot be read"),
    ('name = "a"\nversion = "1"\n[[step]]\nid = "x"\nsql = "x.sql"\nscope = "all"', "the scope 'all' is not known"),
])
def test_what_is_wrong_with_a_pack_is_said_before_anything_begins(copied, tmp_path, manifest, message):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "pack.toml").write_text(manifest)
    with pytest.raises(SetupError) as raised:
        copied.migration.run_data_upgrade(packs=[str(tmp_path / "pack")])
    assert message in raised.value.message and copied.state is MigrationState.UPGRADE_PENDING


@pytest.mark.parametrize(("sql", "found"), [
    ("a; b;", ["a", "b"]), ("select ';' ; x", ["select ';'", "x"]), ('"a;b"; [c;d]', ['"a;b"', "[c;d]"]),
    ("-- one; two\na", ["a"]), ("/* ; */ a", ["a"]), ("do $x$ a; b $x$; c", ["do $x$ a; b $x$", "c"]),
    ("update {{A b}} set x = '{{A}}'", ["update <A b> set x = '{{A}}'"]), (" ; ;", []),
])
def test_a_file_is_cut_into_statements(sql, found):
    assert statements(sql, "<{}>".format) == found


def test_a_pack_is_for_its_product_and_versions(tmp_path):
    pack = load_pack(SAMPLE)
    assert not pack.why_not("DynamicsBCLast", "14.0") and not pack.why_not("DynamicsBCLast", "28.9")
    assert pack.why_not("DynamicsBC", "25") == "pack credit-limits is for DynamicsBCLast, not for DynamicsBC"
    for version in ("9.1", "29.0"):
        assert f"before 29, and this one is {version}" in pack.why_not("DynamicsBCLast", version)




def test_a_named_pack_for_other_versions_is_refused_before_anything_is_upgraded(copied):
    before = copied.dump()

    with pytest.raises(SetupError, match=r"for sources before 24\.0, and this one is 2") as refused:
        copied.migration.run_data_upgrade(packs=["number-series"])

    assert refused.value.code == "PackProduct" and copied.dump() == before


def test_a_pack_changes_a_table_that_a_mapping_has_made(ready, tmp_path):
    rental = next(app.id for app in ready.migration.select(App, Query()) if app.name == "Rental")
    ready.migration.create_mapping({"app_id": rental, "table_name": "New Note", "source_table_name": "Legacy Note"})
    ready.run()
    upgrade(ready, sql_pack(tmp_path / "pack", """update {{New Note}} set "Note" = 'moved'"""))

    assert ready.state is MigrationState.UPGRADED, ready.runs[0].details
    assert ready.in_target(f'select distinct "Note" from "{CRONUS}"."New Note${rental}"') == [("moved",)]
    assert {d.task.table_name for d in compare(ready.migration) if d.upgraded} == {f"New Note${rental}"}


def test_after_a_reset_the_steps_are_carried_out_on_the_new_copy(copied, tmp_path):
    pack = write_pack(tmp_path / "pack", '[[step]]\nid = "one"\nsql = "one.sql"\n[[step]]\nid = "two"\npython = "two.py:go"',
                      one__sql='update {{Customer}} set "Blocked" = "Blocked" + 1',
                      two__py="from pathlib import Path\n\ndef go(step):\n"
                              f"    assert step.company != {CONTOSO!r} or Path({str(tmp_path)!r}, 'mended').exists(), 'not yet'\n")
    before = {name: copied.in_target(BLOCKED.format(name))[0] for name in (CRONUS, CONTOSO)}
    upgrade(copied, pack)
    assert "AssertionError: not yet" in copied.runs[0].details
    (tmp_path / "mended").touch()
    copied.migration.reset_cloud_data()
    copied.run()
    upgrade(copied, pack)

    assert copied.state is MigrationState.UPGRADED, copied.runs[0].details
    for name, (total, count) in before.items():
        assert copied.in_target(BLOCKED.format(name))[0] == (total + count, count)
