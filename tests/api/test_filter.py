import pytest

from skylift.api.errors import ODataError
from skylift.api.filter import MAX_DEPTH, parse_filter, parse_order
from skylift.api.resources import RUN_TABLES, RUNS, SOURCE_COMPANIES
from skylift.query import Attribute, Call, Literal, Order
from skylift.runs import RunStatus


def parse(text, entity_set=RUNS, schema_version="1.0"):
    return parse_filter(text, entity_set, schema_version)


def refusal(text, entity_set=RUNS):
    with pytest.raises(ODataError) as caught:
        parse_filter(text, entity_set, "1.0")
    return caught.value.status, caught.value.code, caught.value.message


def eq(attribute, value):
    return Call("eq", (Attribute(attribute), Literal(value)))


@pytest.mark.rule("F1")
def test_and_binds_tighter_than_or_and_not_tighter_than_both():
    a, b, c = (eq("run_id", x) for x in "abc")
    text = "runId eq 'a' or not (runId eq 'b') and runId eq 'c'"
    assert parse(text) == Call("or", (a, Call("and", (Call("not", (b,)), c))))
    assert parse("(runId eq 'a' or runId eq 'b') and runId eq 'c'") == Call("and", (Call("or", (a, b)), c))


@pytest.mark.rule("F1")
def test_not_binds_tighter_than_comparison():
    starts = Call("startswith", (Attribute("run_id"), Literal("a")))
    assert parse("not startswith(runId,'a') eq false") == Call("eq", (Call("not", (starts,)), Literal(False)))
    assert refusal("not runId eq 'a'")[:2] == (400, "BadRequest_NotFound")


def test_long_chains_are_flat():
    text = " or ".join(f"runId eq '{n}'" for n in range(400))
    assert len(parse(text).args) == 400


def test_the_literal_may_stand_first():
    assert parse("3 lt tablesFailed") == Call("gt", (Attribute("tables_failed"), Literal(3)))


@pytest.mark.rule("F6")
def test_quotes_are_doubled_inside_text():
    assert parse("runId eq 'O''Neil'") == eq("run_id", "O'Neil")
    assert parse("runId eq ''") == eq("run_id", "")


@pytest.mark.rule("E5")
@pytest.mark.parametrize("text", ["In Progress", "InProgress"])
def test_options_are_understood_in_every_spelling(text):
    for version in ("1.0", "2.0", "2.1"):
        assert parse(f"status eq '{text}'", schema_version=version) == eq("status", RunStatus.IN_PROGRESS)


def test_an_option_within_a_function_is_spelt_as_the_schema_version_does():
    old, new = (parse("contains(status,'Progress')", schema_version=v).args[0].args[1].value for v in ("1.0", "2.0"))
    assert (RunStatus.IN_PROGRESS, "In Progress") in old and (RunStatus.IN_PROGRESS, "InProgress") in new


@pytest.mark.rule("E5")
def test_an_unknown_option_is_refused_with_those_there_are():
    assert refusal("status in ('Failed','Nope')") == (400, "Application_EvaluateException", "'Nope' is not an option. The existing options "
                                                     "are: Failed,In Progress,Completed,Upgrade Pending,Upgrade in Progress,Upgrade "
                                                     "Failed,Data Repair Pending")


@pytest.mark.rule("F6")
@pytest.mark.parametrize("text", [
    "id eq 'x'", "id eq 1", "runId eq 1", "runId eq true", "runId eq 00000000-0000-0000-0000-000000000000", "startTime eq '2024-01-01'",
    "startTime gt 2024-01-01", "tablesFailed eq '1'", "tablesFailed in ('a')", "replicate eq 1", "replicate gt true", "replicate eq 'true'",
    "length(1) eq 1", "contains(runId) eq true", "contains(runId,'a','b')", "year(runId) eq 1", "startTime eq 2024-13-01T00:00Z",
    "startTime eq 2024-02-30T00:00Z", "startTime eq 0001-01-01T00:00:00+01:00", "tablesFailed eq 99999999999999999999",
    "status eq Microsoft.NAV.other'Failed'", "tablesFailed eq NaN"])
def test_a_literal_of_the_wrong_type_is_refused(text):
    entity_set = SOURCE_COMPANIES if text.startswith("replicate") else RUNS
    assert refusal(text, entity_set)[:2] == (400, "BadRequest")


@pytest.mark.rule("F6")
@pytest.mark.parametrize("word", ["not-a-guid", "abc", "00000000-0000-0000-0000-00000000000", "0a000000-0000-0000-0000-0000000000000", "1a",
                                  "not", "-x", "guid'00000000-0000-0000-0000-000000000000'", "5", "true", "2024-01-01T00:00Z"])
def test_what_is_no_guid_is_called_that(word):
    """And the filter after it does not matter."""
    for text in (f"id eq {word}", f"{word} ne id", f"id in ({word})", f"id in (00000000-0000-0000-0000-000000000000,{word} )",
                 f"runId eq 'a' and (id eq {word}) or true"):
        status, code, message = refusal(text)
        assert (status, code) == (400, "BadRequest") and message.startswith(f"'{word}' is not a GUID; write it as"), text


@pytest.mark.rule("F6")
@pytest.mark.parametrize("word", ["2024-01-01", "2024-01-01T10:00:00", "2024-1-1T10:00Z", "2024-01-01T10:00+0100", "2024-01-01T10:00:00.Z",
                                  "yesterday", "datetime'2024-01-01T10:00:00'", "00000000-0000-0000-0000-000000000000", "20240101"])
def test_what_is_no_date_time_is_called_that(word):
    for text in (f"startTime ge {word}", f"{word} lt startTime", f"startTime in ({word})"):
        status, code, message = refusal(text)
        assert (status, code) == (400, "BadRequest") and message.startswith(f"'{word}' is not a date-time; write it as"), text


@pytest.mark.rule("F6")
def test_what_may_stand_beside_a_guid_or_a_time_is_let_through():
    for text in ("id eq id", "id ne null", "null eq id", "startTime le endTime", "startTime in (endTime,null)",
                 "year(startTime) eq 2024 and id eq 00000000-0000-0000-0000-00000000000C", "not (startTime gt endTime)"):
        assert parse(text)
    assert parse("cloudMigrationStatus/startTime lt cloudMigrationStatus/endTime", RUN_TABLES)
    assert refusal("startTime gt now()")[0] == 501


@pytest.mark.rule("F7")
@pytest.mark.parametrize(("text", "position"), [
    ("", 0), ("runId eq", 8), ("runId 'a'", 6), ("runId eq 'a", 9), ("runId eq 'a' and", 16), ("(runId eq 'a'", 13), ("runId eq 'a')", 12),
    ("runId eq 'a' xor true", 13), ("contains(runId,'a'", 18), ("runId in ()", 10), ("runId in ('a',)", 14), ("runId eq #", 9),
    ("runId EQ 'a'", 6), ("runId eq 'a' 'b'", 13), ("1a eq 1", 0), ("runId eq \u20ac", 9)])
def test_a_syntax_error_names_its_position(text, position):
    status, code, message = refusal(text)
    assert (status, code) == (400, "BadRequest_NotFound")
    assert message == f"Syntax error at position {position} in '{text}'."


@pytest.mark.rule("F7")
@pytest.mark.parametrize("name", ["x", "RunId", "started_at", "run_id", "eq", "cloudMigrationStatus"])
def test_an_unknown_property_is_named_with_its_type(name):
    assert refusal(f"{name} eq 'a'") == (
        400, "BadRequest_NotFound", f"Could not find a property named '{name}' on type 'Microsoft.NAV.cloudMigrationStatus'.")


@pytest.mark.rule("F3")
@pytest.mark.parametrize("text", [
    "round(tablesFailed) eq 1", "now() gt startTime", "date(startTime) eq 2024-01-01", "tablesFailed add 1 eq 2", "tablesFailed mod 2 eq 0",
    "cloudMigrationStatusDetails/any(d:d/status eq 'Failed')", "cloudMigrationStatusDetails/$count gt 1", "-tablesFailed lt 0",
    "$it/runId eq 'a'", "runId eq @p", "status has 'x'", "substring(runId,-1) eq 'a'", "substring(runId,2147483647) eq 'a'",
    "substring(runId,length(runId)) eq ''", "cast(tablesFailed,Edm.String) eq '1'", "isof(Edm.String)"])
def test_what_is_not_supported_is_501_and_never_left_out(text):
    assert refusal(text)[:2] == (501, "BadRequest_MethodNotImplemented")


def test_a_navigation_itself_cannot_be_compared():
    assert refusal("cloudMigrationStatus eq null", RUN_TABLES)[0] == 501
    assert refusal("cloudMigrationStatus/x eq 1", RUN_TABLES)[:2] == (400, "BadRequest_NotFound")
    assert parse("cloudMigrationStatus/runId eq 'a'", RUN_TABLES) == Call("eq", (Attribute("run_id", ("run",)), Literal("a")))


@pytest.mark.rule("F7")
def test_nesting_is_bounded():
    deep = MAX_DEPTH - 1
    assert parse("(" * deep + "true" + ")" * deep) == Literal(True)
    for text in ("(" * 150 + "true" + ")" * 150, "not " * 150 + "true", "tolower(" * 150 + "runId" + ")" * 150 + " eq 'a'"):
        status, code, message = refusal(text)
        assert (status, code) == (400, "BadRequest_NotFound") and "nested more than 100 levels" in message


def test_a_condition_is_needed():
    assert refusal("runId")[:2] == (400, "BadRequest_NotFound")
    assert refusal("runId eq 'a' and tablesFailed")[0] == 400
    both = Call("and", (Attribute("replicate"), Call("not", (Attribute("created"),))))
    assert parse("replicate and not created", SOURCE_COMPANIES) == both


@pytest.mark.rule("F5")
def test_nothing_is_null():
    assert parse("details eq null") == eq("details", "")
    assert parse("null ne tablesFailed") == Literal(True)
    assert parse("tablesFailed lt null") == Literal(False)
    assert parse("status eq null") == Literal(False)
    assert parse("null eq null") == Literal(True)


@pytest.mark.rule("F4")
def test_stars_are_wildcards_in_equality_only():
    assert parse("runId eq 'a*b**'") == Call("like", (Attribute("run_id"), Literal(("a", "b", ""))))
    assert parse("runId ne '*'") == Call("unlike", (Attribute("run_id"), Literal(("", ""))))
    assert parse("runId in ('a*')") == Call("in", (Attribute("run_id"), Literal(("a*",))))
    assert parse("runId gt 'a*'") == Call("gt", (Attribute("run_id"), Literal("a*")))


def test_orders_are_properties_with_a_direction():
    assert parse_order("runId, endTime desc ,tablesFailed asc", RUNS, "1.0") == [
        Order(Attribute("run_id")), Order(Attribute("ended_at"), True), Order(Attribute("tables_failed"))]
    for text in ("", "runId,", "runId desc asc", "desc", "1", "runId;id"):
        with pytest.raises(ODataError):
            parse_order(text, RUNS, "1.0")
