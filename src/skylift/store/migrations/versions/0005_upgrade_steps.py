"""The steps of upgrade packs, and the packs that were asked for."""

from functools import partial

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
column = partial(sa.Column, nullable=False)


def upgrade() -> None:
    op.add_column("migration", column("packs", TEXT, server_default=""))
    op.create_table(
        "upgrade_steps",
        column("id", sa.Uuid()), *(column(name, TEXT) for name in ("company_name", "pack", "step")), column("position", sa.Integer()),
        column("checksum", TEXT), column("status", TEXT), column("statements", sa.Integer()), column("notes", TEXT), column("error", TEXT),
        sa.Column("started_at", sa.DateTime(timezone=True)), sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_upgrade_steps"),
        sa.UniqueConstraint("company_name", "pack", "step", name="uq_upgrade_steps_company_name_pack_step"))
