"""The order in which training reads shards: random, dealt to ranks, and a function of seed and position alone.

Each epoch permutes all shards and deals each to exactly one rank. A rank's shards form groups; the patches of a group are decoded
together and shuffled together, since single random patches would cost four source tiles each. A position is the number of patches
that a rank has consumed: from it follow the group, and how many of the group's shuffled patches are already behind.
Knows counts only: no pixel, no slide and no Ray.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ShardGroup:
    """Shards of one rank whose patches are shuffled together.

    Attributes:
        epoch: which pass over all shards, from 0.
        index: place within the rank's epoch, from 0.
        shards: numbers of the shards, int64, in reading order.
        n_patches: patches in them.
        skip: of the shuffled patches, how many were consumed before the run was interrupted.
    """

    epoch: int
    index: int
    shards: NDArray[np.int64]
    n_patches: int
    skip: int = 0


@dataclass(frozen=True)
class PatchOrder:
    """Who reads what when.

    Attributes:
        seed: of the run.
        rank: of the worker, from 0.
        world_size: number of workers.
        group: shards a group.
    """

    seed: int
    rank: int
    world_size: int
    group: int = 8

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world_size and self.group >= 1 and self.seed >= 0):
            raise ValueError(f"{self}: 0 <= rank < world_size, group >= 1 and seed >= 0 are needed")

    def epoch(self, epoch: int, n_shards: int) -> NDArray[np.int64]:
        """Numbers of the shards that this rank reads in an epoch, in order."""
        dealt = np.random.default_rng([self.seed, epoch]).permutation(n_shards)
        # The first card goes to another rank each epoch: with fewer shards than ranks, everyone still gets some.
        return dealt[(self.rank - epoch) % self.world_size :: self.world_size].astype(np.int64)

    def groups(self, counts: NDArray[np.integer], *, consumed: int = 0) -> Iterator[ShardGroup]:
        """Groups from a position on, without end.

        Args:
            counts: patches in each shard, [S].
            consumed: patches that this rank has consumed before.

        Raises:
            ValueError: the shards hold no patch, so no position can ever be reached.
        """
        if not np.sum(counts):
            raise ValueError("the shards hold no patch; prepare the cohort again")
        epoch = 0
        while True:
            mine = self.epoch(epoch, len(counts))
            total = int(np.sum(counts[mine]))
            if consumed >= total:  # whole epochs behind cost one sum each
                consumed -= total
            else:
                for index in range(-(-len(mine) // self.group)):
                    shards = mine[index * self.group : (index + 1) * self.group]
                    n_patches = int(np.sum(counts[shards]))
                    if consumed >= n_patches:
                        consumed -= n_patches
                        continue
                    yield ShardGroup(epoch, index, shards, n_patches, skip=consumed)
                    consumed = 0
            epoch += 1

    def shuffled(self, group: ShardGroup) -> NDArray[np.int64]:
        """The order [n_patches - skip] in which the patches of a group, numbered in reading order, are consumed."""
        random = np.random.default_rng([self.seed, self.rank, group.epoch, group.index])
        return random.permutation(group.n_patches)[group.skip :].astype(np.int64)

    def until(self, counts: NDArray[np.integer], *, consumed: int, wanted: int) -> list[ShardGroup]:
        """The groups that hold the patches from position `consumed` up to position `wanted`."""
        found: list[ShardGroup] = []
        if consumed >= wanted:
            return found
        for group in self.groups(counts, consumed=consumed):
            found.append(group)
            consumed += group.n_patches - group.skip
            if consumed >= wanted:
                break
        return found
