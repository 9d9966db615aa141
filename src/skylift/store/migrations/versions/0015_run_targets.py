"""Which target a run has copied to. Of a run from before that is unknown until the target is changed; '' stands for the present one."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("runs", sa.Column("target", TEXT, nullable=False, server_default=""))
