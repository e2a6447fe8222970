"""The ledger's schema, step by step, for Alembic; run by `serving.ledger.store` when a ledger is opened."""
