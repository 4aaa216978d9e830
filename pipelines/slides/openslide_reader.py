"""Slides of formats that only OpenSlide opens: Hamamatsu NDPI, MIRAX, Leica SCN, Ventana BIF, Trestle, JPEG 2000 SVS.

Local files only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image

from pipelines.slides.errors import BrokenSlide, UnsupportedSlide
from pipelines.slides.geometry import Level, Point, Size
from pipelines.slides.slide import PLAUSIBLE_MPP, Slide, SlideFile, check_mpp, identity_of


class OpenSlideSlide(Slide):
    """A slide read by OpenSlide. See `Slide` for the interface."""

    def __init__(self, file: SlideFile, path: Path, *, mpp: float | None, identity: str | None) -> None:
        self.uri, self.name = file.uri, file.name
        try:
            self._handle = openslide.OpenSlide(path)
        except openslide.OpenSlideUnsupportedFormatError as error:
            raise UnsupportedSlide(
                file.name, "is not a whole-slide image that we know", "export it as SVS or pyramidal TIFF"
            ) from error
        except openslide.OpenSlideError as error:
            raise BrokenSlide(file.name, f"can't be opened ({error})", "copy or export it again") from error
        properties = self._handle.properties
        self.vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        found = properties.get(openslide.PROPERTY_NAME_MPP_X)
        if self.vendor == "generic-tiff" and found and float(found) > PLAUSIBLE_MPP[1]:
            found = None  # a printing resolution such as 72 dpi, not a scale
        self.resolution = mpp if mpp is not None else (float(found) if found else None)
        check_mpp(self.name, self.resolution)
        self.levels = tuple(
            Level(index=k, size=Size(*self._handle.level_dimensions[k]), downsample=self._handle.level_downsamples[k])
            for k in range(self._handle.level_count)
        )
        quick_hash = properties.get(openslide.PROPERTY_NAME_QUICKHASH1, "")
        self.identity = identity or identity_of(file.version, quick_hash.encode())

    def read_region(self, origin: Point, level: int, size: Size) -> NDArray[np.uint8]:
        try:
            region = self._handle.read_region((origin.x, origin.y), level, (size.width, size.height))
        except openslide.OpenSlideError as error:
            raise BrokenSlide(self.name, f"has pixels that can't be decoded ({error})", "copy or export it again") from error
        white = Image.new("RGB", region.size, (255, 255, 255))
        white.paste(region, mask=region.getchannel("A"))
        return np.asarray(white)

    def close(self) -> None:
        self._handle.close()
