"""Statistics of censored outcomes with competing causes: by hand, beside lifelines, on real men."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from lifelines import AalenJohansenFitter, CoxPHFitter

from tests.support.shared_data import needs_shared_data, shared_data
from training.risk.hazards import FollowUp, Prior, estimate_spreads, fit_cause
from training.risk.survival import (
    Observed,
    auc,
    brier,
    calibration,
    calibration_slope,
    concordance,
    known_at,
    net_benefit,
    observed_risk,
)


def drawn(
    seed: int, count: int, coefficients: tuple[float, ...], *, competing: float = 0.0
) -> tuple[np.ndarray, Observed]:
    """Columns and outcomes of exponential hazards; the other cause does not depend on columns."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, len(coefficients)))
    time = rng.exponential(20 * np.exp(-features @ np.array(coefficients)))
    other = rng.exponential(1 / max(competing, 1e-9), count)
    times = np.stack([rng.uniform(5, 15, count), time, other])
    return features, Observed(time=times.min(axis=0), cause=times.argmin(axis=0))


def fitted(features: np.ndarray, observed: Observed, spread: float) -> np.ndarray:
    followed = FollowUp.of(observed.time, observed.cause)
    prior = Prior.of(np.full(len(features.T), spread))
    return fit_cause(features, followed, observed.of, prior).coefficients


def test_known_coefficients_are_recovered_though_another_cause_competes() -> None:
    known = (0.8, -0.5, 0.2)
    features, observed = drawn(2, 6000, known, competing=0.03)
    np.testing.assert_allclose(fitted(features, observed, 10.0), known, atol=0.06)


@pytest.mark.parametrize("spread", [0.1, 0.3, 10.0])
def test_coefficients_are_those_of_a_penalised_proportional_hazards_fit(spread: float) -> None:
    """lifelines maximises the partial likelihood under the same penalty: another likelihood of the
    same coefficients.
    """
    features, observed = drawn(0, 1500, (0.7, -0.4, 0.0))
    frame = pd.DataFrame(features, columns=["a", "b", "c"]).assign(
        time=observed.time, event=observed.event
    )
    peer = CoxPHFitter(penalizer=1 / (len(frame) * spread**2)).fit(frame, "time", "event")
    np.testing.assert_allclose(
        fitted(features, observed, spread), peer.params_.to_numpy(), atol=0.03
    )


def test_the_spread_follows_the_size_of_the_coefficients() -> None:
    groups = np.array([0, 0, 0, 1, 1, 1])
    features, observed = drawn(1, 4000, (0.8, -0.7, 0.9, 0.0, 0.03, -0.02))
    followed = FollowUp.of(observed.time, observed.cause)
    found = estimate_spreads(features, followed, 1, np.full(6, 0.3), groups)
    assert found[0] > 0.5
    assert found[3] < 0.25


def test_time_at_risk_is_counted_in_quarters() -> None:
    found = FollowUp.of(np.array([0.25, 0.3, 16.0]), np.array([1, 1, 1]))
    np.testing.assert_allclose(found.at_risk[:, :3], [[0.25, 0, 0], [0.25, 0.05, 0], [0.25] * 3])
    np.testing.assert_array_equal(found.last, [0, 1, 59])
    np.testing.assert_array_equal(found.cause, [1, 1, 0])  # an event behind the limit is not one


def test_concordance_counts_pairs() -> None:
    """A man who died of another cause never has the event: every earlier event comes before."""
    observed = Observed(time=np.array([1.0, 2.0, 3.0, 4.0, 2.5]), cause=np.array([1, 0, 1, 1, 2]))
    score = np.array([2.0, 5.0, 1.5, 3.0, 1.8])
    pairs = [(0, 1), (0, 2), (0, 3), (0, 4), (2, 3), (2, 4), (3, 4)]
    assert concordance(observed, score) == pytest.approx(
        np.mean([score[a] > score[b] for a, b in pairs])
    )
    none = Observed(time=np.array([1.0, 2.0]), cause=np.array([0, 2]))
    assert concordance(none, np.array([1.0, 2.0])) is None


@pytest.mark.filterwarnings("ignore:Tied event times")
def test_observed_risk_is_aalen_and_johansen_s() -> None:
    _, observed = drawn(5, 400, (0.5,), competing=0.05)
    peer = AalenJohansenFitter(calculate_variance=False).fit(observed.time, observed.cause, 1)
    table = peer.cumulative_density_
    for years in (2.0, 5.0, 9.0):
        expected = table[table.index <= years].iloc[-1, 0]
        assert observed_risk(observed, years) == pytest.approx(expected)


def test_observed_risk_without_competing_causes_is_one_minus_kaplan_meier() -> None:
    observed = Observed(time=np.array([1.0, 2.0, 2.5, 3.0]), cause=np.array([1, 0, 1, 1]))
    assert observed_risk(observed, 2.7) == pytest.approx(1 - (3 / 4) * (1 / 2))


def test_weights_give_back_those_who_were_censored() -> None:
    """Weighted shares of events are the cumulative incidence, and weights sum to everyone."""
    _, observed = drawn(6, 3000, (0.5,), competing=0.05)
    weights = known_at(observed, 10.0)
    assert weights.sum() == pytest.approx(3000, rel=0.02)
    share = weights @ observed.event_by(10.0) / weights.sum()
    assert share == pytest.approx(observed_risk(observed, 10.0), rel=0.02)


def test_brier_and_auc_without_censoring_are_the_plain_ones() -> None:
    observed = Observed(time=np.array([1.0, 2.0, 9.0, 9.0]), cause=np.array([1, 2, 0, 1]))
    risk = np.array([0.7, 0.2, 0.4, 0.1])
    plain = np.mean([(1 - 0.7) ** 2, 0.2**2, 0.4**2, 0.1**2])
    assert brier(observed, risk, 5.0) == pytest.approx(plain)
    assert auc(observed, risk, 5.0) == 1.0
    assert auc(observed, np.array([0.3, 0.2, 0.4, 0.3]), 5.0) == pytest.approx(0.5)
    assert auc(observed, risk, 0.5) is None


def test_net_benefit_of_everyone_and_of_nobody() -> None:
    _, observed = drawn(7, 800, (0.5,))
    rate = observed_risk(observed, 5.0)
    everyone = net_benefit(observed, np.ones(800), 5.0, np.array([0.2]))
    assert everyone[0] == pytest.approx(rate - (1 - rate) * 0.25)
    assert net_benefit(observed, np.zeros(800), 5.0, np.array([0.2]))[0] == 0


def test_the_calibration_slope_is_one_for_the_true_score() -> None:
    features, observed = drawn(8, 6000, (0.8,), competing=0.02)
    assert calibration_slope(observed, 0.8 * features[:, 0]) == pytest.approx(1, abs=0.06)
    assert calibration_slope(observed, 1.6 * features[:, 0]) == pytest.approx(0.5, abs=0.03)
    assert calibration_slope(observed, np.zeros(6000)) is None


def test_calibration_groups_go_from_low_to_high_and_hold_everyone() -> None:
    features, observed = drawn(3, 2003, (1.0,))
    true = -np.expm1(-5 / 20 * np.exp(features[:, 0]))
    groups = calibration(observed, true, 5.0, true=true)
    assert sum(group.patients for group in groups) == 2003
    assert [group.predicted for group in groups] == sorted(group.predicted for group in groups)
    for group in groups:
        assert group.true == pytest.approx(group.predicted)
        assert group.observed == pytest.approx(group.predicted, abs=0.07)


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
    columns = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    observed = Observed(
        time=np.maximum(table["TimeToRecurrence"].to_numpy(np.float64) / 12, 0.01),
        cause=table["Recurrence"].to_numpy(np.int64),
    )
    assert len(table) > 290
    assert observed.event.sum() > 45
    fold = np.random.default_rng(0).permutation(len(table)) % 5
    score = np.zeros(len(table))
    for k in range(5):
        coefficients = fitted(columns[fold != k], observed.some(fold != k), 0.5)
        score[fold == k] = columns[fold == k] @ coefficients
        assert (coefficients > 0).all()  # each of them makes recurrence likelier, in every fold
    found = concordance(observed, score)
    assert found is not None
    assert found > 0.7
