"""The direct reader: tiled JPEG TIFF, BigTIFF, OME-TIFF and Aperio SVS, local and remote, by their own tile index.

tifffile parses the index once; tiles are fetched by byte range and decoded by libjpeg-turbo with OpenSlide's exact pixels. What
is not tiled JPEG is left to other readers (`open_direct` answers None).

Specs: TIFF 6.0, BigTIFF, Aperio SVS (ImageDescription `Aperio ...|AppMag = 20|MPP = 0.4990`), OME-XML `PhysicalSizeX`.
"""

from __future__ import annotations

import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tifffile
from numpy.typing import NDArray

from pipelines import storage
from pipelines.slides import jpeg
from pipelines.slides.errors import BrokenSlide, UnsupportedSlide
from pipelines.slides.geometry import Level, Point, Size
from pipelines.slides.ranges import open_ranges
from pipelines.slides.slide import PLAUSIBLE_MPP, Slide, SlideFile, check_mpp, identity_of
from pipelines.slides.tiles import TileGrid, decode_windows

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SAME_SHAPE = 0.02
"""Pages whose width and height shrink alike within this share are levels of one pyramid: small levels round to whole pixels."""


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins so is a TIFF or BigTIFF."""
    return head[:4] in MAGICS


@dataclass(frozen=True, kw_only=True)
class TileIndex:
    """Where the tiles of one level lie.

    Attributes:
        grid: the level's tiling.
        offsets: byte offset of every tile, row by row, int64 [rows * columns].
        lengths: bytes of every tile, int64 [rows * columns].
        header: what makes a tile a JPEG by itself (`jpeg.whole_stream`).
    """

    grid: TileGrid
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    header: bytes


def fetch_tiles(uri: str, slide: str, index: TileIndex, numbers: list[int]) -> dict[int, bytes]:
    """Fetch tiles as JPEGs that stand on their own, by their numbers; near ranges travel in one request.

    Raises:
        BrokenSlide: a tile is missing, cut off or no JPEG.
    """
    starts, lengths = index.offsets[numbers], index.lengths[numbers]
    if (empty := np.flatnonzero(lengths <= 0)).size:
        raise BrokenSlide(slide, f"has no data for tile {numbers[empty[0]]}", "scan or export the slide again")
    try:
        parts = storage.read_ranges(uri, starts.tolist(), (starts + lengths).tolist())
        return {n: jpeg.whole_stream(index.header, part) for n, part in zip(numbers, parts, strict=True)}
    except ValueError as error:
        raise BrokenSlide(slide, f"has a tile that {error}", "scan or export the slide again") from error
    except OSError as error:
        raise BrokenSlide(slide, f"can't be read to its end ({type(error).__name__})", "copy the file again") from error


class TiffSlide(Slide):
    """A slide read by its own tile index. See `Slide` for the interface.

    Attributes:
        indexes: a `TileIndex` a level.
    """

    def __init__(
        self, file: SlideFile, pages: list[tifffile.TiffPage], *, vendor: str, resolution: float | None, identity: str | None
    ) -> None:
        self.uri, self.name, self.vendor, self.resolution = file.uri, file.name, vendor, resolution
        self.indexes = tuple(_tile_index(file, page) for page in pages)
        full = self.indexes[0].grid.level
        self.levels = tuple(
            Level(
                index=k,
                size=index.grid.level,
                downsample=(full.width / index.grid.level.width + full.height / index.grid.level.height) / 2,
                tile=index.grid.tile,
            )
            for k, index in enumerate(self.indexes)
        )
        parts = [part for index in self.indexes for part in (index.offsets.tobytes(), index.lengths.tobytes(), index.header)]
        self.identity = identity or identity_of(file.version, *parts)

    def read_region(self, origin: Point, level: int, size: Size) -> NDArray[np.uint8]:
        index, downsample = self.indexes[level], self.levels[level].downsample
        x = np.array([round(origin.x / downsample)], np.int64)
        y = np.array([round(origin.y / downsample)], np.int64)
        out = np.full((1, *size.shape, 3), 255, np.uint8)
        streams = fetch_tiles(self.uri, self.name, index, index.grid.covering(x, y, size))
        decode_windows(self.name, index.grid, streams, x=x, y=y, out=out)
        return out[0]

    def close(self) -> None:
        """Nothing stays open: tiles are read by range."""


_DAMAGE = (
    *(tifffile.TiffFileError, struct.error, ValueError, KeyError, IndexError, TypeError, AttributeError),
    *(OverflowError, MemoryError, OSError, ET.ParseError),
)
"""What tifffile raises on damaged headers."""


def open_direct(file: SlideFile, *, mpp: float | None, identity: str | None) -> TiffSlide | None:
    """Open a TIFF by its tile index, or answer None where it is not tiled JPEG in RGB.

    Raises:
        BrokenSlide: the header or index is corrupt, or the file ends before its tiles do.
        UnsupportedSlide: a TIFF of several channels or of greyscale.
    """
    try:
        with open_ranges(file.uri) as stream, tifffile.TiffFile(stream, name=file.name) as tiff:
            return _open_parsed(file, tiff, mpp=mpp, identity=identity)
    except _DAMAGE as error:
        cause = f"has a TIFF header that can't be read ({type(error).__name__})"
        raise BrokenSlide(file.name, cause, "it may be truncated: copy or export it again") from error


def _open_parsed(file: SlideFile, tiff: tifffile.TiffFile, *, mpp: float | None, identity: str | None) -> TiffSlide | None:
    pages = [page for page in _walk(tiff) if page.is_tiled]
    if tiff.is_ndpi or not pages:
        if not len(tiff.pages):
            raise BrokenSlide(file.name, "holds no image", "it may be truncated: copy or export it again")
        return None
    refuse_truncated(file.name, file.size, tiff)
    base = pages[0]
    if base.samplesperpixel == 1 and int(base.photometric) in (0, 1):
        raise UnsupportedSlide(file.name, "is greyscale or fluorescence, not brightfield colour", "give an H&E slide")
    levels = [page for page in pages if _same_pyramid(base, page)]
    if not all(_is_direct(page) for page in levels):
        return None
    found = _vendor_and_resolution(tiff, base)
    check_mpp(file.name, found[1])
    return TiffSlide(file, levels, vendor=found[0], resolution=mpp if mpp is not None else found[1], identity=identity)


def refuse_truncated(name: str, size: int, tiff: tifffile.TiffFile) -> None:
    """A file that was cut behind its levels still shows pixels, but is not the file that was scanned.

    Raises:
        BrokenSlide: the chain of directories breaks off, or reaches behind the file's `size` in bytes.
    """
    last, form = tiff.pages[-1], tiff.tiff
    tiff.filehandle.seek(last.offset)
    count = struct.unpack(form.tagnoformat, tiff.filehandle.read(form.tagnosize))[0]
    tiff.filehandle.seek(count * form.tagsize, 1)
    follower = struct.unpack(form.offsetformat, tiff.filehandle.read(form.offsetsize))[0]
    ends = [follower] + [
        a + b for page in tiff.pages for a, b in zip(page.dataoffsets[-1:], page.databytecounts[-1:], strict=True)
    ]
    if follower or max(ends) > size:
        cause = f"is truncated: its directories reach to byte {max(ends)} but it has {size} bytes"
        raise BrokenSlide(name, cause, "copy the file again")


def _walk(tiff: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    """Pages of the main chain, each followed by its SubIFDs (OME-TIFF keeps the pyramid there)."""
    for page in tiff.pages:
        yield page
        yield from page.pages or ()


def _same_pyramid(base: tifffile.TiffPage, page: tifffile.TiffPage) -> bool:
    across, down = base.imagewidth / page.imagewidth, base.imagelength / page.imagelength
    return across >= 1 and abs(across - down) <= SAME_SHAPE * across


def _is_direct(page: tifffile.TiffPage) -> bool:
    return (
        int(page.compression) == 7
        and page.samplesperpixel == 3
        and page.bitspersample == 8
        and int(page.planarconfig) == 1
        and int(page.photometric) in (2, 6)
    )


def _tile_index(file: SlideFile, page: tifffile.TiffPage) -> TileIndex:
    grid = TileGrid(level=Size(page.imagewidth, page.imagelength), tile=Size(page.tilewidth, page.tilelength))
    offsets, lengths = np.array(page.dataoffsets, np.int64), np.array(page.databytecounts, np.int64)
    if len(offsets) != grid.rows * grid.columns or len(lengths) != len(offsets):
        cause = f"lists {len(offsets)} tiles where its size needs {grid.rows * grid.columns}"
        raise BrokenSlide(file.name, cause, "copy or export it again")
    end = int((offsets + lengths).max())
    if end > file.size:
        raise BrokenSlide(
            file.name, f"is truncated: tiles reach to byte {end} but it has {file.size} bytes", "copy the file again"
        )
    return TileIndex(
        grid=grid,
        offsets=offsets,
        lengths=lengths,
        header=jpeg.stream_header(page.jpegtables, ycbcr=int(page.photometric) == 6),
    )


def _vendor_and_resolution(tiff: tifffile.TiffFile, base: tifffile.TiffPage) -> tuple[str, float | None]:
    description = str(base.description or "")
    if description.startswith("Aperio"):
        match = re.search(r"\|\s*MPP\s*=\s*([0-9.eE+-]+)", description)
        return "aperio", float(match[1]) if match else None
    if tiff.is_ome:
        return "ome-tiff", _ome_mpp(tiff.ome_metadata or "")
    return "generic-tiff", _tag_mpp(base)


_UNIT_IN_UM = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


def _ome_mpp(xml: str) -> float | None:
    for element in ET.fromstring(xml).iter():
        if element.tag.endswith("}Pixels") and (size := element.get("PhysicalSizeX")):
            unit = _UNIT_IN_UM.get(element.get("PhysicalSizeXUnit", "µm"))
            return float(size) * unit if unit is not None else None
    return None


def _tag_mpp(page: tifffile.TiffPage) -> float | None:
    """From XResolution; a value outside what a scanner makes (72 dpi and the like) is a printing resolution, not a scale."""
    unit = {2: 25_400.0, 3: 10_000.0}.get(int(page.tags.valueof("ResolutionUnit", default=1)))
    numerator, denominator = page.tags.valueof("XResolution", default=(0, 1))
    if unit is None or not numerator or not denominator:
        return None
    mpp = unit * denominator / numerator
    return mpp if PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1] else None
