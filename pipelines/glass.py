"""The slide's own glass, and what is absorbed in front of it.

Scanners differ in brightness and white balance, so colours are judged relative to the glass of the
same slide: absorbance is zero where the glass is empty, whatever the lamp. Knows no tissue, no ink
and no patch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

USUAL_GLASS = (243.0, 243.0, 243.0)
"""Glass of a usual scan, if a picture shows none; the scans at hand have 237 to 243."""
GLASS_LEVEL = 180
"""Glass is brighter than this in every channel on brightfield scans (0-255) ..."""
GLASS_TINT = 45
"""... its channels differ by less than this (yellowish lamps) ..."""
STAIN_TINT = 12
"""... and green is not below both others by this much: that is H&E, which absorbs green most."""
MIN_GLASS = 0.002
"""Minimum share of the picture: below it the bright pixels are lumina or dust, not glass."""


def glass_colour(thumbnail: NDArray[np.uint8]) -> tuple[float, float, float] | None:
    """Colour of the empty glass: the commonest among bright pixels that are not stained.

    Pure white is counted only if there is nothing else, since readers fill areas that were not
    scanned with it.

    Args:
        thumbnail: uint8 [h, w, 3].

    Returns:
        Red, green, blue (0-255), or None if the picture shows no glass.
    """
    low, high = extremes(thumbnail)
    green = thumbnail[..., 1].astype(np.int16)
    stained = np.minimum(thumbnail[..., 0], thumbnail[..., 2]) - green > STAIN_TINT
    bright = thumbnail[(low > GLASS_LEVEL) & (high - low < GLASS_TINT) & ~stained]
    if len(bright) < max(1.0, MIN_GLASS * low.size):
        return None
    level = bright.sum(axis=1, dtype=np.int32) // 3
    counts = np.bincount(level, minlength=256).astype(np.float64)
    scanned = counts.copy()
    scanned[255] = 0
    if scanned.sum() >= 0.1 * counts.sum():
        counts = scanned
    commonest = int(np.argmax(ndimage.uniform_filter1d(counts, 5, mode="constant")))
    red, green, blue = np.median(bright[np.abs(level - commonest) <= 4], axis=0).tolist()
    return red, green, blue


def extremes(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Lowest and highest channel of each pixel, uint8 [...] each; 10 x as fast as
    `min(axis=-1)`."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)


def absorbance(
    pixels: NDArray[np.uint8], glass: tuple[float, float, float] | None
) -> NDArray[np.float32]:
    """Natural-log absorbance (Beer-Lambert) relative to the glass, at least 0.

    Args:
        pixels: uint8 [..., 3].
        glass: colour of the glass; None for `USUAL_GLASS`.

    Returns:
        float32 [3, ...]: red, green, blue.
    """
    levels = np.maximum(np.arange(256), 1)
    tables = [
        np.maximum(-np.log(levels / channel), 0).astype(np.float32)
        for channel in glass or USUAL_GLASS
    ]
    return np.stack([table[pixels[..., k]] for k, table in enumerate(tables)])
