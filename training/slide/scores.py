"""How good a slide model is on held-out slides, in numbers: patches, grades, areas, readings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from pipelines.annotations import PATTERNS, UNLABELLED
from training.slide.gleason import agreement, corrected_shares
from training.slide.reading import MIN_TISSUE_MM2, read_grade

MIN_SLIDES = 5
"""Minimum of held-out slides for a kappa."""


@dataclass(frozen=True, kw_only=True)
class HeldOutSlide:
    """What a slide got from models that have not seen its case.

    Attributes:
        slide_id: of the slide.
        label: the slide's own.
        grade_group: of the label.
        area_grade_group: by areas, under the chosen rules.
        attention_grade_group: by the attention model.
        grade_group_probabilities: of the attention model, [6].
        cancer_probability: of the attention model.
        shares: area shares of PATTERNS, [4], corrected for the head's errors on the other held-out
            slides.
        attention_lift: how much more attention a tumour patch gets than an average one; None
            without annotated tumour.
    """

    slide_id: str
    label: str
    grade_group: int
    area_grade_group: int
    attention_grade_group: int
    grade_group_probabilities: list[float]
    cancer_probability: float
    shares: list[float]
    attention_lift: float | None


@dataclass(frozen=True, kw_only=True)
class PatchScore:
    """How well the pattern head names held-out patches.

    Attributes:
        patches: number of labelled patches.
        slides: number of slides that they are of.
        balanced_accuracy: mean recall of the patterns present; `chance` is what guessing reaches.
        chance: 1 / number of patterns present.
        confusion: counts, rows are the annotated pattern, columns the predicted, both as PATTERNS.
    """

    patches: int
    slides: int
    balanced_accuracy: float
    chance: float
    confusion: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class SlideScore:
    """How well whole held-out slides are graded.

    Attributes:
        slides: number of slides.
        attention_kappa: quadratic weighted kappa of the attention model's grade group; None below
            MIN_SLIDES.
        area_kappa: the same of the grade by areas; optimistic, since the rules were chosen on these
            slides.
        cancer_auc: area under the ROC curve of the cancer probability; None if all slides are
            benign or none is.
    """

    slides: int
    attention_kappa: float | None
    area_kappa: float | None
    cancer_auc: float | None


@dataclass(frozen=True, kw_only=True)
class AreaScore:
    """How far estimated areas are from the annotated ones, on the annotated patches of held-out
    slides: mean absolute errors, each slide counting the same.

    Attributes:
        slides: number of slides with annotations.
        tumour_extent: error of the tissue's share that is tumour, 0 to 1.
        tumour_slides: number of those with annotated tumour.
        percent_pattern_4: error of pattern 4 in percent of the tumour; None where no slide has
            annotated tumour.
    """

    slides: int
    tumour_extent: float
    tumour_slides: int
    percent_pattern_4: float | None


@dataclass(frozen=True, kw_only=True)
class ReadingScore:
    """How the rule of reading (`reading.py`) does on held-out slides, whose tissue is taken to be
    enough.

    Attributes:
        slides: number of slides.
        read: number of those that get a grade to read.
        exact: share of these whose grade group is the label's; None if none is read.
        within_one: share of these that are at most one group away; likewise.
        exact_unread: share of the others whose area grade would have been the label's.
    """

    slides: int
    read: int
    exact: float | None
    within_one: float | None
    exact_unread: float | None


def confusion_of(
    patterns: npt.NDArray[np.int8], probabilities: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    """Counts [4, 4] of labelled patches: rows by annotation, columns by prediction."""
    known = patterns != UNLABELLED
    counts = np.zeros((len(PATTERNS), len(PATTERNS)), np.int64)
    np.add.at(counts, (patterns[known], probabilities[known].argmax(axis=1)), 1)
    return counts


def error_rates(counts: Iterable[npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
    """Confusion with rows that sum to 1; ten patches named right are added to each row, so that few
    errors have little weight.
    """
    smoothed = sum(counts, 10.0 * np.eye(len(PATTERNS)))
    return np.asarray(smoothed / smoothed.sum(axis=1, keepdims=True))


def score_patches(counts: Iterable[npt.NDArray[np.int64]]) -> PatchScore | None:
    """Score held-out slides by their confusion counts; None where nothing is labelled."""
    labelled = [table for table in counts if table.any()]
    if not labelled:
        return None
    confusion = np.sum(labelled, axis=0)
    present = confusion.sum(axis=1) > 0
    return PatchScore(
        patches=int(confusion.sum()),
        slides=len(labelled),
        balanced_accuracy=float(
            (confusion.diagonal()[present] / confusion.sum(axis=1)[present]).mean()
        ),
        chance=1.0 / int(present.sum()),
        confusion=confusion.tolist(),
    )


def score_slides(held_out: Sequence[HeldOutSlide]) -> SlideScore | None:
    """Score the grades of held-out slides; None where there are none."""
    if not held_out:
        return None
    truth = [slide.grade_group for slide in held_out]
    enough = len(held_out) >= MIN_SLIDES
    cancer = [group > 0 for group in truth]
    return SlideScore(
        slides=len(held_out),
        attention_kappa=agreement(truth, [slide.attention_grade_group for slide in held_out])
        if enough
        else None,
        area_kappa=agreement(truth, [slide.area_grade_group for slide in held_out])
        if enough
        else None,
        cancer_auc=float(roc_auc_score(cancer, [slide.cancer_probability for slide in held_out]))
        if len(set(cancer)) == 2
        else None,
    )


def score_areas(counts: Mapping[int, npt.NDArray[np.int64]]) -> AreaScore | None:
    """Score areas from the confusion counts [4, 4] of each slide, corrected by the errors on the
    other slides; None where nothing is labelled.
    """
    extents, patterns = [], []
    for k, table in counts.items():
        if not table.any():
            continue
        true = table.sum(axis=1) / table.sum()
        others = error_rates(counts[other] for other in counts if other != k)
        found = corrected_shares(table.sum(axis=0) / table.sum(), others)
        extents.append(abs(found[1:].sum() - true[1:].sum()))
        if true[1:].sum() > 0:
            share = found[2] / found[1:].sum() if found[1:].sum() > 0 else 0.0
            patterns.append(100.0 * abs(share - true[2] / true[1:].sum()))
    if not extents:
        return None
    return AreaScore(
        slides=len(extents),
        tumour_extent=float(np.mean(extents)),
        tumour_slides=len(patterns),
        percent_pattern_4=float(np.mean(patterns)) if patterns else None,
    )


def score_readings(held_out: Sequence[HeldOutSlide]) -> ReadingScore | None:
    """Score the rule of reading; None where no slide was held out."""
    if not held_out:
        return None
    read: list[int] = []
    unread: list[int] = []
    for slide in held_out:
        found = read_grade(
            areas=slide.area_grade_group,
            slide_model=slide.attention_grade_group,
            tissue_mm2=MIN_TISSUE_MM2,
        )
        difference = abs(slide.area_grade_group - slide.grade_group)
        (unread if found.grade_group is None else read).append(difference)
    return ReadingScore(
        slides=len(held_out),
        read=len(read),
        exact=_share_within(read, 0),
        within_one=_share_within(read, 1),
        exact_unread=_share_within(unread, 0),
    )


def _share_within(differences: Sequence[int], limit: int) -> float | None:
    return float(np.mean(np.array(differences) <= limit)) if differences else None
