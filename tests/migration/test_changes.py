"""The outbox: what is written into it, by whom, and what a subscription's receiver is owed; on both databases of the store."""

import threading
import time
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from skylift.migration import changes as outbox
from skylift.migration import runner
from skylift.migration.changes import MOST, note, position, tidy, untold, update_companies
from skylift.migration.replication import fail_run
from skylift.model import NO_ID, Run, RunTable, SourceCompany, TableMapping
from skylift.runs import MigrationState
from skylift.store import open_store
from skylift.store.tables import changes, run_tables, source_companies, subscriptions
from tests.migration.lab import ADD_COMPANY, ANY

NOW = datetime(2026, 7, 1, tzinfo=UTC)
IDS = [UUID(int=n + 1) for n in range(3 * MOST + 500)]


@pytest.fixture
def store(store_url):
    store = open_store(store_url)
    yield store
    store.close()


def subscribe(store, kind=Run, entity_id=NO_ID, **values):
    """A subscription to everything from now on."""
    id = uuid4().hex
    with store.write() as connection:
        connection.execute(subscriptions.insert().values(
            {"id": id, "kind": kind.__name__, "entity_id": entity_id, "told": position(connection), "user_id": NO_ID, "created_by": NO_ID,
             "modified_by": NO_ID, "created_at": NOW, "modified_at": NOW, "expires_at": datetime.now(UTC) + timedelta(days=1)} | values))
    return id


def write(store, kind, *ids, **options):
    with store.write() as connection:
        note(connection, kind, ids, **options)


def owed(store, id):
    """(entity id, change type) of what the receiver of a subscription is to be told."""
    with store.read() as connection:
        row = connection.execute(sa.select(subscriptions).where(subscriptions.c.id == id)).one()
        return [(c.entity_id, c.change_type) for c in untold(connection, row.kind, row.entity_id, row.told, position(connection))]


def tell(store, id):
    """As if the receiver had confirmed everything."""
    with store.write() as connection:
        connection.execute(subscriptions.update().where(subscriptions.c.id == id).values(told=position(connection), waiting_since=None))
        tidy(connection)


def waits(store, id):
    with store.read() as connection:
        return connection.scalar(sa.select(subscriptions.c.waiting_since).where(subscriptions.c.id == id)) is not None


def rows(store):
    with store.read() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(changes))


def test_without_a_subscription_one_small_query_is_all_that_a_note_costs(store):
    statements = []
    with store.write() as connection:
        sa.event.listen(connection, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
        note(connection, Run, sa.select(run_tables.c.id))
        note(connection, RunTable, IDS)
    assert rows(store) == 0 and len(statements) == 2 and all("FROM subscriptions" in s for s in statements)


@pytest.mark.rule("K4")
def test_many_changes_of_an_entity_are_one_row_and_one_item(store):
    id = subscribe(store)
    for _ in range(5):
        write(store, Run, IDS[0])
    write(store, Run, IDS[1], created=True)
    write(store, Run, IDS[1])
    write(store, Run, IDS[2])
    write(store, Run, IDS[2], deleted=True)
    write(store, TableMapping, IDS[3])

    assert rows(store) == 3 and waits(store, id)
    assert owed(store, id) == [(IDS[0], "updated"), (IDS[1], "created"), (IDS[2], "deleted")]


@pytest.mark.rule("K4")
def test_each_receiver_is_owed_what_it_does_not_know_yet(store):
    early = subscribe(store)
    write(store, Run, IDS[0], created=True)
    late = subscribe(store)
    assert owed(store, late) == [] and not waits(store, late)
    write(store, Run, IDS[1], created=True)
    tell(store, late)
    write(store, Run, IDS[1])

    assert owed(store, early) == [(IDS[0], "created"), (IDS[1], "created")]
    assert owed(store, late) == [(IDS[1], "updated")]
    tell(store, early)
    assert owed(store, early) == [] and owed(store, late) == [(IDS[1], "updated")]
    tell(store, late)
    assert rows(store) == 0


@pytest.mark.rule("K4")
def test_a_subscription_to_one_entity_hears_of_no_other(store):
    id = subscribe(store, entity_id=IDS[0])
    write(store, Run, IDS[1], IDS[2])
    assert owed(store, id) == [] and not waits(store, id)
    write(store, Run, IDS[1], IDS[0])
    assert owed(store, id) == [(IDS[0], "updated")] and waits(store, id)


@pytest.mark.rule("K4")
@pytest.mark.parametrize("count", [MOST, MOST + 1])
def test_above_a_thousand_changes_are_told_as_one_of_the_set(store, count):
    id, one = subscribe(store), subscribe(store, entity_id=IDS[0])
    for n in range(0, count, 100):
        write(store, Run, *IDS[n:min(n + 100, count)])

    assert owed(store, id) == ([(NO_ID, "collection")] if count > MOST else [(i, "updated") for i in IDS[:count]])
    assert owed(store, one) == [(IDS[0], "updated")]


@pytest.mark.rule("K4")
def test_a_thousand_changes_at_once_are_one_row_and_tell_everybody(store):
    id, one = subscribe(store), subscribe(store, entity_id=IDS[0])
    with store.write() as connection:
        connection.execute(source_companies.insert(), [{"id": i, "name": str(i), "display_name": ""} for i in IDS[:MOST + 1]])
        note(connection, Run, sa.select(source_companies.c.id), deleted=True)

    assert rows(store) == 1 and owed(store, id) == [(NO_ID, "collection")]
    assert owed(store, one) == [(IDS[0], "updated")]                 # perhaps; it can look


def test_what_a_receiver_that_is_away_is_owed_does_not_grow_without_end(store, monkeypatch):
    away, one, there = subscribe(store), subscribe(store, entity_id=IDS[5]), subscribe(store)
    for n in range(0, len(IDS), 500):
        write(store, Run, *IDS[n:n + 500])
    with store.read() as connection:
        assert outbox.crowded(connection)
    write(store, Run, IDS[0])                            # the newest
    with store.write() as connection:
        connection.execute(subscriptions.update().where(subscriptions.c.id == there).values(told=position(connection) - 2))
        tidy(connection)
        assert not outbox.crowded(connection)

    assert rows(store) <= MOST + 501
    assert owed(store, away) == [(NO_ID, "collection")]
    assert owed(store, one) == [(IDS[5], "updated")]
    assert owed(store, there) == [*((i, "updated") for i in IDS[-500:]), (IDS[0], "updated")]


def test_the_link_of_a_collection_begins_before_the_oldest_change_that_is_meant(store):
    id = subscribe(store, kind=SourceCompany)
    with store.write() as connection:
        connection.execute(source_companies.insert(), [{"id": i, "name": str(i), "display_name": ""} for i in IDS[:MOST + 200]])
    for _ in range(2):
        with store.write() as connection:
            update_companies(connection, source_companies.c.name <= str(IDS[599]), replicate=True)
        with store.write() as connection:
            update_companies(connection, source_companies.c.name > str(IDS[599]), replicate=True)
    with store.read() as connection:
        [change] = untold(connection, "SourceCompany", NO_ID, 0, position(connection))
        oldest = connection.scalar(sa.select(sa.func.min(source_companies.c.modified_at)))
    assert owed(store, id) == [(NO_ID, "collection")]
    assert change.since < oldest and oldest - change.since < timedelta(seconds=5) and change.since < change.at


def test_a_change_that_is_taken_back_is_not_told(store):
    id = subscribe(store)
    with pytest.raises(ZeroDivisionError), store.write() as connection:
        note(connection, Run, [IDS[0]])
        raise ZeroDivisionError
    assert owed(store, id) == [] and not waits(store, id)


def test_no_change_becomes_visible_behind_a_subscriptions_back(postgres_database):
    """Two transactions write at once: the one with the earlier position commits first, for the other waits for it."""
    store = open_store(postgres_database)
    id, order = subscribe(store), []
    holds, told = threading.Event(), threading.Event()

    def first():
        with store.write() as connection:
            note(connection, Run, [IDS[0]])
            holds.set()
            told.wait(0.5)
            order.append("first")

    def second():
        holds.wait(10)
        with store.write() as connection:
            note(connection, Run, [IDS[1]])
            order.append("second")

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    holds.wait(10)
    assert owed(store, id) == []
    for thread in threads:
        thread.join()
    assert order == ["first", "second"]
    assert owed(store, id) == [(IDS[0], "updated"), (IDS[1], "updated")]
    store.close()


def test_a_group_of_requests_and_a_run_note_at_the_same_time_and_neither_fails(store):
    """What a batch does as one transaction over one snapshot, while a coordinator writes progress (odata.md B3)."""
    id, ended, errors = subscribe(store), threading.Event(), []

    def progress():
        n = 0
        while not ended.is_set():
            try:
                write(store, Run, IDS[n % 50])
            except Exception as error:
                errors.append(error)
            n += 1

    thread = threading.Thread(target=progress)
    thread.start()
    try:
        for n in range(10):
            with store.together():
                for i in range(3):
                    write(store, Run, IDS[100 + 3 * n + i])
                    time.sleep(0.005)
    finally:
        ended.set()
        thread.join()
    assert errors == []
    assert {entity for entity, _ in owed(store, id)} >= set(IDS[100:130])


# ------------------------------------------------------------------ who notes what: an independent judge

WATCHED = {
    "Run": ("runs", "status, started_at, ended_at, details, source, replication_type"),
    "RunTable": ("run_tables", "status, records_copied, total_records, errors"),
    "SourceCompany": ("source_companies", "name, replicate, display_name, estimated_size, status, created, init_status, init_error"),
    "TableMapping": ("table_mappings", "target_table_type, app_id, extension_name, table_id, table_name, source_table_name, per_company"),
    "Setup": ("migration", "product_id, sql_server_type, state"),
}


class Witness:
    """Triggers of the database that see every change of what the API shows; at each commit it is compared with what was noted.

    `seen`: kinds of entities that have changed since it was last asked for.
    """

    def __init__(self, store):
        self.seen, self.missing, self.position = set(), [], 0
        with store.write() as connection:
            connection.exec_driver_sql("create table witness (kind text, id text, change text, primary key (kind, id, change))")
            for kind, (table, columns) in WATCHED.items():
                differs = " or ".join(f"old.{c.strip()} is not new.{c.strip()}" for c in columns.split(","))
                for event, row, when in (("insert", "new", "1"), ("update", "new", differs), ("delete", "old", "1")):
                    connection.exec_driver_sql(
                        f"create trigger witness_{table}_{event} after {event} on {table} when {when} begin "
                        f"insert or ignore into witness values ('{kind}', {row}.id, '{event}'); end")
        for kind in WATCHED:
            subscribe(store, kind=type(kind, (), {}))
        sa.event.listen(store._readers, "commit", self.compare)

    def compare(self, connection):
        found = {}
        for kind, id, change in connection.exec_driver_sql("select * from witness").all():
            found.setdefault((kind, UUID(id)), set()).add(change)
        if not found:
            return
        told = {(kind, change.entity_id): change.change_type for kind in WATCHED
                for change in untold(connection, kind, NO_ID, self.position, position(connection))}
        for key, events in found.items():
            expected = {"deleted"} if "delete" in events else {"created"} if "insert" in events else {"updated"}
            if key[0] == "Setup":                       # its row is there before the set-up is
                expected.add("created")
            if told.get(key) not in expected:
                self.missing.append((key, events, told.get(key)))
        self.position = position(connection)
        self.seen |= {kind for kind, _ in found}
        connection.exec_driver_sql("delete from witness")

    def check(self, *kinds):
        assert self.missing == []
        assert self.seen >= set(kinds)
        self.seen.clear()


@pytest.mark.rule("K4")
def test_every_change_that_the_api_shows_is_noted_through_a_whole_life(lab, monkeypatch):
    migration, witness = lab.migration, Witness(lab.store)
    lab.in_source("create table broken (id integer primary key, n int)", "insert into broken values (1, 'text')")
    setup = migration.create_setup(lab.values)
    witness.check("Setup", "Run", "SourceCompany")
    for company in lab.companies:
        migration.change_company(company.id, {"replicate": True}, ANY)
    witness.check("SourceCompany")
    migration.complete_setup(setup.id)
    witness.check("Setup", "SourceCompany", "TableMapping")
    lab.work()
    witness.check("Setup", "SourceCompany")
    migration.initialize_company(lab.companies[0].id)
    lab.work()
    witness.check("SourceCompany")
    assert lab.run().tables_failed == 1
    witness.check("Setup", "Run", "RunTable")
    lab.in_source("drop table broken")
    lab.run()
    asked = migration.run_replication()
    with monkeypatch.context() as patch:                # its tables are entered, and not one is copied
        patch.setattr(runner, "copy_tables", lambda *_, **__: iter(()))
        lab.work(stop=lambda: True)
    assert migration.get(Run, asked.id).tables_remaining > 0
    with migration.verb() as verb:
        fail_run(verb, asked, "it was stopped")
    witness.check("Setup", "Run", "RunTable")
    lab.run()
    mapping = lab.mappings[0]
    migration.change_mapping(mapping.id, {"table_id": 7}, ANY)
    migration.restore_defaults(mapping.id)
    migration.create_mapping({"app_id": mapping.app_id, "table_name": "Mine", "source_table_name": "Theirs"})
    migration.delete_all_for_extension(lab.mappings[0].id)
    witness.check("TableMapping")
    migration.run_data_upgrade()
    lab.work()
    assert lab.state is MigrationState.UPGRADED
    migration.complete_cloud_migration(force=True, reason="what mappings that are gone have filled stays where it is")
    witness.check("Setup", "Run")
    lab.in_source(ADD_COMPANY)
    migration.change_setup(setup.id, {}, ANY)
    lab.in_source("delete from Company where rowid = 9 or name = 'New'")
    migration.change_setup(setup.id, {}, ANY)
    witness.check("Setup", "SourceCompany")
