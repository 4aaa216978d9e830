"""DICOM series that can't be read by their frames' offsets: read by wsidicom, from a local disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import wsidicom
import wsidicom.errors
from numpy.typing import NDArray

from pipelines.slides import staging
from pipelines.slides.dicom import Series, reading
from pipelines.slides.dicom_index import DAMAGE
from pipelines.slides.errors import BrokenSlide, UnsupportedSlide
from pipelines.slides.geometry import Level, Point, Size
from pipelines.slides.slide import OpenOptions, Slide
from pipelines.slides.source import identity_of

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
_OF_WSIDICOM = tuple(
    kind
    for kind in vars(wsidicom.errors).values()
    if isinstance(kind, type) and issubclass(kind, Exception)
)
"""wsidicom's own errors, which have no common base."""
_DAMAGE = (*DAMAGE, *_OF_WSIDICOM)


class WsiDicomSlide(Slide):
    """A series read by wsidicom. See `Slide` for the interface.

    Raises:
        BrokenSlide: damaged instances.
        UnsupportedSlide: wsidicom does not read the pixels of the largest instance.
    """

    def __init__(self, series: Series, options: OpenOptions) -> None:
        self._describe(series.file, series.facts, options.mpp)
        with reading(self.name, _DAMAGE):
            self._copy = staging.local_copy([volume.file for volume in series.volumes])
            try:
                self._handle = _open(self._copy.paths, series)
                syntaxes = {str(v.header.file_meta.TransferSyntaxUID) for v in series.volumes}
                if JPEG_BASELINE in syntaxes:
                    _decode_strictly(self._handle)
                self._numbers, self.levels = _levels(self._handle)
                if self.levels[0].size != series.volumes[0].size:
                    self._handle.close()
                    raise _unsupported(series)
            except BaseException:
                self._copy.release()
                raise
        self.staged = self._copy.staged
        self.identity = options.identity or identity_of(series.file.version)

    def _read(
        self, origins: Sequence[Point], level: int, size: Size, scale: int
    ) -> NDArray[np.uint8]:
        assert scale == 1, "wsidicom does not shrink while it decodes"
        return np.stack([self._read_one(origin, level, size) for origin in origins])

    def _read_one(self, origin: Point, level: int, size: Size) -> NDArray[np.uint8]:
        shown = self.levels[level]
        x, y = round(origin.x / shown.downsample), round(origin.y / shown.downsample)
        out = np.full((*size.shape, 3), 255, np.uint8)
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + size.width, shown.size.width), min(y + size.height, shown.size.height)
        if x0 < x1 and y0 < y1:
            number, inside = self._numbers[level], (x1 - x0, y1 - y0)
            try:
                region = self._handle.read_region((x0, y0), number, inside)
            except _DAMAGE as error:
                cause = f"has frames that can't be decoded ({error})"
                raise BrokenSlide(self.name, cause, "export it again") from error
            out[y0 - y : y1 - y, x0 - x : x1 - x] = np.asarray(region.convert("RGB"))
        return out

    def _release(self) -> None:
        self._handle.close()
        self._copy.release()


def _open(paths: Sequence[Path], series: Series) -> wsidicom.WsiDicom:
    """wsidicom passes over instances that it does not read, and finds nothing if these are all."""
    try:
        return wsidicom.WsiDicom.open(list(paths))
    except wsidicom.errors.WsiDicomNotFoundError:
        raise _unsupported(series) from None


def _unsupported(series: Series) -> UnsupportedSlide:
    header = series.volumes[0].header
    colour, bits = str(header.get("PhotometricInterpretation")), header.get("BitsAllocated")
    planes = ", colours in planes" if header.get("PlanarConfiguration") else ""
    shown = f"{colour}, {bits} bits, {header.file_meta.TransferSyntaxUID.name}{planes}"
    cause = f"has DICOM pixels of a kind that is not read ({shown})"
    facts = {"colour": colour}
    return UnsupportedSlide(
        series.file.name, cause, "export it as RGB or JPEG of 8 bits", code="pixels", facts=facts
    )


def _levels(handle: wsidicom.WsiDicom) -> tuple[list[int], tuple[Level, ...]]:
    """wsidicom's numbers of the levels, and the levels."""
    full = handle.levels.base_level.size
    levels = tuple(
        Level(
            index=k,
            size=Size(level.size.width, level.size.height),
            downsample=(full.width / level.size.width + full.height / level.size.height) / 2,
            tile=Size(level.tile_size.width, level.tile_size.height),
        )
        for k, level in enumerate(handle.levels)
    )
    return [level.level for level in handle.levels], levels


def _decode_strictly(handle: wsidicom.WsiDicom) -> None:
    """Let frames that libjpeg warns of raise ValueError.

    wsidicom's decoder ignores the warnings and shows grey or garbage.
    """
    for decoder in {
        instance.image_data.decoder
        for level in handle.levels
        for instance in level.instances.values()
    }:
        decoder.decode = _Strict(decoder.decode)


class _Strict:
    def __init__(self, decode: Callable[[bytes], NDArray[Any]]) -> None:
        self._decode = decode

    def __call__(self, frame: bytes) -> NDArray[Any]:
        simplejpeg.decode_jpeg(frame, "GRAY")
        return self._decode(frame)
