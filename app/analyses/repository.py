"""Analyses of one organisation. Every query names the organisation."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.analyses.status import Status
from app.analyses.tables import Analysis
from app.errors import NotFound

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""What analyses are called. PostgreSQL refuses to look for other things, such as a zero byte."""


def add(session: Session, analysis: Analysis) -> None:
    """Add a new analysis."""
    session.add(analysis)
    session.flush()


def get(session: Session, organisation_id: str, analysis_id: str) -> Analysis:
    """One analysis.

    Raises:
        NotFound: the organisation has no such analysis.
    """
    known = _ID.fullmatch(analysis_id)
    row = session.get(Analysis, (organisation_id, analysis_id)) if known else None
    if row is None:
        raise NotFound(
            "There is no analysis with this number in your organisation.", analysis=analysis_id
        )
    return row


def page(
    session: Session, organisation_id: str, *, limit: int, before: datetime | None
) -> tuple[Sequence[Analysis], datetime | None]:
    """One page of analyses, newest first, and the `before` of the next page; None at the end.

    A page never ends between analyses that arrived at the same time, so that none is lost between
    two pages: it ends before them, or holds all of them if they alone are more than `limit`.
    """
    query = (
        select(Analysis)
        .where(Analysis.organisation_id == organisation_id)
        .order_by(Analysis.created_at.desc(), Analysis.id)
    )
    if before is not None:
        query = query.where(Analysis.created_at < before)
    rows = session.scalars(query.limit(limit + 1)).all()
    if len(rows) <= limit:
        return rows, None
    following = rows[limit].created_at
    whole = [row for row in rows if row.created_at > following]
    if whole:
        return whole, whole[-1].created_at
    return session.scalars(query.where(Analysis.created_at == following)).all(), following


def unfinished(session: Session, organisation_id: str) -> Set[str]:
    """Ids of an organisation's analyses that wait or run."""
    query = select(Analysis.id).where(
        Analysis.organisation_id == organisation_id,
        Analysis.status.in_([Status.QUEUED, Status.RUNNING]),
    )
    return set(session.scalars(query))


def queued(session: Session) -> Sequence[tuple[str, str]]:
    """(organisation, analysis) of everything that waits, of all organisations.

    Only the executor asks.
    """
    query = (
        select(Analysis.organisation_id, Analysis.id)
        .where(Analysis.status == Status.QUEUED)
        .order_by(Analysis.created_at)
    )
    return [
        (organisation_id, analysis_id) for organisation_id, analysis_id in session.execute(query)
    ]
