"""Whether memory stays bounded: large slides, long runs, slow consumers.

    python -m tests.benchmarks.memory [--json FILE] [--quick]

`rss-8gb-vs-200mb`: peak resident memory of a process that does a read worker's work on the same
number of shards of a slide of 8 GB and of one of 200 MB; `index-rss-...` that of a process that
indexes it whole. `rss-8gb` compares the former with 1 GB. `ray-worker-rss-8gb` is the largest of
Ray's own workers, including the pages of the object store that they touched. `driver-10000-shards`:
private memory of the driver (the object store is shared) after 10,000 shards of one run, compared
with after 1,000. `spilled`: bytes that the object store wrote to disk while a slow consumer took
more blocks than the store can hold. Then the store is made to spill on purpose, to show that the
measurement sees it.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import ray
from ray._private.internal_api import memory_summary

from pipelines.cohort import from_parquet, to_parquet
from pipelines.grid import PatchSpec
from pipelines.index import index_slide
from pipelines.patch_source import read_patches
from pipelines.patches import decode_patches, fetch_shards
from pipelines.shards import SCHEMA
from pipelines.slides.opening import open_slide
from tests.benchmarks import harness
from tests.benchmarks.planning import start_ray
from tests.support.formats import write_huge_tiff

SPEC = PatchSpec(size=224, mpp=0.25)
READ = 12
"""Shards that each read worker reads."""


def shards_of(path: Path, *, side: int) -> pa.Table:
    """Shards of the whole slide."""
    with open_slide(str(path)) as slide:
        return index_slide(slide, SPEC, organisation="bench", shard_side=side).shards


def peak(work: Callable[..., None], *given: object) -> float:
    """Peak resident bytes of a fresh process that does the work."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_after, (work, given))


def _peak_after(work: Callable[..., None], given: tuple[object, ...]) -> float:
    Path("/proc/self/clear_refs").write_text("5")  # a forked process starts with its parent's peak
    work(*given)
    return high_water()


def high_water(process: int | str = "self") -> float:
    """Largest resident size of a process so far, in bytes."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024.0 * int(
        next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]
    )


def index_whole(path: str) -> None:
    """What one task of `prepare` does, without writing."""
    shards_of(Path(path), side=32)


def read_some(table: bytes) -> None:
    """What a read worker and its consumer do, a shard at a time."""
    shards = from_parquet(table, SCHEMA)
    out = np.empty((max(shards["n_patches"].to_pylist()), SPEC.size, SPEC.size, 3), np.uint8)
    for k in range(len(shards)):
        decode_patches(fetch_shards(shards.slice(k, 1)), out=out)


def size_rows(folder: Path, rounds: int) -> list[harness.Row]:
    """Read workers and indexing, on a large and on a small slide."""
    paths = {}
    for name, gigabytes in (("200mb", 0.2), ("8gb", 8.0)):
        paths[name] = folder / f"{name}.tif"
        write_huge_tiff(paths[name], gigabytes=gigabytes)
    tables = {}
    for name, path in paths.items():
        shards = shards_of(path, side=32)
        full = [
            k
            for k, count in enumerate(shards["n_patches"].to_pylist())
            if count == max(shards["n_patches"].to_pylist())
        ]
        tables[name] = to_parquet(shards.take([full[k % len(full)] for k in range(READ)]))
    reading = {
        name: [peak(read_some, table) for _ in range(rounds)] for name, table in tables.items()
    }
    indexing = {
        name: [peak(index_whole, str(path)) for _ in range(rounds)] for name, path in paths.items()
    }
    named = {"unit": "bytes", "better": "lower"}
    return [
        harness.pairs_row(
            "rss-8gb-vs-200mb",
            reading["8gb"],
            reading["200mb"],
            reference="200 MB slide",
            goal=1.1,
            **named,
        ),
        harness.pairs_row(
            "rss-8gb", reading["8gb"], [1e9] * rounds, reference="1 GB", goal=1.0, **named
        ),
        harness.pairs_row(
            "index-rss-8gb-vs-200mb",
            indexing["8gb"],
            indexing["200mb"],
            reference="200 MB slide",
            **named,
        ),
    ]


def driver_row(folder: Path, count: int) -> harness.Row:
    """The driver's memory along a run of small shards."""
    small = shards_of(folder / "8gb.tif", side=4)
    shards = small.slice(0, min(count, len(small)))
    process, seen, private = psutil.Process(), 0, {}
    for block in read_patches(shards).iter_batches(batch_size=None, batch_format="pyarrow"):
        for k in (count // 10, count):
            if seen < k <= seen + len(block):
                private[k] = float(process.memory_full_info().uss)
        seen += len(block)
    named = {
        "reference": f"after {count // 10:,} shards",
        "unit": "bytes",
        "better": "lower",
        "goal": 1.1,
    }
    return harness.pairs_row(
        "driver-10000-shards", [private[count]], [private[count // 10]], **named
    )


def slow_consumer_rows(folder: Path, blocks: int) -> list[harness.Row]:
    """A consumer that takes a block every half second, from a source that could fill the store many
    times over."""
    shards = shards_of(folder / "8gb.tif", side=32).slice(0, blocks)
    held = []
    for block in read_patches(shards).iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=2
    ):
        held.append(block.nbytes)
        time.sleep(0.5)
    workers = [
        high_water(child.pid)
        for child in psutil.Process().children(recursive=True)
        if child.name().startswith("ray::")
    ]
    amount = spilled_bytes()
    capacity = ray.cluster_resources()["object_store_memory"]
    print(f"{sum(held):,} bytes went through a store of {capacity:,.0f}")
    kept = [
        ray.put(np.zeros(2**26, np.uint8)) for _ in range(8)
    ]  # twice what the store holds: this must be seen
    if not spilled_bytes() > amount:
        raise RuntimeError(
            f"{len(kept)} objects of 64 MB did not show as spilled: Ray reports it differently now"
        )
    named = {"unit": "bytes", "better": "lower"}
    return [
        harness.pairs_row(
            "ray-worker-rss-8gb", [max(workers)], [1e9], reference="1 GB", goal=1.0, **named
        ),
        harness.pairs_row(
            "spilled", [amount], [float(sum(held))], reference="bytes read", goal=0.0, **named
        ),
    ]


def spilled_bytes() -> float:
    """What the object store has written to disk so far."""
    summary = memory_summary(address=ray.get_runtime_context().gcs_address, stats_only=True)
    lines = [line for line in summary.splitlines() if "Spilled" in line]
    return float(lines[0].split("Spilled")[1].split("MiB")[0]) * 2**20 if lines else 0.0


LIMITS = {
    "rss": "one shard's tiles and pixels, and the libraries",
    "index-rss": "the tile index of the whole slide, 16 bytes a tile",
    "driver": "Ray Data's statistics of tasks",
}


def main() -> None:
    given = harness.arguments(__doc__ or "")
    rounds, count, blocks = (1, 2000, 20) if given.quick else (3, 10_000, 60)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = size_rows(folder, rounds)
        start_ray(
            address="local", num_cpus=4, include_dashboard=False, object_store_memory=256 * 2**20
        )
        rows += [driver_row(folder, count), *slow_consumer_rows(folder, blocks)]
    harness.report(
        "memory",
        rows,
        given,
        packages=("ray", "pyarrow", "tifffile", "simplejpeg", "numpy"),
        limits=LIMITS,
    )


if __name__ == "__main__":
    main()
