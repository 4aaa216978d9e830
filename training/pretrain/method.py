"""What a method of self-supervised training must offer. Ray, data order and checkpoints know this
interface only.

Another method is one folder next to `dino` with its own config and learner, and one row in
`methods.py`. Its steps report `learning_rate`, which the loss curve draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from pipelines.grid import PatchSpec
from training.encoder.network import Network
from training.precision import Precision
from training.pretrain.recipe import Recipe

State = dict[str, Any]


class Learner(Protocol):
    """Everything that a step of one worker reads or changes; a step depends on that and on its
    patches alone.
    """

    step_number: int

    def step(self, patches: Tensor) -> dict[str, float]:
        """Learn from uint8 patches [N, H, W, 3]; returns metrics of the step, `loss` among them."""

    def shared_state(self) -> State:
        """What is the same on all workers, for a checkpoint."""

    def own_state(self) -> State:
        """What each worker has of its own, for a checkpoint."""

    def load(self, shared: State, own: State | None) -> None:
        """Continue from states; `own` is None for a worker that did not exist then."""


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """What makes one worker's learner.

    Attributes:
        recipe: what to train and how.
        seed: of weights (same on all ranks) and of augmentation (other on each rank).
        rank: of this worker.
        device: of torch.
        precision: "bf16" computes matrix products in bfloat16, where torch's autocast holds it
            safe.
        parallel: average gradients over the process group.
    """

    recipe: Recipe
    seed: int
    rank: int = 0
    device: str = "cpu"
    precision: Precision = "f32"
    parallel: bool = False


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to train an encoder without labels.

    Attributes:
        description: one sentence for the encoder's card.
        learner: makes a worker's learner at step 0.
        losses: metrics of a step that are parts of its loss, each with its label in a picture; the
            main one first.
        encoder_spec: the patches that the exported encoder takes, from the recipe, the cohort's
            PatchSpec and the patches of one worker in one step. Raises RunError or SpecMismatch if
            the method can't learn from those.
        network: the network to export, which takes raw pixels, from a learner's shared state.
    """

    description: str
    learner: Callable[[LearnerConfig], Learner]
    losses: Mapping[str, str]
    encoder_spec: Callable[[Recipe, PatchSpec, int], PatchSpec]
    network: Callable[[Recipe, State], Network]
