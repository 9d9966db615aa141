"""The commands from set-up to completion on routes between real databases; what arrived is read by the databases' own drivers."""


import pytest

from tests.connectors import labs
from tests.connectors.test_conformance import insert

ROUTES = [("mysql", "delta"), ("mysql", "postgres"), ("postgres", "parquet_s3"), ("postgres", "postgres"), ("duckdb", "delta_s3"),
          ("sqlite", "parquet"), ("duckdb", "duckdb"), ("mysql", "sqlserver"), ("sqlserver", "delta")]
# Where a source shows what skylift has put there.
LEFT = {"mysql": "show tables", "sqlite": "select name from sqlite_schema", "duckdb": "select table_name from duckdb_tables()",
        "postgres": "select nspname from pg_namespace union select pubname from pg_publication union select slot_name"
                    " from pg_replication_slots where database = current_database()",
        "sqlserver": "select name from sys.tables"}
COLUMNS = {"id": "int", "amount": "decimal", "at": "datetime", "v": "text", "data": "blob"}


@pytest.fixture
def call(call):
    """Call a command that must succeed; its document."""

    def succeed(*arguments):
        code, document, error = call(*arguments, "--json")
        assert code == 0, (document, error)
        return document

    return succeed


@pytest.mark.parametrize(("source_kind", "target_kind"), ROUTES, ids=lambda kind: kind)
def test_a_migration_from_setup_to_completion(call, tmp_path, source_kind, target_kind):
    source, target = labs.SOURCES[source_kind](tmp_path), (labs.TARGETS | labs.OTHER_PLACES)[target_kind](tmp_path)
    rows = [(i, f"{i}.5", "2026-01-02 03:04:05.000", f"v{i}ä", bytes([i])) for i in range(100)]
    source.execute(source.ddl("orders", COLUMNS, ("id",)), insert("orders", rows), source.ddl("still", COLUMNS, ("id",)),
                   insert("still", rows[:5]), source.ddl("none", COLUMNS, ("id",)))

    call("setup", "--product", "Custom", "--source", source.url, "--target", target.url)
    [company] = call("companies", "--mark-all", "--create")
    assert company["created"]
    first = call("run")
    source.execute("update orders set v = 'new' where id < 10", "delete from orders where id > 94", insert("orders", [(200, *rows[0][1:])]))
    second = call("run")
    proof = call("verify")
    found = call("validate")
    call("complete")

    assert {table["status"] for table in first["tables"]} == {"Successful"} and len(first["tables"]) == 3
    assert {t["table_name"]: (t["mode"], t["inserted"], t["updated"], t["deleted"]) for t in second["tables"]} == {
        "orders": ("incremental", 1, 10, 5), "still": ("unchanged", 0, 0, 0), "none": ("unchanged", 0, 0, 0)}
    assert proof["equal"] and len(proof["tables"]) == 3
    assert (found["checks"], found["errors"], found["warnings"], found["results"]) == (18, 0, 0, [])
    for name in ("orders", "still"):
        assert target.rows(name, company["name"]) == source.rows(name)
    assert not [name for (name, *_) in source.fetch(LEFT[source_kind]) if name.startswith("_skylift")]
