"""OPEN FIRST. From a prepared cohort to an encoder, without labels, on Ray Train.

    pretrain(config)
      load_shards, Job                    what will be done; refused where a different run lies at the same place
      TorchTrainer(train_worker)          workers in one process group, restarted from the last checkpoint if one is lost
        RankShards.configure              each rank its own dataset of encoded tiles, from its position in the data on
        train_worker                      decode -> shuffle -> Learner.step -> figures and checkpoints through ray.train.report
      export                              teacher -> safetensors + card.json, loss curve

A run that is killed at any time and started again ends with the same weights as one that was not, for the same number of workers:
a step depends on the checkpointed state and on the patches alone, and which patches come follows from seed, rank and position.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device
from torch import distributed

from pipelines import storage
from pipelines.cohort import cohort_spec
from pipelines.cohort_shards import load_shards
from pipelines.grid import PatchSpec
from pipelines.patch_source import read_patches
from pipelines.ray_session import ensure_ray
from pipelines.read_counts import ReadCounts
from training.background import Background
from training.data_facts import DataFacts
from training.encoder import encoder
from training.encoder.vit import VisionTransformer, fold_normalisation
from training.errors import RunError
from training.pretrain import checkpoints, loss_curve
from training.pretrain.checkpoints import History, Position
from training.pretrain.dino.learner import Learner
from training.pretrain.model_card import encoder_card
from training.pretrain.order import PatchOrder
from training.pretrain.patch_stream import ShardIndex, shuffled_batches
from training.pretrain.progress import Follow, ProgressReport, follow
from training.pretrain.recipes import Recipe, recipe_named
from training.pretrain.run_record import open_record, read_record, settle_precision

RUN = "run"
"""Folder below `out` that Ray Train keeps its checkpoints in."""

StepHook = Callable[[int, int], None]
"""Called on each worker after each step with rank and number of steps done."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What to train.

    Attributes:
        data: folder or URI of a prepared cohort.
        out: folder or URI of the run. A run that lies there already is continued.
        recipe: the numbers of the run, or the name of a recipe of `training.pretrain.recipes`.
        steps: optimiser steps, None for the recipe's own; schedules stretch over them.
        split: slides of this split; None for all.
        seed: of weights, order and augmentation.
        workers: number of Ray Train workers.
        threads: of torch in each worker.
        checkpoint_every: steps between checkpoints, None for a tenth of the run; the last step always has one.
        report_every: steps between two reports of figures. Ray Train takes a report only when its controller looks for one, every
            2 s: a report a step would hold a fast loop to that pace.
        max_failures: restarts before the run gives up.
        on_step: called on the workers after each step; for tests.
    """

    data: str
    out: str
    recipe: Recipe | str = "demo"
    steps: int | None = None
    split: str | None = "train"
    seed: int = 0
    workers: int = 2
    threads: int = 1
    checkpoint_every: int | None = None
    report_every: int = 10
    max_failures: int = 3
    on_step: StepHook | None = None


@dataclass(frozen=True, kw_only=True)
class PretrainReport:
    """What a run made.

    Attributes:
        encoder: URI of the encoder's folder.
        hash: of the encoder.
        loss_curve: URI of the PNG.
        history: figures of every step.
        steps: optimiser steps in all.
        resumed_from: step at which this call took up an earlier run, 0 for a new one.
        patches_per_second: of all workers, median over the steps of this call; 0 if it had none to do.
        read: what all workers of this call read.
    """

    encoder: str
    hash: str
    loss_curve: str
    history: History
    steps: int
    resumed_from: int
    patches_per_second: float
    read: ReadCounts


@dataclass(frozen=True, kw_only=True)
class Job:
    """What each worker is told."""

    recipe: Recipe
    seed: int
    threads: int
    checkpoint_every: int
    report_every: int
    index: ShardIndex
    on_step: StepHook | None
    out: str

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.recipe.steps

    def order(self, rank: int, world_size: int) -> PatchOrder:
        """Which patches a rank consumes when."""
        return PatchOrder(seed=self.seed, rank=rank, world_size=world_size, group=self.recipe.group)

    def per_rank(self, world_size: int) -> int:
        """Patches of one rank in one step."""
        return self.recipe.patches_per_step // world_size


def pretrain(
    config: PretrainConfig, *, on_progress: Callable[[ProgressReport], None] | None = None
) -> PretrainReport:
    """Train an encoder and export it to `out/encoder`.

    Args:
        config: what to train.
        on_progress: called on this process with the figures of steps as they are reported.

    Raises:
        CohortError: nothing is prepared at `data`.
        RunError: another run lies at `out`, or the cluster has too few CPUs.
        ray.train.TrainingFailedError: workers failed more often than `max_failures`.
    """
    ensure_ray()
    shards = load_shards(config.data, split=config.split)
    spec, data = cohort_spec(config.data), DataFacts.of(shards)
    job = plan(config, spec, shards)
    open_record(config.out, recipe=job.recipe, seed=config.seed, data=data)
    run = _for_ray(storage.join(config.out, RUN))
    begun = checkpoints.latest_position(run).step
    if begun < job.steps:
        with follow(on_progress) as callbacks, _own_interrupt():
            _trainer(config, job, callbacks).fit()
    if (checkpoint := checkpoints.latest(run)) is None:
        raise RunError(
            f"the run at {config.out} ended without a checkpoint; look at Ray's logs for the workers' errors"
        )
    return export(checkpoint, config, job, spec, data, resumed_from=begun)


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Put the caller's SIGINT handler back: Ray Train leaves its own behind, which calls a controller that is gone by then."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def plan(config: PretrainConfig, spec: PatchSpec, shards: pa.Table) -> Job:
    """Check the configuration against data and cluster, and work out what workers need.

    Raises:
        RunError: the recipe fits neither the number of workers nor the patches, or there are too few CPUs.
    """
    recipe = recipe_named(config.recipe) if isinstance(config.recipe, str) else config.recipe
    recipe = replace(recipe, steps=config.steps or recipe.steps)
    if recipe.patches_per_step % config.workers:
        raise RunError(
            f"{recipe.patches_per_step} patches a step do not divide among {config.workers} workers; change their number"
        )
    if recipe.koleo and recipe.patches_per_step // config.workers < 2:
        raise RunError(
            "KoLeo needs at least 2 patches a worker in each step; use fewer workers or koleo=0"
        )
    encoder.EncoderConfig(
        network=recipe.network, spec=spec
    )  # refuses patches that do not divide into tokens
    if (cpus := ray.cluster_resources().get("CPU", 0)) <= config.workers:
        raise RunError(
            f"{config.workers} workers and the reading of patches need {config.workers + 1} CPUs, Ray has {cpus:g}"
        )
    return Job(
        recipe=recipe,
        seed=config.seed,
        threads=config.threads,
        checkpoint_every=config.checkpoint_every or max(1, recipe.steps // 10),
        report_every=config.report_every,
        index=ShardIndex.of(shards),
        on_step=config.on_step,
        out=config.out,
    )


class RankShards(ray.train.DataConfig):
    """Gives each rank a dataset of its own: its shards in its order, from its position on.

    Ray's own split hands blocks to whichever worker asks first: what a rank sees would depend on timing, and no run could be
    repeated. Ray Train calls `configure` anew for each group of workers, so after a restart reading begins where the last
    checkpoint stands.
    """

    def __init__(self, config: PretrainConfig, job: Job) -> None:
        super().__init__()
        self._data, self._split, self._run, self._job = (
            config.data,
            config.split,
            storage.join(config.out, RUN),
            job,
        )

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        worker_handles: object = None,
        worker_node_ids: object = None,
        **kwargs: object,
    ) -> list[dict[str, ray.data.DataIterator]]:
        """See `ray.train.DataConfig.configure`."""
        del worker_handles, worker_node_ids, kwargs
        shards = load_shards(self._data, split=self._split)
        position = checkpoints.latest_position(_for_ray(self._run))
        return [
            {
                name: _rank_dataset(shards, self._job, position, rank, world_size).iterator()
                for name in datasets
            }
            for rank in range(world_size)
        ]


def _rank_dataset(
    shards: pa.Table, job: Job, position: Position, rank: int, world_size: int
) -> ray.data.Dataset:
    groups = _groups(job, position, rank, world_size)
    numbers = (
        np.concatenate([group.shards for group in groups]) if groups else np.zeros(0, np.int64)
    )
    dataset = read_patches(shards.take(numbers), concurrency=2)
    dataset.context.enable_progress_bars = False
    return dataset


def _groups(job: Job, position: Position, rank: int, world_size: int) -> list[Any]:
    """Groups of shards that a rank still has to read."""
    consumed = position.of_rank(rank, world_size, patches_per_step=job.recipe.patches_per_step)
    wanted = consumed + (job.steps - position.step) * job.per_rank(world_size)
    return job.order(rank, world_size).until(job.index.counts, consumed=consumed, wanted=wanted)


def train_worker(config: dict[str, Job]) -> None:
    """What runs in each worker: resume, then step after step over the rank's own stream of patches."""
    job = config["job"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(job.threads)
    device = get_device()
    learner = Learner(
        job.recipe,
        steps=job.steps,
        seed=job.seed,
        rank=rank,
        device=str(device),
        precision=settle_precision(job.out, job.recipe, device, rank=rank),
        parallel=world_size > 1,
    )
    position, history = Position(world_size=world_size, consumed=(0,) * world_size), History()
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        saved = checkpoints.read(checkpoint, rank=rank)
        learner.load(saved.shared, saved.own)
        position, history = saved.position, saved.history
    consumed = np.array(
        [
            position.of_rank(r, world_size, patches_per_step=job.recipe.patches_per_step)
            for r in range(world_size)
        ]
    )
    begun, fresh, reading = time.perf_counter(), History(), Reading()
    for batch in _batches(job, position, rank, world_size, reading):
        arrived = time.perf_counter()
        figures = learner.step(torch.from_numpy(batch))
        done = time.perf_counter()
        fresh.append(
            {
                **figures,
                "data_wait": arrived - begun,
                "seconds": done - begun,
                **reading.since_last(),
            }
        )
        begun, step = done, learner.step_number
        consumed += len(batch)
        saving = step % job.checkpoint_every == 0 or step == job.steps
        if saving or step % job.report_every == 0:
            averaged = _averaged(fresh, first=step - len(fresh) + 1)
            history, fresh = history + averaged, History()
            now = Position(step=step, world_size=world_size, consumed=tuple(consumed.tolist()))
            _report(job, learner, now, averaged, history, rank=rank, saving=saving)
            begun = time.perf_counter()
        if job.on_step is not None:
            job.on_step(rank, step)


class Reading:
    """Counts what a rank reads; the decoding thread adds, the training thread asks."""

    def __init__(self) -> None:
        self._all, self._told = ReadCounts(), ReadCounts()

    def counted(self, blocks: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The blocks, counted as they pass."""
        for block in blocks:
            self._all += ReadCounts.of(block)
            yield block

    def since_last(self) -> dict[str, float]:
        """Counts since the last question."""
        now, before = asdict(self._all), asdict(self._told)
        self._told = ReadCounts(**now)
        return {f"read_{name}": float(now[name] - before[name]) for name in now}


def _batches(
    job: Job, position: Position, rank: int, world_size: int, reading: Reading
) -> Iterator[Any]:
    """Batches for the steps that are left, decoded in the background."""
    shard = ray.train.get_dataset_shard("patches")  # all ranks meet here
    if position.step >= job.steps:
        return
    blocks = shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    groups = _groups(job, position, rank, world_size)
    order = job.order(rank, world_size)
    batches = shuffled_batches(
        reading.counted(blocks), job.index, order, groups, size=job.per_rank(world_size)
    )
    for _, batch in zip(
        range(job.steps - position.step), Background(batches, ahead=4), strict=False
    ):
        yield batch


def _averaged(fresh: History, *, first: int) -> History:
    """Figures of the last steps as means over workers, each with its step."""
    names = sorted(fresh[0])
    values = torch.tensor(
        [[figures[name] for name in names] for figures in fresh], dtype=torch.float64
    )
    if distributed.is_initialized():
        values = values.to(get_device()) if distributed.get_backend() == "nccl" else values
        distributed.all_reduce(values)
        values /= distributed.get_world_size()
    return [
        {"step": first + k, **dict(zip(names, row, strict=True))}
        for k, row in enumerate(values.tolist())
    ]


def _report(
    job: Job,
    learner: Learner,
    position: Position,
    averaged: History,
    history: History,
    *,
    rank: int,
    saving: bool,
) -> None:
    metrics = {
        "step": position.step,
        "steps": job.steps,
        "loss": fmean(at["loss"] for at in averaged),
        "figures": averaged,
    }
    if not saving:
        ray.train.report(metrics)
        return
    with checkpoints.written(
        rank, learner.shared_state(), learner.own_state(), position, history
    ) as checkpoint:
        ray.train.report(
            metrics, checkpoint=checkpoint, checkpoint_dir_name=f"step-{position.step:07d}"
        )


def _trainer(config: PretrainConfig, job: Job, callbacks: list[Follow]) -> TorchTrainer:
    os.environ.setdefault(
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5"
    )  # how often reports are taken and dead workers noticed
    return TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers,
            use_gpu=ray.cluster_resources().get("GPU", 0) >= config.workers,
        ),
        run_config=ray.train.RunConfig(
            name=RUN,
            storage_path=_for_ray(config.out),
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=callbacks,
        ),
        datasets={
            "patches": lambda: ray.data.range(1)
        },  # Ray asks for one to divide; RankShards makes each rank its own instead
        dataset_config=RankShards(config, job),
    )


def export(
    checkpoint: ray.train.Checkpoint,
    config: PretrainConfig,
    job: Job,
    spec: PatchSpec,
    data: DataFacts,
    *,
    resumed_from: int,
) -> PretrainReport:
    """Write the teacher of a checkpoint as an encoder, and the loss curve."""
    saved = checkpoints.read(checkpoint)
    recipe = job.recipe
    network = VisionTransformer(recipe.network)
    prefix = "teacher.encoder."
    network.load_state_dict(
        {
            name.removeprefix(prefix): value
            for name, value in saved.shared["pair"].items()
            if name.startswith(prefix)
        }
    )
    fold_normalisation(network, recipe.crops.mean, recipe.crops.std)
    last = saved.history[-max(1, len(saved.history) // 10) :]
    metrics = {name: fmean(at[name] for at in last) for name in ("loss", "dino", "koleo")}
    card = encoder_card(
        recipe,
        data,
        seed=config.seed,
        steps=saved.position.step,
        world_size=saved.position.world_size,
        precision=read_record(config.out)["precision"],
        metrics=metrics,
    )
    uri, curve = storage.join(config.out, "encoder"), storage.join(config.out, "loss.png")
    made = encoder.save_encoder(
        uri,
        network,
        encoder.EncoderConfig(network=recipe.network, spec=spec, pooling=recipe.pooling),
        card,
    )
    storage.write_bytes(
        storage.join(config.out, "history.json"), json.dumps(saved.history).encode()
    )
    storage.write_bytes(curve, loss_curve.loss_curve(saved.history))
    ours = [at for at in saved.history if at["step"] > resumed_from]
    times = [at["seconds"] for at in ours]
    # History holds means over workers.
    read = {
        name: round(saved.position.world_size * sum(at[f"read_{name}"] for at in ours))
        for name in asdict(ReadCounts())
    }
    return PretrainReport(
        encoder=uri,
        hash=made,
        loss_curve=curve,
        history=saved.history,
        steps=saved.position.step,
        resumed_from=resumed_from,
        patches_per_second=recipe.patches_per_step / float(np.median(times)) if times else 0.0,
        read=ReadCounts(**read),
    )


def _for_ray(uri: str) -> str:
    """Ray takes local folders as plain paths."""
    local = storage.local_path(uri)
    return storage.as_uri(uri) if local is None else str(local)
