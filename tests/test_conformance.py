"""docs/conformance.md says of every rule of the wire which tests hold skylift to it."""

from tests.conformance import ROOT, RULES, claims, page


def test_no_test_names_a_rule_that_is_not_there():
    assert sorted({claim.rule for claim in claims()} - RULES.keys()) == []


def test_the_conformance_page_is_up_to_date():
    assert (ROOT / "docs" / "conformance.md").read_text("utf-8") == page(), "python -m tests.conformance > docs/conformance.md"


def test_every_rule_has_a_test():
    assert sorted(RULES.keys() - {claim.rule for claim in claims()}) == []
