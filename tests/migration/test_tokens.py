from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from skylift.errors import NotFound, SetupError


def test_a_token_is_shown_once_and_only_its_hash_is_kept(lab):
    secret = lab.migration.create_token("ci", "operator")

    token = lab.migration.authenticate(secret)
    assert (token.name, token.role, token.revoked_at) == ("ci", "operator", None)
    assert len(secret) > 43
    path = Path(lab.migration.settings.store.removeprefix("sqlite:///"))
    assert all(secret.encode() not in file.read_bytes() for file in (path, Path(f"{path}-wal")) if file.exists())
    assert secret not in repr(lab.events)


@pytest.mark.parametrize("wrong", ["", "skylift_", "x" * 50, "\ud800", "skylift_\0"])
def test_a_wrong_secret_is_nobody(lab, wrong):
    secret = lab.migration.create_token("ci", "reader")

    assert lab.migration.authenticate(wrong) is None
    assert lab.migration.authenticate(secret + "x") is None


def test_a_revoked_or_expired_token_is_nobody_and_its_name_is_free(lab):
    now = datetime.now(UTC)
    expired = lab.migration.create_token("ci", "reader", now - timedelta(seconds=1))
    valid = lab.migration.create_token("ci", "administrator", now + timedelta(hours=1))
    assert lab.migration.authenticate(expired) is None
    assert lab.migration.authenticate(valid).role == "administrator"

    lab.migration.revoke_token("ci")

    assert lab.migration.authenticate(valid) is None
    assert lab.migration.authenticate(lab.migration.create_token("ci", "reader")).role == "reader"


def test_what_is_wrong_with_a_token_is_told(lab):
    lab.migration.create_token("ci", "reader")
    with pytest.raises(SetupError, match="there is a token 'ci' already"):
        lab.migration.create_token("ci", "reader")
    with pytest.raises(SetupError, match="there is no role 'root'") as raised:
        lab.migration.create_token("x", "root")
    assert raised.value.hint == "choose one of reader, operator, administrator"
    with pytest.raises(SetupError, match="a token needs a name"):
        lab.migration.create_token(" ", "reader")
    with pytest.raises(NotFound, match="there is no valid token 'other'"):
        lab.migration.revoke_token("other")
