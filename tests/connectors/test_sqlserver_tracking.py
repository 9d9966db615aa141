"""Change tracking, and values that the driver would change without a word: against a scripted server, for want of a real one."""

import random
from datetime import datetime

import mssql_python
import pyarrow as pa
import pytest

from skylift.connectors import open_source
from skylift.errors import CopyError, SetupError, ValueRefused
from skylift.losses import Losses
from skylift.model import KeyRange
from tests.connectors.fake_sqlserver import FakeSqlServer
from tests.connectors.labs import migrate
from tests.connectors.labs.duckdb import DuckDBLab


@pytest.fixture
def server(monkeypatch):
    fake = FakeSqlServer()
    monkeypatch.setattr(mssql_python, "connect", fake.connect)
    return fake


@pytest.fixture
def target(tmp_path):
    return DuckDBLab(tmp_path)


def run(server, target, copy_id):
    result = migrate(server.url, target.url, copy_id)["t"]
    assert result.error is None, result.error
    assert dict(target.fetch("select id, v from t")) == server.rows
    return result


def copied(server, target, rows=20):
    for id in range(rows):
        server.put(id, f"v{id}")
    assert run(server, target, "c1").mode == "full"


def test_inserts_updates_deletes_and_key_changes_come_by_change_tracking(server, target):
    copied(server, target)
    assert run(server, target, "c2").mode == "unchanged"
    server.put(100, "new")
    server.put(3, "changed")
    server.delete(4)
    value = server.rows[5]
    server.delete(5)
    server.put(500, value)

    result = run(server, target, "c3")

    assert (result.mode, result.inserted, result.updated, result.deleted) == ("incremental", 2, 1, 2)
    assert result.watermark.feed == "change_tracking" and result.watermark.position == server.version


def test_any_history_ends_with_target_and_source_equal(server, target):
    rng = random.Random(11)
    for step in range(40):
        for _ in range(rng.randrange(6)):
            id = rng.randrange(30)
            if rng.random() < 0.05:
                server.truncate()
            elif id in server.rows and rng.random() < 0.4:
                server.delete(id)
            else:
                server.put(id, rng.choice(["", "a", "Ä😀", None]))
        if rng.random() < 0.2:                      # the clean-up of old versions
            server.first_valid = max(server.first_valid, server.version - rng.randrange(5))
        run(server, target, f"c{step}")


def forgotten(server):
    server.first_valid = server.version


def restored(server):
    server.fork = "00000000-0000-0000-0000-000000000001"


def recreated(server):
    server.object_id += 1


def switched_off(server):
    server.tracked = False


def right_taken_away(server):
    server.may_ask = False


def set_back(server):
    server.version = 3
    server.log = [entry for entry in server.log if entry[0] <= 3]


@pytest.mark.parametrize(("change", "reason"), [
    (forgotten, "has kept nothing before version"), (restored, "restored from a backup"), (recreated, "recreated at the source"),
    (set_back, "older than the last copy"),
])
def test_a_feed_that_cannot_be_trusted_leads_to_a_full_copy_that_says_why(server, target, change, reason):
    copied(server, target)
    server.put(1, "changed meanwhile")
    change(server)

    result = run(server, target, "c2")

    assert result.mode == "full" and reason in result.reason


@pytest.mark.parametrize("change", [switched_off, right_taken_away])
def test_without_change_tracking_whole_tables_are_compared(server, target, change):
    copied(server, target)
    server.put(1, "changed meanwhile")
    change(server)

    result = run(server, target, "c2")

    assert (result.mode, result.updated) == ("incremental", 1) and result.watermark.feed == "sweep"


def test_the_position_is_taken_before_the_rows_are_read(server, target, monkeypatch):
    """A change that falls between the two is read, and once more by the next run."""
    copied(server, target)
    server.put(1, "first")
    honest = server.answer

    def answer(sql, params):
        result = honest(sql, params)
        if "begin transaction" in sql and server.rows[2] == "v2":
            server.put(2, "between")
        return result

    monkeypatch.setattr(server, "answer", answer)
    result = run(server, target, "c2")
    assert result.updated == 2 and result.watermark.position < server.version

    assert run(server, target, "c3").updated == 1


def test_set_up_says_what_change_tracking_lacks(server):
    source = open_source(server.url)
    assert source.notes() == []
    server.retention = (1, 2.0)
    assert source.notes()[0].startswith("50020: change tracking keeps only 2 days")
    server.retention = (0, 0.5)                     # nothing is cleaned up
    assert source.notes() == []
    server.retention = None
    assert source.notes()[0].startswith("50020: change tracking is off")


@pytest.mark.parametrize(("what", "value", "code"), [("compatibility", 120, "50001"), ("product", "13.0.1601.5", "50017")])
def test_what_is_too_old_is_refused(server, what, value, code):
    setattr(server, what, value)

    with pytest.raises(SetupError) as raised:
        open_source(server.url)

    assert raised.value.code == code and raised.value.hint


@pytest.mark.parametrize(("flag", "words"), [("masked", "UNMASK"), ("encrypted", "Always Encrypted"), ("filtered", "security policy")])
def test_rows_that_the_server_would_not_hand_out_as_they_are_are_refused(server, flag, words):
    setattr(server, flag, 1)
    source = open_source(server.url)
    [table] = source.tables()

    with pytest.raises(CopyError, match=words):
        source.measure(table)


def test_sizes_come_from_the_catalogue_where_the_right_to_better_ones_is_missing(server):
    server.denied.add("dm_db_partition_stats")
    server.put(1, "a")
    source = open_source(server.url)
    [table] = source.tables()

    assert (source.measure(table).rows, source.measure(table).size_bytes) == (1, 100)
    assert sum("sys.allocation_units" in sql for sql in server.sent) == 1


def test_a_login_that_may_not_read_every_table_is_told_that_it_does_not_see_the_others(server):
    source = open_source(server.url)
    assert not any("lacks" in note for note in source.notes())
    server.may_read_all = False

    assert any("user 'me' lacks the right SELECT on the database" in note and 'grant select to "me"' in note for note in source.notes())


def test_half_a_surrogate_pair_is_refused_by_key_and_a_true_replacement_character_is_not(server):
    server.put(1, "true \N{REPLACEMENT CHARACTER}")
    assert read(server) == [(1, "true \N{REPLACEMENT CHARACTER}")]
    server.put(2, "half \N{REPLACEMENT CHARACTER}")
    server.utf16[2] = "half ".encode("utf-16-le") + b"\x00\xd8"

    with pytest.raises(ValueRefused, match=r"t\.v, key \(2,\).*half a surrogate pair"):
        read(server)

    losses = Losses("surrogates")
    assert len(read(server, losses)) == 2 and losses.taken("t").startswith("v: 1 ")


def test_steps_of_100_ns_are_refused_by_key_or_cut_and_counted(monkeypatch):
    server = FakeSqlServer(("datetime2", 8, 27, 7), pa.timestamp("us"))
    monkeypatch.setattr(mssql_python, "connect", server.connect)
    server.put(1, datetime(2026, 1, 2, 3, 4, 5, 6))
    server.put(2, datetime(2026, 1, 2, 3, 4, 5, 123456))
    server.fine.add(2)

    with pytest.raises(ValueRefused, match=r"t\.v, key \(2,\).*steps of 100 ns"):
        read(server)

    losses = Losses("ticks")
    assert len(read(server, losses)) == 2 and losses.taken("t").startswith("v: 1 ")


def read(server, losses=None):
    source = open_source(server.url, losses)
    [table] = source.tables()
    return [tuple(row.values()) for batch in source.read(table, KeyRange()) for row in batch.to_pylist()]
