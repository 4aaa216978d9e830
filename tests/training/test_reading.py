"""Which grade to read, and when none is given."""

from __future__ import annotations

import pytest

from training.slide.domain import Likeness
from training.slide.reading import MIN_TISSUE_MM2, read_grade


@pytest.mark.parametrize("group", range(6))
def test_two_that_agree_are_read(group: int) -> None:
    found = read_grade(areas=group, slide_model=group, tissue_mm2=5.0)
    assert found.grade_group == group
    assert "agree" in found.reason


@pytest.mark.parametrize(("areas", "slide_model"), [(3, 4), (4, 3), (1, 2), (2, 1)])
def test_the_areas_are_read_where_the_slide_model_is_one_group_away(
    areas: int, slide_model: int
) -> None:
    found = read_grade(areas=areas, slide_model=slide_model, tissue_mm2=5.0)
    assert found.grade_group == areas
    assert "one group away" in found.reason


@pytest.mark.parametrize(("areas", "slide_model"), [(2, 4), (0, 2), (5, 1), (0, 1), (1, 0)])
def test_two_that_are_far_apart_are_not_read(areas: int, slide_model: int) -> None:
    found = read_grade(areas=areas, slide_model=slide_model, tissue_mm2=5.0)
    assert found.grade_group is None
    assert "pathologist" in found.reason


def test_too_little_tissue_is_not_graded() -> None:
    found = read_grade(areas=2, slide_model=2, tissue_mm2=MIN_TISSUE_MM2 - 0.01)
    assert found.grade_group is None
    assert "0.49 mm²" in found.reason
    assert read_grade(areas=2, slide_model=2, tissue_mm2=MIN_TISSUE_MM2).grade_group == 2


def test_a_slide_unlike_those_of_training_is_not_read() -> None:
    unlike = Likeness(
        inside=False, score=9.0, limit=2.0, false_alarms=0.05, reason="Outside, because of colour."
    )
    found = read_grade(areas=3, slide_model=3, tissue_mm2=5.0, likeness=unlike)
    assert found.grade_group is None
    assert found.reason == "Outside, because of colour; a pathologist has to grade this slide."
