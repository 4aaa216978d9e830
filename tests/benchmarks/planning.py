"""What a driver of Ray Data costs alone: read tasks that fetch nothing, planned by one driver
or by two of one cluster."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Iterator
from functools import partial

import pyarrow as pa
import ray
from ray.data import ReadTask, read_datasource
from ray.data.block import BlockMetadata

from pipelines.patch_source import ShardSource


class IdleShards(ShardSource):
    """The source with read tasks that fetch nothing: what is left is planning."""

    def get_read_tasks(self, parallelism: int, *given: object, **named: object) -> list[ReadTask]:
        return [
            ReadTask(
                partial(_idle, task.slice(0, 1)),
                BlockMetadata(num_rows=1, size_bytes=1, exec_stats=None, input_files=None),
            )
            for task in self._tasks
        ]


def _idle(task: pa.Table) -> Iterator[pa.Table]:
    yield task.select(["shard"])


def planned(shards: pa.Table, tasks: int) -> float:
    """Read tasks a second that this driver plans, starts and collects when the tasks do nothing."""
    source = IdleShards([shards.slice(k % len(shards), 1) for k in range(tasks)])
    start = time.perf_counter()
    dataset = read_datasource(source, override_num_blocks=tasks)
    assert sum(1 for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow")) == tasks
    return tasks / (time.perf_counter() - start)


def two_drivers(shards: pa.Table, tasks: int) -> float:
    """The same by two drivers of one cluster at a time, in processes of their own."""
    context = multiprocessing.get_context("spawn")
    address = ray.get_runtime_context().gcs_address
    with context.Pool(2) as pool:
        return sum(pool.starmap(_driver, [(address, shards, tasks)] * 2))


def _driver(address: str, shards: pa.Table, tasks: int) -> float:
    start_ray(address=address)
    planned(shards, 10)
    return planned(shards, tasks)


def start_ray(**options: object) -> None:
    """Start or join Ray, without its notices."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(log_to_driver=False, logging_level="ERROR", **options)
    ray.data.DataContext.get_current().enable_progress_bars = False
