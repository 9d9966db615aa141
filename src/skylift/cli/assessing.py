"""Assessment, before anything is enabled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skylift.cli.commands import product_named
from skylift.cli.follow import progress
from skylift.cli.frame import FAILED, OK, Session, absolute_url, command
from skylift.errors import SetupError, StateError
from skylift.model import Assessment, Finding
from skylift.query import Attribute, Order, Query
from skylift.runs import Severity

if TYPE_CHECKING:
    from skylift.migration.assessment import Outcome, Sides

NAMED = 3                         # places that are named of a finding with many
_APP = re.compile(r"(?i)\$[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@command("skylift assess --product Custom --source sqlite:///bc.db", target=True)
def assess(
    session: Session,
    product: Annotated[str, typer.Option(help="With --source: the product, as for skylift setup.")] = "",
    source: Annotated[str, typer.Option(metavar="URL", help="The source to assess with --target; left out, what is set up.")] = "",
    scan: Annotated[bool, typer.Option("--scan", help="Read every row of every table too: values that do not fit, lengths, NULs.")] = False,
    scratch: Annotated[bool, typer.Option("--scratch", help="A sample may be loaded into tables of the target server that are dropped at "
                                                            "once; without it loading is measured in files only.")] = False,
    accept: Annotated[list[str] | None, typer.Option(metavar="CODE[:TABLE[.COLUMN]]", help="Accept what was found, instead of assessing "
                                                                                           "(repeatable).")] = None,
    reason: Annotated[str, typer.Option(help="Why it is accepted; kept with it.")] = "",
    show: Annotated[bool, typer.Option("--show", help="Show what the last assessment has found, instead of assessing.")] = False,
) -> int:
    """Say what stands in the way of a migration, how large it is and how long it takes. Nothing is written to source or target.

    Exit code 1 if something blocks: companies are not created and the first run does not begin before it is mended or accepted.
    """
    from skylift.migration.assessment import record

    migration = session.migration
    if accept:
        before = {finding.id: finding for finding in migration.select(Finding, Query())}
        for name in accept:
            for finding in migration.accept_findings(name, reason):
                session.say(f"accepted: {_place(finding)} {finding.code}: {finding.message}")
                if finding.severity is not Severity.BLOCKING:
                    session.say("          it has blocked nothing")
                if (old := before[finding.id]).accepted_at:
                    session.say(f"          in the place of what {old.accepted_by} gave as the reason: {old.why}")
        return _report(session, _kept(session), None)
    if reason:
        raise SetupError("--reason goes with --accept", code="Usage")
    if show:
        options = {"--scan": scan, "--source": source, "--product": product, "--scratch": scratch}
        if given := [name for name, value in options.items() if value]:
            raise SetupError(f"{given[0]} goes with a new assessment, --show shows the last one", hint="leave out one of the two",
                             code="Usage")
        return _report(session, _kept(session), None)
    sides = _sides(session, product, source)
    with progress(session) as told:
        from skylift.migration.assessment import assess as look

        outcome = look(migration, sides, with_scan=scan, allow_scratch=scratch,
                       tell=lambda rows, of: told(f"{rows:,} of about {of:,} rows read", rows, rows, max(of, rows)))
    assert outcome is not None                     # nobody stops it but Ctrl-C
    return _report(session, record(migration, outcome), outcome)


def _sides(session: Session, product: str, source: str) -> Sides:
    from skylift.migration.assessment import Sides, sides_of
    from skylift.products.registry import find_product

    if not source:
        session.migration.check_target(session.target_given)
        return sides_of(session.migration)
    if not product:
        raise SetupError("--source goes with --product", hint="DynamicsBC, DynamicsBCLast or Custom", code="52010")
    return Sides(find_product(product_named(product)), absolute_url(source), session.settings.target)


def _kept(session: Session) -> list[Finding]:
    if not session.migration.select(Assessment, Query()):
        raise StateError("nothing was assessed yet", hint="skylift assess", code="NotAssessed")
    return session.migration.select(Finding, Query(order=(Order(Attribute("code")),)))


def _report(session: Session, found: list[Finding], outcome: Outcome | None) -> int:
    """Show findings, the worst first, one that many tables share once; the exit code that they deserve."""
    order = list(Severity)
    found = sorted(found, key=lambda f: (order.index(f.severity), f.accepted_at is not None, f.code, f.company_name, f.table_name,
                                         f.column_name))
    for those in _alike(found):
        _show(session, those)
    [assessment] = session.migration.select(Assessment, Query())
    if not outcome and assessment.ended_at:
        session.say(f"assessed on {assessment.ended_at:%Y-%m-%d %H:%M} UTC, as {assessment.product_id}: {assessment.source} to "
                    f"{assessment.target}")
    if outcome:
        session.table(("company", "tables", "rows", "MB"), [
            (size.company or "(all companies)", size.tables, size.rows, round(size.size_bytes / 2**20, 1)) for size in outcome.sizes])
    session.say(f"{assessment.tables:,} tables, about {assessment.rows:,} rows, {assessment.size_bytes / 2**20:,.1f} MB")
    session.say(assessment.details)
    open_ = [finding for finding in found if finding.severity is Severity.BLOCKING and finding.accepted_at is None]
    counts = ", ".join(f"{sum(finding.severity is severity for finding in found):,} {severity.lower()}" for severity in order)
    session.say(f"{len(found):,} finding{'' if len(found) == 1 else 's'}: {counts}; "
                + (f"{len(open_):,} to be mended or accepted first" if open_ else "nothing blocks"))
    session.answer({"assessment": assessment, "blocked": bool(open_), "findings": found, **_more(outcome)})
    return FAILED if open_ else OK


def _more(outcome: Outcome | None) -> dict[str, Any]:
    if outcome is None:
        return {}
    return {"source": outcome.source, "target": outcome.target, "companies": outcome.sizes, "estimate": outcome.estimate,
            "read_rows": outcome.read_rows}


def _alike(found: Sequence[Finding]) -> Iterator[list[Finding]]:
    """Findings of one code, severity and acceptance, in their order; of messages that differ in more than numbers each its own."""
    groups: dict[tuple[Any, ...], list[Finding]] = {}
    for finding in found:
        spoken = "".join(char for char in finding.message if not char.isdigit() and char not in ",.")
        groups.setdefault((finding.severity, finding.code, finding.accepted_by, finding.why, spoken), []).append(finding)
    yield from groups.values()


def _show(session: Session, those: Sequence[Finding]) -> None:
    first = those[0]
    places = [place for finding in those if (place := _place(finding))]
    more = f" and {len(places) - NAMED:,} more" if len(places) > NAMED else ""
    where = f"{', '.join(places[:NAMED])}{more}: " if places else ""
    session.say(f"{first.severity.upper():<11} {first.code:<15} {where}{first.message}")
    if first.accepted_at:
        session.say(f"{'':<11} {'':<15} accepted by {first.accepted_by} on {first.accepted_at:%Y-%m-%d}: {first.why}")
    elif first.fix:
        session.say(f"{'':<11} {'':<15} -> {first.fix}")


def _place(finding: Finding) -> str:
    """Without the app's id, for people."""
    column = f".{finding.column_name}" if finding.column_name else ""
    return f"{finding.company_name} {_APP.sub('', finding.table_name)}{column}".strip()
