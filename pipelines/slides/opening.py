"""`open_slide`: the one way in. Finds the file, asks its first bytes which reader it belongs to, and opens it.

Local paths, `file://` and `s3://` are opened by the same call. Tiled TIFF (SVS, OME-TIFF, Philips, ...) and DICOM are read in
place by their own tile index (`tiff`, `dicom`); what only OpenSlide or wsidicom can read is read from a local disk, to which
`staging` brings it.
"""

from __future__ import annotations

from pipelines import storage
from pipelines.slides import dicom, openslide_reader, staging, tiff
from pipelines.slides.errors import BrokenSlide
from pipelines.slides.resolution import MPP_TIMES_OBJECTIVE, check_mpp
from pipelines.slides.slide import Slide
from pipelines.slides.source import find_file, is_dicom


def open_slide(
    uri: str,
    *,
    mpp: float | None = None,
    identity: str | None = None,
    mpp_from_objective: bool = False,
) -> Slide:
    """Open a slide for reading: header and tile index only, no pixels.

    Args:
        uri: local path, `file://` or `s3://` URI; a folder or prefix for a DICOM series.
        mpp: micrometres per pixel of level 0; wins over the metadata.
        identity: the slide's identity where ingestion has established it.
        mpp_from_objective: where neither tells, take 10 um divided by the objective's magnification (0.25 at 40x). Scanners
            differ from it by several per cent, so it must be asked for.

    Raises:
        SlideNotFound: there is no such object.
        UnsupportedSlide: not a brightfield whole-slide image that we open.
        BrokenSlide: truncated or corrupt.
    """
    check_mpp(storage.object_name(storage.as_uri(uri)), mpp)
    slide = _open(storage.as_uri(uri), identity)
    if mpp is not None:
        slide.resolution = mpp
    if slide.resolution is None and mpp_from_objective and slide.objective:
        slide.resolution = MPP_TIMES_OBJECTIVE / slide.objective
        check_mpp(slide.name, slide.resolution)
    return slide


def _open(uri: str, identity: str | None) -> Slide:
    file = find_file(uri)
    if file is None:
        return dicom.open_series(uri, series_of=None, identity=identity)
    if len(file.head) < 132:
        raise BrokenSlide(file.name, f"has only {file.size} bytes", "export or copy it again")
    if is_dicom(file.head):
        return dicom.open_series(uri.rsplit("/", 1)[0], series_of=file, identity=identity)
    if tiff.is_tiff(file.head):
        slide = tiff.open_direct(file, identity=identity)
        if slide is not None:
            return slide
    return openslide_reader.OpenSlideSlide(file, staging.local_copy([file]), identity=identity)
