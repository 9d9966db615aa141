"""A migration under test: short ways to ask for things and to let a coordinator work in this thread until nothing is left."""

import sqlite3
from contextlib import closing
from pathlib import Path

import duckdb
import sqlalchemy as sa

from skylift.migration import Migration
from skylift.migration.coordinator import Worker
from skylift.migration.lease import Lease
from skylift.model import Event, Run, RunTableProgress, Setup, SourceCompany, TableMapping, TableSwitch
from skylift.query import Attribute, Order, Query
from skylift.runs import MigrationState, SqlServerType
from skylift.store.tables import metadata, migration, runs

ANY = lambda row: None  # noqa: E731 (If-Match: *)
ADD_COMPANY = "insert into Company select 9, 'New', 0, 'New one', 'x', ''"


class Lab:
    def __init__(self, migration: Migration, source: Path) -> None:
        self.migration = migration
        self.source = source
        self.store = migration.store

    @property
    def values(self):
        return {"product_id": "DynamicsBCLast", "sql_server_type": SqlServerType.AZURE_SQL,
                "sql_connection_string": f"sqlite:///{self.source}"}

    def prepare(self, **values):
        setup = self.migration.create_setup(self.values | values)
        for company in self.companies:
            self.migration.change_company(company.id, {"replicate": True}, ANY)
        self.migration.complete_setup(setup.id)
        self.work()
        assert self.state is MigrationState.READY
        return setup

    @property
    def state(self):
        with self.store.read() as connection:
            return connection.scalar(sa.select(migration.c.state))

    @property
    def setup(self):
        return self.migration.select(Setup, Query())[0]

    @property
    def companies(self) -> list[SourceCompany]:
        return self.migration.select(SourceCompany, Query(order=(Order(Attribute("name")),)))

    @property
    def mappings(self) -> list[TableMapping]:
        return self.migration.select(TableMapping, Query(order=(Order(Attribute("table_name")),)))

    @property
    def runs(self) -> list[Run]:
        """Newest first."""
        return self.migration.select(Run, Query(order=(Order(Attribute("started_at"), True),)))

    @property
    def events(self) -> list[Event]:
        return self.migration.select(Event, Query(order=(Order(Attribute("id")),)))

    def switch(self, name, company="") -> TableSwitch:
        [found] = [table for table in self.migration.select(TableSwitch, Query())
                   if table.table_name == name and table.company_name in (company, "bc")]
        return found

    def tables_of(self, company: str) -> list[TableSwitch]:
        """'' = those that all companies share."""
        return [table for table in self.migration.select(TableSwitch, Query()) if table.company_name == company]

    def tables(self, run: Run) -> dict[tuple[str, str], RunTableProgress]:
        return {(table.company_name, table.table_name): table for table in self.migration.select(RunTableProgress, Query())
                if table.run_id == run.run_id}

    def work(self, stop=lambda: False):
        """Be the coordinator until there is no more work."""
        lease = Lease(self.store, 60)
        assert lease.take()
        with lease:
            worker = Worker(self.migration, lease, stop)
            while worker.work() and not stop():
                pass

    def run(self, **options) -> Run:
        """A run and its end."""
        asked = self.migration.run_replication(**options)
        self.work()
        return self.migration.get(Run, asked.id)

    def in_source(self, *statements):
        with closing(sqlite3.connect(self.source)) as database, database:
            return [database.execute(statement).fetchall() for statement in statements]

    def in_target(self, sql):
        with duckdb.connect(str(self.migration.settings.home / "target.duckdb")) as database:
            return database.execute(sql).fetchall()

    def force(self, state, run_status=None, **values):
        """Put the migration into a state, whatever that takes."""
        with self.store.write() as connection:
            connection.execute(migration.update().values(state=state, **values))
            if run_status:
                newest = connection.scalar(sa.select(runs.c.id).order_by(runs.c.started_at.desc()).limit(1))
                connection.execute(runs.update().where(runs.c.id == newest).values(status=run_status))

    def dump(self):
        """Everything in the store, to see that a refusal changed nothing."""
        with self.store.read() as connection:
            return {table.name: sorted(map(tuple, connection.execute(sa.select(table))), key=repr) for table in metadata.sorted_tables}
