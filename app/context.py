"""What endpoints are given: settings, database, queue, and one unit of work for each request.

The application's lifespan opens and closes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from app.database.session import Database
from app.settings import Settings


class CaseQueue(Protocol):
    """Where analyses wait for the executor."""

    def enqueue(self, organisation_id: str, analysis_id: str) -> None:
        """Put an analysis on the queue; doing it again changes nothing."""

    def close(self) -> None:
        """Give connections back."""


@dataclass(frozen=True)
class Context:
    """What lives as long as the process."""

    settings: Settings
    database: Database
    queue: CaseQueue


def current_context(request: Request) -> Context:
    """The context of the running app."""
    context: Context = request.app.state.context
    return context


AppContext = Annotated[Context, Depends(current_context)]


def unit_of_work(context: AppContext) -> Iterator[Session]:
    """One session, committed before the answer is sent; rolled back on any error."""
    with context.database.session() as session:
        yield session


UnitOfWork = Annotated[Session, Depends(unit_of_work, scope="function")]
