"""The table of analyses: what was sent, how far its workflow is, and the result."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Float, ForeignKey, ForeignKeyConstraint, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.accounts.tables import Organisation
from app.analyses.status import Status, Step
from app.cases.tables import Case
from app.database.base import Base, by_value, now
from app.slides.tables import SlideRecord


class Analysis(Base):
    """One run of one model set over one case."""

    __tablename__ = "analyses"
    __table_args__ = (
        ForeignKeyConstraint(["organisation_id", "case_id"], [Case.organisation_id, Case.id]),
        ForeignKeyConstraint(
            ["organisation_id", "slide_id"], [SlideRecord.organisation_id, SlideRecord.slide_id]
        ),
        Index("ix_analyses_newest", "organisation_id", "created_at"),
        Index("ix_analyses_status", "status"),
    )

    organisation_id: Mapped[str] = mapped_column(ForeignKey(Organisation.id), primary_key=True)
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    case_id: Mapped[str] = mapped_column(String(36))
    slide_id: Mapped[str | None] = mapped_column(String(64))
    source_uri: Mapped[str] = mapped_column(Text)
    """What the caller handed in: removed by ingestion where it was an upload."""
    uploaded: Mapped[bool]
    mpp: Mapped[float | None] = mapped_column(Float)
    """Micrometres per pixel as given by the caller, for slides whose metadata have none."""
    status: Mapped[Status] = mapped_column(by_value(Status, 16), default=Status.QUEUED)
    step: Mapped[Step | None] = mapped_column(by_value(Step, 16))
    attempts: Mapped[int] = mapped_column(default=0)
    """How often the workflow started or resumed. A slide that kills its process must not do so
    forever."""
    shards_done: Mapped[int] = mapped_column(default=0)
    shards_total: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(String(64))
    error_sentence: Mapped[str | None] = mapped_column(Text)
    result: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
