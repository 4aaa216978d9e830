"""What is scored: something that turns patches into features; and tiles as other scanners and
laboratories would show them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.grid import PatchSpec
from pipelines.stain import SAMPLED_PIXELS, UnfitStain, fit_stain, tissue_pixels
from training.encoder.encoder import Encoder
from training.encoder.stain_views import stained
from training.evaluation.tiles import Tile, cut, resampled

CLEAN: Final = "as scanned"
STAIN: Final = "other stains"
SHIFTS: Final[Mapping[str, float]] = {STAIN: 1.0, "10 % larger": 1.1, "10 % smaller": 1 / 1.1}
"""Shifts of the tiles, each with the factor that it scales them by."""


@dataclass(frozen=True, kw_only=True)
class View:
    """How tiles are shown to a subject.

    Attributes:
        shift: CLEAN or one of SHIFTS.
        stain: method of `pipelines.stain` that normalises each tile by a fit to it alone; empty for
            none.
    """

    shift: str = CLEAN
    stain: str = ""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An encoder or a baseline.

    Attributes:
        name: for people.
        embed: uint8 [N, size, size, 3] to float32 [N, D].
        spec: the patches it takes.
        batch: patches that it embeds in a pass.
        given: the encoder as it was given; None for a baseline.
        hash: of the encoder.
    """

    name: str
    embed: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    spec: PatchSpec
    batch: int = 1
    given: str | None = None
    hash: str | None = None

    @classmethod
    def of(cls, encoder: Encoder, given: str, *, taken: Sequence[str]) -> Self:
        """An encoder; the second of one name has its hash added."""
        name = encoder.name if encoder.name not in taken else f"{encoder.name} {encoder.hash[:8]}"
        return cls(
            name=name,
            embed=encoder.embed,
            spec=encoder.spec,
            batch=encoder.batch_size,
            given=given,
            hash=encoder.hash,
        )


class TileFeatures:
    """Features of tiles that come one after the other, computed in the subject's own batches.

    A tile's features are the mean over its patches. Memory holds one batch of patches and the
    features, however large or many the tiles are.
    """

    def __init__(self, subject: Subject, *, mpp: float, view: View) -> None:
        """Of tiles at `mpp` micrometres per pixel."""
        self._subject, self._mpp, self._view = subject, mpp, view
        self._waiting: deque[Tile] = deque()
        self._embedded: deque[NDArray[np.float32]] = deque()
        self._counts: deque[int] = deque()
        self._means: list[NDArray[np.float32]] = []

    def add(self, tile: Tile) -> None:
        """Take one more tile, uint8 [h, w, 3]."""
        patches = self._patches(tile)
        self._counts.append(len(patches))
        self._waiting.extend(patches)
        while len(self._waiting) >= self._subject.batch:
            self._embed(self._subject.batch)

    def features(self) -> NDArray[np.float32]:
        """Features of all tiles, [N, D]."""
        if self._waiting:
            self._embed(len(self._waiting))
        return np.array(self._means, np.float32)

    def _patches(self, tile: Tile) -> NDArray[np.uint8]:
        spec, view = self._subject.spec, self._view
        ready = resampled(tile, mpp=self._mpp * SHIFTS.get(view.shift, 1.0), wanted=spec.mpp)
        if view.shift == STAIN:
            ready = stained(ready[None], 1)[0]
        if view.stain:
            ready = normalised(ready, view.stain)
        return cut(ready, size=spec.size)

    def _embed(self, count: int) -> None:
        """Embed the first waiting patches; average where a tile has all of its own."""
        batch = np.stack([self._waiting.popleft() for _ in range(count)])
        self._embedded.extend(self._subject.embed(batch))
        while self._counts and len(self._embedded) >= self._counts[0]:
            own = [self._embedded.popleft() for _ in range(self._counts.popleft())]
            self._means.append(np.mean(own, axis=0))


def normalised(tile: Tile, method: str) -> Tile:
    """The tile [h, w, 3] with its stain normalised by a fit to its own tissue; as it is where that
    is too little for a fit, or of one stain only.
    """
    pixels = tissue_pixels(cut(tile, size=SAMPLED_PIXELS))
    try:
        fit = fit_stain(pixels, method=method)
    except UnfitStain:
        return tile
    return fit.apply(tile[None].copy())[0]
