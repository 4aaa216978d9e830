"""What an encoder must beat: colours and local binary patterns, measured without any learning."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2gray, rgb2hed
from skimage.feature import local_binary_pattern

COLOUR_AND_TEXTURE: Final = "colour + LBP, forest"
_RADII: Final = ((8, 1), (16, 2))
"""Points and radius in pixels of each local binary pattern."""


def colour_and_texture(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Features of patches uint8 [N, H, W, 3]: float32 [N, 58].

    Mean, spread and quartiles of red, green, blue and of haematoxylin, eosin and residual (Ruifrok
    and Johnston 2001), then histograms of uniform, rotation-invariant local binary patterns of
    two radii (Ojala et al. 2002).
    """
    return np.stack([_features(patch) for patch in patches])


def _features(patch: NDArray[np.uint8]) -> NDArray[np.float32]:
    colours = np.concatenate([patch / 255.0, rgb2hed(patch)], axis=2).reshape(-1, 6)
    quartiles = np.quantile(colours, (0.25, 0.5, 0.75), axis=0)
    parts = [colours.mean(axis=0), colours.std(axis=0), quartiles.ravel()]
    grey = (255.0 * rgb2gray(patch)).astype(np.uint8)
    for points, radius in _RADII:
        codes = local_binary_pattern(grey, points, radius, method="uniform").astype(int)
        parts.append(np.bincount(codes.ravel(), minlength=points + 2) / codes.size)
    return np.concatenate(parts).astype(np.float32)
