"""Both sides opened at once: what fails on one leaves the other closed."""

import duckdb
import pytest

from skylift.connectors import opened, sqlite
from skylift.errors import SetupError
from tests.connectors.labs.duckdb import DuckDBLab
from tests.connectors.labs.sqlite import SqliteLab


def test_a_source_that_cannot_be_opened_leaves_the_target_free_for_others(tmp_path):
    target = DuckDBLab(tmp_path)

    with pytest.raises(SetupError, match="cannot be read"), opened(f"sqlite:///{tmp_path}/none.db", target.url):
        pass

    duckdb.connect(str(target.path)).close()              # DuckDB lets nobody in while somebody writes


def test_what_fails_between_leaves_both_closed(tmp_path):
    target = DuckDBLab(tmp_path)

    with pytest.raises(ValueError, match="between"), opened(SqliteLab(tmp_path).url, target.url):
        raise ValueError("between")

    duckdb.connect(str(target.path)).close()


def test_a_target_that_cannot_be_opened_leaves_the_source_closed(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(sqlite.SqliteSource, "close", lambda self: closed.append(self.name))

    with pytest.raises(SetupError, match="cannot be"), opened(SqliteLab(tmp_path).url, f"duckdb:///{tmp_path}") as (_, target):
        target()

    assert closed == ["source"]
