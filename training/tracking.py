"""Runs in MLflow: what a model was made with, how well it does, and its hash.

Only if MLFLOW_TRACKING_URI names a store: `sqlite:///runs.db`, or a server with RDS and S3 behind
it. Everything comes from the model's card, which holds no patient data and no file names, and goes
through MLflow's client, which unlike its fluent interface adds no user, path or command line.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from training.errors import RunError

VARIABLE: Final = "MLFLOW_TRACKING_URI"
EXPERIMENT: Final = "acinus"
TAGS: Final = ("kind", "hash", "encoder_hash", "slide_model_hash", "encoder_precision", "precision")
PARAMETERS: Final = ("config", "recipe", "spec", "data", "versions", "seed")
MAX_BATCH: Final = 100
"""Parameters in one call: MLflow's limit."""


def track(card: Mapping[str, Any]) -> None:
    """Record the run that made a model, once the model is written.

    Raises:
        RunError: MLflow is asked for and is not installed, or does not take the run.
    """
    if not os.environ.get(VARIABLE):
        return
    try:
        mlflow = importlib.import_module("mlflow")
    except ModuleNotFoundError:
        raise RunError(
            f"the model is written, but {VARIABLE} is set and MLflow is not installed; install "
            "acinus[tracking], or unset it"
        ) from None
    try:
        _record(mlflow, card)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise RunError(
            f"the model is written, but MLflow did not take its run ({type(error).__name__}); look "
            f"at the store that {VARIABLE} names"
        ) from error


def _record(mlflow: Any, card: Mapping[str, Any]) -> None:
    client, entities = mlflow.MlflowClient(), mlflow.entities
    found = client.get_experiment_by_name(EXPERIMENT)
    experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT)
    tags = {name: str(card[name]) for name in TAGS if name in card}
    run = client.create_run(experiment, tags=tags, run_name=f"{card['kind']} {card['hash'][:12]}")
    now = int(time.time() * 1000)
    metrics = [
        entities.Metric(name, float(value), now, 0)
        for name, value in _flat(card.get("metrics", {}))
        if isinstance(value, int | float)
    ]
    parameters = [
        entities.Param(name, str(value))
        for group in PARAMETERS
        for name, value in _flat(card.get(group, {}), group)
    ]
    for start in range(0, max(len(parameters), len(metrics)), MAX_BATCH):
        part = slice(start, start + MAX_BATCH)
        client.log_batch(run.info.run_id, metrics=metrics[part], params=parameters[part])
    client.set_terminated(run.info.run_id)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings, by names joined with dots; lists are left out of metrics."""
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{name}.{key}" if name else str(key))
