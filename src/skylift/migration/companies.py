"""Companies: which take part, their creation in the target environment, their initialisation. Source: behaviour.md §2.6, §3, §12.13-14."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

import pyarrow as pa
import sqlalchemy as sa

from skylift.connectors import open_target
from skylift.errors import SkyliftError, StateError, redact
from skylift.migration.blocking import refuse_blocked
from skylift.migration.changes import update_companies
from skylift.migration.service import IfMatch, Service, Verb, company_row, get_migration, get_row
from skylift.model import SourceCompany, Table
from skylift.products.naming import same_name, target_name
from skylift.runs import CompanyInit, CompanySetupStatus, MigrationState
from skylift.store.tables import companies, source_companies


class CompanyVerbs(Service):
    def change_company(self, id: UUID, values: Mapping[str, Any], if_match: IfMatch) -> SourceCompany:
        """Include a company in the next runs or leave it out; `values`: {"replicate": bool}."""
        with self.verb() as verb:
            company = get_row(verb.connection, SourceCompany, id)
            if_match(company)
            verb.permit("change_company")
            if "replicate" in values and values["replicate"] != company.replicate:
                _update(verb, company, replicate=values["replicate"])
                verb.log(f"company {company.name}", "include" if values["replicate"] else "leave_out", about=company)
            return get_row(verb.connection, SourceCompany, id)

    def create_companies(self, company_id: UUID) -> None:
        """Create every marked company that is not there yet; the coordinator does it."""
        with self.verb() as verb:
            get_row(verb.connection, SourceCompany, company_id)
            verb.permit("create_companies")
            refuse_blocked(self, verb)
            schedule_creation(verb)

    def initialize_company(self, company_id: UUID) -> None:
        """Initialise one company; the coordinator does it. Doing it again is harmless."""
        with self.verb() as verb:
            company = get_row(verb.connection, SourceCompany, company_id)
            verb.permit("initialize_company")
            if not company.created:
                raise StateError(f"company '{company.name}' has not been created", hint="create the marked companies first",
                                 code="CompanyNotCreated")
            if not update_companies(verb.connection, source_companies.c.id == company_id, ~source_companies.c.init_scheduled,
                                    init_scheduled=True):
                raise StateError(f"the initialisation of company '{company.name}' is still to come", hint="wait until it is done",
                                 code="InitializationScheduled")
            verb.log(f"company {company.name}", "schedule_initialization")


def schedule_creation(verb: Verb) -> None:
    """Leave the creation of the marked companies to the coordinator; with none to create it is over at once."""
    waiting = (source_companies.c.replicate, ~source_companies.c.created)
    if verb.connection.execute(sa.select(source_companies.c.id).where(*waiting)).first():
        update_companies(verb.connection, *waiting, status=CompanySetupStatus.IN_PROGRESS)
        verb.move("create_companies", creation_task="InProgress", creation_error="")
    elif verb.state is not MigrationState.UPGRADE_PENDING:         # nothing new: what was copied still waits for its upgrade
        verb.move("create_companies", creation_task="InProgress", creation_error="")
        verb.move("created", "no company to create", creation_task="Completed")


def create_marked(service: Service) -> None:
    """The coordinator's part of creating companies: all of them in one transaction, or none and the reason."""
    try:
        with service.verb() as verb:
            if verb.state is not MigrationState.CREATING_COMPANIES:
                return
            there = {same_name(name): name for name in verb.connection.scalars(sa.select(companies.c.name))}
            for company in _marked(verb):
                if same_name(company.name) in there:
                    raise StateError(f"the environment already has a company '{there[same_name(company.name)]}'", code="CompanyExists")
                verb.connection.execute(companies.insert().values(company_row(company.name, company.display_name, verb.now)))
                there[same_name(company.name)] = company.name
                _update(verb, company, created=True, status=CompanySetupStatus.COMPLETED, init_status=CompanyInit.NOT_INITIALIZED)
                verb.log(f"company {company.name}", "create")
            verb.move("created", creation_task="Completed")
    except SkyliftError as error:
        if error.code == "Store":                                   # the store itself: nothing can be recorded, try again later
            raise
        with service.verb() as verb:
            if verb.state is MigrationState.CREATING_COMPANIES:
                for company in _marked(verb):
                    _update(verb, company, status=CompanySetupStatus.ERROR)
                verb.move("creation_failed", error.message, creation_task="Failed", creation_error=error.message)


def initialize_scheduled(service: Service) -> None:
    """The coordinator's part of initialising companies, each on its own: is it there, and can the target hold tables of it?

    What stands in the way is the company's own error and holds up nothing else.
    """
    with service.store.read() as connection:
        there = set(connection.scalars(sa.select(companies.c.name)))
        waiting = connection.scalars(sa.select(source_companies.c.id).where(source_companies.c.init_scheduled)).all()
        target_url = service.box.open(get_migration(connection)["target_url"])
    for id in waiting:
        with service.store.read() as connection:
            company = get_row(connection, SourceCompany, id)
        error = f"the environment has no company '{company.name}'" if company.name not in there else _try_place(target_url, company.name)
        with service.verb() as verb:
            if update_companies(verb.connection, source_companies.c.id == id, source_companies.c.init_scheduled, init_scheduled=False,
                                init_status=CompanyInit.INITIALIZATION_FAILED if error else CompanyInit.INITIALIZED, init_error=error):
                verb.log(f"company {company.name}", "initialize", why=error)


def _try_place(target_url: str, company: str) -> str:
    """Make a table in the company's place in the target and drop it again; why that cannot be done, '' if it can."""
    try:
        target = open_target(target_url)
        try:
            name = target_name(company, f"_skylift_try_{uuid4().hex[:12]}", target.max_name_bytes)
            with target.transaction() as transaction:
                transaction.create(name, Table("try", pa.schema([("id", pa.int64())]), source_types=("",)))
                transaction.drop(name)
        finally:
            target.close()
    except SkyliftError as error:
        return redact(str(error))
    return ""


def _marked(verb: Verb) -> list[SourceCompany]:
    ids = verb.connection.scalars(sa.select(source_companies.c.id).where(source_companies.c.replicate, ~source_companies.c.created)
                                  .order_by(source_companies.c.name))
    return [get_row(verb.connection, SourceCompany, id) for id in ids.all()]


def _update(verb: Verb, company: SourceCompany, **values: Any) -> None:
    update_companies(verb.connection, source_companies.c.id == company.id, **values)
