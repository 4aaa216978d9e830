"""A slide read by its own tile index: compressed tiles are fetched by byte range and decoded where they are used.

TIFF (`tiff`) and DICOM (`dicom`) differ only in how their index is parsed; from there on they are one thing. Knows no format.
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

MOST_TILE_PIXELS = 4096 * 4096
"""A tile beyond this is a size bomb: scanners write tiles of 240 to 1024 px."""
MOST_SIDE = 2**22
"""A level wider or higher is one too: at 0.05 um per pixel a whole glass of 75 mm has 1.5 million."""
MOST_SHARING = 64
"""Tiles may share bytes, as some writers let blank ones do; together they claim no more than that many times the file."""
MOST_PIXEL_BYTES, MOST_TILE_HEADER = 8, 2**16
"""A tile takes at most that many bytes a pixel and for its tables: twice those of uncompressed RGBA."""
DCT_SCALES = (8, 4, 2)
"""What libjpeg-turbo shrinks by while it decodes (1/8, 1/4, 1/2), largest first."""


@dataclass(frozen=True, kw_only=True)
class TileStore:
    """How the tiles of one level are kept.

    Attributes:
        uri: the object that holds them.
        codec: name of their codec (`codecs`).
        header: for `jpeg`, what makes a tile a JPEG by itself (`jpeg.stream_header`).
        items: the ranges hold DICOM items, whose 8-byte headers don't belong to the stream.
        sparse: the format leaves tiles out on purpose; they are glass. Elsewhere a tile without data is damage.
        version: of the object that the ranges belong to; any where empty.
    """

    uri: str
    codec: str
    header: bytes = b""
    items: bool = False
    sparse: bool = False
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class PackedTiles:
    """Fetched tiles, one behind the other: as they lie in an Arrow array, so that they are copied once.

    Attributes:
        data: streams that stand on their own.
        bounds: where each begins, and where the last ends, int64 [T + 1]; an empty one is a tile that a sparse format leaves out.
    """

    data: bytes | memoryview
    bounds: NDArray[np.int64]

    def streams(self) -> list[memoryview]:
        """One stream a tile, views of `data`."""
        view, bounds = memoryview(self.data), self.bounds.tolist()
        return [view[a:b] for a, b in pairwise(bounds)]


def fetch_tiles(
    slide: str, store: TileStore, offsets: NDArray[np.int64], lengths: NDArray[np.int64]
) -> PackedTiles:
    """Fetch tiles; near ranges travel in one request.

    Args:
        slide: name or identity for errors.
        store: where they lie.
        offsets: byte where each wanted tile begins, int64 [T].
        lengths: bytes of each, likewise.

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
    """Read each tile to where it lies in the end; a JPEG's header then takes the place of its start marker."""
    extra = len(store.header) - len(jpeg.SOI) if codecs.is_jpeg(store.codec) else 0
    sizes = np.where(lengths > 0, lengths + extra, 0)
    bounds = np.append(0, np.cumsum(sizes))
    # NumPy asks the system for huge pages: zeroing 4-kB pages would cost more than reading the tiles.
    view, at = np.empty(int(bounds[-1]), np.uint8).data, bounds.tolist()
    storage.read_into(
        store.uri, starts, [view[at[k] + extra : at[k + 1]] for k in present], version=store.version
    )
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
    found, at = [], 0
    while at + 8 <= len(part) and part[at : at + 4].tobytes() == b"\xfe\xff\x00\xe0":
        length = int.from_bytes(part[at + 4 : at + 8], "little")
        found.append(part[at + 8 : at + 8 + length])
        at += 8 + length
    if not found or at != len(part):
        raise ValueError("is no sequence of DICOM items")
    return found[0] if len(found) == 1 else memoryview(b"".join(found))


def check_size(slide: str, level: Size, tile: Size) -> None:
    """Refuse a size bomb.

    Raises:
        BrokenSlide: the level or its tiles are larger than any that scanners write.
    """
    if tile.width * tile.height > MOST_TILE_PIXELS or max(level.width, level.height) > MOST_SIDE:
        shown = f"{level.width} x {level.height} px in tiles of {tile.width} x {tile.height}"
        raise BrokenSlide(
            slide, f"claims {shown}, more than any scanner writes", "copy or export it again"
        )


@dataclass(frozen=True, kw_only=True)
class TileIndex:
    """Where the tiles of one level lie.

    Attributes:
        grid: the level's tiling.
        store: how they are kept.
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
            BrokenSlide: tiles of absurd size, another number of tiles than the level needs, ranges outside the object, or
                ranges that share their bytes as only a size bomb's do.
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
        if int(self.lengths.max()) > tile.width * tile.height * MOST_PIXEL_BYTES + MOST_TILE_HEADER:
            cause = f"has a tile of {int(self.lengths.max())} bytes, more than {tile.width} x {tile.height} px can take"
            raise BrokenSlide(slide, cause, "copy or export it again")
        if int(self.lengths.sum()) > MOST_SHARING * size:
            raise BrokenSlide(
                slide, "claims the same bytes for most of its tiles", "copy or export it again"
            )
        end = max(
            int(self.offsets.max()), int((np.minimum(self.offsets, size) + self.lengths).max())
        )  # sums can't overflow
        if end > size:
            raise BrokenSlide(
                slide,
                f"is truncated: tiles reach to byte {end} but it has {size} bytes",
                "copy the file again",
            )

    def scaled(self, scale: int) -> TileIndex:
        """The level as it looks when every tile is decoded at 1/`scale` (of `DCT_SCALES`); what is left over at the edge goes."""
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
        indexes: a `TileIndex` a level.
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
            for at in self.indexes
            for part in (at.offsets.tobytes(), at.lengths.tobytes(), at.store.header)
        ]
        self.identity = options.identity or identity_of(file.version, *parts)

    def scales(self, level: int) -> tuple[int, ...]:
        index = self.indexes[level]
        tile, most = index.grid.tile, min(index.grid.level.width, index.grid.level.height)
        if index.store.codec != "jpeg":
            return (1,)
        return (*(s for s in DCT_SCALES if tile.width % s == tile.height % s == 0 and s <= most), 1)

    def _read(
        self, origins: Sequence[Point], level: int, size: Size, scale: int
    ) -> NDArray[np.uint8]:
        """All of them are fetched together, and each tile is decoded once."""
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
