"""Which of two grades to read: that of the pattern areas, or that of the slide model; or neither.

The areas follow the pathologist's rules and show where each pattern is, so theirs is the grade to
read. The slide model, which learnt grades from slide labels alone, checks it. Where the two are
more than one group apart, or differ on whether there is cancer at all, one of them is wrong and
nothing here knows which: the reading abstains. Both limits are chosen, not measured.
So it does on less tissue than a biopsy core has, where a few patches decide, and on a slide unlike
those that the models were fitted on (`domain.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from training.slide.domain import Likeness

MAX_DIFFERENCE: Final = 1
"""Grade groups of cancer."""
MIN_TISSUE_MM2: Final = 0.5
"""Tissue in mm²: about a millimetre of an 18-gauge core."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The grade to read.

    Attributes:
        grade_group: ISUP grade group, 0 is benign; None where the reading abstains.
        reason: why that one, or why none: one sentence.
    """

    grade_group: int | None
    reason: str


def read_grade(
    *, areas: int, slide_model: int, tissue_mm2: float, likeness: Likeness | None = None
) -> Reading:
    """The grade to read.

    Args:
        areas: grade group by the areas of the patterns.
        slide_model: grade group by attention over the whole slide.
        tissue_mm2: analysed tissue in mm².
        likeness: to the slides that the models were fitted on; None where that is not known.
    """
    if likeness is not None and not likeness.inside:
        return Reading(
            grade_group=None,
            reason=f"{likeness.reason[:-1]}; a pathologist has to grade this slide.",
        )
    if tissue_mm2 < MIN_TISSUE_MM2:
        return Reading(
            grade_group=None,
            reason=f"Only {tissue_mm2:.2f} mm² of tissue: {MIN_TISSUE_MM2:g} mm² are needed; a "
            "pathologist has to grade this slide.",
        )
    if (areas == 0) != (slide_model == 0) or abs(areas - slide_model) > MAX_DIFFERENCE:
        return Reading(
            grade_group=None,
            reason=f"The pattern areas give {_named(areas)}, the slide model "
            f"{_named(slide_model)}: too far apart; a pathologist has to grade this slide.",
        )
    if areas != slide_model:
        return Reading(
            grade_group=areas,
            reason="By the pattern areas, which follow the grading rules; the slide model is one "
            f"group away ({_named(slide_model)}).",
        )
    return Reading(grade_group=areas, reason="The pattern areas and the slide model agree.")


def _named(group: int) -> str:
    return f"group {group}" if group else "benign"
