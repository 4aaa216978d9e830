"""Ours without Ray: `fetch_shards` + `decode_patches`, shard by shard. Option: the number of
threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.patches import decode_patches, fetch_shards
from tests.benchmarks.peer_readers import protocol
from tests.benchmarks.peer_readers.shards import Batches, repeated_shards


def open_slide(
    slide: Path, corners: NDArray[np.int64], size: int, options: list[str]
) -> protocol.Read:
    threads = int(options[0])
    shards, starts = repeated_shards(slide, corners, size)
    counts = shards["n_patches"].to_pylist()
    batches = Batches(shards, threads=threads, size=size)

    def read(out: NDArray[np.uint8]) -> None:
        def read_shard(k: int) -> None:
            with batches.target(out, starts[k], counts[k]) as batch:
                decode_patches(fetch_shards(shards.slice(k, 1)), out=batch)

        if threads == 1:
            for k in range(len(counts)):
                read_shard(k)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(read_shard, range(len(counts))))

    return read


if __name__ == "__main__":
    protocol.serve(open_slide)
