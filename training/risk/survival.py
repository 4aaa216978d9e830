"""Proportional hazards: fitting by lifelines, predicting in NumPy, and how good a fit is.

A fit is plain arrays: coefficients and a cumulative baseline hazard on a grid of years. Risk at t
is 1 - exp(-H0(t) exp(x b)). This module knows times, events and columns of numbers, and not what
they stand for.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from lifelines import CoxPHFitter, KaplanMeierFitter
from lifelines.exceptions import ConvergenceError, ConvergenceWarning, StatisticalWarning
from lifelines.utils import concordance_index

from training.errors import InsufficientData

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]

YEARS: Final = np.linspace(0.0, 10.0, 41)
"""The grid of every baseline and curve: quarters of a year up to 10."""


@dataclass(frozen=True, kw_only=True)
class CoxFit:
    """A fitted proportional-hazards model.

    Attributes:
        centre: [P] the columns' means: where the baseline holds.
        coefficients: [P] log hazard ratio per unit of each column.
        baseline: [41] cumulative hazard at YEARS.
        remarks: what the fit warned of.
    """

    centre: Floats
    coefficients: Floats
    baseline: Floats
    remarks: tuple[str, ...] = ()

    def log_hazard(self, features: Floats) -> Floats:
        """[N] against the average of the columns, for features [N, P]."""
        return (features - self.centre) @ self.coefficients


def fit_cox(features: Floats, time: Floats, event: Booleans, *, spread: float) -> CoxFit:
    """Maximise the penalised partial likelihood (Efron's ties, Breslow's baseline).

    Args:
        features: [N, P]; the penalty treats columns as if each had unit variance.
        time: years, [N].
        event: whether the event ended it, [N].
        spread: how large log hazard ratios per standard deviation are expected to be: the L2
            penalty is that of a normal prior with this standard deviation, whose weight falls with
            the number of events.

    Raises:
        InsufficientData: no event, no follow-up, or the likelihood has no maximum.
    """
    if not event.any():
        raise InsufficientData(
            f"none of {len(time)} patients has an event: a hazard can't be fitted; add patients or "
            "follow-up"
        )
    table = pd.DataFrame(features, columns=[f"x{index}" for index in range(features.shape[1])])
    table["time"], table["event"] = time, event
    fitter = CoxPHFitter(
        penalizer=1.0 / (len(time) * spread**2)
    )  # lifelines multiplies by the number of patients
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fitter.fit(table, duration_col="time", event_col="event")
        except ConvergenceError as error:
            raise InsufficientData(
                f"the hazards of {len(time)} patients with {event.sum()} events don't converge "
                f"({error})"
            ) from error
    remarks = tuple(
        str(w.message)
        for w in caught
        if issubclass(w.category, (ConvergenceWarning, StatisticalWarning))
    )
    for other in caught:
        if not issubclass(other.category, (ConvergenceWarning, StatisticalWarning)):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    hazard = fitter.baseline_cumulative_hazard_["baseline cumulative hazard"]
    steps = np.searchsorted(hazard.index.to_numpy(), YEARS, side="right") - 1
    return CoxFit(
        centre=features.mean(axis=0),
        coefficients=fitter.params_.to_numpy(np.float64),
        baseline=np.where(steps >= 0, hazard.to_numpy()[np.maximum(steps, 0)], 0.0),
        remarks=remarks,
    )


def risk_curve(baseline: Floats, log_hazard: Floats | float) -> Floats:
    """Cumulative incidence on the baseline's grid."""
    return np.asarray(-np.expm1(-baseline * np.exp(log_hazard)))


def concordance(time: Floats, event: Booleans, log_hazard: Floats) -> float:
    """Harrell's C: share of comparable pairs in which the higher hazard has the earlier event; 0.5
    is chance.
    """
    return float(concordance_index(time, -log_hazard, event))


def observed_risk(time: Floats, event: Booleans, years: float) -> float:
    """1 - Kaplan-Meier estimate at `years`."""
    return 1.0 - float(KaplanMeierFitter().fit(time, event).predict(years))


@dataclass(frozen=True, kw_only=True)
class CalibrationGroup:
    """Patients of similar predicted risk.

    Attributes:
        patients: how many.
        predicted: their mean predicted risk.
        observed: 1 - Kaplan-Meier.
        true: their mean true risk where the generator knows it.
    """

    patients: int
    predicted: float
    observed: float
    true: float | None


def calibration(
    predicted: Floats,
    time: Floats,
    event: Booleans,
    years: float,
    *,
    groups: int = 5,
    true: Floats | None = None,
) -> list[CalibrationGroup]:
    """Predicted next to observed (and true) risk at `years` in groups of equal size, from low to
    high prediction.
    """
    order = np.argsort(predicted, kind="stable")
    return [
        CalibrationGroup(
            patients=len(members),
            predicted=float(predicted[members].mean()),
            observed=observed_risk(time[members], event[members], years),
            true=None if true is None else float(true[members].mean()),
        )
        for members in np.array_split(order, groups)
        if len(members)
    ]
