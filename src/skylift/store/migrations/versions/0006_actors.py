"""Who has done what is in the event log under the id of their token too."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("events", sa.Column("actor_id", sa.Uuid(), server_default="00000000000000000000000000000000", nullable=False))
