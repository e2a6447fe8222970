"""The chain of records, the customers' keys, and the head with the ledger's id."""

import sqlalchemy as sa
from alembic import op

revision = "v0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables of a new ledger."""
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "head",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("ledger", sa.String(32), nullable=False),
        sa.Column("secrets", sa.String(64), nullable=False),
        sa.Column("seq", number, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_head"),
    )
    op.create_table(
        "keys",
        sa.Column("id", number, autoincrement=False, nullable=False),
        sa.Column("subject", sa.String(64), nullable=False),
        sa.Column("wrapped", sa.LargeBinary),
        sa.Column("erased_at", sa.String(27)),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
    )
    op.create_table(
        "records",
        sa.Column("seq", number, autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("recorded_at", sa.String(27), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("decision_id", sa.String(64)),
        sa.Column("parcel", sa.String(64)),
        sa.Column("key_id", number),
        sa.Column("body_digest", sa.String(64), nullable=False),
        sa.Column("body", sa.LargeBinary),
        sa.Column("prev", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_records"),
        sa.UniqueConstraint("key", name="uq_records_key"),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name="fk_records_key_id"),
    )
    op.create_index("ix_keys_subject", "keys", ["subject"])
    for column in ("recorded_at", "parcel", "key_id"):
        op.create_index(f"ix_records_{column}", "records", [column])
    op.execute("INSERT INTO head (id, ledger, secrets, seq, hash) VALUES (1, '', '', 0, '')")


def downgrade() -> None:
    """A ledger is not taken back."""
    raise NotImplementedError("a ledger is only ever appended to")
