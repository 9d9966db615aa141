"""What webhooks need: whom to tell what, and when rows were last written."""

from functools import partial

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)
column = partial(sa.Column, nullable=False)
LONG_AGO, NO_ID = "1970-01-01 00:00:00+00", "00000000000000000000000000000000"


def upgrade() -> None:
    long_ago = LONG_AGO if op.get_context().dialect.name == "postgresql" else LONG_AGO.removesuffix("+00")
    for table in ("migration", "run_tables", "runs", "source_companies", "table_mappings"):
        op.add_column(table, column("modified_at", TIME, server_default=long_ago))
    for added in (column("kind", TEXT, server_default=""), column("entity_id", sa.Uuid(), server_default=NO_ID),
                  column("told", sa.BigInteger(), server_default="0"), column("waiting_since", TIME, nullable=True),
                  column("next_at", TIME, nullable=True), column("failing_since", TIME, nullable=True),
                  column("attempts", sa.Integer(), server_default="0")):
        op.add_column("subscriptions", added)
    op.create_table("changes",
        column("kind", TEXT), column("entity_id", sa.Uuid()), column("position", sa.BigInteger()), column("created", sa.BigInteger()),
        column("deleted", sa.Boolean()), column("at", TIME), sa.PrimaryKeyConstraint("kind", "entity_id", name="pk_changes"))
    op.create_index("ix_changes_kind_position", "changes", ["kind", "position"])
    counter = op.create_table("change_counter",
        sa.Column("one", sa.Integer(), sa.CheckConstraint("one = 1", name="ck_change_counter_one"), autoincrement=False, nullable=False),
        column("position", sa.BigInteger()), sa.PrimaryKeyConstraint("one", name="pk_change_counter"))
    op.bulk_insert(counter, [{"one": 1, "position": 0}])
    op.create_table("deliveries",
        column("id", sa.Integer()), column("at", TIME), column("url", TEXT), column("subscriptions", TEXT),
        column("items", sa.Integer()), column("attempt", sa.Integer()), column("status", sa.Integer()), column("outcome", TEXT),
        column("error", TEXT), column("duration_ms", sa.Integer()), sa.PrimaryKeyConstraint("id", name="pk_deliveries"))
