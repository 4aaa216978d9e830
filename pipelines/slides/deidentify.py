"""Remove what identifies a patient from a slide file before anything else sees it.

TIFF family (SVS, generic TIFF, OME-TIFF, NDPI): a copy is edited in place. Label and macro images are unlinked from the chain of
directories and their bytes overwritten; free-text tags (description fields beyond an allow list, dates, names, comments) are
overwritten. DICOM: attributes of the Basic Confidentiality Profile (PS3.15 E) that these files carry are emptied; LABEL and
OVERVIEW instances are left out. Any other format is refused: what can't be cleaned is not taken.
"""

from __future__ import annotations

import re
import shutil
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pydicom
import tifffile

from pipelines.slides.errors import BrokenSlide, UnsupportedSlide
from pipelines.slides.tiff import is_tiff, refuse_truncated

KEPT_APERIO_FIELDS = ("AppMag", "MPP", "ICC Profile", "Gamma", "StripeWidth")
"""Fields of Aperio's description that describe optics; the others go: Filename, Date, User, ScanScope ID, Barcode ..."""

TEXT_TAGS = ("DateTime", "Artist", "HostComputer", "Copyright", "DocumentName", "PageName", "ImageID", "XMP", "IPTC", "Photoshop")
"""TIFF tags that hold free text or people's names."""

IDENTIFYING_KEYWORDS = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "OtherPatientIDs", "PatientAddress"),
    *(
        "AccessionNumber",
        "InstitutionName",
        "InstitutionAddress",
        "ReferringPhysicianName",
        "OperatorsName",
        "PhysiciansOfRecord",
    ),
    *("StudyDate", "StudyTime", "StudyID", "StudyDescription", "SeriesDate", "SeriesTime", "ContentDate", "ContentTime"),
    *("AcquisitionDateTime", "DeviceSerialNumber", "BarcodeValue", "LabelText", "ContainerIdentifier", "SpecimenIdentifier"),
    *("SpecimenDescriptionSequence", "StationName", "InstitutionalDepartmentName", "ClinicalTrialSubjectID"),
)
"""Attributes of PS3.15 table E.1-1 found in whole-slide images; dates go too, since nothing here needs them."""


@dataclass(frozen=True, kw_only=True)
class DeidentifyReport:
    """What was removed, in words without the values.

    Attributes:
        images: associated images removed (`label`, `macro`).
        fields: names of metadata fields removed.
    """

    images: tuple[str, ...]
    fields: tuple[str, ...]


def deidentify(source: Path, target: Path) -> DeidentifyReport:
    """Write a de-identified copy; deterministic, so that the same scan always gets the same identity.

    Args:
        source: a file, or the folder of a DICOM series.
        target: the copy, of the same kind.

    Raises:
        UnsupportedSlide: the format can't be cleaned yet.
        BrokenSlide: the file can't be read.
    """
    if source.is_dir():
        return _deidentify_dicom(sorted(path for path in source.iterdir() if _is_dicom(path)), target)
    with source.open("rb") as stream:
        head = stream.read(4)
    if is_tiff(head):
        return _deidentify_tiff(source, target)
    if _is_dicom(source):
        raise UnsupportedSlide(source.name, "is one file of a DICOM series", "give the folder with the whole series")
    cause = "is of a format that can't be de-identified yet"
    raise UnsupportedSlide(source.name, cause, "convert it to SVS, OME-TIFF or DICOM first")


def _deidentify_tiff(source: Path, target: Path) -> DeidentifyReport:
    shutil.copyfile(source, target)
    try:
        with target.open("r+b") as stream:
            tiff = tifffile.TiffFile(stream)
            refuse_truncated(source.name, source.stat().st_size, tiff)  # a directory that can't be reached can't be cleaned
            kept, removed = _divide(tiff)
            _overwrite_images(stream, [page for _, page in removed])
            fields = sorted({name for page in kept for name in _clean_tags(stream, page)})
            _relink(stream, tiff, kept)
        return DeidentifyReport(images=tuple(name for name, _ in removed), fields=tuple(fields))
    except BrokenSlide:
        target.unlink(missing_ok=True)  # half cleaned is not cleaned
        raise
    except (
        tifffile.TiffFileError,
        struct.error,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        ET.ParseError,
    ) as error:
        target.unlink(missing_ok=True)
        cause = f"has a TIFF header that can't be read ({type(error).__name__})"
        raise BrokenSlide(source.name, cause, "it may be truncated: copy or export it again") from error


def _divide(tiff: tifffile.TiffFile) -> tuple[list[tifffile.TiffPage], list[tuple[str, tifffile.TiffPage]]]:
    """Pages that show the specimen, and those that show the glass with its label."""
    kept, removed = [], []
    for page in tiff.pages:
        name = _associated_name(tiff, page)
        if name:
            removed.append((name, page))
        else:
            kept.append(page)
    return kept, removed


def _associated_name(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> str:
    text = str(page.description or "").lower()
    if tiff.is_ndpi:
        magnification = page.tags.valueof(65421, default=1.0)  # NDPI: -1 is the macro image, -2 the map of scanned regions
        return {-1.0: "macro", -2.0: "map"}.get(float(magnification), "")
    for name in ("label", "macro"):
        if re.search(rf"(^|\n|\s){name}\b", text) and not page.is_tiled:
            return name
    if not page.is_tiled and page.index > 0 and int(page.subfiletype) in (1, 9) and "->" not in text:
        return "macro" if int(page.subfiletype) == 9 else "label"
    return ""


def _overwrite_images(stream: IO[bytes], pages: Iterable[tifffile.TiffPage]) -> None:
    for page in pages:
        for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
            _write_at(stream, offset, b"\0" * length)
        for tag in page.tags.values():
            if tag.valuebytecount > 8:
                _write_at(stream, tag.valueoffset, b"\0" * tag.valuebytecount)


def _write_at(stream: IO[bytes], offset: int, data: bytes) -> None:
    stream.seek(offset)
    stream.write(data)


def _clean_tags(stream: IO[bytes], page: tifffile.TiffPage) -> list[str]:
    """Overwrite identifying text of a kept page in place; values keep their length, so no offset moves."""
    removed = []
    for tag in page.tags.values():
        if tag.name in TEXT_TAGS or (tag.name.startswith("Ndpi") and tag.dtype == 2) or tag.code in (65427, 65449):
            _write_at(stream, tag.valueoffset, b"\0" * tag.valuebytecount)
            removed.append(tag.name)
        elif tag.name == "ImageDescription":
            text, names = _clean_description(str(tag.value))
            removed += names
            encoded = text.encode("utf-8", "replace")[: tag.valuebytecount - 1]
            _write_at(stream, tag.valueoffset, encoded + b"\0" * (tag.valuebytecount - len(encoded)))
    return removed


def _clean_description(text: str) -> tuple[str, list[str]]:
    """Aperio: keep the size line and optical fields. OME-XML: drop names, dates and free text. Else: drop all."""
    if text.startswith("Aperio"):
        first, *pairs = text.split("|")
        fields = [(pair.split("=")[0].strip(), pair) for pair in pairs]
        kept = [pair for name, pair in fields if name in KEPT_APERIO_FIELDS]
        size = re.sub(r"[^\r\n]*(?=\r?\n)", lambda match: match[0][:40], first, count=1).split(";")[0]
        return "|".join([size, *kept]), [name for name, _ in fields if name not in KEPT_APERIO_FIELDS]
    if "<OME" in text:
        return _clean_ome(text), ["OME names, dates and annotations"]
    return "", ["ImageDescription"] if text else []


_OME_KEPT = {"OME": (), "Image": ("ID",), "Pixels": None, "Channel": ("ID", "SamplesPerPixel"), "TiffData": None}
"""Elements of OME-XML that stay, with their attributes (None for all): geometry and channels."""


def _clean_ome(text: str) -> str:
    root = ET.fromstring(text)
    namespace = root.tag[: root.tag.index("}") + 1]

    def kept(element: ET.Element) -> ET.Element:
        allowed = _OME_KEPT[element.tag.removeprefix(namespace)]
        copy = ET.Element(element.tag, {k: v for k, v in element.attrib.items() if allowed is None or k in allowed})
        copy.extend(kept(child) for child in element if child.tag.removeprefix(namespace) in _OME_KEPT)
        return copy

    ET.register_namespace("", namespace.strip("{}"))
    return ET.tostring(kept(root), encoding="unicode")


def _relink(stream: IO[bytes], tiff: tifffile.TiffFile, kept: list[tifffile.TiffPage]) -> None:
    """Let each kept directory point to the next kept one."""
    form = tiff.tiff
    for page, follower in zip(kept, [*kept[1:], None], strict=True):
        stream.seek(page.offset)
        count = struct.unpack(form.tagnoformat, stream.read(form.tagnosize))[0]
        _write_at(
            stream,
            page.offset + form.tagnosize + count * form.tagsize,
            struct.pack(form.offsetformat, follower.offset if follower else 0),
        )


def _is_dicom(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _deidentify_dicom(files: list[Path], target: Path) -> DeidentifyReport:
    if not files:
        raise UnsupportedSlide(target.name, "holds no DICOM file", "give the folder with the whole series")
    target.mkdir(parents=True, exist_ok=True)
    images, fields = [], set()
    for number, path in enumerate(files):
        dataset = pydicom.dcmread(path)
        kind = [str(part) for part in dataset.get("ImageType", [])]
        associated = [name for name in ("LABEL", "OVERVIEW") if name in kind]
        if associated:
            images.append(associated[0].lower())
            continue
        for element in list(dataset.iterall()):
            if element.keyword in IDENTIFYING_KEYWORDS and element.value:
                fields.add(element.keyword)
                element.value = [] if element.VR == "SQ" else None
        dataset.remove_private_tags()
        dataset.save_as(target / f"{number:04d}.dcm")
    return DeidentifyReport(images=tuple(images), fields=tuple(sorted(fields)))
