"""Pages of a collection and the links between them."""

from urllib.parse import urlsplit

import pytest

from skylift.runs import ReplicationType, RunStatus
from skylift.settings import Settings
from skylift.store.tables import runs
from tests.api.conftest import START, fill, number, open_client

RUNS = "cloudMigrationStatus"
TABLES = "cloudMigrationStatusDetails"
COMPANIES = "cloudMigrationCompanies"


def ids(client, path):
    return [row["runId"] for row in client.rows(path)]


def follow(client, path, **headers):
    """All pages of a collection."""
    pages = [client.get(path, **headers).json()]
    while "@odata.nextLink" in pages[-1]:
        link = urlsplit(pages[-1]["@odata.nextLink"])
        pages.append(client.http.get(f"{link.path}?{link.query}", headers={"Authorization": f"Bearer {client.token}"}).json())
    return pages


@pytest.mark.rule("G2", "Q2")
def test_pages_follow_one_another_without_gap_or_overlap(full):
    for order in ("", "&$orderby=status", "&$orderby=endTime desc", "&$orderby=tablesFailed,details desc", "&$orderby=id"):
        whole = ids(full, f"{RUNS}?{order}")
        pages = follow(full, f"{RUNS}?$count=true{order}", Prefer="odata.maxpagesize=5")
        assert [len(page["value"]) for page in pages] == [5, 5, 2]
        assert [row["runId"] for page in pages for row in page["value"]] == whole
        assert {page["@odata.count"] for page in pages} == {12}
    for order in ("replicate desc", "estimatedSize", "companyInitializationStatus desc,name"):
        pages = follow(full, f"{COMPANIES}?$orderby={order}", Prefer="maxpagesize=1")
        assert [page["value"][0] for page in pages] == full.rows(f"{COMPANIES}?$orderby={order}")


@pytest.mark.rule("G2")
def test_top_caps_the_total_over_all_pages_and_skip_counts_once(full):
    pages = follow(full, f"{RUNS}?$top=7&$skip=2", Prefer="odata.maxpagesize=3")
    assert [[row["runId"][-2:] for row in page["value"]] for page in pages] == [["09", "08", "07"], ["06", "05", "04"], ["03"]]
    assert "@odata.nextLink" not in full.get(f"{RUNS}?$top=5", Prefer="odata.maxpagesize=5").json()


@pytest.mark.rule("G1")
def test_a_page_has_twenty_thousand_rows_unless_a_setting_says_otherwise(full):
    assert Settings().page_size == 20_000
    assert full.http.service.settings.page_size == 100


@pytest.mark.rule("G2")
def test_rows_that_come_between_two_pages_neither_shift_nor_repeat_others(tmp_path):
    client = open_client(tmp_path)
    with client.http.service.store.write() as connection:
        fill(connection)
    pages = [client.get(f"{RUNS}?$orderby=runId", Prefer="odata.maxpagesize=5").json()]
    with client.http.service.store.write() as connection:
        for n, run_id in enumerate(("a", "run-03x", "run-07x")):
            connection.execute(runs.insert().values(
                id=number(500 + n), run_id=run_id, started_at=START, replication_type=ReplicationType.NORMAL, status=RunStatus.FAILED,
                source="", details=""))
    while "@odata.nextLink" in pages[-1]:
        pages.append(client.get(pages[-1]["@odata.nextLink"].partition("/api/v1.0/")[2]).json())
    seen = [row["runId"] for page in pages for row in page["value"]]
    assert seen == [*(f"run-{n:02}" for n in range(8)), "run-07x", *(f"run-{n:02}" for n in range(8, 12))]


@pytest.mark.rule("G1")
def test_a_preferred_page_size_is_confirmed_if_it_makes_sense(full):
    assert full.get(RUNS, Prefer="odata.maxpagesize=5").headers["preference-applied"] == "odata.maxpagesize=5"
    assert full.get(RUNS, Prefer="odata.maxpagesize=5000").headers["preference-applied"] == "odata.maxpagesize=100"
    for text in ("odata.maxpagesize=0", "maxpagesize=-1", "maxpagesize=x", "maxpagesize"):
        answer = full.get(RUNS, Prefer=text)
        assert "preference-applied" not in answer.headers and len(answer.json()["value"]) == 12


@pytest.mark.rule("G2")
def test_a_skiptoken_holds_for_its_request_only(full):
    link = full.get(f"{RUNS}?$filter=tablesFailed eq 0", Prefer="odata.maxpagesize=5").json()["@odata.nextLink"]
    assert link.startswith(f"http://testserver/api/v1.0/companies({number(900)})/{RUNS}?")
    token = link.partition("$skiptoken=")[2]
    assert "run-" not in token
    for changed in (token[:-6] + "AAAAAA", "x", "", token[:30]):
        assert full.error(f"{RUNS}?$filter=tablesFailed eq 0&$skiptoken={changed}")[:2] == (400, "BadRequest")
    assert full.error(f"{RUNS}?$skiptoken={token}")[:2] == (400, "BadRequest")
    assert full.error(f"{TABLES}?$filter=tablesFailed eq 0&$skiptoken={token}")[0] == 400
    assert full.get(f"{RUNS}?$filter=tablesFailed%20eq%200&$skiptoken={token}").status_code == 200


@pytest.mark.rule("G1", "P2")
def test_long_expansions_end_in_a_link_of_their_own(tmp_path):
    client = open_client(tmp_path, page_size=4)
    with client.http.service.store.write() as connection:
        fill(connection)
    newest, before, *_ = client.rows(f"{RUNS}?$expand={TABLES}($select=tableName)")
    assert len(newest[TABLES]) == 2 and len(before[TABLES]) == 2                    # four rows for all expansions together
    assert f"{TABLES}@odata.nextLink" not in newest
    link = urlsplit(before[f"{TABLES}@odata.nextLink"])
    rest = client.http.get(f"{link.path}?{link.query}", headers={"Authorization": f"Bearer {client.token}"}).json()
    assert [row["tableName"] for row in rest["value"]] == [f"Table {n}$app" for n in (2, 3, 4)]
    rows = client.rows(f"{TABLES}?$top=3&$expand={RUNS}($expand={TABLES})")
    link = urlsplit(rows[2][RUNS][f"{TABLES}@odata.nextLink"])
    assert client.http.get(f"{link.path}?{link.query}", headers={"Authorization": f"Bearer {client.token}"}).status_code == 200
