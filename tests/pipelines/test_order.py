"""The order of training data: the same for any number of workers, dealt fairly, bounded, and
resumable at any patch."""

from __future__ import annotations

from itertools import islice, pairwise, takewhile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.pretrain.order import PatchOrder, ShardGroup

COUNTS = np.array([3, 1, 4, 1, 5, 9, 2, 6])

counts_of_shards = st.lists(st.integers(1, 9), min_size=1, max_size=20).map(np.array)
worlds = st.integers(1, 5)
sizes = st.integers(1, 6)


def _stream(order: PatchOrder, counts: np.ndarray, consumed: int, n: int) -> list[tuple[int, int]]:
    """The next n patches as (shard, number within the shard)."""
    found: list[tuple[int, int]] = []
    for group in order.groups(counts, consumed=consumed):
        patches = [(int(shard), k) for shard in group.shards for k in range(counts[shard])]
        found += [patches[k] for k in order.shuffled(group)]
        if len(found) >= n:
            return found[:n]
    raise AssertionError


def _epochs(counts: np.ndarray, epochs: int, *, world_size: int, group: int) -> list[ShardGroup]:
    """The groups of all ranks up to an epoch, in the order of their numbers."""
    dealt = []
    for rank in range(world_size):
        groups = PatchOrder(7, rank, world_size, group).groups(counts)
        dealt += list(takewhile(lambda part: part.epoch < epochs, groups))
    return sorted(dealt, key=lambda part: part.number)


@given(counts_of_shards, worlds, sizes)
def test_ranks_together_read_each_shard_once_an_epoch(
    counts: np.ndarray, world_size: int, group: int
) -> None:
    dealt = _epochs(counts, 3, world_size=world_size, group=group)
    assert [part.number for part in dealt] == list(range(len(dealt)))
    for epoch in range(3):
        shards = np.concatenate([part.shards for part in dealt if part.epoch == epoch])
        assert sorted(shards.tolist()) == list(range(len(counts)))


@given(counts_of_shards, worlds, sizes)
def test_groups_and_their_shuffle_are_the_same_for_any_number_of_workers(
    counts: np.ndarray, world_size: int, group: int
) -> None:
    alone, together = (_epochs(counts, 3, world_size=n, group=group) for n in (1, world_size))
    first, last = PatchOrder(7, 0, 1, group), PatchOrder(7, world_size - 1, world_size, group)
    assert alone
    for one, two in zip(alone, together, strict=True):
        assert (one.number, one.epoch, one.index, one.n_patches) == (
            two.number,
            two.epoch,
            two.index,
            two.n_patches,
        )
        assert one.shards.tolist() == two.shards.tolist()
        assert first.shuffled(one).tolist() == last.shuffled(two).tolist()


@given(counts_of_shards, worlds, sizes)
def test_the_buffer_is_bounded_and_ranks_get_even_groups(
    counts: np.ndarray, world_size: int, group: int
) -> None:
    dealt = _epochs(counts, 2, world_size=world_size, group=group)
    assert max(part.n_patches for part in dealt) <= group * counts.max()
    assert max(len(part.shards) for part in dealt) - min(len(part.shards) for part in dealt) <= 1
    of_rank = [
        sum(part.number % world_size == rank for part in dealt) for rank in range(world_size)
    ]
    assert max(of_rank) - min(of_rank) <= 1


@given(counts_of_shards, worlds, sizes, st.integers(0, 300))
def test_a_resumed_rank_reads_what_an_uninterrupted_one_reads(
    counts: np.ndarray, world_size: int, group: int, consumed: int
) -> None:
    order = PatchOrder(seed=11, rank=world_size - 1, world_size=world_size, group=group)
    whole = _stream(order, counts, 0, consumed + 40)
    assert _stream(order, counts, consumed, 40) == whole[consumed:]


def test_an_epoch_of_one_worker_holds_each_patch_once_and_shuffled() -> None:
    patches = _stream(
        PatchOrder(seed=3, rank=0, world_size=1, group=3), COUNTS, 0, int(COUNTS.sum())
    )
    assert sorted(patches) == [
        (shard, k) for shard in range(len(COUNTS)) for k in range(COUNTS[shard])
    ]
    assert patches != sorted(patches)
    runs = sum(one[0] != two[0] for one, two in pairwise(patches))
    assert runs > len(COUNTS)  # patches of a group are mixed, not read shard by shard


def test_epochs_and_seeds_and_groups_differ() -> None:
    order = PatchOrder(seed=0, rank=0, world_size=1)
    assert order.epoch(0, 50).tolist() != order.epoch(1, 50).tolist()
    assert (
        order.epoch(0, 50).tolist()
        != PatchOrder(seed=1, rank=0, world_size=1).epoch(0, 50).tolist()
    )
    first, second = islice(
        PatchOrder(seed=0, rank=0, world_size=1, group=1).groups(np.array([50, 50])), 2
    )
    assert order.shuffled(first).tolist() != order.shuffled(second).tolist()
    assert order.epoch(0, 50).tolist() != order.shuffled(first).tolist()


def test_with_fewer_groups_than_ranks_everyone_gets_patches() -> None:
    for rank in range(3):
        groups = list(islice(PatchOrder(seed=0, rank=rank, world_size=3).groups(np.array([5])), 2))
        assert [(part.n_patches, part.epoch) for part in groups] == [(5, rank), (5, rank + 3)]


def test_another_number_of_workers_goes_on_where_the_old_one_stopped() -> None:
    counts = np.full(24, 5)
    before = [_stream(PatchOrder(0, rank, 2, 2), counts, 0, 30) for rank in range(2)]
    after = [_stream(PatchOrder(0, rank, 3, 2), counts, 2 * 30 // 3, 20) for rank in range(3)]
    assert sorted(patch for stream in before + after for patch in stream) == [
        (shard, k) for shard in range(24) for k in range(5)
    ]


def test_until_covers_exactly_what_is_wanted() -> None:
    order = PatchOrder(seed=0, rank=0, world_size=2, group=2)
    groups = order.until(COUNTS, consumed=10, wanted=31)
    held = sum(group.n_patches - group.skip for group in groups)
    assert held >= 21 > held - (groups[-1].n_patches - groups[-1].skip)
    assert order.until(COUNTS, consumed=31, wanted=31) == []


def test_shards_without_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="no patch"):
        next(PatchOrder(seed=0, rank=0, world_size=1).groups(np.array([0, 0])))
    with pytest.raises(ValueError, match="rank < world_size"):
        PatchOrder(seed=0, rank=2, world_size=2)
