"""Slides in every format, written by ourselves, for tests, fuzzing and benchmarks.

`FORMATS` names the small ones and `write_slide` writes one: generated tissue on glass, from which
patches can be cut.
`write_huge_tiff` writes one beyond 4 GiB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipelines.annotations import PATTERNS
from pipelines.synthetic.tissue import generate_tile
from tests.support import dicom_slides, tiff_slides, vendor_slides
from tests.support import tiff_writer as tw
from tests.support.tiff_slides import (
    JPEG,
    MPP,
    TILE,
    YCBCR,
    Pixels,
    Tags,
    TiffSlide,
    abbreviated,
    jpeg_tables,
    jpeg_ycc,
    pyramid,
)
from tests.support.tiff_writer import Directory, TiffForm

GLASS = (243, 241, 244)
WIDTH, HEIGHT = 701, 563
"""Pixels of level 0 of a small slide: no multiple of its 128-px tiles."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of small slides.

    Attributes:
        write: `write(path, pixels)`; makes a folder where the slide is a series of files.
        file: the slide's name in the folder that it is written to; what `open_slide` is given.
        direct: whether it is read in place, on the local disk and in S3.
        lossless: whether pixels are stored as they are.
        vendor: as `Slide.vendor` has it.
    """

    write: Callable[[Path, Pixels], None]
    file: str
    direct: bool = True
    lossless: bool = False
    vendor: str = "generic-tiff"


def picture(width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """Tissue on glass, uint8 [height, width, 3]."""
    pixels = np.full((height, width, 3), GLASS, np.uint8)
    top, left = height // 9, width // 8
    tissue = generate_tile("gleason_3", np.random.default_rng(1), side=max(width, height))
    pixels[top:-top, left:-left] = tissue[: height - 2 * top, : width - 2 * left]
    return pixels


def write_ome_jpeg(path: Path, pixels: Pixels) -> None:
    """An OME-TIFF with sub-directories, whose tiles are JPEGs in YCbCr that share their tables and
    don't name their colours."""
    height, width = pixels.shape[:2]
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?><OME '
        'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" '
        'Interleaved="true" '
        f'SizeX="{width}" SizeY="{height}" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="{MPP}" '
        f'PhysicalSizeY="{MPP}">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/>'
        "</Pixels></Image></OME>"
    )
    tables: Tags = {tw.JPEG_TABLES: ("undefined", jpeg_tables(jpeg_ycc(pixels[:TILE, :TILE])))}
    TiffSlide(
        encode=lambda part: abbreviated(jpeg_ycc(part)),
        compression=JPEG,
        photometric=YCBCR,
        sub=True,
        base=tables | {tw.DESCRIPTION: ("ascii", xml), tw.SOFTWARE: ("ascii", "OME Bio-Formats 7")},
        others=lambda _: tables | {tw.SUBFILE: ("long", [1])},
    ).write(path, pyramid(pixels))


def _tiff(name: str) -> Format:
    vendor = {"svs": "aperio", "ome": "ome-tiff", "philips": "philips"}.get(
        name.partition("-")[0], "generic-tiff"
    )
    lossless = name.startswith(("tiff-deflate", "tiff-lzw", "tiff-raw", "ome"))
    suffix = "svs" if vendor == "aperio" else "ome.tiff" if vendor == "ome-tiff" else "tiff"
    return Format(
        write=tiff_slides.WRITERS[name], file=f"slide.{suffix}", lossless=lossless, vendor=vendor
    )


def _vendor(name: str) -> Format:
    suffix, vendor = {
        "bif": ("bif", "ventana"),
        "mirax": ("mrxs", "mirax"),
        "ndpi": ("ndpi", "hamamatsu"),
        "scn": ("scn", "leica"),
        "trestle": ("tif", "trestle"),
    }[name]
    return Format(
        write=vendor_slides.WRITERS[name], file=f"slide.{suffix}", direct=False, vendor=vendor
    )


def _dicom(name: str) -> Format:
    lossless = name in ("dicom-jpegls", "dicom-raw")
    return Format(
        write=dicom_slides.SERIES[name].write, file="series", lossless=lossless, vendor="dicom"
    )


FORMATS: dict[str, Format] = {
    **{name: _tiff(name) for name in tiff_slides.WRITERS},
    "ome-jpeg": Format(write=write_ome_jpeg, file="slide.ome.tiff", vendor="ome-tiff"),
    **{name: _dicom(name) for name in dicom_slides.SERIES},
    **{name: _vendor(name) for name in vendor_slides.WRITERS},
}
"""Formats by name; `svs-33003-422` needs OpenJPEG's command (`tiff_slides.has_opj_compress`)."""


def write_slide(name: str, folder: Path, pixels: Pixels | None = None) -> Path:
    """Write a small slide of the format `name` into `folder`; returns what to open."""
    path = folder / FORMATS[name].file
    FORMATS[name].write(path, picture() if pixels is None else pixels)
    return path


HUGE_PERIOD = 2048
"""Pixels of level 0 after which the tissue of a huge slide repeats."""
HUGE_BLOCK = 16
"""Tiles: tissue and glass of a huge slide begin at multiples of it, so that levels 1 and 2 have no
mixed tiles either."""
HUGE_COPIES = 8
"""Positions in a huge file at which all its different tiles are stored."""
HUGE_QUALITY = 93
"""JPEG quality at which a tile of generated tissue has 24 kB, and one of a huge slide 17 kB on
average: as in scans."""


def write_huge_tiff(
    path: Path, *, gigabytes: float, mpp: float = 0.25, tile: int = 256, aperio: bool = False
) -> None:
    """Write a valid BigTIFF of `gigabytes` (10^9 bytes) that uses about 20 MB of disk.

    Most of it is a hole. Level 0 has as many JPEG tiles (4:2:0) as would fill the file, with strips
    of tissue between glass; every level is a quarter as wide as the one before. The 64 different
    tiles of tissue are stored `HUGE_COPIES` times all over the file, and a tile of the slide is the
    copy nearest to where it would be in a file without a hole. Pixels, offsets and index are those
    of a real file; reads are easier than a real one's, since neighbours share bytes and the disk's
    cache holds all of them.

    Args:
        path: where to; the file system must know holes.
        gigabytes: size of the file; a slide has 48 x 48 tiles at least.
        mpp: micrometres per pixel.
        tile: side of a tile in pixels, a divisor of `HUGE_PERIOD`.
        aperio: whether its levels are described as those of an SVS are.
    """
    slide, form = _HugeSlide.of_size(int(gigabytes * 1e9), tile), TiffForm(big=True)
    with path.open("wb") as stream:
        stream.write(b"\0" * form.header_size)
        chain, shrink = [], 1
        while shrink == 1 or slide.side // shrink * 4 > 1024:
            write = slide.write_aliased if HUGE_BLOCK % shrink == 0 else slide.write_rendered
            more = _aperio_description(slide, shrink, mpp) if aperio else {}
            chain.append(_huge_directory(slide, shrink, mpp, write(stream, shrink), more))
            shrink *= 4
        stream.truncate(max(slide.bytes, stream.seek(0, 2)))
        tw.write_directories(stream, chain, form)


Ranges = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class _HugeSlide:
    """What a huge slide shows.

    Attributes:
        bytes: of the file.
        tile: side of a tile in pixels.
        tissue: the four patterns, uint8 [HUGE_PERIOD, HUGE_PERIOD, 3].
        here: which blocks of tiles show tissue, bool [B, B].
    """

    bytes: int
    tile: int
    tissue: NDArray[np.uint8]
    here: NDArray[np.bool_]

    @classmethod
    def of_size(cls, size: int, tile: int) -> Self:
        rng = np.random.default_rng(7)
        a, b, c, d = (generate_tile(pattern, rng, side=HUGE_PERIOD // 2) for pattern in PATTERNS)
        tissue = np.concatenate([np.concatenate([a, b], axis=1), np.concatenate([c, d], axis=1)])
        mean = float(np.mean([len(_huge_jpeg(part)) for part in tw.tiles_of(tissue, tile)]))
        blocks = 3
        while _strips(blocks).sum() * HUGE_BLOCK**2 * mean < size:
            blocks += 1
        return cls(bytes=size, tile=tile, tissue=tissue, here=_strips(blocks))

    @property
    def side(self) -> int:
        """Pixels of level 0 along either side."""
        return len(self.here) * HUGE_BLOCK * self.tile

    def write_aliased(self, stream: IO[bytes], shrink: int) -> Ranges:
        """A level whose tiles are all tissue or all glass.

        Each different one is written once, at level 0 `HUGE_COPIES` times.
        """
        texture = self._texture(shrink, self.tile)
        period = len(texture) // self.tile
        glass = np.full((self.tile, self.tile, 3), GLASS, np.uint8)
        pool = [_huge_jpeg(part) for part in (*tw.tiles_of(texture, self.tile), glass)]
        lengths = np.array([len(part) for part in pool], np.int64)
        copies = HUGE_COPIES if shrink == 1 else 1
        starts = []
        for k in range(copies):
            starts.append(stream.seek(max(k * self.bytes // copies, stream.seek(0, 2))))
            stream.write(b"".join(pool))
        here = self.here.repeat(HUGE_BLOCK // shrink, axis=0).repeat(HUGE_BLOCK // shrink, axis=1)
        row, column = np.indices(here.shape)
        number = np.where(here, row % period * period + column % period, period**2).ravel()
        place = np.arange(number.size) * copies // number.size
        return np.array(starts, np.int64)[place] + (np.cumsum(lengths) - lengths)[number], lengths[
            number
        ]

    def write_rendered(self, stream: IO[bytes], shrink: int) -> Ranges:
        """A level with mixed tiles: each is written."""
        side = self.side // shrink
        block = np.arange(side) * len(self.here) // side
        shown = self.here[np.ix_(block, block)][..., None]
        pixels = np.where(
            shown, self._texture(shrink, side)[:side, :side], np.array(GLASS, np.uint8)
        )
        lengths = np.array(
            [stream.write(_huge_jpeg(part)) for part in tw.tiles_of(pixels, self.tile)], np.int64
        )
        return stream.tell() - np.cumsum(lengths[::-1])[::-1], lengths

    def _texture(self, shrink: int, min_side: int) -> NDArray[np.uint8]:
        """The tissue of a level, repeated to at least `min_side` pixels."""
        texture = np.asarray(Image.fromarray(self.tissue).reduce(shrink))
        repeats = -(-min_side // len(texture))
        return np.tile(texture, (repeats, repeats, 1))


def _strips(blocks: int) -> NDArray[np.bool_]:
    """Strips of three blocks between glass, bool [blocks, blocks]."""
    here = np.zeros((blocks, blocks), bool)
    here[1:-1, 1:-1] = (np.arange(1, blocks - 1) % 4 != 0)[:, None]
    return here


def _huge_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    return bytes(simplejpeg.encode_jpeg(pixels, quality=HUGE_QUALITY, colorsubsampling="420"))


def _aperio_description(slide: _HugeSlide, shrink: int, mpp: float) -> Tags:
    small = f" -> {slide.side // shrink}x{slide.side // shrink}" if shrink > 1 else ""
    size = f"{slide.side}x{slide.side} ({slide.tile}x{slide.tile}){small}"
    return {
        tw.DESCRIPTION: (
            "ascii",
            f"Aperio Image Library v12.0.0\r\n{size}|AppMag = 40|MPP = {mpp}|ScannerType = AT2",
        )
    }


def _huge_directory(
    slide: _HugeSlide, shrink: int, mpp: float, ranges: Ranges, more: Tags
) -> Directory:
    side, (offsets, lengths) = slide.side // shrink, ranges
    per_cm = [round(1e4 / (mpp * shrink) * 1000), 1000]
    return Directory(
        tags={
            tw.SUBFILE: ("long", [int(shrink > 1)]),
            tw.WIDTH: ("long", [side]),
            tw.HEIGHT: ("long", [side]),
            tw.BITS: ("short", [8, 8, 8]),
            tw.COMPRESSION: ("short", [7]),
            tw.PHOTOMETRIC: ("short", [6]),
            tw.SAMPLES: ("short", [3]),
            tw.X_RESOLUTION: ("ratio", per_cm),
            tw.Y_RESOLUTION: ("ratio", per_cm),
            tw.PLANAR: ("short", [1]),
            tw.RESOLUTION_UNIT: ("short", [3]),
            tw.TILE_WIDTH: ("long", [slide.tile]),
            tw.TILE_HEIGHT: ("long", [slide.tile]),
            tw.TILE_OFFSETS: ("long8", offsets),
            tw.TILE_LENGTHS: ("long", lengths),
            tw.SUBSAMPLING: ("short", [2, 2]),
        }
        | more
    )
