"""What `acinus analyse` prints: it hides nothing that the PDF warns of."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from app.reports.terminal import risk_table
from tests.app.test_reports import example


def printed(**changes: Any) -> str:
    """The table as text, one line per row."""
    screen = Console(file=io.StringIO(), width=200)
    screen.print(risk_table(example(**changes)))
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_a_slide_model_that_differs_from_the_pattern_areas_is_named() -> None:
    text = printed()
    assert "grade group 3, differs from the pattern areas (grade group 2)" in text


def test_a_slide_model_that_agrees_is_said_to_agree() -> None:
    report = example()
    agreeing = report.slide_model.model_copy(update={"grade_group": 2, "agrees_with_grading": True})
    text = printed(slide_model=agreeing)
    assert "grade group 2, agrees with the pattern areas" in text
    assert "differs" not in text


def test_values_outside_the_training_data_are_named() -> None:
    risk = example().risk
    assert risk is not None
    assert "Outside the training data" in printed()
    inside = risk.model_copy(update={"outside_training_range": []})
    assert "Outside the training data" not in printed(risk=inside)


def test_the_source_of_the_gleason_score_is_named() -> None:
    assert "the image's" in printed()


def test_a_missing_risk_says_why() -> None:
    text = printed(risk=None, risk_absent_because="age, PSA and T stage are missing")
    assert "none: age, PSA and T stage are missing" in text


def test_the_notice_and_simulated_outcomes_are_on_top() -> None:
    assert "Research use only; not a diagnosis. Simulated outcomes." in printed()
    assert "Simulated" not in printed(simulated_outcomes=False)
