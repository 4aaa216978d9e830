"""Micrometres per pixel (mpp): which value a slide gets. The one policy for every format.

    given  >  the metadata's  >  default for slides without  >  objective, if asked

A value that can only be a unit error (outside `PLAUSIBLE_MPP`) is not believed: one that is
given, the default or the objective's replaces it. Pixels that are not square are refused whatever
is given, since no single mpp is true of them: a patch would be a rectangle on the glass. A wrong
unit does not change the ratio of the axes, so that is checked too if neither value can be true; if
one can be, the other is not believed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelines.slides.errors import (
    AnisotropicResolution,
    ImplausibleResolution,
    MissingResolution,
)

PLAUSIBLE_MPP = (0.05, 100.0)
"""Micrometres per pixel between an oil-immersion scan and a picture of the whole glass."""
COARSEST_SCAN = 20.0
"""Micrometres per pixel beyond which TIFF's resolution tags describe a print (such as 72 dpi)."""
MAX_ANISOTROPY = 0.02
"""Relative difference of the axes' mpp up to which pixels count as square: at most 4 px in a patch
of 224. Real scans differ by 0.3 % (Hamamatsu, whose axes are calibrated apart)."""
MPP_TIMES_OBJECTIVE = 10.0
"""0.5 um per pixel at 20x, 0.25 at 40x: the convention of the field."""

UNITS_IN_UM = {
    "pm": 1e-6,
    "Å": 1e-4,  # U+00C5
    "\u212b": 1e-4,  # ANGSTROM SIGN
    "nm": 1e-3,
    "um": 1.0,
    "µm": 1.0,  # U+00B5, MICRO SIGN
    "\u03bcm": 1.0,  # GREEK SMALL LETTER MU
    "micron": 1.0,
    "microns": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "dm": 1e5,
    "m": 1e6,
    "dam": 1e7,
    "hm": 1e8,
    "km": 1e9,
    "thou": 25.4,
    "li": 25.4e3 / 12,
    "in": 25.4e3,
    "inch": 25.4e3,
    "ft": 304.8e3,
}
"""Micrometres in units of length: those of OME-XML (OME 2016-06, `UnitsLength`), other
spellings."""


@dataclass(frozen=True, kw_only=True)
class RecordedMpp:
    """What a file's metadata have for a scale.

    Attributes:
        x, y: micrometres per pixel along a row and a column, not checked for sense. None where the
            metadata have no number; a format with one number for both axes gives both.
        unreadable: text that stands where a number in a known unit should; empty if none.
    """

    x: float | None = None
    y: float | None = None
    unreadable: str = ""

    @property
    def axes(self) -> tuple[float, ...]:
        """The values that there are, x first. With one of the two, pixels count as square."""
        return tuple(value for value in (self.x, self.y) if value is not None)

    @property
    def is_plausible(self) -> bool:
        """Whether there is a value and all can be true."""
        return bool(self.axes) and all(is_plausible(value) for value in self.axes)

    @classmethod
    def of_text(cls, x: str | None, y: str | None, *, units: tuple[str, str]) -> RecordedMpp:
        """From two texts and the units of length that they are in, x first."""
        values, unreadable = [], ""
        for text, unit in zip((x, y), units, strict=True):
            values.append(_length_in_um(text, unit))
            if values[-1] is None and not _is_empty(text):
                shown = (text or "").strip()[:24]
                shown = shown if shown.endswith(unit) else f"{shown} {unit}".strip()
                unreadable = unreadable or shown
        return cls(x=values[0], y=values[1], unreadable=unreadable)


@dataclass(frozen=True, kw_only=True)
class MppPolicy:
    """Which mpp a slide gets, next to what its metadata have.

    Attributes:
        given: micrometres per pixel of level 0 of this slide; wins over the metadata.
        default: for a slide whose metadata have none that can be true.
        from_objective: as the last resort take 10 um divided by the objective's magnification
            (0.25 at 40x). Scanners differ from it by several per cent, so it must be asked for.
    """

    given: float | None = None
    default: float | None = None
    from_objective: bool = False

    def check(self, slide: str) -> None:
        """Refuse values that can only be a unit error.

        Raises:
            ImplausibleResolution: a given or default mpp is outside `PLAUSIBLE_MPP`.
        """
        check_mpp(slide, self.given)
        check_mpp(slide, self.default)

    def decide(self, slide: str, recorded: RecordedMpp, objective: float | None) -> float:
        """Micrometres per pixel of level 0.

        Args:
            slide: its name, for errors.
            recorded: what the metadata have.
            objective: magnification of the objective lens, None if unknown.

        Raises:
            AnisotropicResolution: the metadata say that pixels are not square.
            ImplausibleResolution: the only value there is can only be a unit error.
            MissingResolution: there is no value.
        """
        if len({is_plausible(value) for value in recorded.axes}) == 1:  # all, or none
            _check_square(slide, recorded)
        if recorded.is_plausible:
            return self.given or recorded.axes[0]
        if replacement := self.given or self.default:
            return replacement
        if self.from_objective and objective:
            check_mpp(slide, mpp := MPP_TIMES_OBJECTIVE / objective)
            return mpp
        for value in recorded.axes:
            check_mpp(slide, value)
        raise MissingResolution.of(slide, found=recorded.unreadable)

    def remark(self, recorded: RecordedMpp) -> str:
        """A sentence about metadata that were not believed, empty if there is nothing to say."""
        if not recorded.unreadable and (recorded.is_plausible or not recorded.axes):
            return ""
        found = recorded.unreadable or " x ".join(f"{value:g}" for value in recorded.axes)
        reason = "read" if recorded.unreadable else "true"
        return f"has an mpp in its metadata ({found}) that can't be {reason} and was not used"


def is_plausible(mpp: float) -> bool:
    """Whether a resolution can be true of a slide: within `PLAUSIBLE_MPP`."""
    low, high = PLAUSIBLE_MPP
    return low <= mpp <= high  # NaN is not


def is_scan(mpp: float) -> bool:
    """Whether TIFF's resolution tags can describe a scan; else it is the scale of a print."""
    return PLAUSIBLE_MPP[0] <= mpp <= COARSEST_SCAN


def check_mpp(name: str, mpp: float | None) -> None:
    """Refuse a resolution that can only be a unit error.

    Raises:
        ImplausibleResolution: the value is outside `PLAUSIBLE_MPP`.
    """
    low, high = PLAUSIBLE_MPP
    if mpp is not None and not is_plausible(mpp):
        raise ImplausibleResolution(
            name,
            f"has an mpp of {mpp:g}, outside {low:g} to {high:g} um",
            "give its true mpp (micrometres per pixel)",
            facts={"mpp": mpp, "low": low, "high": high},
        )


def positive_number(text: str | None) -> float | None:
    """A positive finite number, with a decimal point or comma; None for anything else."""
    try:
        value = float((text or "").strip().replace(",", "."))
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def _length_in_um(text: str | None, unit: str) -> float | None:
    value, factor = positive_number(text), UNITS_IN_UM.get(unit.strip())
    return None if value is None or factor is None else value * factor


def _is_empty(text: str | None) -> bool:
    """Whether there is no text, or a zero: writers put 0 if they know no scale."""
    return not (text or "").strip().strip("0.,")


def _check_square(slide: str, recorded: RecordedMpp) -> None:
    if len(recorded.axes) < 2:
        return
    x, y = recorded.axes
    if abs(x - y) > MAX_ANISOTROPY * min(x, y):
        raise AnisotropicResolution(
            slide,
            f"has pixels that are not square: {x:g} x {y:g} um (width x height)",
            "export it with square pixels, or correct the mpp in its metadata",
            facts={"mpp_x": x, "mpp_y": y, "tolerance": MAX_ANISOTROPY},
        )
