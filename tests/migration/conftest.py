import shutil
from types import SimpleNamespace

import pytest

from skylift.migration import Migration
from skylift.sample import create_sample
from skylift.settings import Settings
from skylift.store import open_store
from tests.connectors.labs import DuckDBLab, SqliteLab
from tests.migration.lab import Lab


@pytest.fixture(scope="session")
def sample_file(tmp_path_factory):
    """A Business Central database of an earlier version with two companies, made once; tests get a copy."""
    path = tmp_path_factory.mktemp("sample") / "bc.db"
    create_sample(path, companies=2, rows=300, tables=12)
    return path


@pytest.fixture
def lab(tmp_path, sample_file):
    shutil.copy(sample_file, tmp_path / "bc.db")
    settings = Settings(home=tmp_path / "home", poll_s=0.02)
    store = open_store(settings.store)
    yield Lab(Migration(store, settings, "tester"), tmp_path / "bc.db")
    store.close()


@pytest.fixture
def ready(lab):
    """Set up, every company marked and created."""
    lab.prepare()
    return lab


@pytest.fixture
def files(tmp_path):
    """A SQLite source, a DuckDB target that is not there yet, and a migration that knows of neither."""
    (tmp_path / "data").mkdir()
    settings = Settings(home=tmp_path / "home")
    store = open_store(settings.store)
    source, target = SqliteLab(tmp_path / "data"), DuckDBLab(tmp_path / "data")
    yield SimpleNamespace(folder=tmp_path / "data", source=source, target=target, migration=Migration(store, settings, "tester"))
    store.close()
