"""Shards: rectangles of patches of one slide whose source tiles are neighbours. The unit of work,
of retry and of checkpoint.

`Shard` declares a row once: its fields are the columns of the table, in this order, and say which
of them the pixels follow from. A row is metadata only, but all of it: with the byte ranges of its
tiles a read task fetches them without opening the slide. Deterministic: the same slide and
PatchSpec give the same rows, in the same order.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.columns import column, marked, rows_of, schema_of, to_table
from pipelines.grid import SIDE, PatchGrid, PatchSpec
from pipelines.slides.errors import BrokenSlide
from pipelines.slides.geometry import Size
from pipelines.slides.slide import Slide
from pipelines.slides.tiled import TiledSlide, TileStore
from pipelines.slides.tiles import TileGrid

TILES = "tiles"
"""Transport: the slide's own compressed tiles, decoded by the consumer."""
PIXELS = "pixels"
"""Transport: patches decoded by the read task, for formats that only OpenSlide or wsidicom open."""


_INT32S = pa.list_(pa.int32())
_INT64S = pa.list_(pa.int64())


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Shard:
    """One row of the shard table.

    "The level" is the level that is read, after it is shrunk by `scale`; a pixel of it is
    `downsample` pixels of level 0.

    Attributes:
        organisation_id: owner of all derived objects.
        slide_id: the slide's identity.
        slide_uri: where the slide is.
        spec_hash: of the PatchSpec.
        shard: number of the shard within its slide, from 0.
        n_patches: number of patches, N.
        patch_size: side of a patch in pixels, after resampling.
        mpp: micrometres per pixel of level 0.
        level: index of the level that is read.
        scale: factor by which the level is shrunk while it is decoded.
        downsample: level-0 pixels per pixel of the level.
        read_size: side of a patch in pixels of the level.
        x, y: top-left corners in level-0 pixels, int32 [N].
        read_x, read_y: the same in pixels of the level, int32 [N].
        icc: whether pixels are brought to sRGB by the slide's ICC profile.
        stain: `pipelines.stain.StainFit` as bytes, empty where stain is left as it is.
        transport: `TILES` or `PIXELS`. With pixels, all columns of tiles but `tile_version` are
            empty or 0.
        level_width, level_height: pixels of the level.
        tile_width, tile_height: pixels of a tile of the level.
        tile: numbers of the tiles that the patches need, int32 [T].
        tile_offset, tile_length: their byte ranges, int64 [T].
        tile_uri, tile_codec, tile_header, tile_items, tile_sparse: see `TileStore`.
        tile_version: of the object at `tile_uri`, or at `slide_uri` for pixels.

    Raises:
        ValueError: a value that no shard can have.
    """

    organisation_id: str = column(pa.string())
    slide_id: str = column(pa.string())
    slide_uri: str = column(pa.string())
    spec_hash: str = column(pa.string())
    shard: int = column(pa.int32())
    n_patches: int = column(pa.int32())
    patch_size: int = column(pa.int32(), decisive=True)
    mpp: float = column(pa.float64(), decisive=True)
    level: int = column(pa.int32(), decisive=True)
    scale: int = column(pa.int32(), decisive=True)
    downsample: float = column(pa.float64(), decisive=True)
    read_size: int = column(pa.int32(), decisive=True)
    x: NDArray[np.int32] = column(_INT32S, decisive=True)
    y: NDArray[np.int32] = column(_INT32S, decisive=True)
    read_x: NDArray[np.int32] = column(_INT32S, decisive=True)
    read_y: NDArray[np.int32] = column(_INT32S, decisive=True)
    icc: bool = column(pa.bool_(), decisive=True)
    stain: bytes = column(pa.binary(), decisive=True)
    transport: str = column(pa.string())
    level_width: int = column(pa.int32())
    level_height: int = column(pa.int32())
    tile_width: int = column(pa.int32())
    tile_height: int = column(pa.int32())
    tile: NDArray[np.int32] = column(_INT32S)
    tile_offset: NDArray[np.int64] = column(_INT64S)
    tile_length: NDArray[np.int64] = column(_INT64S)
    tile_uri: str = column(pa.string())
    tile_codec: str = column(pa.string(), decisive=True)
    tile_header: bytes = column(pa.binary())
    tile_items: bool = column(pa.bool_())
    tile_sparse: bool = column(pa.bool_())
    tile_version: str = column(pa.string())

    def __post_init__(self) -> None:
        self._require(self.transport in {TILES, PIXELS}, "transport", self.transport)
        self._require(
            (self.transport == TILES) == (self.tile_width > 0), "tile_width", self.tile_width
        )
        for name in ("patch_size", "mpp", "scale", "downsample", "read_size"):
            self._require(getattr(self, name) > 0, name, getattr(self, name))
        for name in ("x", "y", "read_x", "read_y"):
            count = len(getattr(self, name))
            self._require(count == self.n_patches > 0, f"number of {name}", count)
        for name in ("tile_offset", "tile_length"):
            count = len(getattr(self, name))
            self._require(count == len(self.tile), f"number of {name}", count)

    def _require(self, holds: bool, name: str, value: object) -> None:
        if not holds:
            owner = f"shard {self.shard} of slide {self.slide_id}"
            raise ValueError(
                f"{owner} has an impossible {name}: {value!r}; prepare the slide again"
            )

    @property
    def patch_side(self) -> float:
        """Side of a patch in level-0 pixels: the area that its pixels are read from. The one
        formula for it.

        It can differ by up to 2 % from `patch_size * PatchSpec.mpp / mpp`: a level that close to
        the wanted mpp is read as it is.
        """
        return self.read_size * self.downsample

    @property
    def patch_mpp(self) -> float:
        """Micrometres per pixel of a patch, as it was read and resampled."""
        return self.patch_side * self.mpp / self.patch_size

    @property
    def tiles(self) -> TileStore:
        """How the tiles are stored."""
        return TileStore(
            uri=self.tile_uri,
            codec=self.tile_codec,
            header=self.tile_header,
            items=self.tile_items,
            sparse=self.tile_sparse,
            version=self.tile_version,
        )

    @property
    def tile_grid(self) -> TileGrid:
        """The level's tiling."""
        return TileGrid(
            level=Size(self.level_width, self.level_height),
            tile=Size(self.tile_width, self.tile_height),
        )

    @property
    def name(self) -> str:
        """Number and 16 hex digits over what its pixels follow from: another lattice, scale or
        stain is another name."""
        values = [_plain(getattr(self, name)) for name in DECISIVE]
        return f"{self.shard:06d}-{hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]}"


SCHEMA = schema_of(Shard)
"""Of the shard table."""
DECISIVE = marked(Shard, "decisive")
"""Columns that the pixels of a shard's patches follow from, once the slide is known."""


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return value.tolist() if isinstance(value, np.ndarray) else value


def shards_of(table: pa.Table) -> list[Shard]:
    """The rows of a table with at least the columns of `SCHEMA`; arrays are views of it.

    Raises:
        ValueError: a row that no shard can be.
    """
    return rows_of(Shard, table)


def shard_rows(
    slide: Slide,
    grid: PatchGrid,
    spec: PatchSpec,
    *,
    organisation: str,
    side: int = SIDE,
    stain: bytes = b"",
) -> pa.Table:
    """Cut a slide's patches into shards of at most `side` x `side` cells of the lattice.

    Args:
        slide: open slide.
        grid: its patches.
        spec: what a patch is.
        organisation: owner of all derived objects.
        side: maximum number of patches along one side of a shard.
        stain: how the slide's stain is normalised (`StainFit.to_bytes`).

    Returns:
        Table with `SCHEMA`, shards by rows of the lattice, patches within a shard likewise.

    Raises:
        BrokenSlide: a tile that a patch needs has no data.
    """
    blocks = -(-(int(grid.column.max()) + 1) // side)
    number = (grid.row // side).astype(np.int64) * blocks + grid.column // side
    order = np.argsort(number, kind="stable")
    _, first = np.unique(number[order], return_index=True)
    members = np.split(order, first[1:])
    tiles = _shard_tiles(slide, grid, members)
    return to_table(
        Shard,
        [
            Shard(
                organisation_id=organisation,
                slide_id=slide.identity,
                slide_uri=slide.uri,
                spec_hash=spec.hash,
                shard=k,
                n_patches=len(chosen),
                patch_size=spec.size,
                mpp=slide.mpp,
                level=grid.level.index,
                scale=grid.scale,
                downsample=grid.level.downsample,
                read_size=grid.read_size,
                x=grid.x[chosen],
                y=grid.y[chosen],
                read_x=grid.read_x[chosen],
                read_y=grid.read_y[chosen],
                icc=spec.icc,
                stain=stain,
                level_width=grid.level.size.width,
                level_height=grid.level.size.height,
                **tiles[k],
            )
            for k, chosen in enumerate(members)
        ],
    )


def _shard_tiles(
    slide: Slide, grid: PatchGrid, members: list[NDArray[np.int64]]
) -> list[dict[str, Any]]:
    """The columns `transport` and `tile*` of each shard, given the patches of each."""
    if not isinstance(slide, TiledSlide):
        return [{**_NO_TILES, "tile_version": slide.version}] * len(members)
    index = slide.indexes[grid.level.index].scaled(grid.scale)
    order = np.concatenate(members)
    shard = np.repeat(np.arange(len(members)), [len(chosen) for chosen in members])
    read_x, read_y = (values[order].astype(np.int64) for values in (grid.read_x, grid.read_y))
    patch, tile = index.grid.touched(read_x, read_y, Size(grid.read_size, grid.read_size))
    pairs = np.sort(shard[patch] * len(index.offsets) + tile)
    # Each tile once per shard; np.unique would hash, three times slower.
    pairs = pairs[np.flatnonzero(np.diff(pairs, prepend=-1))]
    owner, tile = np.divmod(pairs, len(index.offsets))
    if not index.store.sparse and (missing := np.count_nonzero(index.lengths[tile] <= 0)):
        cause = f"has no data for {missing} tiles with tissue"
        raise BrokenSlide(slide.name, cause, "scan or export the slide again")
    constant = {
        "transport": TILES,
        "tile_width": index.grid.tile.width,
        "tile_height": index.grid.tile.height,
        "tile_uri": index.store.uri,
        "tile_codec": index.store.codec,
        "tile_header": index.store.header,
        "tile_items": index.store.items,
        "tile_sparse": index.store.sparse,
        "tile_version": index.store.version,
    }
    parts = np.split(tile, np.searchsorted(owner, np.arange(1, len(members))))
    return [
        {
            **constant,
            "tile": part.astype(np.int32),
            "tile_offset": index.offsets[part],
            "tile_length": index.lengths[part],
        }
        for part in parts
    ]


_NO_TILES: dict[str, Any] = {
    "transport": PIXELS,
    "tile_width": 0,
    "tile_height": 0,
    "tile": np.zeros(0, np.int32),
    "tile_offset": np.zeros(0, np.int64),
    "tile_length": np.zeros(0, np.int64),
    "tile_uri": "",
    "tile_codec": "",
    "tile_header": b"",
    "tile_items": False,
    "tile_sparse": False,
}
