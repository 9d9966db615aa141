"""When validations and their results were last changed, which the links of webhooks compare."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    long_ago = "1970-01-01 00:00:00.000000"
    for table in ("validations", "validation_results"):
        op.add_column(table, sa.Column("modified_at", sa.DateTime(timezone=True), nullable=False, server_default=long_ago))
