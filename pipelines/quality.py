"""What spoils a slide: pen, coverslip edges, air bubbles and voids on the thumbnail; blurred, blank
and burnt-out patches.

    artefacts(thumbnail, mpp=)     masks, from the colour and the shape of what is absorbed
    patch_quality(patches)         focus, blank, saturated and ink of full-resolution patches
    assess(...)                    both as shares of the tissue, with a verdict in plain sentences

H&E absorbs green most, then blue, red least (haematoxylin 0.65 : 0.70 : 0.29, eosin 0.07 : 0.99 :
0.11 in red : green : blue, Ruifrok and Johnston 2001). What absorbs otherwise is not H&E: green and
blue ink take red away most, red ink takes blue away as much as green, and black ink, coverslip
edges and the rims of bubbles are grey. HistoQC (Janowczyk 2019) and GrandQC (Weng 2024) learn such
masks from examples; there are too few here to learn from, so these are rules. `python -m
tests.benchmarks.quality` says how well they find what people drew. Knows no lattice and no model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label, regionprops

from pipelines.glass import absorbance, extremes, glass_colour
from pipelines.void import black_areas, larger_pieces

Mask = NDArray[np.bool_]

# Colour of ink, as absorbance. Real H&E averaged to 20-30 um a pixel stays below: red minus green
# 0.03, red's share of the sum 0.39 (99.9th percentiles), blue / green 0.76 (99th percentile) on the
# scans at hand.
COOL = (0.08, 0.38, 0.25)
"""Green and blue ink: minimum of red - green, of red's share of the sum, and of the sum."""
COOL_CORE = 0.20
"""Some of a stroke of cool ink is as strong as this (red over green); its faint rims are not."""
WARM = (0.62, 0.30, 0.8)
"""Red ink: blue / green above this, red / green below this, sum of the channels above this."""
WARM_CORE = (0.66, 0.25, 1.5)
"""The same for a stroke's core: eosinophilic muscle reaches the rim's values, not these."""
GREY = (0.88, 0.75, 1.3, 1.5)
"""Grey: blue / green at least the first, red / green between the second and third, blue / green at
most the last."""
DARK = 0.6
"""Sum of the channels' absorbance from which grey is a mark: 80 % of the glass's brightness."""
DARK_CORE = 1.5
"""A coverslip edge is as dark as this somewhere (60 % of the glass); smears are not."""
BLACK_CORE = 1.2
"""Black ink is at least as dark as this over its whole width."""
FAINT, FAINT_SHARE = (0.60, 0.30, 0.15), 0.8
"""On a slide with strokes of red ink, pieces with this share of this colour (as `WARM`) are faint
strokes, not eosin."""

# Shapes, micrometres.
STROKE_UM = 200.0
"""Side of a square with the minimum area of a stroke's core: markers draw 500 to 2000 um."""
BLACK_WIDTH_UM = 600.0
"""A grey mark wider than this is ink, a thinner one an edge: edges of coverslips and cracks stay
below 500 um."""
EDGE_LENGTH_UM = 2500.0
"""Minimum length of a coverslip edge: hairs and dust are shorter."""
BUBBLE_UM = 500.0
"""Minimum diameter of a bubble: smaller ones have the size of a gland's lumen."""
ROUND = 0.9
"""Minimum share that a bubble fills of its convex hull, and of an ellipse of its moments."""
FRINGE = 2.0
"""Pixels round an artefact whose colour JPEG's coarser colour channels mix with it."""

BLOCK = 8
"""Side in pixels of the squares that a patch's colours are averaged over: 4 um at 0.5 um a pixel,
about a nucleus."""
BLANK = 0.12
"""Sum of the channels' absorbance below which a block is glass: pale stroma starts near 0.18."""
BURNT = 254
"""Lowest channel of a burnt-out pixel."""
MIN_FOCUS = 0.1
"""Minimum focus of a sharp patch (see `patch_quality`): of 211 patches of H&E at 0.5 um a pixel
that are not blank, sharp ones have a median of 1.0 and a 1st percentile near 0.2; blurred by a
Gaussian of 1.5 px, the 99th percentile is 0.1."""
FLAT = 10.0
"""Variance of luminance (grey levels squared) that noise alone has: keeps the focus of an empty
patch near 0."""

COARSE = 4
"""Step of the rows and columns on which hidden tissue is estimated: 0.1 mm, less than a stroke."""
LIMITED, POOR = 0.10, 0.50
"""Shares of the tissue from which a slide's use is limited, and from which it is poor."""
MISSING_UM = 500.0
"""Distance from scanned tissue up to which a void hides tissue: half the width of a wide core."""
MIN_TISSUE_MM2 = 0.5
"""Tissue below this is a fragment: a biopsy core of 10 mm has 5 to 10 mm2."""


@dataclass(frozen=True, kw_only=True)
class Artefacts:
    """Masks over the thumbnail, bool [h, w] each, and the glass they are seen against.

    Attributes:
        glass: colour of the empty glass (0-255), None if the picture shows none.
        pen: strokes of ink of any colour.
        faint: faint strokes of red ink next to the tissue, which would pass for eosin.
        edge: edges of the coverslip, cracks, the slide's own edge.
        bubble: air bubbles with what is below them.
        void: not scanned; see `pipelines.void`.
    """

    glass: tuple[float, float, float] | None
    pen: Mask
    faint: Mask
    edge: Mask
    bubble: Mask
    void: Mask

    @property
    def mask(self) -> Mask:
        """All of them: no tissue is looked for here."""
        return self.pen | self.faint | self.edge | self.bubble | self.void

    def within(self, distance: float) -> Mask:
        """Pixels not farther than this many pixels from any of them."""
        return _within(self.mask, distance)


@dataclass(frozen=True, kw_only=True)
class PatchQuality:
    """Measures of N patches, float32 [N] each.

    Attributes:
        focus: variance of the Laplacian over the variance, of luminance (see `patch_quality`).
        blank: share of the area that is glass.
        saturated: share of the pixels that are burnt out.
        pen: share of the area with the colour of ink.
    """

    focus: NDArray[np.float32]
    blank: NDArray[np.float32]
    saturated: NDArray[np.float32]
    pen: NDArray[np.float32]

    @property
    def blurred(self) -> Mask:
        """Patches out of focus; one that is mostly blank has nothing to be sharp."""
        return (self.focus < MIN_FOCUS) & (self.blank < 0.5)


@dataclass(frozen=True, kw_only=True)
class SlideQuality:
    """Quality of one slide.

    Attributes:
        tissue_mm2: tissue free of artefacts, square millimetres.
        pen, edge, bubble: share of the tissue that each hides, 0 to 1.
        missing: share of the tissue that was not scanned, judged by the tissue around it.
        void: share of the picture that was not scanned.
        blurred, blank, saturated: share of the sampled patches out of focus, mostly glass, more
            than a tenth burnt out; 0 where no patch was sampled.
        verdict: `good`, `limited` or `poor`.
        sentences: why, in plain words; empty if all is well.
    """

    tissue_mm2: float
    pen: float
    edge: float
    bubble: float
    missing: float
    void: float
    blurred: float
    blank: float
    saturated: float
    verdict: str
    sentences: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**{**values, "sentences": tuple(values["sentences"])})


def artefacts(thumbnail: NDArray[np.uint8], *, mpp: float) -> Artefacts:
    """Find what is not tissue and hides tissue: 0.4 s for a thumbnail of 3 megapixels, more if
    there is black ink.

    Blur is not among them: at a thumbnail's 10 to 30 um a pixel a slide out of focus looks like a
    sharp one; `patch_quality` sees the difference.

    Args:
        thumbnail: uint8 [h, w, 3].
        mpp: micrometres per pixel of the thumbnail.
    """
    glass = glass_colour(thumbnail)
    void = black_areas(thumbnail, mpp=mpp)
    colours = absorbance(thumbnail, glass)
    total = colours.sum(axis=0)
    grey = _grey(colours) & ~void
    black = _wider(grey & (total > BLACK_CORE), BLACK_WIDTH_UM / mpp)
    black |= _grown(black, grey & (total > DARK) & _within(black, STROKE_UM / mpp))
    cool, warm, faint = _coloured_ink(colours, total, mpp=mpp)
    pen = cool | warm | black
    edge, bubble = _lines(grey & (total > DARK) & ~pen, total, mpp=mpp)
    return Artefacts(glass=glass, pen=pen, faint=faint & ~pen, edge=edge, bubble=bubble, void=void)


def patch_quality(
    patches: NDArray[np.uint8], *, glass: tuple[float, float, float] | None = None
) -> PatchQuality:
    """Measure patches at full resolution: 0.5 ms for one of 224 px.

    Focus is the variance of the Laplacian of luminance (Pech-Pacheco 2000), divided by the variance
    of luminance: the quotient does not depend on how deeply a slide is stained. Without the
    division, deep and pale patches (35 % of the contrast) that are sharp can't be distinguished
    from ones blurred by a Gaussian of 0.7 px: area under the curve 0.51 against 0.90.

    Args:
        patches: uint8 [N, H, W, 3], sides of at least 16 pixels.
        glass: colour of the slide's glass.
    """
    count = len(patches)
    found = PatchQuality(
        **{name: np.zeros(count, np.float32) for name in ("focus", "blank", "saturated", "pen")}
    )
    # One at a time: the intermediates stay in the processor's cache.
    for k, patch in enumerate(patches):
        found.focus[k] = _focus(patch)
        found.saturated[k] = (extremes(patch[::2, ::2])[0] >= BURNT).mean()
        colours = absorbance(_block_means(patch), glass)
        total = colours.sum(axis=0)
        found.blank[k] = (total < BLANK).mean()
        cool, warm = _cool(colours, total, COOL_CORE), _warm(colours, total, WARM_CORE)
        found.pen[k] = (cool | warm | (_grey(colours) & (total > 2 * DARK_CORE))).mean()
    return found


def assess(tissue: Mask, found: Artefacts, patches: PatchQuality, *, mpp: float) -> SlideQuality:
    """Judge a slide.

    Args:
        tissue: mask without artefacts, bool [h, w].
        found: masks of the same shape.
        patches: measures of patches spread over the tissue.
        mpp: micrometres per pixel of the masks.
    """
    whole = _with_hidden(tissue, found)
    area_of_all = max(1, int(whole.sum()))
    hidden = {
        name: float((_coarse(getattr(found, name)) & whole).sum()) / area_of_all
        for name in ("pen", "edge", "bubble")
    }
    hidden["missing"] = float((_void_in_tissue(tissue, found, mpp=mpp) & whole).sum()) / area_of_all
    sampled = {
        "blurred": _share(patches.blurred),
        "blank": _share(patches.blank > 0.9),
        "saturated": _share(patches.saturated > 0.1),
    }
    area = float((tissue & ~found.mask).sum()) * (mpp / 1000) ** 2
    shares = {**hidden, **sampled}
    sentences = [
        _SENTENCES[name].format(share) for name, share in shares.items() if share >= LIMITED
    ]
    if area < MIN_TISSUE_MM2:
        sentences.append(f"There are only {area:.2f} square millimetres of tissue.")
    poor = max(shares.values()) >= POOR or sum(hidden.values()) >= POOR
    return SlideQuality(
        tissue_mm2=round(area, 4),
        void=round(float(found.void.mean()), 4),
        **{name: round(share, 4) for name, share in shares.items()},
        verdict="poor" if poor else "limited" if sentences else "good",
        sentences=tuple(sentences),
    )


_SENTENCES = {
    "pen": "Pen marks hide {:.0%} of the tissue.",
    "edge": "Edges of the coverslip hide {:.0%} of the tissue.",
    "bubble": "Air bubbles hide {:.0%} of the tissue.",
    "missing": "{:.0%} of the tissue was not scanned.",
    "blurred": "{:.0%} of the sampled patches are out of focus.",
    "blank": "{:.0%} of the sampled patches show hardly any tissue.",
    "saturated": "{:.0%} of the sampled patches are burnt out.",
}


def _coloured_ink(
    colours: NDArray[np.float32], total: NDArray[np.float32], *, mpp: float
) -> tuple[Mask, Mask, Mask]:
    """Strokes of green or blue, of red, and of faint red ink: cores that are large enough, with the
    fainter pixels on them."""
    min_area = (STROKE_UM / mpp) ** 2
    cool = _grown(
        larger_pieces(_cool(colours, total, COOL_CORE), min_area), _cool(colours, total, COOL[0])
    )
    warm = _grown(
        larger_pieces(_warm(colours, total, WARM_CORE), min_area), _warm(colours, total, WARM)
    )
    return cool, warm, _faint_strokes(colours, total, warm) if warm.any() else warm


def _faint_strokes(colours: NDArray[np.float32], total: NDArray[np.float32], strokes: Mask) -> Mask:
    """Pieces next to the strokes that have hardly any other colour."""
    pieces, count = ndimage.label((total > FAINT[2]) & ~strokes, np.ones((3, 3)))
    share = ndimage.mean(_warm(colours, total, FAINT), pieces, np.arange(count + 1))
    share[0] = 0.0
    return np.asarray((share > FAINT_SHARE)[pieces])


def _cool(colours: NDArray[np.float32], total: NDArray[np.float32], over_green: float) -> Mask:
    red, green, _ = colours
    return (red - green > over_green) & (red > COOL[1] * total) & (total > COOL[2])


def _warm(
    colours: NDArray[np.float32], total: NDArray[np.float32], limits: tuple[float, float, float]
) -> Mask:
    red, green, blue = colours
    return (blue > limits[0] * green) & (red < limits[1] * green) & (total > limits[2])


def _grey(colours: NDArray[np.float32]) -> Mask:
    red, green, blue = colours
    return (
        (blue >= GREY[0] * green)
        & (red >= GREY[1] * green)
        & (red <= GREY[2] * green)
        & (blue <= GREY[3] * green)
    )


def _lines(dark: Mask, total: NDArray[np.float32], *, mpp: float) -> tuple[Mask, Mask]:
    """Long thin dark marks, and round ones that enclose an area, filled: (edges, bubbles)."""
    edge, bubble = np.zeros_like(dark), np.zeros_like(dark)
    for region in regionprops(label(dark, connectivity=2), intensity_image=total):
        top, left, bottom, right = region.bbox
        if max(bottom - top, right - left) * mpp < BUBBLE_UM:
            continue
        window = (slice(top, bottom), slice(left, right))
        if _is_bubble(region, mpp=mpp):
            bubble[window] |= region.image_filled
            continue
        length = region.axis_major_length
        if (
            length * mpp > EDGE_LENGTH_UM
            and region.area / length * mpp < BLACK_WIDTH_UM
            and region.intensity_max > DARK_CORE
        ):
            edge[window] |= region.image
    return edge, bubble & ~edge


def _is_bubble(region: Any, *, mpp: float) -> bool:
    """Whether it is a closed rim round a disc that is mostly not dark itself."""
    filled = region.area_filled
    if (
        filled < 2 * region.area
        or min(np.ptp(region.bbox[0::2]), np.ptp(region.bbox[1::2])) * mpp < BUBBLE_UM
    ):
        return False
    disc = regionprops(np.pad(region.image_filled, 1).astype(np.uint8))[0]
    ellipse = np.pi / 4 * disc.axis_major_length * disc.axis_minor_length
    return bool(disc.solidity > ROUND and filled / ellipse > ROUND)


def _grown(seeds: Mask, candidates: Mask) -> Mask:
    """Pieces of the candidates that hold a seed, with the seeds."""
    if not seeds.any():
        return seeds
    pieces, count = ndimage.label(candidates | seeds, np.ones((3, 3)))
    kept = np.zeros(count + 1, bool)
    kept[pieces[seeds]] = True
    return kept[pieces]


def _wider(mask: Mask, width: float) -> Mask:
    """Opening with a disc of this diameter; the picture's border does not count as an end."""
    radius = width / 2
    # A square that fits into the disc: looking for it first is cheap, and most slides have none.
    square = max(1, int(radius * 2**0.5))
    if not ndimage.minimum_filter(mask, size=square, mode="nearest").any():
        return np.zeros_like(mask)
    margin = int(radius) + 1
    inner = (
        ndimage.distance_transform_edt(np.pad(mask, margin, mode="edge"))[
            margin:-margin, margin:-margin
        ]
        > radius
    )
    return mask & _within(inner, radius)


def _within(mask: Mask, distance: float) -> Mask:
    """Pixels not farther from the mask than this; empty if the mask is."""
    if not mask.any():
        return mask
    return np.asarray(ndimage.distance_transform_edt(~mask) <= distance)


def _coarse(mask: Mask) -> Mask:
    return mask[::COARSE, ::COARSE]


def _void_in_tissue(tissue: Mask, found: Artefacts, *, mpp: float) -> Mask:
    """Void near scanned tissue, coarse. Beyond that nobody knows what was not scanned."""
    if not found.void.any():
        return _coarse(found.void)
    near = ndimage.distance_transform_edt(~_coarse(tissue)) * COARSE * mpp <= MISSING_UM
    return np.asarray(near & _coarse(found.void))


def _with_hidden(tissue: Mask, found: Artefacts) -> Mask:
    """Tissue and what artefacts hide of it, coarse: below an artefact is what is nearest to it."""
    near = _coarse(found.within(FRINGE + 1))
    if not near.any() or near.all():
        return _coarse(tissue)
    nearest = ndimage.distance_transform_edt(near, return_distances=False, return_indices=True)
    return np.asarray(_coarse(tissue)[tuple(nearest)])


def _focus(patch: NDArray[np.uint8]) -> float:
    wide = patch.astype(np.int16)
    luminance = (wide[..., 0] + 2 * wide[..., 1] + wide[..., 2]) >> 2
    across = luminance[1:-1, :-2] + luminance[1:-1, 2:] + luminance[:-2, 1:-1] + luminance[2:, 1:-1]
    second = (across - 4 * luminance[1:-1, 1:-1]).astype(np.float32)
    return float(second.var() / (luminance.astype(np.float32).var() + FLAT))


def _block_means(patch: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Means of `BLOCK` x `BLOCK` pixels, uint8 [h, w, 3]."""
    height, width = patch.shape[0] // BLOCK, patch.shape[1] // BLOCK
    blocks = patch[: height * BLOCK, : width * BLOCK].reshape(height, BLOCK, width, BLOCK * 3)
    rows = blocks.sum(axis=1, dtype=np.uint16).reshape(height, width, BLOCK, 3)
    return (rows.sum(axis=2, dtype=np.uint16) // BLOCK**2).astype(np.uint8)


def _share(mask: Mask) -> float:
    return float(mask.mean()) if mask.size else 0.0
