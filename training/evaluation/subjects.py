"""What is scored: something that turns patches into features; and tiles as other scanners and
laboratories would show them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.grid import PatchSpec
from training.encoder.encoder import Encoder
from training.encoder.stain_views import stained
from training.evaluation.tiles import Tile, cut, resampled

CLEAN: Final = "as scanned"
STAIN: Final = "other stains"
SHIFTS: Final[Mapping[str, float]] = {STAIN: 1.0, "10 % larger": 1.1, "10 % smaller": 1 / 1.1}
"""Shifts of the tiles, each with the factor that it scales them by."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An encoder or a baseline.

    Attributes:
        name: for people.
        embed: uint8 [N, size, size, 3] to float32 [N, D].
        spec: the patches it takes.
        given: the encoder as it was given; None for a baseline.
        hash: of the encoder.
    """

    name: str
    embed: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    spec: PatchSpec
    given: str | None = None
    hash: str | None = None

    @classmethod
    def of(cls, encoder: Encoder, given: str, *, taken: Sequence[str]) -> Self:
        """An encoder; the second of one name has its hash added."""
        name = encoder.name if encoder.name not in taken else f"{encoder.name} {encoder.hash[:8]}"
        return cls(
            name=name, embed=encoder.embed, spec=encoder.spec, given=given, hash=encoder.hash
        )


def features_of(tile: Tile, subject: Subject, *, mpp: float, shift: str) -> NDArray[np.float32]:
    """Features [D] of a tile: the mean over its patches.

    Args:
        tile: uint8 [h, w, 3].
        subject: that computes them.
        mpp: micrometres per pixel of the tile.
        shift: CLEAN or one of SHIFTS.
    """
    scale = SHIFTS.get(shift, 1.0)
    ready = resampled(tile, mpp=mpp * scale, wanted=subject.spec.mpp)
    patches = cut(ready, size=subject.spec.size)
    if shift == STAIN:
        patches = stained(patches, 1)
    return np.asarray(subject.embed(patches).mean(axis=0), np.float32)
