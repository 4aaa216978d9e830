"""The patch stream as ONE Ray Data source, for training and inference.

Adds scheduling to `pipelines.patches`, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
import pyarrow as pa
import ray
import ray.data.extensions
from ray.data import Dataset, Datasource, ReadTask, read_datasource
from ray.data.block import BlockMetadata
from ray.util.metrics import Counter

from pipelines.patches import fetch_shards
from pipelines.read_counts import ReadCounts
from pipelines.shards import PIXELS

PATCHES_PER_TASK = 1024
"""Patches that one read task fetches: a block costs Ray 14-18 CPU-ms whatever its size; these are
about 20 MB of tiles."""


def read_patches(
    shards: pa.Table, *, concurrency: int | None = None, patches_per_task: int = PATCHES_PER_TASK
) -> Dataset:
    """Stream shards as a Ray dataset.

    Args:
        shards: rows of `pipelines.shards.SCHEMA`; their order is the stream's order.
        concurrency: maximum number of read tasks at a time; None for one per CPU of the cluster.
        patches_per_task: fewer make more blocks, so that a short table keeps several consumers
            busy.

    Returns:
        A dataset with one row a shard, as `pipelines.patches.fetch_shards` returns it. Give its
        blocks (pyarrow) to `pipelines.patches.decode_patches`.
    """
    tasks = _split_for_tasks(shards, patches_per_task)
    # Ray warns if there may be more at a time than there are tasks.
    limit = None if concurrency is None else max(1, min(concurrency, len(tasks)))
    dataset = read_datasource(
        ShardSource(tasks), override_num_blocks=max(1, len(tasks)), concurrency=limit
    )
    dataset.context.execution_options.preserve_order = True
    return dataset


def _split_for_tasks(shards: pa.Table, limit: int) -> list[pa.Table]:
    """Consecutive shards, at most `limit` patches a task; a larger shard is a task of its own."""
    counts = np.array(shards["n_patches"].to_pylist(), np.int64)
    bounds, total = [0], 0
    for k, count in enumerate(counts.tolist()):
        if total and total + count > limit:
            bounds.append(k)
            total = 0
        total += count
    bounds.append(len(counts))
    return [shards.slice(a, b - a) for a, b in pairwise(bounds) if b > a]


def publish_counts(rows: pa.Table) -> None:
    """Add what fetching cost to Ray's metrics, for dashboard and Prometheus; does nothing in a
    process without Ray."""
    if not ray.is_initialized():
        return
    counts = ReadCounts.of(rows)
    for name, description in _METRICS.items():
        if value := getattr(counts, name):  # Ray refuses to add nothing
            _counter(f"acinus_tile_{name}", description).inc(value)


_METRICS = {
    "requests": "Range requests for tiles",
    "fetched": "Bytes received for tiles",
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
        """One task a table; `parallelism` is already met, by `override_num_blocks`."""
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
