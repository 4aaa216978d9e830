"""The pathologist's rules, from the definitions; and counting a classifier's errors back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from training.slide.gleason import (
    DEFAULT_RULES,
    PATTERNS,
    GleasonScore,
    GradingRules,
    agreement,
    area_shares,
    choose_rules,
    corrected_shares,
    grade,
    grade_group,
    parse_label,
)

TABLE = {"3+3": 1, "3+4": 2, "4+3": 3, "4+4": 4, "3+5": 4, "5+3": 4, "4+5": 5, "5+4": 5, "5+5": 5}
"""ISUP 2014."""


@pytest.mark.parametrize(("score", "group"), TABLE.items())
def test_grade_groups_are_those_of_isup(score: str, group: int) -> None:
    primary, secondary = map(int, score.split("+"))
    assert GleasonScore(primary, secondary).grade_group == group
    assert grade_group(score) == grade_group(f" Gleason {score}={primary + secondary} ") == group
    assert str(parse_label(score)) == score


@pytest.mark.parametrize("label", ["benign", "Benign ", "negative", "0+0"])
def test_benign_in_its_spellings(label: str) -> None:
    assert parse_label(label) is None
    assert grade_group(label) == 0


@pytest.mark.parametrize("label", ["", "2+3", "3+4+5", "7", "3+4=8", "GG2"])
def test_a_label_that_is_not_understood_is_not_guessed(label: str) -> None:
    with pytest.raises(ValueError, match="slide label"):
        parse_label(label)


@pytest.mark.parametrize(
    ("shares", "score"),
    [
        ((1.0, 0.0, 0.0, 0.0), None),
        ((0.99, 0.01, 0.0, 0.0), None),  # less than is believed
        ((0.5, 0.5, 0.0, 0.0), "3+3"),
        ((0.5, 0.3, 0.2, 0.0), "3+4"),
        ((0.5, 0.2, 0.3, 0.0), "4+3"),
        ((0.5, 0.0, 0.5, 0.0), "4+4"),
        (
            (0.4, 0.30, 0.26, 0.04),
            "3+5",
        ),  # biopsy: the highest of the rest, though less extensive than 4
        ((0.4, 0.30, 0.29, 0.01), "3+4"),  # 5 holds less than 5 % of the tumour
        ((0.4, 0.02, 0.38, 0.20), "4+5"),  # little 3 next to much 4 does not count
        ((0.4, 0.0, 0.2, 0.4), "5+4"),
        ((0.4, 0.3, 0.3, 0.0), "4+3"),  # equal extent: the higher leads
    ],
)
def test_the_biopsy_rule(shares: tuple[float, ...], score: str | None) -> None:
    found = grade(np.array(shares))
    assert (None if found.score is None else str(found.score)) == score
    assert found.grade_group == (0 if score is None else TABLE[score])
    assert found.tumour_extent == pytest.approx(1 - shares[0])
    if score is not None:
        assert found.percent_pattern_4 == pytest.approx(100 * shares[2] / (1 - shares[0]))
        assert found.gleason_score == sum(map(int, score.split("+")))


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda parts: sum(parts) > 0.01))
def test_every_slide_gets_a_grade_that_its_patterns_allow(parts: list[float]) -> None:
    shares = np.array(parts) / sum(parts)
    found = grade(shares)
    if found.score is not None:
        assert shares[found.score.primary - 2] == shares[1:].max()
        assert found.score.secondary == found.score.primary or shares[found.score.secondary - 2] > 0
    assert sum(found.shares.values()) == pytest.approx(1)


def test_shares_that_are_not_shares_are_refused() -> None:
    for wrong in (
        np.array([0.5, 0.5]),
        np.array([1.2, -0.2, 0, 0]),
        np.array([0.5, 0, 0, 0]),
        np.array([np.nan, 1, 0, 0]),
    ):
        with pytest.raises(ValueError, match="area shares"):
            grade(wrong)


def test_each_patch_counts_for_its_most_probable_pattern() -> None:
    probabilities = np.array(
        [[0.4, 0.3, 0.3, 0], [0.1, 0.6, 0.3, 0], [0.1, 0.5, 0.4, 0], [0, 0, 0, 1.0]]
    )
    np.testing.assert_allclose(area_shares(probabilities), [0.25, 0.5, 0, 0.25])
    np.testing.assert_allclose(
        area_shares(probabilities, np.array([3.0, 1, 1, 1])), [0.5, 2 / 6, 0, 1 / 6]
    )
    with pytest.raises(ValueError, match="patch probabilities"):
        area_shares(np.zeros((0, 4)))


ERRORS = np.array(
    [[0.7, 0.1, 0.2, 0.0], [0.2, 0.6, 0.2, 0.0], [0.2, 0.1, 0.7, 0.0], [0.0, 0.0, 0.1, 0.9]]
)


@given(st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4).filter(lambda parts: sum(parts) > 0.1))
def test_known_errors_are_counted_back(parts: list[float]) -> None:
    true = np.array(parts) / sum(parts)
    counted = true @ ERRORS
    found = corrected_shares(counted, ERRORS)
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    assert np.abs(found - true).sum() <= np.abs(counted - true).sum() + 0.02


def test_a_benign_slide_stays_benign_in_spite_of_false_tumour() -> None:
    counted = np.array([0.71, 0.10, 0.19, 0.0])
    assert grade(counted).grade_group > 0
    assert grade(corrected_shares(counted, ERRORS)).grade_group == 0


def test_a_perfect_classifier_is_not_corrected() -> None:
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    np.testing.assert_allclose(corrected_shares(shares, np.eye(4)), shares, atol=1e-6)


def test_rules_are_the_lowest_thresholds_that_agree_best() -> None:
    clean = [np.array([1.0, 0, 0, 0]), np.array([0.6, 0.4, 0, 0]), np.array([0.5, 0.2, 0.3, 0])]
    assert (
        choose_rules(clean, [0, 1, 3])
        == GradingRules(min_tumour_share=0.02, min_pattern_share=0.05)
        == DEFAULT_RULES
    )
    noisy = [
        np.array([0.96, 0.02, 0.02, 0]),
        np.array([0.6, 0.37, 0.03, 0]),
        np.array([0.5, 0.2, 0.3, 0]),
    ]
    assert choose_rules(noisy, [0, 1, 3]) == GradingRules(
        min_tumour_share=0.05, min_pattern_share=0.1
    )


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_agreement_is_the_quadratic_weighted_kappa(pairs: list[tuple[int, int]]) -> None:
    truth, predicted = zip(*pairs, strict=True)
    if len(set(truth) | set(predicted)) < 2:
        assert agreement(truth, predicted) == 0
    else:
        reference = cohen_kappa_score(truth, predicted, weights="quadratic", labels=range(6))
        assert agreement(truth, predicted) == pytest.approx(reference)


def test_patterns_are_in_the_order_of_their_grade() -> None:
    assert PATTERNS == ("benign", "gleason_3", "gleason_4", "gleason_5")
