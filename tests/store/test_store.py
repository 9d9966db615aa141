import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import skylift.store
from skylift.errors import SetupError, TimedOut
from skylift.model import NO_ID, Run, SourceCompany
from skylift.runs import CompanyInit, ReplicationType, RunStatus
from skylift.store import SCHEMA, open_store, to_row
from skylift.store.deadline import within
from skylift.store.tables import events, metadata, migration, registry, run_tables, runs, source_companies, subscriptions


@pytest.fixture
def store(store_url):
    store = open_store(store_url)
    yield store
    store.close()


def run_row(**values):
    started = datetime(2026, 7, 1, tzinfo=UTC)
    return asdict(Run(uuid4(), str(uuid4()), started, None, ReplicationType.FULL, RunStatus.COMPLETED, "", "")) | values


def insert_run(connection, **values):
    row = run_row(**values)
    connection.execute(runs.insert().values({name: row[name] for name in row if name in runs.c}))


def differences(connection):
    """Between the schema and the tables. An index on an expression, which each database writes in its own way, only has to be there."""
    rank = "ix_run_tables_rank_id"
    catalogue = "sqlite_schema where name" if connection.dialect.name == "sqlite" else "pg_indexes where indexname"
    assert connection.scalar(sa.text(f"select count(*) from {catalogue} = '{rank}'")) == 1
    options = {"compare_type": True, "include_object": lambda _, name, *__: name != rank}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*expression-based index")
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)


def test_the_schema_that_the_migrations_make_is_that_of_the_tables(store):
    with store.read() as connection:
        assert differences(connection) == []
    assert ScriptDirectory(str(Path(skylift.store.__file__).with_name("migrations"))).get_heads() == [SCHEMA]


def test_a_store_of_the_first_schema_is_brought_up_to_date_with_what_it_holds(store_url):
    engine = skylift.store._engine(sa.engine.make_url(store_url))
    with engine.execution_options(skylift_writes=True).begin() as connection:
        config = Config()
        config.set_main_option("script_location", "skylift.store:migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        one, then = "'00000000000000000000000000000001'", "'2026-07-01 00:00:00.000000'"
        connection.execute(sa.text(f"insert into runs values ({one}, 'one', {then}, null, 'Full', 'Completed', '', '', 0)"))
        connection.execute(sa.text(f"insert into subscriptions values ('s', 'https://x.example', 'r', {one}, '', {then}, {then}, {then}, "
                                   f"{one}, {one})"))
        connection.execute(sa.text(f"insert into migration values (1, {one}, 'Disabled', {one}, 'Custom', 'AzureSQL', "
                                   "'', '', '', '', '', '', '', 'StillTracked')"))
        connection.execute(sa.text("insert into registry values ('', 'a', null, 7, false, true), ('', 'b', null, 0, true, false)"))
    engine.dispose()

    for _ in range(2):
        store = open_store(store_url)
        with store.read() as connection:
            assert connection.execute(sa.select(runs.c.run_id, runs.c.modified_at)).all() == [("one", datetime(1970, 1, 1, tzinfo=UTC))]
            row = connection.execute(sa.select(subscriptions)).one()
            assert (row.id, row.kind, row.entity_id, row.told, row.waiting_since) == ("s", "", NO_ID, 0, None)
            row = connection.execute(sa.select(migration)).one()
            assert (row.disabled_reason, row.still_tracked, row.copy_id != NO_ID) == ("", True, True)
            tables = connection.execute(sa.select(registry).order_by(registry.c.table_name)).all()
            assert [(row.synced_version, row.blocked, row.replicate, row.preserve) for row in tables] == [
                (7, False, True, False), (0, True, False, False)]
            assert len({NO_ID, *(row.id for row in tables)}) == 3
            assert differences(connection) == []
        store.close()


def test_processes_that_open_a_new_store_at_once_make_it_once(store_url):
    code = "import sys; from skylift.store import open_store; open_store(sys.argv[1]).close()"
    children = [subprocess.Popen([sys.executable, "-c", code, store_url], stderr=subprocess.PIPE) for _ in range(2)]

    assert [(child.communicate()[1], child.returncode) for child in children] == [(b"", 0)] * 2


def test_a_store_written_by_a_newer_skylift_is_refused(store, store_url):
    with store.write() as connection:
        connection.execute(sa.text("update alembic_version set version_num = '9999'"))

    with pytest.raises(SetupError, match="the store has schema 9999, this skylift knows"):
        open_store(store_url)


def test_a_row_comes_out_as_it_went_in(store):
    company = SourceCompany(uuid4(), "CRONUS 'Ünï' \\ % _", "日本\U0001f600", True, Decimal("1234.567891"),
                            init_status=CompanyInit.INITIALIZED)
    started = datetime(1, 1, 1, 0, 0, 0, 7, UTC)
    with store.write() as connection:
        connection.execute(source_companies.insert().values(**asdict(company)))
        insert_run(connection, started_at=started, ended_at=datetime(2026, 7, 1, 14, tzinfo=timezone(timedelta(hours=2))))

    with store.read() as connection:
        assert to_row(SourceCompany, connection.execute(sa.select(source_companies)).mappings().one()) == company
        run = to_row(Run, connection.execute(sa.select(runs)).mappings().one())
    assert (run.started_at, run.ended_at) == (started, datetime(2026, 7, 1, 12, tzinfo=UTC))
    assert run.ended_at.tzinfo is UTC and type(run.status) is RunStatus and type(run.id) is UUID


def test_text_sorts_by_code_point(store):
    with store.write() as connection:
        for name in ("b", "B", "ä", "a", "_"):
            connection.execute(source_companies.insert().values(id=uuid4(), name=name, display_name=""))

    with store.read() as connection:
        assert connection.scalars(sa.select(source_companies.c.name).order_by(source_companies.c.name)).all() == ["B", "_", "a", "b", "ä"]


def test_a_transaction_that_raises_leaves_nothing(store):
    with pytest.raises(ZeroDivisionError), store.write() as connection:
        insert_run(connection)
        raise ZeroDivisionError

    with store.read() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(runs)) == 0


def count_runs(store):
    with store.read() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(runs))


def insert_one(store, **values):
    with store.write() as connection:
        insert_run(connection, **values)


@pytest.mark.rule("B3")
def test_blocks_together_are_one_transaction_that_sees_itself(store):
    with ThreadPoolExecutor(1) as other, store.together():
        insert_one(store)
        insert_one(store)
        assert count_runs(store) == 2 and other.submit(count_runs, store).result() == 0
    assert count_runs(store) == 2


@pytest.mark.rule("B3")
def test_an_error_takes_back_the_block_in_which_it_falls_or_all_of_them(store):
    with store.together():
        insert_one(store, run_id="kept")
        with pytest.raises(sa.exc.IntegrityError), store.write() as connection:
            insert_run(connection)
            insert_run(connection, run_id="kept")
        assert count_runs(store) == 1                          # and the transaction goes on
    with pytest.raises(ZeroDivisionError), store.together():
        insert_one(store)
        raise ZeroDivisionError
    assert count_runs(store) == 1


@pytest.mark.rule("B3")
def test_what_was_committed_in_between_stays(store):
    with pytest.raises(ZeroDivisionError), store.together() as whole:
        insert_one(store)
        store.commit()
        assert whole.commits == 1
        insert_one(store)
        raise ZeroDivisionError
    assert count_runs(store) == 1
    store.commit()                                             # outside it is nothing


@pytest.mark.rule("B3")
def test_reads_together_see_one_moment(store):
    with ThreadPoolExecutor(1) as other, store.together(writes=False):
        assert count_runs(store) == 0
        other.submit(insert_one, store).result()
        assert count_runs(store) == 0
    assert count_runs(store) == 1


def test_a_reader_sees_what_was_committed_while_a_writer_is_at_work(store):
    with store.write() as connection:
        insert_run(connection)
        with store.read() as reader:
            assert reader.scalar(sa.select(sa.func.count()).select_from(runs)) == 0


def test_events_are_numbered_in_the_order_in_which_they_happen(store):
    for n in range(3):
        with store.write() as connection:
            connection.execute(events.insert().values(at=datetime.now(UTC), event=str(n)))

    with store.read() as connection:
        assert connection.scalars(sa.select(events.c.event).order_by(events.c.id)).all() == ["0", "1", "2"]


def test_counting_a_runs_tables_and_finding_the_newest_run_read_indexes_only(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/store.sqlite")

    def plan(query) -> str:
        with store.read() as connection:
            text = query.compile(connection, compile_kwargs={"literal_binds": True})
            return " ".join(row[3] for row in connection.exec_driver_sql(f"explain query plan {text}"))

    counts = sa.select(run_tables.c.status, sa.func.count()).where(run_tables.c.run_id == "x").group_by(run_tables.c.status)
    assert "COVERING INDEX ix_run_tables_run_id_status" in plan(counts)
    assert "COVERING INDEX ix_runs_started_at_id" in plan(sa.select(runs.c.id).order_by(runs.c.started_at.desc()).limit(1))
    store.close()


@pytest.mark.parametrize("url, message", [
    ("store.sqlite", "store 'store.sqlite' is not a URL"),
    ("mysql://root:geheim@host/db", r"a store is not kept at 'mysql://root:\*\*\*@host/db'"),
    ("sqlite://", "a store is not kept at 'sqlite://'"),
    ("postgresql://skylift:geheim@127.0.0.1:1/db", r"store postgresql://skylift:\*\*\*@127.0.0.1:1/db cannot be opened"),
])
def test_a_url_that_names_no_store_is_told_without_its_password(url, message):
    with pytest.raises(SetupError, match=message) as raised:
        open_store(url)

    assert "geheim" not in str(raised.value)


def test_a_file_that_is_no_database_is_told(tmp_path):
    (tmp_path / "store.sqlite").write_text("Dear diary, " * 1000)

    with pytest.raises(SetupError, match="not a database"):
        open_store(f"sqlite:///{tmp_path}/store.sqlite")


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(SetupError, match=r"the folder of the store .* cannot be made"):
        open_store(f"sqlite:///{tmp_path}/file/home/store.sqlite")


ENDLESS = "with recursive c(n) as (select 1 union all select n + 1 from c where n < 100000000) select count(*) from c"


def test_work_that_has_an_end_is_broken_off_there_and_the_store_goes_on(store_url):
    store = open_store(store_url, 0.3)
    for transaction in (store.read, store.write):
        began = time.monotonic()
        with pytest.raises(TimedOut), within(0.3), transaction() as connection:
            connection.execute(sa.text(ENDLESS))
        assert 0.2 < time.monotonic() - began < 3
        with transaction() as connection:
            assert connection.scalar(sa.select(sa.func.count()).select_from(runs)) == 0
    with within(0.01):
        time.sleep(0.02)
        with pytest.raises(TimedOut), store.read():
            pass
    store.close()


def test_who_waits_for_another_writer_waits_no_longer_than_there_is_time(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/store.sqlite")
    with store.write(), ThreadPoolExecutor(1) as pool:
        def wait():
            with within(0.2), store.write():
                pass
        with pytest.raises(TimedOut):
            pool.submit(wait).result(5)
    with store.write():
        pass
    store.close()
