import pytest

from tests.connectors.labs import OTHER_FEEDS, OTHER_PLACES, SOURCES, TARGETS


@pytest.fixture(params=sorted(SOURCES | OTHER_FEEDS))
def source(request, tmp_path):
    return (SOURCES | OTHER_FEEDS)[request.param](tmp_path)


@pytest.fixture(params=sorted(TARGETS | OTHER_PLACES))
def target(request, tmp_path):
    return (TARGETS | OTHER_PLACES)[request.param](tmp_path)


def pytest_collection_modifyitems(items):
    """One source is enough for the other places of a target."""
    items[:] = [item for item in items if not _repeats(getattr(item, "callspec", None))]


def _repeats(call):
    return call is not None and call.params.get("target") in OTHER_PLACES and call.params.get("source", "sqlite") != "sqlite"
