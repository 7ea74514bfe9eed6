"""Push batches: the sequences they brought online, and those that are under way."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0002"
down_revision = "v0001"


def upgrade() -> None:
    op.add_column("publish_log", sa.Column("sequence_from", sa.BigInteger))
    op.add_column("publish_log", sa.Column("sequence_to", sa.BigInteger))
    op.create_table(
        "open_pushes",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("view", sa.String(128), primary_key=True),
        sa.Column("sequence_from", sa.BigInteger, primary_key=True),
        sa.Column("started_at_us", sa.BigInteger, nullable=False),
        sa.Column("begun_at_us", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.String(255), nullable=False),
    )
