"""What each worker of a run is given: recipe, order of the data, and how often to report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from training.pretrain.checkpoints import Position
from training.pretrain.order import PatchOrder, ShardGroup
from training.pretrain.patch_stream import ShardIndex
from training.pretrain.recipe import Recipe

StepHook = Callable[[int, int], None]
"""Called on each worker after each step with rank and number of steps done."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run as its workers know it.

    Attributes:
        recipe: what to train and how.
        out: URI of the run.
        seed: of weights, order and augmentation.
        threads: of torch in each worker.
        checkpoint_every: steps between checkpoints.
        report_every: steps between two reports of metrics.
        index: the shards of the cohort.
        on_step: for tests.
    """

    recipe: Recipe
    out: str
    seed: int
    threads: int
    checkpoint_every: int
    report_every: int
    index: ShardIndex
    on_step: StepHook | None

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

    def consumed(self, position: Position, rank: int, world_size: int) -> int:
        """Patches that a rank has consumed at a position."""
        return position.of_rank(rank, world_size, patches_per_step=self.recipe.patches_per_step)

    def groups(self, position: Position, rank: int, world_size: int) -> list[ShardGroup]:
        """Groups of shards that a rank still has to read."""
        consumed = self.consumed(position, rank, world_size)
        wanted = consumed + (self.steps - position.step) * self.per_rank(world_size)
        order = self.order(rank, world_size)
        return order.until(self.index.counts, consumed=consumed, wanted=wanted)
