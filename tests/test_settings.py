import pytest

from skylift.errors import SetupError
from skylift.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in Settings().environment():
        monkeypatch.delenv(name, raising=False)


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path, monkeypatch):
    (tmp_path / "settings.toml").write_text('port = 1\nworkers = 3\ncompany = "File"\n')
    monkeypatch.setenv("SKYLIFT_PORT", "2")
    monkeypatch.setenv("SKYLIFT_WORKERS", "4")

    settings = load_settings({"home": tmp_path, "port": 5, "host": None})

    assert (settings.port, settings.workers, settings.company, settings.host) == (5, 4, "File", "127.0.0.1")


def test_store_and_target_lie_in_the_home_folder_wherever_it_is_called_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKYLIFT_HOME", "elsewhere")

    settings = load_settings()

    assert settings.home == tmp_path / "elsewhere"
    assert (settings.store, settings.target) == (
        f"sqlite:///{tmp_path}/elsewhere/store.sqlite", f"duckdb:///{tmp_path}/elsewhere/target.duckdb")


def test_the_environment_of_a_child_gives_it_the_same_settings(tmp_path, monkeypatch):
    settings = load_settings({"home": tmp_path, "port": 0, "lease_s": 0.5, "target": "duckdb:///x.duckdb"})

    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)

    assert load_settings() == settings


def test_passwords_are_not_shown():
    assert "geheim" not in repr(Settings(store="postgresql://me:geheim@host/db", target="postgresql://me:geheim@host/db"))


@pytest.mark.parametrize("flags, message", [
    ({"port": "many"}, "--port is 'many'; a whole number is needed"),
    ({"port": 70000}, "--port is 70000; the greatest possible is 65535"),
    ({"port": -1}, "--port is -1; the least possible is 0"),
    ({"page_size": 0}, "--page-size is 0; the least possible is 1"),
    ({"lease_s": "nan"}, "--lease-s is nan; the least possible is 0.1"),
    ({"schema_version": "3.0"}, "--schema-version is '3.0'; possible are 1.0, 2.0, 2.1"),
    ({"company": ""}, "--company has 0 characters; 1 to 30 are possible"),
    ({"company": "x" * 31}, "--company has 31 characters"),
])
def test_a_value_that_cannot_be_used_is_told_with_its_place(tmp_path, flags, message):
    with pytest.raises(SetupError) as raised:
        load_settings({"home": tmp_path, **flags})

    assert raised.value.message.startswith(message)


@pytest.mark.parametrize("text, message", [
    ("port = 'x'", "settings.toml: port is 'x'; a whole number is needed"),
    ("port = true", "settings.toml: port is True; a whole number is needed"),
    ("company = 7", "settings.toml: company is 7; text is needed"),
    ("colour = 1", "settings.toml: no setting is called colour"),
    ("home = '/'", "settings.toml: no setting is called home"),
    ("port = ", "settings.toml cannot be read"),
])
def test_a_file_that_cannot_be_used_is_told(tmp_path, text, message):
    (tmp_path / "settings.toml").write_text(text)

    with pytest.raises(SetupError) as raised:
        load_settings({"home": tmp_path})

    assert message in raised.value.message


def test_a_bad_environment_variable_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SKYLIFT_WORKERS", "0")

    with pytest.raises(SetupError, match="environment variable SKYLIFT_WORKERS is 0; the least possible is 1"):
        load_settings({"home": tmp_path})
