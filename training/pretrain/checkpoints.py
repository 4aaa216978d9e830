"""Checkpoints of a run of self-supervised training: everything that the next step depends on.

    shared.pt       step, student, teacher (EMA), optimiser, centre of the loss            written by rank 0
    rank-R.pt       states of rank R's random generators                                    written by each rank
    position.json   step, world size, patches that each rank has consumed                   written by rank 0
    history.json    figures of every step so far                                            written by rank 0

Ranks write into a local folder; `ray.train.report` uploads the parts and registers the checkpoint only when all are there, so a
run that is killed meanwhile resumes from the one before. Nothing is unpickled beyond tensors and plain values.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import torch
from ray.train import Checkpoint

from training.errors import BrokenModel, RunError

SHARED, POSITION, HISTORY = "shared.pt", "position.json", "history.json"

State = dict[str, Any]
History = list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a run is.

    Attributes:
        step: optimiser steps done.
        world_size: workers that did them.
        consumed: patches that each rank has consumed, by rank.
    """

    step: int = 0
    world_size: int = 0
    consumed: tuple[int, ...] = ()

    def of_rank(self, rank: int, world_size: int, *, patches_per_step: int) -> int:
        """Patches consumed by a rank; where the number of workers changed, its share of the steps done."""
        return (
            self.consumed[rank]
            if world_size == self.world_size
            else self.step * patches_per_step // world_size
        )


@dataclass(frozen=True)
class Saved:
    """A checkpoint in memory; `own` is None for a rank that did not exist when it was written."""

    shared: State
    own: State | None
    position: Position
    history: History


@contextmanager
def written(
    rank: int, shared: State, own: State, position: Position, history: History
) -> Iterator[Checkpoint]:
    """This rank's part of a checkpoint in a local folder, for `ray.train.report`; gone when the context ends."""
    with tempfile.TemporaryDirectory(prefix="acinus-checkpoint-") as name:
        folder = Path(name)
        torch.save(own, folder / f"rank-{rank}.pt")
        if rank == 0:
            torch.save(shared, folder / SHARED)
            (folder / POSITION).write_text(json.dumps(asdict(position)))
            (folder / HISTORY).write_text(json.dumps(history))
        yield Checkpoint.from_directory(folder)


def read(checkpoint: Checkpoint, *, rank: int = 0) -> Saved:
    """The checkpoint as one rank needs it.

    Raises:
        BrokenModel: a part is missing.
    """
    with checkpoint.as_directory() as name:
        folder = Path(name)
        try:
            shared: State = torch.load(folder / SHARED, map_location="cpu", weights_only=True)
            position = _position((folder / POSITION).read_text())
            history: History = json.loads((folder / HISTORY).read_text())
        except FileNotFoundError as error:
            raise BrokenModel(
                f"checkpoint {checkpoint.path} lacks {Path(error.filename).name}; delete the run and start it anew"
            ) from error
        part = folder / f"rank-{rank}.pt"
        own: State | None = (
            torch.load(part, map_location="cpu", weights_only=True) if part.exists() else None
        )
    return Saved(shared=shared, own=own, position=position, history=history)


def latest(run: str) -> Checkpoint | None:
    """The latest registered checkpoint of a run, None if there is none.

    Args:
        run: path or URI of the run's folder, as Ray Train names it.

    Raises:
        RunError: Ray Train's list of checkpoints was cut off while it was written.
    """
    filesystem, path = pyarrow.fs.FileSystem.from_uri(run)
    listing = f"{path}/checkpoint_manager_snapshot.json"
    if filesystem.get_file_info(listing).type != pyarrow.fs.FileType.File:
        return None
    # Read as plain JSON: ray.train.Result.from_path does the same with warnings and a page of advice on the console.
    try:
        with filesystem.open_input_file(listing) as stream:
            newest = json.loads(stream.read())["latest_checkpoint_result"]
    except ValueError as error:
        raise RunError(
            f"{listing} is not whole: the run was killed while it was written; delete it to begin anew"
        ) from error
    return Checkpoint(f"{path}/{newest['checkpoint_dir_name']}", filesystem) if newest else None


def latest_position(run: str) -> Position:
    """Where the latest registered checkpoint of a run stands; the beginning if there is none."""
    if (checkpoint := latest(run)) is None:
        return Position()
    with checkpoint.filesystem.open_input_file(f"{checkpoint.path}/{POSITION}") as stream:
        return _position(stream.read().decode())


def _position(text: str) -> Position:
    values = json.loads(text)
    return Position(
        step=values["step"], world_size=values["world_size"], consumed=tuple(values["consumed"])
    )
