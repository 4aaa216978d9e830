"""Whether slides of an encoder should be prepared with their stain normalised, and how: what best
withstands other laboratories' stains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from training.evaluation.scores import (
    SURE,
    Features,
    Folds,
    Labels,
    Model,
    Score,
    predictions,
    probability_better,
    score_of,
)
from training.evaluation.subjects import STAIN, View

NONE: Final = "none"


@dataclass(frozen=True, kw_only=True)
class StainScores:
    """Balanced accuracy of a linear probe that learnt from tiles as scanned, normalised or not.

    Attributes:
        clean: of tiles as scanned.
        shifted: of tiles under other stains, normalised in the same way.
    """

    clean: Score
    shifted: Score


@dataclass(frozen=True, kw_only=True)
class StainChoice:
    """What `acinus prepare --stain` should be for an encoder.

    Attributes:
        chosen: a method of `pipelines.stain`, or NONE.
        scores: by method, NONE first.
    """

    chosen: str
    scores: dict[str, StainScores]

    def sentence(self, encoder: str) -> str:
        """The choice and its reason, for people."""
        shifted = ", ".join(f"{name} {each.shifted.mean:.3f}" for name, each in self.scores.items())
        if self.chosen == NONE:
            how, why = (
                "without stain normalisation",
                f"; no method beats none in {SURE:.0%} of draws",
            )
        else:
            how, why = f"with --stain {self.chosen}", ""
        return f"{encoder}: prepare slides {how} (under other stains: {shifted}{why})."


def named_views(features: Mapping[View, Features], folds: Folds, head: Model) -> dict[View, Labels]:
    """What each view's tiles are named, [repeats, N], by a head that learnt from the tiles as
    scanned, normalised as the view is.
    """
    named: dict[View, Labels] = {}
    for stain in dict.fromkeys(view.stain for view in features):
        views = [view for view in features if view.stain == stain]
        tested = [features[view] for view in views]
        named |= zip(
            views, predictions(features[View(stain=stain)], folds, head, tested), strict=True
        )
    return named


def choose_stain(named: Mapping[View, Labels], methods: Sequence[str], folds: Folds) -> StainChoice:
    """The method that scores highest under other stains, of those that are surely better than none
    there; normalising costs time and a fit that can fail.

    Args:
        named: what the tiles are named, as scanned and under other stains, without normalisation
            and by each method.
        methods: of `pipelines.stain`.
        folds: the same for all.
    """
    stains = {NONE: "", **{method: method for method in methods}}
    shifted = {name: named[View(shift=STAIN, stain=stain)] for name, stain in stains.items()}
    scores = {
        name: StainScores(
            clean=score_of(named[View(stain=stain)], folds), shifted=score_of(shifted[name], folds)
        )
        for name, stain in stains.items()
    }
    better = [
        method
        for method in methods
        if probability_better(shifted[method], shifted[NONE], folds) >= SURE
    ]
    chosen = max(better, key=lambda method: scores[method].shifted.mean, default=NONE)
    return StainChoice(chosen=chosen, scores=scores)
