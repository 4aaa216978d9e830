"""The first tables: organisations, cases, slides, analyses."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATUSES = ("queued", "running", "done", "failed")
STEPS = ("ingest", "index", "embed", "predict", "report")


def upgrade() -> None:
    """Create them."""
    op.create_table(
        "organisations",
        sa.Column("id", sa.String(63), primary_key=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "cases",
        sa.Column(
            "organisation_id", sa.String(63), sa.ForeignKey("organisations.id"), primary_key=True
        ),
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("age", sa.Float),
        sa.Column("psa", sa.Float),
        sa.Column("t_stage", sa.String(8)),
        sa.Column("gleason_primary", sa.Integer),
        sa.Column("gleason_secondary", sa.Integer),
    )
    op.create_table(
        "slides",
        sa.Column(
            "organisation_id", sa.String(63), sa.ForeignKey("organisations.id"), primary_key=True
        ),
        sa.Column("slide_id", sa.String(64), primary_key=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("uri", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "analyses",
        sa.Column(
            "organisation_id", sa.String(63), sa.ForeignKey("organisations.id"), primary_key=True
        ),
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("case_id", sa.String(36), nullable=False),
        sa.Column("slide_id", sa.String(64)),
        sa.Column("source_uri", sa.Text, nullable=False),
        sa.Column("uploaded", sa.Boolean, nullable=False),
        sa.Column("mpp", sa.Float),
        sa.Column(
            "status",
            sa.Enum(*STATUSES, name="status", native_enum=False, length=16),
            nullable=False,
        ),
        sa.Column("step", sa.Enum(*STEPS, name="step", native_enum=False, length=16)),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("shards_done", sa.Integer, nullable=False),
        sa.Column("shards_total", sa.Integer),
        sa.Column("error", sa.String(64)),
        sa.Column("error_sentence", sa.Text),
        sa.Column("result", sa.JSON),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(
            ["organisation_id", "case_id"], ["cases.organisation_id", "cases.id"]
        ),
        sa.ForeignKeyConstraint(
            ["organisation_id", "slide_id"], ["slides.organisation_id", "slides.slide_id"]
        ),
    )
    op.create_index("ix_analyses_newest", "analyses", ["organisation_id", "created_at"])
    op.create_index("ix_analyses_status", "analyses", ["status"])


def downgrade() -> None:
    """Drop them."""
    for table in ("analyses", "slides", "cases", "organisations"):
        op.drop_table(table)
