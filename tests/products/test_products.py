import sqlite3
from contextlib import closing

import pytest

from skylift.connectors import open_source
from skylift.errors import SetupError
from skylift.products import measured
from skylift.products.registry import PRODUCTS, find_product
from skylift.sample import BASE, RENTAL, create_sample


@pytest.fixture
def sample(tmp_path):
    create_sample(tmp_path / "bc.db", companies=3, rows=100, tables=12)
    return tmp_path / "bc.db"


def change(path, *statements):
    with closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)


def discover(path, product="DynamicsBCLast"):
    source = open_source(f"sqlite:///{path}")
    try:
        return find_product(product).discover(source)
    finally:
        source.close()


def test_companies_are_found_under_their_sql_name_with_their_display_name(sample):
    change(sample, "update Company set \"Display Name\" = '' where Name like 'CRONUS%'")

    found = discover(sample)

    assert [(company.name, company.display_name) for company in found.companies] == [
        ("CRONUS International Ltd_", "CRONUS International Ltd."),
        ("Contoso A_S _Nordic_", "Contoso A/S [Nordic] (display)"),
        ("Fabrikam 100_ _Süd_", 'Fabrikam 100% "Süd" (display)')]
    assert found.version == "25.5.30849.0"
    assert ("Rental", "Contoso", "25.5.30849.0") in [(app.name, app.publisher, app.version) for app in found.apps]


def test_every_table_of_a_company_is_found_and_told_apart(sample):
    tables = [table for table in discover(sample).tables if table.company == "Contoso A_S _Nordic_"]

    assert {table.table_name for table in tables} == {
        *(f"{name}${BASE}" for name in (
            "G_L Entry", "Customer", "Reversal Entry", "Analysis _Wide_ _200_", "Sales Line", "Cust_ Ledger Entry",
            "Incoming Document Attachment", "Vendor")),
        f"Customer${BASE}$ext", f"Import Buffer${RENTAL}", f'Spend 50% [Old] "A/B"${RENTAL}', "Legacy Note"}
    assert all(table.table.name == f"Contoso A_S _Nordic_${table.table_name}" for table in tables)
    assert {str(table.app_id) for table in tables} == {BASE, RENTAL, "None"}


def test_platform_user_uninstalled_and_leftover_tables_take_no_part(sample):
    shared = [table.table_name for table in discover(sample).tables if not table.company]

    assert sorted(name.split("$")[0] for name in shared) == [
        "Country_Region Template", "Feature Key", "Record Link", "Rental Fleet", "Tenant Media", "Upgrade Tags"]


def test_company_whose_name_the_source_spelt_with_its_brackets_is_still_found(sample):
    change(sample, f'alter table "Contoso A_S _Nordic_$Customer${BASE}" rename to "Contoso A/S [Nordic]$Customer${BASE}"')

    [customer] = [table for table in discover(sample).tables
                  if table.company == "Contoso A_S _Nordic_" and table.table_name == f"Customer${BASE}"]

    assert customer.table.name == f"Contoso A/S [Nordic]$Customer${BASE}"


@pytest.mark.parametrize(("statement", "code", "message"), [
    ("insert into Company select 0, 'Contoso A.S [Nordic]', 0, '', 'x', ''", "NameCollision",
     "'Contoso A.S [Nordic]' and 'Contoso A/S [Nordic]' have the same SQL name 'Contoso A_S _Nordic_'"),
    ("update Company set Name = 'Line' || char(10) || 'feed' where Name like 'CRONUS%'", "50021", r"'Line\nfeed'"),
    ("update Company set Name = 'x' || hex(zeroblob(25)) where Name like 'CRONUS%'", "CompanyName", "has 51 characters"),
    ("delete from Company", "50003", "the source has no company"),
    ("drop table Company", "NotBusinessCentral", "'bc' is not a Business Central database: it has no table 'Company'"),
    ("update \"NAV App Installed App\" set \"App ID\" = 'x' where Name = 'Rental'", "NotBusinessCentral",
     "app 'Rental' has the id 'x', which is not a GUID"),
    ('update "$ndo$tenantproperty" set applicationversion = \'\'', "50018", "does not say which version it is"),
    ('update "$ndo$tenantproperty" set applicationversion = \'14.9\'', "50017", "the oldest that can be migrated is 15"),
    ('update "$ndo$tenantproperty" set applicationversion = \'29.1\'', "50018", "choose product DynamicsBC)"),
    ('update "$ndo$tenantproperty" set applicationversion = \'30.0\'', "50018", "product DynamicsBCLast takes version 15 to 28"),
    (f'create table "CRONUS International Ltd.$CUSTOMER${BASE}" (x)', "NameCollision", "would both become"),
])
def test_what_cannot_be_migrated_is_refused_with_its_reason(sample, statement, code, message):
    change(sample, statement)

    with pytest.raises(SetupError) as refused:
        discover(sample)

    assert message in str(refused.value)
    assert refused.value.code == code
    assert refused.value.hint


def test_current_version_is_for_dynamics_bc_which_has_no_upgrade(tmp_path):
    create_sample(tmp_path / "now.db", companies=1, rows=20, tables=1, version="29.0.1.0")
    create_sample(tmp_path / "old.db", companies=1, rows=20, tables=1)

    assert discover(tmp_path / "now.db", "DynamicsBC").version == "29.0.1.0"
    with pytest.raises(SetupError, match="choose product DynamicsBCLast"):
        discover(tmp_path / "old.db", "DynamicsBC")
    assert {name: product.upgrades for name, product in PRODUCTS.items()} == {
        "DynamicsBC": False, "DynamicsBCLast": True, "DynamicsGP": True, "DynamicsSL": True, "Custom": False}
    assert [name for name, product in PRODUCTS.items() if product.optional_upgrade] == ["Custom"]


def test_custom_takes_the_whole_database_as_one_company(tmp_path):
    change(tmp_path / "My.Shop.db", "create table Album (AlbumId integer primary key)", "create table [Play$list] (x text)")

    found = discover(tmp_path / "My.Shop.db", "Custom")

    assert [(company.name, company.display_name) for company in found.companies] == [("My_Shop", "My.Shop")]
    assert [(table.company, table.table_name) for table in found.tables] == [("My_Shop", "Album"), ("My_Shop", "Play$list")]


@pytest.mark.parametrize(("name", "message"), [("empty.db", "'empty' has no table"), ("x" * 51 + ".db", "over 50 characters")])
def test_custom_database_that_cannot_become_a_company_is_refused(tmp_path, name, message):
    change(tmp_path / name, "pragma user_version = 1", *["create table a (b)"] * (name[0] == "x"))

    with pytest.raises(SetupError, match=message):
        discover(tmp_path / name, "Custom")


@pytest.mark.parametrize("product", ["DynamicsGP", "DynamicsSL"])
def test_product_whose_catalogue_is_unknown_says_what_to_use_instead(sample, product):
    with pytest.raises(SetupError, match=r"cannot read the catalogue of Dynamics .. yet \(use the product Custom"):
        discover(sample, product)


def test_unknown_product_is_refused_with_the_list_of_products():
    with pytest.raises(SetupError, match=r"'Navision' is not a source product \(choose one of DynamicsBC, DynamicsBCLast"):
        find_product("Navision")


def test_size_of_a_company_is_measured_at_its_tables(sample):
    create_sample(sample.with_name("big.db"), companies=2, rows=20_000, tables=1)
    source = open_source(f"sqlite:///{sample.with_name('big.db')}")
    found = find_product("DynamicsBCLast").discover(source)

    sizes = [company.estimated_size for company in measured(found, source).companies]
    source.close()

    total = sum(sizes) * 2**30
    assert 0.5 < float(total) / sample.with_name("big.db").stat().st_size < 1.5          # uncompressed, eight bytes for every number
    assert 3.5 < float(sizes[0] / sizes[1]) < 4.5
    assert [company.estimated_size for company in found.companies] == [0, 0]
