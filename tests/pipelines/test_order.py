"""The order of training data: dealt fairly, the same each time, and resumable at any patch."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.order import PatchOrder

COUNTS = np.array([3, 1, 4, 1, 5, 9, 2, 6])


def _stream(order: PatchOrder, counts: np.ndarray, consumed: int, n: int) -> list[tuple[int, int]]:
    """The next n patches as (shard, number within the shard)."""
    found: list[tuple[int, int]] = []
    for group in order.groups(counts, consumed=consumed):
        patches = [(int(shard), k) for shard in group.shards for k in range(counts[shard])]
        found += [patches[k] for k in order.shuffled(group)]
        if len(found) >= n:
            return found[:n]
    raise AssertionError


@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 30))
def test_every_shard_goes_to_exactly_one_rank_in_each_epoch(n_shards: int, world_size: int, epoch: int) -> None:
    dealt = np.concatenate([PatchOrder(7, rank, world_size).epoch(epoch, n_shards) for rank in range(world_size)])
    assert sorted(dealt.tolist()) == list(range(n_shards))


def test_an_epoch_of_a_rank_holds_each_of_its_patches_once() -> None:
    order = PatchOrder(seed=3, rank=1, world_size=2, group=3)
    mine = order.epoch(0, len(COUNTS))
    patches = _stream(order, COUNTS, 0, int(COUNTS[mine].sum()))
    assert sorted(patches) == sorted((int(shard), k) for shard in mine for k in range(COUNTS[shard]))


@given(st.integers(0, 200), st.integers(1, 3), st.integers(1, 4))
def test_a_resumed_rank_reads_what_an_uninterrupted_one_reads(consumed: int, world_size: int, group: int) -> None:
    order = PatchOrder(seed=11, rank=world_size - 1, world_size=world_size, group=group)
    whole = _stream(order, COUNTS, 0, consumed + 40)
    assert _stream(order, COUNTS, consumed, 40) == whole[consumed:]


def test_epochs_and_seeds_and_ranks_differ() -> None:
    order = PatchOrder(seed=0, rank=0, world_size=1)
    assert order.epoch(0, 50).tolist() != order.epoch(1, 50).tolist()
    assert order.epoch(0, 50).tolist() != PatchOrder(seed=1, rank=0, world_size=1).epoch(0, 50).tolist()
    first, second = (next(PatchOrder(seed=0, rank=rank, world_size=2).groups(COUNTS)) for rank in (0, 1))
    assert set(first.shards.tolist()).isdisjoint(second.shards.tolist())


def test_with_fewer_shards_than_ranks_everyone_gets_patches() -> None:
    for rank in range(3):
        groups = list(islice(PatchOrder(seed=0, rank=rank, world_size=3).groups(np.array([5])), 2))
        assert [group.n_patches for group in groups] == [5, 5]


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
