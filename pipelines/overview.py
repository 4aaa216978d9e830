"""One picture per slide: thumbnail, tissue mask and patch grid, to be looked at before anything is trained on it."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries

OUTLINE = (0, 150, 60)
PATCH = (20, 60, 230, 255)
BARS_UM = (5000.0, 2000.0, 1000.0, 500.0, 200.0, 100.0, 50.0)
"""Lengths that a scale bar may have, micrometres."""


def overview_picture(thumbnail: NDArray[np.uint8], tissue: NDArray[np.bool_], boxes: NDArray[np.float64], *, mpp: float) -> bytes:
    """Draw the picture.

    Args:
        thumbnail: uint8 [h, w, 3].
        tissue: bool [h, w], outlined in green.
        boxes: patches as left, top, right, bottom in thumbnail pixels, float64 [N, 4], drawn in blue.
        mpp: micrometres per pixel of the thumbnail, for the scale bar.

    Returns:
        PNG bytes.
    """
    pixels = thumbnail.copy()
    pixels[find_boundaries(tissue, mode="inner")] = OUTLINE
    picture = Image.fromarray(pixels).convert("RGBA")
    layer = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    for left, top, right, bottom in boxes.tolist():
        draw.rectangle((left, top, right, bottom), outline=PATCH)
    bar = next((um for um in BARS_UM if um / mpp <= picture.width * 0.4), BARS_UM[-1])
    y = picture.height - 12
    draw.line((10, y, 10 + bar / mpp, y), fill=(0, 0, 0, 255), width=3)
    draw.text((12, y - 14), f"{bar:g} um", fill=(0, 0, 0, 255))
    sink = io.BytesIO()
    Image.alpha_composite(picture, layer).convert("RGB").save(sink, "PNG")
    return sink.getvalue()
