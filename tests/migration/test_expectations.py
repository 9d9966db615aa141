"""Validation suites of one's own: what may stand in their files, and what becomes of each expectation."""

import time

import pytest

from skylift.errors import SetupError
from tests.migration.test_replication import CRONUS, CUSTOMER
from tests.migration.validating import NUMBER, PLACE, results, set_up, validate, write_suite


@pytest.fixture
def copied(ready):
    ready.run()
    return ready


OWN = f"""
[[test]]
id = "count"
entity = "Customers"
source = 'select count(*) from {{{{Customer}}}}'
target = 'select count(*) from {{{{{CUSTOMER}}}}}'
[[test]]
id = "limits"
entity = "Customers"
source = 'select "No_", "Credit Limit (LCY)" from {{{{Customer}}}}'
target = 'select "No_", "Credit Limit (LCY)" from {{{{Customer}}}}'
redact = true
[[test]]
id = "none"
target = 'select "No_" from {{{{Customer}}}} where "Name" = $$forged$$'
expect_none = true
is_warning = true
[[test]]
id = "off"
target = 'select 1'
expected = 2
ignore = true
[[test]]
id = "wrong"
target = 'select nonsense'
expected = 2
[[test]]
id = "writes"
target = 'delete from {{{{Customer}}}}'
expected = 2
[[test]]
id = "shared"
scope = "shared"
target = 'select count(*) from {{{{Company Information}}}}'
expected = 3
"""


def test_a_row_that_is_not_to_be_there_is_told_by_its_key_and_what_is_secret_of_it_is_not_kept(copied, tmp_path):
    lab = set_up(copied, validation_suites=write_suite(tmp_path / "own", f"""
[[test]]
id = "none"
target = 'select "No_", "Name" from {{{{{CUSTOMER}}}}}'
expect_none = true
redact = true
"""))
    names = {name for (name,) in lab.in_target(f'select "Name" from "{CRONUS}"."{CUSTOMER}"') if name}
    validate(lab, "own")

    rows = [row for row in results(lab) if row.company_name == CRONUS]
    assert {row.key for row in rows} == {key for (key,) in lab.in_target(f'select "No_" from "{CRONUS}"."{CUSTOMER}"')}
    assert names and not any(name in str(row) for row in rows for name in names)


def test_expectations_in_sql_compare_both_sides_by_key_and_value_hide_what_is_secret_and_write_nothing(copied, tmp_path):
    lab = set_up(copied, validation_suites=write_suite(tmp_path / "own", OWN))
    validate(lab, "own")
    clean = {(row.company_name, row.test): row for row in results(lab)}
    assert {test for _, test in clean} == {"wrong", "writes", "shared"}
    assert {row.is_warning for row in results(lab)} == {True}
    assert "nonsense" in clean[CRONUS, "wrong"].message and "not one query" in clean[CRONUS, "writes"].message
    assert "no table of all companies" in clean["", "shared"].message

    lab.in_target(f"update {PLACE} set {NUMBER} = 12345.5, \"Name\" = 'forged' where No_ = (select min(No_) from {PLACE})")
    lab.in_target(f"delete from {PLACE} where No_ = (select max(No_) from {PLACE})")
    [((first, last),)] = [lab.in_source(f'select min("No_"), max("No_") from "{CRONUS}${CUSTOMER}"')[0]]
    validate(lab, "own")
    now = {(row.test, row.key): row for row in results(lab) if row.company_name == CRONUS and row.test not in ("wrong", "writes")}
    assert set(now) == {("count", ""), ("limits", first), ("limits", last), ("none", first)}
    assert int(now["count", ""].expected) == int(now["count", ""].actual) + 1
    assert {now[key].expected for key in now if key[0] == "limits"} == {"***"} == {now[key].actual for key in now if key[0] == "limits"}
    assert (now["none", first].is_warning, now["count", ""].table_name) == (True, "Customers")
    assert "12345" not in str(results(lab))


def test_an_expectation_that_never_ends_is_ended_and_the_rest_goes_on(copied, tmp_path):
    endless = "with recursive r(n) as (select 1 union all select n + 1 from r) select count(*) from r"
    lab = set_up(copied, validation_query_s=0.5, validation_suites=write_suite(tmp_path / "own", f"""
[[test]]
id = "endless"
source = '{endless}'
target = 'select 1'
[[test]]
id = "next"
target = 'select 1'
expected = 2
"""))
    began = time.monotonic()
    validate(lab, "own", companies=[CRONUS])
    assert time.monotonic() - began < 20
    assert [(row.test, row.is_warning, row.actual) for row in results(lab)] == [("endless", True, ""), ("next", False, "1")]
    assert "took longer than 0.5 s" in results(lab)[0].message


@pytest.mark.parametrize(("text", "words"), [
    ("id = ", "cannot be read"), ("id = 'a'", r"no \[\[test\]\]"), ("id = 'a'\ncolour = 1", "'colour' is not known"),
    ("[[test]]\nid = 'x'", "has no id"), ("id = '" + "a" * 21 + "'\n[[test]]\nid = 'x'", "id of 1 to 20"),
    ("id = 'a'\n[[test]]\nid = 'x'", "no target query"), ("id = 'a'\n[[test]]\nid = 'x'\ntarget = 'select 1'", "needs one of"),
    ("id = 'a'\n[[test]]\nid = 'x'\ntarget = 'select 1'\nexpected = 1\nsource = 'select 1'", "needs one of"),
    ("id = 'a'\n[[test]]\nid = 'x'\ntarget = 5\nexpected = 1", "neither text nor"),
    ("id = 'a'\nwhen = 'soon'\n[[test]]\nid = 'x'\ntarget = ''\nexpected = 1", "possible are always"),
    ("id = 'a'\nautomatic = 'yes'\n[[test]]\nid = 'x'\ntarget = ''\nexpected = 1", "'automatic' is not true or false"),
    ("id = 'rows'\n[[test]]\nid = 'x'\ntarget = ''\nexpected = 1", "more than one validation suite is called 'rows'"),
    ("id = 'a'\n" + "[[test]]\nid = 'x'\ntarget = ''\nexpected = 1\n" * 2, "two tests of one id"),
    ("id = 'a'\n[[test]]\nid = 'x'\ntarget = ''\nexpected = 1\nscope = 'all'", "the scope 'all' is not known"),
])
def test_a_suite_that_is_wrong_is_refused_with_its_file_and_what_is_wrong(copied, tmp_path, text, words):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "suite.toml").write_text(text)
    with pytest.raises(SetupError, match=words) as raised:
        set_up(copied, validation_suites=str(tmp_path / "own")).migration.validate()
    assert raised.value.code == "Suite"


def test_a_suite_may_be_json_and_values_are_compared_by_value_and_neutral_text(copied, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "suite.json").write_text("""{"id": "own", "test": [
        {"id": "equal", "scope": "shared", "key": 1, "source": "select 1, 2.50, 'Aé', null, 0, x'0aFF', '2020-01-01'",
         "target": "select 1.0, 2.5, 'Aé', null, false, '\\\\x0A\\\\xff'::blob, date '2020-01-01'"},
        {"id": "case", "scope": "shared", "source": "select 'a'", "target": "select 'A'"},
        {"id": "blank", "scope": "shared", "source": "select 'a '", "target": "select 'a'"},
        {"id": "null", "scope": "shared", "source": "select null", "target": "select ''"},
        {"id": "exact", "scope": "shared", "target": "select 1.10::decimal(10,2)", "expected": 1.1},
        {"id": "time", "scope": "shared", "source": "select '2020-01-01 10:00:00.5'",
         "target": "select timestamp '2020-01-01 10:00:00.500'"},
        {"id": "empty", "scope": "shared", "target": "select 1 where false", "expected": 1}]}""")
    lab = set_up(copied, validation_suites=str(tmp_path / "own"))
    validate(lab, "own")
    assert [(row.test, row.expected, row.actual) for row in results(lab)] == [
        ("blank", "a ", "a"), ("case", "a", "A"), ("empty", "1", "does not exist"), ("null", "null", "")]
