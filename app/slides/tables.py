"""The table of ingested slides."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.accounts.tables import Organisation
from app.database.base import Base, now


class SlideRecord(Base):
    """One ingested slide, known by the SHA-256 of the de-identified object."""

    __tablename__ = "slides"

    organisation_id: Mapped[str] = mapped_column(ForeignKey(Organisation.id), primary_key=True)
    slide_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
    uri: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
