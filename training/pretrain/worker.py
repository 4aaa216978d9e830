"""What runs in each Ray Train worker: resume, then step after step over the rank's own stream of
patches.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from statistics import fmean

import numpy as np
import pyarrow as pa
import ray.train
import torch
from numpy.typing import NDArray
from ray.train.torch import get_device
from torch import distributed

from pipelines.read_counts import ReadCounts
from training.background import Background
from training.pretrain import checkpoints
from training.pretrain.checkpoints import History, Position
from training.pretrain.job import Job
from training.pretrain.method import Learner, LearnerConfig
from training.pretrain.methods import method_of
from training.pretrain.patch_stream import shuffled_batches
from training.pretrain.run_record import collective_device, settle_precision

DATASET = "patches"
"""Name of the workers' dataset."""


def train_worker(config: dict[str, Job]) -> None:
    """Train as one rank of `config["job"]`, from the last checkpoint on."""
    job = config["job"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(job.threads)
    learner = _make_learner(job, rank, world_size)
    position, history = _resume(learner, rank, world_size)
    consumed = np.array([job.consumed(position, r, world_size) for r in range(world_size)])
    counter, recent = ReadCounter(), History()
    start = time.perf_counter()
    for batch in _batches(job, position, rank, world_size, counter):
        arrived = time.perf_counter()
        metrics = learner.step(torch.from_numpy(batch))
        end = time.perf_counter()
        seconds = {"data_wait": arrived - start, "seconds": end - start}
        recent.append({**metrics, **seconds, **counter.since_last()})
        start, step = end, learner.step_number
        consumed += len(batch)
        saving = step % job.checkpoint_every == 0 or step == job.steps
        if saving or step % job.report_every == 0:
            averaged = _averaged(recent, first=step - len(recent) + 1)
            history, recent = history + averaged, History()
            reached = Position(step=step, world_size=world_size, consumed=tuple(consumed.tolist()))
            with (
                checkpoints.written(
                    rank, learner.shared_state(), learner.own_state(), reached, history
                )
                if saving
                else nullcontext() as checkpoint
            ):
                _report(job, reached, averaged, checkpoint)
            start = time.perf_counter()
        if job.on_step is not None:
            job.on_step(rank, step)


def _make_learner(job: Job, rank: int, world_size: int) -> Learner:
    device = get_device()
    return method_of(job.recipe).learner(
        LearnerConfig(
            recipe=job.recipe,
            seed=job.seed,
            rank=rank,
            device=str(device),
            precision=settle_precision(job.out, job.recipe, device, rank=rank),
            parallel=world_size > 1,
        )
    )


def _resume(learner: Learner, rank: int, world_size: int) -> tuple[Position, History]:
    """Load the last checkpoint into the learner; the beginning if there is none."""
    if (checkpoint := ray.train.get_checkpoint()) is None:
        return Position(world_size=world_size, consumed=(0,) * world_size), History()
    saved = checkpoints.read(checkpoint, rank=rank)
    learner.load(saved.shared, saved.own)
    return saved.position, saved.history


class ReadCounter:
    """Counts what a rank reads: the decoding thread adds, the training thread asks."""

    def __init__(self) -> None:
        self._total, self._reported = ReadCounts(), ReadCounts()

    def counted(self, blocks: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The blocks, counted as they pass."""
        for block in blocks:
            self._total += ReadCounts.of(block)
            yield block

    def since_last(self) -> dict[str, float]:
        """Counts since the last call."""
        now, before = asdict(self._total), asdict(self._reported)
        self._reported = ReadCounts(**now)
        return {f"read_{name}": float(now[name] - before[name]) for name in now}


def _batches(
    job: Job, position: Position, rank: int, world_size: int, counter: ReadCounter
) -> Iterator[NDArray[np.uint8]]:
    """Batches for the remaining steps, decoded in the background."""
    shard = ray.train.get_dataset_shard(DATASET)  # all ranks meet here
    remaining = job.steps - position.step
    if remaining <= 0:
        return
    blocks = shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    batches = shuffled_batches(
        counter.counted(blocks),
        job.index,
        job.order(rank, world_size),
        job.groups(position, rank, world_size),
        size=job.per_rank(world_size),
    )
    for _, batch in zip(range(remaining), Background(batches, ahead=4), strict=False):
        yield batch


def _averaged(recent: History, *, first: int) -> History:
    """Metrics of the last steps as means over workers, each with its step."""
    names = sorted(recent[0])
    values = torch.tensor(
        [[metrics[name] for name in names] for metrics in recent], dtype=torch.float64
    )
    if distributed.is_initialized():
        values = values.to(collective_device(get_device()))
        distributed.all_reduce(values)
        values /= distributed.get_world_size()
    return [
        {"step": first + k, **dict(zip(names, row, strict=True))}
        for k, row in enumerate(values.tolist())
    ]


def _report(
    job: Job, position: Position, averaged: History, checkpoint: ray.train.Checkpoint | None
) -> None:
    """Give metrics, and a checkpoint if there is one, to Ray Train."""
    metrics = {
        "step": position.step,
        "steps": job.steps,
        "loss": fmean(step["loss"] for step in averaged),
    }
    if checkpoint is None:
        ray.train.report(metrics)
        return
    name = f"step-{position.step:07d}"
    ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)
