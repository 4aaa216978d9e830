"""Where tissue lies on a slide: a mask over the thumbnail.

Otsu's threshold (Otsu 1979) on the colour saturation of the median-filtered thumbnail, the usual choice for H&E (as in CLAM and
HistoQC), with a floor so that a blank slide has no tissue instead of noise. Knows no patch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import rgb2hsv
from skimage.filters import threshold_otsu
from skimage.morphology import remove_small_objects

from pipelines.slides.errors import NoTissue

MIN_SATURATION = 0.06
"""Glass and paper reach 0.04 on the scans at hand; pale stroma starts near 0.08."""
DARK_BACKGROUND = 60
"""Median brightness (0-255) below which the background can't be glass: brightfield glass is above 180."""
MIN_PIECE_UM = 60.0
"""Pieces with less area than a square of this side are dust: a biopsy core is about 1000 um wide."""


def tissue_mask(slide: str, thumbnail: NDArray[np.uint8], *, mpp: float) -> NDArray[np.bool_]:
    """Mask of tissue.

    Args:
        slide: name or identity for errors.
        thumbnail: uint8 [h, w, 3].
        mpp: micrometres per pixel of the thumbnail.

    Returns:
        bool [h, w].

    Raises:
        NoTissue: a dark background, as in fluorescence, or nothing that is stained.
    """
    brightness = thumbnail.mean(axis=2)
    if np.median(brightness) < DARK_BACKGROUND:
        raise NoTissue(
            slide, "has a dark background as in fluorescence, not the bright one of H&E", "give a brightfield H&E slide"
        )
    saturation = ndimage.median_filter(rgb2hsv(thumbnail)[..., 1], size=5)
    saturation[brightness < 30] = 0.0  # black scan borders have arbitrary hue
    threshold = max(MIN_SATURATION, min(float(threshold_otsu(saturation)), 0.25))
    mask = ndimage.binary_closing(saturation > threshold, iterations=2)
    mask = remove_small_objects(mask, max_size=max(1, round((MIN_PIECE_UM / mpp) ** 2)))
    if not mask.any():
        raise NoTissue(slide, "shows no stained tissue", "check that the right slide was scanned and in focus")
    return ndimage.binary_fill_holes(mask) & (saturation > MIN_SATURATION / 2)
