"""Analyses of one organisation. Every query names the organisation."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.analyses.status import Status
from app.database.models import Analysis
from app.errors import NotFound


def add(session: Session, analysis: Analysis) -> None:
    """Add a new analysis."""
    session.add(analysis)
    session.flush()


def get(session: Session, organisation_id: str, analysis_id: str) -> Analysis:
    """One analysis.

    Raises:
        NotFound: the organisation has no such analysis.
    """
    row = session.get(Analysis, (organisation_id, analysis_id))
    if row is None:
        raise NotFound(
            "There is no analysis with this number in your organisation.", analysis=analysis_id
        )
    return row


def newest(
    session: Session, organisation_id: str, *, limit: int, before: datetime | None
) -> Sequence[Analysis]:
    """Analyses in order of arrival, newest first."""
    query = select(Analysis).where(Analysis.organisation_id == organisation_id)
    if before is not None:
        query = query.where(Analysis.created_at < before)
    return session.scalars(
        query.order_by(Analysis.created_at.desc(), Analysis.id).limit(limit)
    ).all()


def queued(session: Session) -> Sequence[tuple[str, str]]:
    """(organisation, analysis) of everything that waits, of all organisations: only the executor asks."""
    query = (
        select(Analysis.organisation_id, Analysis.id)
        .where(Analysis.status == Status.QUEUED)
        .order_by(Analysis.created_at)
    )
    return [
        (organisation_id, analysis_id) for organisation_id, analysis_id in session.execute(query)
    ]
