"""A whole-slide image that is open: its levels, its resolution, its pixels. The interface that every reader fills.

`opening.open_slide` gives one. Knows pixels and metadata; knows no format, no tissue, no patch and no patient.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.slides.errors import BrokenSlide, MissingResolution
from pipelines.slides.geometry import Level, Point, Size
from pipelines.slides.resolution import check_mpp
from pipelines.slides.source import SlideFile

WINDOW_PIXELS = 2**24
"""Pixels that a thumbnail reads at a time, or twice as many: 50 to 100 MB. Shrunk while they are decoded they are `scale` times
fewer: their tiles, fetched as they are stored, take room too."""
MOST_OVERVIEW = 2**33
"""Pixels that are decoded for a thumbnail at most, `scale` times as many where they are shrunk while they are decoded: a glass of
26 x 76 mm, scanned at 0.25 um per pixel as one level of JPEG, has 3.2 * 10^10."""


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
            ImplausibleResolution: an mpp that can only be a unit error.
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
