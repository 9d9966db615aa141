"""Assessments under test: ways to look at two databases, and to see that nothing of them has changed."""

import hashlib
from pathlib import Path

import duckdb

from skylift.migration.assessment import Sides, assess, record
from skylift.products.registry import find_product


def outcome_of(migration, source_url, target_url, product="Custom", **options):
    return assess(migration, Sides(find_product(product), source_url, target_url), **options)


def findings_of(migration, source_url, target_url, product="Custom", **options):
    """By (code, table, column), as they are kept."""
    rows = record(migration, outcome_of(migration, source_url, target_url, product, **options))
    assert len({(row.code, row.company_name, row.table_name, row.column_name) for row in rows}) == len(rows)
    return {(row.code, row.table_name, row.column_name): row for row in rows}


def bytes_of(folder: Path) -> dict[str, str]:
    """Every file under a folder, by the hash of what is in it; of the memory that SQLite shares among its readers only that it is there."""
    return {str(path.relative_to(folder)): "" if path.name.endswith("-shm") else hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def found(files, product="Custom", **options):
    """Of what the fixture of that name makes."""
    return findings_of(files.migration, files.source.url, files.target.url, product, **options)


def make(path, *statements):
    with duckdb.connect(str(path)) as database:
        for statement in statements:
            database.execute(statement)
