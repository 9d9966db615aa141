"""skylift validate."""

import re

import duckdb

from skylift.sample import BASE
from tests.cli.conftest import COMPANY, EXAMPLES


def test_validate_shows_what_it_has_found_and_what_it_has_not_compared(call, ready, tmp_path, monkeypatch):
    assert call("validate")[0] == 3
    assert call("run")[0] == 0
    code, out, progress = call("validate")
    assert (code, "0 errors, 0 warnings" in out, "not compared" in out) == (0, True, True)
    assert re.search(r"validating: [\d,]+ of 180 checks", progress)

    with duckdb.connect(str(tmp_path / "home" / "target.duckdb")) as database:
        database.execute(f'delete from "{COMPANY}"."Customer${BASE}" where "No_" = (select min("No_") from "{COMPANY}"."Customer${BASE}")')
    code, document, _ = call("validate", "--suite", "keys", "--force", "--json")
    assert (code, document["errors"], document["suites"]) == (1, 1, {"keys": {"errors": 1, "warnings": 0}})
    assert [(r["company_name"], r["test"], r["expected"], r["actual"]) for r in document["results"]] == [
        (COMPANY, "missing", "exists", "does not exist")]
    assert call("validate", "--ignore", "keys/missing")[:2] == (0, "keys/missing is ignored, and what it had found is forgotten\n")
    assert re.search(r"keys +missing +each table +0 +yes", call("validate", "--list")[1])
    assert call("validate", "--heed", "Keys.Missing")[:2] == (0, "keys/missing is heeded again\n")       # as the API names it
    assert call("validate", "--ignore", "keys.missing", "--json")[1]["tests"][0]["ignored"]
    assert call("validate", "--suite", "KEYS", "--force")[0] == 0
    assert call("validate", "--ignore", "keys/nope")[0] == 2
    assert call("validate", "--suite", "nope", "--json")[1]["error"]["code"] == "SuiteNotFound"


def test_the_sample_suite_goes_through_every_company(call, ready, tmp_path, monkeypatch):
    monkeypatch.setenv("SKYLIFT_VALIDATION_SUITES", str(EXAMPLES / "credit-checks"))
    assert call("run")[0] == 0
    code, document, _ = call("validate", "--suite", "credit-checks", "--json")
    assert (code, document["checks"], document["errors"]) == (0, 3, 0)
    assert {(r["test"], r["is_warning"], r["expected"]) for r in document["results"]} <= {("negative-limits", True, "***")}

    with duckdb.connect(str(tmp_path / "home" / "target.duckdb")) as database:
        database.execute(f'update "{COMPANY}"."Customer${BASE}" set "Blocked" = 9')
    code, document, _ = call("validate", "--suite", "credit-checks", "--json")
    errors = {(r["company_name"], r["table_name"]) for r in document["results"] if not r["is_warning"]}
    assert (code, errors) == (1, {(COMPANY, "Customer")})
