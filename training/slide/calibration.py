"""Whether a probability means what it says: of the answers given with 80 %, about 80 % are right.

Temperature scaling (Guo et al., ICML 2017): one number divides all logits. It is the one under
which held-out answers are most likely, and does not change which answer is the most probable. Above
1, answers were too sure. The logits of grade groups are those of P(group > k): their median stays.

What is reported is cross-fitted: the slides of a fold are calibrated by the temperature of the
others. Knows neither models nor slides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

Probabilities = npt.NDArray[np.floating]
Temper = Callable[[Probabilities, float], npt.NDArray[np.float32]]
"""Takes probabilities [N, K] and a temperature to the calibrated ones."""

BINS: Final = 10
"""Of the confidence, equally wide."""
MIN_SLIDES: Final = 30
"""Held-out slides below which no temperature under 1 is taken: a few that are easy would make every
answer surer.
"""
_WIDEST: Final = 10.0
_TINY: Final = 1e-12


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Answers by how sure they were, of BINS bins.

    Attributes:
        confidence: mean probability of the most probable answer, None where the bin is empty.
        accuracy: share of them that was right, likewise.
        weight: share of all answers.
    """

    confidence: list[float | None]
    accuracy: list[float | None]
    weight: list[float]

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of confidence and accuracy."""
        bins = zip(self.confidence, self.accuracy, self.weight, strict=True)
        return sum(w * abs(c - a) for c, a, w in bins if c is not None and a is not None)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How held-out probabilities were calibrated.

    Attributes:
        temperature: of all held-out answers: the model's own.
        answers: number of them.
        error_before: expected calibration error of the answers as they were.
        error_after: of each under the temperature of the other folds.
        loss_before: mean negative log likelihood, likewise.
        loss_after: likewise.
        before, after: the bins.
    """

    temperature: float
    answers: int
    error_before: float
    error_after: float
    loss_before: float
    loss_after: float
    before: Reliability
    after: Reliability


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Held-out probabilities with the truth.

    Attributes:
        probabilities: [N, K].
        truth: index of the true answer, [N].
        fold: of each, [N]: those of a fold are calibrated by the others.
        weights: of each, [N].
        slides: number of slides that they are of.
    """

    probabilities: Probabilities
    truth: npt.NDArray[np.integer]
    fold: npt.NDArray[np.integer]
    weights: npt.NDArray[np.floating]
    slides: int

    def part(self, chosen: npt.NDArray[np.bool_]) -> Answers:
        """Some of them."""
        return Answers(
            probabilities=self.probabilities[chosen],
            truth=self.truth[chosen],
            fold=self.fold[chosen],
            weights=self.weights[chosen],
            slides=self.slides,
        )


def class_weights(truth: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Weights under which every class counts the same, as the models are fitted; mean 1."""
    counts = np.bincount(truth)
    weights = 1.0 / counts[truth]
    return np.asarray(weights / weights.mean())


def tempered(probabilities: Probabilities, temperature: float) -> npt.NDArray[np.float32]:
    """Softmax probabilities [N, K] with their logits divided by the temperature."""
    logits = np.log(np.maximum(probabilities, _TINY**3)) / temperature
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=-1, keepdims=True), np.float32)


def tempered_groups(probabilities: Probabilities, temperature: float) -> npt.NDArray[np.float32]:
    """Ordinal probabilities [N, K] with the logits of P(group > k) divided by the temperature."""
    above = 1.0 - np.cumsum(np.asarray(probabilities, np.float64), axis=-1)[..., :-1]
    above = np.clip(above, 1e-7, 1.0 - 1e-7)
    odds = np.log(above / (1.0 - above)) / temperature
    above = 1.0 / (1.0 + np.exp(-odds))
    ends = np.ones_like(above[..., :1]), np.zeros_like(above[..., :1])
    steps = np.concatenate([ends[0], above], axis=-1) - np.concatenate([above, ends[1]], axis=-1)
    return np.asarray(np.maximum(steps, 0.0), np.float32)


def calibrate(answers: Answers, temper: Temper) -> Calibration:
    """Temperature of held-out answers, and what it changes.

    Args:
        answers: at least one.
        temper: `tempered` or `tempered_groups`, or one of them with what follows it.
    """
    before = temper(answers.probabilities, 1.0)
    after = np.empty_like(before)
    for fold in np.unique(answers.fold):
        own = answers.fold == fold
        others = 1.0 if own.all() else _temperature(answers.part(~own), temper)
        after[own] = temper(answers.probabilities[own], others)
    bins = [reliability(each, answers) for each in (before, after)]
    return Calibration(
        temperature=_temperature(answers, temper),
        answers=len(answers.truth),
        error_before=bins[0].error,
        error_after=bins[1].error,
        loss_before=_loss(before, answers),
        loss_after=_loss(after, answers),
        before=bins[0],
        after=bins[1],
    )


def reliability(probabilities: Probabilities, answers: Answers) -> Reliability:
    """Answers by how sure they were."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == answers.truth
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    weight, sure, correct = (
        np.bincount(bins, weights=answers.weights * values, minlength=BINS)
        for values in (np.ones(len(right)), confidence, right)
    )

    def means(sums: npt.NDArray[Any]) -> list[float | None]:
        return [float(s / w) if w > 0 else None for s, w in zip(sums, weight, strict=True)]

    return Reliability(
        confidence=means(sure), accuracy=means(correct), weight=(weight / weight.sum()).tolist()
    )


def _temperature(answers: Answers, temper: Temper) -> float:
    lowest = 1.0 / _WIDEST if answers.slides >= MIN_SLIDES else 1.0

    def loss(log_temperature: float) -> float:
        return _loss(temper(answers.probabilities, float(np.exp(log_temperature))), answers)

    found = minimize_scalar(
        loss, bounds=(np.log(lowest), np.log(_WIDEST)), method="bounded", options={"xatol": 1e-3}
    )
    best = float(np.exp(found.x))
    return best if loss(np.log(best)) < loss(0.0) else 1.0


def _loss(probabilities: Probabilities, answers: Answers) -> float:
    likelihood = probabilities[np.arange(len(answers.truth)), answers.truth]
    return float(np.average(-np.log(np.maximum(likelihood, _TINY)), weights=answers.weights))
