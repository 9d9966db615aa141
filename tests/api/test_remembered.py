"""Answers that are given again: never an old one, never somebody else's, and they count like any other."""

import asyncio
import subprocess
import sys

import pytest

from skylift.api import remembered, routes
from skylift.api.answer import Answer
from skylift.api.remembered import Remembered
from skylift.store.tables import migration, source_companies
from tests.api.conftest import number, open_client

STATUS = "companies(name='CRONUS')/cloudMigrationStatus?$orderby=startTime desc&$top=1"
COMPANIES = "companies(name='CRONUS')/cloudMigrationCompanies"
MAPPINGS = "companies(name='CRONUS')/tableMappings"


@pytest.fixture
def served(monkeypatch):
    """The requests that were worked out."""
    honest, calls = routes.serve, []
    monkeypatch.setattr(routes, "serve", lambda *arguments: calls.append(arguments[2]) or honest(*arguments))
    return calls


def test_the_same_question_is_worked_out_once_until_something_changes(client, served):
    with client.http.service.store.write() as connection:
        connection.execute(source_companies.insert(), {"id": number(7), "name": "A", "display_name": "A"})
        connection.execute(migration.update().values(state="Ready"))
    first, again = client.get(COMPANIES), client.get(COMPANIES)
    assert again.content == first.content and again.headers["request-id"] != first.headers["request-id"]
    assert served == ["GET"] and first.json()["value"][0]["replicate"] is False

    changed = client.ask("PATCH", f"{COMPANIES}({number(7)})", {"replicate": True}, If_Match="*")

    assert changed.status_code == 200
    assert client.rows(COMPANIES)[0]["replicate"] is True


def test_what_another_process_has_written_is_seen_at_once(client, tmp_path, served):
    assert client.get(STATUS).json()["value"] == []
    code = ("import sys\nfrom skylift.settings import Settings\nfrom skylift.store import open_store\n"
            "from skylift.store.tables import runs\n"
            "import uuid, datetime\n"
            "with open_store(Settings(home=sys.argv[1]).store).write() as c: c.execute(runs.insert(), {'id': uuid.uuid4(), 'run_id': 'r', "
            "'started_at': datetime.datetime.now(datetime.UTC), 'ended_at': None, 'replication_type': 'Normal', 'status': 'InProgress',"
            "'source': 's', 'details': ''})")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "home")], check=True)

    assert [row["runId"] for row in client.rows(STATUS)] == ["r"]


def test_another_caller_another_header_and_another_root_get_their_own(client, served):
    reader = client.as_role("reader")
    assert client.get(STATUS).status_code == reader.get(STATUS).status_code == 200
    full = client.get(STATUS, Accept="application/json;odata.metadata=full")
    assert "odata.metadata=full" in full.headers["Content-Type"] and "odata.metadata=minimal" in client.get(STATUS).headers["Content-Type"]

    client.http.service.revoke_token("other")

    assert reader.error(STATUS)[0] == 401


def test_a_remembered_answer_counts_as_a_request(tmp_path, served):
    client = open_client(tmp_path / "home", api_requests=3)
    codes = [client.get(STATUS).status_code for _ in range(5)]
    client.http.service.store.close()

    assert codes == [200, 200, 200, 429, 429] and len(served) == 1


def test_refusals_and_writes_are_worked_out_every_time(client, served):
    for _ in range(2):
        assert client.error(f"{MAPPINGS}?$top=x")[0] == 400
        assert client.ask("PATCH", f"{MAPPINGS}({'0' * 8}-0000-0000-0000-{'0' * 12})", {}, If_Match="*").status_code == 404

    assert served == ["GET", "PATCH"] * 2


class Store:
    version = 1


def run(story, clock=lambda: 0.0):
    async def told():
        await story(Remembered(lambda: Store.version, lambda user: None, clock))

    asyncio.run(told())


def scope(path="/x", headers=()):
    return {"type": "http", "method": "GET", "path": path, "query_string": b"", "scheme": "http", "headers": list(headers)}


def test_who_asks_the_same_at_the_same_moment_waits_for_one_answer():
    async def story(memory):
        made, begun = [], asyncio.Event()

        async def work_out():
            made.append(len(made))
            await begun.wait()
            return Answer(200, b"x"), "user"

        asked = [asyncio.ensure_future(memory.answer(scope(), work_out)) for _ in range(10)]
        await asyncio.sleep(0)
        Store.version += 1                                 # who asks after the change does not join those from before it
        late = asyncio.ensure_future(memory.answer(scope(), work_out))
        await asyncio.sleep(0)
        begun.set()
        assert [answer.body for answer in await asyncio.gather(*asked, late)] == [b"x"] * 11
        assert len(made) == 2

    run(story)


def test_an_error_is_nobody_elses_and_a_cancelled_request_leaves_the_others_to_themselves():
    async def story(memory):
        async def fail():
            await asyncio.sleep(0)
            raise ValueError("torn")

        async def succeed():
            return Answer(200, b"fine"), "user"

        first = asyncio.ensure_future(memory.answer(scope(), fail))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(memory.answer(scope(), succeed))
        with pytest.raises(ValueError, match="torn"):
            await first
        assert (await second).body == b"fine"

        hanging = asyncio.ensure_future(memory.answer(scope("/y"), lambda: asyncio.sleep(60)))
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(memory.answer(scope("/y"), succeed))
        await asyncio.sleep(0)
        hanging.cancel()
        assert (await waiting).body == b"fine"

    run(story)


def test_memory_is_bounded_and_age_is_too(monkeypatch):
    monkeypatch.setattr(remembered, "KEPT_BYTES", 10_000)
    now = [0.0]

    async def story(memory):
        made = []

        async def work_out():
            made.append(1)
            return Answer(200, b"x" * 1_000), "user"

        for n in range(100):
            await memory.answer(scope(f"/{n}"), work_out)
        assert memory._bytes <= 10_000 and len(memory._given) == 4
        await memory.answer(scope("/99"), work_out)
        assert len(made) == 100
        now[0] += remembered.AGE_S
        await memory.answer(scope("/99"), work_out)
        assert len(made) == 101

    run(story, lambda: now[0])
