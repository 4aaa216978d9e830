"""Our shards for the corners of a benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tests.benchmarks.reader import shards_of


def corners_of(shards: pa.Table) -> NDArray[np.int64]:
    """Top-left corners x, y of all patches in level-0 pixels, int64 [M, 2], in shard order."""
    return np.column_stack(
        [
            np.concatenate([np.array(row, np.int64) for row in shards[name].to_pylist()])
            for name in ("x", "y")
        ]
    )


def repeated_shards(
    slide: Path, corners: NDArray[np.int64], size: int
) -> tuple[pa.Table, list[int]]:
    """The shards of the corners, repeated as often as the corners are, and where each shard starts
    among the corners."""
    shards = shards_of(slide, size=size, offset=int(corners[0, 0]))
    once = sum(shards["n_patches"].to_pylist())
    shards = pa.concat_tables([shards] * (len(corners) // once))
    if not np.array_equal(corners_of(shards), corners):
        raise ValueError("the corners are not those of our shards, in shard order")
    counts = np.array(shards["n_patches"].to_pylist(), np.int64)
    return shards, (np.cumsum(counts) - counts).tolist()


class Batches:
    """What shards are decoded into, so that no two threads write to the same memory.

    Shards among the first N corners go into `out` itself, to be compared; the others into one batch
    a thread, again and again.
    """

    def __init__(self, shards: pa.Table, *, threads: int, size: int) -> None:
        shape = (max(shards["n_patches"].to_pylist()), size, size, 3)
        self._free: SimpleQueue[NDArray[np.uint8]] = SimpleQueue()
        for _ in range(threads):
            self._free.put(np.ones(shape, np.uint8))

    @contextmanager
    def target(self, out: NDArray[np.uint8], start: int, count: int) -> Iterator[NDArray[np.uint8]]:
        """The memory for `count` patches from patch `start` on."""
        if start < len(out):
            yield out[start : start + count]
            return
        batch = self._free.get()
        yield batch[:count]
        self._free.put(batch)
