"""Temperatures: they are found where they are known, and do not change the answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.slide.calibration import (
    Answers,
    calibrate,
    class_weights,
    reliability,
    tempered,
    tempered_groups,
)


def answers(seed: int, *, sureness: float, count: int = 6000) -> Answers:
    """Truth drawn from softmax probabilities, which are then given `sureness` times too sure."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, 4)) * 1.5
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(4, p=row) for row in honest])
    given_out = np.exp(sureness * logits)
    return Answers(
        probabilities=(given_out / given_out.sum(axis=1, keepdims=True)).astype(np.float32),
        truth=truth,
        fold=np.arange(count) % 5,
        weights=np.ones(count),
        slides=30,
    )


@pytest.mark.parametrize("sureness", [0.5, 1.0, 2.5])
def test_the_temperature_undoes_how_much_too_sure_answers_were(sureness: float) -> None:
    found = calibrate(answers(0, sureness=sureness), tempered)
    assert found.temperature == pytest.approx(sureness, rel=0.08)
    assert found.error_after < 0.03
    assert found.loss_after <= found.loss_before + 1e-3
    if sureness != 1.0:
        assert found.error_before > 2 * found.error_after


def test_few_slides_make_no_answer_surer() -> None:
    many = answers(0, sureness=0.5)
    assert calibrate(many, tempered).temperature < 0.6
    assert calibrate(replace(many, slides=29), tempered).temperature == 1.0


def test_what_is_reported_is_cross_fitted() -> None:
    """Two folds, each too sure in its own way: each gets the other's temperature."""
    one, other = answers(0, sureness=3.0), answers(1, sureness=0.5)
    both = Answers(
        probabilities=np.concatenate([one.probabilities, other.probabilities]),
        truth=np.concatenate([one.truth, other.truth]),
        fold=np.repeat([0, 1], len(one.truth)),
        weights=np.ones(2 * len(one.truth)),
        slides=30,
    )
    found = calibrate(both, tempered)
    swapped = np.concatenate([tempered(one.probabilities, 0.5), tempered(other.probabilities, 3.0)])
    assert found.error_after == pytest.approx(reliability(swapped, both).error, abs=0.02)
    assert found.error_after > found.error_before


def test_calibration_error_by_hand() -> None:
    sure = np.array([[0.95, 0.05], [0.95, 0.05], [0.65, 0.35], [0.35, 0.65]])
    found = reliability(
        sure,
        Answers(
            probabilities=sure,
            truth=np.array([0, 1, 0, 1]),
            fold=np.zeros(4, np.int64),
            weights=np.ones(4),
            slides=30,
        ),
    )
    assert found.error == pytest.approx(0.5 * 0.45 + 0.5 * 0.35)
    assert sum(found.weight) == pytest.approx(1.0)


@given(st.floats(0.1, 10), st.lists(st.floats(-6, 6), min_size=5, max_size=5))
def test_no_temperature_changes_the_answer(temperature: float, logits: list[float]) -> None:
    above = 1 / (1 + np.exp(-np.sort(logits)[::-1]))
    groups = np.append(1, above) - np.append(above, 0)
    found = tempered_groups(groups, temperature)
    assert found.sum() == pytest.approx(1, abs=1e-5)
    odds = np.log(above / (1 - above))
    expected = 1 / (1 + np.exp(-odds / temperature))
    np.testing.assert_allclose(1 - found.cumsum()[:-1], expected, atol=1e-4)
    one = tempered(groups, temperature)
    assert one[groups.argmax()] == one.max()


def test_every_class_weighs_the_same() -> None:
    weights = class_weights(np.array([0, 0, 0, 3]))
    np.testing.assert_allclose(weights, [2 / 3, 2 / 3, 2 / 3, 2])
