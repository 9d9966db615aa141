from concurrent.futures import ThreadPoolExecutor

import pytest

from skylift.errors import SetupError
from skylift.store.secrets import SecretBox


def test_what_was_sealed_opens_again_and_cannot_be_read(tmp_path):
    sealed = SecretBox(tmp_path).seal("postgresql://sa:geheim@host/db")

    assert "geheim" not in sealed
    assert SecretBox(tmp_path).open(sealed) == "postgresql://sa:geheim@host/db"
    assert SecretBox(tmp_path).seal("") == SecretBox(tmp_path).open("") == ""


def test_only_its_owner_may_read_the_key(tmp_path):
    SecretBox(tmp_path / "home").seal("x")

    assert (tmp_path / "home" / "key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["key"]


@pytest.mark.parametrize("key", [b"", b"not a key", b"A" * 43 + b"="])
def test_another_key_is_told(tmp_path, key):
    sealed = SecretBox(tmp_path).seal("x")
    (tmp_path / "key").write_bytes(key)

    with pytest.raises(SetupError, match="is not the key that the store's secrets were encrypted with"):
        SecretBox(tmp_path).open(sealed)


def test_those_that_make_the_key_at_once_use_the_same(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        sealed = list(pool.map(lambda _: SecretBox(tmp_path).seal("x"), range(8)))

    assert [SecretBox(tmp_path).open(text) for text in sealed] == ["x"] * 8
