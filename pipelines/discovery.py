"""Slides by place: all that lie below a folder or an S3 prefix, or those that a pattern such as `slides/**/*.svs` names.

Only files with a suffix of a slide count. The files of a DICOM series stand for their folder, which is one slide.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import quote, unquote

from pipelines import storage
from pipelines.slides import formats

SUFFIXES = formats.suffixes(files=("one", "several"))
"""Of slides in one file, or of the file to open if a slide has several."""
DICOM_SUFFIXES = formats.suffixes(files=("folder",))


def is_pattern(place: str) -> bool:
    """Whether a path or URI names several slides: `*` and `**` are wildcards, everything else stands for itself."""
    return "*" in place


def find_slides(place: str) -> list[str]:
    """URIs of the slides at a place, sorted; none where there is none.

    Args:
        place: folder, S3 prefix, one slide, or a pattern: `*` is any part of a name, `**` any folders. Small and capital letters
            are the same to a pattern, since scanners write `.SVS` too.
    """
    uri = storage.as_uri(place).replace(quote("*"), "*").rstrip("/")
    if (
        PurePosixPath(unquote(uri)).suffix.lower() in SUFFIXES
        and not is_pattern(uri)
        and storage.exists(uri)
    ):
        return [uri]
    fixed = uri.split("*", 1)[0].rpartition("/")[0] if is_pattern(uri) else uri
    wanted = _matcher(uri if is_pattern(uri) else f"{uri}/**")
    found = set()
    for file in storage.list_uris(fixed):
        suffix = PurePosixPath(unquote(file)).suffix.lower()
        if suffix in SUFFIXES and wanted.fullmatch(unquote(file)):
            found.add(file)
        elif suffix in DICOM_SUFFIXES:
            folder = file.rpartition("/")[0]
            if wanted.fullmatch(unquote(file)) or wanted.fullmatch(unquote(folder)):
                found.add(folder)
    return sorted(found)


def _matcher(pattern: str) -> re.Pattern[str]:
    """`**/` is any number of folders, `*` any characters but `/`."""
    parts = re.split(r"(\*\*/|\*+)", unquote(pattern))
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return re.compile(
        "".join(meaning.get(part) or re.escape(part) for part in parts), re.IGNORECASE | re.DOTALL
    )
