"""Slides of formats that only OpenSlide opens: Hamamatsu NDPI, MIRAX, Leica SCN, Ventana BIF, Trestle and others.

Local files only: a remote slide is staged first (`staging`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image

from pipelines.slides.errors import BrokenSlide, UnsupportedSlide
from pipelines.slides.geometry import Level, Point, Size
from pipelines.slides.resolution import COARSEST_SCAN, PLAUSIBLE_MPP
from pipelines.slides.slide import Slide, SlideFacts
from pipelines.slides.source import SlideFile, identity_of
from pipelines.slides.staging import LocalCopy
from pipelines.slides.tiled import check_size

MOST_OVERVIEW = 2**31
"""Pixels of the coarsest level beyond which no overview is made: OpenSlide would read for minutes."""
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
        file: what the store tells.
        copy: where it lies on a local disk; released when the slide is closed.
        identity: where ingestion has established it.
    """

    def __init__(self, file: SlideFile, copy: LocalCopy, *, identity: str | None) -> None:
        self._copy = copy
        self._handle = _open(file, copy)
        try:
            self._know(file, _facts(self._handle))
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
        self.identity = identity or identity_of(file.version, quick_hash.encode())

    def read_region(
        self, origin: Point, level: int, size: Size, *, scale: int = 1
    ) -> NDArray[np.uint8]:
        assert scale == 1, "OpenSlide does not shrink while it decodes"
        try:
            region = self._handle.read_region(
                (origin.x, origin.y), level, (size.width, size.height)
            )
        except openslide.OpenSlideError as error:
            raise BrokenSlide(
                self.name, f"has pixels that can't be decoded ({error})", "copy or export it again"
            ) from error
        white = Image.new("RGB", region.size, (255, 255, 255))
        white.paste(region, mask=region.getchannel("A"))
        return np.asarray(white)

    def close(self) -> None:
        self._handle.close()
        self._copy.release()


def _open(file: SlideFile, copy: LocalCopy) -> openslide.OpenSlide:
    """OpenSlide's handle; the copy is released where there is none."""
    try:
        return openslide.OpenSlide(copy.paths[0])
    except openslide.OpenSlideUnsupportedFormatError as error:
        copy.release()
        raise UnsupportedSlide(
            file.name,
            "is not a whole-slide image that we know",
            "export it as SVS or pyramidal TIFF",
        ) from error
    except openslide.OpenSlideError as error:
        copy.release()
        raise BrokenSlide(
            file.name, f"can't be opened ({error})", "copy or export it again"
        ) from error


def _check_sizes(name: str, sizes: Sequence[Size], properties: Mapping[str, str]) -> None:
    """OpenSlide ends the process where it finds no memory for a tile.

    Raises:
        BrokenSlide: a level or its tiles are larger than any that scanners write, or there is no level for an overview.
    """
    for k, size in enumerate(sizes):
        sides = [
            _number(properties.get(f"openslide.level[{k}].tile-{side}"))
            for side in ("width", "height")
        ]
        check_size(name, size, Size(*(int(side or 1) for side in sides)))
    for width in (
        key for key in properties if key.startswith("mirax.") and key.endswith(".DIGITIZER_WIDTH")
    ):
        sides = [_number(properties.get(key)) for key in (width, width.replace("WIDTH", "HEIGHT"))]
        check_size(name, sizes[-1], Size(*(int(side or 1) for side in sides)))
    if sizes[-1].width * sizes[-1].height > MOST_OVERVIEW:
        cause = f"has no level smaller than {sizes[-1].width} x {sizes[-1].height} px"
        raise BrokenSlide(name, cause, "export it with all levels of its pyramid")


def _facts(handle: openslide.OpenSlide) -> SlideFacts:
    properties = handle.properties
    vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
    resolution = _number(properties.get(openslide.PROPERTY_NAME_MPP_X))
    if (
        vendor == "generic-tiff"
        and resolution
        and not PLAUSIBLE_MPP[0] <= resolution <= COARSEST_SCAN
    ):
        resolution = None  # a printing resolution such as 72 dpi, not a scale
    profile = handle.color_profile
    return SlideFacts(
        vendor=vendor,
        resolution=resolution,
        objective=_number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)),
        scanner=next((properties[name] for name in _SCANNER if name in properties), ""),
        icc=profile.tobytes() if profile else b"",
    )


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
