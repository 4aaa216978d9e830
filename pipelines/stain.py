"""Stain normalisation: fitted once per slide, carried in its shard rows, applied to patches.

    patches = sample_patches(slide, grid)                 a few, spread over the lattice
    fit = fit_slide_stain(slide.name, patches, method=)   their tissue -> fit
    fit.apply(patches)                                    in place, to a fixed target

Both methods are, up to the target's constants, a logarithm, a 3 x 3 matrix and an exponential: a
fit comes down to the matrix and three offsets. Reinhard's would turn glass pink or cyan; here
colours near the glass's stay as they are. Fitting Macenko on every patch instead costs many times
as much (`python -m tests.benchmarks.stain`) and makes a pixel's colour depend on the position of
the lattice. Knows no model.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines.glass import USUAL_GLASS, absorbance
from pipelines.grid import PatchGrid
from pipelines.quality import BLANK
from pipelines.slides.errors import NoTissue
from pipelines.slides.geometry import Point, Size
from pipelines.slides.slide import Slide

Triple = tuple[float, float, float]

MIN_PIXELS = 5_000
"""Minimum number of pixels of tissue for a fit: its percentiles then rest on 50 pixels."""
SAMPLED_PATCHES = 16
"""Patches a slide's stain is sampled from, spread evenly over the lattice."""
SAMPLED_PIXELS = 100
"""Rows and columns of each that are used: 160,000 pixels, beyond which fits hardly change."""
CHUNK = 8192
"""Pixels that are normalised at a time: 100 kB as float32, which the second-level cache holds;
whole patches take 1.7 times as long."""

# Macenko 2009, with the constants of its authors' published code and of its Python ports.
LIGHT = 240.0
"""Transmitted light."""
MIN_DENSITY = 0.15
"""Pixels with less optical density in any channel are not stained."""
ANGLE_PERCENTILE = 1.0
"""Percentile of the angles between the stains, from either end, that stands for a pure stain."""
MAXIMUM_PERCENTILE = 99.0
"""Percentile of a stain's concentration that stands for its maximum."""
TARGET_STAINS = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))
"""Haematoxylin and eosin of the reference image in Macenko's published code, as optical density in
red, green, blue."""
TARGET_MAXIMA = (1.9705, 1.0308)
"""Their maxima in the same image."""

# Reinhard 2001, in the colour space of Ruderman 1998: decorrelated logarithms of cone responses.
TO_CONES = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
"""RGB to LMS, equation 4 of Reinhard 2001."""
TO_LAB = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array(
    [[1.0, 1.0, 1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]]
)
"""Logarithms of LMS to l, alpha, beta, equation 6 of Reinhard 2001."""
TARGET_MEAN = (8.74108109, -0.12440419, 0.0444982)
TARGET_DEVIATION = (0.6135447, 0.10989545, 0.0286032)
"""Of a region of TCGA-A2-A3XS-DX1, published with Amgad 2019 (Bioinformatics 35:3461), with natural
logarithms of 0-255."""


class UnfitStain(ValueError):  # noqa: N818
    """The pixels can't be fitted: too few, or not of two stains."""


@dataclass(frozen=True, kw_only=True)
class StainFit(ABC):
    """All that normalising a slide's patches needs: small and hashable."""

    method: ClassVar[str]

    @abstractmethod
    def _normalised(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalised colours, not yet rounded, float32 [3, n], of uint8 [n, 3]."""

    def apply(
        self, patches: NDArray[np.uint8], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Normalise patches.

        A patch's result does not depend on the batch that it comes in.

        Args:
            patches: uint8 [N, H, W, 3].
            out: where the result goes, of the same shape, C-contiguous; in place if None.

        Returns:
            `out`, or `patches`.
        """
        target = patches if out is None else out
        for patch, result in zip(patches, target, strict=True):
            pixels, normalised = patch.reshape(-1, 3), result.reshape(-1, 3)
            if not np.shares_memory(normalised, result):
                raise ValueError("stain normalisation needs C-contiguous patches to write to")
            for start in range(0, len(pixels), CHUNK):
                colours = self._normalised(pixels[start : start + CHUNK])
                colours += np.float32(0.5)  # so that dropping the fraction rounds
                np.clip(colours, 0, 255, out=colours)
                normalised[start : start + CHUNK] = colours.T
        return target

    def to_bytes(self) -> bytes:
        """JSON, for a table row."""
        return json.dumps({"method": self.method, **asdict(self)}, sort_keys=True).encode()

    @staticmethod
    def from_bytes(content: bytes) -> StainFit:
        """The inverse of `to_bytes`."""
        values = json.loads(content)
        return METHODS[values.pop("method")](
            **{name: tuple(value) for name, value in values.items()}
        )


@dataclass(frozen=True, kw_only=True)
class MacenkoFit(StainFit):
    """Macenko 2009: unmixed into two stains, their maxima and colours replaced by the target's.

    Attributes:
        haematoxylin, eosin: optical density of the slide's stains in red, green, blue, of length 1.
        maxima: 99th percentiles of their concentrations.
    """

    haematoxylin: Triple
    eosin: Triple
    maxima: tuple[float, float]

    method = "macenko"

    @cached_property
    def _map(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Logarithm of each level, matrix, offsets; normalised log is matrix @ log + offset."""
        unmix = np.linalg.pinv(np.array([self.haematoxylin, self.eosin]).T)
        matrix = np.array(TARGET_STAINS).T @ np.diag(np.array(TARGET_MAXIMA) / self.maxima) @ unmix
        offset = np.log(LIGHT) * (1 - matrix.sum(axis=1, keepdims=True))
        return (
            np.log(np.arange(256) + 1.0).astype(np.float32),
            matrix.astype(np.float32),
            offset.astype(np.float32),
        )

    def _normalised(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        table, matrix, offset = self._map
        colours = matrix @ table.take(pixels.T, mode="clip")
        colours += offset
        np.exp(colours, out=colours)
        return colours

    @classmethod
    def fit(cls, pixels: NDArray[np.uint8], *, glass: Triple | None = None) -> MacenkoFit:
        """Fit to uint8 [P, 3]; the method assumes `LIGHT` for glass."""
        del glass
        density = -np.log((pixels.astype(np.float64) + 1) / LIGHT)
        stained = density[(density >= MIN_DENSITY).all(axis=1)]
        if len(stained) < MIN_PIXELS:
            raise UnfitStain(f"{len(stained)} stained pixels where {MIN_PIXELS} are needed")
        _, vectors = np.linalg.eigh(np.cov(stained.T))
        plane = vectors[:, [2, 1]]  # the two directions of largest variance
        # Density is positive; the solver's sign is arbitrary.
        plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
        across = stained @ plane
        angles = np.percentile(
            np.arctan2(across[:, 1], across[:, 0]), [ANGLE_PERCENTILE, 100 - ANGLE_PERCENTILE]
        )
        low, high = (plane @ (np.cos(angle), np.sin(angle)) for angle in angles)
        # Haematoxylin absorbs more red.
        haematoxylin, eosin = (low, high) if low[0] > high[0] else (high, low)
        concentrations = density @ np.linalg.pinv(np.array([haematoxylin, eosin]).T).T
        maxima = np.percentile(concentrations, MAXIMUM_PERCENTILE, axis=0)
        if not (np.ptp(angles) > 1e-3 and (maxima > 0).all()):
            raise UnfitStain("the pixels are of one stain only")
        return cls(
            haematoxylin=_triple(haematoxylin),
            eosin=_triple(eosin),
            maxima=(float(maxima[0]), float(maxima[1])),
        )


@dataclass(frozen=True, kw_only=True)
class ReinhardFit(StainFit):
    """Reinhard 2001: mean and deviation of the tissue's l, alpha, beta replaced by the target's.

    Attributes:
        mean, deviation: of l, alpha, beta, with natural logarithms of 0-255.
        glass: colour of the slide's glass. What absorbs less than `BLANK` compared with it stays as
            it is, what absorbs twice as much is normalised, with a ramp in between.
    """

    mean: Triple
    deviation: Triple
    glass: Triple = USUAL_GLASS

    method = "reinhard"

    @cached_property
    def _map(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """RGB to cones, matrix, offsets, cones to RGB; normalised log is matrix @ log + offset."""
        scale = np.array(TARGET_DEVIATION) / self.deviation
        from_lab = np.linalg.inv(TO_LAB)
        matrix = from_lab @ np.diag(scale) @ TO_LAB
        offset = from_lab @ (np.array(TARGET_MEAN) - scale * self.mean)
        to_cones, from_cones = (
            TO_CONES.astype(np.float32),
            np.linalg.inv(TO_CONES).astype(np.float32),
        )
        return to_cones, matrix.astype(np.float32), offset[:, None].astype(np.float32), from_cones

    @cached_property
    def _share(self) -> NDArray[np.float32]:
        """How much of a colour is normalised: the sum of three levels' entries, cut off at 0 and 1;
        float32 [3, 256]."""
        levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
        return absorbance(levels, self.glass) / np.float32(BLANK) - np.array(
            [[1], [0], [0]], np.float32
        )

    def _normalised(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        to_cones, matrix, offset, from_cones = self._map
        channels = np.ascontiguousarray(pixels.T)
        seen = channels.astype(np.float32)
        cones = to_cones @ seen
        np.maximum(cones, 1, out=cones)
        np.log(cones, out=cones)
        cones = matrix @ cones
        cones += offset
        np.exp(cones, out=cones)
        colours = from_cones @ cones
        share, green, blue = (
            table.take(channel, mode="clip")
            for table, channel in zip(self._share, channels, strict=True)
        )
        share += green
        share += blue
        np.clip(share, 0, 1, out=share)
        colours -= seen
        colours *= share
        colours += seen
        return colours

    @classmethod
    def fit(cls, pixels: NDArray[np.uint8], *, glass: Triple | None = None) -> ReinhardFit:
        """Fit to uint8 [P, 3]."""
        if len(pixels) < MIN_PIXELS:
            raise UnfitStain(f"{len(pixels)} pixels where {MIN_PIXELS} are needed")
        lab = np.log(np.maximum(pixels @ TO_CONES.T, 1)) @ TO_LAB.T
        deviation = lab.std(axis=0)
        if deviation.min() < 1e-4:
            raise UnfitStain("the pixels have one colour only")
        return cls(
            mean=_triple(lab.mean(axis=0)), deviation=_triple(deviation), glass=glass or USUAL_GLASS
        )


METHODS: dict[str, type[MacenkoFit] | type[ReinhardFit]] = {
    "macenko": MacenkoFit,
    "reinhard": ReinhardFit,
}
"""By the name a PatchSpec may carry."""


def fit_stain(pixels: NDArray[np.uint8], *, method: str, glass: Triple | None = None) -> StainFit:
    """Fit a method to pixels of tissue.

    Args:
        pixels: uint8 [P, 3]; Macenko leaves out what is not stained when it looks for the stains.
        method: a key of `METHODS`.
        glass: colour of the slide's glass.

    Raises:
        UnfitStain: too few pixels, or not of two stains.
        KeyError: no such method.
    """
    return METHODS[method].fit(pixels, glass=glass)


def sample_patches(slide: Slide, grid: PatchGrid) -> NDArray[np.uint8]:
    """At most `SAMPLED_PATCHES` patches spread evenly over the lattice, as they are read, uint8 [N,
    read_size, read_size, 3].

    Raises:
        SlideError: unreadable pixels.
    """
    count, side = len(grid.x), grid.read_size
    chosen = np.unique(np.linspace(0, count - 1, min(SAMPLED_PATCHES, count)).round().astype(int))
    origins = [Point(int(grid.x[k]), int(grid.y[k])) for k in chosen]
    return slide.read_regions(origins, grid.level.index, Size(side, side), scale=grid.scale)


def tissue_pixels(patches: NDArray[np.uint8], *, glass: Triple | None = None) -> NDArray[np.uint8]:
    """Evenly spaced pixels of patches that are not glass, uint8 [P, 3]."""
    step = max(1, patches.shape[1] // SAMPLED_PIXELS)
    pixels = patches[:, ::step, ::step].reshape(-1, 3)
    return pixels[absorbance(pixels, glass).sum(axis=0) >= BLANK]


def fit_slide_stain(
    name: str, patches: NDArray[np.uint8], *, method: str, glass: Triple | None = None
) -> StainFit:
    """Fit a method to the tissue of a slide's sampled patches; deterministic.

    Args:
        name: the slide's name, for errors.
        patches: of `sample_patches`, uint8 [N, H, W, 3], in the colours that `apply` will meet.
        method: a key of `METHODS`.
        glass: colour of the slide's glass.

    Raises:
        NoTissue: too little tissue, or not of two stains.
    """
    try:
        return fit_stain(tissue_pixels(patches, glass=glass), method=method, glass=glass)
    except UnfitStain as error:
        remedy = "check that it is stained with H&E, or prepare it without stain normalisation"
        raise NoTissue(name, f"gives no {method} stain fit: {error}", remedy) from error


def _triple(values: NDArray[np.float64]) -> Triple:
    """Plain floats."""
    first, second, third = values.tolist()
    return first, second, third
