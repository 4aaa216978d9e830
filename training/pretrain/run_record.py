"""What a run is, in `run.json` next to its checkpoints: recipe, seed, data and precision.

A run is continued only with the same recipe, seed and data. The precision is settled by the
workers, since it depends on the machines they run on, and kept from then on: a run that goes on
elsewhere computes as it did before.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Final

import torch
from torch import distributed

from pipelines import storage
from training.data_facts import DataFacts
from training.errors import RunError
from training.precision import Precision, precision_for
from training.pretrain.recipe import Recipe

RECORD: Final = "run.json"
CHECKPOINTS: Final = "run"
"""Folder next to the record that Ray Train keeps checkpoints in."""


def open_record(out: str, *, recipe: Recipe, seed: int, data: DataFacts) -> None:
    """Write what this run is, if it is new.

    Args:
        out: folder or URI of the run.
        recipe: of the run.
        seed: of the run.
        data: what it trains on.

    Raises:
        RunError: another run is stored at `out`, or its record is missing or cannot be read.
    """
    ours = json.loads(json.dumps({"recipe": recipe.to_dict(), "seed": seed, "data": asdict(data)}))
    if not storage.exists(storage.join(out, RECORD)):
        if storage.is_folder(storage.join(out, CHECKPOINTS)):
            raise RunError(
                f"{out} has checkpoints of a run but no {RECORD}, so their run is unknown; "
                "restore that file, or give another folder"
            )
        _write(out, ours)
        return
    theirs = read_record(out)
    if differing := [name for name in ours if ours[name] != theirs.get(name)]:
        raise RunError(
            f"{out} holds a run with another {' and '.join(differing)}; "
            "give another folder or delete that run"
        )


def read_record(out: str) -> dict[str, Any]:
    """The record of the run at `out`.

    Raises:
        RunError: it is not JSON.
    """
    uri = storage.join(out, RECORD)
    try:
        record: dict[str, Any] = json.loads(storage.read_bytes(uri))
    except ValueError as error:
        raise RunError(
            f"{uri} is damaged, so what run is stored there is unknown; "
            "restore the file, or give another folder"
        ) from error
    return record


def settle_precision(out: str, recipe: Recipe, device: torch.device, *, rank: int) -> Precision:
    """The precision that all workers compute in; called by each of them.

    The recorded one, else the recipe's, else bf16 if every worker's device computes it fast. Rank 0
    records it.
    """
    record = read_record(out)
    ours: Precision = record.get("precision") or precision_for(device, recipe.precision)
    votes = torch.tensor(float(ours == "bf16"), device=collective_device(device))
    if distributed.is_initialized():
        # Also a barrier: every rank has read the record before rank 0 writes it.
        distributed.all_reduce(votes, op=distributed.ReduceOp.MIN)
    settled: Precision = "bf16" if votes.item() else "f32"
    if rank == 0 and record.get("precision") != settled:
        _write(out, {**record, "precision": settled})
    return settled


def collective_device(device: torch.device) -> torch.device:
    """Where the process group of a worker on `device` exchanges values: NCCL knows GPUs only."""
    if distributed.is_initialized() and distributed.get_backend() == "nccl":
        return device
    return torch.device("cpu")


def _write(out: str, record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=1, sort_keys=True)
    storage.write_bytes(storage.join(out, RECORD), text.encode())
