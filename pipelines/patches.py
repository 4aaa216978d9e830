"""The patch stream: ONE Ray Data source for training and inference, and the decoding that its consumers do.

    shard rows -> read_patches -> blocks of shards with their encoded tiles -> decode_patches -> uint8 [N, H, W, 3]

Pixels travel compressed: a block is 10-13 times smaller than its pixels. Each source tile is decoded once, in the consumer's own
threads. Slides that only OpenSlide or wsidicom open are decoded in the read task and travel as pixels. `fetch_shards` and
`decode_patches` are plain functions, and `stream_patches` is both without Ray; the Ray wrapper adds nothing but scheduling.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import ray
import ray.data.extensions
from numpy.typing import NDArray
from PIL import Image
from ray.data import Dataset, Datasource, ReadTask, read_datasource
from ray.data.block import BlockMetadata
from ray.util.metrics import Counter

from pipelines import icc, storage
from pipelines.shards import PIXELS
from pipelines.slides.errors import BrokenSlide
from pipelines.slides.geometry import Point, Size
from pipelines.slides.opening import open_slide
from pipelines.slides.tiled import PackedTiles, TileStore, fetch_tiles
from pipelines.slides.tiles import TileGrid, decode_windows
from pipelines.stain import StainFit

PATCHES_PER_TASK = 1024
"""Patches that one read task fetches: a block costs Ray 14-18 CPU-ms whatever its size; these are about 20 MB of tiles."""

AHEAD = 2
"""Shards fetched while one is decoded: enough for 20 ms of latency a request."""

CARRIED = (
    *(
        "organisation_id",
        "slide_id",
        "spec_hash",
        "shard",
        "n_patches",
        "patch_size",
        "read_size",
        "x",
        "y",
        "read_x",
        "read_y",
    ),
    *("level_width", "level_height", "tile_width", "tile_height", "tile", "tile_codec", "stain"),
    *("mpp", "level", "scale", "downsample", "icc"),
)
"""Shard columns that a consumer needs to decode and to name what it decoded (`shards.shard_name`)."""
FETCHED = pa.schema(
    [
        pa.field("tile_data", pa.large_list(pa.large_binary())),  # streams in the order of `tile`
        pa.field(
            "pixels", pa.large_binary()
        ),  # uint8 [n_patches, size, size, 3] where transport is pixels
        pa.field("profile", pa.binary()),  # ICC profile to be applied
        pa.field("requests", pa.int64()),
        pa.field("bytes_fetched", pa.int64()),
        pa.field(
            "bytes_needed", pa.int64()
        ),  # of the tiles themselves: fetched / needed is the read amplification
    ]
)
"""Columns that `fetch_shards` adds."""


@dataclass(frozen=True, kw_only=True)
class ReadCounts:
    """What fetching shards took: a figure of every run's report.

    Attributes:
        requests: range requests (reads of local files count alike).
        fetched: bytes that came.
        needed: bytes of the tiles themselves.
    """

    requests: int = 0
    fetched: int = 0
    needed: int = 0

    @classmethod
    def of(cls, rows: pa.Table) -> ReadCounts:
        """Of fetched shards."""
        names = {"requests": "requests", "fetched": "bytes_fetched", "needed": "bytes_needed"}
        return cls(**{name: sum(rows[column].to_pylist()) for name, column in names.items()})

    def __add__(self, other: ReadCounts) -> ReadCounts:
        return ReadCounts(
            requests=self.requests + other.requests,
            fetched=self.fetched + other.fetched,
            needed=self.needed + other.needed,
        )

    @property
    def amplification(self) -> float:
        """Bytes that came for each that was needed; 0 where no tile was."""
        return self.fetched / self.needed if self.needed else 0.0

    def __str__(self) -> str:
        if not self.requests:
            return "nothing"
        return f"{self.requests:,} requests, {self.fetched:,} bytes, {self.amplification:.2f} x what was needed"


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


def read_patches(
    shards: pa.Table, *, concurrency: int | None = None, patches_per_task: int = PATCHES_PER_TASK
) -> Dataset:
    """Stream shards as a Ray dataset.

    Args:
        shards: rows of `pipelines.shards.SCHEMA`; their order is the stream's order.
        concurrency: most read tasks at a time, None for as many as the cluster has CPUs.
        patches_per_task: fewer make more blocks, so that a short table can keep several consumers busy.

    Returns:
        A dataset with one row a shard: the columns `CARRIED` and `FETCHED`. Give its blocks (pyarrow) to `decode_patches`.
    """
    tasks = _split_for_tasks(shards, patches_per_task)
    most = (
        None if concurrency is None else max(1, min(concurrency, len(tasks)))
    )  # Ray warns of more than there are tasks
    dataset = read_datasource(
        ShardSource(tasks), override_num_blocks=max(1, len(tasks)), concurrency=most
    )
    dataset.context.execution_options.preserve_order = True
    return dataset


def stream_patches(
    shards: pa.Table, *, ahead: int = AHEAD, out: NDArray[np.uint8] | None = None
) -> Iterator[PatchBatch]:
    """Decode shard after shard in this thread while the next are fetched in others: the stream without Ray.

    Args:
        shards: rows of `pipelines.shards.SCHEMA`.
        ahead: shards fetched before they are needed.
        out: see `decode_patches`; each batch then lies in it until the next is asked for.

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
    """Fetch what is needed to decode the shards: their encoded tiles, or pixels where tiles can't travel.

    Returns:
        One row a shard: the columns `CARRIED` and `FETCHED`.

    Raises:
        BrokenSlide: a slide lacks a tile, or a patch does not decode.
        SlideNotFound: a slide is gone.
    """
    fetched = [_fetch(row) for row in shards.to_pylist()]
    added = pa.Table.from_batches(fetched, schema=FETCHED)
    columns = {
        **dict(zip(CARRIED, shards.select(CARRIED).columns, strict=True)),
        **dict(zip(FETCHED.names, added.columns, strict=True)),
    }
    return pa.table(columns)


def decode_patches(rows: pa.Table, *, out: NDArray[np.uint8] | None = None) -> PatchBatch:
    """Decode fetched shards.

    Args:
        rows: output of `fetch_shards` or a block of `read_patches`; all of one patch size.
        out: uint8 [>= N, size, size, 3] to decode into, C-contiguous; `patch` is then a view of its first N. A loop that gives
            the same array again and again is spared about 20 us a patch, in which the system would zero fresh memory.

    Raises:
        ValueError: `rows` mixes sizes, or `out` does not fit.
        BrokenSlide: a tile does not decode; no patch of the shard is then returned.
    """
    counts = rows["n_patches"].to_pylist()
    sizes = set(rows["patch_size"].to_pylist())
    if len(sizes) != 1:
        raise ValueError(
            f"shards with patches of {sorted(sizes)} px can't be decoded into one batch; keep them apart"
        )
    size = sizes.pop()
    patch = np.empty((sum(counts), size, size, 3), np.uint8) if out is None else out[: sum(counts)]
    if patch.shape != (sum(counts), size, size, 3) or not patch.flags.c_contiguous:
        raise ValueError(
            f"out has shape {patch.shape}; at least {(sum(counts), size, size, 3)}, C-contiguous, is needed"
        )
    start = 0
    for k, count in enumerate(counts):
        _decode_shard(rows.slice(k, 1), patch[start : start + count])
        start += count
    places = {
        name: np.concatenate([_values(rows[name], k) for k in range(len(counts))])
        for name in ("x", "y")
    }
    return PatchBatch(
        slide_id=np.repeat(np.array(rows["slide_id"].to_pylist(), dtype=object), counts),
        shard=np.repeat(np.array(rows["shard"].to_pylist(), np.int32), counts),
        x=places["x"],
        y=places["y"],
        patch=patch,
    )


def _values(column: pa.ChunkedArray, k: int) -> NDArray[Any]:
    return column[k].values.to_numpy(zero_copy_only=False)


_SCALARS = (
    *(
        "slide_id",
        "read_size",
        "level_width",
        "level_height",
        "tile_width",
        "tile_height",
        "tile_codec",
    ),
    *("profile", "stain"),
)


def _decode_shard(row: pa.Table, out: NDArray[np.uint8]) -> None:
    first = row.select(_SCALARS).to_pylist()[0]
    if first["tile_width"]:
        _decode_tiles(row, first, out)
    else:
        out[...] = np.frombuffer(row["pixels"][0].as_buffer(), np.uint8).reshape(out.shape)
    if first["profile"]:
        try:
            icc.to_srgb(out, first["profile"])
        except ValueError as error:
            raise BrokenSlide(
                first["slide_id"], str(error), "prepare it without ICC correction"
            ) from error
    if first["stain"]:
        _stain_fit(first["stain"]).apply(out)


@lru_cache(maxsize=256)
def _stain_fit(content: bytes) -> StainFit:
    return StainFit.from_bytes(content)


def _decode_tiles(row: pa.Table, first: dict[str, Any], out: NDArray[np.uint8]) -> None:
    grid = TileGrid(
        level=Size(first["level_width"], first["level_height"]),
        tile=Size(first["tile_width"], first["tile_height"]),
    )
    streams = dict(
        zip(_values(row["tile"], 0).tolist(), _streams(row["tile_data"][0].values), strict=True)
    )
    side = first["read_size"]
    native = out if side == out.shape[1] else np.empty((len(out), side, side, 3), np.uint8)
    x, y = _values(row["read_x"], 0).astype(np.int64), _values(row["read_y"], 0).astype(np.int64)
    # Windows lie within the level, so that every pixel of `native` comes from a tile.
    decode_windows(first["slide_id"], grid, first["tile_codec"], streams, x=x, y=y, out=native)
    if native is not out:
        resample(native, out)


def _streams(tiles: pa.LargeBinaryArray) -> list[memoryview]:
    """Views of the array's values."""
    _, bounds, data = tiles.buffers()
    at = np.frombuffer(bounds, np.int64, len(tiles) + 1, tiles.offset * 8)
    return PackedTiles(
        data=memoryview(data).cast("B") if data is not None else memoryview(b""), bounds=at
    ).streams()


def resample(native: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Area-average windows [N, h, w, 3] to the size of `out` [N, H, W, 3], both uint8."""
    size = (out.shape[2], out.shape[1])
    for k in range(len(native)):
        out[k] = np.asarray(Image.fromarray(native[k]).resize(size, Image.Resampling.BOX))


def _fetch(row: dict[str, Any]) -> pa.RecordBatch:
    """What `FETCHED` tells of one shard."""
    pixels, tiles, needed = b"", PackedTiles(data=b"", bounds=np.zeros(1, np.int64)), 0
    with storage.metered() as meter:
        if row["transport"] == PIXELS:
            pixels = _read_pixels(row)
        else:
            lengths = np.array(row["tile_length"], np.int64)
            names = ("uri", "codec", "header", "items", "sparse", "version")
            store = TileStore(**{name: row[f"tile_{name}"] for name in names})
            tiles = fetch_tiles(
                row["slide_id"], store, np.array(row["tile_offset"], np.int64), lengths
            )
            needed = int(lengths.sum())
        profile = _profile(row["slide_uri"], row["tile_version"]) if row["icc"] else b""
    count = len(tiles.bounds) - 1
    buffers = [None, pa.py_buffer(tiles.bounds), pa.py_buffer(tiles.data)]
    data = pa.LargeListArray.from_arrays(
        pa.array([0, count], pa.int64()),
        pa.LargeBinaryArray.from_buffers(pa.large_binary(), count, buffers),
    )
    scalars = {"requests": meter.requests, "bytes_fetched": meter.fetched, "bytes_needed": needed}
    values = {
        "tile_data": data,
        "pixels": pa.array([pixels], pa.large_binary()),
        "profile": pa.array([profile], pa.binary()),
    }
    values |= {name: pa.array([value], pa.int64()) for name, value in scalars.items()}
    return pa.RecordBatch.from_arrays([values[name] for name in FETCHED.names], schema=FETCHED)


@lru_cache(maxsize=16)
def _profile(slide_uri: str, version: str) -> bytes:
    del version  # a slide that was replaced is looked at again
    with open_slide(slide_uri) as slide:
        return slide.icc


def _read_pixels(row: dict[str, Any]) -> bytes:
    """The shard's patches as uint8 [N, size, size, 3], through the slide's own reader."""
    side, size = row["read_size"], row["patch_size"]
    with open_slide(row["slide_uri"], mpp=row["mpp"]) as slide:
        if slide.version != row["tile_version"]:
            raise BrokenSlide(
                row["slide_id"],
                "has been replaced by another file since it was indexed",
                "prepare it again",
            )
        native = np.stack(
            [
                slide.read_region(Point(x, y), row["level"], Size(side, side))
                for x, y in zip(row["x"], row["y"], strict=True)
            ]
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


def publish_counts(rows: pa.Table) -> None:
    """Put what fetching took among Ray's metrics, for dashboard and Prometheus; nothing in a process without Ray."""
    if not ray.is_initialized():
        return
    counts = ReadCounts.of(rows)
    for name, description in _METRICS.items():
        if value := getattr(counts, name):  # Ray refuses to add nothing
            _counter(f"acinus_tile_{name}", description).inc(value)


_METRICS = {
    "requests": "Range requests for tiles",
    "fetched": "Bytes that came for tiles",
    "needed": "Bytes of the tiles themselves",
}


@lru_cache(maxsize=8)
def _counter(name: str, description: str) -> Counter:
    return Counter(name, description=description)


def _read_task(shards: pa.Table) -> Iterator[pa.Table]:
    rows = fetch_shards(shards)
    publish_counts(rows)
    yield rows


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
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: object | None = None,
    ) -> list[ReadTask]:
        """One task a table: `parallelism` is met by `override_num_blocks`."""
        del parallelism, data_context
        return [
            ReadTask(
                partial(_read_task, task),
                BlockMetadata(
                    num_rows=len(task),
                    size_bytes=_task_bytes(task),
                    exec_stats=None,
                    input_files=None,
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for task in self._tasks
        ]


def _task_bytes(task: pa.Table) -> int:
    tiles = sum(sum(lengths) for lengths in task["tile_length"].to_pylist())
    pixels = zip(
        task["n_patches"].to_pylist(),
        task["patch_size"].to_pylist(),
        task["transport"].to_pylist(),
        strict=True,
    )
    return tiles + sum(
        count * size * size * 3 for count, size, transport in pixels if transport == PIXELS
    )
