"""A whole-slide image that is open: its levels, its resolution, its pixels. `open_slide` is the one way in.

Local paths, `file://` and `s3://` are opened by the same call. Tiled TIFF (SVS, OME-TIFF, Philips, ...) and DICOM are read in
place by their own tile index (`tiff`, `dicom`); what only OpenSlide or wsidicom can read is read from a local disk, to which
`staging` brings it. Knows pixels and metadata; knows no tissue, no patch and no patient.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

import numpy as np
import obstore
from numpy.typing import NDArray
from PIL import Image

from pipelines import storage
from pipelines.slides.errors import BrokenSlide, MissingResolution, SlideNotFound
from pipelines.slides.geometry import Level, Point, Size
from pipelines.slides.ranges import BLOCK, RangeFile

PLAUSIBLE_MPP = (0.05, 100.0)
"""Micrometres per pixel between an oil-immersion scan and a picture of the whole glass; beyond it the value is a unit error."""
COARSEST_SCAN = 20.0
"""Micrometres per pixel beyond which TIFF's resolution tags tell a printing resolution (72 dpi and the like), not a scale."""
WINDOW_PIXELS = 2**24
"""Pixels that a thumbnail reads at a time, or twice as many: 50 to 100 MB. Shrunk while they are decoded they are `scale` times
fewer: their tiles, fetched as they are stored, take room too."""
MOST_OVERVIEW = 2**33
"""Pixels that are decoded for a thumbnail at most, `scale` times as many where they are shrunk while they are decoded: a glass of
26 x 76 mm, scanned at 0.25 um per pixel as one level of JPEG, has 3.2 * 10^10."""
MPP_TIMES_OBJECTIVE = 10.0
"""0.5 um per pixel at 20x, 0.25 at 40x: the convention of the field."""


@dataclass(frozen=True, kw_only=True)
class SlideFile:
    """What the store tells of the object before it is opened.

    Attributes:
        uri: where it is.
        name: last part of the URI.
        size: bytes.
        version: changes with the content: size and mtime, or ETag; of all its files where the slide is a MIRAX or VMS.
        head: the first bytes, at most `ranges.BLOCK` of them.
    """

    uri: str
    name: str
    size: int
    version: str
    head: bytes = field(default=b"", repr=False)

    @classmethod
    def find(cls, uri: str) -> SlideFile:
        """Look the object up and fetch its head, in one request.

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
            with local.open("rb") as stream:
                head = stream.read(BLOCK)
            version = storage.file_version(status) + _companions(uri)
            return cls(uri=uri, name=name, size=status.st_size, version=version, head=head)
        try:
            head, meta = storage.read_head(uri, BLOCK)
        except (FileNotFoundError, PermissionError) as error:
            raise SlideNotFound(
                name, "is not in the store or may not be read", "check the URI and the permissions"
            ) from error
        except obstore.exceptions.BaseError as error:
            cause = f"can't be reached in its store ({type(error).__name__})"
            raise SlideNotFound(name, cause, "check the connection and the permissions") from error
        version = storage.object_version(meta) + _companions(uri)
        return cls(uri=uri, name=name, size=meta["size"], version=version, head=head)

    def open(self) -> RangeFile:
        """The object as a seekable file that fetches what is read."""
        return RangeFile(self.uri, self.size, self.head)


def _companions(uri: str) -> str:
    """Versions of a slide's further files: in a folder of its name (MIRAX), or beside it with names that begin as its own does
    (Hamamatsu VMS and VMU); empty for other formats."""
    stem, _, suffix = uri.rpartition(".")
    if suffix.lower() == "mrxs":
        return json.dumps(storage.versions(stem))
    if suffix.lower() in ("vms", "vmu"):
        return json.dumps(
            {
                at: version
                for at, version in storage.versions(uri.rpartition("/")[0]).items()
                if at.startswith(stem)
            }
        )
    return ""


@dataclass(frozen=True, kw_only=True)
class SlideFacts:
    """What a file's metadata tell.

    Attributes:
        vendor: format as OpenSlide names it.
        resolution: micrometres per pixel of level 0, None where the metadata don't tell.
        objective: magnification of the objective lens, None likewise.
        scanner: maker and model, without serial number; empty where unknown.
        icc: ICC profile of level 0; empty where there is none.
    """

    vendor: str
    resolution: float | None = None
    objective: float | None = None
    scanner: str = ""
    icc: bytes = field(default=b"", repr=False)


def slide_name(uri: str) -> str:
    """The slide's name without folders, for errors and tables."""
    return PurePosixPath(unquote(urlsplit(uri).path)).name or uri


class Slide(ABC):
    """An open slide. Use as a context manager.

    Attributes:
        uri: where it is.
        name: last part of the URI, for people.
        version: of its file or files: changes when they are replaced.
        identity: 32 hex digits: SHA-256 of the de-identified object where ingestion gave it, else of the object's version (size
            and mtime, or versioned ETag) and its tile index.
        vendor: format as OpenSlide names it: `aperio`, `hamamatsu`, `generic-tiff`, `ome-tiff`, `dicom`, ...
        levels: finest first.
        resolution: micrometres per pixel of level 0, None where neither metadata nor the caller tell.
        objective: magnification of the objective lens, None where the metadata don't tell. It is never taken for an mpp unasked.
        scanner: maker and model; empty where unknown.
        icc: ICC profile; empty where there is none.
        staged: whether the slide was copied from object storage to a local disk to be read.
    """

    uri: str
    name: str
    version: str
    identity: str
    vendor: str
    levels: tuple[Level, ...]
    resolution: float | None
    objective: float | None
    scanner: str
    icc: bytes
    staged: bool = False

    def _know(self, file: SlideFile, facts: SlideFacts) -> None:
        """Take over what the file and its metadata tell.

        Raises:
            BrokenSlide: an mpp that can only be a unit error.
        """
        check_mpp(file.name, facts.resolution)
        self.uri, self.name, self.version = file.uri, file.name, file.version
        self.vendor, self.resolution, self.objective = (
            facts.vendor,
            facts.resolution,
            facts.objective,
        )
        self.scanner, self.icc = facts.scanner, facts.icc

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
    def read_region(
        self, origin: Point, level: int, size: Size, *, scale: int = 1
    ) -> NDArray[np.uint8]:
        """Pixels of one level, uint8 [H, W, 3], white outside the slide.

        Args:
            origin: top-left corner in level-0 pixels; the nearest pixel of `level` is taken.
            level: index into `levels`.
            size: in pixels of `level`, divided by `scale`.
            scale: one of `scales(level)`: each pixel stands for a square of this side.

        Raises:
            BrokenSlide: a tile is missing or does not decode.
        """

    def read_regions(
        self, origins: Sequence[Point], level: int, size: Size, *, scale: int = 1
    ) -> NDArray[np.uint8]:
        """Several regions of one size, uint8 [N, H, W, 3]; see `read_region`."""
        return np.stack([self.read_region(origin, level, size, scale=scale) for origin in origins])

    def scales(self, level: int) -> tuple[int, ...]:
        """By what the level can be shrunk while it is decoded, largest first, 1 last."""
        del level
        return (1,)

    @abstractmethod
    def close(self) -> None:
        """Release files and handles."""

    def thumbnail(self, max_side: int = 1024) -> NDArray[np.uint8]:
        """The whole slide, its longer side at most `max_side` px, uint8 [h, w, 3]; area average of the nearest finer level.

        A level that is much larger is shrunk while it is decoded and read in windows, so that memory stays bounded.

        Raises:
            BrokenSlide: a tile is missing or does not decode, or no level is small enough to be read as a whole.
        """
        longest = max(self.size.width, self.size.height)
        factor = max(1.0, longest / max_side)
        level = max(
            (at for at in self.levels if at.downsample <= factor * 1.001),
            key=lambda at: at.downsample,
        )
        scale = 1
        if level.size.width * level.size.height > WINDOW_PIXELS:
            scale = next(
                at for at in self.scales(level.index) if level.downsample * at <= factor * 1.001
            )
        if level.size.width * level.size.height > MOST_OVERVIEW * scale:
            cause = f"has no level for an overview smaller than {level.size.width} x {level.size.height} px"
            raise BrokenSlide(self.name, cause, "export it with all levels of its pyramid")
        source = level.size.shrunk(scale)
        width, height = (
            max(1, round(side / factor)) for side in (self.size.width, self.size.height)
        )
        if (width, height) == (source.width, source.height):
            return self.read_region(Point(0, 0), level.index, source, scale=scale)
        side = math.isqrt(
            WINDOW_PIXELS // scale
        )  # one pixel of the result may stand for more than a window
        across, down = (
            math.ceil(source.width / width / side),
            math.ceil(source.height / height / side),
        )
        larger = self._averaged(level, source, Size(width * across, height * down), scale=scale)
        return np.asarray(Image.fromarray(larger).reduce((across, down)))

    def _averaged(self, level: Level, source: Size, size: Size, *, scale: int) -> NDArray[np.uint8]:
        """All of a level as area averages, uint8 [h, w, 3] of `size`; `source` are the pixels of the level, shrunk by `scale`.

        Windows are wide, to be read in few requests, but as high too as few tiles need to be decoded twice.
        """
        out = np.empty((*size.shape, 3), np.uint8)
        most = WINDOW_PIXELS // scale
        wide = min(source.width, 2 * math.isqrt(most))
        columns = max(1, wide * size.width // source.width)
        rows = max(1, most // wide * size.height // source.height)
        for top, left in itertools.product(
            range(0, size.height, rows), range(0, size.width, columns)
        ):
            part = out[top : top + rows, left : left + columns]
            begin, end = (top, left), (top + part.shape[0], left + part.shape[1])
            y0, x0 = (
                at * whole / shown
                for at, whole, shown in zip(begin, source.shape, size.shape, strict=True)
            )
            y1, x1 = (
                at * whole / shown
                for at, whole, shown in zip(end, source.shape, size.shape, strict=True)
            )
            # The filter rounds its window to whole pixels, by at most one beyond it.
            x, y = max(math.floor(x0) - 1, 0), max(math.floor(y0) - 1, 0)
            read = Size(
                min(math.ceil(x1) + 1, source.width) - x, min(math.ceil(y1) + 1, source.height) - y
            )
            origin = Point(round(x * scale * level.downsample), round(y * scale * level.downsample))
            window = Image.fromarray(self.read_region(origin, level.index, read, scale=scale))
            box = (x0 - x, y0 - y, min(x1, source.width) - x, min(y1, source.height) - y)
            part[:] = np.asarray(
                window.resize((part.shape[1], part.shape[0]), Image.Resampling.BOX, box=box)
            )
        return out

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


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
    check_mpp(slide_name(storage.as_uri(uri)), mpp)
    slide = _open(storage.as_uri(uri), identity)
    if mpp is not None:
        slide.resolution = mpp
    if slide.resolution is None and mpp_from_objective and slide.objective:
        slide.resolution = MPP_TIMES_OBJECTIVE / slide.objective
        check_mpp(slide.name, slide.resolution)
    return slide


def find_file(uri: str) -> SlideFile | None:
    """The slide's file; None where the slide is a folder or prefix of files, as a DICOM series is.

    Raises:
        SlideNotFound: there is neither.
    """
    if storage.is_folder(uri) if storage.local_path(uri) else uri.endswith("/"):
        return None
    try:
        return SlideFile.find(uri)
    except SlideNotFound as missing:
        if isinstance(missing.__cause__, obstore.exceptions.BaseError) or not _is_prefix(uri):
            raise  # a store that gives no answer of the object gives none of a folder
        return None


def _is_prefix(uri: str) -> bool:
    """Whether the URI is a folder written without its slash; not where the store does not tell."""
    try:
        return storage.is_folder(uri)
    except (PermissionError, obstore.exceptions.BaseError):
        return False


def _open(uri: str, identity: str | None) -> Slide:
    # Readers know Slide, and wsidicom alone takes most of a second to import: each is imported where it is needed.
    file = find_file(uri)
    if file is None:
        return _open_series(uri, None, identity)
    if len(file.head) < 132:
        raise BrokenSlide(file.name, f"has only {file.size} bytes", "export or copy it again")
    if is_dicom(file.head):
        return _open_series(uri.rsplit("/", 1)[0], file, identity)
    from pipelines.slides import openslide_reader, staging, tiff

    if tiff.is_tiff(file.head):
        slide = tiff.open_direct(file, identity=identity)
        if slide is not None:
            return slide
    return openslide_reader.OpenSlideSlide(file, staging.local_copy([file]), identity=identity)


def is_dicom(head: bytes) -> bool:
    """Whether a file begins as DICOM does (PS3.10, 7.1)."""
    return head[128:132] == b"DICM"


def _open_series(uri: str, series_of: SlideFile | None, identity: str | None) -> Slide:
    from pipelines.slides import dicom

    return dicom.open_series(uri, series_of=series_of, identity=identity)


def check_mpp(name: str, mpp: float | None) -> None:
    """Refuse a resolution that can only be a unit error.

    Raises:
        BrokenSlide: the value is outside `PLAUSIBLE_MPP`.
    """
    low, high = PLAUSIBLE_MPP
    if mpp is not None and not (math.isfinite(mpp) and low <= mpp <= high):
        raise BrokenSlide(
            name,
            f"has an mpp of {mpp:g}, outside {low:g} to {high:g} um",
            "give the true mpp in micrometres per pixel",
        )


def identity_of(version: str, *parts: bytes) -> str:
    """Identity of a slide read in place: 32 hex digits over the object's version and the digest of its tile index."""
    digest = hashlib.sha256(version.encode())
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:32]
