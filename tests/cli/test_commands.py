"""The commands of a migration, for people and scripts: what they print, answer and exit with."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import duckdb
import httpx
import pytest

from skylift.cli import app
from skylift.cli.follow import Pace
from skylift.migration import Migration
from skylift.migration.coordinator import is_coordinated
from skylift.model import Setup
from skylift.query import Query
from skylift.sample import BASE
from skylift.settings import Settings, load_settings
from skylift.store import open_store
from tests.cli.conftest import COMPANY, ENTRIES, PACK


@contextmanager
def migration_of(home):
    """The service on a home, for what a command that was interrupted leaves behind."""
    settings = Settings(home=home)
    store = open_store(settings.store)
    yield Migration(store, settings)
    store.close()


def commands(group=app, before=()):
    for command in group.registered_commands:
        yield (*before, command.name)
    for sub in group.registered_groups:
        yield from commands(sub.typer_instance, (*before, sub.name))


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_help_of_every_command_ends_with_an_example_of_it(call, command):
    code, out, _ = call(*command, "--help")

    assert code == 0
    assert out.rstrip().splitlines()[-1].strip(" │").startswith(f"Example: skylift {' '.join(command)}")
    for option in ("--home", "--json"):
        assert option in out
    assert ("--target" in out) == (command[-1] in ("setup", "companies", "run", "cancel", "upgrade", "verify", "validate", "assess",
                                                          "grants", "complete", "serve", "coordinate"))


def test_life_of_a_migration_from_setup_to_completion(call, source):
    code, out, _ = call("setup", "--product", "DynamicsBCLast", "--source", "sqlite:///bc.db")       # relative to this folder
    assert (code, "DynamicsBCLast connected" in out, "Contoso A/S [Nordic]" in out) == (0, True, True)
    code, companies, _ = call("companies", "--mark", "cronus international LTD_", "--mark", "Contoso A/S [Nordic] (display)",
                              "--create", "--json")
    assert code == 0
    assert [(c["name"], c["replicate"], c["created"]) for c in companies] == [
        (COMPANY, True, True), ("Contoso A_S _Nordic_", True, True)]

    code, first, progress = call("run", "--json")
    assert code == 0
    assert first["run"]["status"] == "UpgradePending"
    assert {table["status"] for table in first["tables"]} == {"Successful"}
    assert len(first["tables"]) == 2 * 12 + 6
    assert "of 30 tables" in progress

    assert call("sample", source, "--change", 60)[0] == 0
    code, second, _ = call("run", "--json")
    assert code == 0
    moved = {t["table_name"]: (t["inserted"], t["updated"], t["deleted"]) for t in second["tables"] if t["mode"] != "unchanged"}
    assert moved[f"G_L Entry${BASE}"] == (18, 18, 18)
    assert moved[f"Customer${BASE}"] == moved[f"Customer${BASE}$ext"] == (1, 1, 1)

    code, verified, _ = call("verify", "--json")
    assert (code, verified["equal"], len(verified["tables"])) == (0, True, 30)
    code, _, error = call("complete")
    assert (code, "the data upgrade is pending" in error) == (3, True)
    code, shown, _ = call("upgrade", "--pack", PACK, "--dry-run", "--company", COMPANY, "--json")
    assert (code, [(step["company"], step["step"], len(step["statements"])) for step in shown["steps"]]) == (
        0, [("", "030-fleet", 1), (COMPANY, "010-raise", 2), (COMPANY, "020-count", 1)])
    assert call("upgrade", "--company", COMPANY)[0] == 2
    assert call("upgrade", "--retry", COMPANY)[0] == 3
    code, upgraded, _ = call("upgrade", "--pack", PACK, "--json")
    assert (code, {step["status"] for step in upgraded["steps"]}, len(upgraded["steps"])) == (0, {"Completed"}, 5)
    code, out, _ = call("verify")
    assert (code, "27 tables compared" in out, "3 tables changed by the data upgrade" in out) == (0, True, True)
    assert call("complete")[0] == 0
    code, status, _ = call("status", "--json")
    assert (code, status["state"]) == (0, "Disabled")
    with closing(sqlite3.connect(source)) as old, duckdb.connect(str(source.parent / "home" / "target.duckdb")) as new:
        expected = old.execute(f'select "Entry No_", Description, "Checksum" from {ENTRIES} order by 1').fetchall()
        copied = new.execute(f'select "Entry No_", Description, "Checksum" from "{COMPANY}"."G_L Entry${BASE}" order by 1').fetchall()
        assert copied == expected
        assert not old.execute("select 1 from sqlite_master where name like '%skylift%'").fetchall()


def test_setup_shows_the_companies_and_keeps_the_target(call, source, tmp_path):
    target = tmp_path / "elsewhere" / "t.duckdb"
    target.parent.mkdir()

    assert call("setup", "--product", "DynamicsBCLast", "--source", f"sqlite:///{source}", "--target", f"duckdb:///{target}")[0] == 0
    assert call("companies", "--mark", COMPANY, "--create")[0] == 0
    assert call("run")[0] == 0

    assert target.exists()
    assert not (tmp_path / "home" / "target.duckdb").exists()


def test_another_target_than_the_one_kept_at_setup_is_refused_wherever_it_comes_from(call, ready, tmp_path, monkeypatch):
    kept = f"the target of this home is duckdb:///{tmp_path}/home/target.duckdb"
    for command in ("run", "verify", "serve", "companies"):
        code, out, error = call(command, "--target", "duckdb:///other.duckdb")
        assert (code, out, kept in error.replace("\n", " ")) == (2, "", True)
    assert call("run", "--target", "duckdb:///home/target.duckdb")[0] == 0                          # the same, otherwise written
    monkeypatch.setenv("SKYLIFT_TARGET", "duckdb:///other.duckdb")
    code, _, error = call("status")
    assert (code, kept in error, "hint: leave out --target and SKYLIFT_TARGET" in error) == (2, True, True)

    assert call("setup", "--product", "DynamicsBCLast")[0] == 0                                    # here it may be changed
    monkeypatch.delenv("SKYLIFT_TARGET")
    assert call("run", "--target", f"duckdb:///{tmp_path}/home/target.duckdb")[0] == 2
    code, _, error = call("run")
    assert (code, "marked, but not created yet" in error, "skylift companies --create" in error) == (3, True, True)
    assert call("companies", "--create")[0] == 0
    assert call("run")[0] == 0
    assert (tmp_path / "other.duckdb").exists()


def test_run_shows_what_each_company_got_and_names_failed_tables(call, ready):
    with closing(sqlite3.connect(ready)) as database, database:
        database.execute(f'update {ENTRIES} set Amount = \'not a number\' where "Entry No_" = 7')

    code, out, _ = call("run")
    assert code == 1
    assert "Contoso A_S _Nordic_" in out
    assert "(all companies)" in out
    assert "failed table" in out
    assert "not a number" in out
    assert "1 of 30 tables has failed, its error says why; 29 copied and verified." in out
    copied, total = re.search(r"([\d,]+) of ([\d,]+) rows copied", out).groups()
    assert int(total.replace(",", "")) - int(copied.replace(",", "")) >= 200     # the failed table's rows are still to come
    code, status, _ = call("status", "--json")
    assert code == 1
    assert [table["table_name"] for table in status["tables"] if table["status"] == "Failed"] == [f"G_L Entry${BASE}"]


def test_a_run_that_is_not_waited_for_is_carried_out_by_whoever_coordinates_next(call, ready, tmp_path):
    code, run, _ = call("run", "--no-wait", "--json")
    assert (code, run["status"]) == (0, "InProgress")
    code, _, error = call("run", "--kind", "diagnostic")                          # one at a time
    assert (code, "a run of another kind (full) is in progress" in error, "first: skylift run" in error) == (3, True, True)
    code, _, error = call("disable")
    assert (code, "skylift run or skylift coordinate goes on with it" in error) == (3, True)

    worker = subprocess.Popen([sys.executable, "-m", "skylift", "coordinate"])
    code, out, _ = call("status", "--watch")
    worker.terminate()

    assert code == 0
    assert "UpgradePending: 30 of 30 tables" in out
    assert worker.wait(20) == 0


def test_packs_of_ones_own_upgrade_a_database_of_any_kind(call, tmp_path):
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database, database:
        database.executescript("create table Album (Id integer primary key, Title text); insert into Album values (1, 'a')")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "pack.toml").write_text('name = "mine"\nversion = "1"\n[[step]]\nid = "one"\nsql = "one.sql"')
    (tmp_path / "mine" / "one.sql").write_text("select 1; update {{Album}} set Title = 'b'")
    call("setup", "--product", "Custom", "--source", f"sqlite:///{tmp_path}/shop.db")
    call("companies", "--mark-all", "--create")
    code, _, error = call("upgrade", "--pack", "mine")
    assert (code, error.splitlines()[0]) == (3, "error: there is nothing to upgrade")
    assert call("run")[0] == 0
    code, out, _ = call("upgrade", "--dry-run")
    assert (code, out) == (0, "there is no step to be done: no upgrade pack is named (--pack NAME, or the setting packs)\n")
    code, out, _ = call("upgrade", "--dry-run", "--pack", "mine")
    assert (code, out) == (0, "-- shop: mine one\nupdate \"shop\".\"Album\" set Title = 'b';\n-- and 1 that only ask: see --json\n"
                              "nothing was changed\n")
    assert call("upgrade", "--pack", "mine")[0] == 0
    assert call("complete")[0] == 0
    with duckdb.connect(str(tmp_path / "home" / "target.duckdb")) as database:
        assert database.sql("from shop.Album").fetchall() == [(1, "b")]


def test_many_companies_that_fail_alike_are_told_once(call, ready, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "pack.toml").write_text('name = "bad"\nversion = "1"\n[[step]]\nid = "one"\nsql = "one.sql"')
    (tmp_path / "bad" / "one.sql").write_text("update {{Customer}} set Nothing = 1")
    call("run")

    code, out, _ = call("upgrade", "--pack", "bad")

    assert code == 1 and out.count("The data upgrade has failed.") == 1 and out.count("Binder Error") == 2    # in table and sentence
    assert f"{COMPANY}, Contoso A_S _Nordic_: upgrade step one of pack bad" in out and f"(as {COMPANY})" in out


def test_a_run_or_an_upgrade_that_nobody_works_on_is_gone_on_with_when_it_is_asked_for_again(call, ready, tmp_path):
    _, recorded, _ = call("run", "--no-wait", "--json")
    code, document, error = call("run", "--json")
    assert (code, document["run"]["id"], document["run"]["status"]) == (0, recorded["id"], "UpgradePending")
    assert "a run is under way already, going on with it" in error

    with migration_of(tmp_path / "home") as migration:
        migration.run_data_upgrade()
    code, out, error = call("upgrade")
    assert (code, "Completed" in out, "an upgrade is under way already" in error) == (0, True, True)


def test_a_cancelled_run_is_ended_by_the_command_and_the_next_run_goes_on(call, ready):
    call("run", "--no-wait")
    code, out, _ = call("cancel", "--reason", "the line is needed")
    assert (code, "Failed: The run was cancelled by cli: the line is needed." in out) == (0, True)
    code, document, _ = call("status", "--json")
    assert (code, document["run"]["cancelled"]) == (1, "cancelled by cli: the line is needed")

    assert call("run")[0] == 0


def test_a_run_of_a_part_goes_through_that_part_only(call, ready):
    code, document, _ = call("run", "--company", COMPANY, "--table", "Customer", "--json")
    assert code == 0
    assert {(t["company_name"], t["table_name"]) for t in document["tables"]} == {
        (COMPANY, f"Customer${BASE}"), (COMPANY, f"Customer${BASE}$ext")}
    code, _, error = call("run", "--failed")
    assert (code, "no table has failed" in error) == (3, True)
    code, _, error = call("run", "--table", "Nothing")
    assert (code, "the source has no table 'Nothing'" in error, "skylift tables lists them" in error) == (2, True, True)


def test_status_says_that_nobody_works_on_a_run(call, ready):
    call("run", "--no-wait")
    _, out, _ = call("status")
    assert "no coordinator is working: skylift run goes on with it" in out

    assert call("run")[0] == 0
    _, out, _ = call("status")
    assert "no coordinator" not in out


def test_pace_counts_from_the_first_look_on():
    now = [100.0]
    pace = Pace(lambda: now[0])

    assert pace.look(8_000, 8_000, 10_000) == ("0 rows/s", "")
    now[0] = 102.0
    assert pace.look(9_000, 9_000, 10_000) == ("500 rows/s", "about 2 s left")


def test_creation_of_companies_that_nobody_works_on_is_gone_on_with(call, source, tmp_path):
    assert call("setup", "--product", "DynamicsBCLast", "--source", f"sqlite:///{source}")[0] == 0
    assert call("companies", "--mark-all")[0] == 0
    with migration_of(tmp_path / "home") as migration:
        migration.complete_setup(migration.select(Setup, Query())[0].id)

    code, companies, error = call("companies", "--create", "--json")

    assert (code, {company["created"] for company in companies}) == (0, {True})
    assert "companies are being created already, going on with it" in error


def test_a_command_waits_for_the_coordinator_that_holds_the_lease(call, ready):
    worker = subprocess.Popen([sys.executable, "-m", "skylift", "coordinate"])
    time.sleep(2)
    try:
        code, out, _ = call("run", "--json")
    finally:
        worker.terminate()
        worker.wait(20)

    assert code == 0
    assert out["run"]["status"] == "UpgradePending"


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["setup", "--product", "Navision", "--source", "sqlite:///bc.db"], 2, "'Navision' is not a source product"),
    (["setup", "--product", "Custom", "--source", "sqlite:///missing.db"], 2, "missing.db cannot be read"),
    (["setup", "--product", "Custom", "--source", "oracle://x/y"], 2, "'oracle' is not a source that skylift knows"),
    (["setup", "--product", "Custom", "--source", "Data Source=srv;Password=s3cret"], 2, "it names no database"),
    (["setup", "--product", "DynamicsGP", "--source", "sqlite:///bc.db"], 2, "cannot read the catalogue of Dynamics GP"),
    (["setup", "--product", "Custom", "--source", "sqlite:///bc.db", "--target", "duckdb:////proc/t.duckdb"], 2, "/proc/t.duckdb"),
    (["companies", "--mark", "Nobody"], 3, "there is no set-up yet"),
    (["companies", "--create"], 3, "there is no set-up yet"),
    (["run"], 3, "the migration is not set up"),
    (["run", "--kind", "half"], 2, "'half' is not one of"),
    (["cancel"], 3, "no run is in progress"),
    (["upgrade"], 3, "there is no set-up yet"),
    (["verify"], 3, "no source is connected yet"),
    (["reset"], 3, "there is no set-up yet"),
    (["disable"], 3, "there is no set-up yet"),
    (["complete"], 3, "there is no set-up yet"),
    (["sample", "bc.db"], 2, "exists already"),
    (["token", "create", "x", "--role", "king"], 2, "'king' is not one of"),
    (["token", "revoke", "x"], 2, "'x'"),
    (["serve", "--host", "203.0.113.1"], 2, "cannot listen on 203.0.113.1"),
    (["setup", "--product", "Custom", "--source", "sqlite:///bc.db", "--target", "nonsense://x"], 2, "'nonsense' is not a target"),
])
def test_bad_input_says_what_is_wrong_and_exits_with_the_code_for_it(call, source, arguments, code, message):
    exit_code, out, error = call(*arguments)

    assert (exit_code, out) == (code, "")
    assert message in error.replace("\n", " ")
    assert "s3cret" not in error
    assert "Traceback" not in error


def test_error_is_a_document_with_json(call, source):
    code, document, _ = call("setup", "--product", "Navision", "--json")

    assert code == 2
    assert document["error"]["code"] == "52010"
    assert "choose one of" in document["error"]["hint"]


@pytest.mark.parametrize("arguments", [("run", "--kind", "odd", "--json"), ("nonsense", "--json"), ("setup", "--json")])
def test_a_command_line_that_cannot_be_read_is_a_document_too(arguments):
    done = subprocess.run([sys.executable, "-m", "skylift", *arguments], capture_output=True, text=True)

    assert done.returncode == 2 and done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "Usage"


def test_second_run_without_marked_company_is_refused(call, ready):
    assert call("companies", "--unmark", COMPANY, "--unmark", "Contoso A_S _Nordic_")[0] == 0

    code, _, error = call("run")
    assert (code, "hint: mark at least one company (skylift companies --mark NAME" in error) == (3, True)
    code, _, error = call("companies", "--create")
    assert (code, "no company is marked" in error) == (3, True)


@pytest.mark.parametrize("command", ["companies", "tables"])
def test_there_is_nothing_to_list_before_anything_is_set_up(call, command):
    code, out, error = call(command)

    assert (code, out, "there is no set-up yet" in error, "skylift setup" in error) == (3, "", True, True)


@pytest.mark.parametrize("arguments", [("tables", "--include", "Customer", "--exclude", "customer"),
                                       ("tables", "--preserve", "Currency", "--replace", "Currency"),
                                       ("companies", "--mark", COMPANY, "--unmark", COMPANY)])
def test_two_wishes_that_exclude_each_other_are_refused_and_neither_is_followed(call, ready, arguments):
    _, before, _ = call(arguments[0], "--json")
    code, _, error = call(*arguments)

    assert (code, "hint: choose one" in error) == (2, True)
    assert call(arguments[0], "--json")[1] == before


def test_a_company_that_the_source_does_not_have_is_told_with_those_that_it_has(call, ready):
    code, _, error = call("companies", "--mark", "Nobody")

    assert (code, "the source has no company 'Nobody'" in error, COMPANY in error) == (2, True, True)


def test_status_before_anything_is_set_up(call):
    code, document, _ = call("status", "--json")

    assert (code, document["state"], document["run"]) == (0, "NotSetUp", None)


def test_reset_makes_the_next_run_copy_everything(call, ready):
    call("run")
    assert call("reset")[0] == 3                       # everything is copied and waits for its upgrade
    assert call("reset", "--yes")[0] == 0

    _, document, _ = call("run", "--json")

    assert {table["mode"] for table in document["tables"]} == {"full"}


def test_interrupted_run_exits_with_130_and_goes_on_with_the_next_command(call, ready, tmp_path):
    create = subprocess.Popen([sys.executable, "-m", "skylift", "run"], stderr=subprocess.PIPE, text=True)
    while not call("status", "--json")[1]["tables"]:
        time.sleep(0.05)
    create.send_signal(signal.SIGINT)
    _, error = create.communicate(timeout=30)

    if create.returncode == 130:                                # else it was done already
        assert "interrupted" in error
    worker = subprocess.Popen([sys.executable, "-m", "skylift", "coordinate"])
    store = open_store(load_settings({"home": tmp_path / "home"}).store)
    while not is_coordinated(store):                            # a signal that comes before Python has started ends it roughly
        time.sleep(0.05)
    store.close()
    code, _, _ = call("status", "--watch")
    worker.terminate()
    assert (code, worker.wait(20)) == (0, 0)


def test_serve_answers_until_sigterm_and_takes_its_coordinator_along(tmp_path, monkeypatch, call):
    _, out, _ = call("token", "create", "t", "--role", "reader")
    server = subprocess.Popen([sys.executable, "-m", "skylift", "serve", "--port", "0"], stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "PYTHONUNBUFFERED": "1"})
    address = server.stdout.readline().split()[1]
    assert server.stdout.readline().startswith("make a token with: skylift token create")
    end = time.monotonic() + 20
    while True:
        try:
            answer = httpx.get(f"{address}/companies", headers={"Authorization": f"Bearer {out.splitlines()[-1]}"})
            break
        except httpx.TransportError:
            assert time.monotonic() < end
            time.sleep(0.1)
    children = subprocess.run(["pgrep", "-P", str(server.pid)], capture_output=True, text=True, check=True).stdout.split()

    server.terminate()

    assert answer.status_code == 200
    assert [company["name"] for company in answer.json()["value"]] == ["CRONUS"]
    assert server.wait(20) == 0
    assert len(children) >= 2                                   # the worker and the coordinator
    assert not [child for child in children if os.path.exists(f"/proc/{child}")]


def test_serve_refuses_a_port_in_use(call):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, error = call("serve", "--port", taken.getsockname()[1])

    assert (code, "cannot listen on 127.0.0.1" in error) == (2, True)
