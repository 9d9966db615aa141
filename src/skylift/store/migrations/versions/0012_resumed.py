"""Of the rows of a table, those that an earlier run had brought: what is left takes as long as the others did."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("run_tables", sa.Column("resumed", sa.BigInteger(), server_default="0", nullable=False))
