"""The patch stream without Ray: what a read task fetches, and the decoding that its consumers do.

    shard rows -> fetch_shards -> rows of shards with their encoded tiles -> decode_patches -> uint8
    [N, H, W, 3]

Pixels travel compressed: fetched rows are 10-13 times smaller than pixels. Each source tile is
decoded once, in the consumer's own threads. Slides that only OpenSlide or wsidicom open are decoded
while they are fetched and travel as pixels. `stream_patches` is both steps in one process;
`patch_source.read_patches` is the same as a Ray Data source.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from pipelines import icc, storage
from pipelines.shards import PIXELS, SCHEMA, TILES, Shard, shards_of
from pipelines.slides.errors import BrokenSlide
from pipelines.slides.geometry import Point, Size
from pipelines.slides.opening import open_slide
from pipelines.slides.tiled import PackedTiles, fetch_tiles
from pipelines.slides.tiles import decode_windows
from pipelines.stain import StainFit

AHEAD = 2
"""Shards fetched while one is decoded: enough for 20 ms of latency a request."""

FETCHED = pa.schema(
    [
        # Encoded tiles in the order of `Shard.tile`.
        pa.field("tile_data", pa.large_list(pa.large_binary())),
        # uint8 [n_patches, size, size, 3] where the transport is pixels.
        pa.field("pixels", pa.large_binary()),
        # ICC profile to be applied.
        pa.field("profile", pa.binary()),
        pa.field("requests", pa.int64()),
        pa.field("bytes_fetched", pa.int64()),
        # Bytes of the tiles themselves: fetched / needed is the read amplification.
        pa.field("bytes_needed", pa.int64()),
    ]
)
"""Columns that `fetch_shards` adds to those of `pipelines.shards.SCHEMA`."""


class PatchBatch(TypedDict):
    """Decoded patches, in shard order.

    Keys: `slide_id` object [N] of str; `shard` int32 [N]; `x`, `y` int32 [N], top-left corner in
        level-0 pixels; `patch` uint8
    [N, H, W, 3].
    """

    slide_id: NDArray[np.object_]
    shard: NDArray[np.int32]
    x: NDArray[np.int32]
    y: NDArray[np.int32]
    patch: NDArray[np.uint8]


def stream_patches(
    shards: pa.Table, *, ahead: int = AHEAD, out: NDArray[np.uint8] | None = None
) -> Iterator[PatchBatch]:
    """The stream without Ray: decodes shards in this thread while others fetch the next.

    Args:
        shards: rows of `pipelines.shards.SCHEMA`.
        ahead: shards fetched before they are needed.
        out: see `decode_patches`; a batch is then a view of it, valid until the next is asked for.

    Raises:
        SlideError: a slide is gone, or a patch does not decode.
    """
    waiting: deque[Future[pa.Table]] = deque()
    with ThreadPoolExecutor(ahead, thread_name_prefix="shard") as fetchers:
        try:
            for k in range(len(shards) + ahead):
                if k < len(shards):
                    waiting.append(fetchers.submit(fetch_shards, shards.slice(k, 1)))
                if k >= ahead and waiting:
                    yield decode_patches(waiting.popleft().result(), out=out)
        finally:
            for future in waiting:
                future.cancel()


def fetch_shards(shards: pa.Table) -> pa.Table:
    """Fetch what decoding the shards needs: encoded tiles, or pixels if tiles can't travel.

    Args:
        shards: rows of `pipelines.shards.SCHEMA`.

    Returns:
        The same rows with the columns `FETCHED`.

    Raises:
        BrokenSlide: a slide lacks a tile, or a patch does not decode.
        SlideNotFound: a slide is gone.
    """
    rows = shards.select(SCHEMA.names)
    added = pa.Table.from_batches([_fetch(shard) for shard in shards_of(rows)], schema=FETCHED)
    for name in FETCHED.names:
        rows = rows.append_column(name, added[name])
    return rows


def decode_patches(rows: pa.Table, *, out: NDArray[np.uint8] | None = None) -> PatchBatch:
    """Decode fetched shards.

    Args:
        rows: output of `fetch_shards` or a block of `read_patches`; all of one patch size.
        out: uint8 [>= N, size, size, 3] to decode into, C-contiguous; `patch` is then a view of its
            first N. A loop that reuses one array saves about 20 us a patch, the time to zero fresh
            memory.

    Raises:
        ValueError: `rows` mixes sizes, or `out` does not fit.
        BrokenSlide: a tile does not decode; no patch of the shard is then returned.
    """
    shards = shards_of(rows)
    sizes = {shard.patch_size for shard in shards}
    if len(sizes) != 1:
        cause = f"shards with patches of {sorted(sizes)} px can't be decoded into one batch"
        raise ValueError(f"{cause}; keep them apart")
    size, counts = sizes.pop(), [shard.n_patches for shard in shards]
    shape = (sum(counts), size, size, 3)
    patch = np.empty(shape, np.uint8) if out is None else out[: sum(counts)]
    if patch.shape != shape or not patch.flags.c_contiguous:
        raise ValueError(f"out has shape {patch.shape}; it must be at least {shape}, C-contiguous")
    start = 0
    for k, shard in enumerate(shards):
        _decode_shard(shard, rows.slice(k, 1), patch[start : start + shard.n_patches])
        start += shard.n_patches
    return PatchBatch(
        slide_id=np.repeat(np.array([shard.slide_id for shard in shards], dtype=object), counts),
        shard=np.repeat(np.array([shard.shard for shard in shards], np.int32), counts),
        x=np.concatenate([shard.x for shard in shards]),
        y=np.concatenate([shard.y for shard in shards]),
        patch=patch,
    )


def _decode_shard(shard: Shard, row: pa.Table, out: NDArray[np.uint8]) -> None:
    """Decode one shard into uint8 [N, size, size, 3]; `row` is its fetched row."""
    if shard.transport == TILES:
        _decode_tiles(shard, _streams(row["tile_data"][0].values), out)
    else:
        out[...] = np.frombuffer(row["pixels"][0].as_buffer(), np.uint8).reshape(out.shape)
    if profile := row["profile"][0].as_py():
        try:
            icc.to_srgb(out, profile)
        except ValueError as error:
            remedy = "prepare it without ICC correction"
            raise BrokenSlide(shard.slide_id, str(error), remedy) from error
    if shard.stain:
        _stain_fit(shard.stain).apply(out)


@lru_cache(maxsize=256)
def _stain_fit(content: bytes) -> StainFit:
    return StainFit.from_bytes(content)


def _decode_tiles(shard: Shard, streams: list[memoryview], out: NDArray[np.uint8]) -> None:
    side = shard.read_size
    native = out if side == out.shape[1] else np.empty((len(out), side, side, 3), np.uint8)
    # All windows are within the level, so that every pixel of `native` comes from a tile.
    decode_windows(
        shard.slide_id,
        shard.tile_grid,
        shard.tile_codec,
        dict(zip(shard.tile.tolist(), streams, strict=True)),
        x=shard.read_x.astype(np.int64),
        y=shard.read_y.astype(np.int64),
        out=native,
    )
    if native is not out:
        resample(native, out)


def _streams(tiles: pa.LargeBinaryArray) -> list[memoryview]:
    """Views of the array's values."""
    _, bounds, data = tiles.buffers()
    view = memoryview(data).cast("B") if data is not None else memoryview(b"")
    offsets = np.frombuffer(bounds, np.int64, len(tiles) + 1, tiles.offset * 8)
    return PackedTiles(data=view, bounds=offsets).streams()


def resample(native: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Area-average windows [N, h, w, 3] to the size of `out` [N, H, W, 3], both uint8."""
    size = (out.shape[2], out.shape[1])
    for k in range(len(native)):
        out[k] = np.asarray(Image.fromarray(native[k]).resize(size, Image.Resampling.BOX))


def _fetch(shard: Shard) -> pa.RecordBatch:
    """What `FETCHED` holds of one shard: one row."""
    pixels, tiles = b"", PackedTiles(data=b"", bounds=np.zeros(1, np.int64))
    with storage.metered() as meter:
        if shard.transport == PIXELS:
            pixels = _read_pixels(shard)
        else:
            tiles = fetch_tiles(shard.slide_id, shard.tiles, shard.tile_offset, shard.tile_length)
        profile = _profile(shard.slide_uri, shard.tile_version) if shard.icc else b""
    count = len(tiles.bounds) - 1
    buffers = [None, pa.py_buffer(tiles.bounds), pa.py_buffer(tiles.data)]
    data = pa.LargeListArray.from_arrays(
        pa.array([0, count], pa.int64()),
        pa.LargeBinaryArray.from_buffers(pa.large_binary(), count, buffers),
    )
    values = {
        "tile_data": data,
        "pixels": pa.array([pixels], pa.large_binary()),
        "profile": pa.array([profile], pa.binary()),
        "requests": pa.array([meter.requests], pa.int64()),
        "bytes_fetched": pa.array([meter.fetched], pa.int64()),
        "bytes_needed": pa.array([int(shard.tile_length.sum())], pa.int64()),
    }
    return pa.RecordBatch.from_arrays([values[name] for name in FETCHED.names], schema=FETCHED)


@lru_cache(maxsize=16)
def _profile(slide_uri: str, version: str) -> bytes:
    del version  # a slide that was replaced is looked at again
    with open_slide(slide_uri) as slide:
        return slide.icc


def _read_pixels(shard: Shard) -> bytes:
    """The shard's patches as uint8 [N, size, size, 3], through the slide's own reader."""
    side, size = shard.read_size, shard.patch_size
    with open_slide(shard.slide_uri, mpp=shard.mpp) as slide:
        if slide.version != shard.tile_version:
            cause = "has been replaced by another file since it was indexed"
            raise BrokenSlide(shard.slide_id, cause, "prepare it again")
        corners = zip(shard.x.tolist(), shard.y.tolist(), strict=True)
        native = np.stack(
            [slide.read_region(Point(x, y), shard.level, Size(side, side)) for x, y in corners]
        )
    if side == size:
        return native.tobytes()
    out = np.empty((len(native), size, size, 3), np.uint8)
    resample(native, out)
    return out.tobytes()
