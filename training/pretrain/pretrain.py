"""OPEN FIRST. From a prepared cohort to an encoder, without labels: `acinus pretrain`.

    pretrain(config)
      plan, open_record             what will be done; another run at the same URI is refused
      TorchTrainer(train_worker)    workers on Ray Train, restarted from the last checkpoint
        RankShards.configure        each rank its own dataset, from its position in the data on
        worker.train_worker         decode -> shuffle -> Learner.step -> metrics, checkpoints
      export                        encoder -> safetensors + card.json, loss curve

What a step does is the method's: `method.py` is the interface, `dino/` the one method there is.

A run that is killed at any time and started again ends with the same weights as one that was not,
for the same number of workers and the same precision. A step depends on the checkpointed state and
on the patches alone. Which patches come follows from seed, rank and position.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train
from ray.train.torch import TorchTrainer

from pipelines import storage
from pipelines.cohort import cohort_spec
from pipelines.cohort_shards import load_shards
from pipelines.grid import PatchSpec
from pipelines.patch_source import read_patches
from pipelines.ray_session import ensure_ray
from pipelines.read_counts import ReadCounts
from pipelines.slides.errors import SlideError
from training.cards import load_card
from training.data_facts import DataFacts
from training.encoder import encoder
from training.encoder.architecture import EncoderConfig
from training.errors import RunError, TrainingError
from training.limits import MAX_SEED, require_range
from training.pretrain import checkpoints
from training.pretrain.checkpoints import History, Position
from training.pretrain.job import Job, StepHook
from training.pretrain.loss_curve import loss_curve
from training.pretrain.methods import method_of
from training.pretrain.model_card import encoder_card
from training.pretrain.patch_stream import ShardIndex
from training.pretrain.progress import ProgressReport, Reporter, watched
from training.pretrain.recipe import Recipe
from training.pretrain.recipes import RECIPES, recipe_named
from training.pretrain.run_record import CHECKPOINTS, open_record, read_record
from training.pretrain.worker import DATASET, train_worker
from training.tracking import track

MAX_REASON = 300
"""Characters of a library's error that are shown."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What to train.

    Attributes:
        data: folder or URI of a prepared cohort.
        out: folder or URI of the run. A run that is stored there is continued.
        recipe: the numbers of the run, or the name of a recipe of `training.pretrain.recipes`.
        steps: optimiser steps, None for the recipe's own; schedules stretch over them.
        split: slides of this split; None for all.
        seed: of weights, order and augmentation.
        workers: number of Ray Train workers.
        threads: of torch in each worker.
        checkpoint_every: steps between checkpoints, None for a tenth of the run; the last step
            always has one.
        report_every: steps between two reports of metrics. Ray Train takes a report only when its
            controller looks for one, every 2 s: a report a step would hold a fast loop to that
            pace.
        max_failures: restarts before the run gives up.
        on_step: called on the workers after each step; for tests.

    Raises:
        ValueError: a value that no run can have; names the field, the value and its range.
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

    def __post_init__(self) -> None:
        if isinstance(self.recipe, str) and self.recipe not in RECIPES:
            raise ValueError(f"recipe is {self.recipe!r}; it must be one of {', '.join(RECIPES)}")
        require_range("workers", self.workers, 1)
        require_range("threads", self.threads, 1)
        require_range("seed", self.seed, 0, MAX_SEED)
        require_range("report_every", self.report_every, 1)
        require_range("max_failures", self.max_failures, 0)
        if self.steps is not None:
            require_range("steps", self.steps, 1)
        if self.checkpoint_every is not None:
            require_range("checkpoint_every", self.checkpoint_every, 1)


@dataclass(frozen=True, kw_only=True)
class PretrainReport:
    """What a run made.

    Attributes:
        encoder: URI of the encoder's folder.
        hash: of the encoder.
        loss_curve: URI of the PNG.
        history: metrics of every step.
        steps: optimiser steps in all.
        resumed_from: step from which this call continued an earlier run, 0 for a new one.
        patches_per_second: of all workers, median over the steps of this call; 0 if it had none to
            do.
        read: what all workers of this call read.
        damaged_checkpoints: a sentence for each checkpoint that was damaged and removed.
    """

    encoder: str
    hash: str
    loss_curve: str
    history: History
    steps: int
    resumed_from: int
    patches_per_second: float
    read: ReadCounts
    damaged_checkpoints: list[str] = field(default_factory=list)


def pretrain(
    config: PretrainConfig, *, on_progress: Callable[[ProgressReport], None] | None = None
) -> PretrainReport:
    """Train an encoder and export it to `out/encoder`.

    Args:
        config: what to train.
        on_progress: called on this process with metrics as they are reported.

    Raises:
        CohortError: nothing is prepared at `data`.
        RunError: another run is stored at `out`, the cluster has too few CPUs, or workers failed
            more often than `max_failures`.
        SlideError, TrainingError, StorageError: what a worker raised the last time that one failed.
    """
    ensure_ray()
    shards = load_shards(config.data, split=config.split)
    spec, data = cohort_spec(config.data), DataFacts.of(shards)
    job = plan(config, spec, shards)
    open_record(config.out, recipe=job.recipe, seed=config.seed, data=data)
    run = _for_ray(storage.join(config.out, CHECKPOINTS))
    damaged = checkpoints.discard_damaged(run)
    start = checkpoints.latest_position(run).step
    if start < job.steps:
        _train(config, job, on_progress)
    if (checkpoint := checkpoints.latest(run)) is None:
        raise RunError(
            f"the run at {config.out} ended without a checkpoint; "
            "look at Ray's logs for the workers' errors"
        )
    report = export(checkpoint, config, job, spec, data, resumed_from=start)
    return replace(report, damaged_checkpoints=damaged)


def _train(
    config: PretrainConfig, job: Job, on_progress: Callable[[ProgressReport], None] | None
) -> None:
    """Run the workers to the last step.

    Raises:
        TrainingError, SlideError: what a worker raised, or RunError for anything else that ended
            the workers.
    """
    try:
        with watched(on_progress) as callbacks, _own_interrupt():
            _trainer(config, job, callbacks).fit()
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error


def _cause(error: ray.train.TrainingFailedError) -> Exception:
    """What ended the workers, as an error of ours."""
    failures = getattr(error, "worker_failures", {})
    cause: BaseException = next(iter(failures.values()), error)
    cause = getattr(cause, "_base_exc", cause)
    if isinstance(cause, (SlideError, TrainingError, storage.StorageError)):
        return cause
    reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:MAX_REASON]
    return RunError(f"the workers of the run failed, last with {reason}; see Ray's logs")


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Put the caller's SIGINT handler back: Ray Train leaves its own behind, which calls a
    controller that is gone by then.
    """
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
        RunError: the recipe fits neither the number of workers nor the patches, or there are too
            few CPUs.
    """
    recipe = recipe_named(config.recipe) if isinstance(config.recipe, str) else config.recipe
    recipe = replace(recipe, steps=recipe.steps if config.steps is None else config.steps)
    if recipe.patches_per_step % config.workers:
        raise RunError(
            f"{recipe.patches_per_step} patches a step do not divide among {config.workers} "
            "workers; change their number"
        )
    per_worker = recipe.patches_per_step // config.workers
    EncoderConfig(  # refuses patches that do not divide into tokens
        network=recipe.network, spec=method_of(recipe).encoder_spec(recipe, spec, per_worker)
    )
    if (cpus := ray.cluster_resources().get("CPU", 0)) <= config.workers:
        raise RunError(
            f"{config.workers} workers and the reading of patches need {config.workers + 1} CPUs, "
            f"Ray has {cpus:g}"
        )
    return Job(
        recipe=recipe,
        seed=config.seed,
        threads=config.threads,
        checkpoint_every=max(1, recipe.steps // 10)
        if config.checkpoint_every is None
        else config.checkpoint_every,
        report_every=config.report_every,
        index=ShardIndex.of(shards),
        on_step=config.on_step,
        out=config.out,
    )


class RankShards(ray.train.DataConfig):
    """Gives each rank a dataset of its own: its shards in its order, from its position on.

    Ray's own split hands blocks to whichever worker asks first: what a rank sees would depend on
    timing, and no run could be repeated. Ray Train calls `configure` anew for each group of
    workers, so after a restart reading begins where the last checkpoint stands.
    """

    def __init__(self, config: PretrainConfig, job: Job) -> None:
        super().__init__()
        self._data, self._split, self._run, self._job = (
            config.data,
            config.split,
            storage.join(config.out, CHECKPOINTS),
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
    groups = job.groups(position, rank, world_size)
    numbers = (
        np.concatenate([group.shards for group in groups]) if groups else np.zeros(0, np.int64)
    )
    dataset = read_patches(shards.take(numbers), concurrency=2)
    dataset.context.enable_progress_bars = False
    return dataset


def _trainer(config: PretrainConfig, job: Job, callbacks: list[Reporter]) -> TorchTrainer:
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
            name=CHECKPOINTS,
            storage_path=_for_ray(config.out),
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            callbacks=callbacks,
        ),
        datasets={
            DATASET: lambda: ray.data.range(1)
        },  # Ray needs one to divide; RankShards makes each rank its own instead
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
    recipe, method = job.recipe, method_of(job.recipe)
    spec = method.encoder_spec(recipe, spec, job.per_rank(config.workers))
    last = saved.history[-max(1, len(saved.history) // 10) :]
    metrics = {name: fmean(step[name] for step in last) for name in ("loss", *method.losses)}
    card = encoder_card(
        recipe,
        data,
        seed=config.seed,
        position=saved.position,
        precision=read_record(config.out)["precision"],
        metrics=metrics,
    )
    uri, curve = storage.join(config.out, "encoder"), storage.join(config.out, "loss.png")
    made = encoder.save_encoder(
        uri,
        encoder.Encoder(
            method.network(recipe, saved.shared),
            EncoderConfig(network=recipe.network, spec=spec, pooling=recipe.pooling),
            card,
            precision="f32",
        ),
    )
    storage.write_bytes(
        storage.join(config.out, "history.json"), json.dumps(saved.history).encode()
    )
    storage.write_bytes(curve, loss_curve(saved.history, method.losses))
    track(load_card(uri, encoder.KIND))
    ours = [step for step in saved.history if step["step"] > resumed_from]
    times = [step["seconds"] for step in ours]
    # History holds means over workers.
    read = {
        name: round(saved.position.world_size * sum(step[f"read_{name}"] for step in ours))
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
