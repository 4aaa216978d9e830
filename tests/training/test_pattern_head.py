"""The pattern head: the folded matrix product is what was fitted."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pipelines.annotations import UNLABELLED
from training.errors import InsufficientData
from training.slide.pattern_head import fit_pattern_head


def clusters(
    rng: np.random.Generator, counts: tuple[int, ...], dimension: int = 12
) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(len(counts)), counts)
    features = rng.normal(size=(len(counts), dimension))[labels] * 2 + rng.normal(
        size=(len(labels), dimension)
    )
    return (features * rng.uniform(0.1, 20, dimension) + 5).astype(np.float32), labels


def test_probabilities_are_those_of_scikit_learn_on_standardised_features() -> None:
    features, labels = clusters(np.random.default_rng(0), (60, 40, 20, 30))
    scaler = StandardScaler().fit(features)
    reference = LogisticRegression(C=0.5, class_weight="balanced", max_iter=2000, tol=1e-8).fit(
        scaler.transform(features), labels
    )
    head = fit_pattern_head(features, labels, penalty=2.0)
    np.testing.assert_allclose(
        head.probabilities(features), reference.predict_proba(scaler.transform(features)), atol=2e-3
    )
    assert head.probabilities(features).dtype == np.float32


def test_unlabelled_patches_have_no_say() -> None:
    features, labels = clusters(np.random.default_rng(1), (30, 30, 30, 30))
    extra = np.full((50, features.shape[1]), 1e3, np.float32)
    alone = fit_pattern_head(features, labels)
    mixed = fit_pattern_head(
        np.concatenate([features, extra]), np.append(labels, np.full(50, UNLABELLED))
    )
    np.testing.assert_array_equal(alone.weight, mixed.weight)


def test_a_pattern_that_was_never_seen_is_never_predicted() -> None:
    features, labels = clusters(np.random.default_rng(2), (30, 0, 30, 0))
    found = fit_pattern_head(features, labels).probabilities(features)
    assert (found[:, [1, 3]] == 0).all()
    assert (found.argmax(axis=1) == labels).mean() > 0.95
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_rare_patterns_count_as_much_as_frequent_ones() -> None:
    features, labels = clusters(np.random.default_rng(3), (500, 12, 12, 12), dimension=4)
    found = fit_pattern_head(features, labels).probabilities(features).argmax(axis=1)
    recalls = [(found[labels == k] == k).mean() for k in range(4)]
    assert min(recalls) > 0.6


def test_a_feature_that_does_not_vary_does_no_harm() -> None:
    features, labels = clusters(np.random.default_rng(4), (30, 30, 30, 30))
    features[:, 0] = 3.0
    assert np.isfinite(fit_pattern_head(features, labels).probabilities(features)).all()


@pytest.mark.parametrize("labels", [np.full(10, UNLABELLED), np.zeros(10, int)])
def test_one_pattern_is_not_enough(labels: np.ndarray) -> None:
    with pytest.raises(InsufficientData, match="two patterns are needed; annotate more regions"):
        fit_pattern_head(np.ones((10, 3), np.float32), labels)
