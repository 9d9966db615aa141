"""Requests that their callers have named, so that one that is sent again is not done again."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "idempotency",
        sa.Column("actor", TEXT, nullable=False), sa.Column("key", TEXT, nullable=False), sa.Column("digest", TEXT, nullable=False),
        sa.Column("run_id", sa.Uuid()), sa.Column("done_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("actor", "key", name="pk_idempotency"))
