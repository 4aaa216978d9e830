"""Where on the slide which pattern was seen: a raster of probabilities, and a picture of it.

The picture carries its own legend and scale bar, so that it can be read wherever it is pasted.
Colours rise in order (blue for benign, then yellow, orange, dark red) and stay apart for the three
kinds of colour blindness (tested). Certainty shows as opacity. This module knows pixels and
probabilities and no model.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pipelines.annotations import PATTERNS

COLOURS: Final = ((43, 108, 176), (250, 220, 60), (236, 122, 8), (130, 10, 30))
"""sRGB of PATTERNS, in their order."""
LABELS: Final = ("Benign", "Gleason 3", "Gleason 4", "Gleason 5")
OPACITY: Final = ((0.10, 0.40), (0.40, 0.85), (0.40, 0.85), (0.40, 0.85))
"""Opacity of each pattern, barely the most probable and certain: benign recedes."""
LEGEND_SHARE: Final = 0.75
"""Minimum width of the legend as a share of the height: it stays readable on tall slides."""
FONTS: Final = Path(__file__).parent / "fonts"

Raster = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


def pattern_raster(
    x: npt.NDArray[np.integer],
    y: npt.NDArray[np.integer],
    probabilities: npt.NDArray[np.floating],
    *,
    side: float,
    scale: float,
    shape: tuple[int, int],
) -> Raster:
    """Probabilities of PATTERNS on a grid over the whole slide.

    Args:
        x: left edges of the patches in level-0 pixels, [N].
        y: top edges, [N].
        probabilities: [N, 4].
        side: side of a patch in level-0 pixels.
        scale: raster pixels per level-0 pixel.
        shape: height and width of the raster, usually the thumbnail's.

    Returns:
        float32 [h, w, 4]; the mean where patches overlap, NaN where there is none.
    """
    total = np.zeros((*shape, len(PATTERNS)), np.float32)
    count = np.zeros(shape, np.float32)
    left, top = np.rint(x * scale).astype(int), np.rint(y * scale).astype(int)
    right = np.maximum(np.rint((x + side) * scale).astype(int), left + 1)
    bottom = np.maximum(np.rint((y + side) * scale).astype(int), top + 1)
    for index, row in enumerate(probabilities):
        window = slice(top[index], bottom[index]), slice(left[index], right[index])
        total[window] += row
        count[window] += 1
    with np.errstate(invalid="ignore"):
        return np.asarray(total / np.where(count > 0, count, np.nan)[..., None], np.float32)


def overlay(thumbnail: Pixels, raster: Raster) -> Pixels:
    """The thumbnail with the most probable pattern placed over it, uint8 [h, w, 3]."""
    grey = thumbnail.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    base = 0.75 * grey[..., None] + 0.25 * thumbnail
    base = 255 - (255 - base) * 0.9
    seen = ~np.isnan(raster[..., 0])
    known = np.where(seen[..., None], raster, 0)
    pattern = known.argmax(axis=-1)
    certainty = np.clip((known.max(axis=-1) - 0.25) / 0.75, 0, 1)
    low, high = np.array(OPACITY, np.float32).T
    opacity = np.where(seen, low[pattern] + (high - low)[pattern] * certainty, 0)[..., None]
    return np.asarray(
        np.rint(base * (1 - opacity) + np.array(COLOURS, np.float32)[pattern] * opacity), np.uint8
    )


def scale_bar(width_um: float) -> float:
    """Length of the scale bar in micrometres.

    It is the largest of 1, 2, 5 x 10^k that is at most a fourth of the picture's width.
    """
    limit = width_um / 4
    power = 10.0 ** np.floor(np.log10(limit))
    return float(max(step * power for step in (1, 2, 5) if step * power <= limit))


def heatmap_png(thumbnail: Pixels, raster: Raster, *, mpp: float, min_width: int = 1000) -> bytes:
    """The finished picture: overlay, legend and scale bar.

    Args:
        thumbnail: uint8 [h, w, 3].
        raster: of the same height and width, from `pattern_raster`.
        mpp: micrometres per thumbnail pixel.
        min_width: thumbnails whose picture would be narrower are enlarged, so that the legend can
            be read.
    """
    picture = Image.fromarray(overlay(thumbnail, raster))
    zoom = max(1.0, min_width / max(picture.width, LEGEND_SHARE * picture.height))
    size = (max(1, round(picture.width * zoom)), max(1, round(picture.height * zoom)))
    picture, mpp = picture.resize(size, Image.Resampling.NEAREST), mpp / zoom
    unit = max(picture.width, LEGEND_SHARE * picture.height) / 1000
    canvas = Image.new("RGB", (round(1000 * unit), picture.height + round(64 * unit)), "white")
    canvas.paste(picture, ((canvas.width - picture.width) // 2, 0))
    _legend(canvas, picture.height, unit, mpp)
    stream = io.BytesIO()
    canvas.save(stream, "PNG")
    return stream.getvalue()


def _legend(canvas: Image.Image, top: int, unit: float, mpp: float) -> None:
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.truetype(str(FONTS / "Inter-Regular.otf"), round(19 * unit))
    ink, middle = (30, 41, 59), top + round(34 * unit)
    x = 4 * unit
    for colour, label in zip(COLOURS, LABELS, strict=True):
        box = (x, middle - 10 * unit, x + 20 * unit, middle + 10 * unit)
        draw.rounded_rectangle(box, radius=4 * unit, fill=colour)
        draw.text((x + 28 * unit, middle), label, font=font, fill=ink, anchor="lm")
        x += (28 + 24) * unit + draw.textlength(label, font=font)
    draw.text((x, middle), "Stronger = more certain", font=font, fill=(100, 116, 139), anchor="lm")
    length_um = scale_bar(canvas.width * mpp)
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    right, left = canvas.width - 4 * unit, canvas.width - 4 * unit - length_um / mpp
    draw.rectangle((left, middle + 8 * unit, right, middle + 12 * unit), fill=ink)
    draw.text(((left + right) / 2, middle + 2 * unit), text, font=font, fill=ink, anchor="mb")
