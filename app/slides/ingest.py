"""From a file that a caller handed in to a slide that may be kept: de-identify, hash, store.

It may run again after a crash: what is stored is stored once, and the original stays.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from app.settings import Settings
from app.slides import store
from pipelines import storage
from pipelines.slides.deidentify import deidentify
from pipelines.slides.errors import SlideError, SlideNotFound
from pipelines.slides.opening import open_slide

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class IngestedSlide:
    """A slide in the organisation's store.

    Attributes:
        slide_id: SHA-256 of the de-identified object; of a folder, over its files' names and
            SHA-256.
        uri: where it is stored.
        size_bytes: how large it is.
    """

    slide_id: str
    uri: str
    size_bytes: int


def take_in(
    settings: Settings, organisation_id: str, analysis_id: str, source: str
) -> IngestedSlide:
    """De-identify `source` and store the copy under its SHA-256. The source stays.

    Raises:
        SlideError: the slide is not there, may not be read, is broken, or is of a kind that cannot
            be de-identified.
        StoreUnavailable: the slide's store does not answer. No error holds the slide's URI.
    """
    work = settings.staging / analysis_id
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    suffix = Path(urlsplit(source).path).suffix.lower()
    name = f"slide{suffix}"
    try:
        original = _original(source, work / f"original{suffix}")
        clean = work / name
        removed = deidentify(original, clean)
        # What does not open is not kept: it would only fail later, and may hold what cleaning did
        # not find.
        with open_slide(str(clean)):
            pass
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
    except SlideError as error:
        # Without the file's own name, which may hold a patient's and would go to logs.
        raise error.of_slide(name) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _original(source: str, copy: Path) -> Path:
    """The slide on local disk. Errors hold no text of the store: it names the file."""
    name = copy.name
    try:
        local = storage.local_path(source)
        if local is None:
            _fetch(source, copy)
            return copy
        if not (storage.exists(source) or storage.is_folder(source)):
            raise SlideNotFound(name, "is not in the store", "send it again")
        return local
    except storage.ObjectNotFound:
        raise SlideNotFound(name, "is not in the store", "send it again") from None
    except storage.AccessDenied:
        remedy = "let the service read it, or upload it"
        raise SlideNotFound(name, "may not be read", remedy, code="access-denied") from None
    except storage.InvalidUri:
        remedy = "give a file:// or s3:// URI"
        raise SlideNotFound(name, "is not at a URI that can be read", remedy, code="uri") from None
    except storage.StorageError as error:
        cause = f"can't be reached in its store ({type(error).__name__})"
        remedy = "check the connection and try again"
        raise storage.StoreUnavailable(name, cause, remedy) from None


def _fetch(source: str, path: Path) -> None:
    """Copy a remote slide to local disk, streamed: cleaning needs the whole object."""
    with path.open("wb") as target:
        for chunk in storage.stream_bytes(source):
            target.write(chunk)


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
