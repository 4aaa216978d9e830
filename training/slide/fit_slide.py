"""From a prepared cohort and an encoder to a slide model: `acinus fit-slide`.

    fit_slide(config)
      load_labelled_slides       embed what is missing; patterns per patch from annotations, grade from labels
      cross_validate             folds by case: what every slide gets from models that have not seen its case
      choose_rules               which area counts as a pattern, from those held-out slides
      fit_pattern_head, fit_attention on all slides
      save_slide_model, report.json, pictures

Every figure of the report is of held-out slides. With few slides the slide-level figures are rough, and the report says how few.
The grading rules are chosen on the same held-out slides that the area grade is then scored on: that one figure is optimistic.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from pipelines import storage
from pipelines.annotations import PATTERNS, UNLABELLED
from pipelines.cohort import cohort_spec
from pipelines.read_counts import ReadCounts
from training.cards import versions
from training.encoder.encoder import load_encoder
from training.errors import InsufficientData
from training.slide.figures import attention_figure, confusion_figure, grades_figure
from training.slide.gleason import (
    DEFAULT_RULES,
    GradingRules,
    agreement,
    area_shares,
    choose_rules,
    corrected_shares,
    grade,
)
from training.slide.labelled_slides import LabelledSlide, Progress, load_labelled_slides
from training.slide.pattern_head import PatternHead, fit_pattern_head
from training.slide.slide_model import (
    DEFAULT_ATTENTION,
    AttentionConfig,
    SlideModel,
    SlidePrediction,
    fit_attention,
    save_slide_model,
)

Told = Callable[[str], None]

LEAST_SLIDES = 5
"""Held-out slides below which no kappa is given."""


@dataclass(frozen=True, kw_only=True)
class FitSlideConfig:
    """What to fit, and on what.

    Attributes:
        data: prepared cohort, the `out` of `prepare`.
        encoder: folder or URI of the encoder.
        out: folder or URI that model, card, report and pictures are written to.
        split: slides to learn from; None for all.
        folds: of the cross-validation by case; fewer where there are fewer cases.
        penalty: L2 penalty of the pattern head (see `fit_pattern_head`).
        attention: size and fitting of the attention model.
        seed: of the attention model.
    """

    data: str
    encoder: str
    out: str
    split: str | None = "train"
    folds: int = 5
    penalty: float = 30.0
    attention: AttentionConfig = DEFAULT_ATTENTION
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class HeldOutSlide:
    """What a slide got from models that have not seen its case.

    Attributes:
        name: file name.
        label: the slide's own.
        grade_group: of the label.
        area_grade_group: by areas, under the chosen rules.
        attention_grade_group: by the attention model.
        grade_group_probabilities: of the attention model, [6].
        cancer_probability: of the attention model.
        shares: area shares of PATTERNS, [4], corrected for the head's errors on the other held-out slides.
        attention_lift: how much more attention a tumour patch gets than an average one; None without annotated tumour.
    """

    name: str
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
        patches: labelled patches.
        slides: they are of so many slides.
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
        slides: so many slides.
        attention_kappa: quadratic weighted kappa of the attention model's grade group; None below LEAST_SLIDES.
        area_kappa: the same of the grade by areas; optimistic, since the rules were chosen on these slides.
        cancer_auc: area under the ROC curve of the cancer probability; None if all slides are benign or none is.
    """

    slides: int
    attention_kappa: float | None
    area_kappa: float | None
    cancer_auc: float | None


@dataclass(frozen=True, kw_only=True)
class FitSlideReport:
    """What was fitted, and how good it is on held-out slides.

    Attributes:
        model: URI of the slide model.
        model_hash: names it.
        slides: learnt from.
        patches: in their bags.
        patch_score: None where no cross-validation was possible.
        slide_score: likewise.
        held_out: slide by slide.
        rules: what counts as a pattern.
        read: what embedding the slides took: requests and bytes.
        failed: a sentence for each slide that could not be used.
        without_label: slides that the manifest gives no label.
        annotations: a sentence for each annotated slide: what its features label, and which do not.
        remarks: what a reader should know of the figures.
        figures: URIs of the pictures.
    """

    model: str
    model_hash: str
    slides: int
    patches: int
    patch_score: PatchScore | None
    slide_score: SlideScore | None
    held_out: list[HeldOutSlide]
    rules: GradingRules
    read: ReadCounts
    failed: list[str]
    without_label: list[str]
    annotations: list[str]
    remarks: list[str]
    figures: list[str]


def fit_slide(
    config: FitSlideConfig,
    *,
    on_shard: Progress = lambda _done, _total: None,
    told: Told = lambda _line: None,
) -> FitSlideReport:
    """Fit a slide model and write it, with report and pictures, to `config.out`.

    Args:
        config: what to fit.
        on_shard: called with embedded shards and their total.
        told: called with a line on what is being done.

    Raises:
        CohortError: nothing was prepared at `config.data`.
        SpecMismatch: the cohort was prepared for another encoder.
        InsufficientData: fewer than two patterns are annotated, or fewer than two grade groups labelled.
    """
    encoder = load_encoder(config.encoder)
    spec = cohort_spec(config.data)
    encoder.require(spec)
    told("embedding what is not embedded yet")
    cohort = load_labelled_slides(config.data, encoder, split=config.split, on_shard=on_shard)
    slides = cohort.slides
    told(f"cross-validating on {len(slides)} slides")
    predictions, remarks = cross_validate(slides, config)
    remarks += cohort.annotation_remarks
    counts = {
        k: confusion_of(slides[k].patterns, found.patch_probabilities)
        for k, found in predictions.items()
    }
    shares = held_out_shares(predictions, counts)
    rules = (
        choose_rules(list(shares.values()), [slides[k].grade_group for k in shares])
        if shares
        else DEFAULT_RULES
    )
    held_out = [_held_out(slides[k], found, shares[k], rules) for k, found in predictions.items()]
    patch_score = score_patches(counts.values())
    slide_score = score_slides(held_out)
    told("fitting on all slides")
    model = SlideModel(
        head=_fit_head(slides, config.penalty),
        attention=fit_attention(
            [slide.bag.embeddings for slide in slides],
            [slide.grade_group for slide in slides],
            config.attention,
            seed=config.seed,
        ),
        confusion=error_rates(counts.values()),
        rules=rules,
        card={
            "name": "pattern head and gated attention",
            "encoder_hash": encoder.hash,
            "spec": spec.to_dict(),
            "seed": config.seed,
            "config": {
                "penalty": config.penalty,
                "folds": config.folds,
                "attention": asdict(config.attention),
            },
            "patterns": list(PATTERNS),
            "versions": versions("acinus", "numpy", "scikit-learn", "torch"),
            "data": cohort.data,
            "metrics": {
                "patch": None if patch_score is None else asdict(patch_score),
                "slide": None if slide_score is None else asdict(slide_score),
            },
            "remarks": remarks,
        },
    )
    saved = save_slide_model(config.out, model)
    report = FitSlideReport(
        model=storage.as_uri(config.out),
        model_hash=saved.hash,
        slides=len(slides),
        patches=sum(len(slide.bag) for slide in slides),
        patch_score=patch_score,
        slide_score=slide_score,
        held_out=held_out,
        rules=rules,
        read=cohort.read,
        failed=cohort.failed,
        without_label=cohort.without_label,
        annotations=[str(use) for use in cohort.annotations],
        remarks=remarks,
        figures=_draw(
            config.out, slides, predictions, patch_score, held_out, side=_patch_side(slides)
        ),
    )
    storage.write_bytes(
        storage.join(config.out, "report.json"), json.dumps(asdict(report), indent=1).encode()
    )
    return report


def cross_validate(
    slides: Sequence[LabelledSlide], config: FitSlideConfig
) -> tuple[dict[int, SlidePrediction], list[str]]:
    """Predict each slide by models fitted without its case; slides whose remaining cohort can't be learnt from are left out.

    Returns:
        Predictions by index of the slide, and remarks for the report.
    """
    predictions: dict[int, SlidePrediction] = {}
    remarks = []
    for fold in folds_by_case(slides, config.folds):
        rest = [slides[k] for k in range(len(slides)) if k not in fold]
        try:
            model = SlideModel(
                head=_fit_head(rest, config.penalty),
                attention=fit_attention(
                    [slide.bag.embeddings for slide in rest],
                    [slide.grade_group for slide in rest],
                    config.attention,
                    seed=config.seed,
                ),
                card={},
            )
        except InsufficientData as error:
            remarks.append(
                f"{len(fold)} slides could not be held out: {error}"
            )  # no names: remarks enter the card
            continue
        predictions |= {k: model.predict(slides[k].bag.embeddings) for k in fold}
    if len(predictions) < 30:
        remarks.append(
            f"Slide-level figures rest on {len(predictions)} held-out slides: read them as anecdotes."
        )
    return dict(sorted(predictions.items())), remarks


def held_out_shares(
    predictions: Mapping[int, SlidePrediction], counts: Mapping[int, npt.NDArray[np.int64]]
) -> dict[int, npt.NDArray[np.float64]]:
    """Area shares of each slide, corrected by the errors on the other slides: its own annotations have no say in its grade."""
    return {
        k: corrected_shares(
            area_shares(found.patch_probabilities),
            error_rates(counts[at] for at in counts if at != k),
        )
        for k, found in predictions.items()
    }


def folds_by_case(slides: Sequence[LabelledSlide], folds: int) -> list[list[int]]:
    """Indices of slides, a case in one fold only; cases are dealt in the order of their grade, so that folds are alike."""
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


def confusion_of(
    patterns: npt.NDArray[np.int8], probabilities: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    """Counts [4, 4] of labelled patches: rows by annotation, columns by prediction."""
    known = patterns != UNLABELLED
    counts = np.zeros((len(PATTERNS), len(PATTERNS)), np.int64)
    np.add.at(counts, (patterns[known], probabilities[known].argmax(axis=1)), 1)
    return counts


def error_rates(counts: Iterable[npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
    """Confusion with rows that sum to 1; ten patches named right are added to each row, so that few errors do not weigh much."""
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
    enough = len(held_out) >= LEAST_SLIDES
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


def _fit_head(slides: Sequence[LabelledSlide], penalty: float) -> PatternHead:
    return fit_pattern_head(
        np.concatenate([slide.bag.embeddings for slide in slides]),
        np.concatenate([slide.patterns for slide in slides]),
        penalty=penalty,
    )


def _held_out(
    slide: LabelledSlide,
    found: SlidePrediction,
    shares: npt.NDArray[np.float64],
    rules: GradingRules,
) -> HeldOutSlide:
    tumour = slide.patterns > PATTERNS.index("benign")
    return HeldOutSlide(
        name=slide.name,
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


def _patch_side(slides: Sequence[LabelledSlide]) -> list[float]:
    """Level-0 pixels between neighbouring patches of each slide, for pictures."""
    return [float(min(np.diff(np.unique(slide.bag.x)), default=1)) for slide in slides]


def _draw(
    out: str,
    slides: Sequence[LabelledSlide],
    predictions: dict[int, SlidePrediction],
    patch_score: PatchScore | None,
    held_out: Sequence[HeldOutSlide],
    *,
    side: Sequence[float],
) -> list[str]:
    """Write the pictures; returns their URIs."""
    pictures: dict[str, bytes] = {}
    if patch_score is not None:
        pictures["confusion.png"] = confusion_figure(
            np.array(patch_score.confusion), patch_score.balanced_accuracy
        )
    if held_out:
        pictures["grades.png"] = grades_figure(
            [f"{slide.name} ({slide.label})" for slide in held_out],
            np.array([slide.grade_group_probabilities for slide in held_out]),
            [slide.grade_group for slide in held_out],
            [slide.area_grade_group for slide in held_out],
        )
        shown = sorted(predictions, key=lambda k: -slides[k].grade_group)[
            :: max(1, len(predictions) // 3)
        ][:3]
        pictures["attention.png"] = attention_figure(
            [(slides[k], predictions[k], side[k]) for k in shown]
        )
    for name, picture in pictures.items():
        storage.write_bytes(storage.join(out, name), picture)
    return [storage.join(out, name) for name in pictures]
