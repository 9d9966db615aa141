"""Values that a target cannot hold: refused, or changed as accepted by name, and then counted."""

import pyarrow.compute as pc
import pytest

from skylift.connectors import open_source, open_target
from skylift.engine.pool import copy_tables
from skylift.engine.verify import compare_tables
from skylift.errors import SetupError, ValueRefused
from skylift.losses import Losses
from skylift.model import CopyTask, TargetName
from tests.connectors.labs import DuckDBLab, SqliteLab
from tests.connectors.test_conformance import insert, successful


class WithoutNul:
    """A target that cannot hold a NUL in text, as PostgreSQL cannot."""

    def __init__(self, target):
        self._target = target

    def __getattr__(self, name):
        return getattr(self._target, name)

    def fit(self, batch, table):
        found = pc.sum(pc.count_substring(batch.column("v"), "\0")).as_py() or 0
        if found and "nul" not in self.losses.accepted:
            raise ValueRefused(f"{table.path}.v: NUL in text")
        if found:
            self.losses.count("nul", table.path, "v", found)
            batch = batch.set_column(1, batch.schema.field(1), pc.replace_substring(batch.column("v"), "\0", ""))
        return batch


@pytest.fixture
def labs(tmp_path):
    source, target = SqliteLab(tmp_path), DuckDBLab(tmp_path)
    source.execute(source.ddl("t", {"id": "int", "v": "note"}, ("id",)), insert("t", [(1, "a\0b"), (2, "c"), (3, "\0\0")]))
    return source, target


def run(labs, copy_id, accepted):
    losses = Losses(accepted)
    reader, writer = open_source(labs[0].url, losses), WithoutNul(open_target(labs[1].url, losses))
    try:
        tasks = [CopyTask("", t.name, t, TargetName("", t.name)) for t in reader.tables()]
        last = {p.task.table.path: p for p in copy_tables(tasks, reader, writer, copy_id=copy_id, consumer="tests", workers=2)}
        return last, list(compare_tables(tasks, reader, writer, writer.states()))
    finally:
        writer.close()
        reader.close()


def test_what_is_not_accepted_is_refused(labs):
    results, _ = run(labs, "c1", "ticks")

    assert isinstance(results["t"].error, ValueRefused) and results["t"].losses == ""


def test_what_is_accepted_is_made_counted_and_verified(labs):
    results, differences = run(labs, "c1", "nul")
    assert successful(results) == {"t": "full"} and results["t"].losses == "v: 3 NUL characters removed from text"
    assert [difference.equal for difference in differences] == [True]
    assert labs[1].rows("t").total() == 3

    labs[0].execute(insert("t", [(4, "\0")]))
    results, differences = run(labs, "c2", "nul")
    assert results["t"].losses == "v: 1 NUL characters removed from text" and differences[0].equal


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(SetupError, match=r"no loss is called rounding .*nul \(NUL characters removed"):
        Losses("nul rounding")
