"""How good a slide model is on slides of cases that it has not seen: cross-validation by case,
grading rules and scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from pipelines.annotations import PATTERNS, UNLABELLED
from training.errors import InsufficientData
from training.slide.calibration import (
    Answers,
    Calibration,
    calibrate,
    class_weights,
    tempered,
    tempered_groups,
)
from training.slide.domain import Domain, fit_domain
from training.slide.gleason import (
    DEFAULT_RULES,
    GradingRules,
    area_shares,
    choose_rules,
    corrected_shares,
    grade,
)
from training.slide.labelled_slides import LabelledSlide
from training.slide.neighbours import SHARES
from training.slide.pattern_head import PatternHead, fit_pattern_head
from training.slide.scores import (
    AreaScore,
    HeldOutSlide,
    PatchScore,
    ReadingScore,
    SlideScore,
    confusion_of,
    error_rates,
    score_areas,
    score_patches,
    score_readings,
    score_slides,
)
from training.slide.slide_model import (
    AttentionConfig,
    GatedAttention,
    SlideModel,
    SlidePrediction,
    fit_attention,
)

MAX_HEAD_VALUES: Final = 2**25
"""Numbers that the pattern head is fitted on at a time: 110,000 patches of 304; about 1 GB while it
is fitted."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How the parts of a slide model are fitted.

    Attributes:
        penalty: L2 penalty of the pattern head (see `fit_pattern_head`).
        attention: size and fitting of the attention model.
        seed: of the attention model.
    """

    penalty: float
    attention: AttentionConfig
    seed: int


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What cross-validation found.

    Attributes:
        predictions: of each slide that could be held out, by its index.
        slides: the same slide by slide, for a report.
        error_rates: confusion of the pattern head [4, 4], rows of the true pattern sum to 1.
        rules: what counts as a pattern, chosen on these slides.
        surroundings: share of the neighbours' mean in a patch's probabilities, chosen on these
            slides.
        patch_calibration: of the patterns of patches, read with their neighbours; every pattern
            counts the same. None where no cross-validation was possible.
        group_calibration: of the attention model's grade groups, likewise.
        patch_score: None where no cross-validation was possible.
        slide_score: likewise.
        area_score: likewise.
        reading_score: likewise.
        domain: what these slides look like; None where nothing could be held out.
        remarks: what a reader should know of the metrics; without names.
    """

    predictions: dict[int, SlidePrediction]
    slides: list[HeldOutSlide]
    error_rates: npt.NDArray[np.float64]
    rules: GradingRules
    surroundings: float
    patch_calibration: Calibration | None
    group_calibration: Calibration | None
    patch_score: PatchScore | None
    slide_score: SlideScore | None
    area_score: AreaScore | None
    reading_score: ReadingScore | None
    domain: Domain | None
    remarks: list[str]


def evaluate(slides: Sequence[LabelledSlide], config: FitConfig, *, folds: int) -> HeldOut:
    """Cross-validate by case, choose how much neighbours count and the grading rules, and score.

    Both are chosen on the same held-out slides that are then scored. One of three shares of the
    neighbours makes little difference to that; the area grade is optimistic.

    Args:
        slides: with labels.
        config: how the models of each fold are fitted.
        folds: fewer where there are fewer cases.
    """
    predictions, remarks = cross_validate(slides, config, folds=folds)
    surroundings, predictions = choose_surroundings(slides, predictions)
    fold_of = {k: f for f, fold in enumerate(folds_by_case(slides, folds)) for k in fold}
    patches, predictions = calibrate_patches(slides, predictions, fold_of)
    groups, predictions = calibrate_groups(slides, predictions, fold_of)
    counts = _counts(slides, predictions)
    shares = held_out_shares(predictions, counts)
    rules = DEFAULT_RULES
    if shares:
        rules = choose_rules(list(shares.values()), [slides[k].grade_group for k in shares])
    found = [_held_out(slides[k], predictions[k], shares[k], rules) for k in predictions]
    return HeldOut(
        predictions=predictions,
        slides=found,
        error_rates=error_rates(counts.values()),
        rules=rules,
        surroundings=surroundings,
        patch_calibration=patches,
        group_calibration=groups,
        patch_score=score_patches(counts.values()),
        slide_score=score_slides(found),
        area_score=score_areas(counts),
        reading_score=score_readings(found),
        domain=fit_domain(
            [slide.bag.embeddings for slide in slides],
            [slide.look for slide in slides],
            folds_by_case(slides, folds),
        ),
        remarks=remarks,
    )


def choose_surroundings(
    slides: Sequence[LabelledSlide], predictions: Mapping[int, SlidePrediction]
) -> tuple[float, dict[int, SlidePrediction]]:
    """How much the neighbours of a patch count: the smallest of SHARES with the best balanced
    accuracy, and the predictions under it.
    """
    best, chosen, kept = -1.0, SHARES[0], dict(predictions)
    for share in SHARES:
        mixed = {
            k: replace(
                found,
                patch_probabilities=slides[k].neighbours.mixed(found.patch_probabilities, share),
            )
            for k, found in predictions.items()
        }
        score = score_patches(_counts(slides, mixed).values())
        if score is not None and score.balanced_accuracy > best:
            best, chosen, kept = score.balanced_accuracy, share, mixed
    return chosen, kept


def calibrate_patches(
    slides: Sequence[LabelledSlide],
    predictions: Mapping[int, SlidePrediction],
    fold_of: Mapping[int, int],
) -> tuple[Calibration | None, dict[int, SlidePrediction]]:
    """Temperature of the patches' probabilities, and the predictions under it."""
    known = {k: slides[k].patterns != UNLABELLED for k in predictions}
    if not any(labelled.any() for labelled in known.values()):
        return None, dict(predictions)
    truth = np.concatenate([slides[k].patterns[labelled] for k, labelled in known.items()])
    answers = Answers(
        probabilities=np.concatenate(
            [predictions[k].patch_probabilities[labelled] for k, labelled in known.items()]
        ),
        truth=truth,
        fold=np.concatenate([np.full(labelled.sum(), fold_of[k]) for k, labelled in known.items()]),
        weights=class_weights(truth),
        slides=len(predictions),
    )
    found = calibrate(answers, tempered)
    return found, {
        k: replace(each, patch_probabilities=tempered(each.patch_probabilities, found.temperature))
        for k, each in predictions.items()
    }


def calibrate_groups(
    slides: Sequence[LabelledSlide],
    predictions: Mapping[int, SlidePrediction],
    fold_of: Mapping[int, int],
) -> tuple[Calibration | None, dict[int, SlidePrediction]]:
    """Temperature of the attention model's grade groups, and the predictions under it."""
    if not predictions:
        return None, {}
    truth = np.array([slides[k].grade_group for k in predictions])
    answers = Answers(
        probabilities=np.stack([each.grade_group_probabilities for each in predictions.values()]),
        truth=truth,
        fold=np.array([fold_of[k] for k in predictions]),
        weights=class_weights(truth),
        slides=len(predictions),
    )
    found = calibrate(answers, tempered_groups)
    return found, {k: each.with_groups(found.temperature) for k, each in predictions.items()}


def _counts(
    slides: Sequence[LabelledSlide], predictions: Mapping[int, SlidePrediction]
) -> dict[int, npt.NDArray[np.int64]]:
    return {
        k: confusion_of(slides[k].patterns, found.patch_probabilities)
        for k, found in predictions.items()
    }


def fit_parts(
    slides: Sequence[LabelledSlide], config: FitConfig
) -> tuple[PatternHead, GatedAttention]:
    """Pattern head and attention model of a slide model.

    Attention learns from each slide, and from the slides of a case together: a model of single
    slides is worse on cases (kappa 0.30 against 0.39 on simulated cases of four slides).

    Raises:
        InsufficientData: fewer than two patterns are annotated, or fewer than two grade groups
            labelled.
    """
    bags = [slide.bag.embeddings for slide in slides]
    head = fit_pattern_head(*labelled_patches(slides), penalty=config.penalty)
    groups = [slide.grade_group for slide in slides]
    return head, fit_attention(
        bags, groups, config.attention, cases=cases_of_several(slides), seed=config.seed
    )


def cases_of_several(slides: Sequence[LabelledSlide]) -> list[list[int]]:
    """Indices of the slides of each case that has more than one."""
    found: dict[str, list[int]] = {}
    for k, slide in enumerate(slides):
        found.setdefault(slide.case, []).append(k)
    return [own for own in found.values() if len(own) > 1]


def labelled_patches(
    slides: Sequence[LabelledSlide], *, max_values: int | None = None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
    """Embeddings [M, D] and patterns [M] of labelled patches, as scanned and under other stains.

    Of a pattern with more than its part of `max_values` (MAX_HEAD_VALUES), every second, third or
    n-th patch is taken, through all slides: as many of all patterns, and the same ones each time.
    """
    limit = (MAX_HEAD_VALUES if max_values is None else max_values) // slides[
        0
    ].bag.embeddings.shape[1]
    views = [(slide, bag) for slide in slides for bag in (slide.bag.embeddings, *slide.stain_views)]
    counts = sum(
        (np.bincount(_known(slide), minlength=len(PATTERNS)) for slide, _ in views),
        np.zeros(len(PATTERNS), np.int64),
    )
    every = np.maximum(1, -(-counts // max(1, limit // len(PATTERNS))))
    seen = np.zeros(len(PATTERNS), np.int64)
    rows, labels = [], []
    for slide, bag in views:
        chosen = np.zeros(len(bag), bool)
        for pattern in range(len(PATTERNS)):
            own = np.flatnonzero(slide.patterns == pattern)
            chosen[own[(seen[pattern] + np.arange(len(own))) % every[pattern] == 0]] = True
            seen[pattern] += len(own)
        rows.append(bag[chosen])
        labels.append(slide.patterns[chosen])
    return np.concatenate(rows), np.concatenate(labels)


def _known(slide: LabelledSlide) -> npt.NDArray[np.int8]:
    return slide.patterns[slide.patterns != UNLABELLED]


def cross_validate(
    slides: Sequence[LabelledSlide], config: FitConfig, *, folds: int
) -> tuple[dict[int, SlidePrediction], list[str]]:
    """Predict each slide by models fitted without its case.

    Slides are left out if the rest of the cohort is too little to learn from.

    Returns:
        Predictions by index of the slide, and remarks for the report.
    """
    predictions: dict[int, SlidePrediction] = {}
    remarks = []
    for fold in folds_by_case(slides, folds):
        rest = [slides[k] for k in range(len(slides)) if k not in fold]
        try:
            head, attention = fit_parts(rest, config)
        except InsufficientData as error:
            # No names: remarks enter the card.
            remarks.append(f"{len(fold)} slides could not be held out: {error}")
            continue
        model = SlideModel(head=head, attention=attention, card={})
        predictions |= {k: model.predict(slides[k].bag.embeddings) for k in fold}
    if len(predictions) < 30:
        remarks.append(
            f"Slide-level metrics are of {len(predictions)} held-out slides: too few for "
            "statistics."
        )
    return dict(sorted(predictions.items())), remarks


def held_out_shares(
    predictions: Mapping[int, SlidePrediction], counts: Mapping[int, npt.NDArray[np.int64]]
) -> dict[int, npt.NDArray[np.float64]]:
    """Area shares of each slide, corrected by the errors on the other slides: its own annotations
    do not affect its grade.
    """
    return {
        k: corrected_shares(
            area_shares(found.patch_probabilities),
            error_rates(counts[other] for other in counts if other != k),
        )
        for k, found in predictions.items()
    }


def folds_by_case(slides: Sequence[LabelledSlide], folds: int) -> list[list[int]]:
    """Indices of slides, a case in one fold only; cases are assigned in turn in the order of their
    grade, so that folds are alike.
    """
    highest: dict[str, int] = {}
    for slide in slides:
        highest[slide.case] = max(highest.get(slide.case, 0), slide.grade_group)
    order = sorted(highest, key=lambda case: (highest[case], case))
    if len(order) < 2:
        return []
    fold_of = {case: position % min(folds, len(order)) for position, case in enumerate(order)}
    return [
        [k for k, slide in enumerate(slides) if fold_of[slide.case] == fold]
        for fold in sorted(set(fold_of.values()))
    ]


def _held_out(
    slide: LabelledSlide,
    found: SlidePrediction,
    shares: npt.NDArray[np.float64],
    rules: GradingRules,
) -> HeldOutSlide:
    tumour = slide.patterns > PATTERNS.index("benign")
    return HeldOutSlide(
        slide_id=slide.bag.slide_id,
        label=slide.label,
        grade_group=slide.grade_group,
        area_grade_group=grade(shares, rules).grade_group,
        attention_grade_group=found.grade_group,
        grade_group_probabilities=found.grade_group_probabilities.tolist(),
        cancer_probability=found.cancer_probability,
        shares=shares.tolist(),
        attention_lift=float(found.attention[tumour].sum() / tumour.mean())
        if tumour.any()
        else None,
    )
