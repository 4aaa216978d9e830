"""Positive and total biopsy cores of a case."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; cases of before have neither."""
    with op.batch_alter_table("cases") as table:
        table.add_column(sa.Column("positive_cores", sa.Integer))
        table.add_column(sa.Column("total_cores", sa.Integer))


def downgrade() -> None:
    """Remove them."""
    with op.batch_alter_table("cases") as table:
        table.drop_column("total_cores")
        table.drop_column("positive_cores")
