"""The patches of a slide: a square lattice at a wanted resolution, of which those with enough
tissue are kept.

`PatchSpec` is the contract between training and serving: an encoder carries its own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipelines.fields import require
from pipelines.slides.errors import NoTissue, UnsupportedSlide
from pipelines.slides.geometry import Level
from pipelines.slides.resolution import PLAUSIBLE_MPP, is_plausible
from pipelines.slides.slide import Slide

MIN_SIZE, MAX_SIZE = 16, 8192
"""Sides of a patch in pixels that make sense: below, focus can't be measured; beyond, one patch
uses 200 MB."""
NATIVE = 0.02
"""A level whose mpp differs from the wanted one by at most this share is read as it is: scanners
are not calibrated more finely."""


SIDE = 32
"""Maximum number of patches along a side of a shard. At the edges of unaligned shards 6 % of the
tiles are decoded twice; with a side of 16, 13 %."""
STAINS = ("", "macenko", "reinhard")
"""Stain normalisations (`pipelines.stain`)."""


@dataclass(frozen=True, kw_only=True)
class PatchSpec:
    """What a patch is.

    Attributes:
        size: side in pixels, after resampling to `mpp`.
        mpp: micrometres per pixel.
        overlap: pixels that neighbouring patches share.
        min_tissue: minimum share of the patch's area that the tissue mask covers, 0 to 1.
        icc: whether pixels are brought to sRGB by the slide's own ICC profile; a slide without one
            is left as it is.
        stain: how stain is normalised, one of `STAINS`; empty for not at all.

    Raises:
        ValueError: a value that can't be used; names the field, the value and what is allowed.
    """

    size: int = 224
    mpp: float = 0.5
    overlap: int = 0
    min_tissue: float = 0.25
    icc: bool = False
    stain: str = ""

    def __post_init__(self) -> None:
        low, high = PLAUSIBLE_MPP
        require(
            "size", self.size, MIN_SIZE <= self.size <= MAX_SIZE, f"{MIN_SIZE} to {MAX_SIZE} pixels"
        )
        require(
            "mpp of a patch", self.mpp, is_plausible(self.mpp), f"{low:g} to {high:g} um per pixel"
        )
        require(
            "overlap",
            self.overlap,
            0 <= self.overlap < self.size,
            f"0 to {self.size - 1} pixels: less than the size of {self.size}",
        )
        require(
            "min_tissue",
            self.min_tissue,
            0 <= self.min_tissue <= 1,
            "a share of 0 to 1: 0.25 is 25 %",
        )
        require(
            "stain", self.stain, self.stain in STAINS, f"one of {', '.join(STAINS[1:])}, or empty"
        )

    @property
    def side_um(self) -> float:
        """Side of a patch in micrometres."""
        return self.size * self.mpp

    @cached_property
    def hash(self) -> str:
        """16 hex digits that differ where any field differs."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class PatchGrid:
    """Patches of one slide, by rows of the lattice.

    Attributes:
        level: the level that is read; shrunk by `scale`, so that its pixels are the decoder's.
        scale: factor by which tiles are shrunk while they are decoded, 1 if a level fits.
        read_size: side of a patch in pixels of that level, before it is resampled to `size`.
        x, y: top-left corners in level-0 pixels, int32 [N].
        read_x, read_y: the same in pixels of `level`, int32 [N].
        column, row: position in the lattice, int32 [N].
    """

    level: Level
    scale: int
    read_size: int
    x: NDArray[np.int32]
    y: NDArray[np.int32]
    read_x: NDArray[np.int32]
    read_y: NDArray[np.int32]
    column: NDArray[np.int32]
    row: NDArray[np.int32]


def choose_level(slide: Slide, spec: PatchSpec) -> tuple[Level, int, int]:
    """The level nearest above the wanted resolution, the factor by which it is shrunk while it is
    decoded, and a patch's side in its pixels.

    Raises:
        MissingResolution: the slide has no mpp.
        UnsupportedSlide: the slide's finest level is coarser than wanted: detail is never invented.
    """
    wanted = spec.mpp / slide.mpp
    fitting = [level for level in slide.levels if level.downsample <= wanted * (1 + NATIVE)]
    if not fitting:
        cause = f"was scanned at {slide.mpp:.3g} um per pixel, coarser than the wanted {spec.mpp:g}"
        raise UnsupportedSlide(
            slide.name, cause, "scan it at a higher magnification or use a model for a coarser mpp"
        )
    stored = max(fitting, key=lambda level: level.downsample)
    scale = next(
        factor
        for factor in slide.scales(stored.index)
        if factor == 1 or stored.downsample * factor <= wanted * (1 + NATIVE)
    )
    level = stored.shrunk(scale)
    read_size = round(spec.size * wanted / level.downsample)
    return level, scale, spec.size if abs(read_size / spec.size - 1) <= NATIVE else read_size


def patch_grid(slide: Slide, tissue: NDArray[np.bool_], spec: PatchSpec) -> PatchGrid:
    """Place the lattice from the top-left corner and keep whole patches with enough tissue.

    Args:
        slide: open slide.
        tissue: mask over the whole slide at any scale, bool [h, w].
        spec: what a patch is.

    Raises:
        NoTissue: no patch has enough tissue.
    """
    level, scale, read_size = choose_level(slide, spec)
    stride = max(1, round((spec.size - spec.overlap) * read_size / spec.size))
    left = np.arange(0, level.size.width - read_size + 1, stride)
    top = np.arange(0, level.size.height - read_size + 1, stride)
    share = _tissue_share(
        tissue, left / level.size.width, top / level.size.height, read_size, level
    )
    row, column = np.nonzero(share >= max(spec.min_tissue, 1e-9))
    if not len(row):
        raise NoTissue(
            slide.name,
            f"has no patch with {spec.min_tissue:.0%} tissue",
            "check the tissue mask or lower min_tissue",
        )
    read_x, read_y = left[column], top[row]
    return PatchGrid(
        level=level,
        scale=scale,
        read_size=read_size,
        x=np.rint(read_x * level.downsample).astype(np.int32),
        y=np.rint(read_y * level.downsample).astype(np.int32),
        read_x=read_x.astype(np.int32),
        read_y=read_y.astype(np.int32),
        column=column.astype(np.int32),
        row=row.astype(np.int32),
    )


def _tissue_share(
    tissue: NDArray[np.bool_],
    left: NDArray[np.float64],
    top: NDArray[np.float64],
    read_size: int,
    level: Level,
) -> NDArray[np.float64]:
    """Share of tissue in each lattice cell, float64 [rows, columns], by a summed-area table."""
    height, width = tissue.shape
    table = np.zeros((height + 1, width + 1))
    table[1:, 1:] = tissue.cumsum(axis=0).cumsum(axis=1)
    x0 = np.minimum(np.floor(left * width).astype(int), width - 1)
    y0 = np.minimum(np.floor(top * height).astype(int), height - 1)
    x1 = np.clip(np.ceil((left + read_size / level.size.width) * width).astype(int), x0 + 1, width)
    y1 = np.clip(
        np.ceil((top + read_size / level.size.height) * height).astype(int), y0 + 1, height
    )
    inside = (
        table[y1[:, None], x1]
        - table[y0[:, None], x1]
        - table[y1[:, None], x0]
        + table[y0[:, None], x0]
    )
    return inside / ((y1 - y0)[:, None] * (x1 - x0))
