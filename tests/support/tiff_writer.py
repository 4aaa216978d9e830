"""Write TIFF files tag by tag: what no library writes (aliased or absent tiles, Aperio's JPEG 2000,
loops) is needed in tests."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

import numpy as np
from numpy.typing import NDArray

Values = str | bytes | Sequence[float] | NDArray[np.integer]

_TYPES = {
    "ascii": (2, "u1"),
    "short": (3, "u2"),
    "long": (4, "u4"),
    "ratio": (5, "u4"),
    "undefined": (7, "u1"),
}
_TYPES |= {"signed": (9, "i4"), "float": (11, "f4"), "ifd": (13, "u4")}
_BIG_TYPES = _TYPES | {"long8": (16, "u8"), "ifd": (18, "u8")}

SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION, MAKE, SAMPLES = (
    254,
    256,
    257,
    258,
    259,
    262,
    270,
    271,
    277,
)
X_RESOLUTION, Y_RESOLUTION, PLANAR, RESOLUTION_UNIT, SOFTWARE, PREDICTOR = (
    282,
    283,
    284,
    296,
    305,
    317,
)
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_LENGTHS, SUB_IFDS, EXTRA_SAMPLES = (
    322,
    323,
    324,
    325,
    330,
    338,
)
STRIP_OFFSETS, STRIP_ROWS, STRIP_LENGTHS, JPEG_TABLES, SUBSAMPLING, XMP, ICC = (
    273,
    278,
    279,
    347,
    530,
    700,
    34675,
)


@dataclass(kw_only=True)
class Directory:
    """One image file directory.

    Attributes:
        tags: type and values of each tag by number; a rational's values are numerator and
            denominator in turn.
        subs: directories that tag 330 names.
    """

    tags: dict[int, tuple[str, Values]]
    subs: list[Directory] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class TiffForm:
    """What the file's header says.

    Attributes:
        big: BigTIFF, with 64-bit offsets.
        order: byte order, `<` or `>`.
        ndpi: offsets have upper halves, as in Hamamatsu's files: after the header, and after each
            directory for all its tags.
    """

    big: bool = False
    order: str = "<"
    ndpi: bool = False

    @property
    def header_size(self) -> int:
        """Bytes before the first tile or directory."""
        return 16 if self.big else 12 if self.ndpi else 8


def write_directories(stream: IO[bytes], chain: Sequence[Directory], form: TiffForm) -> None:
    """Write the directories where the stream stands, and the file's header at its beginning."""
    places = [_write(stream, directory, form) for directory in chain]
    firsts, nexts = zip(*places, strict=True)
    offset = "Q" if form.big else "I"
    for where, follower in zip(nexts, [*firsts[1:], 0], strict=True):
        stream.seek(where)
        stream.write(struct.pack(form.order + offset, follower))
    stream.seek(0)
    stream.write(b"II" if form.order == "<" else b"MM")
    stream.write(
        struct.pack(
            form.order + ("HHHQ" if form.big else "HI"),
            *((43, 8, 0) if form.big else (42,)),
            firsts[0],
        )
    )
    stream.seek(0, 2)


def _write(stream: IO[bytes], directory: Directory, form: TiffForm) -> tuple[int, int]:
    """Write one directory; returns where it begins and where its follower is named."""
    subs = [_write(stream, sub, form)[0] for sub in directory.subs]
    tags = dict(directory.tags) | ({SUB_IFDS: ("ifd", subs)} if subs else {})
    entries = [(tag, *_encoded(*tags[tag], form)) for tag in sorted(tags)]
    inline, offset = (8, "Q") if form.big else (4, "I")
    stream.seek(0, 2)
    packed = b""
    for tag, kind, count, data in entries:
        where = data.ljust(inline, b"\0")
        if len(data) > inline:
            stream.write(b"\0" * (stream.tell() % 2))
            where = struct.pack(form.order + offset, stream.tell())
            stream.write(data)
        packed += struct.pack(form.order + "HH" + offset, tag, kind, count) + where
    stream.write(b"\0" * (stream.tell() % 2))
    begins = stream.tell()
    stream.write(struct.pack(form.order + ("Q" if form.big else "H"), len(entries)) + packed)
    names_follower = stream.tell()
    stream.write(
        struct.pack(form.order + offset, 0) + b"\0" * (4 * (1 + len(entries)) if form.ndpi else 0)
    )
    return begins, names_follower


def _encoded(kind: str, values: Values, form: TiffForm) -> tuple[int, int, bytes]:
    """Type number, count and bytes of a tag's values."""
    number, item = (_BIG_TYPES if form.big else _TYPES)[kind]
    if isinstance(values, str):
        values = values.encode() + b"\0"
    data = (
        bytes(values)
        if isinstance(values, bytes)
        else np.asarray(values).astype(form.order + item).tobytes()
    )
    return number, len(data) // int(item[1]) // (2 if kind == "ratio" else 1), data


def tiles_of(pixels: NDArray[np.uint8], tile: int) -> Iterator[NDArray[np.uint8]]:
    """Tiles row by row, those at the edges padded by repetition, as scanners pad them."""
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % tile), (0, -width % tile), (0, 0)), mode="edge")
    for y in range(0, height, tile):
        for x in range(0, width, tile):
            yield np.ascontiguousarray(padded[y : y + tile, x : x + tile])
