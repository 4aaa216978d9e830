"""Where the tissue of a slide is: a mask over the thumbnail.

H&E absorbs green more than red and blue, whatever its depth; glass, dust, shadows and black ink
absorb all alike, green and blue ink red. So the signal is the absorbance of green over the mean of
the other two, relative to the slide's own glass. Its noise on glass has mean zero, which
saturation's has not, and so a low threshold holds: pale tissue is kept if it belongs to a piece
that is stained somewhere (two thresholds, Canny 1986). Otsu's threshold is not used: between dark
epithelium and pale stroma it falls into the tissue. Knows no patch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import remove_small_holes, remove_small_objects

from pipelines.glass import absorbance
from pipelines.quality import FRINGE, Artefacts, Mask, artefacts
from pipelines.slides.errors import NoTissue

STAINED = 0.05
"""Signal that a piece of tissue must reach somewhere: pale stroma, (235, 220, 232), has 0.06."""
PALE = 0.025
"""Minimum signal of tissue: glass with a noise of 10 grey levels stays below. At 0.02 shadows next
to tissue count as tissue on real thumbnails; at 0.03 a stain of 12 % of the usual depth is found by
half instead of three quarters."""
GREY = 0.05
"""Minimum signal per total absorbance: 0.055 for the bluest H&E; dark places have noise that is
large but grey."""
SEEN = 0.18
"""Sum of the channels' absorbance from which there is something: pale stroma starts there."""
ABSORBED = ("blue or green", "pink or purple", "brown or yellow")
"""What a stain looks like that absorbs red, green or blue most."""
IHC = 0.1
"""Share of brown from which a slide looks like immunohistochemistry (DAB)."""
DARK_BACKGROUND = 60
"""Median brightness (0-255) below which the background is not glass: glass is above 180."""
MIN_PIECE_UM = 150.0
"""Pieces smaller than a square of this side are dust: biopsy cores are 300 to 1000 um wide."""
MAX_HOLE_UM = 300.0
"""Holes with less area than a square of this side belong to tissue: lumina of glands."""


def tissue_mask(
    slide: str, thumbnail: NDArray[np.uint8], *, mpp: float, found: Artefacts | None = None
) -> NDArray[np.bool_]:
    """Mask of tissue, without what artefacts hide.

    Args:
        slide: name or identity for errors.
        thumbnail: uint8 [h, w, 3].
        mpp: micrometres per pixel of the thumbnail.
        found: the thumbnail's artefacts, if they are known already.

    Returns:
        bool [h, w].

    Raises:
        NoTissue: a dark background, as in fluorescence, or nothing that is stained.
    """
    found = found or artefacts(thumbnail, mpp=mpp)
    if found.glass is None and np.median(thumbnail.mean(axis=2)) < DARK_BACKGROUND:
        raise NoTissue(
            slide,
            "has a dark background as in fluorescence, not the bright one of H&E",
            "give a brightfield H&E slide",
        )
    hidden = found.within(FRINGE)
    colours = absorbance(thumbnail, found.glass)
    total = ndimage.uniform_filter(colours.sum(axis=0), 3)
    signal = ndimage.uniform_filter(colours[1] - (colours[0] + colours[2]) / 2, 3)
    signal[hidden | (signal < GREY * total)] = 0.0
    mask = ndimage.binary_closing(_pieces(signal), iterations=2)
    mask = remove_small_objects(mask, max_size=max(1, round((MIN_PIECE_UM / mpp) ** 2)))
    if not mask.any():
        raise _no_tissue(slide, colours, (total > SEEN) & ~hidden, mpp=mpp)
    filled: NDArray[np.bool_] = remove_small_holes(
        mask, max_size=max(1, round((MAX_HOLE_UM / mpp) ** 2))
    )
    return filled & ~hidden


def _no_tissue(slide: str, colours: NDArray[np.float32], seen: Mask, *, mpp: float) -> NoTissue:
    """Why there is no H&E: nothing is stained, or something is in other colours.

    Args:
        slide: name or identity.
        colours: absorbance of red, green and blue, float32 [3, h, w].
        seen: what absorbs anything, artefacts excluded, bool [h, w].
        mpp: micrometres per pixel.
    """
    seen = remove_small_objects(seen, max_size=max(1, round((MIN_PIECE_UM / mpp) ** 2)))
    if not seen.any():
        remedy = "check that it is an H&E slide and was scanned in focus"
        return NoTissue(slide, "shows no stained tissue", remedy)
    most = colours[:, seen].argmax(axis=0)
    shares = {name: float((most == k).mean()) for k, name in enumerate(ABSORBED)}
    parts = ", ".join(f"{share:.0%} {name}" for name, share in shares.items() if share >= 0.01)
    cause = f"is stained, but not with H&E: of what is seen on it, {parts}"
    if shares["brown or yellow"] >= IHC:
        cause += ", as in immunohistochemistry"
    facts = {"seen": round(float(seen.mean()), 3), **{k: round(v, 3) for k, v in shares.items()}}
    remedy = "give the slide of the same block that is stained with H&E"
    return NoTissue(slide, cause, remedy, code="not-he", facts=facts)


def _pieces(signal: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Connected areas above `PALE` that reach `STAINED` somewhere."""
    pieces, count = ndimage.label(signal > PALE, np.ones((3, 3)))
    kept = np.zeros(count + 1, bool)
    kept[pieces[signal > STAINED]] = True
    kept[0] = False
    return np.asarray(kept[pieces])
