import pytest

from skylift.errors import SetupError
from skylift.model import TargetName
from skylift.products.naming import parse_source_table, refuse_collisions, same_name, split_name, sql_name, target_name

GUID = "437dbf0e-84ff-417a-965d-ed2bb9650972"


@pytest.mark.parametrize(("business", "sql"), [
    ("CRONUS International Ltd.", "CRONUS International Ltd_"),
    ("G/L Entry", "G_L Entry"),
    ("Cust. Ledger Entry", "Cust_ Ledger Entry"),
    ("07.GCT RUS [LOCAL]", "07_GCT RUS _LOCAL_"),
    ("a.b\"c\\d/e'f%g]h[i", "a_b_c_d_e_f_g_h_i"),
    ("Süd-株式会社 (Æ) & Co_", "Süd-株式会社 (Æ) & Co_"),
])
def test_sql_name_replaces_what_identifiers_cannot_take_one_for_one(business, sql):
    assert sql_name(business) == sql
    assert sql_name(sql) == sql


@pytest.mark.parametrize(("typed", "stored", "per_company"), [
    # behaviour.md §1, "Parsing a user-typed source table name"; None = unchanged
    ("Customer", "Customer", None),
    ("  dbo.Customer ", "Customer", None),
    ("[Customer]", "Customer", False),
    ("[dbo].[Customer]", "Customer", False),
    (f"[Customer${GUID}]", f"Customer${GUID}", False),
    (f"[dbo].[Customer${GUID}]", f"Customer${GUID}", False),
    (f"Customer${GUID}", f"Customer${GUID}", True),
    (f"dbo.[Customer${GUID}]", f"Customer${GUID}", True),
    ("CRONUS$Customer", "Customer", True),
    ("[CRONUS$Customer]", "Customer", True),
    (f"[dbo].[CRONUS International Ltd_$Customer${GUID}]", f"Customer${GUID}", True),
    ("CRONUS$Customer$x", "Customer", True),
    (f"Customer${GUID}$ext", f"Customer${GUID}$ext", True),
    (f"CRONUS$Customer${GUID}$ext", f"Customer${GUID}$ext", True),
    ("", "", None),
])
@pytest.mark.parametrize("before", [True, False])
def test_typed_source_table_is_understood_as_the_specification_lists(typed, stored, per_company, before):
    assert parse_source_table(typed, before) == (stored, before if per_company is None else per_company)


@pytest.mark.parametrize(("table", "company", "table_name", "base", "has_app"), [
    (f"CRONUS Ltd_$Customer${GUID}", "CRONUS Ltd_", f"Customer${GUID}", "Customer", True),
    (f"CRONUS Ltd.$Customer${GUID.upper()}", "CRONUS Ltd_", f"Customer${GUID.upper()}", "Customer", True),
    (f"cronus ltd_$Customer${GUID}$ext", "CRONUS Ltd_", f"Customer${GUID}$ext", "Customer", True),
    ("CRONUS Ltd_$Customer", "CRONUS Ltd_", "Customer", "Customer", False),
    (f"A$B$Customer${GUID}", "A$B", f"Customer${GUID}", "Customer", True),
    ("A$Customer", "A", "Customer", "Customer", False),
    (f"Upgrade Tags${GUID}", "", f"Upgrade Tags${GUID}", "Upgrade Tags", True),
    (f"Upgrade Tags${GUID}$ext", "", f"Upgrade Tags${GUID}$ext", "Upgrade Tags", True),
    ("Record Link", "", "Record Link", "Record Link", False),
])
def test_table_name_is_split_into_company_table_and_app(table, company, table_name, base, has_app):
    companies = {same_name(name): name for name in ("CRONUS Ltd_", "A", "A$B")}

    name = split_name(table, companies)

    assert (name.company, name.table_name, name.base, name.app_id is not None) == (company, table_name, base, has_app)


@pytest.mark.parametrize("table", [f"Closed$Customer${GUID}", "Closed$Customer", f"Closed$Customer${GUID}$ext"])
def test_table_of_an_unknown_company_is_not_taken_for_a_shared_one(table):
    assert split_name(table, {"cronus": "CRONUS"}) is None


def test_names_up_to_the_limit_stay_whole_and_longer_ones_end_in_a_digest():
    longest = "ü" * 31 + "x"                                                            # 63 bytes

    assert target_name("CRONUS", longest, 63) == TargetName("CRONUS", longest)
    cut = target_name("", longest + "y", 63).table
    assert len(cut.encode()) <= 63
    assert cut.startswith("ü" * 25 + "~")
    assert cut != target_name("", longest + "z", 63).table
    assert cut == target_name("", longest + "y", 63).table


@pytest.mark.parametrize(("first", "second"), [
    (TargetName("A", "Item"), TargetName("a", "ITEM")),
    (TargetName("", "Item"), TargetName("Main", "Item")),
    (TargetName("A", "Item"), TargetName("A", "Item")),
])
def test_two_sources_of_one_target_table_are_refused_by_name(first, second):
    with pytest.raises(SetupError, match="'one' and 'other' would both become") as refused:
        refuse_collisions([(first, "one"), (second, "other")])

    assert refused.value.code == "NameCollision"
    refuse_collisions([(first, "one"), (TargetName("B", "Item"), "other")])
