"""What validation suites have gone through and found."""

from functools import partial

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
column = partial(sa.Column, nullable=False)


def texts(*names: str) -> list[sa.Column]:
    return [column(name, TEXT) for name in names]


def upgrade() -> None:
    op.create_table(
        "validations",
        column("id", sa.Uuid()), column("requested_at", sa.DateTime(timezone=True)),
        *texts("requested_by", "status", "suites", "companies"), column("force", sa.Boolean()), column("total", sa.Integer()),
        column("attempts", sa.Integer()), *texts("details"),
        sa.Column("ended_at", sa.DateTime(timezone=True)), sa.PrimaryKeyConstraint("id", name="pk_validations"))
    op.create_table(
        "validation_progress",
        *texts("company_name", "suite", "table_name"), column("validation_id", sa.Uuid()),
        column("ended_at", sa.DateTime(timezone=True)), column("errors", sa.BigInteger()), column("warnings", sa.BigInteger()),
        *texts("counts", "note"), column("fails_migration", sa.Boolean()),
        sa.PrimaryKeyConstraint("company_name", "suite", "table_name", name="pk_validation_progress"))
    op.create_table(
        "validation_results",
        column("id", sa.Uuid()), *texts("suite", "test", "company_name", "table_name", "unit", "key", "expected", "actual"),
        column("is_warning", sa.Boolean()), *texts("message"), column("found_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_validation_results"))
    op.create_index("ix_validation_results_company_name_suite_unit", "validation_results", ["company_name", "suite", "unit"])
    op.create_table("validation_ignored", *texts("suite", "test"),
                    sa.PrimaryKeyConstraint("suite", "test", name="pk_validation_ignored"))
