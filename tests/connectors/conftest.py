import pytest

from tests.connectors.labs import SOURCES, TARGETS


@pytest.fixture(params=sorted(SOURCES))
def source(request, tmp_path):
    return SOURCES[request.param](tmp_path)


@pytest.fixture(params=sorted(TARGETS))
def target(request, tmp_path):
    return TARGETS[request.param](tmp_path)
