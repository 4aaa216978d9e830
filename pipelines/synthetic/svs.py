"""Write a slide: a tiled, pyramidal Aperio-style SVS with thumbnail, label and macro image, as
scanners make it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageDraw

QUALITY = 85
SHRINK = 4
"""Each level is a quarter as wide as the one before, as in Aperio's files."""


@dataclass(frozen=True, kw_only=True)
class SvsMetadata:
    """What goes into the file's headers.

    Attributes:
        mpp: micrometres per pixel of level 0; None writes none.
        fields: further `key = value` pairs of the description, such as a file name or a date.
        label: text on the glass label, drawn into the label image.
        tile: side of a tile in pixels, a multiple of 16.
    """

    mpp: float | None
    fields: tuple[tuple[str, str], ...] = ()
    label: str = "synthetic"
    tile: int = 256


def write_svs(path: Path, pixels: NDArray[np.uint8], metadata: SvsMetadata) -> None:
    """Write level 0, thumbnail, smaller levels, label and macro.

    Args:
        path: where to; its folder must exist.
        pixels: level 0, uint8 [H, W, 3].
        metadata: headers.
    """
    levels = [pixels]
    while max(levels[-1].shape[:2]) > 1500:
        levels.append(_shrink(levels[-1], SHRINK))
    thumbnail = np.asarray(
        Image.fromarray(levels[-1]).resize(_fit(levels[-1], 768), Image.Resampling.BOX)
    )
    with tifffile.TiffWriter(path, bigtiff=pixels.nbytes > 2**32) as tiff:
        for k, level in enumerate(levels):
            tiff.write(
                level, description=_description(pixels, level, metadata), **_tiled(metadata.tile)
            )
            if k == 0:
                tiff.write(
                    thumbnail, description=_description(pixels, thumbnail, metadata), **_STRIPS
                )
        name = "Aperio Image Library v12.0.0\r\n{} {}x{}"
        label, macro = _label(metadata.label), _macro(thumbnail, metadata.label)
        tiff.write(
            label, description=name.format("label", *label.shape[1::-1]), subfiletype=1, **_STRIPS
        )
        tiff.write(
            macro, description=name.format("macro", *macro.shape[1::-1]), subfiletype=9, **_STRIPS
        )


_STRIPS = {
    "photometric": "rgb",
    "compression": "jpeg",
    "compressionargs": {"level": QUALITY},
    "rowsperstrip": 10_000,
    "metadata": None,
}


def _tiled(tile: int) -> dict[str, object]:
    return {
        "photometric": "rgb",
        "subsampling": (2, 2),
        "compression": "jpeg",
        "compressionargs": {"level": QUALITY},
        "tile": (tile, tile),
        "metadata": None,
        "maxworkers": 2,
    }


def _description(full: NDArray[np.uint8], level: NDArray[np.uint8], metadata: SvsMetadata) -> str:
    size = "{1}x{0}".format(*full.shape[:2])
    tile = f"{metadata.tile}x{metadata.tile}"
    text = f"Aperio Image Library v12.0.0\r\n{size} ({tile}) JPEG/YCC Q={QUALITY}"
    if level is not full:
        text += " -> {1}x{0}".format(*level.shape[:2])
    fields = (
        [("AppMag", "40")]
        + ([("MPP", f"{metadata.mpp:.4f}")] if metadata.mpp is not None else [])
        + list(metadata.fields)
    )
    return "|".join([text, *(f"{key} = {value}" for key, value in fields)])


def _shrink(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).reduce(factor))


def _fit(pixels: NDArray[np.uint8], side: int) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _label(text: str) -> NDArray[np.uint8]:
    image = Image.new("RGB", (384, 464), (250, 250, 240))
    ImageDraw.Draw(image).text((20, 40), text, fill=(0, 0, 0), font_size=28)
    return np.asarray(image)


def _macro(thumbnail: NDArray[np.uint8], label: str) -> NDArray[np.uint8]:
    """The whole glass as the scanner photographs it: label at the left, specimen at the right."""
    image = Image.new("RGB", (1280, 432), (240, 240, 240))
    image.paste(Image.fromarray(_label(label)).resize((358, 432)), (0, 0))
    specimen = Image.fromarray(thumbnail)
    specimen.thumbnail((900, 420))
    image.paste(specimen, (370, 6))
    return np.asarray(image)
