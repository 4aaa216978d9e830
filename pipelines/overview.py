"""One picture per slide: thumbnail, tissue mask, artefacts and patch grid, to be looked at before
anything is trained on it."""

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
VOID = (165, 70, 190)
COVER = 0.65
"""How much of an artefact's colour covers the thumbnail: what is below stays visible."""
BARS_UM = (5000.0, 2000.0, 1000.0, 500.0, 200.0, 100.0, 50.0)
"""Lengths that a scale bar may have, micrometres."""

Colour = tuple[int, int, int]


def overview_picture(
    thumbnail: NDArray[np.uint8],
    tissue: NDArray[np.bool_],
    boxes: NDArray[np.float64],
    found: Artefacts,
    *,
    mpp: float,
) -> bytes:
    """Draw the picture.

    Args:
        thumbnail: uint8 [h, w, 3].
        tissue: bool [h, w], outlined in green.
        boxes: patches as left, top, right, bottom in thumbnail pixels, float64 [N, 4], in blue.
        found: artefacts, in orange (ink), cyan (coverslip edge), yellow (bubble); and purple (not
            scanned); the legend names those that occur.
        mpp: micrometres per pixel of the thumbnail, for the scale bar.

    Returns:
        PNG bytes: the thumbnail with a legend below it.
    """
    shown = {
        "pen": (found.pen | found.faint, PEN),
        "coverslip edge": (found.edge, EDGE),
        "bubble": (found.bubble, BUBBLE),
        "not scanned": (found.void, VOID),
    }
    shown = {name: (mask, colour) for name, (mask, colour) in shown.items() if mask.any()}
    pixels = thumbnail.copy()
    for mask, colour in shown.values():
        pixels[mask] = np.rint((1 - COVER) * pixels[mask] + COVER * np.array(colour))
    pixels[find_boundaries(tissue, mode="inner")] = TISSUE
    drawing = Image.fromarray(pixels)
    draw = ImageDraw.Draw(drawing)
    for left, top, right, bottom in boxes.tolist():
        draw.rectangle((left, top, right, bottom), outline=PATCH)
    legend = _legend(
        {"tissue": TISSUE, "patch": PATCH} | {name: colour for name, (_, colour) in shown.items()},
        drawing,
        mpp=mpp,
    )
    picture = Image.new("RGB", (drawing.width, drawing.height + legend.height), (255, 255, 255))
    picture.paste(drawing, (0, 0))
    picture.paste(legend, (0, drawing.height))
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    return sink.getvalue()


def _legend(colours: dict[str, Colour], drawing: Image.Image, *, mpp: float) -> Image.Image:
    """A strip with the scale bar and the names of the colours, wrapped to the drawing's width."""
    size = max(11, drawing.width // 70)
    font = ImageFont.load_default(size)
    bar = next((um for um in BARS_UM if um / mpp <= drawing.width * 0.3), BARS_UM[-1])
    strip = Image.new("RGB", (drawing.width, 3 * (size + 8)), (255, 255, 255))
    draw = ImageDraw.Draw(strip)
    draw.line((6, 8 + size // 2, 6 + bar / mpp, 8 + size // 2), fill=(0, 0, 0), width=3)
    x, y = 12 + bar / mpp, 4
    for name, colour in ((f"{bar:g} um", None), *colours.items()):
        width = draw.textlength(name, font=font) + size * (2 if colour else 1)
        if x + width > drawing.width:
            x, y = 6, y + size + 8
        if colour:
            draw.rectangle((x, y + 2, x + size - 2, y + size), fill=colour)
        draw.text((x + (size + 4 if colour else 0), y), name, fill=(0, 0, 0), font=font)
        x += width + size / 2
    return strip.crop((0, 0, strip.width, y + size + 8))
