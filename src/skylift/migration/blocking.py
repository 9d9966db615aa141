"""What an assessment has found blocks until it is mended or accepted; a migration that was never assessed is not blocked."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from skylift.connectors import place_of
from skylift.errors import StateError, redact
from skylift.migration.scope import Key
from skylift.migration.service import Service, Verb
from skylift.model import Finding
from skylift.runs import ReplicationType, Severity
from skylift.store import to_row
from skylift.store.tables import assessments, findings, migration, registry, run_tables, runs, source_companies

NAMED = 3                         # findings that a refusal names
NEVER_ACCEPTED = {"TargetInUse"}  # a run looks again, and refuses


def has_copied(connection: sa.Connection, target_url: str) -> bool:
    """Whether a run of this migration into this very target has come as far as to name its tables."""
    return bool(connection.scalar(sa.select(sa.exists().where(*_into(target_url)))))


def own_tables(connection: sa.Connection, target_url: str) -> set[Key]:
    """What runs of this migration have named to copy into this very target: tables standing there in its place may be its own."""
    named = sa.select(run_tables.c.company_name, run_tables.c.table_name).distinct().where(*_into(target_url))
    return {(row.company_name, row.table_name) for row in connection.execute(named)}


def _into(target_url: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (run_tables.c.run_id == runs.c.run_id, runs.c.replication_type != ReplicationType.DIAGNOSTIC,
            runs.c.target.in_(("", *([place_of(target_url)] if target_url else ()))))


def refuse_blocked(service: Service, verb: Verb, meant: Callable[[tuple[str, str]], bool] = lambda key: True) -> None:
    """Raises StateError AssessmentBlocked for blocking findings about what takes part, and of it about what is `meant`."""
    if found := [finding for finding in blocking(service, verb.connection) if meant((finding.company_name, finding.table_name))]:
        more = f", and {len(found) - NAMED} more" if len(found) > NAMED else ""
        accept = "" if found[0].code in NEVER_ACCEPTED else (
            f", or accept it: skylift assess --accept '{name_of(found[0])}' --reason TEXT; API v2.0: accept of findings")
        raise StateError(f"the assessment has found what stands in the way: {'; '.join(map(told, found[:NAMED]))}{more}",
                         hint=f"mend it and assess again (skylift assess), leave the table out (skylift tables --exclude NAME){accept}",
                         code="AssessmentBlocked")


def blocking(service: Service, connection: sa.Connection) -> list[Finding]:
    """Of the findings about this very source and target those that nobody has accepted: of marked companies, and of what all share."""
    assessed = connection.execute(sa.select(assessments)).mappings().first()
    row = connection.execute(sa.select(migration.c.product_id, migration.c.source_url, migration.c.target_url)).one()
    if assessed is None or (assessed["product_id"], assessed["source"], assessed["target"]) != (
            row.product_id, *(redact(service.box.open(url)) if url else "" for url in (row.source_url, row.target_url))):
        return []
    marked = sa.select(source_companies.c.name).where(source_companies.c.replicate)
    left_out = sa.exists().where(registry.c.company_name == findings.c.company_name, registry.c.table_name == findings.c.table_name,
                                 ~registry.c.replicate)
    rows = connection.execute(sa.select(findings).where(
        findings.c.severity == Severity.BLOCKING, findings.c.accepted_at.is_(None), ~left_out,
        sa.or_(findings.c.company_name == "", findings.c.company_name.in_(marked)),
    ).order_by(findings.c.code, findings.c.company_name, findings.c.table_name, findings.c.column_name)).mappings()
    return [to_row(Finding, row) for row in rows]


def told(finding: Finding) -> str:
    place = f"{finding.company_name} {finding.table_name}".strip() + (f".{finding.column_name}" if finding.column_name else "")
    return f"{finding.code}{f' {place}' if place else ''} ({finding.message})"


def name_of(finding: Finding) -> str:
    """By which `skylift assess --accept` knows it: CODE[:TABLE[.COLUMN]]."""
    return (f"{finding.code}{f':{finding.table_name}' if finding.table_name else ''}"
            f"{f'.{finding.column_name}' if finding.table_name and finding.column_name else ''}")
