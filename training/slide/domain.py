"""Whether a slide looks like those that the models were fitted on: an answer about any other slide
is a guess.

Two distances. That of the patches: the median over a slide of their squared Mahalanobis distances
to all patches fitted on, with a shrunk covariance (Lee et al., NeurIPS 2018; Ledoit and Wolf 2004).
And that of the tissue's colours: to the nearest slide fitted on, in CIELAB units
(`pipelines.fingerprint.colour_distance`). How unusual each is, is counted in deviations of its
logarithm among held-out slides; the larger one counts.

The limit is a conformal one: a rank of the scores of held-out slides. A slide like those exceeds it
with the stated probability, whatever the distribution of scores (Vovk et al. 2005). With fewer than
19 slides it is the largest score, exceeded by one slide in (number + 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from sklearn.covariance import ledoit_wolf

from pipelines.fingerprint import Fingerprint

FALSE_ALARMS: Final = 0.05
"""Share of slides like those of training that may be taken for others."""
MAX_PATCHES: Final = 8192
"""Patches that the covariance is taken of, as many of each slide."""
MIN_PATCHES: Final = 30
"""Patches of the slides that are not held out, below which nothing is claimed."""
SEEN: Final = 2.0
"""CIELAB units below which a person hardly sees a difference: no smaller one counts."""
MIN_DEVIATION: Final = (0.1, 0.35)
"""Of the distances' logarithms: where a few slides are alike, a tenth more distance of the patches,
or 1.4 times as much of the colours, is not yet unusual.
"""

Embeddings = npt.NDArray[np.float32]
_CHUNK: Final = 4096


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How much a slide is like those that the models were fitted on.

    Attributes:
        inside: whether it is.
        score: the larger of the two distances, in deviations from the usual.
        limit: what a slide like those exceeds with the probability `false_alarms`.
        false_alarms: of the limit.
        reason: one sentence.
    """

    inside: bool
    score: float
    limit: float
    false_alarms: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Domain:
    """What the slides that a model was fitted on look like; D numbers in an embedding.

    Attributes:
        centre: mean of their patches' embeddings, float32 [D].
        whitening: takes deviations from it to uncorrelated ones of unit variance, float32 [D, D].
        colours: mean and deviation of the tissue's colour in CIELAB, of each slide that has them,
            float32 [S, 6].
        usual: median distance of held-out slides' patches, and of their colours.
        deviation: of both distances' logarithms (1.48 times their median absolute deviation).
        limit: of the score.
        false_alarms: probability that a slide like these exceeds it.
        slides: number of held-out slides that the limit is of.
    """

    centre: Embeddings
    whitening: Embeddings
    colours: npt.NDArray[np.float32]
    usual: tuple[float, float] = (1.0, SEEN)
    deviation: tuple[float, float] = MIN_DEVIATION
    limit: float = math.inf
    false_alarms: float = 0.0
    slides: int = 0

    @classmethod
    def of(cls, bags: Sequence[Embeddings], looks: Sequence[Fingerprint | None]) -> Self:
        """Centre, spread and colours of slides; without a limit.

        Args:
            bags: embeddings [N, D] of each slide.
            looks: fingerprint of each, None where there is none.
        """
        share = max(2, MAX_PATCHES // len(bags))
        chosen = [bag[np.unique(np.linspace(0, len(bag) - 1, share).astype(int))] for bag in bags]
        patches = np.concatenate(chosen).astype(np.float64)
        covariance, _ = ledoit_wolf(patches)
        covariance += (
            1e-6 * (np.trace(covariance) / len(covariance) + 1e-6) * np.eye(len(covariance))
        )
        whitening = np.linalg.inv(np.linalg.cholesky(covariance))
        known = [colours for look in looks if (colours := _colours(look)) is not None]
        return cls(
            centre=patches.mean(axis=0).astype(np.float32),
            whitening=whitening.astype(np.float32),
            colours=np.array(known, np.float32).reshape(len(known), 6),
        )

    def distances(self, bag: Embeddings, look: Fingerprint | None) -> tuple[float, float]:
        """That of the patches, and that of the colours; 0 where those are not known."""
        parts = [
            ((bag[start : start + _CHUNK] - self.centre) @ self.whitening.T) ** 2
            for start in range(0, len(bag), _CHUNK)
        ]
        patches = float(np.median(np.concatenate([part.mean(axis=1) for part in parts])))
        colours = _colours(look)
        if colours is None or not len(self.colours):
            return patches, 0.0
        return patches, float(np.linalg.norm(self.colours - colours, axis=1).min())

    def scores(self, distances: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """How unusual pairs of distances [..., 2] are."""
        return (_logarithms(distances) - np.log(self.usual)) / self.deviation

    def likeness(self, bag: Embeddings, look: Fingerprint | None) -> Likeness:
        """How much a slide is like these, by its embeddings [N, D] and its fingerprint."""
        patches, colours = self.distances(bag, look)
        scores = self.scores((patches, colours))
        causes = []
        if scores[0] > self.limit:
            causes.append(f"its patches are {patches / self.usual[0]:.1f} times as far as usual")
        if scores[1] > self.limit:
            causes.append(f"its tissue's colour is {colours:.0f} CIELAB units from the nearest")
        return Likeness(
            inside=not causes,
            score=float(scores.max()),
            limit=self.limit,
            false_alarms=self.false_alarms,
            reason=f"Outside of what the models were fitted on, because {' and '.join(causes)}."
            if causes
            else "Like the slides that the models were fitted on.",
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What a weights file holds of it."""
        return {"centre": self.centre, "whitening": self.whitening, "colours": self.colours}

    def facts(self) -> dict[str, Any]:
        """What a card holds of it."""
        return {
            "usual": list(self.usual),
            "deviation": list(self.deviation),
            "limit": self.limit,
            "false_alarms": self.false_alarms,
            "slides": self.slides,
        }

    @classmethod
    def from_parts(cls, arrays: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]) -> Self:
        """The inverse of `arrays` and `facts`."""
        pairs = {name: tuple(facts[name]) for name in ("usual", "deviation")}
        return cls(**{**arrays, **facts, **pairs})


def fit_domain(
    bags: Sequence[Embeddings],
    looks: Sequence[Fingerprint | None],
    folds: Sequence[Sequence[int]],
) -> Domain | None:
    """The domain of slides, with a limit from slides that were held out.

    Args:
        bags: embeddings [N, D] of each slide.
        looks: fingerprint of each.
        folds: indices of slides that are held out together; no case is in two folds.

    Returns:
        None where nothing can be held out.
    """
    patches = [sum(len(bags[k]) for k in fold) for fold in folds]
    if len(folds) < 2 or sum(patches) - max(patches) < MIN_PATCHES:
        return None
    found = []
    for fold in folds:
        rest = [k for k in range(len(bags)) if k not in fold]
        others = Domain.of([bags[k] for k in rest], [looks[k] for k in rest])
        found += [others.distances(bags[k], looks[k]) for k in fold]
    logarithms = _logarithms(found)
    usual = np.median(logarithms, axis=0)
    deviation = 1.4826 * np.median(np.abs(logarithms - usual), axis=0)
    domain = replace(
        Domain.of(bags, looks),
        usual=_pair(np.exp(usual)),
        deviation=_pair(np.maximum(deviation, MIN_DEVIATION)),
        slides=len(found),
    )
    scores = np.sort(domain.scores(found).max(axis=1))
    rank = min(math.ceil((len(scores) + 1) * (1 - FALSE_ALARMS)), len(scores))
    return replace(
        domain, limit=float(scores[rank - 1]), false_alarms=1.0 - rank / (len(scores) + 1)
    )


def _logarithms(distances: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.asarray(np.log(np.maximum(distances, [1e-6, SEEN])))


def _pair(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    one, other = values.tolist()
    return one, other


def _colours(look: Fingerprint | None) -> npt.NDArray[np.float32] | None:
    if look is None or not (look.mean and look.deviation):
        return None
    return np.array([*look.mean, *look.deviation], np.float32)
