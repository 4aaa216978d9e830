"""Where an organisation's slides are stored, and which of them a caller may name.

<storage_root>/<organisation>/incoming/<analysis>/slide.svs   as it arrived: removed by ingestion
<storage_root>/<organisation>/<slide_id>/slide.svs            de-identified; slide_id: its SHA-256
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import structlog

from app.settings import Settings
from app.slides.errors import OutsideStore
from pipelines import storage

log = structlog.get_logger(__name__)

INCOMING = "incoming"


def incoming_uri(settings: Settings, organisation_id: str, analysis_id: str, suffix: str) -> str:
    """Where an upload waits for ingestion."""
    return storage.join(incoming_root(settings, organisation_id), analysis_id, f"slide{suffix}")


def discard(uri: str, organisation_id: str, analysis_id: str) -> None:
    """Remove an upload that will not be ingested.

    A store that refuses is logged, without its text, which holds the URI: whoever calls this has a
    failure to report. The executor removes what stays when it next starts.
    """
    try:
        storage.delete(uri)
    except storage.StorageError as error:
        log.error(
            "upload not removed",
            analysis=analysis_id,
            organisation=organisation_id,
            error=type(error).__name__,
        )


def incoming_root(settings: Settings, organisation_id: str) -> str:
    """Where all uploads of an organisation wait; one folder for each analysis."""
    return storage.join(settings.organisation_root(organisation_id), INCOMING)


def slide_uri(settings: Settings, organisation_id: str, slide_id: str, suffix: str) -> str:
    """Where an ingested slide is stored."""
    return storage.join(settings.organisation_root(organisation_id), slide_id, f"slide{suffix}")


def within_organisation(settings: Settings, organisation_id: str, uri: str) -> str:
    """The URI as it may be used: below the organisation's own prefix, and not leading out of it.

    Raises:
        OutsideStore: it is anywhere else, or not a `file://` or `s3://` URI.
    """
    refusal = OutsideStore(
        "The slide's URI is not within your organisation's store; "
        "upload the slide or copy it there first."
    )
    root = urlsplit(settings.organisation_root(organisation_id))
    parts = urlsplit(uri)
    if (parts.scheme, parts.netloc) != (root.scheme, root.netloc) or parts.query or parts.fragment:
        raise refusal
    path, prefix = unquote(parts.path), unquote(root.path)
    if "\0" in path or ".." in PurePosixPath(path).parts or not path.startswith(prefix + "/"):
        raise refusal
    if parts.scheme == "file":
        resolved, inside = (
            os.path.realpath(path),
            os.path.realpath(prefix),
        )  # links must not lead out either
        if not resolved.startswith(inside + os.sep):
            raise refusal
        return storage.as_uri(Path(resolved))
    return uri
