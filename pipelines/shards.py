"""Shards: rectangles of patches of one slide whose source tiles lie together; the unit of work, of retry and of checkpoint.

A shard row is metadata only, but all of it: with the byte ranges of its tiles a read task fetches them without opening the
slide.
Deterministic: the same slide and PatchSpec give the same rows, in the same order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.grid import PatchGrid, PatchSpec
from pipelines.slides.errors import BrokenSlide
from pipelines.slides.geometry import Size
from pipelines.slides.slide import Slide
from pipelines.slides.tiled import TiledSlide

TILES = "tiles"
"""Transport: the slide's own compressed tiles, decoded by the consumer."""
SIDE = 32
"""Most patches along a side of a shard: at the edges of unaligned shards 6 % of the tiles are decoded twice; with 16, 13 %."""
PIXELS = "pixels"
"""Transport: patches decoded by the read task, for formats that only OpenSlide or wsidicom open."""

SCHEMA = pa.schema(
    [
        pa.field("organisation_id", pa.string(), nullable=False),
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("slide_uri", pa.string(), nullable=False),
        pa.field("spec_hash", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("n_patches", pa.int32(), nullable=False),
        pa.field("patch_size", pa.int32(), nullable=False),
        pa.field("mpp", pa.float64(), nullable=False),  # of level 0
        pa.field("level", pa.int32(), nullable=False),
        pa.field("scale", pa.int32(), nullable=False),  # by what the level is shrunk while it is decoded
        pa.field("downsample", pa.float64(), nullable=False),  # of the shrunk level, as are all places and sizes below
        pa.field("read_size", pa.int32(), nullable=False),
        pa.field("x", pa.list_(pa.int32()), nullable=False),
        pa.field("y", pa.list_(pa.int32()), nullable=False),
        pa.field("read_x", pa.list_(pa.int32()), nullable=False),
        pa.field("read_y", pa.list_(pa.int32()), nullable=False),
        pa.field("icc", pa.bool_(), nullable=False),
        pa.field("stain", pa.binary(), nullable=False),  # `pipelines.stain.StainFit`, empty where stain is left as it is
        pa.field("transport", pa.string(), nullable=False),
        pa.field("level_width", pa.int32(), nullable=False),
        pa.field("level_height", pa.int32(), nullable=False),
        pa.field("tile_width", pa.int32(), nullable=False),  # 0 where transport is pixels, as below
        pa.field("tile_height", pa.int32(), nullable=False),
        pa.field("tile", pa.list_(pa.int32()), nullable=False),
        pa.field("tile_offset", pa.list_(pa.int64()), nullable=False),
        pa.field("tile_length", pa.list_(pa.int64()), nullable=False),
        pa.field("tile_uri", pa.string(), nullable=False),
        pa.field("tile_codec", pa.string(), nullable=False),
        pa.field("tile_header", pa.binary(), nullable=False),
        pa.field("tile_items", pa.bool_(), nullable=False),
        pa.field("tile_sparse", pa.bool_(), nullable=False),
    ]
)


def shard_rows(
    slide: Slide, grid: PatchGrid, spec: PatchSpec, *, organisation: str, side: int = SIDE, stain: bytes = b""
) -> pa.Table:
    """Cut a slide's patches into shards of at most `side` x `side` places of the lattice.

    Args:
        slide: open slide.
        grid: its patches.
        spec: what a patch is.
        organisation: owner of all derived objects.
        side: most patches along one side of a shard.
        stain: how the slide's stain is normalised (`StainFit.to_bytes`).

    Returns:
        Table with `SCHEMA`, shards by rows of the lattice, patches within a shard likewise.

    Raises:
        BrokenSlide: a tile that a patch needs has no data.
    """
    blocks = -(-(int(grid.column.max()) + 1) // side)
    number = (grid.row // side) * blocks + grid.column // side
    constant: dict[str, Any] = {
        "organisation_id": organisation,
        "slide_id": slide.identity,
        "slide_uri": slide.uri,
        "spec_hash": spec.hash,
        "patch_size": spec.size,
        "mpp": slide.mpp,
        "level": grid.level.index,
        "scale": grid.scale,
        "icc": spec.icc,
        "stain": stain,
        "downsample": grid.level.downsample,
        "read_size": grid.read_size,
        "level_width": grid.level.size.width,
        "level_height": grid.level.size.height,
    }
    rows = []
    for shard, block in enumerate(np.unique(number)):
        members = np.flatnonzero(number == block)
        places = {name: getattr(grid, name)[members] for name in ("x", "y", "read_x", "read_y")}
        rows.append({**constant, **places, "shard": shard, "n_patches": len(members), **_source(slide, grid, members)})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _source(slide: Slide, grid: PatchGrid, members: np.ndarray[Any, np.dtype[np.intp]]) -> dict[str, Any]:
    """Where the shard's pixels come from."""
    if not isinstance(slide, TiledSlide):
        return {"transport": PIXELS, **_NO_TILES}
    index = slide.indexes[grid.level.index].scaled(grid.scale)
    window = Size(grid.read_size, grid.read_size)
    tiles = index.grid.covering(grid.read_x[members].astype(np.int64), grid.read_y[members].astype(np.int64), window)
    lengths = index.lengths[tiles]
    if not index.store.sparse and (lengths <= 0).any():
        cause = f"has no data for {np.count_nonzero(lengths <= 0)} tiles with tissue"
        raise BrokenSlide(slide.name, cause, "scan or export the slide again")
    return {
        "transport": TILES,
        "tile_width": index.grid.tile.width,
        "tile_height": index.grid.tile.height,
        "tile": tiles,
        "tile_offset": index.offsets[tiles],
        "tile_length": lengths,
        "tile_uri": index.store.uri,
        "tile_codec": index.store.codec,
        "tile_header": index.store.header,
        "tile_items": index.store.items,
        "tile_sparse": index.store.sparse,
    }


_NO_TILES: dict[str, Any] = {
    **{"tile_width": 0, "tile_height": 0, "tile": [], "tile_offset": [], "tile_length": []},
    **{"tile_uri": "", "tile_codec": "", "tile_header": b"", "tile_items": False, "tile_sparse": False},
}
