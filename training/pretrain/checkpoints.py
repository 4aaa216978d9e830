"""Checkpoints of a run of self-supervised training: everything that the next step depends on.

    shared.pt       step, weights, optimiser, state of the loss; written by rank 0
    rank-R.pt       states of rank R's random generators; written by each rank
    position.json   step, world size, patches that each rank has consumed; written by rank 0
    history.json    metrics of every step so far; written by rank 0

Ranks write into a local folder; `ray.train.report` uploads the parts and registers the checkpoint
only when all are there, so a run that is killed meanwhile resumes from the one before. Nothing is
unpickled beyond tensors and plain values.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pyarrow.fs
import torch
from ray.train import Checkpoint

from pipelines import storage
from training.errors import BrokenModel, RunError

SHARED, POSITION, HISTORY = "shared.pt", "position.json", "history.json"
REGISTER = "checkpoint_manager_snapshot.json"
"""Ray Train's own list of a run's checkpoints."""

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
        """Patches consumed by a rank; where the number of workers changed, its share of the steps
        done.
        """
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
    """This rank's part of a checkpoint in a local folder, for `ray.train.report`; gone when the
    context ends.
    """
    with tempfile.TemporaryDirectory(prefix="acinus-checkpoint-") as name:
        folder = Path(name)
        torch.save(own, folder / own_part(rank))
        if rank == 0:
            torch.save(shared, folder / SHARED)
            (folder / POSITION).write_text(json.dumps(asdict(position)))
            (folder / HISTORY).write_text(json.dumps(history))
        yield Checkpoint.from_directory(folder)


def read(checkpoint: Checkpoint, *, rank: int = 0) -> Saved:
    """The checkpoint as one rank needs it.

    Raises:
        BrokenModel: a part is missing or damaged; names it.
    """
    with _folder(checkpoint) as folder:
        shared: State = _part(checkpoint, folder / SHARED, _tensors)
        position = _part(checkpoint, folder / POSITION, _position)
        history: History = _part(checkpoint, folder / HISTORY, _json)
        own = None
        if (folder / own_part(rank)).exists():
            own = _part(checkpoint, folder / own_part(rank), _tensors)
    return Saved(shared=shared, own=own, position=position, history=history)


@contextmanager
def _folder(checkpoint: Checkpoint) -> Iterator[Path]:
    """The checkpoint's files on this machine: where they are, or downloaded.

    Raises:
        BrokenModel: there is no such checkpoint.
    """
    kind = checkpoint.filesystem.get_file_info(checkpoint.path).type
    if kind != pyarrow.fs.FileType.Directory:
        raise BrokenModel(f"checkpoint {checkpoint.path} is missing")
    with checkpoint.as_directory() as name:
        yield Path(name)


def own_part(rank: int) -> str:
    """The file that holds a rank's own state."""
    return f"rank-{rank}.pt"


def _part(checkpoint: Checkpoint, path: Path, load: Callable[[bytes], Any]) -> Any:
    try:
        return load(path.read_bytes())
    except FileNotFoundError as error:
        raise BrokenModel(f"checkpoint {checkpoint.path} lacks {path.name}") from error
    except _DAMAGED as error:
        raise BrokenModel(f"checkpoint {checkpoint.path}: {path.name} is damaged") from error


_DAMAGED = (RuntimeError, UnpicklingError, EOFError, ValueError, KeyError, TypeError)
"""What torch and json raise for a file that is cut or overwritten; errors of the disk are others.
"""


def _tensors(content: bytes) -> State:
    state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def _json(content: bytes) -> Any:
    return json.loads(content)


def _position(content: bytes) -> Position:
    values = json.loads(content)
    return Position(
        step=values["step"], world_size=values["world_size"], consumed=tuple(values["consumed"])
    )


def latest(run: str) -> Checkpoint | None:
    """The latest registered checkpoint of a run, None if there is none.

    Args:
        run: path or URI of the run's folder, as Ray Train names it.

    Raises:
        RunError: Ray Train's list of checkpoints is damaged.
    """
    registered = _Register.read(run)
    return registered.checkpoints()[-1] if registered and registered.entries else None


def latest_position(run: str) -> Position:
    """Where the latest registered checkpoint of a run stands; the beginning if there is none.

    Raises:
        BrokenModel: its position is missing or damaged.
        RunError: Ray Train's list of checkpoints is damaged.
    """
    if (checkpoint := latest(run)) is None:
        return Position()
    try:
        with checkpoint.filesystem.open_input_file(f"{checkpoint.path}/{POSITION}") as stream:
            return _position(stream.read())
    except FileNotFoundError as error:
        raise BrokenModel(f"checkpoint {checkpoint.path} lacks {POSITION}") from error
    except _DAMAGED as error:
        raise BrokenModel(f"checkpoint {checkpoint.path}: {POSITION} is damaged") from error


def discard_damaged(run: str) -> list[str]:
    """Remove damaged checkpoints, newest first, so that the run goes on from the one before.

    Returns:
        A sentence for each that was removed.

    Raises:
        RunError: checkpoints are registered, and none of them is whole; nothing is removed then.
    """
    registered = _Register.read(run)
    if registered is None or not registered.entries:
        return []
    damage: list[str] = []
    for checkpoint in reversed(registered.checkpoints()):
        try:
            _require_whole(checkpoint)
        except BrokenModel as error:
            damage.append(str(error))
            continue
        registered.drop_newest(len(damage))
        return damage
    raise RunError(
        f"no checkpoint of the run at {run} can be read: {'; '.join(damage)}; "
        "restore one, or give another folder to start anew"
    )


def _require_whole(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint of which any rank's part is missing or damaged (BrokenModel)."""
    with _folder(checkpoint) as folder:
        position: Position = _part(checkpoint, folder / POSITION, _position)
        _part(checkpoint, folder / HISTORY, _json)
        for name in (SHARED, *map(own_part, range(position.world_size))):
            _part(checkpoint, folder / name, _tensors)


@dataclass(frozen=True)
class _Register:
    """Ray Train's list of a run's checkpoints, oldest first, in the file that it resumes from.

    Read as plain JSON: `ray.train.Result.from_path` does the same with warnings and a page of
        advice on the console.
    """

    run: str
    filesystem: pyarrow.fs.FileSystem
    folder: str
    content: dict[str, Any]

    @classmethod
    def read(cls, run: str) -> _Register | None:
        filesystem, folder = pyarrow.fs.FileSystem.from_uri(run)
        path = f"{folder}/{REGISTER}"
        if filesystem.get_file_info(path).type != pyarrow.fs.FileType.File:
            return None
        try:
            with filesystem.open_input_file(path) as stream:
                content = json.loads(stream.read())
            found = cls(run, filesystem, folder, content)
            found.checkpoints()
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path} is damaged: the run was killed while it was written; "
                "delete it to start the run anew"
            ) from error
        return found

    @property
    def entries(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.content["checkpoint_results"]
        return entries

    def checkpoints(self) -> list[Checkpoint]:
        return [
            Checkpoint(f"{self.folder}/{entry['checkpoint_dir_name']}", self.filesystem)
            for entry in self.entries
        ]

    def drop_newest(self, count: int) -> None:
        """Take the newest `count` off the list, then delete what is there of their files.

        The list is replaced at once: a run killed meanwhile has the old one or the new one.
        """
        if not count:
            return
        dropped = self.checkpoints()[-count:]
        kept = self.entries[:-count]
        content = self.content | {
            "checkpoint_results": kept,
            "checkpoint_report_indices": self.content["checkpoint_report_indices"][:-count],
            "latest_checkpoint_result": kept[-1],
            "pending_training_results": [],
            "pending_validation_specs": [],
        }
        storage.write_bytes(storage.join(self.run, REGISTER), json.dumps(content).encode())
        for checkpoint in dropped:
            # The folder of a damaged checkpoint may be gone.
            with suppress(FileNotFoundError):
                self.filesystem.delete_dir(checkpoint.path)
