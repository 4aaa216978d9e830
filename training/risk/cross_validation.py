"""How good a risk model is on patients with real outcomes: by cross-validation, beside a model of
the clinical variables alone and the cohort's own average.

Every part of the fit is made anew on the other folds: components of the image, completions of what
is missing, spreads, hazards. Patients are cases: no case is in two folds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from training.errors import InsufficientData
from training.risk.fitting import MIN_EVENTS, Patients, RiskModelConfig, fit_risk_model
from training.risk.hazards import LIMIT, Floats
from training.risk.prediction import CAUSE_WORDS, CAUSES, Interval
from training.risk.risk_model import RiskModel
from training.risk.survival import (
    CalibrationGroup,
    Observed,
    auc,
    brier,
    calibration,
    calibration_slope,
    concordance,
    observed_risk,
)

YEARS = 5.0
"""At which AUC, Brier score and calibration are given."""
_RESAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Predictions for every patient by a model that has not seen the patient, under the treatment
    that each had.

    Attributes:
        score: log hazard of the endpoint, [N].
        risk: of the endpoint within YEARS, [N].
    """

    score: Floats
    risk: Floats


@dataclass(frozen=True, kw_only=True)
class CrossValidatedScore:
    """How good the predictions of `HeldOut` are.

    Attributes:
        patients: how many.
        events: of the endpoint among them.
        folds: each predicted by a model that was fitted on the others.
        concordance: with the 95 % interval of a bootstrap of the patients.
        concordance_without_image: of the clinical variables alone; None where there is no image.
        auc: of the 5-year risk; None if nobody has an event by then.
        brier: of the 5-year risk.
        brier_of_average: of the same risk for everyone: what a model has to beat.
        calibration_slope: of the score; 1 where predictions are as far apart as outcomes are.
        calibration: groups of patients from low to high predicted 5-year risk.
    """

    patients: int
    events: int
    folds: int
    concordance: Interval | None
    concordance_without_image: Interval | None
    auc: float | None
    brier: float
    brier_of_average: float
    calibration_slope: float | None
    calibration: list[CalibrationGroup]


def cross_validate(
    patients: Patients, config: RiskModelConfig, *, folds: int, seed: int
) -> CrossValidatedScore:
    """Score the fit of a config by cross-validation.

    Raises:
        InsufficientData: see `require_folds`.
    """
    require_folds(patients, folds)
    found = predict_held_out(patients, config, folds=folds, seed=seed)
    blind = None
    if config.components and patients.embeddings.shape[1]:
        alone = patients.without_image()
        blind = predict_held_out(alone, replace(config, components=0), folds=folds, seed=seed)
    observed = observed_of(patients)
    average = np.full(len(patients), observed_risk(observed, YEARS))
    return CrossValidatedScore(
        patients=len(patients),
        events=int(observed.event.sum()),
        folds=folds,
        concordance=concordance_interval(observed, found.score, seed=seed),
        concordance_without_image=None
        if blind is None
        else concordance_interval(observed, blind.score, seed=seed),
        auc=auc(observed, found.risk, YEARS),
        brier=brier(observed, found.risk, YEARS),
        brier_of_average=brier(observed, average, YEARS),
        calibration_slope=calibration_slope(observed, found.score),
        calibration=calibration(observed, found.risk, YEARS),
    )


def observed_of(patients: Patients) -> Observed:
    """What happened to them, of the cause that a model of these patients is about."""
    return Observed(time=patients.time, cause=patients.cause, of=patients.endpoint)


def require_folds(patients: Patients, folds: int) -> None:
    """Refuse a cohort whose folds would leave too few events for a fit.

    Raises:
        InsufficientData: fewer patients than folds, or too few events of the endpoint.
    """
    if folds > len(patients):
        raise InsufficientData(
            f"{len(patients)} patients can't be shared among {folds} folds; ask for fewer folds"
        )
    events = int(patients.counts()[patients.endpoint])
    left = events - -(-events // folds)
    if left < MIN_EVENTS:
        word = CAUSE_WORDS[CAUSES[patients.endpoint - 1]]
        raise InsufficientData(
            f"{events} of {len(patients)} patients have the event {word} within {LIMIT:g} years: "
            f"without a fold of {folds}, {left} are left, and a fit needs {MIN_EVENTS}; add "
            "patients or follow-up"
        )


def predict_held_out(
    patients: Patients, config: RiskModelConfig, *, folds: int, seed: int
) -> HeldOut:
    """Predict each fold by a model of the others; every fold has its share of events."""
    fold = folds_by_event(patients.cause, folds, seed)
    score, risk = np.zeros(len(patients)), np.zeros(len(patients))
    for k in range(folds):
        model = fit_risk_model(
            patients.some(np.flatnonzero(fold != k)),
            card={"simulated_outcomes": False},
            config=replace(config, replicas=2),
            seed=seed,
        )
        rows = np.flatnonzero(fold == k)
        score[rows], risk[rows] = _predict(model, patients.some(rows))
    return HeldOut(score=score, risk=risk)


def _predict(model: RiskModel, patients: Patients) -> tuple[Floats, Floats]:
    """Score and risk within YEARS of each, with the treatment that each had."""
    images = list(patients.embeddings) if model.needs_image else [None] * len(patients)
    treated = np.zeros(len(patients), bool) if patients.treated is None else patients.treated
    score, risk = model.endpoint_risks(images, patients.covariates, treated, years=YEARS)
    return score, risk


def folds_by_event(cause: npt.NDArray[np.integer], folds: int, seed: int) -> npt.NDArray[np.intp]:
    """Fold of each patient, [N]: causes are shared out evenly."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(cause))
    order = order[np.argsort(cause[order], kind="stable")]
    fold = np.empty(len(cause), np.intp)
    fold[order] = np.arange(len(cause)) % folds
    return fold


def concordance_interval(observed: Observed, score: Floats, *, seed: int) -> Interval | None:
    """Concordance with the 95 % interval of a bootstrap of the patients; None without an event."""
    whole = concordance(observed, score)
    if whole is None:
        return None
    random, patients = np.random.default_rng(seed), len(score)
    samples = (random.integers(patients, size=patients) for _ in range(_RESAMPLES))
    drawn = [concordance(observed.some(rows), score[rows]) for rows in samples]
    lower, upper = np.percentile([value for value in drawn if value is not None], [2.5, 97.5])
    return Interval(estimate=whole, lower=min(float(lower), whole), upper=max(float(upper), whole))
