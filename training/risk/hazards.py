"""Competing hazards on discrete time: fitting by penalised likelihood, incidences that sum right.

Each cause k has a hazard that is constant within quarters of a year, per year

    log h_k(t | x) = z(t) g_k + x b_k

z holds a constant, log t and a natural cubic spline in log t, so that with g_3 = g_4 = 0 the hazard
is that of a Weibull distribution. Events and years at risk of one patient in one quarter are those
of a Poisson variable (Holford, Biometrics 1980), causes part by their indicators (Prentice et al.,
Biometrics 1978), and the incidences

    F_k(t) = sum over quarters of S h_k / h (1 - exp(-h dt)),   h = sum of h_k

sum with the probability S that nothing has happened yet to 1, whatever the coefficients.

Coefficients have normal priors. Their spread is estimated per group of columns by maximising the
marginal likelihood (MacKay's evidence framework, Neural Computation 1992), held by a weak prior of
its own. This module knows times, causes and columns of numbers, and not what they stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]
Booleans = npt.NDArray[np.bool_]

QUARTER: Final = 0.25
"""Years in which a hazard is constant."""
LIMIT: Final = 15.0
"""Years of follow-up that count; whoever is followed longer is event-free at the end of them."""
YEARS: Final = np.arange(0.0, 10.0 + QUARTER / 2, QUARTER)
"""[41] of every curve."""
QUARTERS: Final = round(LIMIT / QUARTER)
CURVE_QUARTERS: Final = len(YEARS) - 1

_KNOTS = np.log([0.5, 2.0, 5.0, 12.0])
_TIME_SPREADS = (np.inf, 1.0, 0.5, 0.5)
"""Prior spreads of g: none for the constant; the shape of a Weibull hazard is between 0 and 2 for
two of three, and its logarithm departs from a line by half."""
EXPECTED: Final = 0.3
_WEIGHT = 2.0
"""EXPECTED is what a spread is thought to be before the data, per standard deviation of a column;
_WEIGHT how many columns that counts as: one column alone can't estimate its spread."""
_ETA_CEILING = 12.0
"""Log hazard ratio beyond which nothing changes: exp of more is a certain event."""


def _time_columns() -> Floats:
    """z [QUARTERS, 4]: the spline's columns have unit variance and are orthogonal to the first two
    over the quarters.
    """
    u = np.log((np.arange(QUARTERS) + 0.5) * QUARTER)
    last, before = _KNOTS[-1], _KNOTS[-2]

    def truncated(knot: float) -> Floats:
        cubes = np.maximum(u - knot, 0.0) ** 3 - np.maximum(u - last, 0.0) ** 3
        return np.asarray(cubes / (last - knot))

    curved = np.stack([truncated(knot) - truncated(before) for knot in _KNOTS[:-2]], axis=1)
    plain = np.stack([np.ones_like(u), u - np.log(5.0)], axis=1)
    curved = curved - plain @ np.linalg.lstsq(plain, curved, rcond=None)[0]
    orthogonal, _ = np.linalg.qr(curved)
    return np.hstack([plain, orthogonal * np.sqrt(QUARTERS)])


TIME_COLUMNS: Final = _time_columns()


@dataclass(frozen=True, kw_only=True)
class FollowUp:
    """Time at risk and what ended it, of N patients.

    Attributes:
        at_risk: years in each quarter, [N, QUARTERS].
        last: the quarter in which follow-up ended, [N].
        cause: 0 for none, or which cause from 1 on ended it, [N].
    """

    at_risk: Floats
    last: npt.NDArray[np.intp]
    cause: npt.NDArray[np.int64]

    @classmethod
    def of(cls, time: Floats, cause: Integers) -> FollowUp:
        """From years to the event or to the end of follow-up, above 0, and causes."""
        held = np.minimum(time, LIMIT)
        edges = np.arange(QUARTERS) * QUARTER
        return cls(
            at_risk=np.clip(held[:, None] - edges, 0.0, QUARTER),
            last=np.minimum(np.ceil(held / QUARTER).astype(np.intp) - 1, QUARTERS - 1),
            cause=np.where(time <= LIMIT, cause, 0).astype(np.int64),
        )

    def repeated(self, times: int) -> FollowUp:
        """The same patients several times over."""
        return FollowUp(
            at_risk=np.tile(self.at_risk, (times, 1)),
            last=np.tile(self.last, times),
            cause=np.tile(self.cause, times),
        )


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Independent normal priors of one cause's parameters: g, then b; T = 4 + P.

    Attributes:
        precision: 1 / spread², [T]; 0 for none.
        mean: [T].
    """

    precision: Floats
    mean: Floats

    @classmethod
    def of(cls, spreads: Floats) -> Prior:
        """Around 0, of b's spreads [P]; a spread of 0 holds its coefficient at 0."""
        every = np.concatenate([_TIME_SPREADS, np.maximum(spreads, 1e-5)])
        return cls(precision=1.0 / every**2, mean=np.zeros(len(every)))

    def around_a_draw(self, random: np.random.Generator) -> Prior:
        """The same spread around a draw of itself: the anchor of a bootstrap replica."""
        spread = np.where(self.precision > 0, 1.0 / np.sqrt(np.maximum(self.precision, 1e-12)), 0)
        return Prior(precision=self.precision, mean=random.normal(size=len(spread)) * spread)


@dataclass(frozen=True, kw_only=True)
class CauseFit:
    """One cause's parameters at the maximum.

    Attributes:
        time: g, [4].
        coefficients: b, [P].
        covariance: of b: inverse curvature, [P, P].
        log_likelihood: at the maximum, without the prior.
    """

    time: Floats
    coefficients: Floats
    covariance: Floats
    log_likelihood: float

    @property
    def log_baseline(self) -> Floats:
        """Log hazard per year where all columns are 0, [QUARTERS]."""
        return np.asarray(TIME_COLUMNS @ self.time)

    @property
    def parameters(self) -> Floats:
        """g and b, [T]."""
        return np.concatenate([self.time, self.coefficients])


def fit_cause(
    columns: Floats,
    follow_up: FollowUp,
    cause: int,
    prior: Prior,
    *,
    weights: Floats | None = None,
    start: Floats | None = None,
) -> CauseFit:
    """Maximise the penalised likelihood of one cause's hazard, by Newton's method.

    Args:
        columns: x, [N, P], centred and of unit variance.
        follow_up: of the patients.
        cause: which one, from 1 on; at least one patient has it.
        prior: of the parameters.
        weights: of the patients, [N]; 1 each if None.
        start: parameters to start from, [T].
    """
    weight = np.ones(len(columns)) if weights is None else weights
    likelihood = _Likelihood(columns, follow_up, follow_up.cause == cause, weight)
    parameters = likelihood.start() if start is None else start

    def objective(at: Floats) -> float:
        penalty = 0.5 * float(prior.precision @ (at - prior.mean) ** 2)
        return likelihood.value(at) - penalty

    value = objective(parameters)
    for _ in range(60):
        gradient, curvature = likelihood.derivatives(parameters)
        gradient = gradient - prior.precision * (parameters - prior.mean)
        step = np.linalg.solve(curvature + np.diag(prior.precision + 1e-9), gradient)
        step *= min(1.0, 3.0 / max(np.abs(step).max(), 1e-12))
        for _ in range(30):
            found = objective(parameters + step)
            if found >= value - 1e-9 * abs(value):
                break
            step /= 2
        parameters, gain, value = parameters + step, found - value, found
        if np.abs(step).max() < 1e-6 or abs(gain) < 1e-10 * abs(value):
            break
    _, curvature = likelihood.derivatives(parameters)
    covariance = np.asarray(np.linalg.inv(curvature + np.diag(prior.precision + 1e-9)))
    times = TIME_COLUMNS.shape[1]
    return CauseFit(
        time=parameters[:times],
        coefficients=parameters[times:],
        covariance=covariance[times:, times:],
        log_likelihood=likelihood.value(parameters),
    )


@dataclass(frozen=True)
class _Likelihood:
    columns: Floats
    follow_up: FollowUp
    event: Booleans
    weight: Floats

    def start(self) -> Floats:
        """The hazard that does not depend on time or columns."""
        years = float(self.weight @ self.follow_up.at_risk.sum(axis=1))
        parameters = np.zeros(TIME_COLUMNS.shape[1] + self.columns.shape[1])
        parameters[0] = np.log(max(float(self.weight @ self.event), 0.5) / years)
        return parameters

    def _parts(self, parameters: Floats) -> tuple[Floats, Floats, Floats]:
        times = TIME_COLUMNS.shape[1]
        log_ratio = np.minimum(self.columns @ parameters[times:], _ETA_CEILING)
        log_baseline = TIME_COLUMNS @ parameters[:times]
        return log_ratio, log_baseline, np.exp(np.minimum(log_baseline, _ETA_CEILING))

    def value(self, parameters: Floats) -> float:
        log_ratio, log_baseline, baseline = self._parts(parameters)
        expected = np.exp(log_ratio) * (self.follow_up.at_risk @ baseline)
        events = self.event * (log_ratio + log_baseline[self.follow_up.last])
        return float(self.weight @ (events - expected))

    def derivatives(self, parameters: Floats) -> tuple[Floats, Floats]:
        """Gradient [T] and negative curvature [T, T]."""
        log_ratio, _, baseline = self._parts(parameters)
        ratio = self.weight * np.exp(log_ratio)
        expected = ratio * (self.follow_up.at_risk @ baseline)
        events = np.bincount(
            self.follow_up.last, weights=self.weight * self.event, minlength=QUARTERS
        )
        by_quarter = baseline * (self.follow_up.at_risk.T @ ratio)
        gradient = np.concatenate(
            [
                TIME_COLUMNS.T @ (events - by_quarter),
                self.columns.T @ (self.weight * self.event - expected),
            ]
        )
        mixed = (self.columns * ratio[:, None]).T @ self.follow_up.at_risk
        mixed = (mixed * baseline) @ TIME_COLUMNS
        return gradient, np.block(
            [
                [(TIME_COLUMNS.T * by_quarter) @ TIME_COLUMNS, mixed.T],
                [mixed, (self.columns.T * expected) @ self.columns],
            ]
        )


def estimate_spreads(
    columns: Floats,
    follow_up: FollowUp,
    cause: int,
    spreads: Floats,
    groups: Integers,
    *,
    weights: Floats | None = None,
) -> Floats:
    """Spread of each column's coefficient, [P]: one for all columns of a group, of the largest
    marginal likelihood (steps of expectation and maximisation around Laplace's approximation).

    Args:
        columns: x, [N, P], as `fit_cause` takes them.
        follow_up: of the patients.
        cause: which one.
        spreads: to start from, [P].
        groups: which group a column is of, [P]; below 0, its spread stays.
        weights: of the patients, [N]; 1 each if None.
    """
    start: Floats | None = None
    for _ in range(25):
        fit = fit_cause(columns, follow_up, cause, Prior.of(spreads), weights=weights, start=start)
        start = fit.parameters
        second = fit.coefficients**2 + np.diag(fit.covariance)
        before = spreads
        spreads = spreads.copy()
        for group in np.unique(groups[groups >= 0]):
            members = groups == group
            total = second[members].sum() + _WEIGHT * EXPECTED**2
            spreads[members] = np.sqrt(total / (members.sum() + _WEIGHT))
        if np.abs(spreads - before).max() < 1e-3:
            break
    return spreads


def incidence(log_baseline: Floats, log_ratio: Floats) -> Floats:
    """Cumulative incidence of each cause at the edges of the quarters.

    Args:
        log_baseline: log hazards per year, [..., K, Q].
        log_ratio: log hazard ratios, [..., K].

    Returns:
        [..., K, Q + 1], 0 at first; its sum over K stays below 1.
    """
    hazard = np.exp(
        np.minimum(log_baseline + np.minimum(log_ratio, _ETA_CEILING)[..., None], _ETA_CEILING)
    )
    total = hazard.sum(axis=-2)
    gone = np.cumsum(total * QUARTER, axis=-1)
    before = np.exp(-np.concatenate([np.zeros_like(gone[..., :1]), gone[..., :-1]], axis=-1))
    falls = before * -np.expm1(-total * QUARTER)
    steps = np.cumsum(hazard / total[..., None, :] * falls[..., None, :], axis=-1)
    return np.concatenate([np.zeros_like(steps[..., :1]), steps], axis=-1)


def cumulative_hazard(follow_up: FollowUp, causes: Sequence[int]) -> Floats:
    """Nelson and Aalen's cumulative hazard of each cause at each patient's last quarter, [N, K]:
    what an imputation has to know of the outcome (White and Royston, Stat Med 2009).
    """
    years = np.maximum(follow_up.at_risk.sum(axis=0), 1e-9)
    found = []
    for cause in causes:
        events = np.bincount(follow_up.last[follow_up.cause == cause], minlength=QUARTERS)
        found.append(follow_up.at_risk @ (events / years))
    return np.stack(found, axis=1)
