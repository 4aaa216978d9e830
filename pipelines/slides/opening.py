"""`open_slide`: the one way in. Finds the file, asks its first bytes for its reader, and opens it.

Local paths, `file://` and `s3://` are opened by the same call. Tiled TIFF (SVS, OME-TIFF, Philips,
...) and DICOM are read in place by their own tile index (`tiff`, `dicom`). What only OpenSlide or
wsidicom can read is read from a local disk, to which `staging` brings it.
"""

from __future__ import annotations

import importlib
from pathlib import PurePosixPath
from typing import Any, Final

from pipelines import storage
from pipelines.slides import formats, staging
from pipelines.slides.errors import BrokenSlide, SlideNotFound, UnsupportedSlide
from pipelines.slides.resolution import MppPolicy
from pipelines.slides.slide import OpenOptions, Slide, SlideFacts
from pipelines.slides.source import SlideFile, find_file, is_dicom, is_tiff, not_found

READERS: Final = {
    "tiff": "pipelines.slides.tiff",
    "dicom": "pipelines.slides.dicom",
    "wsidicom": "pipelines.slides.wsidicom_reader",
    "openslide": "pipelines.slides.openslide_reader",
}
"""Modules of the readers. Each is loaded when the first slide that needs it comes: wsidicom and
pydicom need 0.9 s to import, and most processes never see a DICOM slide."""
SMALLEST_HEADER = 132
"""Bytes below which nothing is a slide: DICOM is recognised by the last of them."""


def open_slide(
    uri: str,
    *,
    mpp: float | None = None,
    default_mpp: float | None = None,
    mpp_from_objective: bool = False,
    identity: str | None = None,
) -> Slide:
    """Open a slide for reading: header and tile index only, no pixels.

    Args:
        uri: local path, `file://` or `s3://` URI; a folder or prefix for a DICOM series.
        mpp: micrometres per pixel of level 0 of this slide; wins over the metadata.
        default_mpp: micrometres per pixel if the metadata have none that can be true.
        mpp_from_objective: if there is still none, take 10 um divided by the objective's
            magnification (0.25 at 40x). Scanners differ from it by several per cent, so it must be
            asked for.
        identity: the slide's identity if ingestion has established it.

    Raises:
        SlideNotFound: there is no such object.
        UnsupportedSlide: not a brightfield whole-slide image that we open.
        BrokenSlide: truncated or corrupt.
        ImplausibleResolution: a given mpp that can only be a unit error. What is wrong with the
            metadata's mpp is raised by `Slide.mpp`, since a slide without one can be looked at.
    """
    if not uri.strip() or "\0" in uri:
        cause = "is an empty path" if not uri.strip() else "is not a path"
        raise SlideNotFound(repr(uri), cause, "give the path or URI of a slide", code="uri")
    try:
        uri = storage.as_uri(uri)
    except storage.InvalidUri as error:
        raise not_found(uri, error) from None
    policy = MppPolicy(given=mpp, default=default_mpp, from_objective=mpp_from_objective)
    policy.check(storage.object_name(uri))
    return _open(uri, OpenOptions(identity=identity, mpp=policy))


def _open(uri: str, options: OpenOptions) -> Slide:
    file = find_file(uri)
    if file is None:
        return _open_dicom(uri, None, options)
    if not file.size:
        raise BrokenSlide(
            file.name, "is an empty file (0 bytes)", "copy or upload it again", code="empty-file"
        )
    if len(file.head) < SMALLEST_HEADER:
        raise BrokenSlide(file.name, f"has only {file.size} bytes", "copy or export it again")
    _check_suffix(file.name)
    if is_dicom(file.head):
        return _open_dicom(uri.rsplit("/", 1)[0], file, options)
    facts: SlideFacts | None = None
    if is_tiff(file.head):
        found: Slide | SlideFacts | None = _reader("tiff").open_direct(file, options)
        if isinstance(found, Slide):
            return found
        facts = found
    openslide = _reader("openslide")
    opened: Slide = openslide.OpenSlideSlide(file, staging.local_copy([file]), options, facts=facts)
    return opened


def _check_suffix(name: str) -> None:
    """Refuse a format that is not read by its name.

    Some are containers that would open all the same: a VSI is a TIFF of overviews, whose slide is
    in a folder next to it.

    Raises:
        UnsupportedSlide: the suffix is one of `formats.NOT_READ`.
    """
    label = formats.NOT_READ.get(PurePosixPath(name).suffix.lower())
    if label:
        raise UnsupportedSlide(
            name,
            f"is {label}, which is not read",
            "export it as SVS or pyramidal TIFF",
            code="format-not-read",
            facts={"format": label},
        )


def _open_dicom(folder: str, file: SlideFile | None, options: OpenOptions) -> Slide:
    dicom = _reader("dicom")
    series = dicom.find_series(folder, series_of=file)
    slide: Slide = dicom.open_direct(series, options) or _reader("wsidicom").WsiDicomSlide(
        series, options
    )
    return slide


def _reader(name: str) -> Any:
    return importlib.import_module(READERS[name])
