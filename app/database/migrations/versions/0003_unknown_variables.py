"""Variables of a case that were stated to be unknown, apart from those that were left out."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of cases of before nothing is known to be unknown."""
    with op.batch_alter_table("cases") as table:
        table.add_column(sa.Column("unknown", sa.String(128), nullable=False, server_default=""))


def downgrade() -> None:
    """Remove it."""
    with op.batch_alter_table("cases") as table:
        table.drop_column("unknown")
