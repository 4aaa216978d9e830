"""Shards: rectangles of patches of one slide whose source tiles lie together; the unit of work, of retry and of checkpoint.

A shard row is metadata only, but all of it: with the byte ranges of its tiles a read task fetches them without opening the
slide.
Deterministic: the same slide and PatchSpec give the same rows, in the same order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

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
        pa.field(
            "scale", pa.int32(), nullable=False
        ),  # by what the level is shrunk while it is decoded
        pa.field(
            "downsample", pa.float64(), nullable=False
        ),  # of the shrunk level, as are all places and sizes below
        pa.field("read_size", pa.int32(), nullable=False),
        pa.field("x", pa.list_(pa.int32()), nullable=False),
        pa.field("y", pa.list_(pa.int32()), nullable=False),
        pa.field("read_x", pa.list_(pa.int32()), nullable=False),
        pa.field("read_y", pa.list_(pa.int32()), nullable=False),
        pa.field("icc", pa.bool_(), nullable=False),
        pa.field(
            "stain", pa.binary(), nullable=False
        ),  # `pipelines.stain.StainFit`, empty where stain is left as it is
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
        pa.field(
            "tile_version", pa.string(), nullable=False
        ),  # of the object at `tile_uri`, or at `slide_uri` for pixels
    ]
)


def shard_rows(
    slide: Slide,
    grid: PatchGrid,
    spec: PatchSpec,
    *,
    organisation: str,
    side: int = SIDE,
    stain: bytes = b"",
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
    number = (grid.row // side).astype(np.int64) * blocks + grid.column // side
    order = np.argsort(number, kind="stable")
    _, first, counts = np.unique(number[order], return_index=True, return_counts=True)
    shard = np.repeat(np.arange(len(first)), counts)
    places = {name: getattr(grid, name)[order] for name in ("x", "y", "read_x", "read_y")}
    bounds = np.append(first, len(order))
    columns = {
        **{name: _lists(values, bounds, pa.int32()) for name, values in places.items()},
        **_source(
            slide, grid, shard, places["read_x"].astype(np.int64), places["read_y"].astype(np.int64)
        ),
        "shard": pa.array(np.arange(len(first), dtype=np.int32)),
        "n_patches": pa.array(counts.astype(np.int32)),
    }
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
    return _table({**constant, **columns}, len(first))


DECISIVE = (
    *(
        "patch_size",
        "mpp",
        "level",
        "scale",
        "downsample",
        "read_size",
        "x",
        "y",
        "read_x",
        "read_y",
        "icc",
        "tile_codec",
    ),
    "stain",
)
"""Columns that the pixels of a shard's patches follow from, once the slide is known."""


def shard_name(row: Mapping[str, Any]) -> str:
    """The shard's number and 16 hex digits over its `DECISIVE` values: another lattice, scale or stain is another name."""
    values = [value.hex() if isinstance(value := row[name], bytes) else value for name in DECISIVE]
    return f"{row['shard']:06d}-{hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]}"


def _table(values: dict[str, Any], rows: int) -> pa.Table:
    """A table with `SCHEMA`; what is no array is the same in every row."""
    arrays = [
        values[field.name]
        if isinstance(values[field.name], pa.Array)
        else pa.repeat(pa.scalar(values[field.name], field.type), rows)
        for field in SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _lists(values: NDArray[Any], bounds: NDArray[Any], kind: pa.DataType) -> pa.ListArray:
    return pa.ListArray.from_arrays(
        pa.array(bounds.astype(np.int32)), pa.array(values, kind), type=pa.list_(kind)
    )


def _source(
    slide: Slide,
    grid: PatchGrid,
    shard: NDArray[np.int64],
    read_x: NDArray[np.int64],
    read_y: NDArray[np.int64],
) -> dict[str, Any]:
    """Where the pixels of every shard come from; `shard` numbers each patch's shard, ascending."""
    rows = int(shard[-1]) + 1
    if not isinstance(slide, TiledSlide):
        empty = {
            name: _lists(np.zeros(0), np.zeros(rows + 1), kind)
            for name, kind in _TILE_LISTS.items()
        }
        return {"transport": PIXELS, **_NO_TILES, **empty, "tile_version": slide.version}
    index = slide.indexes[grid.level.index].scaled(grid.scale)
    patch, tile = index.grid.touched(read_x, read_y, Size(grid.read_size, grid.read_size))
    pairs = np.sort(shard[patch] * len(index.offsets) + tile)
    pairs = pairs[
        np.flatnonzero(np.diff(pairs, prepend=-1))
    ]  # each tile once a shard; np.unique would hash, three times slower
    owner, tile = np.divmod(pairs, len(index.offsets))
    if not index.store.sparse and (missing := np.count_nonzero(index.lengths[tile] <= 0)):
        raise BrokenSlide(
            slide.name,
            f"has no data for {missing} tiles with tissue",
            "scan or export the slide again",
        )
    bounds = np.searchsorted(owner, np.arange(rows + 1))
    lists = {"tile": tile, "tile_offset": index.offsets[tile], "tile_length": index.lengths[tile]}
    return {
        "transport": TILES,
        **{name: _lists(values, bounds, _TILE_LISTS[name]) for name, values in lists.items()},
        "tile_width": index.grid.tile.width,
        "tile_height": index.grid.tile.height,
        "tile_uri": index.store.uri,
        "tile_codec": index.store.codec,
        "tile_header": index.store.header,
        "tile_items": index.store.items,
        "tile_sparse": index.store.sparse,
        "tile_version": index.store.version,
    }


_TILE_LISTS = {"tile": pa.int32(), "tile_offset": pa.int64(), "tile_length": pa.int64()}
_NO_TILES: dict[str, Any] = {
    **{"tile_width": 0, "tile_height": 0, "tile_uri": "", "tile_codec": "", "tile_header": b""},
    **{"tile_items": False, "tile_sparse": False},
}
