"""Connections and units of work.

One request, or one step of a workflow, is one session and one commit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, sessionmaker

from app.database.base import Base


def make_engine(url: str) -> Engine:
    """An engine for SQLite (several processes may write: WAL, patient locks) or PostgreSQL.

    Its errors name no parameters: they go to logs, and clinical variables are parameters.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True, hide_parameters=True)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"timeout": 30}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine


class Database:
    """Sessions on one engine. Not picklable on purpose: every process opens its own."""

    def __init__(self, url: str) -> None:
        self.engine = make_engine(url)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One unit of work: committed at the end, rolled back on any error."""
        with self._sessions() as session, session.begin():
            yield session

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()


def insert_if_absent(session: Session, row: Base) -> None:
    """Insert a row unless its primary key exists: a step that is repeated may repeat it."""
    table = type(row).__table__
    values = {
        column.key: getattr(row, column.key)
        for column in table.columns
        if getattr(row, column.key) is not None
    }
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    session.execute(dialect.insert(type(row)).values(values).on_conflict_do_nothing())
