"""OPEN FIRST. From a prepared cohort and an encoder to a slide model: `acinus fit-slide`.

    fit_slide(config)
      load_labelled_slides       embed what is missing; patterns from annotations, grade from labels
      evaluate                   what every slide gets from models that have not seen its case
      fit_parts                  pattern head and attention model on all slides
      save_slide_model, report.json, pictures

Every metric of the report is of held-out slides (`held_out.py`). With few slides the slide-level
metrics are rough, and the report gives their number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from pipelines import storage
from pipelines.annotations import PATTERNS
from pipelines.cohort import cohort_spec
from pipelines.grid import PatchSpec
from pipelines.read_counts import ReadCounts
from training.cards import Card, versions
from training.encoder.encoder import Encoder, load_encoder
from training.limits import MAX_SEED, require_range
from training.precision import device_here
from training.slide.calibration import Calibration
from training.slide.figures import (
    attention_figure,
    confusion_figure,
    grades_figure,
    reliability_figure,
)
from training.slide.gleason import GradingRules
from training.slide.held_out import (
    FitConfig,
    HeldOut,
    evaluate,
    fit_parts,
)
from training.slide.labelled_slides import (
    AnnotationUse,
    FailedSlide,
    LabelledCohort,
    LabelledSlide,
    Progress,
    explained,
    load_labelled_slides,
)
from training.slide.scores import (
    AreaScore,
    HeldOutSlide,
    PatchScore,
    ReadingScore,
    SlideScore,
)
from training.slide.slide_model import (
    DEFAULT_ATTENTION,
    Aggregator,
    AttentionConfig,
    SlideModel,
    save_slide_model,
)
from training.tracking import track

_AGGREGATORS: Final[dict[Aggregator, str]] = {
    "attention": "gated attention",
    "mean": "mean of patches",
}


@dataclass(frozen=True, kw_only=True)
class FitSlideConfig:
    """What to fit, and on what.

    Attributes:
        data: prepared cohort, the `out` of `prepare`.
        encoder: name, folder or URI of the encoder.
        out: folder or URI that model, card, report and pictures are written to.
        split: slides to learn from; None for all.
        folds: of the cross-validation by case; fewer where there are fewer cases.
        penalty: L2 penalty of the pattern head (see `fit_pattern_head`).
        stain_views: how many times each patch is also embedded under another stain, for the
            pattern head to learn from.
        attention: size and fitting of the attention model.
        choose_aggregator: whether each aggregator is cross-validated and the one with the lowest
            negative log likelihood of held-out grade groups is taken, instead of the one of
            `attention`; its scores are then a little optimistic.
        seed: of the attention model.
        on_ray: whether the cluster embeds, on GPUs where it has some, instead of this process.

    Raises:
        ValueError: a value that no fit can have; names the field, the value and its range.
    """

    data: str
    encoder: str
    out: str
    split: str | None = "train"
    folds: int = 5
    penalty: float = 30.0
    stain_views: int = 2
    attention: AttentionConfig = DEFAULT_ATTENTION
    choose_aggregator: bool = False
    seed: int = 0
    on_ray: bool = False

    @property
    def fits(self) -> list[FitConfig]:
        """How each model may be fitted, on all slides and on those of a fold."""
        first = self.attention.aggregator
        tried = _AGGREGATORS if self.choose_aggregator else (first,)
        return [
            FitConfig(
                penalty=self.penalty,
                attention=replace(self.attention, aggregator=aggregator),
                seed=self.seed,
            )
            for aggregator in tried
        ]

    def __post_init__(self) -> None:
        require_range("folds", self.folds, 2)
        require_range("penalty", self.penalty, 1e-6)
        require_range("stain_views", self.stain_views, 0, 100)
        require_range("seed", self.seed, 0, MAX_SEED)


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
        area_score: likewise.
        reading_score: likewise.
        held_out: slide by slide.
        rules: what counts as a pattern.
        surroundings: share of the neighbours' mean in a patch's probabilities.
        patch_calibration: of the patches' probabilities, on held-out slides.
        group_calibration: of the attention model's grade groups, likewise.
        false_alarms: share of slides like these that are taken for others; None where nothing could
            be held out.
        read: what embedding the slides took: requests and bytes.
        failed: the slides that could not be used.
        without_label: file names, by slide id, of slides that the manifest gives no label.
        annotations: of each annotated slide: what its features label, and which do not.
        remarks: what a reader should know of the metrics.
        figures: URIs of the pictures.
    """

    model: str
    model_hash: str
    slides: int
    patches: int
    patch_score: PatchScore | None
    slide_score: SlideScore | None
    area_score: AreaScore | None
    reading_score: ReadingScore | None
    held_out: list[HeldOutSlide]
    rules: GradingRules
    surroundings: float
    patch_calibration: Calibration | None
    group_calibration: Calibration | None
    false_alarms: float | None
    read: ReadCounts
    failed: list[FailedSlide]
    without_label: dict[str, str]
    annotations: list[AnnotationUse]
    remarks: list[str]
    figures: list[str]

    def without_names(self) -> dict[str, Any]:
        """The report as it is stored with the model: slides by their ids.

        A model is given to others, and a file name can hold a patient's.
        """
        return asdict(self) | {
            "failed": [slide.without_names() for slide in self.failed],
            "without_label": list(self.without_label),
            "annotations": [use.without_names() for use in self.annotations],
        }


def fit_slide(
    config: FitSlideConfig, *, on_shard: Progress = lambda _done, _total: None
) -> FitSlideReport:
    """Fit a slide model and write it, with report and pictures, to `config.out`.

    Args:
        config: what to fit.
        on_shard: called with embedded shards and their total.

    Raises:
        CohortError: nothing was prepared at `config.data`.
        SpecMismatch: the cohort was prepared for another encoder.
        InsufficientData: fewer than two patterns are annotated, or fewer than two grade groups
            labelled; names the slides that could not be used. Nothing is written.
    """
    encoder = load_encoder(config.encoder, device=device_here())
    spec = cohort_spec(config.data)
    encoder.require(spec)
    cohort = load_labelled_slides(
        config.data,
        encoder,
        split=config.split,
        on_ray=config.encoder if config.on_ray else None,
        stain_views=config.stain_views,
        on_shard=on_shard,
    )
    with explained(cohort):
        tried = [(fit, evaluate(cohort.slides, fit, folds=config.folds)) for fit in config.fits]
        fit, held_out = min(tried, key=lambda each: _loss(each[1]))
        head, attention = fit_parts(cohort.slides, fit)
    losses = {each.attention.aggregator: _loss(found) for each, found in tried}
    remarks = held_out.remarks + cohort.annotation_remarks
    if len(losses) > 1 and held_out.slides:
        stated = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
        remarks.append(
            f"Loss of held-out grade groups by aggregator: {stated}; {fit.attention.aggregator} is "
            "taken, and its scores are a little optimistic for the choice."
        )
    chosen = replace(config, attention=fit.attention)
    card = _card(chosen, encoder, spec, cohort, held_out) | {
        "remarks": remarks,
        "aggregator": fit.attention.aggregator,
        "aggregator_losses": {
            name: None if math.isinf(loss) else loss for name, loss in losses.items()
        },
    }
    model = SlideModel(
        head=head,
        attention=attention,
        confusion=held_out.error_rates,
        rules=held_out.rules,
        surroundings=held_out.surroundings,
        patch_temperature=_temperature(held_out.patch_calibration),
        group_temperature=_temperature(held_out.group_calibration),
        domain=held_out.domain,
        card=card,
    )
    pictures = _draw(cohort.slides, held_out)
    saved = save_slide_model(config.out, model)
    for name, picture in pictures.items():
        storage.write_bytes(storage.join(config.out, name), picture)
    report = FitSlideReport(
        model=storage.as_uri(config.out),
        model_hash=saved.hash,
        slides=len(cohort.slides),
        patches=sum(len(slide.bag) for slide in cohort.slides),
        patch_score=held_out.patch_score,
        slide_score=held_out.slide_score,
        area_score=held_out.area_score,
        reading_score=held_out.reading_score,
        held_out=held_out.slides,
        rules=held_out.rules,
        surroundings=held_out.surroundings,
        patch_calibration=held_out.patch_calibration,
        group_calibration=held_out.group_calibration,
        false_alarms=None if held_out.domain is None else held_out.domain.false_alarms,
        read=cohort.read,
        failed=cohort.failed,
        without_label=cohort.without_label,
        annotations=cohort.annotations,
        remarks=remarks,
        figures=[storage.join(config.out, name) for name in pictures],
    )
    stored = json.dumps(report.without_names(), indent=1)
    storage.write_bytes(storage.join(config.out, "report.json"), stored.encode())
    track(saved.card)
    return report


def _card(
    config: FitSlideConfig,
    encoder: Encoder,
    spec: PatchSpec,
    cohort: LabelledCohort,
    held_out: HeldOut,
) -> Card:
    patch, slide = held_out.patch_score, held_out.slide_score
    return {
        "name": f"pattern head and {_AGGREGATORS[config.attention.aggregator]}",
        "encoder_hash": encoder.hash,
        "encoder_precision": encoder.precision,
        "spec": spec.to_dict(),
        "seed": config.seed,
        "config": {
            "penalty": config.penalty,
            "stain_views": config.stain_views,
            "folds": config.folds,
            "attention": asdict(config.attention),
        },
        "patterns": list(PATTERNS),
        "versions": versions("acinus", "numpy", "scikit-learn", "torch"),
        "data": cohort.data,
        "metrics": {
            "patch": None if patch is None else asdict(patch),
            "slide": None if slide is None else asdict(slide),
            "areas": None if held_out.area_score is None else asdict(held_out.area_score),
            "reading": None if held_out.reading_score is None else asdict(held_out.reading_score),
        },
        "calibration": {
            name: None if found is None else asdict(found)
            for name, found in (
                ("patches", held_out.patch_calibration),
                ("grade_groups", held_out.group_calibration),
            )
        },
    }


def _temperature(found: Calibration | None) -> float:
    return 1.0 if found is None else found.temperature


def _loss(found: HeldOut) -> float:
    """Of held-out grade groups; infinite where nothing could be held out."""
    return math.inf if found.group_calibration is None else found.group_calibration.loss_after


def _draw(slides: Sequence[LabelledSlide], held_out: HeldOut) -> dict[str, bytes]:
    """The pictures by file name."""
    pictures: dict[str, bytes] = {}
    if (score := held_out.patch_score) is not None:
        pictures["confusion.png"] = confusion_figure(
            np.array(score.confusion), score.balanced_accuracy
        )
    if held_out.patch_calibration is not None and held_out.group_calibration is not None:
        pictures["reliability.png"] = reliability_figure(
            {
                "Patterns of patches": held_out.patch_calibration,
                "Grade groups of slides": held_out.group_calibration,
            }
        )
    if held_out.slides:
        pictures["grades.png"] = grades_figure(
            [f"{slides[k].short_id} ({slides[k].label})" for k in held_out.predictions],
            np.array([slide.grade_group_probabilities for slide in held_out.slides]),
            [slide.grade_group for slide in held_out.slides],
            [slide.area_grade_group for slide in held_out.slides],
        )
        by_grade = sorted(held_out.predictions, key=lambda k: -slides[k].grade_group)
        shown = by_grade[:: max(1, len(by_grade) // 3)][:3]
        pictures["attention.png"] = attention_figure(
            [(slides[k], held_out.predictions[k]) for k in shown]
        )
    return pictures
