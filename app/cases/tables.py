"""The table of cases: clinical variables are kept here and nowhere else."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Float, ForeignKey, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from app.accounts.tables import Organisation
from app.database.base import Base, now


class Case(Base):
    """Clinical variables of one patient episode: no name, date of birth or hospital number."""

    __tablename__ = "cases"

    organisation_id: Mapped[str] = mapped_column(ForeignKey(Organisation.id), primary_key=True)
    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=now)
    age: Mapped[float | None] = mapped_column(Float)
    psa: Mapped[float | None] = mapped_column(Float)
    t_stage: Mapped[str | None] = mapped_column(String(8))
    gleason_primary: Mapped[int | None] = mapped_column(Integer)
    gleason_secondary: Mapped[int | None] = mapped_column(Integer)
    positive_cores: Mapped[int | None] = mapped_column(Integer)
    total_cores: Mapped[int | None] = mapped_column(Integer)
    unknown: Mapped[str] = mapped_column(String(128), default="")
    """Names of the variables that were stated to be unknown, with spaces between."""
