"""From what a caller handed in to a slide that may be kept: de-identify, hash, store, remove the original.

Every step may run again after a crash: what is stored is stored once, and the original goes only after the records are committed.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from app.database.models import Analysis
from app.database.session import Database
from app.settings import Settings
from app.slides import repository, store
from pipelines import storage
from pipelines.slides.deidentify import deidentify
from pipelines.slides.errors import SlideError, SlideNotFound
from pipelines.slides.opening import open_slide

log = structlog.get_logger(__name__)

_INGESTED = re.compile(r"/(?P<slide_id>[0-9a-f]{64})/slide(\.[a-z]+)?$")


@dataclass(frozen=True, kw_only=True)
class IngestedSlide:
    """A slide in the organisation's store.

    Attributes:
        slide_id: SHA-256 of the de-identified object; of a folder, over its files' names and SHA-256.
        uri: where it lies.
        size_bytes: how large it is.
    """

    slide_id: str
    uri: str
    size_bytes: int


def ingest(
    settings: Settings, database: Database, organisation_id: str, analysis_id: str
) -> IngestedSlide:
    """Take the slide of an analysis in, or find that it is in already.

    Raises:
        SlideError: the slide is not there, or is of a kind that cannot be de-identified.
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


def take_in(
    settings: Settings, organisation_id: str, analysis_id: str, source: str
) -> IngestedSlide:
    """De-identify `source` and store the copy under its SHA-256. The source stays."""
    work = settings.staging / analysis_id
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    suffix = Path(urlsplit(source).path).suffix.lower()
    name = f"slide{suffix}"
    try:
        original = storage.local_path(source) or _fetch(source, work / f"original{suffix}")
        if not original.exists():
            raise SlideNotFound(name, "is not in the store", "send it again")
        clean = work / name
        removed = deidentify(original, clean)
        with open_slide(str(clean)):
            pass  # what does not open is not kept: it would only fail later, and may hold what cleaning did not find
        slide_id, size = _identity(clean)
        target = store.slide_uri(settings, organisation_id, slide_id, suffix)
        _keep(clean, target)
        log.info(
            "slide ingested",
            analysis=analysis_id,
            slide=slide_id,
            images=removed.images,
            fields=removed.fields,
            bytes=size,
        )
        return IngestedSlide(slide_id=slide_id, uri=target, size_bytes=size)
    except (
        SlideError
    ) as error:  # without the file's own name, which may hold a patient's and would go to logs
        raise error.of_slide(name) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _ingested_before(settings: Settings, organisation_id: str, uri: str) -> str | None:
    """The slide_id if `uri` names a slide as ingestion stored it."""
    match = _INGESTED.search(uri)
    return (
        match["slide_id"]
        if match and uri.startswith(settings.organisation_root(organisation_id) + "/")
        else None
    )


def _fetch(source: str, path: Path) -> Path:
    """A remote slide on local disk: cleaning needs the whole object. Streamed, never whole in memory."""
    try:
        with path.open("wb") as target:
            for chunk in storage.stream_bytes(source):
                target.write(chunk)
    except FileNotFoundError:
        raise SlideNotFound(path.name, "is not in the store", "send it again") from None
    return path


def _identity(path: Path) -> tuple[str, int]:
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest(), path.stat().st_size
    parts = [(member.name, *_identity(member)) for member in sorted(path.iterdir())]
    listing = "".join(f"{name} {digest}\n" for name, digest, _ in parts)
    return hashlib.sha256(listing.encode()).hexdigest(), sum(size for _, _, size in parts)


def _keep(clean: Path, target: str) -> None:
    """Move the cleaned file, or each file of the cleaned folder, to its content address.

    What is there has the same bytes and stays as it is: an analysis that reads it asks for the
    version that it indexed, and would fail if the file were replaced by its own copy.
    """
    if clean.is_file():
        storage.write_file_once(target, clean, consume=True)
        return
    for member in sorted(clean.iterdir()):
        storage.write_file_once(storage.join(target, member.name), member, consume=True)
