"""Real input that nobody here made up: the Chinook sample database, from each of its scripts to every target.

The judges are two: the sample's SQLite file, read by Python's own sqlite3, says what every target must hold, whatever the script;
each target is read by its own driver. Only how databases spell names, decimals and times is levelled out.
"""

import re
import shutil
import sqlite3
from contextlib import closing
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from tests.connectors import labs
from tests.connectors.labs import migrate
from tests.connectors.test_conformance import successful

FOLDER = next((parent / "shared/data/chinook" for parent in Path(__file__).parents if (parent / "shared/data/chinook").is_dir()), None)
pytestmark = pytest.mark.skipif(FOLDER is None, reason="the Chinook sample (shared/data/chinook) is not beside the project")
TABLES = ("album", "artist", "customer", "employee", "genre", "invoice", "invoiceline", "mediatype", "playlist", "playlisttrack", "track")


def script(name, begin):
    """The statements that follow the line `begin`, which makes a database and goes there."""
    return (FOLDER / name).read_text("utf-8-sig").split(begin, 1)[1]


def from_sqlite(lab):
    shutil.copy(FOLDER / "Chinook_Sqlite.sqlite", lab.path)


def from_postgres(lab):
    lab.execute(script("Chinook_PostgreSql.sql", "\\c chinook;"))


def from_mysql(lab):
    for statement in re.split(r";\s*\n", script("Chinook_MySql.sql", "USE `Chinook`;")):
        if statement.strip():
            lab.execute(statement)


def from_sqlserver(lab):
    for batch in re.split(r"(?m)^GO\s*$", script("Chinook_SqlServer.sql", "USE [Chinook];")):
        lab.execute(batch)


def from_duckdb(lab):
    """There is no script for DuckDB; it reads PostgreSQL's, but adds foreign keys to no table."""
    statements = re.split(r";\s*\n", script("Chinook_PostgreSql.sql", "\\c chinook;"))
    lab.execute(*(statement for statement in statements if "FOREIGN KEY" not in statement and statement.strip()))


# What becomes of a text when the server reads the script: PostgreSQL takes N'..' for the type character, which has no trailing blanks,
# and to MySQL a backslash is the beginning of an escape. SQL Server and SQLite take it as it stands; so does DuckDB.
READ_AS = {"postgres": lambda text: text.rstrip(" "), "mysql": lambda text: text.replace("\\", "")}
LOADED = {"sqlite": from_sqlite, "postgres": from_postgres, "mysql": from_mysql, "sqlserver": from_sqlserver, "duckdb": from_duckdb}


@pytest.fixture(scope="module", params=sorted(LOADED))
def chinook(request, tmp_path_factory):
    lab = labs.SOURCES[request.param](tmp_path_factory.mktemp(request.param))
    LOADED[request.param](lab)
    lab.read_as = READ_AS.get(request.param, str)
    return lab


def test_chinook_from_each_of_its_scripts_arrives_in_every_target_row_by_row(chinook, target, reference):
    results = migrate(chinook.url, target.url, "c1")

    assert len(successful(results)) == 11
    for name in results:
        expected = [tuple(chinook.read_as(v) if isinstance(v, str) else v for v in row) for row in reference[common(name)]]
        assert contents(target, name) == sorted(expected, key=repr), name


def test_chinook_changes_follow(tmp_path):
    source, target = tmp_path / "chinook.db", labs.DuckDBLab(tmp_path)
    shutil.copy(FOLDER / "Chinook_Sqlite.sqlite", source)
    migrate(f"sqlite:///{source}", target.url, "c1")
    with closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("delete from InvoiceLine where InvoiceId % 10 = 0")
        connection.execute("update Track set UnitPrice = 1.29 where TrackId < 50")
        connection.execute("insert into Artist (Name) values ('Anton Bruckner')")

    results = migrate(f"sqlite:///{source}", target.url, "c2")

    assert {name for name, mode in successful(results).items() if mode == "incremental"} == {"InvoiceLine", "Track", "Artist"}
    assert (results["Artist"].inserted, results["Track"].updated) == (1, 49) and results["InvoiceLine"].deleted > 100


@pytest.fixture(scope="module")
def reference():
    with closing(sqlite3.connect(f"file:{FOLDER}/Chinook_Sqlite.sqlite?mode=ro", uri=True)) as judge:
        names = [name for (name,) in judge.execute("select name from sqlite_schema where type = 'table' and name not like 'sqlite%'")]
        found = {common(name): sorted(map(plain, judge.execute(f'select * from "{name}"')), key=repr) for name in names}
    assert sorted(found) == sorted(TABLES) and sum(map(len, found.values())) == 15_607
    return found


def contents(target, name):
    return sorted(map(plain, target.fetch(f"select * from {target.name(name)}")), key=repr)


def common(name):
    return name.replace("_", "").lower()


def plain(row):
    """Numbers as decimals by their shortest text, date-times as text: how the source's users see them."""
    return tuple(Decimal(repr(v)).normalize() if isinstance(v, float) else v.normalize() if isinstance(v, Decimal)
                 else f"{v:%Y-%m-%d %H:%M:%S}" if isinstance(v, datetime | date) else v for v in row)
