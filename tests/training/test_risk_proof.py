"""The risk model on cohorts whose truth is known, in short; `tests.benchmarks.risk` has 200."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.risk import STRENGTH, Found, study


@pytest.fixture(scope="module")
def plain() -> list[Found]:
    return [study(seed) for seed in range(8)]


def test_predictions_are_as_good_as_the_true_hazards_allow(plain: list[Found]) -> None:
    lost = np.mean([found.oracle - found.concordance for found in plain])
    assert lost < 0.02
    assert np.mean([found.slope for found in plain]) == pytest.approx(1, abs=0.12)


def test_intervals_hold_the_truth_as_often_as_they_say(plain: list[Found]) -> None:
    assert np.mean([found.coverage for found in plain]) == pytest.approx(0.95, abs=0.05)
    assert sum(found.treatment_covered for found in plain) >= 6


def test_an_interaction_is_found_where_there_is_one(plain: list[Found]) -> None:
    changed = [study(seed, interaction=STRENGTH) for seed in range(6)]
    assert sum(found.p_value < 0.05 for found in changed) >= 4
    assert sum(found.p_value < 0.05 for found in plain) <= 2
