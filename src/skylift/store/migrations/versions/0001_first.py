"""The first schema."""

from functools import partial

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)
GIGABYTES = sa.Numeric(20, 6).with_variant(sa.Double(), "sqlite")
column = partial(sa.Column, nullable=False)


def upgrade() -> None:
    op.create_table("apps",
        column("id", sa.Uuid()), column("name", TEXT), column("publisher", TEXT), column("version", TEXT),
        sa.PrimaryKeyConstraint("id", name="pk_apps"))
    op.create_table("companies",
        column("id", sa.Uuid()), column("name", TEXT), column("display_name", TEXT), column("created_at", TIME),
        column("modified_at", TIME), column("created_by", sa.Uuid()), column("modified_by", sa.Uuid()),
        column("system_version", TEXT), column("business_profile_id", TEXT),
        sa.PrimaryKeyConstraint("id", name="pk_companies"), sa.UniqueConstraint("name", name="uq_companies_name"))
    op.create_table("events",
        column("id", sa.Integer()), column("at", TIME), column("actor", TEXT), column("subject", TEXT), column("event", TEXT),
        column("from_state", TEXT), column("to_state", TEXT), column("why", TEXT),
        sa.PrimaryKeyConstraint("id", name="pk_events"))
    op.create_table("leases",
        column("name", TEXT), column("holder", TEXT), column("expires_at", TIME),
        sa.PrimaryKeyConstraint("name", name="pk_leases"))
    op.create_table("migration",
        sa.Column("one", sa.Integer(), sa.CheckConstraint("one = 1", name="ck_migration_one"), autoincrement=False, nullable=False),
        column("id", sa.Uuid()), column("state", TEXT), column("consumer", sa.Uuid()), column("product_id", TEXT),
        column("sql_server_type", TEXT), column("source_url", TEXT), column("target_url", TEXT), column("runtime_name", TEXT),
        column("runtime_key", TEXT), column("source_version", TEXT), column("creation_task", TEXT),
        column("creation_error", TEXT), column("disabled_reason", TEXT), sa.PrimaryKeyConstraint("one", name="pk_migration"))
    op.create_table("registry",
        column("company_name", TEXT), column("table_name", TEXT), column("app_id", sa.Uuid(), nullable=True),
        column("synced_version", sa.BigInteger()), column("blocked", sa.Boolean()), column("replicate", sa.Boolean()),
        sa.PrimaryKeyConstraint("company_name", "table_name", name="pk_registry"))
    op.create_table("runs",
        column("id", sa.Uuid()), column("run_id", TEXT), column("started_at", TIME), column("ended_at", TIME, nullable=True),
        column("replication_type", TEXT), column("status", TEXT), column("source", TEXT), column("details", TEXT),
        column("attempts", sa.Integer()), sa.PrimaryKeyConstraint("id", name="pk_runs"),
        sa.UniqueConstraint("run_id", name="uq_runs_run_id"))
    op.create_index("ix_runs_started_at_id", "runs", ["started_at", "id"])
    op.create_index("ix_runs_status", "runs", ["status"])
    op.create_table("source_companies",
        column("id", sa.Uuid()), column("name", TEXT), column("display_name", TEXT), column("replicate", sa.Boolean()),
        column("estimated_size", GIGABYTES), column("status", TEXT), column("created", sa.Boolean()),
        column("init_status", TEXT), column("init_error", TEXT), column("init_scheduled", sa.Boolean()),
        column("upgrade_status", TEXT), column("upgrade_error", TEXT),
        sa.PrimaryKeyConstraint("id", name="pk_source_companies"),
        sa.UniqueConstraint("name", name="uq_source_companies_name"))
    op.create_table("subscriptions",
        column("id", TEXT), column("notification_url", TEXT), column("resource", TEXT), column("user_id", sa.Uuid()),
        column("client_state", TEXT), column("expires_at", TIME), column("created_at", TIME), column("modified_at", TIME),
        column("created_by", sa.Uuid()), column("modified_by", sa.Uuid()),
        sa.PrimaryKeyConstraint("id", name="pk_subscriptions"))
    op.create_table("table_mappings",
        column("id", sa.Uuid()), column("target_table_type", TEXT), column("app_id", sa.Uuid()),
        column("extension_name", TEXT), column("table_id", sa.Integer()), column("table_name", TEXT),
        column("source_table_name", TEXT), column("per_company", sa.Boolean()),
        sa.PrimaryKeyConstraint("id", name="pk_table_mappings"))
    op.create_table("tokens",
        column("id", sa.Uuid()), column("name", TEXT), column("role", TEXT), column("hash", sa.LargeBinary(length=32)),
        column("created_at", TIME), column("expires_at", TIME, nullable=True), column("revoked_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"), sa.UniqueConstraint("hash", name="uq_tokens_hash"))
    op.create_table("upgrade_tags",
        column("company_name", TEXT), column("tag", TEXT), column("created_at", TIME),
        sa.PrimaryKeyConstraint("company_name", "tag", name="pk_upgrade_tags"))
    op.create_table("run_tables",
        column("id", sa.Uuid()), column("run_id", TEXT), column("company_name", TEXT), column("table_name", TEXT),
        column("status", TEXT), column("records_copied", sa.BigInteger()), column("total_records", sa.BigInteger()),
        column("errors", TEXT), column("error_code", TEXT), column("started_at", TIME, nullable=True),
        column("ended_at", TIME, nullable=True), column("mode", TEXT), column("reason", TEXT),
        column("inserted", sa.BigInteger()), column("updated", sa.BigInteger()), column("deleted", sa.BigInteger()),
        column("size_bytes", sa.BigInteger()), column("target_rows", sa.BigInteger(), nullable=True), column("digest", TEXT),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name="fk_run_tables_run_id"),
        sa.PrimaryKeyConstraint("id", name="pk_run_tables"),
        sa.UniqueConstraint("run_id", "table_name", "company_name", name="uq_run_tables_run_id_table_name_company_name"))
    op.create_index("ix_run_tables_company_name_table_name_ended_at", "run_tables", ["company_name", "table_name", "ended_at"])
    op.create_index("ix_run_tables_failed", "run_tables", ["company_name", "table_name"],
                    sqlite_where=sa.text("status = 'Failed'"), postgresql_where=sa.text("status = 'Failed'"))
    op.create_index("ix_run_tables_run_id_status", "run_tables", ["run_id", "status"])
