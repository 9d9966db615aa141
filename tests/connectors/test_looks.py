"""Databases looked at without a trace: which feed a table will get, which rights are missing, what will not fit, on real servers."""

import re
from contextlib import closing
from types import SimpleNamespace

import mssql_python
import psycopg
import pytest
from sqlalchemy.engine import make_url

from skylift.connectors import look_at_source, look_at_target, open_source, parse_url
from skylift.connectors.mysql_look import Rights
from skylift.engine.assess import look, measured
from skylift.engine.census import CountingLosses, scan
from skylift.errors import TargetFailed
from skylift.migration import Migration
from skylift.model import CopyTask, TargetName
from skylift.runs import Severity
from skylift.settings import Settings
from skylift.store import open_store
from tests import servers
from tests.connectors import labs
from tests.connectors.fake_sqlserver import FakeSqlServer
from tests.connectors.test_conformance import insert
from tests.connectors.test_grants import POSTGRES_SOURCE, POSTGRES_TARGET, login, shop
from tests.migration.assessing import findings_of, outcome_of

COLUMNS = {"id": "int", "v": "text", "at": "datetime", "b": "blob"}
B, W, I = Severity.BLOCKING, Severity.WARNING, Severity.INFORMATION      # noqa: E741
# Everything in a database that skylift, or anybody, could have made there.
POSTGRES_CATALOGUE = """select relname::text, relnamespace::regnamespace::text, relfilenode::text from pg_class
    where relnamespace not in ('pg_catalog'::regnamespace, 'pg_toast'::regnamespace) union all
    select nspname::text, nspowner::text, '' from pg_namespace where nspname !~ '^pg_t' union all
    select pubname::text, 'publication', '' from pg_publication union all select tgname::text, tgrelid::text, '' from pg_trigger union all
    select slot_name::text, 'slot', '' from pg_replication_slots where database = current_database() order by 1, 2, 3"""
MYSQL_CATALOGUE = """select table_name, engine, create_time from information_schema.tables where table_schema = database() union all
    select trigger_name, event_object_table, '' from information_schema.triggers where trigger_schema = database() order by 1, 2, 3"""


@pytest.fixture
def migration(tmp_path):
    settings = Settings(home=tmp_path / "home")
    store = open_store(settings.store)
    yield Migration(store, settings, "tester")
    store.close()


def severities(rows):
    return {key: row.severity for key, row in rows.items()}


# ------------------------------------------------------------------ feeds


@pytest.mark.parametrize("kind", [*labs.SOURCES, "postgres by triggers", "sqlite read-only", "mysql read-only", "postgres without a feed"])
def test_the_feed_that_is_foretold_is_the_one_that_a_table_gets(kind, tmp_path):
    source = (labs.SOURCES | labs.OTHER_FEEDS)[kind.removesuffix(" read-only").removesuffix(" without a feed")](tmp_path)
    query = {"read-only": {"mode": "ro"}, "feed": {"feed": "none"}}.get(kind.rpartition(" ")[2], {})
    url = parse_url(source.url).update_query_dict(query).render_as_string(hide_password=False)
    source.execute(source.ddl("keyed", COLUMNS, ("id",)), source.ddl("free", COLUMNS),
                   insert("keyed", [(1, "a", "2026-01-01 00:00:00.000", b"x")]))
    with closing(look_at_source(url)) as seen:
        tables = seen.source.tables()
        told = {path: forecast.feed for path, forecast in seen.feeds(tables).items()}
        why = {path: forecast.why for path, forecast in seen.feeds(tables).items()}
        seen.remarks(tables)
    with closing(open_source(url)) as reader:
        given = reader.track(reader.tables(), "tests")
        reader.untrack("tests")

    assert told == {path: mark.feed for path, mark in given.items()} and len(told) == 2
    assert all(mark.why in why[path] for path, mark in given.items())


@pytest.mark.parametrize(("revoked", "feed", "words"), [
    ("alter role {user} noreplication", "change_log", "lacks the right REPLICATION"),
    ("revoke create on database {database} from {user}", "sweep", "lacks the right CREATE"),
    ("revoke app_{database} from {user}", "sweep", "does not belong to the owner"),
])
def test_without_a_right_for_it_a_table_of_postgres_gets_a_lesser_feed_and_the_right_is_named(revoked, feed, words, tmp_path):
    source = shop("postgres", tmp_path)
    with login(source, "source") as url:
        source.execute(revoked.format(database=parse_url(url).database, user=parse_url(url).username))
        with closing(look_at_source(url)) as seen:
            told = seen.feeds(seen.source.tables())["shop"]
        with closing(open_source(url)) as reader:
            assert reader.track(reader.tables(), "tests")["shop"].feed == feed
            reader.untrack("tests")

    assert told.feed == feed and words in told.why and told.fix


def test_how_long_changes_are_kept_is_told(tmp_path):
    source = labs.PostgresLab(tmp_path, "max_slot_wal_keep_size=64MB")
    source.execute(source.ddl("t", COLUMNS, ("id",)))
    with closing(look_at_source(source.url)) as seen:
        [remark] = seen.remarks(seen.source.tables())
    assert (remark.code, remark.severity) == ("FeedExpires", I) and "64MB" in remark.message


# ------------------------------------------------------------------ rights


@pytest.mark.parametrize(("revoked", "named"), POSTGRES_SOURCE[1:])
def test_a_right_that_a_reader_of_postgres_lacks_is_found_with_what_grants_it(revoked, named, tmp_path, migration):
    source = shop("postgres", tmp_path)
    with login(source, "source", feed="none") as url:
        names = {"database": parse_url(url).database, "user": parse_url(url).username}
        source.execute(revoked.format(**names))
        rows = findings_of(migration, url, f"duckdb:///{tmp_path}/t.duckdb")

    assert rows["Permission", "shop", ""].severity is B and named.format(**names) in rows["Permission", "shop", ""].fix


@pytest.mark.parametrize(("revoked", "named"), POSTGRES_TARGET[1:])
def test_a_right_that_a_writer_of_postgres_lacks_is_found_with_what_grants_it(revoked, named, tmp_path, migration):
    source, target = labs.SqliteLab(tmp_path), labs.TARGETS["postgres"](tmp_path)
    source.execute(source.ddl("t", COLUMNS, ("id",)))
    with login(target, "target") as url:
        names = {"database": parse_url(url).database, "user": parse_url(url).username}
        target.execute(revoked.format(**names))
        rows = findings_of(migration, source.url, url)

    assert rows["Permission", "", ""].severity is B and named.format(**names) in rows["Permission", "", ""].fix


def test_who_has_exactly_the_printed_rights_lacks_none(tmp_path, migration):
    for kind in ("postgres", "mysql"):
        (tmp_path / kind).mkdir()
        source, target = shop(kind, tmp_path / kind), labs.TARGETS["postgres"](tmp_path)
        with login(source, "source") as source_url, login(target, "target") as target_url:
            rows = findings_of(migration, source_url, target_url)
        assert {code for code, *_ in rows} <= {"FeedKeepsLog", "Space"}


@pytest.mark.parametrize(("revoked", "found"), [
    ("revoke trigger on {pattern}.* from {user}", {("Permission", "shop"): W, ("Permission", "common"): W, ("ChangeFeed", "shop"): W,
                                                   ("ChangeFeed", "common"): W}),
    ("revoke insert on {database}._skylift_log from {user}", {("Permission", ""): W, ("ChangeFeed", "shop"): W,
                                                              ("ChangeFeed", "common"): W}),
])
def test_rights_that_a_reader_of_mysql_lacks_for_its_log_are_named(revoked, found, tmp_path, migration):
    source = shop("mysql", tmp_path)
    with login(source, "source") as url:
        database = parse_url(url).database
        source.execute(revoked.format(database=database, pattern=f"`{database}`".replace("_", r"\_"), user=parse_url(url).username))
        rows = findings_of(migration, url, f"duckdb:///{tmp_path}/t.duckdb")

    assert {key[:2]: row.severity for key, row in rows.items()} == found
    grant = next(row.fix for key, row in rows.items() if key[0] == "Permission")
    assert grant.startswith(f"grant {'trigger' if 'trigger' in revoked else 'insert'} on ") and f"'{parse_url(url).username}'@" in grant


@pytest.mark.parametrize(("grants", "right", "table", "has"), [
    (["GRANT ALL PRIVILEGES ON *.* TO `a`@`%`"], "TRIGGER", "t", True),
    (["GRANT USAGE ON *.* TO `a`@`%`", "GRANT SELECT, TRIGGER ON `s\\_1`.* TO `a`@`%`"], "TRIGGER", "t", True),
    (["GRANT SELECT ON `s_1`.* TO `a`@`%`"], "TRIGGER", "t", False),
    (["GRANT SELECT (`a`, `b`), INSERT ON `s_1`.`t` TO `a`@`%`"], "INSERT", "t", True),
    (["GRANT SELECT ON `s_1`.`t` TO `a`@`%`"], "SELECT", "u", False),
    (["GRANT SELECT ON `s%`.* TO `a`@`%`"], "SELECT", "u", True), (["GRANT SELECT ON `other`.* TO `a`@`%`"], "SELECT", "u", False),
])
def test_grants_of_mysql_are_understood(grants, right, table, has):
    rights = Rights(grants, "s_1")
    assert rights.has(right, table) is has and rights.certain
    assert not Rights([*grants, "GRANT `role` TO `a`@`%`"], "s_1").certain


# ------------------------------------------------------------------ what stands in the target, and values


def test_what_hangs_on_a_table_of_the_target_is_found(tmp_path, migration):
    source, target = labs.SqliteLab(tmp_path), labs.TARGETS["postgres"](tmp_path)
    source.execute(source.ddl("t", COLUMNS, ("id",)))
    target.execute("create schema source", "create table source.t (id bigint primary key)",
                   "create view source.over as select * from source.t")

    rows = findings_of(migration, source.url, target.url)

    assert rows["Obstacle", "t", ""].severity is B and "the view source.over" in rows["Obstacle", "t", ""].message
    assert {key for key in rows if key[0] == "50005"} == {("50005", "t", "v"), ("50005", "t", "at"), ("50005", "t", "b")}


def test_names_that_a_target_cuts_keeps_for_itself_or_cannot_tell_apart_are_found(tmp_path, migration):
    postgres, source = labs.TARGETS["postgres"](tmp_path), labs.DuckDBSourceLab(tmp_path)
    source.execute('create schema "pg_sales"', "create table pg_sales.t (id bigint primary key)",
                   f"create table {'x' * 70} (id bigint primary key)")
    rows = findings_of(migration, source.url, postgres.url)
    assert rows["NameReserved", "", ""].severity is B and rows["NameReserved", "", ""].company_name == "pg_sales"
    assert rows["NameCut", "x" * 70, ""].severity is I and "xx~" in rows["NameCut", "x" * 70, ""].message

    lab = labs.SOURCES["postgres"](tmp_path)
    lab.execute('create table "Item" (id int primary key)', "create table item (id int primary key)")
    [row] = findings_of(migration, lab.url, f"duckdb:///{tmp_path}/t.duckdb").values()
    assert (row.code, row.severity) == ("NameCollision", B) and "'Item' and 'item'" in row.message
    with closing(look_at_source(lab.url)) as reader, closing(look_at_target(postgres.url)) as seen:
        tasks, _ = measured([CopyTask("", "item", table, TargetName("", "item")) for table in reader.source.tables()], reader)
        assert [item.remark.code for item in look(tasks, reader, seen) if item.table_name] == ["NameCollision"]


def test_a_target_that_takes_no_writes_is_found(tmp_path, migration):
    source, target = labs.SqliteLab(tmp_path), labs.TARGETS["postgres"](tmp_path)
    source.execute(source.ddl("t", COLUMNS, ("id",)))
    target.execute(f"alter database {make_url(target.url).database} set default_transaction_read_only = on")
    assert severities(findings_of(migration, source.url, target.url)) == {("ReadOnly", "", ""): B}


def preserved(source, target):
    """Findings of catalogues, and of a scan, about the table t of the source, whose rows are to be added to what stands in public."""
    with closing(look_at_source(source.url)) as reader, closing(look_at_target(target.url)) as seen:
        [table] = reader.source.tables()
        tasks, refused = measured([CopyTask("", "t", table, TargetName("", "t"), preserve=True)], reader)
        quick = [*refused, *look(tasks, reader, seen)]
    with closing(look_at_source(source.url, losses := CountingLosses())) as reader, closing(look_at_target(target.url, losses)) as seen:
        done = scan(tasks, reader.source, seen, accepted=(), codes=False, workers=2)
    return [{(item.remark.code, item.remark.column): item.remark for item in found} for found in (quick, done.found)], done.harmless


def test_the_columns_of_a_preserved_table_are_compared_and_real_lengths_decide(tmp_path):
    source, target = labs.SqliteLab(tmp_path), labs.TARGETS["postgres"](tmp_path)
    source.execute("create table t (id INTEGER PRIMARY KEY, short NVARCHARTEXT(50), long NVARCHARTEXT(50), n INTEGER, k TEXT, same TEXT)",
                   insert("t", [(1, "abc", "abc", 1, None, "x"), (2, "äöü", "abcdef", 2, "x", "x"), (3, None, "abcd", 3, None, None)]))
    target.execute("create table t (id bigint primary key, short varchar(3), long varchar(3), n text, k text not null, same text)")

    (quick, scanned), harmless = preserved(source, target)

    assert {key: remark.severity for key, remark in quick.items()} == {("50011", "short"): B, ("50011", "long"): B, ("50005", "n"): B,
                                                                           ("Space", ""): I}
    assert "source NVARCHARTEXT(50), target character varying(3)" in quick["50011", "long"].message
    assert harmless == {("", "t", "short")}
    assert {key: (remark.severity, remark.count) for key, remark in scanned.items()} == {
        ("50011", "long"): (B, 2), ("NullNotAllowed", "k"): (B, 2)}
    assert "the longest has 6" in scanned["50011", "long"].message


def test_values_that_one_database_holds_and_another_does_not_are_counted_by_column(tmp_path, migration):
    postgres, duck = labs.TARGETS["postgres"](tmp_path), labs.DuckDBLab(tmp_path)
    nul = labs.SqliteLab(tmp_path)
    nul.execute("create table t (id INTEGER PRIMARY KEY, v TEXT)", insert("t", [(1, "a\0"), (2, "b"), (3, "\0")]))
    rows = findings_of(migration, nul.url, postgres.url, with_scan=True)
    assert [(key, row.count, row.severity) for key, row in rows.items()] == [(("Space", "", ""), 0, I), (("Nul", "t", "v"), 2, B)]
    assert findings_of(migration, nul.url, duck.url, with_scan=True) == {}      # DuckDB holds it

    source = labs.SOURCES["postgres"](tmp_path)
    source.execute("create table t (id int primary key, n numeric(10,2), d date)",
                   "insert into t values (1, 'NaN', 'infinity'), (2, 1, '-infinity'), (3, null, null)",
                   "create table keyed (d date primary key)", "insert into keyed values ('infinity')")
    rows = findings_of(migration, source.url, duck.url, with_scan=True)
    assert {key: row.count for key, row in rows.items() if row.scanned} == {
        ("NaN", "t", "n"): 1, ("Infinity", "t", "d"): 2, ("50011", "keyed", "d"): 0}
    assert findings_of(migration, source.url, postgres.url, with_scan=True).keys() <= {
        ("FeedKeepsLog", "", ""), ("Space", "", "")}   # it passes as it is

    zero = labs.SOURCES["mysql"](tmp_path)
    zero.execute("set sql_mode = ''", "create table t (id int primary key, d date)",
                 "insert into t values (1, '0000-00-00'), (2, '2026-00-00')")
    rows = findings_of(migration, zero.url, duck.url, with_scan=True)
    assert [(key, row.count, row.severity) for key, row in rows.items()] == [(("ZeroDate", "t", "d"), 2, B)]


# ------------------------------------------------------------------ nothing is written


@pytest.mark.parametrize(("source_kind", "target_kind"), [("postgres", "postgres"), ("mysql", "postgres"), ("mysql", "delta")])
def test_servers_hold_what_they_held(source_kind, target_kind, tmp_path, migration):
    source, target = labs.SOURCES[source_kind](tmp_path), labs.TARGETS[target_kind](tmp_path)
    for name in ("t", "u"):
        source.execute(source.ddl(name, COLUMNS, ("id",)), insert(name, [(i, "a", "2026-01-01 00:00:00.000", b"x") for i in range(100)]))

    def held(lab, kind):
        if kind == "delta":
            return sorted(tmp_path.rglob("lake/**/*"))
        return lab.fetch(MYSQL_CATALOGUE if kind == "mysql" else POSTGRES_CATALOGUE)

    before = held(source, source_kind), held(target, target_kind)
    for options in ({}, {"with_scan": True}, {"allow_scratch": True}):
        done = outcome_of(migration, source.url, target.url, **options)
        assert done.estimate.loaded is bool(options.get("allow_scratch") or target_kind == "delta") and done.estimate.rows == 200

    assert (held(source, source_kind), held(target, target_kind)) == before


def test_a_postgres_server_refuses_to_be_written_by_whoever_looks(tmp_path):
    lab = labs.SOURCES["postgres"](tmp_path)
    with closing(look_at_source(lab.url)) as source, closing(look_at_target(lab.url)) as target:
        for connection in (source.source.connection, target._connections.connection):
            with pytest.raises((TargetFailed, psycopg.errors.ReadOnlySqlTransaction)), connection() as c:
                c.execute("create table t (id int)")


def test_a_lake_that_is_there_is_read_without_a_lock_and_one_that_is_not_is_not_made(tmp_path, migration):
    source, target = labs.SqliteLab(tmp_path), labs.TARGETS["parquet"](tmp_path)
    source.execute(source.ddl("t", COLUMNS, ("id",)))
    folder = tmp_path / "none" / "lake"
    assert findings_of(migration, source.url, f"parquet:///{folder}") == {} and not folder.parent.exists()

    labs.migrate(source.url, target.url, "c1")
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("lake/**/*")}
    with closing(look_at_target(target.url)) as seen, closing(look_at_target(target.url)):
        [(name, state)] = seen.states().items()
        assert name == TargetName("", "t") and state.digest.rows == 0
        assert [column.name for column in seen.standing([name])[name]] == list(COLUMNS)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("lake/**/*")} and files


# ------------------------------------------------------------------ SQL Server, scripted


@pytest.fixture
def server(monkeypatch):
    fake = FakeSqlServer()
    monkeypatch.setattr(mssql_python, "connect", fake.connect)
    return fake


def assessed(server, migration, tmp_path, **options):
    return findings_of(migration, server.url, f"duckdb:///{tmp_path}/t.duckdb", **options)


def test_a_tracked_table_of_sql_server_has_nothing_but_its_retention(server, tmp_path, migration):
    server.put(1, "a")
    rows = assessed(server, migration, tmp_path, with_scan=True)
    assert severities(rows) == {("FeedExpires", "", ""): I} and "keeps 5 days" in rows["FeedExpires", "", ""].message
    assert not [sql for sql in server.sent if not sql.lower().lstrip().startswith(("select", "set", "begin", "commit"))]


def test_change_tracking_that_is_off_or_forgets_soon_is_50020(server, tmp_path, migration):
    server.tracked, server.retention = False, None
    rows = assessed(server, migration, tmp_path)
    assert severities(rows) == {("50020", "", ""): W, ("50020", "t", ""): W}
    assert rows["50020", "t", ""].fix == 'alter table "dbo"."t" enable change_tracking'

    server.tracked, server.retention = True, (1, 1.0)
    rows = assessed(server, migration, tmp_path)
    assert severities(rows) == {("50020", "", ""): W, ("FeedExpires", "", ""): I}


@pytest.mark.parametrize(("compatibility", "product", "code"), [(120, "15.0.4000.5", "50001"), (130, "12.0.1.0", "50017")])
def test_a_server_that_is_too_old_is_a_finding(server, tmp_path, migration, compatibility, product, code):
    server.compatibility, server.product = compatibility, product
    assert severities(assessed(server, migration, tmp_path)) == {(code, "", ""): B}


def test_rights_that_a_reader_of_sql_server_lacks_are_named(server, tmp_path, migration):
    server.unreadable, server.may_ask = True, False
    server.denied.add("DATABASE STATE")
    rows = assessed(server, migration, tmp_path)
    assert (rows["Permission", "t", ""].severity, rows["Permission", "t", ""].fix) == (B, 'grant select on "dbo"."t" to "me"')
    assert (rows["Permission", "", ""].severity, rows["Permission", "", ""].fix) == (I, 'grant view database state to "me"')
    assert "VIEW CHANGE TRACKING" in rows["50020", "t", ""].message


def test_columns_that_the_server_shows_to_nobody_or_not_exactly_block(server, tmp_path, migration):
    server.masked = 1
    assert assessed(server, migration, tmp_path)["50007", "t", ""].severity is B
    server.masked, server.declared = 0, ("sql_variant", 8016, 0, 0)
    rows = assessed(server, migration, tmp_path)
    assert rows["50011", "t", "v"].severity is B and "each of its values has a type of its own" in rows["50011", "t", "v"].message


def test_half_surrogate_pairs_and_fine_ticks_are_counted(server, tmp_path, migration):
    server.put(1, "a�")
    server.utf16[1] = b"a\0\x00\xd8"
    rows = assessed(server, migration, tmp_path, with_scan=True)
    assert (rows["Surrogates", "t", "v"].count, rows["Surrogates", "t", "v"].severity) == (1, B)


def test_what_a_schema_of_each_target_may_not_be_called(tmp_path):
    postgres = labs.TARGETS["postgres"](tmp_path)
    with closing(look_at_target(postgres.url)) as seen:
        assert seen.reserved("pg_company") and not seen.reserved("PG company")
        assert seen.server.startswith("PostgreSQL ") and make_url(servers.postgres()).port


class FakeTarget(FakeSqlServer):
    """A SQL Server as a target: what its catalogue says, in the shapes in which it says it. `lacking`: rights that the login has not."""

    def __init__(self, lacking=()) -> None:
        super().__init__()
        self.lacking = set(lacking)
        self.columns: list[tuple] = []
        self.hanging: list[tuple] = []

    def answer(self, sql, params):
        flat = " ".join(sql.split())
        self.sent.append(flat)
        if match := re.fullmatch(r"select has_perms_by_name\((.*), '(\w+)', '([\w ]+)'\)", flat):
            return ["c"], [(int(match[3] not in self.lacking),)]
        if flat == "select schema_id(?)":
            return ["c"], [(1 if params[0] == "dbo" else None,)]
        if flat.startswith("select 1 from sys.tables where schema_id = schema_id('dbo')"):
            return ["c"], []
        if flat.startswith("select schema_name(o.schema_id), o.name, c.name"):
            return ["c"] * 9, self.columns
        if flat.startswith("select schema_name(o.schema_id), o.name, o.object_id"):
            return ["c"] * 3, [("dbo", "t", 77)] if self.columns else []
        if flat.startswith("select 'the foreign key '"):
            assert "77" in flat
            return ["c"], self.hanging
        return super().answer(sql, params)


def of_target(fake, monkeypatch, tmp_path, migration, statement):
    monkeypatch.setattr(mssql_python, "connect", fake.connect)
    source = labs.SqliteLab(tmp_path)
    source.execute(statement)
    rows = findings_of(migration, source.url, "mssql://me:secret@fake/cloud")
    assert not [sql for sql in fake.sent if not sql.lower().startswith(("select", "set "))]
    return rows


def test_rights_that_a_writer_of_sql_server_lacks_are_all_named(monkeypatch, tmp_path, migration):
    fake = FakeTarget({"CREATE TABLE", "INSERT", "CREATE SCHEMA"})
    [row] = of_target(fake, monkeypatch, tmp_path, migration, "create table t (id INTEGER PRIMARY KEY)").values()
    assert (row.code, row.severity) == ("Permission", B)
    assert row.fix == 'grant create table to "me"; grant insert on schema::dbo to "me"; grant create schema to "me"'


def test_what_stands_in_sql_server_is_compared_and_what_hangs_on_it_is_named(monkeypatch, tmp_path):
    fake = FakeTarget()
    fake.columns = [("dbo", "t", "id", "bigint", 8, 19, 0, 0, 1), ("dbo", "t", "v", "nvarchar", 6, 0, 0, 1, 0)]
    fake.hanging = [("the foreign key fk",), ("the trigger tr",)]
    monkeypatch.setattr(mssql_python, "connect", fake.connect)
    source = labs.SqliteLab(tmp_path)
    source.execute("create table t (id INTEGER PRIMARY KEY, v NVARCHARTEXT(20))", insert("t", [(1, "abcd")]))

    (quick, scanned), _ = preserved(source, SimpleNamespace(url="mssql://me:secret@fake/cloud"))

    assert quick["Obstacle", ""].severity is B and "the foreign key fk, the trigger tr would be lost" in quick["Obstacle", ""].message
    assert "source NVARCHARTEXT(20), target nvarchar(3)" in quick["50011", "v"].message and scanned["50011", "v"].count == 1
    with closing(look_at_target("mssql://me:secret@fake/cloud")) as seen:
        assert seen.reserved("SYS") and seen.reserved("db_owner") and not seen.reserved("CRONUS")
        assert seen.server == "SQL Server 15.0.4000.5, compatibility level 150" and seen.free_bytes() is None and seen.states() == {}


def test_times_and_numbers_that_sql_server_does_not_hold_are_counted(monkeypatch, tmp_path, migration):
    monkeypatch.setattr(mssql_python, "connect", FakeTarget().connect)
    source = labs.DuckDBSourceLab(tmp_path)
    source.execute("create table t (id bigint primary key, d double, fine timestamp_ns)",
                   "insert into t values (1, 'nan', '2026-01-01 00:00:00.123456789'), (2, 'infinity', null)",
                   "create table early (id bigint primary key, d date)", "insert into early values (1, '0044-03-15 (BC)')")
    rows = findings_of(migration, source.url, "mssql://me:secret@fake/cloud", with_scan=True)
    assert {key: (row.count, row.severity) for key, row in rows.items() if row.scanned} == {
        ("NaN", "t", "d"): (1, B), ("Infinity", "t", "d"): (1, B), ("Ticks", "t", "fine"): (1, B), ("50011", "early", "d"): (0, B)}
    assert "outside of the years 1 to 9999" in rows["50011", "early", "d"].message


# ------------------------------------------------------------------ what is compared otherwise, what is not told


@pytest.mark.parametrize(("kind", "rule"), [("sqlite", "nocase"), ("mysql", "utf8mb4_general_ci")])
def test_a_key_that_is_compared_without_regard_to_case_is_told(kind, rule, tmp_path):
    source = labs.SOURCES[kind](tmp_path)
    source.execute(f"create table codes (code varchar(20) collate {rule} not null, note varchar(20) collate {rule}, primary key (code))",
                   source.ddl("numbers", {"id": "int"}, ("id",)), source.ddl("exact", {"code": "text"}, ("code",)))
    with closing(look_at_source(source.url)) as seen:
        found = [(r.table, r.column, r.severity) for r in seen.remarks(seen.source.tables()) if r.code == "Collation"]
    assert found == [("codes", "code", I)]


def test_the_room_that_is_needed_is_told_where_the_server_does_not_tell_what_is_free(tmp_path, migration):
    source, target = labs.SqliteLab(tmp_path), labs.PostgresTargetLab(tmp_path)
    source.execute(source.ddl("t", COLUMNS, ("id",)), insert("t", [(1, "a", "2026-01-01 00:00:00.000", b"x")]))
    outcome = outcome_of(migration, source.url, target.url)
    [found] = [item.remark for item in outcome.found if item.remark.code == "Space"]
    assert found.severity is I and "does not tell" in found.message and "MB" in found.fix
