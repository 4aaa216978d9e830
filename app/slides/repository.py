"""Slide records of one organisation."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app.database.session import insert_if_absent
from app.slides.tables import SlideRecord


def find(session: Session, organisation_id: str, slide_id: str) -> SlideRecord | None:
    """The record of a slide, None if the organisation has no such slide."""
    return session.get(SlideRecord, (organisation_id, slide_id))


def record(
    session: Session, organisation_id: str, slide_id: str, *, uri: str, size_bytes: int
) -> None:
    """Note an ingested slide; noting it again changes nothing."""
    insert_if_absent(
        session,
        SlideRecord(
            organisation_id=organisation_id, slide_id=slide_id, uri=uri, size_bytes=size_bytes
        ),
    )
