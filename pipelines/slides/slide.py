"""A whole-slide image that is open: its levels, its resolution, its pixels. Every reader fills it.

`opening.open_slide` gives one. Knows pixels and metadata; knows no format, no tissue, no patch and
no patient.
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

from pipelines.slides.errors import BrokenSlide
from pipelines.slides.geometry import Level, Point, Rectangle, Size
from pipelines.slides.resolution import MppPolicy, RecordedMpp
from pipelines.slides.source import SlideFile

WINDOW_PIXELS = 2**24
"""Pixels that a thumbnail reads at a time, or twice as many: 50 to 100 MB. If they are shrunk while
they are decoded they are `scale` times fewer, since their tiles need room as they are stored."""
MAX_OVERVIEW = 2**33
"""Pixels that are decoded for a thumbnail at most; `scale` times as many if they are shrunk while
they are decoded. A glass of 26 x 76 mm at 0.25 um per pixel, one level of JPEG, has 3.2 * 10^10."""


@dataclass(frozen=True, kw_only=True)
class SlideFacts:
    """What a file's metadata say.

    Attributes:
        vendor: format as OpenSlide names it.
        mpp: what there is of a scale, in micrometres per pixel of level 0.
        objective: magnification of the objective lens, None if unknown.
        scanner: maker and model, without serial number; empty if unknown.
        icc: ICC profile of level 0; empty if there is none.
        bounds: the scanned area, None if it is the whole of level 0.
        remarks: what of the file is not read, each as the end of a sentence about the slide.
    """

    vendor: str
    mpp: RecordedMpp = field(default_factory=RecordedMpp)
    objective: float | None = None
    scanner: str = ""
    icc: bytes = field(default=b"", repr=False)
    bounds: Rectangle | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OpenOptions:
    """What the caller of `open_slide` knows about a slide and its file does not say.

    Attributes:
        identity: the slide's identity if ingestion has established it.
        mpp: micrometres per pixel that are given, and what replaces a missing value.
    """

    identity: str | None = None
    mpp: MppPolicy = field(default_factory=MppPolicy)


class Slide(ABC):
    """An open slide. Use as a context manager.

    Attributes:
        uri: where it is.
        name: last part of the URI, for people.
        version: of its file or files: changes when they are replaced.
        identity: 32 hex digits: SHA-256 of the de-identified object if ingestion gave it, else of
            the object's version (size and mtime, or versioned ETag) and its tile index.
        vendor: format as OpenSlide names it: `aperio`, `hamamatsu`, `generic-tiff`, `ome-tiff`,
            `dicom`, ...
        levels: finest first.
        recorded_mpp: the scale in the metadata, as it is there; `mpp` is the one to use.
        objective: magnification of the objective lens, None if the metadata have none.
        scanner: maker and model; empty if unknown.
        icc: ICC profile; empty if there is none.
        bounds: the scanned area in pixels of level 0, None if it is the whole of it. Viewers may
            crop to it, and then give annotations relative to its corner.
        remarks: what of the file was not read or not believed, for reports. Each is the end of a
            sentence that begins with the slide's name; none holds text of the metadata.
        staged: whether the slide was copied from object storage to a local disk to be read.
    """

    uri: str
    name: str
    version: str
    identity: str
    vendor: str
    levels: tuple[Level, ...]
    recorded_mpp: RecordedMpp
    objective: float | None
    scanner: str
    icc: bytes
    bounds: Rectangle | None = None
    remarks: tuple[str, ...] = ()
    staged: bool = False
    _policy: MppPolicy = MppPolicy()
    _closed: bool = False

    def _describe(self, file: SlideFile, facts: SlideFacts, policy: MppPolicy) -> None:
        """Take over what the store and the metadata say."""
        self.uri, self.name, self.version = file.uri, file.name, file.version
        self.vendor, self.scanner, self.icc = facts.vendor, facts.scanner, facts.icc
        self.recorded_mpp, self.objective, self._policy = facts.mpp, facts.objective, policy
        self.bounds = facts.bounds
        self.remarks = tuple(filter(None, (*facts.remarks, policy.remark(facts.mpp))))

    @property
    def size(self) -> Size:
        """Pixels of level 0."""
        return self.levels[0].size

    @property
    def mpp(self) -> float:
        """Micrometres per pixel of level 0, by the policy that the slide was opened with.

        Raises:
            MissingResolution: neither the metadata nor the caller have one; it is never guessed.
            ImplausibleResolution: the only value can only be a unit error.
            AnisotropicResolution: pixels are not square.
        """
        return self._policy.decide(self.name, self.recorded_mpp, self.objective)

    def read_region(
        self, origin: Point, level: int, size: Size, *, scale: int = 1
    ) -> NDArray[np.uint8]:
        """Pixels of one level, uint8 [H, W, 3], white outside the slide.

        Args:
            origin: top-left corner in level-0 pixels; the nearest pixel of `level` is taken.
            level: index into `levels`, not negative.
            size: in pixels of `level`, divided by `scale`.
            scale: one of `scales(level)`: each pixel stands for a square of this side.

        Raises:
            BrokenSlide: a tile is missing or does not decode.
            ValueError: the slide is closed, or has no such level or scale.
        """
        return self.read_regions([origin], level, size, scale=scale)[0]

    def read_regions(
        self, origins: Sequence[Point], level: int, size: Size, *, scale: int = 1
    ) -> NDArray[np.uint8]:
        """Several regions of one size, uint8 [N, H, W, 3]; see `read_region`."""
        if self._closed:
            raise ValueError(f"slide {self.name} is closed")
        if not 0 <= level < len(self.levels):
            raise ValueError(
                f"slide {self.name} has levels 0 to {len(self.levels) - 1}, not {level}"
            )
        if scale not in self.scales(level):
            raise ValueError(f"level {level} of slide {self.name} can't be shrunk by {scale}")
        return self._read(origins, level, size, scale)

    @abstractmethod
    def _read(
        self, origins: Sequence[Point], level: int, size: Size, scale: int
    ) -> NDArray[np.uint8]:
        """`read_regions` with arguments that were checked."""

    def scales(self, level: int) -> tuple[int, ...]:
        """By what a level can be shrunk while it is decoded, largest first, 1 last."""
        del level
        return (1,)

    def close(self) -> None:
        """Release files and handles; closing again does nothing."""
        if not self._closed:
            self._closed = True
            self._release()

    @abstractmethod
    def _release(self) -> None:
        """Release files and handles, once."""

    def thumbnail(self, max_side: int = 1024) -> NDArray[np.uint8]:
        """The whole slide, its longer side at most `max_side` px, uint8 [h, w, 3].

        It is the area average of the nearest finer level. A level that is much larger is shrunk
        while it is decoded and read in windows, so that memory stays bounded.

        Raises:
            BrokenSlide: a tile is missing or does not decode, or no level is small enough to be
                read as a whole.
        """
        factor = max(1.0, max(self.size.width, self.size.height) / max_side)
        level, scale = self._overview_level(factor)
        source = level.size.shrunk(scale)
        width, height = (max(1, round(side / factor)) for side in self.size.shape[::-1])
        if (width, height) == (source.width, source.height):
            return self.read_region(Point(0, 0), level.index, source, scale=scale)
        # One pixel of the result may stand for more than a window: average in two steps.
        side = math.isqrt(WINDOW_PIXELS // scale)
        across = math.ceil(source.width / width / side)
        down = math.ceil(source.height / height / side)
        larger = self._averaged(level, source, Size(width * across, height * down), scale=scale)
        return np.asarray(Image.fromarray(larger).reduce((across, down)))

    def _overview_level(self, factor: float) -> tuple[Level, int]:
        """The coarsest level that is no coarser than `factor`, and by what to shrink it.

        Raises:
            BrokenSlide: it has more pixels than are read for an overview.
        """
        fine = [level for level in self.levels if level.downsample <= factor * 1.001]
        level = max(fine, key=lambda level: level.downsample)
        scale, pixels = 1, level.size.width * level.size.height
        if pixels > WINDOW_PIXELS:
            scales = self.scales(level.index)
            scale = next(s for s in scales if level.downsample * s <= factor * 1.001)
        if pixels > MAX_OVERVIEW * scale:
            shown = f"{level.size.width} x {level.size.height} px"
            cause = f"has no level for an overview smaller than {shown}"
            raise BrokenSlide(self.name, cause, "export it with all levels of its pyramid")
        return level, scale

    def _averaged(self, level: Level, source: Size, size: Size, *, scale: int) -> NDArray[np.uint8]:
        """All of a level as area averages, uint8 [h, w, 3] of `size`.

        Windows are wide, so that few requests read them, and as high as needed to decode few tiles
        twice.

        Args:
            level: the level.
            source: its pixels, shrunk by `scale`.
            size: of the result.
            scale: by what the level is shrunk while it is decoded.
        """
        out = np.empty((*size.shape, 3), np.uint8)
        pixels = WINDOW_PIXELS // scale
        width = min(source.width, 2 * math.isqrt(pixels))
        columns = max(1, width * size.width // source.width)
        rows = max(1, pixels // width * size.height // source.height)
        for top, left in itertools.product(
            range(0, size.height, rows), range(0, size.width, columns)
        ):
            part = out[top : top + rows, left : left + columns]
            bottom, right = top + part.shape[0], left + part.shape[1]
            box = (
                left * source.width / size.width,
                top * source.height / size.height,
                right * source.width / size.width,
                bottom * source.height / size.height,
            )
            part[:] = self._average(level, source, box, Size(part.shape[1], part.shape[0]), scale)
        return out

    def _average(
        self,
        level: Level,
        source: Size,
        box: tuple[float, float, float, float],
        size: Size,
        scale: int,
    ) -> NDArray[np.uint8]:
        """Area average of a box (left, top, right, bottom) of a shrunk level, uint8 of `size`."""
        left, top, right, bottom = box
        # The filter rounds its window to whole pixels, by at most one beyond it.
        x, y = max(math.floor(left) - 1, 0), max(math.floor(top) - 1, 0)
        width = min(math.ceil(right) + 1, source.width) - x
        height = min(math.ceil(bottom) + 1, source.height) - y
        origin = Point(round(x * scale * level.downsample), round(y * scale * level.downsample))
        window = self.read_region(origin, level.index, Size(width, height), scale=scale)
        inner = (left - x, top - y, min(right, source.width) - x, min(bottom, source.height) - y)
        return np.asarray(
            Image.fromarray(window).resize(
                (size.width, size.height), Image.Resampling.BOX, box=inner
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
