"""Tokens, and what is shown of webhooks."""

from datetime import UTC, datetime, timedelta

from skylift.migration import Migration
from skylift.model import NO_ID
from skylift.settings import load_settings
from skylift.store import open_store
from skylift.store.tables import deliveries, subscriptions


def test_a_token_can_end_by_itself_and_be_an_access_key(call):
    code, document, _ = call("token", "create", "ci", "--role", "reader", "--expires", "1.5", "--access-key", "--json")
    ends = datetime.fromisoformat(document["expires_at"]) - datetime.now(UTC)
    assert (code, len(document["token"])) == (0, 44) and timedelta(hours=35) < ends < timedelta(hours=37)
    _, out, _ = call("token", "create", "gone", "--role", "reader", "--expires", "0")
    assert "until " in out and len(out.splitlines()[-1]) > 44
    assert call("token", "revoke", "gone")[0] == 2       # it has ended already
    assert f"{datetime.fromisoformat(document['expires_at']):%Y-%m-%d %H:%M}" in call("token", "list")[1]


def test_token_is_alone_on_the_last_line_and_kept_by_name_only(call):
    code, out, _ = call("token", "create", "ci", "--role", "operator")
    secret = out.splitlines()[-1]
    assert (code, " " in secret, len(secret) >= 40) == (0, False, True)

    code, document, _ = call("token", "create", "boss", "--role", "administrator", "--json")
    assert (code, document["role"]) == (0, "administrator")
    _, listed, _ = call("token", "list")
    assert "ci" in listed and "operator" in listed and secret not in listed
    assert call("token", "revoke", "ci")[0] == 0
    _, tokens, _ = call("token", "list", "--json")
    assert {token["name"]: token["revoked_at"] is not None for token in tokens} == {"boss": False, "ci": True}


def test_subscriptions_and_calls_of_their_receivers_are_listed_without_secrets(call):
    home = load_settings()
    service = Migration(open_store(home.store), home, "tester")
    assert call("webhook", "list", "--json")[1] == call("webhook", "log", "--json")[1] == []
    now = datetime.now(UTC)
    with service.store.write() as connection:
        connection.execute(subscriptions.insert().values(
            id="s1", notification_url="https://hook.example/a?code=geheim", resource="api/v1.0/tableMappings", client_state="geheim",
            user_id=NO_ID, created_by=NO_ID, modified_by=NO_ID, created_at=now, modified_at=now, expires_at=now + timedelta(days=1)))
        for n in range(3):
            connection.execute(deliveries.insert().values(at=now, url="https://hook.example/a", subscriptions="s1", items=7, attempt=n + 1,
                                                          status=503, outcome="again"))
    service.store.close()
    for arguments in (["list"], ["list", "--json"], ["log"], ["log", "--json"]):
        code, out, _ = call("webhook", *arguments)
        assert code == 0 and "https://hook.example/a" in str(out) and "geheim" not in str(out)
    assert [row["attempt"] for row in call("webhook", "log", "--last", "2", "--json")[1]] == [3, 2]
