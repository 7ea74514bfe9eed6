"""The first tables: definitions, row schemas, applies, and the state of jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "v0001"
down_revision = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    _registry()
    _applies()
    _positions()
    _publish_log()
    _jobs()


def _registry() -> None:
    op.create_table(
        "projects",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "definitions",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("signature", sa.String(64)),
        sa.Column("apply_id", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "row_schemas",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("view", sa.String(128), primary_key=True),
        sa.Column("schema_id", sa.Integer, primary_key=True),
        sa.Column("fields", sa.Text, nullable=False),
        sa.Column("retired", sa.Boolean, nullable=False),
        sa.Column("apply_id", sa.BigInteger, nullable=False),
    )


def _applies() -> None:
    op.create_table(
        "applies",
        sa.Column("apply_id", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("who", sa.String(255), nullable=False),
        sa.Column("started_at_us", sa.BigInteger, nullable=False),
        sa.Column("finished_at_us", sa.BigInteger),
        sa.Column("revision", sa.BigInteger),
        sa.Column("steps", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("work", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("applies_by_state", "applies", ["project", "state"])


def _positions() -> None:
    op.create_table(
        "sequences",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("view", sa.String(128), primary_key=True),
        sa.Column("next", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "publish_states",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("view", sa.String(128), primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("horizon_us", sa.BigInteger, nullable=False),
        sa.Column("watermark_us", sa.BigInteger),
        sa.Column("acknowledged_at_us", sa.BigInteger, nullable=False),
    )


def _publish_log() -> None:
    op.create_table(
        "publish_log",
        sa.Column("id", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("view", sa.String(128), nullable=False),
        sa.Column("position_from", sa.BigInteger, nullable=False),
        sa.Column("position_to", sa.BigInteger, nullable=False),
        sa.Column("horizon_from_us", sa.BigInteger),
        sa.Column("horizon_to_us", sa.BigInteger, nullable=False),
        sa.Column("watermark_us", sa.BigInteger),
        sa.Column("started_at_us", sa.BigInteger, nullable=False),
        sa.Column("acknowledged_at_us", sa.BigInteger, nullable=False),
        sa.Column("rows_written", sa.BigInteger, nullable=False),
        sa.Column("keys_repaired", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("publish_log_by_view", "publish_log", ["project", "view", "id"])


def _jobs() -> None:
    op.create_table(
        "leases",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("view", sa.String(128), primary_key=True),
        sa.Column("holder", sa.String(255), nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("acquired_at_us", sa.BigInteger, nullable=False),
        sa.Column("expires_at_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("project", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("views", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("started_at_us", sa.BigInteger, nullable=False),
        sa.Column("finished_at_us", sa.BigInteger),
        sa.Column("counts", sa.Text, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
    )
    op.create_index("runs_by_start", "runs", ["project", "started_at_us"])
    op.create_table(
        "cursors",
        sa.Column("project", sa.String(64), primary_key=True),
        sa.Column("view", sa.String(128), primary_key=True),
        sa.Column("cursor", sa.Text, nullable=False),
    )
