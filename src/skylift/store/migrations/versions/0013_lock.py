"""Whether the target is kept from other writers."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    for name in ("lock_target", "locked"):
        op.add_column("migration", sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false()))
