"""The first step of a case: its slide is taken into the store, and the database knows it."""

from __future__ import annotations

import re
import time
from typing import Final

import structlog
from sqlalchemy import select

from app.accounts.tables import Organisation
from app.analyses import repository as analyses
from app.analyses.tables import Analysis
from app.database.session import Database
from app.settings import Settings
from app.slides import repository
from app.slides.ingest import IngestedSlide, take_in
from app.slides.store import incoming_root
from app.uploads.reception import ABANDONED_SECONDS
from pipelines import storage

log = structlog.get_logger(__name__)

_INGESTED: Final = re.compile(r"/(?P<slide_id>[0-9a-f]{64})/slide(\.[a-z]+)?$")


def ingest(
    settings: Settings, database: Database, organisation_id: str, analysis_id: str
) -> IngestedSlide:
    """Take the slide of an analysis in, or find that it is in already.

    It may run again after a crash: the original goes only after the records are committed.

    Raises:
        SlideError: see `take_in`.
    """
    with database.session() as session:
        analysis = session.get_one(Analysis, (organisation_id, analysis_id))
        source, uploaded = analysis.source_uri, analysis.uploaded
        known = analysis.slide_id or _ingested_before(settings, organisation_id, source)
        slide = repository.find(session, organisation_id, known) if known else None
    if slide is not None:
        taken = IngestedSlide(slide_id=slide.slide_id, uri=slide.uri, size_bytes=slide.size_bytes)
    else:
        taken = take_in(settings, organisation_id, analysis_id, source)
    with database.session() as session:
        repository.record(
            session, organisation_id, taken.slide_id, uri=taken.uri, size_bytes=taken.size_bytes
        )
        session.get_one(Analysis, (organisation_id, analysis_id)).slide_id = taken.slide_id
    if uploaded:
        storage.delete(source)
    return taken


def remove_abandoned(settings: Settings, database: Database) -> int:
    """Remove uploads that no open analysis refers to, a day after they arrived; returns how many.

    They are originals, with the patient data that they came with. A web process died before it
    wrote the row, or the store did not remove the upload of a case that failed.

    Raises:
        StorageError: the store can't list or remove them.
    """
    limit = time.time() - ABANDONED_SECONDS
    with database.session() as session:
        organisations = {settings.organisation_id, *session.scalars(select(Organisation.id))}
        unfinished = {
            organisation_id: analyses.unfinished(session, organisation_id)
            for organisation_id in organisations
        }
    abandoned = [
        uri
        for organisation_id, needed in unfinished.items()
        for uri, written in storage.written_times(incoming_root(settings, organisation_id)).items()
        if written < limit and uri.split("/")[-2] not in needed
    ]
    for uri in abandoned:
        storage.delete(uri)
    if abandoned:
        log.info("abandoned uploads removed", count=len(abandoned))
    return len(abandoned)


def _ingested_before(settings: Settings, organisation_id: str, uri: str) -> str | None:
    """The slide_id if `uri` names a slide as ingestion stored it."""
    match = _INGESTED.search(uri)
    return (
        match["slide_id"]
        if match and uri.startswith(settings.organisation_root(organisation_id) + "/")
        else None
    )
