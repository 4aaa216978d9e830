"""Proportional hazards compared with plain NumPy, and on the outcomes of real men."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from tests.support.shared_data import needs_shared_data, shared_data
from training.errors import InsufficientData
from training.risk.survival import (
    YEARS,
    calibration,
    concordance,
    fit_cox,
    observed_risk,
    risk_curve,
)


def drawn(
    seed: int, count: int, coefficients: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, len(coefficients)))
    time = rng.exponential(20 * np.exp(-features @ np.array(coefficients)))
    follow_up = rng.uniform(5, 15, count)
    return features, np.minimum(time, follow_up), time < follow_up


def partial_likelihood(
    features: np.ndarray, time: np.ndarray, event: np.ndarray, spread: float, beta: np.ndarray
) -> float:
    """Negative, penalised; from the definition, for times without ties."""
    score = (features - features.mean(axis=0)) / features.std(axis=0) @ beta
    terms = [score[k] - np.log(np.exp(score[time >= time[k]]).sum()) for k in np.flatnonzero(event)]
    return float(-np.sum(terms) + 0.5 * (beta**2).sum() / spread**2)


@pytest.mark.parametrize("spread", [0.2, 5.0])
def test_the_fit_maximises_the_penalised_partial_likelihood(spread: float) -> None:
    features, time, event = drawn(0, 150, (0.7, -0.4, 0.0))
    fit = fit_cox(features, time, event, spread=spread)
    best = minimize(
        lambda beta: partial_likelihood(features, time, event, spread, beta), np.zeros(3)
    )
    np.testing.assert_allclose(fit.coefficients * features.std(axis=0), best.x, atol=2e-3)


def test_the_baseline_is_breslows() -> None:
    features, time, event = drawn(1, 120, (0.5, 0.5))
    time[np.flatnonzero(event)[0]] = 2.5  # on the grid: an event counts from its own time on
    fit = fit_cox(features, time, event, spread=1.0)
    odds = np.exp(fit.log_hazard(features))
    steps = [(time[k], 1 / odds[time >= time[k]].sum()) for k in np.flatnonzero(event)]
    expected = [sum(step for event_time, step in steps if event_time <= year) for year in YEARS]
    np.testing.assert_allclose(fit.baseline, expected, rtol=1e-6)
    assert fit.baseline[0] == 0
    curve = risk_curve(fit.baseline, 0.3)
    np.testing.assert_allclose(curve, 1 - np.exp(-np.array(expected) * np.exp(0.3)), rtol=1e-6)


def test_known_coefficients_are_recovered() -> None:
    known = (0.8, -0.5, 0.2)
    fit = fit_cox(*drawn(2, 4000, known), spread=10.0)
    np.testing.assert_allclose(fit.coefficients, known, atol=0.06)
    assert fit.remarks == ()


def test_concordance_counts_pairs() -> None:
    time, event = np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, True, True])
    score = np.array([2.0, 5.0, 1.5, 3.0])
    pairs = [(0, 1), (0, 2), (0, 3), (2, 3)]  # the earlier one has an event
    assert concordance(time, event, score) == pytest.approx(
        np.mean([score[a] > score[b] for a, b in pairs])
    )


def test_observed_risk_is_one_minus_kaplan_meier() -> None:
    time, event = np.array([1.0, 2.0, 2.5, 3.0]), np.array([True, False, True, True])
    assert observed_risk(time, event, 2.7) == pytest.approx(1 - (3 / 4) * (1 / 2))


def test_calibration_groups_go_from_low_to_high_and_hold_everyone() -> None:
    features, time, event = drawn(3, 2003, (1.0,))
    fit = fit_cox(features, time, event, spread=5.0)
    predicted = np.array(
        [risk_curve(fit.baseline, log_hazard)[20] for log_hazard in fit.log_hazard(features)]
    )
    groups = calibration(
        predicted, time, event, 5.0, true=-np.expm1(-5 / 20 * np.exp(features[:, 0]))
    )
    assert sum(group.patients for group in groups) == 2003
    assert [group.predicted for group in groups] == sorted(group.predicted for group in groups)
    for group in groups:
        assert group.true == pytest.approx(group.predicted, abs=0.04)
        assert group.observed == pytest.approx(group.predicted, abs=0.08)


def test_patients_without_an_event_are_refused() -> None:
    features, time, event = drawn(4, 50, (0.5,))
    with pytest.raises(InsufficientData, match="none of 50 patients has an event"):
        fit_cox(features, time, np.zeros_like(event), spread=1.0)


def test_a_warning_of_the_library_becomes_a_remark() -> None:
    """A column that orders the events completely: without a penalty the maximum is at infinity."""
    time = np.linspace(1.0, 12.0, 200)
    fit = fit_cox(-time[:, None], time, np.ones(200, bool), spread=1e6)
    assert any("failed to converge sufficiently" in remark for remark in fit.remarks)
    assert np.isfinite(fit.coefficients).all()


@needs_shared_data
def test_psa_stage_and_gleason_predict_recurrence_in_real_men() -> None:
    """316 men after prostatectomy (Kattan-type table of the Cleveland Clinic), folds of men that
    the fit has not seen.
    """
    folder = shared_data()
    assert folder is not None
    table = pd.read_csv(folder / "clinical" / "blood_storage_medicaldata.csv")
    table = table[["PreopPSA", "T.Stage", "bGS", "TimeToRecurrence", "Recurrence"]].dropna()
    columns = np.column_stack(
        [np.log2(table["PreopPSA"].to_numpy()), table[["T.Stage", "bGS"]].to_numpy()]
    ).astype(np.float64)
    time, event = (
        table["TimeToRecurrence"].to_numpy(np.float64) / 12,
        table["Recurrence"].to_numpy() == 1,
    )
    assert len(table) > 290
    assert event.sum() > 45
    fold = np.random.default_rng(0).permutation(len(table)) % 5
    score = np.zeros(len(table))
    for k in range(5):
        fit = fit_cox(columns[fold != k], time[fold != k], event[fold != k], spread=0.5)
        score[fold == k] = fit.log_hazard(columns[fold == k])
        assert (
            fit.coefficients > 0
        ).all()  # every one of them makes recurrence likelier, in every fold
    assert concordance(time, event, score) > 0.7
