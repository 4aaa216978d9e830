"""DICOM whole-slide images (Supplement 145): a folder with the instances of one series, or one of its files. Through wsidicom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import wsidicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from wsidicom.errors import WsiDicomError

from pipelines import storage
from pipelines.slides.errors import BrokenSlide, SlideNotFound, UnsupportedSlide
from pipelines.slides.geometry import Level, Point, Size
from pipelines.slides.slide import Slide, SlideFile, check_mpp, identity_of

WSI_STORAGE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""SOP class UID of VL Whole Slide Microscopy Image Storage."""


def open_file(file: SlideFile, *, mpp: float | None, identity: str | None) -> DicomSlide:
    """Open the series that a single file belongs to: all instances of the same series in its folder.

    Raises:
        UnsupportedSlide: the file is DICOM but no whole-slide image, or remote.
    """
    path = storage.local_path(file.uri)
    if path is None:
        raise UnsupportedSlide(
            file.name, "is DICOM in object storage, which can't be read in place yet", "copy the series to a local folder"
        )
    return DicomSlide(path.parent, series_of=path, mpp=mpp, identity=identity)


def series_files(folder: Path, series_of: Path | None) -> list[Path]:
    """Files of the series' WSI instances, sorted.

    Raises:
        UnsupportedSlide: no whole-slide image among them, or several series and none chosen.
    """
    name = (series_of or folder).name
    found: dict[str, list[Path]] = {}
    wanted = None
    for path in sorted(folder.iterdir()):
        try:
            header = pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=["SOPClassUID", "SeriesInstanceUID", "PhotometricInterpretation"]
            )
        except (InvalidDicomError, IsADirectoryError):
            continue
        wsi = header.get("SOPClassUID") == WSI_STORAGE and header.get("PhotometricInterpretation") != "MONOCHROME2"
        if path == series_of:
            if not wsi:
                raise UnsupportedSlide(name, "is DICOM but not a colour whole-slide image", "give the WSI series itself")
            wanted = str(header.SeriesInstanceUID)
        if wsi:
            found.setdefault(str(header.SeriesInstanceUID), []).append(path)
    if wanted is not None:
        return found[wanted]
    if not found:
        raise SlideNotFound(name, "holds no DICOM whole-slide image", "give a folder with one WSI series")
    if len(found) > 1:
        raise UnsupportedSlide(name, f"holds {len(found)} DICOM series", "give one file of the series that is meant")
    return next(iter(found.values()))


class DicomSlide(Slide):
    """A DICOM WSI series. See `Slide` for the interface."""

    def __init__(
        self, folder: Path, *, series_of: Path | None = None, mpp: float | None = None, identity: str | None = None
    ) -> None:
        self.name = (series_of or folder).name
        self.uri = storage.as_uri(series_of or folder)
        self.vendor = "dicom"
        files = series_files(folder, series_of)
        try:
            self._handle = wsidicom.WsiDicom.open(files)
        except (WsiDicomError, ValueError, KeyError, AttributeError, OSError, NotImplementedError) as error:
            raise BrokenSlide(self.name, f"is a DICOM series that can't be opened ({error})", "export it again") from error
        base = self._handle.levels.base_level
        found = base.pixel_spacing.width * 1000 if base.pixel_spacing else None
        self.resolution = mpp if mpp is not None else found
        check_mpp(self.name, self.resolution)
        full = base.size
        self._at = [level.level for level in self._handle.levels]
        self.levels = tuple(
            Level(
                index=k,
                size=Size(level.size.width, level.size.height),
                downsample=(full.width / level.size.width + full.height / level.size.height) / 2,
                tile=Size(level.tile_size.width, level.tile_size.height),
            )
            for k, level in enumerate(self._handle.levels)
        )
        versions = "|".join(f"{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files)
        self.identity = identity or identity_of(versions, str(self._handle.uids.series_instance).encode())

    def read_region(self, origin: Point, level: int, size: Size) -> NDArray[np.uint8]:
        at = self.levels[level]
        x, y = round(origin.x / at.downsample), round(origin.y / at.downsample)
        out = np.full((*size.shape, 3), 255, np.uint8)
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + size.width, at.size.width), min(y + size.height, at.size.height)
        if x0 < x1 and y0 < y1:
            try:
                region = self._handle.read_region((x0, y0), self._at[level], (x1 - x0, y1 - y0))
            except (WsiDicomError, ValueError, OSError) as error:
                raise BrokenSlide(self.name, f"has frames that can't be decoded ({error})", "export it again") from error
            out[y0 - y : y1 - y, x0 - x : x1 - x] = np.asarray(region.convert("RGB"))
        return out

    def close(self) -> None:
        self._handle.close()
