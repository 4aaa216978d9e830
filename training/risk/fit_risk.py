"""OPEN FIRST. From cohort, encoder and slide model to a risk model: `acinus fit-risk`.

    fit_risk(config)
      load_labelled_slides       bags of the slides with cancer and annotated patterns
      draw_patients              known hazards, and the slide embedding of each patient's biopsy
      fit_risk_model             on the patients
      score_risk                 on other patients: concordance, calibration, the true risk
      save_risk_model, report.json, picture

Outcomes are simulated (`simulated_outcomes.py`). The metrics say whether the machinery recovers
what is known to be there, and nothing about patients. Both groups of patients share slides, so the
image is easier here than on new slides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from pipelines import storage
from pipelines.annotations import UNLABELLED
from pipelines.read_counts import ReadCounts
from training.cards import Card, versions
from training.encoder.encoder import load_encoder
from training.errors import SpecMismatch
from training.limits import MAX_SEED, require_range
from training.pictures import png
from training.precision import device_here
from training.risk.risk_model import (
    DEFAULT_RISK,
    RiskModel,
    RiskModelConfig,
    fit_risk_model,
    save_risk_model,
)
from training.risk.simulated_outcomes import GradedSlide, SimulatedCohort, simulate
from training.risk.survival import CalibrationGroup, Floats, calibration, concordance
from training.slide.labelled_slides import (
    FailedSlide,
    LabelledSlide,
    Progress,
    explained,
    load_labelled_slides,
)
from training.slide.slide_model import SlideModel, load_slide_model
from training.threads import threads_for


@dataclass(frozen=True, kw_only=True)
class FitRiskConfig:
    """What to fit, and on what.

    Attributes:
        data: prepared cohort, the `out` of `prepare`.
        encoder: folder or URI of the encoder.
        slide_model: folder or URI of the slide model.
        out: folder or URI that model, card, report and picture are written to.
        split: slides that patients are drawn from; None for all.
        on_ray: whether the cluster embeds, on GPUs where it has some, instead of this process.
        patients: how many are simulated to fit on.
        held_out: how many others are simulated to score on: enough for steady metrics, since they
            cost nothing.
        model: how the risk model is fitted.
        seed: of the cohort and of the bootstrap.

    Raises:
        ValueError: a value that no fit can have; names the field, the value and its range.
    """

    data: str
    encoder: str
    slide_model: str
    out: str
    split: str | None = "train"
    on_ray: bool = False
    patients: int = 600
    held_out: int = 1500
    model: RiskModelConfig = DEFAULT_RISK
    seed: int = 0

    def __post_init__(self) -> None:
        require_range("patients", self.patients, 1)
        require_range("held_out", self.held_out, 1)
        require_range("seed", self.seed, 0, MAX_SEED - 1)


@dataclass(frozen=True, kw_only=True)
class RiskScore:
    """How good a risk model is on held-out simulated patients.

    Attributes:
        patients: how many.
        events: distant metastases among them.
        concordance: of the model; None without comparable pairs, as the two below.
        concordance_without_image: of the same model without the slide embedding.
        concordance_of_truth: of the true hazards: what no model can beat but by luck.
        error_ten_years: mean absolute difference between predicted and true 10-year risk.
        coverage_ten_years: share of patients whose 95 % interval of the 10-year risk holds the true
            one. Below 95 % where the slide embedding does not show all that the hazard depends on:
            the interval is of the model, and cannot know what it can't see.
        calibration_ten_years: groups of patients from low to high predicted 10-year risk.
    """

    patients: int
    events: int
    concordance: float | None
    concordance_without_image: float | None
    concordance_of_truth: float | None
    error_ten_years: float
    coverage_ten_years: float
    calibration_ten_years: list[CalibrationGroup]


@dataclass(frozen=True, kw_only=True)
class FitRiskReport:
    """What was fitted, and how good it is.

    Attributes:
        model: URI of the risk model.
        model_hash: names it.
        simulated_outcomes: always true here.
        slides: number of slides that patients were drawn from.
        patients: simulated to fit on.
        events: distant metastases among them.
        score: on the held-out patients.
        hazard_ratios: of the fitted model, per standard deviation of each column.
        read: what embedding the slides took: requests and bytes.
        failed: the slides that could not be used.
        remarks: what a reader should know of the metrics.
        figures: URIs of the pictures.
    """

    model: str
    model_hash: str
    simulated_outcomes: bool
    slides: int
    patients: int
    events: int
    score: RiskScore
    hazard_ratios: dict[str, float]
    read: ReadCounts
    failed: list[FailedSlide]
    remarks: list[str]
    figures: list[str]

    def without_names(self) -> dict[str, Any]:
        """The report as it is stored with the model: slides by their ids."""
        return asdict(self) | {"failed": [slide.without_names() for slide in self.failed]}


def fit_risk(
    config: FitRiskConfig, *, on_shard: Progress = lambda _done, _total: None
) -> FitRiskReport:
    """Fit a risk model on simulated outcomes and write it, with report and picture, to
    `config.out`.

    Args:
        config: what to fit.
        on_shard: called with embedded shards and their total.

    Raises:
        CohortError: nothing was prepared at `config.data`.
        SpecMismatch: encoder, slide model and cohort do not belong together.
        InsufficientData: there is not an annotated slide with cancer, or too few events; names the
            slides that could not be used.
    """
    encoder = load_encoder(config.encoder, device=device_here())
    slide_model = load_slide_model(config.slide_model)
    if (fitted_on := slide_model.card["encoder_hash"]) != encoder.hash:
        remedy = "give the encoder that the slide model was fitted on"
        raise SpecMismatch(
            "encoder hash", f"given {encoder.hash}", f"slide model {fitted_on}", remedy
        )
    cohort = load_labelled_slides(
        config.data,
        encoder,
        split=config.split,
        on_ray=config.encoder if config.on_ray else None,
        on_shard=on_shard,
    )
    slides = with_cancer(cohort.slides)
    with explained(cohort):
        patients = draw_patients(slides, slide_model, config.patients, seed=config.seed)
        others = draw_patients(slides, slide_model, config.held_out, seed=config.seed + 1)
        model = _fit(patients, config)
        without_image = replace(config.model, components=0, replicas=2)
        blind = _fit(patients, replace(config, model=without_image))
    score = score_risk(model, blind, others)
    remarks = _remarks(len(slides)) + cohort.annotation_remarks + model.card["fit_remarks"]
    card = _card(config, slide_model, patients) | {
        "data": cohort.data,
        "metrics": asdict(score),
        "remarks": remarks,
    }
    saved = save_risk_model(config.out, replace(model, card={**model.card, **card}))
    picture = storage.join(config.out, "calibration.png")
    storage.write_bytes(picture, calibration_figure(model, others, score))
    report = FitRiskReport(
        model=storage.as_uri(config.out),
        model_hash=saved.hash,
        simulated_outcomes=True,
        slides=len(slides),
        patients=config.patients,
        events=int(patients.cohort.event.sum()),
        score=score,
        hazard_ratios=model.hazard_ratios(),
        read=cohort.read,
        failed=cohort.failed,
        remarks=remarks,
        figures=[picture],
    )
    stored = json.dumps(report.without_names(), indent=1)
    storage.write_bytes(storage.join(config.out, "report.json"), stored.encode())
    return report


def _remarks(slides: int) -> list[str]:
    return [
        "Outcomes are simulated: these metrics say nothing about patients.",
        f"Held-out patients share their {slides} slides with the others.",
    ]


def _card(config: FitRiskConfig, slide_model: SlideModel, patients: Patients) -> Card:
    return {
        "name": "penalised Cox model",
        "simulated_outcomes": True,
        "endpoint": "distant metastasis",
        "encoder_hash": slide_model.card["encoder_hash"],
        "slide_model_hash": slide_model.hash,
        "spec": slide_model.card["spec"],
        "seed": config.seed,
        "config": {
            "patients": config.patients,
            "held_out": config.held_out,
            **asdict(config.model),
        },
        "generator": asdict(patients.cohort.hazards),
        "versions": versions("acinus", "lifelines", "numpy", "pandas"),
    }


@dataclass(frozen=True, kw_only=True)
class Patients:
    """Simulated patients and the slide embedding of each one's bag, [P, E]."""

    cohort: SimulatedCohort
    embeddings: npt.NDArray[np.float32]

    def ten_year(self, model: RiskModel) -> Floats:
        """Estimate, lower and upper end of each patient's 10-year risk, [3, P]."""
        risks = [
            model.predict(*one).ten_year
            for one in zip(self.embeddings, self.cohort.covariates, strict=True)
        ]
        return np.array([[risk.estimate, risk.lower, risk.upper] for risk in risks]).T

    def concordance(self, log_hazard: Floats) -> float | None:
        """Of this log hazard with the outcomes; None where there is no event."""
        return (
            concordance(self.cohort.time, self.cohort.event, log_hazard)
            if self.cohort.event.any()
            else None
        )


def with_cancer(slides: Sequence[LabelledSlide]) -> list[LabelledSlide]:
    """The slides that patients can be drawn from: those with cancer and annotated patterns."""
    return [
        slide
        for slide in slides
        if slide.score is not None and (slide.patterns != UNLABELLED).any()
    ]


def draw_patients(
    slides: Sequence[LabelledSlide], model: SlideModel, count: int, *, seed: int
) -> Patients:
    """Simulate patients on the slides `with_cancer`, and predict the bag of each.

    Raises:
        InsufficientData: there is no such slide.
    """
    slides = with_cancer(slides)
    graded = [
        GradedSlide(slide_id=slide.name, score=slide.score, patterns=slide.patterns)
        for slide in slides
        if slide.score is not None
    ]
    cohort = simulate(graded, count, seed=seed)
    bags = (slides[k].bag.embeddings[bag] for k, bag in zip(cohort.slide, cohort.bags, strict=True))
    with threads_for(max(map(len, cohort.bags), default=0) * model.dimension):
        embeddings = np.stack([model.predict(bag).embedding for bag in bags])
    return Patients(cohort=cohort, embeddings=embeddings)


def score_risk(model: RiskModel, blind: RiskModel, patients: Patients) -> RiskScore:
    """Score a model, and one that is blind to the image, on simulated patients that neither was
    fitted on.
    """
    cohort, images = patients.cohort, patients.embeddings.astype(np.float64)
    estimate, lower, upper = patients.ten_year(model)
    true = cohort.true_risk(10.0)
    return RiskScore(
        patients=len(true),
        events=int(cohort.event.sum()),
        concordance=patients.concordance(model.log_hazard(images, cohort.covariates)),
        concordance_without_image=patients.concordance(blind.log_hazard(images, cohort.covariates)),
        concordance_of_truth=patients.concordance(cohort.log_hazard),
        error_ten_years=float(np.abs(estimate - true).mean()),
        coverage_ten_years=float(((lower <= true) & (true <= upper)).mean()),
        calibration_ten_years=calibration(estimate, cohort.time, cohort.event, 10.0, true=true),
    )


def calibration_figure(model: RiskModel, patients: Patients, score: RiskScore) -> bytes:
    """PNG: predicted against true 10-year risk of patients, and of groups of them against what was
    observed.
    """
    estimate, lower, upper = patients.ten_year(model)
    truth = patients.cohort.true_risk(10.0)
    some = slice(0, 200)  # more bars would hide each other
    reach = np.stack([estimate - lower, upper - estimate])
    groups = score.calibration_ten_years
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    one, many = figure.subplots(1, 2)
    one.errorbar(
        truth[some],
        estimate[some],
        yerr=reach[:, some],
        fmt="o",
        markersize=3,
        color="#1f5f99",
        ecolor="#c9dcec",
    )
    one.set_title(f"Held-out patients, the first {len(truth[some])}, with 95 % interval")
    one.set_xlabel("true risk")
    many.plot(
        [group.predicted for group in groups],
        [group.observed for group in groups],
        "s",
        color="#d95f02",
        label="observed",
    )
    many.plot(
        [group.predicted for group in groups],
        [group.true for group in groups],
        "o",
        color="#1f5f99",
        label="true",
    )
    many.set_title(f"Fifths of all {len(truth)} by predicted risk")
    many.set_xlabel("predicted risk")
    many.legend()
    for axes, label in ((one, "predicted risk"), (many, "observed or true risk")):
        limit = max(0.05, *axes.get_xlim())
        axes.plot([0, limit], [0, limit], "--", color="grey", linewidth=0.8)
        axes.set_ylabel(label)
        axes.set_xlim(0, limit)
        axes.set_ylim(bottom=0)
    figure.suptitle("10-year risk of distant metastasis. SIMULATED OUTCOMES", color="#a11")
    return png(figure)


def _fit(patients: Patients, config: FitRiskConfig) -> RiskModel:
    cohort = patients.cohort
    card = {"simulated_outcomes": True}
    return fit_risk_model(
        patients.embeddings,
        cohort.covariates,
        cohort.time,
        cohort.event,
        card=card,
        config=config.model,
        seed=config.seed,
    )
