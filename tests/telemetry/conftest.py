import json
import shutil
from contextlib import contextmanager
from uuid import UUID

import pytest

from skylift.migration import Migration
from skylift.settings import Settings
from skylift.store import open_store
from skylift.telemetry import telemetry_of
from tests.migration.conftest import sample_file  # noqa: F401 (a fixture)
from tests.migration.lab import Lab


class Watched(Lab):
    """A migration whose telemetry is kept; `said()` ends it."""

    def __init__(self, *args):
        super().__init__(*args)
        self.log = self.migration.settings.home / "events.jsonl"

    def said(self):
        """Every line of the log."""
        self.migration.telemetry.close()
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def ids(self):
        return [line["eventId"] for line in self.said()]


@contextmanager
def watched(tmp_path, source, **settings):
    tmp_path.mkdir(exist_ok=True)
    shutil.copy(source, tmp_path / "bc.db")
    settings = Settings(home=tmp_path / "home", poll_s=0.02, **{"telemetry_log": "events.jsonl", **settings})
    store = open_store(settings.store)
    try:
        yield Watched(Migration(store, settings, "tester"), tmp_path / "bc.db")
    finally:
        telemetry_of(settings).close()
        store.close()


@pytest.fixture
def lab(tmp_path, sample_file):  # noqa: F811
    with watched(tmp_path, sample_file) as lab:
        yield lab


@pytest.fixture
def ready(lab):
    lab.prepare()
    return lab


def as_api(lab):
    """The verbs as the API calls them: for somebody with an id."""
    return lab.migration.as_actor("robot", UUID(int=7))
