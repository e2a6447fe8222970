"""Alembic's environment: runs the migrations in the connection and transaction it is given (`serving.ledger.store`)."""

from alembic import context

config = getattr(context, "config", None)  # there is none where this is only imported
if config is not None:
    context.configure(connection=config.attributes["connection"], transactional_ddl=True)
    context.run_migrations()
