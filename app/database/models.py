"""The tables. Every row belongs to one organisation, and a row can only point at rows of the same one.

Clinical variables live in `cases` and nowhere else; `slides` are known by the SHA-256 of their de-identified object.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Enum,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    Text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from app.analyses.status import Status, Step


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC, also on SQLite, which keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Refuse naive times; store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"naive datetime {value!r}: give it a zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """The zone back on what SQLite returns."""
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {datetime: UtcDateTime, dict[str, Any]: JSON}


class Organisation(Base):
    """One hospital or laboratory; the wall between its data and everyone else's."""

    __tablename__ = "organisations"

    id: Mapped[str] = mapped_column(String(63), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=now)


class Case(Base):
    """One patient episode: its clinical variables. No name, no date of birth, no hospital number."""

    __tablename__ = "cases"

    organisation_id: Mapped[str] = mapped_column(ForeignKey("organisations.id"), primary_key=True)
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
    age: Mapped[float | None] = mapped_column(Float)
    psa: Mapped[float | None] = mapped_column(Float)
    t_stage: Mapped[str | None] = mapped_column(String(8))
    gleason_primary: Mapped[int | None] = mapped_column(Integer)
    gleason_secondary: Mapped[int | None] = mapped_column(Integer)


class SlideRecord(Base):
    """One ingested slide: where it lies and what it is. Known by the SHA-256 of the de-identified object."""

    __tablename__ = "slides"

    organisation_id: Mapped[str] = mapped_column(ForeignKey("organisations.id"), primary_key=True)
    slide_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
    uri: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)


def _by_value(kind: type[enum.StrEnum], length: int) -> Enum:
    return Enum(
        kind,
        values_callable=lambda members: [member.value for member in members],
        native_enum=False,
        length=length,
    )


class Analysis(Base):
    """One run of one model set over one case."""

    __tablename__ = "analyses"
    __table_args__ = (
        ForeignKeyConstraint(["organisation_id", "case_id"], ["cases.organisation_id", "cases.id"]),
        ForeignKeyConstraint(
            ["organisation_id", "slide_id"], ["slides.organisation_id", "slides.slide_id"]
        ),
        Index("ix_analyses_newest", "organisation_id", "created_at"),
        Index("ix_analyses_status", "status"),
    )

    organisation_id: Mapped[str] = mapped_column(ForeignKey("organisations.id"), primary_key=True)
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    case_id: Mapped[str] = mapped_column(String(36))
    slide_id: Mapped[str | None] = mapped_column(String(64))
    source_uri: Mapped[str] = mapped_column(Text)
    """What the caller handed in: removed by ingestion where it was an upload."""
    uploaded: Mapped[bool]
    mpp: Mapped[float | None] = mapped_column(Float)
    """Micrometres per pixel as given by the caller, for slides whose metadata carry none."""
    status: Mapped[Status] = mapped_column(_by_value(Status, 16), default=Status.QUEUED)
    step: Mapped[Step | None] = mapped_column(_by_value(Step, 16))
    attempts: Mapped[int] = mapped_column(default=0)
    """How often the workflow began or resumed: a slide that kills its process must not do so for ever."""
    shards_done: Mapped[int] = mapped_column(default=0)
    shards_total: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(String(64))
    error_sentence: Mapped[str | None] = mapped_column(Text)
    result: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
