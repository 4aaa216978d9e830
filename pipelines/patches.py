"""The patch stream: ONE Ray Data source for training and inference, and the decoding that its consumers do.

    shard rows -> read_patches -> blocks of shards with their encoded tiles -> decode_patches -> uint8 [N, H, W, 3]

Pixels travel compressed: a block is 10-13 times smaller than its pixels. Each source tile is decoded once, in the consumer's own
threads. Slides that only OpenSlide or wsidicom open are decoded in the read task and travel as pixels. `fetch_shards` and
`decode_patches` are plain functions; the Ray wrapper below them adds nothing but scheduling.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import ray.data.extensions  # noqa: F401 - registers Arrow types before any block is made
from numpy.typing import NDArray
from PIL import Image
from ray.data import Dataset, Datasource, ReadTask, read_datasource
from ray.data.block import BlockMetadata

from pipelines.shards import PIXELS
from pipelines.slides.errors import BrokenSlide
from pipelines.slides.geometry import Point, Size
from pipelines.slides.slide import open_slide
from pipelines.slides.tiff import TileIndex, fetch_tiles
from pipelines.slides.tiles import TileGrid, decode_windows

PATCHES_PER_TASK = 1024
"""Patches that one read task fetches: a block costs Ray 14-18 CPU-ms whatever its size; these are about 20 MB of tiles."""

CARRIED = (
    *("organisation_id", "slide_id", "spec_hash", "shard", "n_patches", "patch_size", "read_size", "x", "y", "read_x", "read_y"),
    *("level_width", "level_height", "tile_width", "tile_height", "tile"),
)
"""Shard columns that a consumer needs to decode and to name what it decoded."""


class PatchBatch(TypedDict):
    """Decoded patches, in shard order.

    Keys: `slide_id` object [N] of str; `shard` int32 [N]; `x`, `y` int32 [N], top-left corner in level-0 pixels; `patch` uint8
    [N, H, W, 3].
    """

    slide_id: NDArray[np.object_]
    shard: NDArray[np.int32]
    x: NDArray[np.int32]
    y: NDArray[np.int32]
    patch: NDArray[np.uint8]


def read_patches(shards: pa.Table, *, concurrency: int | None = None, patches_per_task: int = PATCHES_PER_TASK) -> Dataset:
    """Stream shards as a Ray dataset.

    Args:
        shards: rows of `pipelines.shards.SCHEMA`; their order is the stream's order.
        concurrency: most read tasks at a time, None for as many as the cluster has CPUs.
        patches_per_task: fewer make more blocks, so that a short table can keep several consumers busy.

    Returns:
        A dataset with one row a shard: the `CARRIED` columns, `jpeg` list<binary> and `pixels` binary, one of
        them empty. Give its blocks (pyarrow) to `decode_patches`.
    """
    tasks = _split_for_tasks(shards, patches_per_task)
    most = None if concurrency is None else max(1, min(concurrency, len(tasks)))  # Ray warns of more than there are tasks
    dataset = read_datasource(ShardSource(tasks), override_num_blocks=max(1, len(tasks)), concurrency=most)
    dataset.context.execution_options.preserve_order = True
    return dataset


def fetch_shards(shards: pa.Table) -> pa.Table:
    """Fetch what is needed to decode the shards: their encoded tiles, or pixels where tiles can't travel.

    Raises:
        BrokenSlide: a slide lacks a tile, or a patch does not decode.
        SlideNotFound: a slide is gone.
    """
    jpeg, pixels = [], []
    for row in shards.to_pylist():
        jpeg.append([] if row["transport"] == PIXELS else _fetch_tiles(row))
        pixels.append(_read_pixels(row) if row["transport"] == PIXELS else b"")
    carried = shards.select(CARRIED)
    carried = carried.append_column("jpeg", pa.array(jpeg, pa.large_list(pa.large_binary())))
    return carried.append_column("pixels", pa.array(pixels, pa.large_binary()))


def decode_patches(rows: pa.Table, *, out: NDArray[np.uint8] | None = None) -> PatchBatch:
    """Decode fetched shards.

    Args:
        rows: output of `fetch_shards` or a block of `read_patches`; all of one patch size.
        out: uint8 [>= N, size, size, 3] to decode into, C-contiguous; `patch` is then a view of its first N. A loop that gives
            the same array again and again is spared about 20 us a patch, in which the system would zero fresh memory.

    Raises:
        BrokenSlide: a tile does not decode; no patch of the shard is then returned.
    """
    counts = rows["n_patches"].to_pylist()
    size = int(rows["patch_size"][0].as_py())
    patch = np.empty((sum(counts), size, size, 3), np.uint8) if out is None else out[: sum(counts)]
    if patch.shape != (sum(counts), size, size, 3) or not patch.flags.c_contiguous:
        raise ValueError(f"out has shape {patch.shape}; at least {(sum(counts), size, size, 3)}, C-contiguous, is needed")
    start = 0
    for k, count in enumerate(counts):
        _decode_shard(rows.slice(k, 1), patch[start : start + count])
        start += count
    places = {name: np.concatenate([_values(rows[name], k) for k in range(len(counts))]) for name in ("x", "y")}
    return PatchBatch(
        slide_id=np.repeat(np.array(rows["slide_id"].to_pylist(), dtype=object), counts),
        shard=np.repeat(np.array(rows["shard"].to_pylist(), np.int32), counts),
        x=places["x"],
        y=places["y"],
        patch=patch,
    )


def _values(column: pa.ChunkedArray, k: int) -> NDArray[Any]:
    return column[k].values.to_numpy(zero_copy_only=False)


def _decode_shard(row: pa.Table, out: NDArray[np.uint8]) -> None:
    first = {name: row[name][0].as_py() for name in ("slide_id", "read_size", "level_width", "level_height", "tile_width")}
    if not first["tile_width"]:
        out[...] = np.frombuffer(row["pixels"][0].as_buffer(), np.uint8).reshape(out.shape)
        return
    grid = TileGrid(
        level=Size(first["level_width"], first["level_height"]),
        tile=Size(first["tile_width"], row["tile_height"][0].as_py()),
    )
    streams = {
        number: np.frombuffer(stream.as_buffer(), np.uint8).data
        for number, stream in zip(_values(row["tile"], 0).tolist(), row["jpeg"][0].values, strict=True)
    }
    side = first["read_size"]
    native = out if side == out.shape[1] else np.empty((len(out), side, side, 3), np.uint8)
    x, y = _values(row["read_x"], 0).astype(np.int64), _values(row["read_y"], 0).astype(np.int64)
    decode_windows(first["slide_id"], grid, streams, x=x, y=y, out=native)
    if native is not out:
        resample(native, out)


def resample(native: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Area-average windows [N, h, w, 3] to the size of `out` [N, H, W, 3], both uint8."""
    size = (out.shape[2], out.shape[1])
    for k in range(len(native)):
        out[k] = np.asarray(Image.fromarray(native[k]).resize(size, Image.Resampling.BOX))


def _fetch_tiles(row: dict[str, Any]) -> list[bytes]:
    """The shard's tiles in the order of its `tile` column."""
    numbers = row["tile"]
    dense = TileIndex(
        grid=TileGrid(level=Size(row["level_width"], row["level_height"]), tile=Size(row["tile_width"], row["tile_height"])),
        offsets=np.array(row["tile_offset"], np.int64),
        lengths=np.array(row["tile_length"], np.int64),
        header=row["jpeg_header"],
    )
    fetched = fetch_tiles(row["slide_uri"], row["slide_id"], dense, list(range(len(numbers))))
    return [fetched[k] for k in range(len(numbers))]


def _read_pixels(row: dict[str, Any]) -> bytes:
    """The shard's patches as uint8 [N, size, size, 3], through the slide's own reader."""
    side, size = row["read_size"], row["patch_size"]
    with open_slide(row["slide_uri"], mpp=row["mpp"]) as slide:
        if slide.levels[row["level"]].size != Size(row["level_width"], row["level_height"]):
            raise BrokenSlide(row["slide_id"], "has changed since it was indexed", "run prepare again")
        native = np.stack(
            [slide.read_region(Point(x, y), row["level"], Size(side, side)) for x, y in zip(row["x"], row["y"], strict=True)]
        )
    if side == size:
        return native.tobytes()
    out = np.empty((len(native), size, size, 3), np.uint8)
    resample(native, out)
    return out.tobytes()


def _split_for_tasks(shards: pa.Table, most: int = PATCHES_PER_TASK) -> list[pa.Table]:
    """Consecutive shards of together at most `most` patches a task, where a shard is not larger by itself."""
    counts = np.array(shards["n_patches"].to_pylist(), np.int64)
    bounds, total = [0], 0
    for k, count in enumerate(counts.tolist()):
        if total and total + count > most:
            bounds.append(k)
            total = 0
        total += count
    bounds.append(len(counts))
    return [shards.slice(a, b - a) for a, b in pairwise(bounds) if b > a]


def _read_task(shards: pa.Table) -> Iterator[pa.Table]:
    yield fetch_shards(shards)


class ShardSource(Datasource):
    """Ray Data's view of the shard table: one read task a table of shards, one block a task."""

    def __init__(self, tasks: list[pa.Table]) -> None:
        super().__init__()
        self._tasks = tasks

    def get_name(self) -> str:
        """Shown on the Ray dashboard."""
        return "Shards"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of encoded tiles, or of pixels where those travel."""
        return sum(_task_bytes(task) for task in self._tasks)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: object | None = None
    ) -> list[ReadTask]:
        """One task a table: `parallelism` is met by `override_num_blocks`."""
        del parallelism, data_context
        return [
            ReadTask(
                partial(_read_task, task),
                BlockMetadata(num_rows=len(task), size_bytes=_task_bytes(task), exec_stats=None, input_files=None),
                per_task_row_limit=per_task_row_limit,
            )
            for task in self._tasks
        ]


def _task_bytes(task: pa.Table) -> int:
    tiles = sum(sum(lengths) for lengths in task["tile_length"].to_pylist())
    pixels = zip(task["n_patches"].to_pylist(), task["patch_size"].to_pylist(), task["transport"].to_pylist(), strict=True)
    return tiles + sum(count * size * size * 3 for count, size, transport in pixels if transport == PIXELS)
