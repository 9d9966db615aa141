"""When a finding was last changed, which the links of webhooks compare."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    long_ago = "1970-01-01 00:00:00.000000"
    op.add_column("findings", sa.Column("modified_at", sa.DateTime(timezone=True), nullable=False, server_default=long_ago))
