"""docs/fidelity.md, made by moving every value: python -m tests.fidelity > docs/fidelity.md

A pair of databases that cannot be had here keeps the section that the page has of it.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from tests.connectors import labs
from tests.fidelity.matrix import ABSENT, EXACT, REFUSED, Outcome, outcomes
from tests.fidelity.values import KINDS

PAGE = Path(__file__).parents[2] / "docs" / "fidelity.md"
HEAD = """# Fidelity

What becomes of every kind of value between every source and every target. Made by moving each value and asking both databases'
own drivers (`python -m tests.fidelity > docs/fidelity.md`; the suite repeats it); do not edit by hand. *Exact* counts values that
arrived as they were; what is refused fails its table by name before anything of it is kept; a dash stands for a type or value
that the source does not have. Nothing arrives as something else: that fails the suite.

The values are those of `tests/fidelity/values.py`. Types: [types.md](types.md).
"""


def section(source: str, target: str) -> list[Outcome]:
    with tempfile.TemporaryDirectory() as folder:
        return list(outcomes(source, target, Path(folder)))


def render(source: str, target: str, found: list[Outcome]) -> str:
    lines = [f"## {source} → {target}", "", "| kind | arrives | refused |", "| --- | --- | --- |"]
    for kind in KINDS:
        here = [outcome for outcome in found if outcome.kind == kind and outcome.result != ABSENT]
        exact = sum(outcome.result == EXACT for outcome in here)
        refused = [outcome.label for outcome in here if outcome.result == REFUSED]
        lines.append(f"| {kind} | {f'exact ({exact})' if exact else '–'} | {', '.join(refused)} |")
    return "\n".join(lines) + "\n"


def sections(page: str) -> dict[str, str]:
    """Title -> text of each section of a page."""
    return {part.splitlines()[0]: part.rstrip() + "\n" for part in re.split(r"(?m)^(?=## )", page)[1:]}


def pairs() -> list[tuple[str, str]]:
    return [(source, target) for source in sorted(labs.SOURCES) for target in sorted(labs.TARGETS)]


def page(kept: str) -> str:
    """The whole page; sections of pairs that cannot be had here come from `kept`."""
    import _pytest.outcomes

    parts = sections(kept)
    for source, target in pairs():
        try:
            parts[f"## {source} → {target}"] = render(source, target, section(source, target))
        except _pytest.outcomes.Skipped:
            continue
    return HEAD + "".join(f"\n{parts[title]}" for title in sorted(parts))
