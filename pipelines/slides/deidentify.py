"""Remove what identifies a patient from a slide file before anything else sees it.

What stays is listed, everything else goes. A copy is edited in place: what stays keeps its position
and its bytes, pixels among it. How a TIFF (SVS, OME-TIFF, NDPI, generic) is cleaned says
`tiff_cleaning`, how DICOM is `dicom_attributes`.

Any other format is refused, and so is a slide that would read differently afterwards: what can't be
cleaned is not taken.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from pipelines.slides.dicom_attributes import clean_series
from pipelines.slides.errors import SlideError, UnsupportedSlide
from pipelines.slides.geometry import Size
from pipelines.slides.opening import open_slide
from pipelines.slides.source import is_dicom, is_tiff
from pipelines.slides.tiff_cleaning import clean_tiff, not_yet


@dataclass(frozen=True, kw_only=True)
class DeidentifyReport:
    """What was removed, in words without the values.

    Attributes:
        images: associated images removed (`label`, `macro`, `thumbnail`; `image` if the file does
            not say what it shows).
        fields: names of metadata fields removed.
    """

    images: tuple[str, ...]
    fields: tuple[str, ...]


def deidentify(source: Path, target: Path) -> DeidentifyReport:
    """Write a de-identified copy; deterministic: the same scan always gets the same identity.

    Args:
        source: a file, or the folder of a DICOM series.
        target: the copy, of the same kind. There is none after an error: half cleaned is not
            cleaned.

    Raises:
        UnsupportedSlide: not a slide that we open, of a format that can't be cleaned yet, or one
            that would read differently without what must go.
        BrokenSlide: the file can't be read.
    """
    before = _summary(source)
    try:
        report = _clean(source, target)
        try:
            after = _summary(target)
        except SlideError as error:
            raise not_yet(source.name) from error
        if before != after:
            raise not_yet(source.name)
    except BaseException:
        if target.is_dir():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        raise
    return report


def _summary(path: Path) -> tuple[str, tuple[float, ...], Size]:
    """What must be the same before and after cleaning: vendor, recorded mpp, size of level 0.

    Some formats are recognised by text that must go, and would show wrong pixels without it.
    """
    with open_slide(str(path)) as slide:
        return slide.vendor, slide.recorded_mpp.axes, slide.size


def _clean(source: Path, target: Path) -> DeidentifyReport:
    if source.is_dir():
        images, fields = clean_series(source, target)
        return DeidentifyReport(images=images, fields=fields)
    with source.open("rb") as stream:
        head = stream.read(132)
    if is_tiff(head):
        images, fields = clean_tiff(source, target)
        return DeidentifyReport(images=images, fields=fields)
    if is_dicom(head):
        cause = "is one file of a DICOM series"
        raise UnsupportedSlide(
            source.name, cause, "give the folder with the whole series", code="one-dicom-file"
        )
    raise not_yet(source.name)
