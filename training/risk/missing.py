"""What is not known of a patient, given what is: a joint normal distribution of the columns.

Fitted by expectation and maximisation on rows with gaps (Little and Rubin, Statistical Analysis
with Missing Data, 2019, chapter 11): unbiased where what is missing depends on what was observed.
Means, covariances and the ends of each column are kept, and no patient. Draws are held within the
range that was seen: a pattern 6 does not become likely because 5 is frequent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]

_RIDGE = 1e-6
"""Of the variance, so that columns that depend on each other can be inverted."""


@dataclass(frozen=True, kw_only=True)
class Joint:
    """A joint normal distribution of P columns, and the ranges that were seen.

    Attributes:
        mean: [P].
        covariance: [P, P].
        low: smallest value seen, [P].
        high: largest value seen, [P].
    """

    mean: Floats
    covariance: Floats
    low: Floats
    high: Floats

    def first(self, count: int) -> Joint:
        """Of the first columns only."""
        return Joint(
            mean=self.mean[:count],
            covariance=self.covariance[:count, :count],
            low=self.low[:count],
            high=self.high[:count],
        )

    def conditional(self, gone: Booleans) -> tuple[Floats, Floats]:
        """How M missing columns depend on the known ones: slope [M, P - M], covariance [M, M]."""
        if gone.all():
            return np.zeros((len(gone), 0)), self.covariance
        across = self.covariance[np.ix_(~gone, gone)]
        slope = np.asarray(np.linalg.solve(self.covariance[np.ix_(~gone, ~gone)], across).T)
        return slope, self.covariance[np.ix_(gone, gone)] - slope @ across

    def completed(self, rows: Floats, normal: Floats) -> Floats:
        """Rows that lack the same columns, with their gaps drawn.

        Args:
            rows: [D, P], NaN where missing, in the same columns of each.
            normal: standard normal numbers, [D, P]; those of columns that are known are not used.
        """
        gone = np.isnan(rows[0])
        slope, rest = self.conditional(gone)
        mean = self.mean[gone] + (rows[:, ~gone] - self.mean[~gone]) @ slope.T
        filled = rows.copy()
        drawn = mean + normal[:, gone] @ _root(rest).T
        filled[:, gone] = np.clip(drawn, self.low[gone], self.high[gone])
        return filled


def fit_joint(table: Floats, *, weights: Floats | None = None, rounds: int = 100) -> Joint:
    """Of the rows [N, P] of a table, NaN where a value is missing; every column has some value.

    Args:
        table: the rows.
        weights: of the rows, [N]; 1 each if None.
        rounds: of expectation and maximisation, at most.
    """
    weight = np.ones(len(table)) if weights is None else weights
    low, high = np.nanmin(table, axis=0), np.nanmax(table, axis=0)
    variance = np.maximum(np.nanvar(table, axis=0), 1e-9)
    joint = Joint(mean=np.nanmean(table, axis=0), covariance=np.diag(variance), low=low, high=high)
    patterns = list(_patterns(table))
    for _ in range(rounds if np.isnan(table).any() else 1):
        filled, spread = table.copy(), np.zeros_like(joint.covariance)
        for rows, gone in patterns:
            slope, rest = joint.conditional(gone)
            known = table[np.ix_(rows, ~gone)] - joint.mean[~gone]
            filled[np.ix_(rows, gone)] = joint.mean[gone] + known @ slope.T
            spread[np.ix_(gone, gone)] += weight[rows].sum() * rest
        mean = weight @ filled / weight.sum()
        away = filled - mean
        covariance = (away.T * weight @ away + spread) / weight.sum() + _RIDGE * np.diag(variance)
        moved = np.abs(covariance - joint.covariance).max() / variance.max()
        joint = Joint(mean=mean, covariance=covariance, low=low, high=high)
        if moved < 1e-5:
            break
    return joint


def completed(table: Floats, joint: Joint, random: np.random.Generator) -> Floats:
    """One draw of every gap of a table [N, P]."""
    filled = table.copy()
    for rows, _ in _patterns(table):
        filled[rows] = joint.completed(table[rows], random.normal(size=(len(rows), len(table.T))))
    return filled


def _patterns(table: Floats) -> Iterator[tuple[npt.NDArray[np.intp], Booleans]]:
    """Rows that lack the same columns, and which; without those that lack none."""
    gone = np.isnan(table)
    kinds, which = np.unique(gone, axis=0, return_inverse=True)
    for k, kind in enumerate(kinds):
        if not kind.any():
            continue
        yield np.flatnonzero(which.reshape(-1) == k), kind


def _root(covariance: Floats) -> Floats:
    """A square root of a covariance that may be singular."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))
