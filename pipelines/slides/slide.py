"""A whole-slide image that is open: its levels, its resolution, its pixels. `open_slide` is the one way in.

Local paths, `file://` and `s3://` are opened by the same call. Tiled JPEG TIFF and SVS go to the direct reader (`tiff`), DICOM to
`dicom`, the rest to OpenSlide. Knows pixels and metadata; knows no tissue, no patch and no patient.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

import numpy as np
import obstore
from numpy.typing import NDArray
from PIL import Image

from pipelines import storage
from pipelines.slides.errors import BrokenSlide, MissingResolution, SlideNotFound, UnsupportedSlide
from pipelines.slides.geometry import Level, Point, Size

PLAUSIBLE_MPP = (0.05, 20.0)
"""Micrometres per pixel between an oil-immersion scan and a macro photograph; beyond it the value is a unit error."""


@dataclass(frozen=True, kw_only=True)
class SlideFile:
    """What the store tells of the object before it is opened."""

    uri: str
    name: str
    size: int
    version: str

    @classmethod
    def find(cls, uri: str) -> SlideFile:
        """Look the object up.

        Raises:
            SlideNotFound: there is no such object.
        """
        uri = storage.as_uri(uri)
        name = slide_name(uri)
        local = storage.local_path(uri)
        if local is not None:
            if not local.is_file():
                raise SlideNotFound(name, "is not there or is not a file", "check the path")
            status = local.stat()
            return cls(uri=uri, name=name, size=status.st_size, version=f"{status.st_size}:{status.st_mtime_ns}")
        store, key = storage.locate(uri)
        try:
            meta = obstore.head(store, key)
        except (FileNotFoundError, PermissionError) as error:
            raise SlideNotFound(name, "is not in the store or may not be read", "check the URI and the permissions") from error
        return cls(uri=uri, name=name, size=meta["size"], version=f"{meta.get('version')}:{meta['e_tag']}")


def slide_name(uri: str) -> str:
    """The slide's name without folders, for errors and tables."""
    return PurePosixPath(unquote(urlsplit(uri).path)).name or uri


class Slide(ABC):
    """An open slide. Use as a context manager.

    Attributes:
        uri: where it is.
        name: last part of the URI, for people.
        identity: 32 hex digits: SHA-256 of the de-identified object where ingestion gave it, else of the object's version (size
            and mtime, or versioned ETag) and its tile index.
        vendor: format as OpenSlide names it: `aperio`, `hamamatsu`, `generic-tiff`, `ome-tiff`, `dicom`, ...
        levels: finest first.
        resolution: micrometres per pixel of level 0, None where neither metadata nor the caller tell.
    """

    uri: str
    name: str
    identity: str
    vendor: str
    levels: tuple[Level, ...]
    resolution: float | None

    @property
    def size(self) -> Size:
        """Pixels of level 0."""
        return self.levels[0].size

    @property
    def mpp(self) -> float:
        """Micrometres per pixel of level 0.

        Raises:
            MissingResolution: neither the metadata nor the caller tell; it is never guessed.
        """
        if self.resolution is None:
            raise MissingResolution.of(self.name)
        return self.resolution

    @abstractmethod
    def read_region(self, origin: Point, level: int, size: Size) -> NDArray[np.uint8]:
        """Pixels of one level, uint8 [H, W, 3], white outside the slide.

        Args:
            origin: top-left corner in level-0 pixels; the nearest pixel of `level` is taken.
            level: index into `levels`.
            size: in pixels of `level`.

        Raises:
            BrokenSlide: a tile is missing or does not decode.
        """

    @abstractmethod
    def close(self) -> None:
        """Release files and handles."""

    def thumbnail(self, max_side: int = 1024) -> NDArray[np.uint8]:
        """The whole slide, its longer side at most `max_side` px, uint8 [h, w, 3]; area average of the nearest finer level."""
        longest = max(self.size.width, self.size.height)
        factor = max(1.0, longest / max_side)
        level = max((at for at in self.levels if at.downsample <= factor * 1.001), key=lambda at: at.downsample)
        pixels = self.read_region(Point(0, 0), level.index, level.size)
        target = (max(1, round(self.size.width / factor)), max(1, round(self.size.height / factor)))
        if target == (level.size.width, level.size.height):
            return pixels
        return np.asarray(Image.fromarray(pixels).resize(target, Image.Resampling.BOX))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_slide(uri: str, *, mpp: float | None = None, identity: str | None = None) -> Slide:
    """Open a slide for reading: header and tile index only, no pixels.

    Args:
        uri: local path, `file://` or `s3://` URI; a folder for a DICOM series.
        mpp: micrometres per pixel of level 0; wins over the metadata.
        identity: the slide's identity where ingestion has established it.

    Raises:
        SlideNotFound: there is no such object.
        UnsupportedSlide: not a brightfield whole-slide image that we open.
        BrokenSlide: truncated or corrupt.
    """
    from pipelines.slides import dicom, openslide_reader, tiff  # readers know Slide, so they are imported late

    check_mpp(slide_name(storage.as_uri(uri)), mpp)
    local = storage.local_path(uri)
    if local is not None and local.is_dir():
        return dicom.DicomSlide(local, mpp=mpp, identity=identity)
    file = SlideFile.find(uri)
    head = bytes(storage.read_ranges(file.uri, [0], [min(file.size, 132)])[0]) if file.size else b""
    if len(head) < 132:
        raise BrokenSlide(file.name, f"has only {file.size} bytes", "export or copy it again")
    if head[128:132] == b"DICM":
        return dicom.open_file(file, mpp=mpp, identity=identity)
    if tiff.is_tiff(head):
        slide = tiff.open_direct(file, mpp=mpp, identity=identity)
        if slide is not None:
            return slide
    if local is None:
        raise UnsupportedSlide(
            file.name, "is of a format that can't be read in place from object storage", "copy it to a local disk first"
        )
    return openslide_reader.OpenSlideSlide(file, local, mpp=mpp, identity=identity)


def check_mpp(name: str, mpp: float | None) -> None:
    """Refuse a resolution that can only be a unit error.

    Raises:
        BrokenSlide: the value is outside `PLAUSIBLE_MPP`.
    """
    low, high = PLAUSIBLE_MPP
    if mpp is not None and not (math.isfinite(mpp) and low <= mpp <= high):
        raise BrokenSlide(
            name, f"has an mpp of {mpp:g}, outside {low:g} to {high:g} um", "give the true mpp in micrometres per pixel"
        )


def identity_of(version: str, *parts: bytes) -> str:
    """Identity of a slide read in place: 32 hex digits over the object's version and the digest of its tile index."""
    digest = hashlib.sha256(version.encode())
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:32]
