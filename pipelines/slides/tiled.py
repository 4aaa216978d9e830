"""A slide read by its own tile index: tiles are fetched by byte range and decoded where needed.

TIFF (`tiff`) and DICOM (`dicom`) differ only in how their index is parsed; from there on they are
the same. Knows no format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipelines import storage
from pipelines.slides import codecs, jpeg
from pipelines.slides.errors import BrokenSlide
from pipelines.slides.geometry import Level, Point, Size
from pipelines.slides.slide import OpenOptions, Slide, SlideFacts
from pipelines.slides.source import SlideFile, identity_of
from pipelines.slides.tiles import TileGrid, decode_windows

MAX_TILE_PIXELS = 4096 * 4096
"""A tile beyond this is a decompression bomb: scanners write tiles of 240 to 1024 px."""
MAX_SIDE = 2**22
"""Pixels of a level's longer side; beyond it is a decompression bomb too. A glass of 75 mm
scanned at 0.05 um per pixel has 1.5 million."""
MAX_SHARING = 64
"""Tiles may share bytes: some writers store blank ones once. Together they claim at most this
multiple of the file."""
MAX_PIXEL_BYTES = 8
"""Bytes per pixel of a tile, twice those of uncompressed RGBA."""
MAX_TILE_HEADER = 2**16
"""Bytes of a tile's own tables."""
ITEM = b"\xfe\xff\x00\xe0"
"""Tag of a DICOM item (PS3.5 7.5), little endian."""
DCT_SCALES = (8, 4, 2)
"""Factors by which libjpeg-turbo shrinks during decoding, largest first."""


@dataclass(frozen=True, kw_only=True)
class TileStore:
    """How the tiles of one level are stored.

    Attributes:
        uri: the object that holds them.
        codec: name of their codec (`codecs`).
        header: for `jpeg`, what makes a tile a complete JPEG (`jpeg.stream_header`).
        items: the ranges hold DICOM items, whose 8-byte headers don't belong to the stream.
        sparse: the format leaves tiles out on purpose; they are glass. In other formats a tile
            without data is damage.
        version: of the object that the ranges belong to; any version if empty.
    """

    uri: str
    codec: str
    header: bytes = b""
    items: bool = False
    sparse: bool = False
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class PackedTiles:
    """Fetched tiles, concatenated as an Arrow array holds them, so that they are copied once.

    Attributes:
        data: complete streams.
        bounds: start of each stream and end of the last, int64 [T + 1]; an empty stream is a tile
            that a sparse format leaves out.
    """

    data: bytes | memoryview
    bounds: NDArray[np.int64]

    def streams(self) -> list[memoryview]:
        """One stream per tile, views of `data`."""
        view, bounds = memoryview(self.data), self.bounds.tolist()
        return [view[a:b] for a, b in pairwise(bounds)]


def fetch_tiles(
    slide: str, store: TileStore, offsets: NDArray[np.int64], lengths: NDArray[np.int64]
) -> PackedTiles:
    """Fetch tiles; near ranges travel in one request.

    Args:
        slide: name or identity for errors.
        store: how and where they are stored.
        offsets: first byte of each wanted tile, int64 [T].
        lengths: bytes of each, int64 [T].

    Raises:
        BrokenSlide: a tile is missing, cut off or not what the index says.
    """
    absent = lengths <= 0
    if absent.any() and not store.sparse:
        cause = f"has no data for {np.count_nonzero(absent)} of {len(absent)} tiles"
        raise BrokenSlide(slide, cause, "scan or export the slide again")
    if absent.all():
        return PackedTiles(data=b"", bounds=np.zeros(len(lengths) + 1, np.int64))
    present = np.flatnonzero(~absent).tolist()
    starts = offsets[~absent].tolist()
    try:
        if store.items:
            bodies = storage.read_ranges(
                store.uri, starts, (offsets + lengths)[~absent].tolist(), version=store.version
            )
            return _packed(
                len(lengths), present, [_with_header(store, _items(body)) for body in bodies]
            )
        return _fetch_packed(store, starts, lengths, present)
    except ValueError as error:
        raise BrokenSlide(
            slide, f"has a tile that {error}", "scan or export the slide again"
        ) from error
    except storage.ObjectChanged:
        # Without the cause, here and below: its text holds the slide's path.
        raise BrokenSlide(
            slide, "has been replaced by another file since it was indexed", "prepare it again"
        ) from None
    except (storage.ObjectNotFound, storage.ObjectTruncated) as error:
        raise BrokenSlide(
            slide, f"can't be read to its end ({type(error).__name__})", "copy the file again"
        ) from None
    except storage.StorageError as error:
        raise BrokenSlide(
            slide, f"can't be read ({type(error).__name__})", "check the connection and try again"
        ) from None


def _fetch_packed(
    store: TileStore, starts: list[int], lengths: NDArray[np.int64], present: list[int]
) -> PackedTiles:
    """Read each tile to its final position; a JPEG's header then replaces its start marker."""
    extra = len(store.header) - len(jpeg.SOI) if codecs.is_jpeg(store.codec) else 0
    sizes = np.where(lengths > 0, lengths + extra, 0)
    bounds = np.append(0, np.cumsum(sizes))
    # NumPy asks for huge pages: zeroing 4-kB pages would cost more than reading the tiles.
    view, edges = np.empty(int(bounds[-1]), np.uint8).data, bounds.tolist()
    targets = [view[edges[k] + extra : edges[k + 1]] for k in present]
    storage.read_into(store.uri, starts, targets, version=store.version)
    if codecs.is_jpeg(store.codec):
        for begin in bounds[:-1][present].tolist():
            jpeg.check_start(view[begin + extra :])
            view[begin : begin + len(store.header)] = store.header
    return PackedTiles(data=view, bounds=bounds)


def _with_header(store: TileStore, tile: memoryview) -> bytes:
    if not codecs.is_jpeg(store.codec):
        return bytes(tile)
    jpeg.check_start(tile)
    return b"".join((store.header, tile[len(jpeg.SOI) :]))


def _packed(count: int, present: list[int], streams: list[bytes]) -> PackedTiles:
    sizes = np.zeros(count, np.int64)
    sizes[present] = [len(stream) for stream in streams]
    return PackedTiles(data=b"".join(streams), bounds=np.append(0, np.cumsum(sizes)))


def _items(part: memoryview) -> memoryview:
    """The content of one or more DICOM items (PS3.5 A.4)."""
    found, start = [], 0
    while start + 8 <= len(part) and part[start : start + 4].tobytes() == ITEM:
        length = int.from_bytes(part[start + 4 : start + 8], "little")
        found.append(part[start + 8 : start + 8 + length])
        start += 8 + length
    if not found or start != len(part):
        raise ValueError("is not a sequence of DICOM items")
    return found[0] if len(found) == 1 else memoryview(b"".join(found))


def check_size(slide: str, level: Size, tile: Size) -> None:
    """Refuse a decompression bomb.

    Raises:
        BrokenSlide: the level or its tiles are larger than any that scanners write.
    """
    if tile.width * tile.height > MAX_TILE_PIXELS or max(level.width, level.height) > MAX_SIDE:
        shown = f"{level.width} x {level.height} px in tiles of {tile.width} x {tile.height}"
        raise BrokenSlide(
            slide, f"claims {shown}, more than any scanner writes", "copy or export it again"
        )


@dataclass(frozen=True, kw_only=True)
class TileIndex:
    """Where the tiles of one level are stored.

    Attributes:
        grid: the level's tiling.
        store: how they are stored.
        offsets: byte offset of every tile, row by row, int64 [rows * columns].
        lengths: bytes of every tile, int64 [rows * columns].
    """

    grid: TileGrid
    store: TileStore
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def check(self, slide: str, size: int) -> None:
        """Refuse an index that can't be true.

        Raises:
            BrokenSlide: tiles of absurd size, another number of tiles than the level needs, ranges
                outside the object, or ranges that share their bytes as only a decompression bomb's
                do.
        """
        tile, needed = self.grid.tile, self.grid.rows * self.grid.columns
        check_size(slide, self.grid.level, tile)
        if len(self.offsets) != needed or len(self.lengths) != needed:
            raise BrokenSlide(
                slide,
                f"lists {len(self.offsets)} tiles where its size needs {needed}",
                "copy or export it again",
            )
        if (self.offsets < 0).any() or (self.lengths < 0).any():
            raise BrokenSlide(
                slide, "has tiles before the beginning of the file", "copy or export it again"
            )
        if int(self.lengths.max()) > tile.width * tile.height * MAX_PIXEL_BYTES + MAX_TILE_HEADER:
            longest = f"a tile of {int(self.lengths.max())} bytes"
            cause = f"has {longest}, more than {tile.width} x {tile.height} px can use"
            raise BrokenSlide(slide, cause, "copy or export it again")
        if int(self.lengths.sum()) > MAX_SHARING * size:
            raise BrokenSlide(
                slide, "claims the same bytes for most of its tiles", "copy or export it again"
            )
        # Clipped, so that sums can't overflow.
        ends = np.minimum(self.offsets, size) + self.lengths
        end = max(int(self.offsets.max()), int(ends.max()))
        if end > size:
            raise BrokenSlide(
                slide,
                f"is truncated: tiles reach to byte {end} but it has {size} bytes",
                "copy the file again",
            )

    def scaled(self, scale: int) -> TileIndex:
        """The level with every tile decoded at 1/`scale` (of `DCT_SCALES`), cut to whole pixels."""
        if scale == 1:
            return self
        grid = TileGrid(level=self.grid.level.shrunk(scale), tile=self.grid.tile.shrunk(scale))
        return replace(
            self._with(grid), store=replace(self.store, codec=f"{self.store.codec}/{scale}")
        )

    def cropped(self, level: Size) -> TileIndex:
        """The same tiles of a level that is smaller than they cover."""
        return self._with(TileGrid(level=level, tile=self.grid.tile))

    def _with(self, grid: TileGrid) -> TileIndex:
        table = [
            values.reshape(self.grid.rows, -1)[: grid.rows, : grid.columns]
            for values in (self.offsets, self.lengths)
        ]
        return replace(self, grid=grid, offsets=table[0].ravel(), lengths=table[1].ravel())


class TiledSlide(Slide):
    """A slide read by its own tile index. See `Slide` for the interface.

    Attributes:
        indexes: one `TileIndex` per level.
    """

    def __init__(
        self,
        file: SlideFile,
        indexes: Sequence[TileIndex],
        facts: SlideFacts,
        options: OpenOptions,
    ) -> None:
        self._describe(file, facts, options.mpp)
        self.indexes = tuple(indexes)
        full = self.indexes[0].grid.level
        self.levels = tuple(
            Level(
                index=k,
                size=index.grid.level,
                downsample=(
                    full.width / index.grid.level.width + full.height / index.grid.level.height
                )
                / 2,
                tile=index.grid.tile,
            )
            for k, index in enumerate(self.indexes)
        )
        parts = [
            part
            for index in self.indexes
            for part in (index.offsets.tobytes(), index.lengths.tobytes(), index.store.header)
        ]
        self.identity = options.identity or identity_of(file.version, *parts)

    def scales(self, level: int) -> tuple[int, ...]:
        index = self.indexes[level]
        tile, shorter = index.grid.tile, min(index.grid.level.shape)
        if index.store.codec != "jpeg":
            return (1,)
        whole = [s for s in DCT_SCALES if tile.width % s == tile.height % s == 0 and s <= shorter]
        return (*whole, 1)

    def _read(
        self, origins: Sequence[Point], level: int, size: Size, scale: int
    ) -> NDArray[np.uint8]:
        """All regions are fetched together, and each tile is decoded once."""
        index = self.indexes[level].scaled(scale)
        downsample = self.levels[level].downsample * scale
        x = np.array([round(origin.x / downsample) for origin in origins], np.int64)
        y = np.array([round(origin.y / downsample) for origin in origins], np.int64)
        out = np.full((len(origins), *size.shape, 3), 255, np.uint8)
        numbers = index.grid.covering(x, y, size)
        streams = fetch_tiles(
            self.name, index.store, index.offsets[numbers], index.lengths[numbers]
        ).streams()
        decode_windows(
            self.name,
            index.grid,
            index.store.codec,
            dict(zip(numbers.tolist(), streams, strict=True)),
            x=x,
            y=y,
            out=out,
        )
        return out

    def _release(self) -> None:
        """Nothing stays open: tiles are read by range."""
