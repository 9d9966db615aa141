"""What an assessment finds."""

from functools import partial

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
column = partial(sa.Column, nullable=False)


def upgrade() -> None:
    time = sa.DateTime(timezone=True)
    op.create_table(
        "findings",
        column("id", sa.Uuid()), *(column(name, TEXT) for name in ("code", "severity", "company_name", "table_name", "column_name")),
        column("count", sa.BigInteger()), column("message", TEXT), column("fix", TEXT), column("found_at", time),
        column("accepted_by", TEXT), sa.Column("accepted_at", time), column("why", TEXT), column("scanned", sa.Boolean()),
        sa.PrimaryKeyConstraint("id", name="pk_findings"),
        sa.UniqueConstraint("code", "company_name", "table_name", "column_name",
                            name="uq_findings_code_company_name_table_name_column_name"))
    op.create_table(
        "assessments",
        column("id", sa.Uuid()), column("status", TEXT), column("scan", sa.Boolean()),
        *(column(name, TEXT) for name in ("progress", "details", "product_id", "source", "target")),
        column("tables", sa.Integer()), column("rows", sa.BigInteger()), column("size_bytes", sa.BigInteger()),
        column("duration_s", sa.Double()), column("asked_by", TEXT), column("attempts", sa.Integer()),
        sa.Column("started_at", time), sa.Column("ended_at", time),
        sa.PrimaryKeyConstraint("id", name="pk_assessments"))
