"""What the tests and the benchmark of the ledger share: a real PostgreSQL, writers that are killed, a power loss."""
