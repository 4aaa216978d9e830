"""One picture per slide: thumbnail, tissue mask, artefacts and patch grid, to be looked at before anything is trained on it."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage.segmentation import find_boundaries

from pipelines.quality import Artefacts

TISSUE = (0, 150, 60)
PATCH = (20, 60, 230)
PEN = (255, 130, 0)
EDGE = (0, 175, 200)
BUBBLE = (235, 200, 0)
COVER = 0.65
"""How much of an artefact's colour covers the thumbnail: what lies below stays visible."""
BARS_UM = (5000.0, 2000.0, 1000.0, 500.0, 200.0, 100.0, 50.0)
"""Lengths that a scale bar may have, micrometres."""

Colour = tuple[int, int, int]


def overview_picture(
    thumbnail: NDArray[np.uint8], tissue: NDArray[np.bool_], boxes: NDArray[np.float64], found: Artefacts, *, mpp: float
) -> bytes:
    """Draw the picture.

    Args:
        thumbnail: uint8 [h, w, 3].
        tissue: bool [h, w], outlined in green.
        boxes: patches as left, top, right, bottom in thumbnail pixels, float64 [N, 4], drawn in blue.
        found: artefacts, in orange (ink), cyan (coverslip edge) and yellow (bubble); the legend names those that are there.
        mpp: micrometres per pixel of the thumbnail, for the scale bar.

    Returns:
        PNG bytes.
    """
    shown = {"pen": (found.pen | found.faint, PEN), "coverslip edge": (found.edge, EDGE), "bubble": (found.bubble, BUBBLE)}
    shown = {name: (mask, colour) for name, (mask, colour) in shown.items() if mask.any()}
    pixels = thumbnail.copy()
    for mask, colour in shown.values():
        pixels[mask] = np.rint((1 - COVER) * pixels[mask] + COVER * np.array(colour))
    pixels[find_boundaries(tissue, mode="inner")] = TISSUE
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for left, top, right, bottom in boxes.tolist():
        draw.rectangle((left, top, right, bottom), outline=PATCH)
    legend = {"tissue": TISSUE, "patch": PATCH} | {name: colour for name, (_, colour) in shown.items()}
    _draw_legend(draw, legend, picture, mpp=mpp)
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    return sink.getvalue()


def _draw_legend(draw: ImageDraw.ImageDraw, legend: dict[str, Colour], picture: Image.Image, *, mpp: float) -> None:
    """Scale bar and names of the colours, at the bottom left, on white."""
    size = max(11, min(picture.size) // 60)
    font = ImageFont.load_default(size)
    bar = next((um for um in BARS_UM if um / mpp <= picture.width * 0.3), BARS_UM[-1])
    named = [*legend.items(), (f"{bar:g} um", (0, 0, 0))]
    line = size + 4
    width = max(bar / mpp, size + 6 + max(draw.textlength(name, font=font) for name, _ in named)) + 12
    top = picture.height - len(named) * line - 14
    draw.rectangle((0, top, width, picture.height), fill=(255, 255, 255))
    for row, (name, colour) in enumerate(named):
        y = top + 4 + row * line
        if name in legend:
            draw.rectangle((6, y + 2, 4 + size, y + size), fill=colour)
        draw.text((size + 10 if name in legend else 6, y), name, fill=(0, 0, 0), font=font)
    draw.line((6, picture.height - 5, 6 + bar / mpp, picture.height - 5), fill=(0, 0, 0), width=3)
