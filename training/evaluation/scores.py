"""Scores of features on labelled tiles: linear probe, nearest neighbours, few examples a class; the
same folds for all, and how sure a score is.

Balanced accuracy throughout: the mean over classes of the share that is named right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Features = NDArray[np.float32]
Labels = NDArray[np.int64]
Model = Callable[[], Any]
"""Makes an unfitted scikit-learn classifier."""

SURE: Final = 0.95
"""Something beats another if it scores higher in this share of bootstrap samples."""
DRAWS: Final = 1000
"""Of the bootstrap."""
SHOTS: Final = (1, 2, 4, 8, 16)
SHOT_DRAWS: Final = 5
"""Random choices of the examples, for each number of them."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Balanced accuracy over folds.

    Attributes:
        mean: over all folds.
        spread: standard deviation over folds.
        low, high: 95 % interval, from a bootstrap over tiles, or groups where they are known.
        folds: each fold's.
    """

    mean: float
    spread: float
    low: float
    high: float
    folds: list[float]

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True, kw_only=True)
class Folds:
    """How tiles are divided, the same for all features.

    Attributes:
        labels: class of each tile, [N].
        units: which tiles belong together, int64 [N]; each its own where groups are not known.
        count: folds of a cross-validation.
        repeats: cross-validations with other folds.
        seed: of the folds and of the bootstrap.
        official: whether each tile is learnt from, bool [N], the others being tested on; None
            cross-validates. `count` and `repeats` are 1 with it.
    """

    labels: Labels
    units: Labels
    count: int
    repeats: int
    seed: int
    official: NDArray[np.bool_] | None = None

    @property
    def learnable(self) -> Labels:
        """Tiles that a fold learns from."""
        learnt = np.ones(len(self.labels), bool) if self.official is None else self.official
        return np.flatnonzero(learnt)

    @property
    def tested(self) -> Labels:
        """Tiles that a fold tests on."""
        if self.official is None:
            return np.arange(len(self.labels))
        return np.flatnonzero(~self.official)

    def splits(self) -> Iterator[tuple[int, Labels, Labels]]:
        """(repeat, train, test)."""
        if self.official is not None:
            yield 0, self.learnable, self.tested
            return
        grouped = len(np.unique(self.units)) < len(self.units)
        kind = StratifiedGroupKFold if grouped else StratifiedKFold
        for repeat in range(self.repeats):
            folds = kind(self.count, shuffle=True, random_state=self.seed + repeat)
            units = self.units if grouped else None
            for train, test in folds.split(self.labels, self.labels, units):
                yield repeat, train, test

    def draws(self) -> Iterator[Labels]:
        """Tested tiles of each bootstrap sample: units drawn with replacement."""
        random = np.random.default_rng(self.seed)
        tested = self.tested
        order = tested[np.argsort(self.units[tested], kind="stable")]
        parts = np.split(order, np.flatnonzero(np.diff(self.units[order])) + 1)
        for _ in range(DRAWS):
            chosen = random.integers(len(parts), size=len(parts))
            yield np.concatenate([parts[k] for k in chosen])


def linear(penalty: float) -> Model:
    """Logistic regression on standardised features, classes counting equally."""
    return lambda: make_pipeline(
        StandardScaler(),
        LogisticRegression(C=1.0 / penalty, max_iter=2000, class_weight="balanced"),
    )


def nearest(neighbours: int) -> Model:
    """The most frequent class of the nearest by cosine, of standardised features."""
    return lambda: make_pipeline(
        StandardScaler(), KNeighborsClassifier(neighbours, metric="cosine")
    )


def forest(seed: int) -> Model:
    """A random forest of 100 trees, classes counting equally."""
    return lambda: RandomForestClassifier(100, class_weight="balanced", random_state=seed)


def predictions(
    features: Features, folds: Folds, model: Model, tested: Sequence[Features]
) -> list[Labels]:
    """What each tested tile is named by a model that has not seen it, [repeats, N] each.

    Args:
        features: [N, D] that the model learns from, once a fold.
        folds: which tiles it learns from.
        model: to fit.
        tested: [N, D] that it names, such as the same and those of the tiles under other stains.
    """
    found = [np.zeros((folds.repeats, len(folds.labels)), np.int64) for _ in tested]
    for repeat, train, test in folds.splits():
        fitted = model().fit(features[train], folds.labels[train])
        for named, each in zip(found, tested, strict=True):
            named[repeat, test] = fitted.predict(each[test])
    return found


def score_of(predicted: Labels, folds: Folds) -> Score:
    """The score of predictions [repeats, N]."""
    each = [
        float(balanced_accuracy_score(folds.labels[test], predicted[repeat, test]))
        for repeat, _, test in folds.splits()
    ]
    drawn = [_balanced(predicted, folds.labels, draw) for draw in folds.draws()]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Score(
        mean=float(np.mean(each)),
        spread=float(np.std(each)),
        low=float(low),
        high=float(high),
        folds=each,
    )


def probability_better(ours: Labels, theirs: Labels, folds: Folds) -> float:
    """Share of bootstrap samples in which our predictions [repeats, N] score higher than theirs."""
    better = [
        _balanced(ours, folds.labels, draw) > _balanced(theirs, folds.labels, draw)
        for draw in folds.draws()
    ]
    return float(np.mean(better))


def few_shots(features: Features, folds: Folds, model: Model) -> dict[int, float]:
    """Mean score of a model that learns from so few tiles of each class, on the others.

    Returns:
        by number of tiles, as far as the smallest class has twice as many.
    """
    random = np.random.default_rng(folds.seed)
    learnable, tested = folds.learnable, np.isin(np.arange(len(folds.labels)), folds.tested)
    classes = [learnable[folds.labels[learnable] == label] for label in np.unique(folds.labels)]
    found = {}
    for shots in SHOTS:
        if 2 * shots > min(map(len, classes)):
            break
        scores = []
        for _ in range(SHOT_DRAWS):
            train = np.concatenate([random.permutation(members)[:shots] for members in classes])
            test = tested & ~np.isin(folds.units, folds.units[train])
            if len(np.unique(folds.labels[test])) < len(classes):
                continue  # the other tiles are of the same groups
            fitted = model().fit(features[train], folds.labels[train])
            named = fitted.predict(features[test])
            scores.append(_balanced(named[None], folds.labels[test], np.arange(test.sum())))
        if scores:
            found[shots] = float(np.mean(scores))
    return found


def _balanced(predicted: Labels, labels: Labels, tiles: Labels) -> float:
    """Balanced accuracy of predictions [repeats, N] on some tiles, over all repeats."""
    truth = labels[tiles]
    right = (predicted[:, tiles] == truth).mean(axis=0)
    counts = np.bincount(truth)
    shares = np.bincount(truth, weights=right)[counts > 0] / counts[counts > 0]
    return float(shares.mean())
