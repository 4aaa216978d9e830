"""How good predicted risks are where follow-up is censored and other causes compete.

Patients who had another event first never have this one: they stay at risk of it here, as in the
subdistribution (Fine and Gray, JASA 1999), so that what is compared is the cumulative incidence.
This module knows times, causes and predicted risks, and not what they stand for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from lifelines import KaplanMeierFitter
from lifelines.utils import concordance_index

from training.risk.hazards import FollowUp, Prior, fit_cause

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]
Rows = npt.NDArray[np.integer] | npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What happened to N patients, and which cause is asked about.

    Attributes:
        time: years to the event or to the end of follow-up, [N].
        cause: 0 for none, or the number of the cause that ended it, [N].
        of: the number of the cause that risks are of.
    """

    time: Floats
    cause: Integers
    of: int = 1

    def some(self, rows: Rows) -> Observed:
        """These patients only."""
        return Observed(time=self.time[rows], cause=self.cause[rows], of=self.of)

    @property
    def event(self) -> npt.NDArray[np.bool_]:
        """Whether it was that cause, [N]."""
        return np.asarray(self.cause == self.of)

    def event_by(self, years: float) -> npt.NDArray[np.bool_]:
        """Whether it was that cause, and by then, [N]."""
        return np.asarray(self.event & (self.time <= years))


def concordance(observed: Observed, score: Floats) -> float | None:
    """Share of comparable pairs in which the higher score has the earlier event (Harrell's C; with
    competing causes Wolbers et al., Epidemiology 2009); 0.5 is chance. None without an event.

    Args:
        observed: what happened.
        score: the higher, the sooner; [N].
    """
    event, time = observed.event, observed.time
    if not event.any():
        return None
    until = np.where((observed.cause == 0) | event, time, time.max() + 1.0)
    return float(concordance_index(until, -score, event))


def observed_risk(observed: Observed, years: float) -> float:
    """Aalen and Johansen's estimate of the cumulative incidence at `years`."""
    time, ended = observed.time, observed.cause > 0
    free, incidence = 1.0, 0.0
    for at in np.unique(time[ended & (time <= years)]):
        at_risk, now = (time >= at).sum(), time == at
        incidence += free * (now & observed.event).sum() / at_risk
        free *= 1.0 - (now & ended).sum() / at_risk
    return float(incidence)


def known_at(observed: Observed, years: float) -> Floats:
    """Weight of each patient whose state at `years` is known, [N]: the inverse of the probability
    of not being censored before; 0 of the others.
    """
    time, cause = observed.time, observed.cause
    censoring = KaplanMeierFitter().fit(time, cause == 0)
    ended = (time <= years) & (cause > 0)
    until = np.where(ended, np.nextafter(time, 0.0), years)
    followed = np.asarray(censoring.predict(until), np.float64)
    weights = np.zeros(len(time))
    known = (ended | (time > years)) & (followed > 0)
    weights[known] = 1.0 / followed[known]
    return weights


def brier(observed: Observed, risk: Floats, years: float) -> float:
    """Mean squared difference between predicted risk [N] and event by `years`, weighted for
    censoring (Schoop et al., Biom J 2011): 0 is perfect.
    """
    weights = known_at(observed, years)
    return float((weights * (observed.event_by(years) - risk) ** 2).sum() / weights.sum())


def auc(observed: Observed, risk: Floats, years: float) -> float | None:
    """Probability that of two patients, one with the event by `years` and one without, the first
    has the higher predicted risk, weighted for censoring (Blanche et al., Stat Med 2013). None
    where one of the two kinds is missing.
    """
    weights, event = known_at(observed, years), observed.event_by(years)
    cases, controls = weights * event, weights * ~event
    if not cases.any() or not controls.any():
        return None
    # Controls of a lower risk, and half of those of the same, for each distinct risk in order.
    _, place = np.unique(risk, return_inverse=True)
    alike = np.bincount(place, weights=controls)
    lower = np.cumsum(alike) - alike
    return float(cases @ (lower + alike / 2)[place] / (cases.sum() * controls.sum()))


def net_benefit(observed: Observed, risk: Floats, years: float, thresholds: Floats) -> Floats:
    """Of treating those whose risk is at least a threshold, for thresholds [T]: events found less
    the others treated at the threshold's odds, per patient (Vickers and Elkin, Med Decis Making
    2006).
    """
    found = np.zeros(len(thresholds))
    for k, threshold in enumerate(thresholds):
        chosen = np.flatnonzero(risk >= threshold)
        if len(chosen):
            events = observed_risk(observed.some(chosen), years)
            odds = threshold / (1 - threshold)
            found[k] = len(chosen) / len(risk) * (events - (1 - events) * odds)
    return found


def calibration_slope(observed: Observed, score: Floats) -> float | None:
    """Coefficient of the score (a log hazard, [N]) in a hazard model of its own: 1 where
    predictions are as far apart as outcomes are; below it they are too far apart. None without an
    event, or where all scores are alike.
    """
    spread = float(score.std())
    if spread < 1e-9 or not observed.event.any():
        return None
    fit = fit_cause(
        (score - score.mean())[:, None] / spread,
        FollowUp.of(observed.time, observed.cause),
        observed.of,
        Prior.of(np.array([10.0])),
    )
    return float(fit.coefficients[0] / spread)


@dataclass(frozen=True, kw_only=True)
class CalibrationGroup:
    """Patients of similar predicted risk.

    Attributes:
        patients: how many.
        predicted: their mean predicted risk.
        observed: cumulative incidence.
        true: their mean true risk where the generator knows it.
    """

    patients: int
    predicted: float
    observed: float
    true: float | None


def calibration(
    observed: Observed,
    predicted: Floats,
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
            observed=observed_risk(observed.some(members), years),
            true=None if true is None else float(true[members].mean()),
        )
        for members in np.array_split(order, groups)
        if len(members)
    ]
