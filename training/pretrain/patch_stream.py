"""From a rank's blocks of encoded tiles to batches of shuffled pixels, decoded in a background
thread.

The stream is a function of the order and of the position alone: how fast blocks arrive changes
nothing. Each shard is compared with the order, so that unexpected data stops the run instead of
changing it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.patches import decode_patches
from training.errors import RunError
from training.pretrain.order import PatchOrder, ShardGroup


@dataclass(frozen=True)
class ShardIndex:
    """Name and size of every shard of a cohort, by its number.

    Attributes:
        slide_ids: slide of each shard.
        numbers: number of the shard within its slide, int32 [S].
        counts: patches of each shard, int32 [S].
    """

    slide_ids: Sequence[str]
    numbers: NDArray[np.int32]
    counts: NDArray[np.int32]

    @classmethod
    def of(cls, shards: pa.Table) -> ShardIndex:
        """The index of rows of `pipelines.shards.SCHEMA`."""
        return cls(
            slide_ids=tuple(shards["slide_id"].to_pylist()),
            numbers=np.array(shards["shard"].to_pylist(), np.int32),
            counts=np.array(shards["n_patches"].to_pylist(), np.int32),
        )


def shuffled_batches(
    blocks: Iterable[pa.Table],
    index: ShardIndex,
    order: PatchOrder,
    groups: Iterable[ShardGroup],
    *,
    size: int,
) -> Iterator[NDArray[np.uint8]]:
    """Batches of exactly `size` patches, uint8 [size, H, W, 3]; the rest that fills no batch is
    dropped at the end.

    Args:
        blocks: what a dataset of `pipelines.patch_source.read_patches` yields for the shards of
            `groups`, in that order.
        index: of the whole cohort.
        order: of this rank.
        groups: from the rank's position on.
        size: patches a batch.

    Raises:
        RunError: a shard arrives that the order does not expect, or none arrives where one should.
    """
    rows = (block.slice(k, 1) for block in blocks for k in range(len(block)))
    parts: list[NDArray[np.uint8]] = []  # of the batch that is being filled
    filled = 0
    for group in groups:
        pixels = _decode_group(rows, index, group)
        turn = order.shuffled(group)
        start = 0
        while start < len(turn):
            taken = turn[start : start + size - filled]
            parts.append(pixels[taken])
            start, filled = start + len(taken), filled + len(taken)
            if filled == size:
                yield parts[0] if len(parts) == 1 else np.concatenate(parts)
                parts, filled = [], 0


def _decode_group(
    rows: Iterator[pa.Table], index: ShardIndex, group: ShardGroup
) -> NDArray[np.uint8]:
    tables = []
    for shard in group.shards.tolist():
        expected = f"shard {index.numbers[shard]} of slide {index.slide_ids[shard]}"
        if (row := next(rows, None)) is None:
            raise RunError(
                f"the patch stream ended before {expected}; start the run again to resume it"
            )
        found = f"shard {row['shard'][0]} of slide {row['slide_id'][0]}"
        if found != expected:
            raise RunError(
                f"the patch stream brought {found} where {expected} was due; start the run again "
                "to resume it"
            )
        tables.append(row)
    return decode_patches(pa.concat_tables(tables))["patch"]
