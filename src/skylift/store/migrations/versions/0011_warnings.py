"""Warnings after runs, and the ticks of the checklist."""

from functools import partial

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
column = partial(sa.Column, nullable=False)


def upgrade() -> None:
    time = sa.DateTime(timezone=True)
    op.add_column("migration", sa.Column("media_rows", sa.BigInteger()))
    op.create_table(
        "migration_warnings",
        column("id", sa.Uuid()), column("type", TEXT), column("message", TEXT), column("ignored", sa.Boolean()), column("ignored_by", TEXT),
        column("created_at", time), column("modified_at", time),
        sa.PrimaryKeyConstraint("id", name="pk_migration_warnings"), sa.UniqueConstraint("type", name="uq_migration_warnings_type"))
    op.create_table("checklist", column("step", TEXT), column("done_by", TEXT), column("done_at", time),
                    sa.PrimaryKeyConstraint("step", name="pk_checklist"))
