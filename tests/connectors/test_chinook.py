"""Real input that nobody here made up: the Chinook sample database, migrated and compared row by row."""

import shutil
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest

from tests.connectors.labs import migrate
from tests.connectors.test_conformance import successful

CHINOOK = Path(__file__).parents[3] / "shared" / "data" / "chinook" / "Chinook_Sqlite.sqlite"
pytestmark = pytest.mark.skipif(not CHINOOK.exists(), reason=f"the Chinook sample is not beside the project ({CHINOOK.name})")


def test_chinook_arrives_row_by_row(tmp_path):
    before = CHINOOK.read_bytes()
    target = tmp_path / "chinook.duckdb"

    results = migrate(f"sqlite:///{CHINOOK}?mode=ro", f"duckdb:///{target}", "c1")

    assert len(successful(results)) == 11
    with closing(sqlite3.connect(f"file:{CHINOOK}?mode=ro", uri=True)) as source, duckdb.connect(str(target), read_only=True) as copied:
        for table in results:
            expected = sorted(map(plain, source.execute(f'select * from "{table}"').fetchall()), key=repr)
            assert sorted(map(plain, copied.execute(f'select * from main."{table}"').fetchall()), key=repr) == expected, table
        [(price,)] = copied.execute("select sum(Total) from Invoice").fetchall()
    assert price == Decimal("2328.60")
    assert CHINOOK.read_bytes() == before


def test_chinook_changes_follow(tmp_path):
    source, target = tmp_path / "chinook.db", tmp_path / "chinook.duckdb"
    shutil.copy(CHINOOK, source)
    migrate(f"sqlite:///{source}", f"duckdb:///{target}", "c1")
    with closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("delete from InvoiceLine where InvoiceId % 10 = 0")
        connection.execute("update Track set UnitPrice = 1.29 where TrackId < 50")
        connection.execute("insert into Artist (Name) values ('Anton Bruckner')")

    results = migrate(f"sqlite:///{source}", f"duckdb:///{target}", "c2")

    assert {name for name, mode in successful(results).items() if mode == "incremental"} == {"InvoiceLine", "Track", "Artist"}
    assert (results["Artist"].inserted, results["Track"].updated) == (1, 49) and results["InvoiceLine"].deleted > 100


def plain(row):
    """Numbers as decimals by their shortest text, date-times as text: how the source's users see them."""
    return tuple(Decimal(repr(v)) if isinstance(v, float) else v.normalize() if isinstance(v, Decimal)
                 else f"{v:%Y-%m-%d %H:%M:%S}" if hasattr(v, "strftime") else v for v in row)
