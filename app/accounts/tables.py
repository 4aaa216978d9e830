"""The table of organisations: the wall between the data of one and of all others."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from app.database.base import Base, now


class Organisation(Base):
    """One hospital or laboratory; the wall between its data and everyone else's."""

    __tablename__ = "organisations"

    id: Mapped[str] = mapped_column(String(63), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
