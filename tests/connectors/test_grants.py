"""Logins that have exactly what `skylift grants` prints, on real servers: they can do everything, and what is taken from them is named."""

import re
from contextlib import closing, contextmanager, suppress
from uuid import uuid4

import pytest
from sqlalchemy.engine import make_url

from skylift.connectors import grants, open_source, open_target, parse_url
from skylift.engine.pool import copy_tables
from skylift.errors import SetupError
from skylift.model import CopyTask, TargetName
from tests.connectors import labs
from tests.connectors.test_conformance import insert, successful

PASSWORD = "Sesame_12345"
SHOP = {"id": "int", "v": "text"}


@contextmanager
def login(lab, side, **query):
    """URL of a new login that was given what is printed for it, and nothing else."""
    given = parse_url(lab.url)
    name = f"least_{uuid4().hex[:8]}"
    url = given.set(username=name, password=PASSWORD).update_query_dict(query)
    script = grants(url.render_as_string(hide_password=False), side).replace("<password>", PASSWORD)
    undo = []
    if given.get_backend_name() == "postgresql":
        lab.execute(f"revoke all on database {given.database} from public", "revoke all on schema public from public")
        lab.execute(script)
        undo = [f"reassign owned by {name} to skylift", f"drop owned by {name} cascade", f"drop role {name}"]
    elif given.get_backend_name() == "mysql":
        lab.execute(*(part for part in re.sub(r"(?m)^--.*\n", "", script).split(";\n") if part.strip()))
        undo = [f"drop user {name}"]
    else:
        undo = [f"drop user {name}", f"drop login {name}"]
        _grant(lab, script, name)
    try:
        yield url.render_as_string(hide_password=False)
    finally:
        with suppress(Exception):                  # on a server that outlives the tests
            lab.execute(*undo)


def _grant(lab, script, name):
    """Statement by statement. Where a server knows no rights on a whole database, SELECT on its schema stands for what a reader gets."""
    plain, declared, block = re.sub(r"(?m)^--.*\n", "", script).partition("declare ")
    instead = {"grant select to": f"grant select on schema::dbo to {name}", "grant view database state to": "", "declare": ""}
    with closing(lab.connect(autocommit=True)) as connection:
        cursor = connection.cursor()
        for statement in filter(str.strip, [*plain.split(";\n"), declared + block]):
            try:
                cursor.execute(statement)
            except Exception as error:
                known = [other for begin, other in instead.items() if statement.startswith(begin)]
                if not known:
                    lab.execute(f"drop user {name}", f"drop login {name}")
                    pytest.skip(f"the server does not know '{statement}': {error}")
                lab.execute(*known)


def run(source_url, target_url, copy_id):
    """Of two tables one is a company's."""
    with closing(open_source(source_url)) as source, closing(open_target(target_url)) as target:
        tasks = [CopyTask("", t.name, t, TargetName("CRONUS" if t.name == "shop" else "", t.name)) for t in source.tables()]
        return {p.task.table.name: p for p in copy_tables(tasks, source, target, copy_id=copy_id, consumer="tests", workers=2)}


def shop(kind, folder):
    lab = labs.SOURCES[kind](folder)
    for name in ("shop", "common"):
        lab.execute(lab.ddl(name, SHOP, ("id",)), insert(name, [(i, f"v{i}") for i in range(100)]))
    if kind == "postgres":                         # an application owns its tables
        owner = f"app_{make_url(lab.url).database}"
        lab.execute(f"create role {owner}", f"alter table shop owner to {owner}", f"alter table common owner to {owner}")
    return lab


FED = {"postgres": "slot", "mysql": "change_log", "sqlserver": "sweep"}


@pytest.mark.parametrize(("source_kind", "target_kind"), [("postgres", "postgres"), ("mysql", "postgres"), ("sqlserver", "sqlserver")])
def test_a_login_with_exactly_the_printed_rights_migrates_whole_and_incrementally(source_kind, target_kind, tmp_path):
    source, target = shop(source_kind, tmp_path), labs.TARGETS[target_kind](tmp_path)
    with login(source, "source") as source_url, login(target, "target") as target_url:
        assert set(successful(run(source_url, target_url, "c1")).values()) == {"full"}
        source.execute("update shop set v = 'new' where id < 3", "delete from common where id = 7")

        results = run(source_url, target_url, "c2")

        assert successful(results) == {"shop": "incremental", "common": "incremental"}
        assert {results["shop"].watermark.feed, results["common"].watermark.feed} == {FED[source_kind]}
        assert target.rows("shop", "CRONUS") == source.rows("shop") and target.rows("common") == source.rows("common")
        with closing(open_source(source_url)) as reader:
            reader.untrack("tests")


def test_a_reader_of_sql_server_with_the_printed_rights_is_enough_and_writes_nothing(tmp_path):
    source, target = shop("sqlserver", tmp_path), labs.DuckDBLab(tmp_path)
    with login(source, "source") as url:
        assert set(successful(run(url, target.url, "c1")).values()) == {"full"}
        source.execute("update shop set v = 'new' where id < 3", "delete from common where id = 7")

        assert successful(run(url, target.url, "c2")) == {"shop": "incremental", "common": "incremental"}
        assert target.rows("shop", "CRONUS") == source.rows("shop") and target.rows("common") == source.rows("common")
        assert source.names() == {"shop", "common"}
        with closing(open_source(url)) as reader, closing(open_target(target.url)) as writer:
            reader.untrack("tests")
            [common] = [table for table in reader.tables() if table.name == "common"]
            source.execute(f"revoke select on schema::dbo from {parse_url(url).username}")
            [progress] = [p for p in copy_tables([CopyTask("", "common", common, TargetName("", "common"), True)], reader, writer,
                                                 copy_id="c3", consumer="tests", workers=1) if p.error]
            assert re.search(f"common: user '{parse_url(url).username}' lacks a right: .*permission", str(progress.error))


POSTGRES_SOURCE = [
    ("revoke connect on database {database} from {user}", 'grant connect on database "{database}" to "{user}"'),
    ("revoke usage on schema public from {user}", 'grant USAGE on schema public to "{user}"'),
    ("revoke select on shop from {user}", 'grant SELECT on table public.shop to "{user}"'),
]
POSTGRES_TARGET = [
    ("revoke connect on database {database} from {user}", 'grant connect on database "{database}" to "{user}"'),
    ("revoke temporary on database {database} from {user}", 'grant temporary on database "{database}" to "{user}"'),
    ("revoke create on database {database} from {user}", 'grant create on database "{database}" to "{user}"'),
    ("revoke create on schema public from {user}", 'grant create on schema public to "{user}"'),
    ("revoke usage on schema public from {user}", 'grant usage on schema public to "{user}"'),
]
MYSQL = [(f"revoke {right} on {{pattern}}.* from {{user}}", rf"\b{right.upper()}\b") for right in ("select", "trigger")]
MYSQL += [(f"revoke {right} on {{database}}._skylift_{table} from {{user}}", f"{right.upper()} command denied .*`_skylift_{table}`")
          for table in ("log", "consumers") for right in ("create", "insert", "update", "delete")]
SQLSERVER = [(f"revoke {right} from {{user}}", name) for right, name in [
    ("create table", "CREATE TABLE"), ("create schema", "CREATE SCHEMA"), ("alter on schema::dbo", "ALTER"),
    ("select on schema::dbo", "SELECT"), ("insert on schema::dbo", "INSERT"), ("delete on schema::dbo", "DELETE")]]


def told(source_url, target_url):
    """All that a run says of what it lacks."""
    try:
        results = run(source_url, target_url, "c1")
    except SetupError as error:
        return str(error)
    return " ".join(f"{p.error or ''} {p.reason}" for p in results.values())


@pytest.mark.parametrize(("kind", "revoked", "named"), [("postgres", *case) for case in POSTGRES_SOURCE])
def test_a_right_that_is_taken_from_a_reader_is_named_with_what_grants_it(kind, revoked, named, tmp_path):
    source, target = shop(kind, tmp_path), labs.DuckDBLab(tmp_path)
    with login(source, "source", feed="none") as url:
        names = {"database": parse_url(url).database, "user": parse_url(url).username}
        source.execute(revoked.format(**names))

        assert named.format(**names) in told(url, target.url)


@pytest.mark.parametrize(("revoked", "named"), [
    ("revoke create on database {database} from {user}", "user '{user}' lacks the right CREATE on database {database}"),
    ("revoke app_{database} from {user}", "user '{user}' does not belong to the owner of the table"),
])
def test_without_a_right_for_the_feed_tables_of_postgres_are_compared_and_it_is_named(revoked, named, tmp_path):
    source, target = shop("postgres", tmp_path), labs.DuckDBLab(tmp_path)
    with login(source, "source") as url:
        names = {"database": parse_url(url).database, "user": parse_url(url).username}
        source.execute(revoked.format(**names))
        told(url, target.url)
        source.execute("update shop set v = 'new' where id < 3")

        results = run(url, target.url, "c2")

        assert successful(results) == {"shop": "incremental", "common": "unchanged"}
        assert results["shop"].reason == f"compared row by row: {named.format(**names)}"
        assert target.rows("shop", "CRONUS") == source.rows("shop")


@pytest.mark.parametrize(("revoked", "named"), MYSQL)
def test_a_right_that_is_taken_from_a_reader_of_mysql_is_named(revoked, named, tmp_path):
    source, target = shop("mysql", tmp_path), labs.DuckDBLab(tmp_path)
    with login(source, "source") as url:
        database = parse_url(url).database
        source.execute(revoked.format(database=database, pattern=f"`{database}`".replace("_", r"\_"), user=parse_url(url).username))
        told(url, target.url)                      # without a feed the second run has to compare, and says why

        assert re.search(named, told(url, target.url))
        source.execute("update shop set v = 'x' where id = 1", "delete from shop where id = 2")     # no trigger is in anybody's way


@pytest.mark.parametrize(("kind", "revoked", "named"), [*(("postgres", *case) for case in POSTGRES_TARGET),
                                                        *(("sqlserver", *case) for case in SQLSERVER)])
def test_a_right_that_is_taken_from_a_writer_is_named(kind, revoked, named, tmp_path):
    source, target = shop("mysql" if kind == "postgres" else "sqlserver", tmp_path), labs.TARGETS[kind](tmp_path)
    with login(target, "target") as url:
        names = {"database": parse_url(url).database, "user": parse_url(url).username}
        target.execute(revoked.format(**names))

        assert named.format(**names) in told(source.url, url)


def test_nothing_is_connected_and_no_password_is_printed():
    for url in ("postgresql://me:secret@nowhere/sales", "mysql://me:secret@nowhere/sales",
                "Server=nowhere;Database=sales;User ID=me;Password=secret"):
        script = grants(url, "source")
        assert "secret" not in script and "<password>" in script and "me" in script


@pytest.mark.parametrize(("url", "side", "words"), [
    ("sqlite:///a.db", "source", "read and write a.db"), ("sqlite:///a.db?mode=ro", "source", "needs the right to read"),
    ("duckdb:///a.duckdb", "source", "Nothing is written there"), ("duckdb:///a.duckdb", "target", "in its folder"),
    ("delta:////lake", "target", "/lake, which lies on one file system"),
    ("parquet+s3://key:secret@bucket/some/where?region=eu", "target", '"arn:aws:s3:::bucket/some/where/*"'),
    ("mysql://o'brien@h/d%b_c", "source", r"on `d\%b\_c`.* to 'o''brien'@'%';"),
    ('postgresql://a%22b%25@h/d', "source", '''to "a""b%%"', s)'''),
])
def test_what_other_places_need(url, side, words):
    script = grants(url, side)

    assert words in script and "secret" not in script
