"""Validations under test: ways to ask for one, and to see what it has found."""

from decimal import Context

import pytest
import sqlalchemy as sa

from skylift.errors import StateError
from skylift.migration import Migration
from skylift.model import Validation, ValidationResult
from skylift.query import Attribute, Order, Query
from skylift.settings import Settings
from skylift.store.tables import validation_progress
from tests.migration.lab import Lab
from tests.migration.test_replication import CRONUS, CUSTOMER

CONTOSO = "Contoso A_S _Nordic_"
PLACE = f'"{CRONUS}"."{CUSTOMER}"'
EXACT = Context(prec=60)
NUMBER = '"Credit Limit (LCY)"'


def set_up(lab, **settings):
    """The same migration with other settings."""
    kept = {name: getattr(lab.migration.settings, name) for name in ("home", "poll_s")}
    return Lab(Migration(lab.store, Settings(**{**kept, **settings}), "tester"), lab.source)


def validate(lab, *suites, **options) -> Validation:
    asked = lab.migration.validate(suites=suites, **options)
    lab.work()
    return lab.migration.get(Validation, asked.id)


def results(lab):
    order = tuple(Order(Attribute(name)) for name in ("company_name", "table_name", "suite", "test", "key"))
    return lab.migration.select(ValidationResult, Query(order=order))


def found(lab):
    return [(row.company_name, row.table_name, row.suite, row.test, row.key, row.is_warning) for row in results(lab)]


def progress(lab):
    with lab.store.read() as connection:
        return connection.execute(sa.select(validation_progress)).all()


def write_suite(folder, tests, **top):
    folder.mkdir(exist_ok=True)
    head = "\n".join(f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}"
                     for key, value in ({"id": "own"} | top).items())
    (folder / "suite.toml").write_text(f"{head}\n{tests}")
    return str(folder)


def refused(lab, code, words=None):
    with pytest.raises(StateError, match=words) as raised:
        lab.migration.complete_cloud_migration()
    assert raised.value.code == code and raised.value.hint
    return raised.value
