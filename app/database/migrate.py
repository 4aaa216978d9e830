"""Bring a database to the newest schema.

Several processes may call it at once: one migrates, the others wait.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from app.database.session import make_engine

LOCK_KEY = 0x61_63_69_6E  # "acin": the PostgreSQL advisory lock of our migrations


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, without a file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def upgrade_to_head(url: str) -> None:
    """Apply every migration that `url` has not seen."""
    engine = make_engine(url)
    try:
        if engine.dialect.name == "sqlite":
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(
                    text("BEGIN IMMEDIATE")
                )  # the write lock first: two processes must not both see an empty file
                try:
                    command.upgrade(alembic_config(connection), "head")
                except BaseException:
                    connection.execute(text("ROLLBACK"))
                    raise
                connection.execute(text("COMMIT"))
        else:
            with engine.begin() as connection:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
                command.upgrade(alembic_config(connection), "head")
    finally:
        engine.dispose()
