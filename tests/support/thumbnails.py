"""Drawn thumbnails of biopsy slides with the truth: for artefacts of which no real slide with a
mask is available.

Cores are strips of generated tissue (`pipelines.synthetic.tissue`) averaged to the thumbnail's
scale, on glass with scan noise and JPEG compression. Ink, coverslip edges and bubbles multiply what
is below, as absorbing things do.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from pipelines.synthetic.tissue import MPP, generate_tile

SIDE, TILE = 1000, 24
"""Pixels of a thumbnail, and of a tile of tissue in it."""
THUMBNAIL_MPP = 20.0
INK = {
    "black": (0.06, 0.06, 0.05),
    "blue": (0.10, 0.25, 0.75),
    "green": (0.12, 0.70, 0.50),
    "red": (0.85, 0.10, 0.20),
}
"""Share of red, green and blue light that passes."""


@dataclass(kw_only=True)
class Drawn:
    """A thumbnail that is being drawn.

    Attributes:
        light: share of the light that passes, float64 [h, w, 3].
        tissue: truth, bool [h, w].
        artefacts: truth by name.
    """

    light: NDArray[np.float64]
    tissue: NDArray[np.bool_]
    artefacts: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def absorb(
        self,
        name: str,
        mask: NDArray[np.bool_],
        light: tuple[float, float, float],
        *,
        soft: float = 1.0,
    ) -> None:
        """Put something on the slide whose rim is blurred by `soft` pixels."""
        cover = _blurred(mask, soft)[..., None]
        self.light *= 1 - cover + cover * np.array(light)
        self.artefacts[name] = self.artefacts.get(name, np.zeros_like(mask)) | mask

    def photograph(
        self, *, glass: tuple[float, float, float] = (243, 243, 243), noise: float = 1.5
    ) -> NDArray[np.uint8]:
        """What a scanner makes of it, uint8 [h, w, 3]."""
        rng = np.random.default_rng(11)
        seen = self.light * np.array(glass) + rng.normal(0, noise, self.light.shape)
        sink = io.BytesIO()
        Image.fromarray(np.clip(np.rint(seen), 0, 255).astype(np.uint8)).save(
            sink, "JPEG", quality=85
        )
        return np.asarray(Image.open(sink).convert("RGB"))


def cores(*, width_um: float, depth: float = 1.0, count: int = 3) -> Drawn:
    """A slide with thin curved cores.

    Args:
        width_um: of each core.
        depth: of the stain; 1 is that of the generated tissue.
        count: of cores.
    """
    light, texture = np.ones((SIDE, SIDE, 3)), _tissue() ** depth
    tissue = np.zeros((SIDE, SIDE), bool)
    columns = np.arange(SIDE)
    for k in range(count):
        middle = SIDE * (0.7 * (k + 0.5) / count + 0.05) + 25 * np.sin(columns / 130 + k)
        rows = np.arange(SIDE)[:, None]
        along = (columns > 90) & (columns < SIDE - 130)
        tissue |= (np.abs(rows - middle[None]) < width_um / THUMBNAIL_MPP / 2) & along
    light[tissue] = texture[tissue]
    return Drawn(light=light, tissue=tissue)


def line(points: list[tuple[int, int]], width: int) -> NDArray[np.bool_]:
    """Mask of a polyline."""
    image = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(image).line(points, fill=255, width=width, joint="curve")
    return np.asarray(image) > 0


def disc(x: int, y: int, radius: int) -> NDArray[np.bool_]:
    """Mask of a disc."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 <= radius**2)


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union; 1 where both are empty."""
    union = int((one | other).sum())
    return float((one & other).sum() / union) if union else 1.0


@lru_cache(maxsize=1)
def _tissue() -> NDArray[np.float64]:
    """Tissue all over, as light that passes."""
    rng = np.random.default_rng(7)
    # A third of the scale: nuclei then still average out, and it is 9 times as fast.
    side = round(TILE * THUMBNAIL_MPP / MPP / 3)
    tiles = [
        generate_tile(name, rng, side=side)
        for name in ("benign", "gleason_3", "gleason_4", "gleason_5")
    ]
    small = [
        np.asarray(Image.fromarray(tile).resize((TILE, TILE), Image.Resampling.BOX))
        for tile in tiles
    ]
    times = -(-SIDE // TILE)
    chosen = rng.integers(0, 4, (times, times))
    rows = [
        np.concatenate([np.rot90(small[k], int(rng.integers(4))) for k in row], axis=1)
        for row in chosen
    ]
    return np.concatenate(rows)[:SIDE, :SIDE] / 243.0


def _blurred(mask: NDArray[np.bool_], soft: float) -> NDArray[np.float64]:
    return (
        np.asarray(
            Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).filter(
                ImageFilter.GaussianBlur(soft)
            )
        )
        / 255.0
    )
