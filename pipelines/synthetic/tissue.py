"""Generated H&E: tiles of prostate tissue in the four patterns, if no real tissue is available.

Not a model of biology. It draws what distinguishes the patterns at 20x: wide glands with folded
lumina (benign), small separate round glands (Gleason 3), fused cribriform sheets (4), solid sheets
of cells without lumina (5), in pink stroma.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from pipelines.annotations import PATTERNS

Rng = np.random.Generator
MPP = 0.23
"""Micrometres per pixel of a tile, that of the usual 40x scan."""

STROMA = (226, 172, 200)
CYTOPLASM = (205, 150, 190)
DARK_CYTOPLASM = (188, 125, 178)
LUMEN = (243, 238, 243)
NUCLEUS = (92, 64, 140)


@dataclass(frozen=True, kw_only=True)
class _Gland:
    x: float
    y: float
    radius: float
    phase: float
    wobble: float

    def outline(self, scale: float, folds: int) -> list[tuple[float, float]]:
        angles = np.linspace(0, 2 * math.pi, 60, endpoint=False)
        radii = self.radius * scale * (1 + self.wobble * np.sin(folds * angles + self.phase))
        return list(
            zip(
                (self.x + radii * np.cos(angles)).tolist(),
                (self.y + radii * np.sin(angles)).tolist(),
                strict=True,
            )
        )


def generate_tile(pattern: str, rng: Rng, *, side: int = 750) -> NDArray[np.uint8]:
    """One tile of tissue at `MPP`.

    Args:
        pattern: one of `pipelines.annotations.PATTERNS`.
        rng: source of all randomness.
        side: pixels.

    Returns:
        uint8 [side, side, 3].
    """
    image = Image.new("RGB", (side, side), STROMA)
    draw = ImageDraw.Draw(image)
    _stroma_nuclei(draw, rng, side)
    _DRAW[pattern](draw, rng, side)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1.2))).astype(np.float32)
    shading = np.asarray(
        Image.fromarray(rng.normal(0, 1, (12, 12)).astype(np.float32)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
    )
    pixels += 5.0 * shading[..., None] + rng.normal(0, 4.0, (side, side, 1)).astype(np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _positions(rng: Rng, side: int, spacing: float, jitter: float) -> list[tuple[float, float]]:
    grid = np.arange(-spacing / 2, side + spacing, spacing)
    return [
        (
            x + rng.uniform(-jitter, jitter) * spacing + (row % 2) * spacing / 2,
            y + rng.uniform(-jitter, jitter) * spacing,
        )
        for row, y in enumerate(grid.tolist())
        for x in grid.tolist()
    ]


def _nucleus(draw: ImageDraw.ImageDraw, rng: Rng, x: float, y: float, size: float) -> None:
    across, down = size * rng.uniform(0.8, 1.2), size * rng.uniform(0.8, 1.2)
    shade = int(rng.integers(-18, 18))
    draw.ellipse(
        (x - across, y - down, x + across, y + down),
        fill=tuple(int(channel) + shade for channel in NUCLEUS),
    )


def _stroma_nuclei(draw: ImageDraw.ImageDraw, rng: Rng, side: int) -> None:
    for x, y in rng.uniform(0, side, (90, 2)).tolist():
        length, angle = rng.uniform(10, 20), rng.uniform(-0.5, 0.5)
        dx, dy = length * math.cos(angle), length * math.sin(angle)
        draw.line((x - dx, y - dy, x + dx, y + dy), fill=(150, 100, 160), width=4)


def _ring(
    draw: ImageDraw.ImageDraw, rng: Rng, outline: list[tuple[float, float]], size: float
) -> None:
    """Nuclei along a closed outline."""
    length = sum(math.dist(a, b) for a, b in pairwise([*outline, outline[0]]))
    count = max(8, int(length / (size * 2.4)))
    for k in range(count):
        x, y = outline[k * len(outline) // count]
        _nucleus(draw, rng, x, y, size)


def _benign(draw: ImageDraw.ImageDraw, rng: Rng, side: int) -> None:
    for x, y in _positions(rng, side, 390, 0.12):
        gland = _Gland(x=x, y=y, radius=rng.uniform(140, 175), phase=rng.uniform(0, 6), wobble=0.13)
        draw.polygon(gland.outline(1.0, 7), fill=CYTOPLASM)
        draw.polygon(gland.outline(0.7, 7), fill=LUMEN)
        _ring(draw, rng, gland.outline(0.97, 7), 7)
        _ring(draw, rng, gland.outline(0.82, 7), 8)


def _gleason_3(draw: ImageDraw.ImageDraw, rng: Rng, side: int) -> None:
    for x, y in _positions(rng, side, 185, 0.14):
        gland = _Gland(x=x, y=y, radius=rng.uniform(62, 80), phase=rng.uniform(0, 6), wobble=0.05)
        draw.polygon(gland.outline(1.0, 3), fill=DARK_CYTOPLASM)
        draw.polygon(gland.outline(0.42, 3), fill=LUMEN)
        _ring(draw, rng, gland.outline(0.8, 3), 10)


def _gleason_4(draw: ImageDraw.ImageDraw, rng: Rng, side: int) -> None:
    for x, y in _positions(rng, side, 430, 0.08):
        gland = _Gland(x=x, y=y, radius=rng.uniform(215, 250), phase=rng.uniform(0, 6), wobble=0.06)
        draw.polygon(gland.outline(1.0, 5), fill=DARK_CYTOPLASM)
    for x, y in _positions(rng, side, 36, 0.3):
        _nucleus(draw, rng, x, y, 11)
    for x, y in _positions(rng, side, 105, 0.25):
        radius = rng.uniform(14, 27)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=LUMEN)


def _gleason_5(draw: ImageDraw.ImageDraw, rng: Rng, side: int) -> None:
    for x, y in _positions(rng, side, 250, 0.3):
        gland = _Gland(x=x, y=y, radius=rng.uniform(100, 170), phase=rng.uniform(0, 6), wobble=0.25)
        draw.polygon(gland.outline(1.0, 4), fill=DARK_CYTOPLASM)
    for x, y in _positions(rng, side, 31, 0.35):
        _nucleus(draw, rng, x, y, rng.uniform(9, 14))


_DRAW = dict(zip(PATTERNS, (_benign, _gleason_3, _gleason_4, _gleason_5), strict=True))
