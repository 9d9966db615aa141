import pyarrow as pa
import pytest

from skylift.engine.plan import of_companies, plan
from skylift.errors import SetupError
from skylift.model import Table, TableMapping, TargetName
from skylift.products import Catalogue, FoundCompany, FoundTable

SCHEMA = pa.schema([("a", pa.int64())])


def catalogue(*tables):
    """Tables given as 'Company$Name' or 'Name'."""
    companies = sorted({name.split("$")[0] for name in tables if "$" in name})
    return Catalogue([FoundCompany(name, name, 0) for name in companies],
                     [FoundTable(*name.split("$") if "$" in name else ("", name), Table(name, SCHEMA)) for name in tables], [], "")


def nothing_else():
    raise AssertionError("the source was asked although every mapping is answered by the catalogue")


def targets(planned):
    return {task.table.name: str(task.target) for task in planned.tasks}


def test_a_company_is_a_schema_and_shared_tables_are_in_the_default_one():
    planned = plan(catalogue("A$Item", "B$Item", "Shared"), [], nothing_else, 10_000)

    assert targets(planned) == {"A$Item": "A.Item", "B$Item": "B.Item", "Shared": "Shared"}
    assert [task.company for task in of_companies(planned, ["B"]).tasks] == ["B", ""]


def test_a_mapped_table_goes_elsewhere_in_each_company_and_nowhere_else():
    mapping = TableMapping(id=1, table_name="Article/New", source_table_name="item")

    planned = plan(catalogue("A$Item", "B$Item", "Item"), [mapping], nothing_else, 10_000)

    assert targets(planned) == {"A$Item": "A.Article_New", "B$Item": "B.Article_New", "Item": "Item"}


def test_a_mapping_asks_the_source_for_a_table_that_is_not_in_the_catalogue():
    mapping = TableMapping(id=1, table_name="Kept", source_table_name="Old")
    source = [Table(name, SCHEMA) for name in ("A$Item", "A$Old", "Old", "Gone Company$Old")]

    planned = plan(catalogue("A$Item", "B$Item"), [mapping], lambda: source, 10_000)

    assert targets(planned) == {"A$Item": "A.Item", "B$Item": "B.Item", "A$Old": "A.Kept"}
    assert [(item.company, item.table_name, item.code) for item in planned.left_out] == [("B", "Kept", "50004")]


def test_names_that_are_cut_stay_apart_and_names_that_collide_are_told():
    long = "x" * 80
    planned = plan(catalogue(f"A${long}1", f"A${long}2"), [], nothing_else, 63)
    names = {task.target for task in planned.tasks}
    assert len(names) == 2 and all(isinstance(name, TargetName) and len(name.table) == 63 for name in names)

    with pytest.raises(SetupError, match=r"'A\$Item' and 'A\$Old' would both become 'A.item' in the target"):
        plan(catalogue("A$Item", "A$Old"), [TableMapping(id=1, table_name="item", source_table_name="Old")], nothing_else, 63)
