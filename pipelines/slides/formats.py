"""The formats of slides: the one table that discovery, upload and de-identification rely on.

A suffix is only a hint. What a file is, its first bytes decide (`opening`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, kw_only=True)
class SlideFormat:
    """A format of slides that is read.

    Attributes:
        name: for people.
        vendor: what `Slide.vendor` is for its slides.
        suffixes: of the file to open, lower case, with the dot.
        read: `in place` by its tile index, local or remote; or by `openslide`, from a local disk.
        files: `one`; `several`, of which one is opened and the others are found from it; or a
            `folder`, which is itself what is opened.
        deidentified: whether it can be cleaned of what identifies a patient.
    """

    name: str
    vendor: str
    suffixes: tuple[str, ...]
    read: Literal["in place", "openslide"]
    files: Literal["one", "several", "folder"] = "one"
    deidentified: bool = False


BIG_TIFF: Final = (".btf", ".tf2", ".tf8")
"""Suffixes that Bio-Formats and others give a TIFF above 4 GB."""

FORMATS: Final = (
    SlideFormat(
        name="Aperio SVS",
        vendor="aperio",
        suffixes=(".svs",),
        read="in place",
        deidentified=True,
    ),
    SlideFormat(
        name="OME-TIFF",
        vendor="ome-tiff",
        suffixes=(".tif", ".tiff", *BIG_TIFF),
        read="in place",
        deidentified=True,
    ),
    SlideFormat(
        name="tiled TIFF",
        vendor="generic-tiff",
        suffixes=(".tif", ".tiff", *BIG_TIFF),
        read="in place",
        deidentified=True,
    ),
    SlideFormat(name="Philips TIFF", vendor="philips", suffixes=(".tif", ".tiff"), read="in place"),
    SlideFormat(
        name="DICOM",
        vendor="dicom",
        suffixes=(".dcm", ".dicom"),
        read="in place",
        files="folder",
        deidentified=True,
    ),
    SlideFormat(
        name="Hamamatsu NDPI",
        vendor="hamamatsu",
        suffixes=(".ndpi",),
        read="openslide",
        deidentified=True,
    ),
    SlideFormat(
        name="Hamamatsu VMS",
        vendor="hamamatsu",
        suffixes=(".vms", ".vmu"),
        read="openslide",
        files="several",
    ),
    SlideFormat(
        name="MIRAX", vendor="mirax", suffixes=(".mrxs",), read="openslide", files="several"
    ),
    SlideFormat(name="Leica SCN", vendor="leica", suffixes=(".scn",), read="openslide"),
    SlideFormat(name="Ventana BIF", vendor="ventana", suffixes=(".bif",), read="openslide"),
    SlideFormat(name="Trestle", vendor="trestle", suffixes=(".tif",), read="openslide"),
    SlideFormat(name="Zeiss CZI", vendor="zeiss", suffixes=(".czi",), read="openslide"),
    SlideFormat(name="Sakura", vendor="sakura", suffixes=(".svslide",), read="openslide"),
)

NOT_READ: Final = {
    ".afi": "Leica AFI",
    ".ets": "Olympus ETS",
    ".i2syntax": "Philips iSyntax",
    ".ims": "Imaris IMS",
    ".isyntax": "Philips iSyntax",
    ".jp2": "JPEG 2000",
    ".kfb": "KFBIO KFB",
    ".lif": "Leica LIF",
    ".lof": "Leica LOF",
    ".mds": "Motic MDS",
    ".mdsx": "Motic MDSX",
    ".nd2": "Nikon ND2",
    ".ndpis": "Hamamatsu NDPIS",
    ".oir": "Olympus OIR",
    ".qptiff": "Akoya QPTIFF",
    ".sdpc": "Sqray SDPC",
    ".tmap": "UNIC TMAP",
    ".tron": "InveniMotic TRON",
    ".vsi": "Olympus VSI",
    ".zarr": "Zarr",
    ".zvi": "Zeiss ZVI",
}
"""Formats of microscopes that are not read, by suffix: a person should hear that one was found."""

ARCHIVES: Final = frozenset({".7z", ".rar", ".tar", ".tgz", ".zip"})
"""Files that pack others, which could be slides."""
COMPRESSED: Final = frozenset({".bz2", ".gz", ".xz", ".zst"})
"""What is added to the name of one file that is compressed as a whole."""


def suffixes(
    *, files: tuple[str, ...] = ("one", "several"), deidentified: bool | None = None
) -> frozenset[str]:
    """Suffixes of the formats that are stored so, and can (True) or can't (False) be cleaned."""
    return frozenset(
        suffix
        for format_ in FORMATS
        if format_.files in files and deidentified in (None, format_.deidentified)
        for suffix in format_.suffixes
    )
