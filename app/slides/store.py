"""Where an organisation's slides are stored, and which of them a caller may name.

<storage_root>/<organisation>/incoming/<analysis>/slide.svs   as it arrived: removed by ingestion
<storage_root>/<organisation>/<slide_id>/slide.svs            de-identified; slide_id: its SHA-256
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from app.settings import Settings
from app.slides.errors import OutsideStore
from pipelines import storage

INCOMING = "incoming"


def incoming_uri(settings: Settings, organisation_id: str, analysis_id: str, suffix: str) -> str:
    """Where an upload waits for ingestion."""
    return storage.join(
        settings.organisation_root(organisation_id), INCOMING, analysis_id, f"slide{suffix}"
    )


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
