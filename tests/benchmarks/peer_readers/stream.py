"""Ours with Ray: `read_patches` fetches encoded tiles in read tasks; the consumer runs
`decode_patches` in one thread a core."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.patch_source import read_patches
from pipelines.patches import decode_patches
from tests.benchmarks.peer_readers import protocol
from tests.benchmarks.peer_readers.session import ray_session
from tests.benchmarks.peer_readers.shards import Batches, repeated_shards


def open_slide(
    slide: Path, corners: NDArray[np.int64], size: int, _options: list[str]
) -> protocol.Read:
    threads = os.cpu_count() or 1
    shards, _ = repeated_shards(slide, corners, size)
    batches = Batches(shards, threads=threads, size=size)

    def read(out: NDArray[np.uint8]) -> None:
        def decode(row: pa.Table, start: int, count: int) -> None:
            with batches.target(out, start, count) as batch:
                decode_patches(row, out=batch)

        start, decoding = 0, []
        with ThreadPoolExecutor(threads) as pool:
            for block in read_patches(shards).iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=1
            ):
                for k, count in enumerate(block["n_patches"].to_pylist()):
                    decoding.append(pool.submit(decode, block.slice(k, 1), start, count))
                    start += count
            for decoded in decoding:
                decoded.result()

    return read


if __name__ == "__main__":
    with ray_session():
        protocol.serve(open_slide)
