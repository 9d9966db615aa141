import pytest

from tests.connectors.labs import OTHER_FEEDS, SOURCES, TARGETS


@pytest.fixture(params=sorted(SOURCES | OTHER_FEEDS))
def source(request, tmp_path):
    return (SOURCES | OTHER_FEEDS)[request.param](tmp_path)


@pytest.fixture(params=sorted(TARGETS))
def target(request, tmp_path):
    return TARGETS[request.param](tmp_path)
