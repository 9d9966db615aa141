"""What the whole life of a migration needs: cancelling, parts of a run, switches of tables, what was preserved."""

from functools import partial
from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
column = partial(sa.Column, nullable=False)
NO_ID = "00000000000000000000000000000000"


def upgrade() -> None:
    connection = op.get_bind()
    op.add_column("runs", column("scope", TEXT, server_default=""))
    op.add_column("runs", column("cancelled", TEXT, server_default=""))
    for name in ("orphans", "kept"):
        op.add_column("run_tables", column(name, sa.BigInteger(), server_default="0"))
    op.add_column("registry", column("preserve", sa.Boolean(), server_default=sa.false()))
    op.add_column("migration", column("still_tracked", sa.Boolean(), server_default=sa.false()))
    op.execute("update migration set still_tracked = true, disabled_reason = '' where disabled_reason = 'StillTracked'")
    for table, name, *key in (("migration", "copy_id", "one"), ("registry", "id", "company_name", "table_name")):
        op.add_column(table, column(name, sa.Uuid(), server_default=NO_ID))
        rows = sa.table(table, sa.column(name, sa.Uuid), *map(sa.column, key))
        for row in connection.execute(sa.select(*(rows.c[k] for k in key))).all():
            here = sa.and_(*(rows.c[k] == value for k, value in zip(key, row, strict=True)))
            connection.execute(rows.update().where(here).values({name: uuid4()}))
    op.create_index("ix_registry_id", "registry", ["id"], unique=True)
