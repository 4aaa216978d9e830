"""How Alembic reaches the database.

It uses the connection of `app.database.migrate`, or the URL of `alembic -x url=...`.
"""

from __future__ import annotations

from alembic import context

import app.analyses.tables  # noqa: F401 - and with it the tables of every room below
from app.database.base import Base
from app.database.session import make_engine

connection = context.config.attributes.get("connection")
if connection is not None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = make_engine(context.get_x_argument(as_dictionary=True)["url"])
    with engine.connect() as own:
        context.configure(
            connection=own, target_metadata=Base.metadata, render_as_batch=True, compare_type=True
        )
        with context.begin_transaction():
            context.run_migrations()
