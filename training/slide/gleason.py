"""From tissue patterns to a grade: area shares -> primary and secondary pattern, Gleason score,
ISUP grade group.

The rules are those for needle biopsies: the primary pattern is the most extensive one, the
secondary pattern is the *highest* of the remaining ones (not the second most extensive, and no
tertiary pattern is reported): ISUP 2005 (Epstein et al., Am J Surg Pathol 29:1228), kept by ISUP
2014 (Epstein et al., Am J Surg Pathol 40:244, practical rules in 41:e1) and ISUP 2019 (van Leenders
et al., Am J Surg Pathol 44:e87). Grade groups 1-5 and the percentage of pattern 4 are those of ISUP
2014. A single pattern is doubled: 4+4.

This module sees areas, not pixels: it does not know how a pattern was recognised, and it cannot see
cribriform or intraductal growth.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from pipelines.annotations import PATTERNS

GRADE_GROUPS: Final = (0, 1, 2, 3, 4, 5)
"""ISUP grade groups; 0 is benign."""

_GLEASON = re.compile(
    r"^\s*(?:gleason(?:\s+score)?)?\s*([345])\s*\+\s*([345])(?:\s*=\s*(\d+))?\s*$", re.IGNORECASE
)
_BENIGN = frozenset({"benign", "negative", "normal", "no cancer", "0+0"})


@dataclass(frozen=True, order=True)
class GleasonScore:
    """Primary and secondary pattern of a carcinoma, each 3, 4 or 5."""

    primary: int
    secondary: int

    def __post_init__(self) -> None:
        for name, pattern in (("primary", self.primary), ("secondary", self.secondary)):
            if pattern not in (3, 4, 5):
                raise ValueError(
                    f"{name} Gleason pattern {pattern!r}: biopsies are graded with patterns 3, 4 "
                    "and 5"
                )

    @property
    def total(self) -> int:
        """The Gleason score, 6 to 10."""
        return self.primary + self.secondary

    @property
    def grade_group(self) -> int:
        """ISUP 2014: 3+3 is 1, 3+4 is 2, 4+3 is 3, score 8 is 4, scores 9 and 10 are 5."""
        if self.total <= 6:
            return 1
        if self.total == 7:
            return 2 if self.primary == 3 else 3
        return 4 if self.total == 8 else 5

    def __str__(self) -> str:
        return f"{self.primary}+{self.secondary}"


def parse_label(label: str) -> GleasonScore | None:
    """The score that a slide label such as `3+4`, `Gleason 4+3=7` or `benign` (None) states.

    Raises:
        ValueError: the label is neither a Gleason score of a biopsy nor a word for benign.
    """
    if label.strip().lower() in _BENIGN:
        return None
    if (match := _GLEASON.match(label)) is None:
        raise ValueError(
            f"slide label {label!r} is not understood; write benign, or primary+secondary such as "
            "3+4"
        )
    score = GleasonScore(int(match[1]), int(match[2]))
    if match[3] is not None and int(match[3]) != score.total:
        raise ValueError(f"slide label {label!r} contradicts itself: {score} makes {score.total}")
    return score


def grade_group(label: str) -> int:
    """ISUP grade group of a slide label; 0 is benign.

    Raises:
        ValueError: see `parse_label`.
    """
    score = parse_label(label)
    return 0 if score is None else score.grade_group


@dataclass(frozen=True, kw_only=True)
class GradingRules:
    """What counts as present. A classifier is wrong on some patches; a pathologist is not wrong in
    this way.

    Attributes:
        min_tumour_share: below this share of the tissue, tumour patches count as noise and the
            slide as benign.
        min_pattern_share: a pattern is present if it holds at least this share of the tumour. 5 %
            is the limit that is used for a minor pattern (Epstein et al. 2017). A pathologist
            counts a biopsy's higher pattern at any amount.
    """

    min_tumour_share: float = 0.02
    min_pattern_share: float = 0.05


DEFAULT_RULES: Final = GradingRules()
"""For a classifier that is hardly ever wrong; `choose_rules` finds those for one that is."""


@dataclass(frozen=True, kw_only=True)
class Grading:
    """The grade of one slide as its areas give it.

    Attributes:
        shares: share of the tissue that each of PATTERNS holds; sums to 1.
        score: Gleason score, None if benign.
        tumour_extent: share of the tissue that is tumour.
        percent_pattern_4: pattern 4 in percent of the tumour, None if benign.
        percent_pattern_5: pattern 5 in percent of the tumour, None if benign.
    """

    shares: dict[str, float]
    score: GleasonScore | None
    tumour_extent: float
    percent_pattern_4: float | None
    percent_pattern_5: float | None

    @property
    def grade_group(self) -> int:
        """ISUP grade group; 0 is benign."""
        return 0 if self.score is None else self.score.grade_group

    @property
    def primary(self) -> int | None:
        """The most extensive pattern, None if benign."""
        return None if self.score is None else self.score.primary

    @property
    def secondary(self) -> int | None:
        """The highest of the remaining patterns, None if benign."""
        return None if self.score is None else self.score.secondary

    @property
    def gleason_score(self) -> int | None:
        """The sum, 6 to 10, None if benign."""
        return None if self.score is None else self.score.total


def area_shares(
    probabilities: npt.NDArray[np.floating], areas: npt.NDArray[np.floating] | None = None
) -> npt.NDArray[np.float64]:
    """Share of the tissue per pattern: each patch [N, 4] counts wholly for its most probable
    pattern.

    Whole patches, since mean probabilities give every benign slide the classifier's doubt as
    tumour.

    Args:
        probabilities: of PATTERNS per patch.
        areas: tissue area per patch; equal if None.
    """
    if (
        probabilities.ndim != 2
        or probabilities.shape[1] != len(PATTERNS)
        or len(probabilities) == 0
    ):
        raise ValueError(
            f"patch probabilities have shape {probabilities.shape}; expected [N >= 1, "
            f"{len(PATTERNS)}]"
        )
    totals = np.bincount(probabilities.argmax(axis=1), weights=areas, minlength=len(PATTERNS))
    return totals / totals.sum()


def corrected_shares(
    shares: npt.NDArray[np.floating], confusion: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """The area shares under which a classifier with these error rates would have counted `shares`.

    A classifier that calls a tenth of benign tissue tumour finds tumour on every benign slide;
    counting its known errors back is the adjusted count of Forman (Data Min Knowl Discov
    2008;17:164), here by least squares over shares that are possible. A light pull towards the
    plain count decides where the error rates leave the answer open.

    Args:
        shares: plain area shares [4].
        confusion: [4, 4], row: true pattern, column: the share of it that is called each pattern;
            rows sum to 1.
    """
    together = np.vstack(
        [confusion.T, _PULL * np.eye(len(PATTERNS)), np.full((1, len(PATTERNS)), _SUM)]
    )
    found, _ = nnls(together, np.concatenate([shares, _PULL * shares, [_SUM]]))
    return np.asarray(found / found.sum())


_PULL = 0.1
_SUM = 10.0
"""Weights of the pull towards the plain count and of the shares' sum, against 1 for each pattern's
share.
"""


def grade(shares: npt.NDArray[np.floating], rules: GradingRules = DEFAULT_RULES) -> Grading:
    """Grade a slide from its area shares [4] of PATTERNS (`area_shares`)."""
    if (
        shares.shape != (len(PATTERNS),)
        or not np.all(shares >= 0)
        or not np.isclose(shares.sum(), 1.0, atol=1e-3)
    ):
        raise ValueError(
            f"area shares {shares} are not {len(PATTERNS)} non-negative shares that sum to 1"
        )
    tumour = float(shares[1:].sum())
    named = dict(zip(PATTERNS, map(float, shares), strict=True))
    if tumour < rules.min_tumour_share or tumour == 0.0:
        return Grading(
            shares=named,
            score=None,
            tumour_extent=tumour,
            percent_pattern_4=None,
            percent_pattern_5=None,
        )
    of_tumour = {pattern: float(shares[pattern - 2]) / tumour for pattern in (3, 4, 5)}
    primary = max(
        of_tumour, key=lambda pattern: (of_tumour[pattern], pattern)
    )  # equal extent: the higher pattern leads
    rest = [
        pattern
        for pattern, share in of_tumour.items()
        if pattern != primary and share >= rules.min_pattern_share
    ]
    return Grading(
        shares=named,
        score=GleasonScore(primary, max(rest, default=primary)),
        tumour_extent=tumour,
        percent_pattern_4=100.0 * of_tumour[4],
        percent_pattern_5=100.0 * of_tumour[5],
    )


def choose_rules(
    shares: Sequence[npt.NDArray[np.floating]], grade_groups: Sequence[int]
) -> GradingRules:
    """The rules under which the areas of held-out slides agree best with their labels (quadratic
    weighted kappa).

    How much tumour a classifier sees on benign tissue decides how much of it means anything. Of
    equally good rules the lowest thresholds win, and none goes beyond 10 % of the tissue or 20 % of
    the tumour: a classifier that needs more is to be improved, and not to be quietened by missing
    small cancers.

    Args:
        shares: area shares [4] of each slide, from a classifier that has not seen it.
        grade_groups: of each slide's label.
    """
    choices = [
        GradingRules(min_tumour_share=tumour, min_pattern_share=pattern)
        for tumour in (0.02, 0.05, 0.1)
        for pattern in (0.05, 0.1, 0.15, 0.2)
    ]
    return max(
        choices,
        key=lambda rules: agreement(
            grade_groups, [grade(share, rules).grade_group for share in shares]
        ),
    )


def agreement(truth: Sequence[int], predicted: Sequence[int]) -> float:
    """Quadratic weighted kappa of grade groups: 1 is perfect, 0 is chance; 0 too where all are the
    same.
    """
    table = np.zeros((len(GRADE_GROUPS), len(GRADE_GROUPS)))
    np.add.at(table, (np.asarray(truth), np.asarray(predicted)), 1.0)
    distance = np.subtract.outer(np.arange(len(GRADE_GROUPS)), np.arange(len(GRADE_GROUPS))) ** 2
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    by_chance = float((distance * expected).sum())
    return 1.0 - float((distance * table).sum()) / by_chance if by_chance else 0.0
