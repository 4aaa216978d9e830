"""Micrometres per pixel: which values are believed. The one policy for every format and for values given by hand."""

from __future__ import annotations

import math

from pipelines.slides.errors import ImplausibleResolution

PLAUSIBLE_MPP = (0.05, 100.0)
"""Micrometres per pixel between an oil-immersion scan and a picture of the whole glass; beyond it the value is a unit error."""
COARSEST_SCAN = 20.0
"""Micrometres per pixel beyond which TIFF's resolution tags tell a printing resolution (72 dpi and the like), not a scale."""
MPP_TIMES_OBJECTIVE = 10.0
"""0.5 um per pixel at 20x, 0.25 at 40x: the convention of the field."""


def check_mpp(name: str, mpp: float | None) -> None:
    """Refuse a resolution that can only be a unit error.

    Raises:
        ImplausibleResolution: the value is outside `PLAUSIBLE_MPP`.
    """
    low, high = PLAUSIBLE_MPP
    if mpp is not None and not (math.isfinite(mpp) and low <= mpp <= high):
        raise ImplausibleResolution(
            name,
            f"has an mpp of {mpp:g}, outside {low:g} to {high:g} um",
            "give the true mpp in micrometres per pixel",
            facts={"mpp": mpp, "low": low, "high": high},
        )
