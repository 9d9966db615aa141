"""A source and a target of the engine's tests, both files."""

import pytest

from tests.connectors.labs import DuckDBLab, SqliteLab


@pytest.fixture
def source(tmp_path):
    return SqliteLab(tmp_path)


@pytest.fixture
def target(tmp_path):
    return DuckDBLab(tmp_path)
