"""What a slide looks like to a model, in a few numbers: scanner, resolution, colours of glass,
tissue and stains.

Kept with every prepared and every analysed slide, so that a model can say of a new slide whether it
resembles what it was trained on. Holds no serial number, no date, no name and nothing else of a
patient. Knows no model and no threshold.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2lab

from pipelines.slides.slide import Slide
from pipelines.stain import MacenkoFit, UnfitStain, tissue_pixels

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Fingerprint of one slide.

    Attributes:
        vendor: format, as `Slide.vendor`.
        scanner: maker and model, as `Slide.scanner`; empty if the metadata have none.
        mpp: micrometres per pixel of level 0.
        glass: red, green, blue of empty glass (0-255); empty if the thumbnail shows none.
        mean, deviation: of the tissue's colour in CIELAB (D65); empty if no tissue was sampled.
        haematoxylin, eosin: unit optical densities of the stains (Macenko 2009): red, green, blue.
        maxima: 99th percentiles of their concentrations; all empty if there are not two stains.
    """

    vendor: str
    scanner: str
    mpp: float
    glass: tuple[float, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    haematoxylin: tuple[float, ...]
    eosin: tuple[float, ...]
    maxima: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**plain)


def fingerprint(slide: Slide, patches: NDArray[np.uint8], *, glass: Triple | None) -> Fingerprint:
    """Take a slide's fingerprint.

    Args:
        slide: open slide with an mpp.
        patches: as `pipelines.stain.sample_patches` gives, uint8 [N, H, W, 3].
        glass: colour of the slide's glass.

    Raises:
        MissingResolution: the slide has no mpp.
    """
    pixels = tissue_pixels(patches, glass=glass)
    lab = rgb2lab(pixels[None] / 255.0)[0] if len(pixels) else np.empty((0, 3))
    stains = _stains(pixels)
    return Fingerprint(
        vendor=slide.vendor,
        scanner=slide.scanner,
        mpp=slide.mpp,
        glass=glass or (),
        mean=_rounded(lab.mean(axis=0)) if len(lab) else (),
        deviation=_rounded(lab.std(axis=0)) if len(lab) else (),
        haematoxylin=_rounded(stains.haematoxylin) if stains else (),
        eosin=_rounded(stains.eosin) if stains else (),
        maxima=_rounded(stains.maxima) if stains else (),
    )


def colour_distance(one: Fingerprint, other: Fingerprint) -> float:
    """How far apart the tissue's colours of two slides are, in units of CIELAB's colour difference.

    It is the 2-Wasserstein distance between the two distributions of colour, taken as normal ones
    with independent axes: 0 for the same colours, about 2 where a person just sees a difference.
    Vendor, scanner and mpp are not in it: they are equal or not.

    Raises:
        ValueError: a fingerprint has no tissue colours.
    """
    if not (one.mean and other.mean):
        raise ValueError("a fingerprint without tissue colours can't be compared")
    return math.dist((*one.mean, *one.deviation), (*other.mean, *other.deviation))


def _stains(pixels: NDArray[np.uint8]) -> MacenkoFit | None:
    """The two stains, None if there are not two."""
    try:
        return MacenkoFit.fit(pixels)
    except UnfitStain:
        return None


def _rounded(values: Any) -> tuple[float, ...]:
    """Rounded to the measurement's precision, which keeps a processor's last bits out of the
    file."""
    return tuple(round(float(value), 4) for value in values)
