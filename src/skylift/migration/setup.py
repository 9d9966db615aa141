"""Set-up: connect a source, register an agent, complete the set-up. Source: behaviour.md §2.7, §3, §5.14."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa

from skylift.connectors import Source, check_apart, open_source, open_target, parse_url, place_of
from skylift.connectors.locking import refuse_unlockable, unlock
from skylift.engine.plan import Plan, plan
from skylift.errors import CopyError, SetupError, StateError, Transient, redact
from skylift.migration.blocking import refuse_blocked
from skylift.migration.changes import note, note_switches, update_companies
from skylift.migration.companies import schedule_creation
from skylift.migration.mappings import all_mappings, insert_defaults
from skylift.migration.scope import Part, forget_copies, some
from skylift.migration.service import IfMatch, Service, Verb, get_migration, get_row
from skylift.migration.validation import forget_validations
from skylift.model import NO_ID, Setup, SourceCompany, TableSwitch
from skylift.products import Catalogue, Product, measured
from skylift.products.naming import same_name
from skylift.products.registry import find_product
from skylift.runs import CompanyInit, CompanySetupStatus, MigrationState, RunStatus, SqlServerType, UpgradeStatus
from skylift.settings import Settings
from skylift.store.tables import apps, companies, registry, runs, source_companies


class SetupVerbs(Service):
    def create_setup(self, values: Mapping[str, Any]) -> Setup:
        """Set the migration up, once. The answer alone carries runtime name and key.

        `values`: attributes of Setup. Raises SetupError for what is wrong with product, connection string, source or target,
        StateError if there is a set-up already.
        """
        with self.store.read() as connection:
            row = get_migration(connection)
            if row["state"] is not MigrationState.NOT_SET_UP:
                _refuse_any(get_row(connection, Setup, row["id"]))
        return self._connect(row, values, _refuse_any)

    def change_setup(self, id: UUID, values: Mapping[str, Any], if_match: IfMatch) -> Setup:
        """Change the set-up and connect again with what is stored for everything that `values` leaves out."""
        with self.store.read() as connection:
            if_match(get_row(connection, Setup, id))
            row = get_migration(connection)
        return self._connect(row, values, if_match)

    def installed_integration_runtime(self, setup_id: UUID) -> None:
        """The agent is connected: connect to the source through it, with what is stored."""
        with self.store.read() as connection:
            get_row(connection, Setup, setup_id)
            row = get_migration(connection)
        self._connect(row, {"runtime_name": row["runtime_name"]}, lambda current: None)

    def complete_setup(self, setup_id: UUID) -> None:
        """Add the product's default mappings and start creating the marked companies."""
        with self.verb() as verb:
            get_row(verb.connection, Setup, setup_id)
            find_product(verb.row["product_id"])
            verb.permit("complete_setup")
            refuse_blocked(self, verb)
            verb.log("set-up", "complete")
            insert_defaults(verb)
            schedule_creation(verb)

    # -------------------------------------------------------------- connecting

    def _connect(self, row: Mapping[str, Any], values: Mapping[str, Any], if_match: IfMatch) -> Setup:
        """Register an agent, or enable. What takes time happens before the transaction, which checks the state again."""
        product_id = values.get("product_id") or row["product_id"]
        if not product_id:
            raise SetupError("productId is missing", code="52010",
                             hint="choose one with skylift setup --product (API: an id of sourceProductTypes)")
        product = find_product(product_id)
        kind = SqlServerType(values.get("sql_server_type") or row["sql_server_type"])
        given_url, runtime_name = values.get("sql_connection_string") or "", values.get("runtime_name") or ""
        if given_url:
            parse_url(given_url)
        common = {"product_id": product.id, "sql_server_type": kind}
        if given_url:
            common["source_url"] = self.box.seal(given_url)
        answer = Setup(row["id"], product.id, kind, redact(given_url), runtime_name)
        if kind is SqlServerType.SQL_SERVER and not runtime_name and row["state"] in (
                MigrationState.NOT_SET_UP, MigrationState.AWAITING_AGENT):
            return self._register_agent(answer, common, if_match)
        if row["runtime_name"] and runtime_name not in ("", row["runtime_name"]):
            raise SetupError(f"there is no integration runtime '{runtime_name}'", code="52030",
                             hint="send the name that the first set-up answered (API: runtimeName)")
        url = given_url or self.box.open(row["source_url"])
        if not url:
            raise SetupError("the source is not named",
                             hint="give its URL, e.g. sqlite:///path/to/file.db (skylift setup --source URL; API: sqlConnectionString)",
                             code="52072")
        target_url = self._target_url(row)
        check_apart(url, target_url)
        locks = values.get("lock_target", row["lock_target"])
        if locks:
            refuse_unlockable(target_url)
        with self.store.read() as connection:
            mappings = all_mappings(connection)

        def ask() -> tuple[Catalogue, Plan]:
            source = open_source(url)
            try:
                return discover(product, source, target_url, mappings)
            finally:
                source.close()

        named = [replace(mapping, id=NO_ID) for mapping in mappings]      # one made in the same transaction gets a new id each time
        found, whole = self.store.outside(("connect", product.id, url, target_url, named), ask)
        with self.verb() as verb:
            if verb.state is not MigrationState.NOT_SET_UP:
                if_match(get_row(verb.connection, Setup, verb.row["id"]))
            self._check_product(verb, product)
            leaves = bool(verb.row["target_url"]) and self.box.open(verb.row["target_url"]) != target_url
            if leaves:
                _leave_target(verb, self.box.open(verb.row["target_url"]))
            if leaves or not locks:
                self._lift_lock(verb)
            self._store(verb, found, whole)
            try:
                verb.move("enable", **common, source_version=found.version, target_url=self.box.seal(target_url), disabled_reason="",
                          still_tracked=False, lock_target=locks,
                          runtime_name=runtime_name or verb.row["runtime_name"])
            except StateError:
                raise verb.refusal() from None
            verb.add_run(RunStatus.COMPLETED, "The migration has been set up. The source has "
                         f"{_count(len(found.companies), 'company', 'companies')} and "
                         f"{_count(len(whole.tasks), 'table', 'tables')}.{_cut_names(whole)}"
                         + "".join(f" Note: {note}." for note in found.notes) + _upgraded_note(verb.connection),
                         product.display_name, event="set_up")
            return replace(answer, state=verb.state)

    def _lift_lock(self, verb: Verb) -> None:
        if verb.row["locked"]:
            unlock(self.box.open(verb.row["target_url"]))
            verb.set(locked=False)

    def _register_agent(self, answer: Setup, common: dict[str, Any], if_match: IfMatch) -> Setup:
        with self.verb() as verb:
            if verb.state is not MigrationState.NOT_SET_UP:
                if_match(get_row(verb.connection, Setup, verb.row["id"]))
            name = verb.row["runtime_name"] or f"skylift-{secrets.token_hex(4)}"
            key = self.box.open(verb.row["runtime_key"]) or secrets.token_urlsafe(32)
            verb.move("register_agent", **common, runtime_name=name, runtime_key=verb.row["runtime_key"] or self.box.seal(key))
            return replace(answer, runtime_name=name, runtime_key=key, state=verb.state)

    @property
    def target(self) -> str:
        """URL of the target that was kept at set-up, without password; '' before."""
        with self.store.read() as connection:
            sealed = get_migration(connection)["target_url"]
        return redact(self.box.open(sealed)) if sealed else ""

    def check_target(self, asked: bool) -> None:
        """Raises SetupError if the settings name another target than the one that was kept at set-up.

        `asked`: they name it even where it is the default one, because the caller gave it explicitly.
        """
        with self.store.read() as connection:
            sealed = get_migration(connection)["target_url"]
        if sealed and (asked or self.settings.target != self._default_target) and self.settings.target != (kept := self.box.open(sealed)):
            raise SetupError(f"the target of this home is {redact(kept)}", code="TargetKept",
                             hint="leave out --target and SKYLIFT_TARGET, or change the target: skylift setup --product P --target URL")

    @property
    def _default_target(self) -> str:
        return Settings(home=self.settings.home).target

    def _target_url(self, row: Mapping[str, Any]) -> str:
        """The target is the environment's: once stored it stays, unless this process was told another one."""
        if row["target_url"] and self.settings.target == self._default_target:
            return self.box.open(row["target_url"])
        return self.settings.target

    def _check_product(self, verb: Verb, product: Product) -> None:
        if verb.row["product_id"] in ("", product.id):
            return
        _refuse_upgraded(verb, "product")

    def _store(self, verb: Verb, found: Catalogue, whole: Plan) -> None:
        """Companies (keeping the marks of known ones), apps and registry, as the source shows them now."""
        connection = verb.connection
        own = {same_name(name): name for name in connection.scalars(sa.select(companies.c.name))}
        known = {row.name: row for row in connection.execute(sa.select(source_companies))}
        for company in found.companies:
            clash = own.get(same_name(company.name))
            if clash and not (company.name in known and known[company.name].created):
                raise SetupError(f"the source's company '{company.name}' has the name of the environment's own company '{clash}'",
                                 hint="begin with a new home folder and another setting 'company'", code="NameCollision")
            size = {"display_name": company.display_name, "estimated_size": company.estimated_size}
            if company.name in known:
                update_companies(connection, source_companies.c.name == company.name, **size)
            else:
                note(connection, SourceCompany, [id := uuid4()], created=True)
                connection.execute(source_companies.insert().values(id=id, name=company.name, **size))
        gone = known.keys() - {company.name for company in found.companies}
        for name in sorted(gone):
            if known[name].created:
                update_companies(connection, source_companies.c.name == name, replicate=False)
            else:
                note(connection, SourceCompany, [known[name].id], deleted=True)
                connection.execute(source_companies.delete().where(source_companies.c.name == name))
            verb.log(f"company {name}", "gone_from_source")
        connection.execute(apps.delete())
        if found.apps:
            connection.execute(apps.insert(), [{c.name: getattr(app, c.name) for c in apps.columns} for app in found.apps])
        sync_registry(connection, whole, found)


def _upgraded(connection: sa.Connection) -> Sequence[str]:
    return connection.scalars(sa.select(source_companies.c.name).where(
        source_companies.c.upgrade_status == UpgradeStatus.COMPLETED).order_by(source_companies.c.name)).all()


def _upgraded_note(connection: sa.Connection) -> str:
    """What a set-up after an upgrade is good for; '' where there was none."""
    upgraded = _upgraded(connection)
    are = "is" if len(upgraded) == 1 else "are"
    return (f" {some(upgraded)} {are} upgraded and will not be replicated again: only other companies can still be "
            "migrated here; to migrate these anew takes an environment of its own (another home folder, --home)."
            if upgraded else "")


def _refuse_upgraded(verb: Verb, what: str) -> None:
    if upgraded := _upgraded(verb.connection):
        raise StateError(f"the {what} cannot be changed: already upgraded are {', '.join(upgraded)}",
                         hint="set up a new environment, which is another home folder (--home)", code="Upgraded")


def _leave_target(verb: Verb, old_url: str) -> None:
    """What was done in the old target is not done in the new one. Raises StateError once a company is upgraded."""
    _refuse_upgraded(verb, "target")
    verb.connection.execute(runs.update().where(runs.c.target == "").values(target=place_of(old_url)))
    created = sa.select(source_companies.c.name).where(source_companies.c.created)
    verb.connection.execute(companies.delete().where(companies.c.name.in_(created)))
    update_companies(verb.connection, source_companies.c.created, created=False, status=CompanySetupStatus.NONE,
                     init_status=CompanyInit.UNKNOWN, init_error="", init_scheduled=False,
                     upgrade_status=UpgradeStatus.NONE, upgrade_error="")
    forget_copies(verb, Part())
    forget_validations(verb)
    verb.log("migration", "change_target")


def _refuse_any(setup: Setup) -> None:
    """The if_match of a first set-up: there must be none, not even one made while this one was looking at the source."""
    raise StateError("the migration is set up already", code="SetupExists",
                     hint="change the set-up that there is (API: PATCH setupCloudMigration)")


def _count(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _cut_names(whole: Plan) -> str:
    """Which companies have another name in the target, because it takes no longer ones (§12.14: never cut silently)."""
    cut = {task.company: task.target.schema for task in whole.tasks if task.target.schema != task.company}
    told = [f"'{company}' is '{schema}'" for company, schema in sorted(cut.items())]
    return f" In the target, whose names are shorter, {'; '.join(told)}." if told else ""


def discover(product: Product, source: Source, target_url: str, mappings: list[Any]) -> tuple[Catalogue, Plan]:
    """What the source holds and how it would be copied. Raises SetupError if a name collides or the target cannot be used."""
    try:
        found = measured(product.discover(source), source)
    except CopyError as error:                          # the catalogue itself cannot be read
        raise SetupError(error.message, hint=error.hint, code=error.code) from None
    try:
        target = open_target(target_url)
    except Transient as error:                          # somebody else has it open; nothing was started
        raise SetupError(error.message, hint=error.hint) from None
    try:
        return found, plan(found, mappings, source.tables, target.max_name_bytes)
    finally:
        target.close()


def sync_registry(connection: sa.Connection, whole: Plan, found: Catalogue) -> list[tuple[str, str]]:
    """Make the registry hold the tables of the plan; returns the (company, table) that the source no longer has.

    What somebody has decided about a table outlives its absence: coming back, it must not be copied, or replace rows, by surprise.
    """
    known = {(row.company_name, row.table_name): row for row in connection.execute(sa.select(registry))}
    origins = {(table.company, table.table_name): table for table in found.tables}
    keys = [(task.company, task.table_name) for task in whole.tasks]
    added: list[dict[str, Any]] = [
        {"id": uuid4(), "company_name": key[0], "table_name": key[1], "app_id": origins[key].app_id if key in origins else None,
         "preserve": key in origins and origins[key].preserve} for key in keys if key not in known]
    gone = sorted(known.keys() - set(keys))
    if added:
        note(connection, TableSwitch, [row["id"] for row in added], created=True)
        connection.execute(registry.insert(), added)
    here = sa.and_(registry.c.company_name == sa.bindparam("company"), registry.c.table_name == sa.bindparam("name"))
    decided = [key for key in gone if known[key].preserve or not known[key].replicate]
    for keys, change in ((decided, registry.update().values(synced_version=-1, blocked=False)),       # nobody waits for it
                         (sorted(set(gone) - set(decided)), registry.delete())):
        if keys:
            note_switches(connection, keys, deleted=keys is not decided)
            connection.execute(change.where(here), [{"company": company, "name": name} for company, name in keys])
    return [key for key in gone if key not in origins and known[key].replicate]
