"""The order in which training reads patches: a two-level shuffle that is a function of seed and
epoch alone.

    epoch -> all shards in random order -> groups of a few shards -> the patches of a group in
    random order

The patches of a group are decoded together and shuffled together, since single random patches would
cost four source tiles each; a group is the bounded buffer. Groups are numbered through all epochs,
and number n belongs to rank n % world_size: more workers read the same groups, each fewer of them.
A position is the number of patches that a rank has consumed; from it follow the group and how many
of its shuffled patches are already consumed. Knows counts only: no pixel, no slide and no Ray.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ShardGroup:
    """Shards whose patches are shuffled together.

    Attributes:
        number: position among all groups of all epochs, from 0.
        epoch: which pass over all shards, from 0.
        index: position within the epoch, from 0.
        shards: numbers of the shards, int64, in reading order.
        n_patches: patches in them.
        skip: of the shuffled patches, how many were consumed before the run was interrupted.
    """

    number: int
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
        group: shards a group: at most `group` times the largest shard are held at a time.
    """

    seed: int
    rank: int
    world_size: int
    group: int = 8

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world_size and self.group >= 1 and self.seed >= 0):
            raise ValueError(f"{self}: 0 <= rank < world_size, group >= 1 and seed >= 0 are needed")

    def epoch(self, epoch: int, n_shards: int) -> NDArray[np.int64]:
        """Numbers of all shards in the order of an epoch, the same for every rank."""
        return np.random.default_rng([self.seed, epoch]).permutation(n_shards).astype(np.int64)

    def groups(self, counts: NDArray[np.integer], *, consumed: int = 0) -> Iterator[ShardGroup]:
        """Groups of this rank from a position on, without end.

        Args:
            counts: patches in each shard, [S].
            consumed: patches that this rank has consumed before.

        Raises:
            ValueError: the shards hold no patch, so no position can ever be reached.
        """
        if not np.sum(counts):
            raise ValueError("the shards hold no patch; prepare the cohort again")
        per_epoch = -(-len(counts) // self.group)
        bounds = (
            np.arange(per_epoch + 1) * len(counts) // per_epoch
        )  # as even as possible, so that ranks advance alike
        for epoch in count():
            shards = self.epoch(epoch, len(counts))
            sizes = np.add.reduceat(counts[shards], bounds[:-1], dtype=np.int64)
            # Numbered on from the epoch before: with fewer groups than ranks, everyone still gets
            # some.
            for index in range(
                (self.rank - epoch * per_epoch) % self.world_size, per_epoch, self.world_size
            ):
                size = int(sizes[index])
                if consumed >= size:
                    consumed -= size
                    continue
                members = shards[bounds[index] : bounds[index + 1]]
                yield ShardGroup(
                    epoch * per_epoch + index, epoch, index, members, size, skip=consumed
                )
                consumed = 0

    def shuffled(self, group: ShardGroup) -> NDArray[np.int64]:
        """The order [n_patches - skip] in which the patches of a group, numbered in reading order,
        are consumed.
        """
        random = np.random.default_rng(
            [self.seed, group.epoch, 1 + group.index]
        )  # index 0 would repeat the epoch's own stream
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
