import hashlib
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from skylift.errors import SetupError
from skylift.sample import BASE, RENTAL, change_sample, create_sample, sample_rows

COMPANY = "CRONUS International Ltd_"
ENTRIES = f'"{COMPANY}$G_L Entry${BASE}"'
CUSTOMERS = f'"{COMPANY}$Customer${BASE}"'
COMPANIONS = f'"{COMPANY}$Customer${BASE}$ext"'


def query(path, sql):
    with closing(sqlite3.connect(path)) as database:
        return database.execute(sql).fetchall()


def fingerprint(path):
    with closing(sqlite3.connect(path)) as database:
        return hashlib.sha256("\n".join(database.iterdump()).encode()).hexdigest()


@pytest.fixture
def sample(tmp_path):
    create_sample(tmp_path / "bc.db", companies=2, rows=4000, tables=30)
    return tmp_path / "bc.db"


def test_same_seed_gives_the_same_database_and_the_same_changes(tmp_path):
    prints = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = tmp_path / name
        create_sample(path, companies=2, rows=300, tables=14, seed=seed)
        change_sample(path, 90)
        prints.append(fingerprint(path))

    assert prints[0] == prints[1] != prints[2]


def test_counts_are_what_was_asked_for_and_what_is_told(tmp_path):
    told = []
    written = create_sample(tmp_path / "x.db", companies=6, rows=8000, tables=25, progress=told.append)

    assert sum(told) == sum(written.values()) == sample_rows(6, 8000, 25)
    for table, rows in written.items():
        assert query(tmp_path / "x.db", f"select count(*) from [{table}]" if "[" not in table else
                     'select count(*) from "' + table.replace('"', '""') + '"') == [(rows,)]
    entries = [rows for table, rows in written.items() if "$G_L Entry$" in table]
    assert entries == [8000, 2000, 500, 125, 31, 20]
    per_company = [table for table in written if table.startswith("Company 0006 Ltd_$")]
    assert len(per_company) == 25
    assert query(tmp_path / "x.db", "select count(*) from Company") == [(6,)]


def test_sample_has_the_shapes_that_migrations_stumble_over(sample):
    columns = query(sample, f"select name, type from pragma_table_info({ENTRIES})")
    types = [declared for _, declared in columns]
    assert len(columns) == 50
    assert [types.count(t) for t in ("DECIMALTEXT(38,20)", "DATETIMETEXT", "GUIDTEXT(36)")] == [8, 6, 3]
    assert len(query(sample, f"select name from pragma_table_info('{COMPANY}$Analysis _Wide_ _200_${BASE}')")) == 200
    assert query(sample, f"select count(*) from \"{COMPANY}$Reversal Entry${BASE}\"") == [(0,)]
    assert query(sample, f"select sum(pk) from pragma_table_info('{COMPANY}$Import Buffer${RENTAL}')") == [(0,)]
    assert query(sample, f"select count(*) from sqlite_master where name = '{COMPANY}$Spend 50% [Old] \"A/B\"${RENTAL}'") == [(1,)]
    assert query(sample, f'select count(*) from {ENTRIES} where "Posting Date" like \'1753-01-01%\'')[0][0] > 0
    assert query(sample, f"select max(length(Content)) from \"{COMPANY}$Incoming Document Attachment${BASE}\"")[0][0] > 65_536
    assert {kind for kind, in query(sample, f"select distinct typeof(Amount) from {ENTRIES}")} == {"text"}
    beyond_double = [amount for amount, in query(sample, f"select Amount from {ENTRIES} where Amount like '%.%'")
                     if f"{float(amount):.20f}" != amount and len(amount.split(".")[1]) == 20]
    assert len(beyond_double) > 1000
    assert query(sample, f'select max("Checksum"), min("Checksum") from {ENTRIES}') == [(2**63 - 1, -2**63)]
    texts = "".join(text for text, in query(sample, f"select Description from {ENTRIES} limit 500"))
    assert any(ord(char) > 0xFFFF for char in texts)


def test_row_stamps_count_through_the_whole_database(sample):
    stamps = query(sample, f"select timestamp from {ENTRIES} union all select timestamp from {CUSTOMERS} "
                           f"union all select timestamp from {COMPANIONS}")

    assert len({stamp for stamp, in stamps}) == len(stamps)
    assert query(sample, 'select lasttimestamp from "$ndo$dbproperty"')[0][0] > max(stamps)[0]


def test_every_customer_has_a_companion_row_before_and_after_changes(sample):
    for _ in range(3):
        assert query(sample, f"select No_ from {CUSTOMERS} order by 1") == query(sample, f"select No_ from {COMPANIONS} order by 1")
        change_sample(sample, 60)


def test_changes_are_as_many_as_asked_and_as_told(sample):
    before = dict(query(sample, f'select "Entry No_", timestamp from {ENTRIES}'))

    done = change_sample(sample, 1000)
    after = dict(query(sample, f'select "Entry No_", timestamp from {ENTRIES}'))

    inserted, updated, deleted = done[ENTRIES.strip('"')]
    assert len(after.keys() - before.keys()) == inserted > 0
    assert len(before.keys() - after.keys()) == deleted > 0
    assert sum(before[key] != after[key] for key in before.keys() & after.keys()) == updated > 0
    assert sum(map(sum, done.values())) == 1000


def test_rows_that_somebody_has_added_are_left_alone(sample):
    with closing(sqlite3.connect(sample)) as database, database:
        names = [name for _, name, *_ in database.execute(f"pragma table_info({CUSTOMERS})")]
        columns = ", ".join(f'"{name}"' for name in names if name not in ("No_", "timestamp"))
        database.execute(f"insert into {CUSTOMERS} (No_, timestamp, {columns}) select 'ZNEW2', -1, {columns} from {CUSTOMERS} limit 1")

    assert sum(map(sum, change_sample(sample, 200).values())) == 200
    assert query(sample, f"select count(*) from {CUSTOMERS} where No_ = 'ZNEW2'") == [(1,)]


def test_changing_more_than_there_is_empties_and_refills(tmp_path):
    create_sample(tmp_path / "small.db", companies=1, rows=5, tables=1)

    done = change_sample(tmp_path / "small.db", 100)

    assert list(done.values()) == [(95, 3, 2)]
    assert query(tmp_path / "small.db", f"select count(*) from {ENTRIES}") == [(98,)]


def test_an_application_can_go_on_using_the_sample(sample):
    assert query(sample, "pragma journal_mode") == [("wal",)]
    assert query(sample, "pragma integrity_check") == [("ok",)]


def test_existing_file_is_not_overwritten(sample):
    with pytest.raises(SetupError, match="exists already"):
        create_sample(sample)


def test_folder_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(SetupError, match="cannot be written"):
        create_sample(tmp_path / "file" / "bc.db", rows=1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_interrupted_sample_leaves_no_file_behind(tmp_path):
    def stop(rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_sample(tmp_path / "bc.db", rows=100, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [{"companies": 0}, {"rows": 0}, {"tables": 0}])
def test_sample_of_nothing_is_refused(tmp_path, size):
    with pytest.raises(SetupError, match="at least one"):
        create_sample(tmp_path / "bc.db", **size)


def test_only_a_sample_can_be_changed(tmp_path, sample):
    (tmp_path / "text.db").write_text("no database at all, but long enough to look like one" * 20)
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("create table Company (x)")

    for name, message in (("missing.db", "there is no file"), ("text.db", "not a database"), ("other.db", "cannot be changed")):
        with pytest.raises(SetupError, match=message):
            change_sample(tmp_path / name, 3)
    with pytest.raises(SetupError, match="at least 1"):
        change_sample(sample, 0)


def test_ten_times_the_rows_need_no_more_memory(tmp_path):
    script = ("import resource, sys; from pathlib import Path; from skylift.sample import create_sample;"
              "create_sample(Path(sys.argv[1]), companies=1, rows=int(sys.argv[2]), tables=1);"
              "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)")

    peaks = [int(subprocess.run([sys.executable, "-c", script, str(tmp_path / rows), rows], check=True, capture_output=True).stdout)
             for rows in ("30000", "300000")]

    assert peaks[1] < peaks[0] + 80_000          # KiB; the page cache of 64 MiB fills up in between
