"""Run by Alembic. skylift hands its own connection over (store/__init__.py) and holds the transaction."""

from alembic import context

from skylift.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
