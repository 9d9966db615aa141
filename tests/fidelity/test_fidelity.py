"""Every value of every kind arrives as it was, or is refused; docs/fidelity.md says which."""

import pytest

from tests.fidelity.matrix import ABSENT, EXACT, REFUSED, outcomes
from tests.fidelity.page import PAGE, pairs, render, sections
from tests.fidelity.values import canonical


@pytest.mark.parametrize(("source", "target"), pairs())
def test_no_value_arrives_as_another_one(source, target, tmp_path):
    found = list(outcomes(source, target, tmp_path))

    assert [o for o in found if o.result not in (ABSENT, EXACT, REFUSED)] == []
    assert sum(o.result == EXACT for o in found) > 20
    title = f"## {source} → {target}"
    assert sections(PAGE.read_text("utf-8")).get(title) == render(source, target, found), "python -m tests.fidelity > docs/fidelity.md"


@pytest.mark.parametrize(("kind", "one", "other", "same"), [
    ("decimal(18,2)", "1.50", "1.5", True), ("decimal(18,2)", "1.5", "1.05", False), ("decimal(18,2)", "-1", "1", False),
    ("numeric", "100", "1E+2", True), ("decimal(18,2)", "0.00", "0", True), ("float64", -0.0, 0.0, False), ("float64", "1e22", 1e22, True),
    ("datetime", "2026-01-02T03:04:05.100", "2026-01-02 03:04:05.1", True), ("datetime", "2026-01-02", "2026-01-02 00:00:00", True),
    ("datetime", "2026-01-02 03:04:05.1234567", "2026-01-02 03:04:05.123456", False),
    ("datetime with offset", "2026-01-02 05:30:00+05:30", "2026-01-02 00:00:00Z", True), ("guid", "{AB}", "ab", True),
])
def test_the_judge_itself(kind, one, other, same):
    assert (canonical(kind, one) == canonical(kind, other)) is same
