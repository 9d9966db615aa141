"""What the additive API shows and tells: when switches and upgrade steps were changed, and indexes for filters and orders."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

LONG_AGO = "1970-01-01 00:00:00.000000"


def upgrade() -> None:
    for name in ("registry", "upgrade_steps"):
        op.add_column(name, sa.Column("modified_at", sa.DateTime(timezone=True), nullable=False, server_default=LONG_AGO))
    # PostgreSQL takes 2,704 bytes into an index; the columns are Short from now on (store/tables.py).
    if op.get_context().dialect.name == "postgresql":
        for name in ("actor", "subject"):
            op.execute(f"update events set {name} = left({name}, 625) where octet_length({name}) > 2500")
    for name in ("at", "actor", "subject", "event"):
        op.create_index(f"ix_events_{name}_id", "events", [name, "id"])
    op.create_index("ix_run_tables_error_code_id", "run_tables", ["error_code", "id"])
