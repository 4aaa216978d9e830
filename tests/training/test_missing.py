"""Values that are missing, drawn from a joint distribution: known where it is known."""

from __future__ import annotations

import numpy as np

from training.risk.missing import completed, fit_joint


def table_with_gaps(count: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Three columns that depend on each other; the third is missing where the first is high."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=count)
    whole = np.stack([a, 0.8 * a + 0.6 * rng.normal(size=count), rng.normal(size=count) - a], 1)
    gaps = whole.copy()
    gaps[(a > 0) & (rng.random(count) < 0.8), 2] = np.nan
    gaps[rng.random(count) < 0.2, 1] = np.nan
    return whole, gaps


def test_the_distribution_is_found_where_what_is_missing_depends_on_what_is_known() -> None:
    whole, gaps = table_with_gaps()
    found = fit_joint(gaps)
    np.testing.assert_allclose(found.mean, whole.mean(axis=0), atol=0.06)
    np.testing.assert_allclose(found.covariance, np.cov(whole.T), atol=0.1)
    assert abs(np.nanmean(gaps[:, 2]) - whole[:, 2].mean()) > 0.3  # what is left is another


def test_gaps_are_drawn_as_the_known_values_would_have_it() -> None:
    whole, gaps = table_with_gaps()
    filled = completed(gaps, fit_joint(gaps), np.random.default_rng(1))
    known = ~np.isnan(gaps)
    np.testing.assert_array_equal(filled[known], gaps[known])
    assert not np.isnan(filled).any()
    np.testing.assert_allclose(np.cov(filled.T), np.cov(whole.T), atol=0.1)


def test_draws_stay_within_what_was_seen() -> None:
    _, gaps = table_with_gaps(200)
    joint = fit_joint(gaps)
    row = np.array([50.0, np.nan, np.nan])
    drawn = joint.completed(np.repeat(row[None], 64, axis=0), np.zeros((64, 3)))
    assert (drawn[:, 1] <= np.nanmax(gaps[:, 1])).all()
    assert (drawn[:, 2] >= np.nanmin(gaps[:, 2])).all()


def test_a_table_without_gaps_has_its_own_moments() -> None:
    whole, _ = table_with_gaps(500)
    found = fit_joint(whole)
    np.testing.assert_allclose(found.mean, whole.mean(axis=0))
    np.testing.assert_allclose(found.covariance, np.cov(whole.T, bias=True), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(completed(whole, found, np.random.default_rng(0)), whole)
