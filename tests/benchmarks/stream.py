"""What Ray costs: Ray Data from shards to a consumer that decodes and touches every batch, compared
with the plain threaded reader.

    python -m tests.benchmarks.stream [--json FILE] [--quick]

Several generated H&E slides, 224-px patches on 256-px tiles, two cores. Plain: two threads, each
`stream_patches` over half of the shards. Ray: `read_patches`, whose read tasks fetch encoded tiles;
the consumer is this process, two threads that decode, as the prefetch of a training worker does.
`wall` counts everything that Ray runs. `cpu-data-path` compares CPU seconds a patch of the plain
reader with those of read workers and consumer alone. `wall-pixels` lets the read tasks decode and
ship pixels instead.

It also prints where CPU time goes, process by process, and how many tasks a second one driver and
two drivers can plan.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import numpy as np
import psutil
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from pipelines.patch_source import PATCHES_PER_TASK, read_patches
from pipelines.patches import decode_patches, fetch_shards, stream_patches
from tests.benchmarks import harness
from tests.benchmarks.planning import planned, start_ray, two_drivers
from tests.benchmarks.reader import shards_of, write_slide

SIZE = 224
THREADS = 2


def cohort(folder: Path, *, slides: int, side: int) -> pa.Table:
    """Shards of several slides."""
    tables = []
    for k in range(slides):
        path = folder / f"slide-{k}.tif"
        if not path.exists():
            write_slide(path, subsampling=(2, 2), side=side)
        tables.append(shards_of(path, size=SIZE, offset=0))
    return pa.concat_tables(tables)


def touch(patch: np.ndarray) -> int:
    """Read something of every cache line's neighbourhood."""
    return int(patch[:, ::8, ::8].sum(dtype=np.int64))


def plain(shards: pa.Table) -> int:
    """Patches that two threads decode, without Ray."""

    def work(part: int) -> int:
        numbers = list(range(part, len(shards), THREADS))
        mine = shards.take(numbers)
        out = np.empty((max(mine["n_patches"].to_pylist()), SIZE, SIZE, 3), np.uint8)
        done = 0
        for batch in stream_patches(mine, out=out):
            touch(batch["patch"])
            done += len(batch["patch"])
        return done

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(work, range(THREADS)))


def consume(
    blocks: Iterator[pa.Table],
    max_patches: int,
    decode: Callable[[pa.Table, np.ndarray], np.ndarray],
) -> int:
    """Patches that two threads make of blocks, a shard at a time, at most four shards waiting."""
    waiting: Queue[pa.Table | None] = Queue(2 * THREADS)

    def work(_: int) -> int:
        out = np.empty((max_patches, SIZE, SIZE, 3), np.uint8)
        done = 0
        while (row := waiting.get()) is not None:
            patch = decode(row, out)
            touch(patch)
            done += len(patch)
        return done

    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(work, range(THREADS))
        for block in blocks:
            for k in range(len(block)):
                waiting.put(block.slice(k, 1))
        for _ in range(THREADS):
            waiting.put(None)
        return sum(results)


def through_ray(shards: pa.Table) -> int:
    """Patches that travel as encoded tiles."""
    blocks = read_patches(shards).iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=2
    )
    return consume(
        blocks,
        max(shards["n_patches"].to_pylist()),
        lambda row, out: decode_patches(row, out=out)["patch"],
    )


def as_pixels(block: pa.Table) -> pa.Table:
    """What the other transport ships: the read task decodes. Without a copy: `pa.array` never lets
    go of a memoryview."""
    patch = decode_patches(block)["patch"]
    bounds = np.cumsum([0, *block["n_patches"].to_pylist()], dtype=np.int64) * patch[0].size
    buffers = [None, pa.py_buffer(bounds), pa.py_buffer(patch)]
    return pa.table(
        {"pixels": pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(block), buffers)}
    )


def through_ray_as_pixels(shards: pa.Table) -> int:
    """Patches that travel as pixels."""
    dataset = read_patches(shards, patches_per_task=256).map_batches(
        as_pixels, batch_size=None, batch_format="pyarrow"
    )
    blocks = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
    return consume(
        blocks,
        1,
        lambda row, _: np.frombuffer(row["pixels"][0].as_buffer(), np.uint8).reshape(
            -1, SIZE, SIZE, 3
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of one run: wall clock, and CPU by kind of process."""

    patches: int
    wall: float
    cpu: dict[str, float]


def kind(process: psutil.Process) -> str:
    """What a process of Ray's is for."""
    words = " ".join(process.cmdline()[:3])
    if words.startswith("ray::"):
        return "read workers"
    for name, word in (
        ("raylet", "raylet/raylet"),
        ("gcs", "gcs_server"),
        ("dashboard and agents", "dashboard"),
    ):
        if word in words:
            return name
    return "dashboard and agents"


class CpuWatch(threading.Thread):
    """Records the CPU seconds of this process and all below it, once a second.

    So those of workers that end are not lost.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._own = psutil.Process()
        self._before = self._look()
        self._seen = dict(self._before)
        self._ended = threading.Event()

    def _look(self) -> dict[tuple[str, int], float]:
        found = {("consumer and driver", self._own.pid): sum(self._own.cpu_times()[:2])}
        for process in self._own.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                found[kind(process), process.pid] = sum(process.cpu_times()[:2])
        return found

    def run(self) -> None:
        while not self._ended.wait(1.0):
            self._seen |= self._look()

    def spent(self) -> dict[str, float]:
        """CPU seconds since the beginning, by kind of process."""
        self._ended.set()
        self.join()
        found: dict[str, float] = {}
        for key, seconds in (self._seen | self._look()).items():
            # A worker changes its title with its task: what it spent before counts for what it was
            # then.
            found[key[0]] = found.get(key[0], 0.0) + seconds - self._before.get(key, 0.0)
        return found


def measured(work: Callable[[pa.Table], int], shards: pa.Table) -> Cost:
    """Run once and count."""
    watch = CpuWatch()
    watch.start()
    start = time.perf_counter()
    patches = work(shards)
    wall = time.perf_counter() - start
    return Cost(patches=patches, wall=wall, cpu=watch.spent())


def parts(shards: pa.Table) -> dict[str, float]:
    """CPU microseconds a patch of the two plain functions, each alone."""
    rows = [shards.slice(k, 1) for k in range(min(8, len(shards)))]
    out = np.empty((max(shards["n_patches"].to_pylist()), SIZE, SIZE, 3), np.uint8)
    start = time.process_time()
    fetched = [fetch_shards(row) for row in rows]
    middle = time.process_time()
    count = sum(len(decode_patches(row, out=out)["patch"]) for row in fetched)
    end = time.process_time()
    return {
        "fetch_shards": (middle - start) / count * 1e6,
        "decode_patches": (end - middle) / count * 1e6,
    }


def account(costs: dict[str, list[Cost]], alone: dict[str, float]) -> dict[str, dict[str, float]]:
    """CPU microseconds a patch by kind of process; prints them."""
    names = sorted({name for runs in costs.values() for run in runs for name in run.cpu})
    found = {
        column: {
            name: float(np.median([run.cpu.get(name, 0.0) / run.patches for run in runs])) * 1e6
            for name in names
        }
        | {
            "wall x cores": float(np.median([THREADS * run.wall / run.patches for run in runs]))
            * 1e6
        }
        for column, runs in costs.items()
    }
    table = Table("process", *costs, title="CPU, us a patch")
    for name in [*names, "wall x cores"]:
        table.add_row(name, *(f"{values[name]:,.1f}" for values in found.values()))
    for name, value in alone.items():
        table.add_row(f"{name} alone", f"{value:,.1f}")
    Console(width=140).print(table)
    return {**found, "alone": alone}


def run(shards: pa.Table, rounds: int) -> dict[str, list[Cost]]:
    """Costs of the three ways, in turn; the first round warms up and does not count."""
    works = {"plain": plain, "ray, tiles": through_ray, "ray, pixels": through_ray_as_pixels}
    costs: dict[str, list[Cost]] = {name: [] for name in works}
    for k in range(rounds + 1):
        for name, work in list(works.items())[:: 1 if k % 2 else -1]:
            cost = measured(work, shards)
            if k:
                costs[name].append(cost)
    return costs


def rows_of(costs: dict[str, list[Cost]]) -> list[harness.Row]:
    """Ratios to the plain reader: of wall rates, and of rates per CPU second of the data path."""
    path = ("read workers", "consumer and driver")
    wall = {name: [run.patches / run.wall for run in runs] for name, runs in costs.items()}
    cpu = {
        name: [run.patches / sum(run.cpu.get(process, 0.0) for process in path) for run in runs]
        for name, runs in costs.items()
    }
    named = {"reference": "plain threaded reader"}
    return [
        harness.pairs_row(
            "wall", wall["ray, tiles"], wall["plain"], unit="patches/s", goal=0.75, **named
        ),
        harness.pairs_row(
            "cpu-data-path",
            cpu["ray, tiles"],
            cpu["plain"],
            unit="patches/CPU s",
            goal=0.85,
            **named,
        ),
        harness.pairs_row(
            "wall-pixels", wall["ray, pixels"], wall["plain"], unit="patches/s", **named
        ),
        harness.pairs_row(
            "cpu-data-path-pixels", cpu["ray, pixels"], cpu["plain"], unit="patches/CPU s", **named
        ),
    ]


LIMITS = {
    "wall": "decoding in the consumer; Ray adds processes of read tasks and a copy of each block",
    "cpu-data-path": "the read tasks: starting, fetching, putting blocks into the object store",
    "wall-pixels": "the object store: blocks of pixels are ten times as large, and zeroed first",
    "plan": "the driver's own thread; two drivers on the same two cores take time from each other",
}


def main() -> None:
    given = harness.arguments(__doc__ or "")
    rounds, slides, side, tasks = (2, 2, 32, 100) if given.quick else (5, 4, 64, 400)
    start_ray(address="local", num_cpus=4, include_dashboard=False, object_store_memory=2**30)
    with tempfile.TemporaryDirectory() as folder:
        shards = cohort(Path(folder), slides=slides, side=side)
        costs, alone = run(shards, rounds), parts(shards)
        one, two = planned(shards, tasks), two_drivers(shards, tasks)
    rows = [
        *rows_of(costs),
        harness.pairs_row("plan-two-drivers", [two], [one], unit="tasks/s", reference="one driver"),
    ]
    accounts = account(costs, alone)
    plans = {"one driver": one * PATCHES_PER_TASK, "two drivers": two * PATCHES_PER_TASK}
    extra = {"account": accounts, "patches planned a second": plans}
    harness.report(
        "stream",
        rows,
        given,
        packages=("ray", "pyarrow", "simplejpeg", "numpy"),
        limits=LIMITS,
        extra=extra,
    )
    for name, rate in (("one driver plans", one), ("two drivers plan", two)):
        patches = f"{PATCHES_PER_TASK} patches a task: {rate * PATCHES_PER_TASK:,.0f} patches/s"
        print(f"{name} {rate:,.0f} tasks/s, with {patches}")


if __name__ == "__main__":
    main()
