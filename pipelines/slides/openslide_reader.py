"""Slides that only OpenSlide opens: Hamamatsu NDPI, MIRAX, Leica SCN, Ventana BIF, Trestle, ...

Local files only: a remote slide is staged first (`staging`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image

from pipelines.slides import formats
from pipelines.slides.errors import BrokenSlide, UnsupportedSlide
from pipelines.slides.geometry import Level, Point, Rectangle, Size
from pipelines.slides.resolution import RecordedMpp, is_scan, positive_number
from pipelines.slides.slide import OpenOptions, Slide, SlideFacts
from pipelines.slides.source import SlideFile, identity_of
from pipelines.slides.staging import LocalCopy
from pipelines.slides.tiled import check_size

MAX_OVERVIEW = 2**31
"""Pixels of the coarsest level beyond which OpenSlide would read for minutes: no overview."""
_SCANNER = (
    "hamamatsu.Product",
    "leica.device-model",
    "ventana.ScannerModel",
    "mirax.GENERAL.SLIDE_TYPE",
    "tiff.Model",
)
"""Properties that name the scanner's model and no single machine."""


class OpenSlideSlide(Slide):
    """A slide read by OpenSlide. See `Slide` for the interface.

    Args:
        file: the slide's file in its store.
        copy: its local copy; released when the slide is closed.
        options: what the caller knows about the slide.
        facts: what its metadata say, if OpenSlide is to read nothing but its pixels.

    Raises:
        UnsupportedSlide: OpenSlide does not know the format.
        BrokenSlide: it can't open the file, or what the header says can't be true.
    """

    def __init__(
        self,
        file: SlideFile,
        copy: LocalCopy,
        options: OpenOptions,
        *,
        facts: SlideFacts | None = None,
    ) -> None:
        self._copy = copy
        self._handle = _open(file, copy)
        try:
            self._describe(file, facts or _facts(self._handle), options.mpp)
            sizes = [Size(*size) for size in self._handle.level_dimensions]
            _check_sizes(file.name, sizes, self._handle.properties)
        except (ValueError, openslide.OpenSlideError) as error:
            self.close()
            raise BrokenSlide(
                file.name, f"has a header that can't be true ({error})", "copy or export it again"
            ) from error
        except BaseException:
            self.close()
            raise
        self.staged = copy.staged
        downsamples = self._handle.level_downsamples
        self.levels = tuple(
            Level(index=k, size=size, downsample=downsamples[k]) for k, size in enumerate(sizes)
        )
        quick_hash = self._handle.properties.get(openslide.PROPERTY_NAME_QUICKHASH1, "")
        self.identity = options.identity or identity_of(file.version, quick_hash.encode())

    def _read(
        self, origins: Sequence[Point], level: int, size: Size, scale: int
    ) -> NDArray[np.uint8]:
        assert scale == 1, "OpenSlide does not shrink while it decodes"
        return np.stack([self._read_one(origin, level, size) for origin in origins])

    def _read_one(self, origin: Point, level: int, size: Size) -> NDArray[np.uint8]:
        try:
            region = self._handle.read_region(
                (origin.x, origin.y), level, (size.width, size.height)
            )
        except openslide.OpenSlideError as error:
            cause = f"has pixels that can't be decoded ({_reason(error, self._copy)})"
            raise BrokenSlide(self.name, cause, "copy or export it again") from None
        white = Image.new("RGB", region.size, (255, 255, 255))
        white.paste(region, mask=region.getchannel("A"))
        return np.asarray(white)

    def _release(self) -> None:
        self._handle.close()
        self._copy.release()


def _open(file: SlideFile, copy: LocalCopy) -> openslide.OpenSlide:
    """OpenSlide's handle; the copy is released if there is none."""
    try:
        return openslide.OpenSlide(copy.paths[0])
    except openslide.OpenSlideUnsupportedFormatError as error:
        copy.release()
        raise _unknown(file.name) from error
    except openslide.OpenSlideError as error:
        copy.release()
        cause = f"can't be opened ({_reason(error, copy)})"
        raise BrokenSlide(file.name, cause, "copy or export it again") from None


def _unknown(name: str) -> UnsupportedSlide:
    """The error for a file that OpenSlide does not know, or not without its further files."""
    suffix = PurePosixPath(name).suffix.lower()
    for form in formats.FORMATS:
        if form.files == "several" and suffix in form.suffixes:
            cause = f"is not a {form.name} slide, or lacks the files that belong to it"
            remedy = "copy all files of the slide, with their folder"
            return UnsupportedSlide(name, cause, remedy, code="incomplete-slide")
    cause = "is not a whole-slide image that we know"
    return UnsupportedSlide(name, cause, "export it as SVS or pyramidal TIFF")


def _reason(error: openslide.OpenSlideError, copy: LocalCopy) -> str:
    """OpenSlide's text without paths: a folder's or a file's name may be a patient's."""
    path = copy.paths[0]
    return str(error).replace(str(path.with_suffix("")), "...").replace(str(path.parent), "...")


def _check_sizes(name: str, sizes: Sequence[Size], properties: Mapping[str, str]) -> None:
    """Refuse what OpenSlide would end the process for: it does so if a tile exceeds the memory.

    Raises:
        BrokenSlide: a level or its tiles are larger than any that scanners write, or there is no
            level for an overview.
    """
    for k, size in enumerate(sizes):
        sides = [
            positive_number(properties.get(f"openslide.level[{k}].tile-{side}"))
            for side in ("width", "height")
        ]
        check_size(name, size, Size(*(int(side or 1) for side in sides)))
    for width in (
        key for key in properties if key.startswith("mirax.") and key.endswith(".DIGITIZER_WIDTH")
    ):
        sides = [
            positive_number(properties.get(key))
            for key in (width, width.replace("WIDTH", "HEIGHT"))
        ]
        check_size(name, sizes[-1], Size(*(int(side or 1) for side in sides)))
    if sizes[-1].width * sizes[-1].height > MAX_OVERVIEW:
        cause = f"has no level smaller than {sizes[-1].width} x {sizes[-1].height} px"
        raise BrokenSlide(name, cause, "export it with all levels of its pyramid")


def _facts(handle: openslide.OpenSlide) -> SlideFacts:
    properties = handle.properties
    vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
    profile = handle.color_profile
    return SlideFacts(
        vendor=vendor,
        mpp=_recorded_mpp(vendor, properties),
        objective=positive_number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)),
        scanner=next((properties[name] for name in _SCANNER if name in properties), ""),
        icc=profile.tobytes() if profile else b"",
        bounds=_bounds(handle),
    )


def _recorded_mpp(vendor: str, properties: Mapping[str, str]) -> RecordedMpp:
    names = (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
    x, y = (properties.get(name) for name in names)
    recorded = RecordedMpp.of_text(x, y, units=("um", "um"))
    printed = vendor == "generic-tiff" and not any(is_scan(mpp) for mpp in recorded.axes)
    return RecordedMpp() if printed else recorded


def _bounds(handle: openslide.OpenSlide) -> Rectangle | None:
    """The scanned area as OpenSlide reports it, None if that is all of level 0 or nothing."""
    names = (
        openslide.PROPERTY_NAME_BOUNDS_X,
        openslide.PROPERTY_NAME_BOUNDS_Y,
        openslide.PROPERTY_NAME_BOUNDS_WIDTH,
        openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
    )
    if not all(name in handle.properties for name in names):
        return None
    x, y, width, height = (int(handle.properties[name]) for name in names)
    if (x, y, width, height) == (0, 0, *handle.dimensions):
        return None
    return Rectangle(Point(x, y), Size(width, height))
