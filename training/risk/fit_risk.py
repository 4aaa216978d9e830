"""OPEN FIRST. From cohort, encoder, slide model and outcomes to a risk model: `acinus fit-risk`.

    fit_risk(config)
      read_outcomes, embed_cases    patients of a table, and the slide embedding of each case
        or draw_patients            simulated ones, with known hazards
      fit_risk_model                on the patients
      cross_validate                on the same ones by folds: concordance, AUC, Brier, calibration
        or score_on_simulated       on others: the same, and the true risk
      save_risk_model, report.json, picture

Without outcomes of real patients they are simulated (`simulated_outcomes.py`), if that is asked
for. Those metrics say whether the machinery recovers what is known to be there, and nothing about
patients; the model says so in everything that it is used for.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from pipelines import storage
from pipelines.read_counts import ReadCounts
from training.cards import Card, versions
from training.encoder.encoder import Encoder, load_encoder
from training.errors import SpecMismatch
from training.limits import MAX_SEED, require_range
from training.precision import device_here
from training.risk.case_embeddings import embed_cases
from training.risk.cross_validation import CrossValidatedScore, cross_validate
from training.risk.figures import cross_validated_figure, simulated_figure
from training.risk.fitting import (
    DEFAULT_RISK,
    Patients,
    RiskModelConfig,
    fit_risk_model,
    require_ten_years,
)
from training.risk.hazards import LIMIT
from training.risk.outcomes import Outcome, TimeUnit, read_outcomes
from training.risk.risk_model import RiskModel, save_risk_model
from training.risk.simulated_outcomes import Hazards
from training.risk.simulated_patients import (
    SimulatedScore,
    draw_patients,
    score_on_simulated,
    with_cancer,
)
from training.slide.labelled_slides import FailedSlide, Progress, explained, load_labelled_slides
from training.slide.slide_model import SlideModel, load_slide_model
from training.tracking import track

SIMULATED_REMARK: Final = "Outcomes are simulated: these metrics say nothing about patients."


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Where slide embeddings come from.

    Attributes:
        data: prepared cohort, the `out` of `prepare`.
        encoder: name, folder or URI of the encoder.
        slide_model: folder or URI of the slide model.
        split: slides that are used; None for all.
        on_ray: whether the cluster embeds, on GPUs where it has some, instead of this process.
    """

    data: str
    encoder: str
    slide_model: str
    split: str | None = None
    on_ray: bool = False


@dataclass(frozen=True, kw_only=True)
class RealOutcomes:
    """Outcomes of real patients.

    Attributes:
        table: CSV or Parquet, see `outcomes.py`.
        unit: of its column time.
        treatment: what its column treatment stands for, in words.
        randomised: whether that treatment was assigned at random.
        folds: of the cross-validation.
    """

    table: str
    unit: TimeUnit = "years"
    treatment: str = "short-term ADT"
    randomised: bool = False
    folds: int = 5

    def __post_init__(self) -> None:
        require_range("folds", self.folds, 2)
        if not self.treatment.strip():
            raise ValueError("treatment is empty; say what the column treatment stands for")


@dataclass(frozen=True, kw_only=True)
class SimulatedOutcomes:
    """Outcomes that a generator draws.

    Attributes:
        patients: how many to fit on.
        held_out: how many others to score on: enough for steady metrics, since they cost nothing.
    """

    patients: int = 600
    held_out: int = 1500

    def __post_init__(self) -> None:
        require_range("patients", self.patients, 1)
        require_range("held_out", self.held_out, 1)


@dataclass(frozen=True, kw_only=True)
class FitRiskConfig:
    """What to fit, and on what.

    Attributes:
        out: folder or URI that model, card, report and picture are written to.
        outcomes: real ones, or how to simulate some.
        image: where slide embeddings come from; None for the clinical variables alone, which needs
            real outcomes.
        model: how the risk model is fitted.
        seed: of everything that is drawn.

    Raises:
        ValueError: a value that no fit can have; names the field, the value and its range.
    """

    out: str
    outcomes: RealOutcomes | SimulatedOutcomes
    image: ImageSource | None = None
    model: RiskModelConfig = DEFAULT_RISK
    seed: int = 0

    def __post_init__(self) -> None:
        require_range("seed", self.seed, 0, MAX_SEED - 1)
        if self.image is None and isinstance(self.outcomes, SimulatedOutcomes):
            raise ValueError("outcomes are simulated on slides: give a cohort and a slide model")


@dataclass(frozen=True, kw_only=True)
class FitRiskReport:
    """What was fitted, and how good it is.

    Attributes:
        model: URI of the risk model.
        model_hash: names it.
        simulated_outcomes: whether a generator drew them.
        slides: number of slides that simulated patients were drawn from, or of cases with slides.
        patients: that the model was fitted on.
        events: of each cause among them.
        missing: share of patients without each clinical variable, of those that some lack.
        score: on patients that it was not fitted on.
        hazard_ratios: of the endpoint, per standard deviation of each column.
        interaction_p_value: of the test that the treatment's effect does not depend on the image
            or, without image, on the clinical variables; None without treatment.
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
    events: dict[str, int]
    missing: dict[str, float]
    score: SimulatedScore | CrossValidatedScore
    hazard_ratios: dict[str, float]
    interaction_p_value: float | None
    read: ReadCounts
    failed: list[FailedSlide]
    remarks: list[str]
    figures: list[str]

    def without_names(self) -> dict[str, Any]:
        """The report as it is stored with the model: slides by their ids."""
        return asdict(self) | {"failed": [slide.without_names() for slide in self.failed]}


@dataclass(frozen=True, kw_only=True)
class _Fitted:
    """What both ways of fitting bring to the report."""

    model: RiskModel
    patients: Patients
    score: SimulatedScore | CrossValidatedScore
    picture: bytes
    slides: int
    remarks: list[str]
    data: dict[str, Any]
    read: ReadCounts
    failed: list[FailedSlide]


def fit_risk(
    config: FitRiskConfig, *, on_shard: Progress = lambda _done, _total: None
) -> FitRiskReport:
    """Fit a risk model and write it, with report and picture, to `config.out`.

    Args:
        config: what to fit.
        on_shard: called with embedded shards and their total.

    Raises:
        CohortError: nothing was prepared at the image's `data`.
        SpecMismatch: encoder, slide model and cohort do not belong together.
        OutcomesError: the table of outcomes can't be used.
        InsufficientData: too few cases, events or years; names the slides that could not be used.
    """
    models = None if config.image is None else _models(config.image)
    if isinstance(config.outcomes, RealOutcomes):
        fitted = _fit_real(config, config.outcomes, models, on_shard)
    else:
        assert models is not None
        fitted = _fit_simulated(config, config.outcomes, models, on_shard)
    return _write(config, fitted, models)


_Models = tuple[ImageSource, Encoder, SlideModel]


def _models(image: ImageSource) -> _Models:
    encoder = load_encoder(image.encoder, device=device_here())
    slide_model = load_slide_model(image.slide_model)
    if (fitted_on := slide_model.card["encoder_hash"]) != encoder.hash:
        remedy = "give the encoder that the slide model was fitted on"
        raise SpecMismatch(
            "encoder hash", f"given {encoder.hash}", f"slide model {fitted_on}", remedy
        )
    return image, encoder, slide_model


def _fit_real(
    config: FitRiskConfig, outcomes: RealOutcomes, models: _Models | None, on_shard: Progress
) -> _Fitted:
    table = read_outcomes(outcomes.table, unit=outcomes.unit)
    embeddings, remarks = np.empty((len(table), 0), np.float32), []
    data: dict[str, Any] = {}
    read, failed, slides = ReadCounts(), list[FailedSlide](), 0
    if models is not None:
        image, encoder, slide_model = models
        found = embed_cases(
            image.data,
            encoder,
            slide_model,
            wanted={one.case for one in table},
            split=image.split,
            on_ray=image.encoder if image.on_ray else None,
            on_shard=on_shard,
        )
        own = {case: k for k, case in enumerate(found.cases)}
        if without := len(table) - len(own):
            remarks.append(f"{without} of {len(table)} cases with an outcome have no usable slides")
        table = [one for one in table if one.case in own]
        embeddings = found.embeddings[[own[one.case] for one in table]]
        data, read, failed, slides = found.data, found.read, found.failed, len(own)
    patients = _patients(table, embeddings, outcomes)
    require_ten_years(patients)
    if patients.treated is not None and not outcomes.randomised:
        remarks.append(
            "The treatment was not assigned at random: its benefit may be that of the patients who "
            "were chosen for it."
        )
    remarks += _left_out(patients, table)
    score = cross_validate(patients, config.model, folds=outcomes.folds, seed=config.seed)
    model = fit_risk_model(
        patients, card={"simulated_outcomes": False}, config=config.model, seed=config.seed
    )
    return _Fitted(
        model=model,
        patients=patients,
        score=score,
        picture=cross_validated_figure(model, score),
        slides=slides,
        remarks=remarks,
        data=data,
        read=read,
        failed=failed,
    )


def _left_out(patients: Patients, table: list[Outcome]) -> list[str]:
    """What of the table plays no part, one sentence each."""
    remarks = [
        f"{count} of {len(table)} patients have {name.replace('_', ' ')}: too few, it is left out."
        for name, count in patients.too_rare().items()
    ]
    if patients.treated is None and any(one.treated is not None for one in table):
        remarks.append("All patients had the same treatment: nothing is said of its benefit.")
    late = int(((patients.time > LIMIT) & (patients.cause > 0)).sum())
    if late:
        remarks.append(f"{late} events after {LIMIT:g} years are not counted.")
    return remarks


def _patients(
    table: list[Outcome], embeddings: np.ndarray[Any, Any], outcomes: RealOutcomes
) -> Patients:
    """Those of the table. A treatment that all or none had is nobody's benefit."""
    treated = [one.treated for one in table]
    compared = None not in treated and len(set(treated)) == 2
    return Patients(
        covariates=[one.covariates for one in table],
        time=np.array([one.years for one in table]),
        cause=np.array([one.cause for one in table]),
        embeddings=embeddings,
        treated=np.array(treated, bool) if compared else None,
        treatment=outcomes.treatment.strip() if compared else "",
        randomised=outcomes.randomised and compared,
    )


def _fit_simulated(
    config: FitRiskConfig, outcomes: SimulatedOutcomes, models: _Models, on_shard: Progress
) -> _Fitted:
    image, encoder, slide_model = models
    cohort = load_labelled_slides(
        image.data,
        encoder,
        split=image.split,
        on_ray=image.encoder if image.on_ray else None,
        on_shard=on_shard,
    )
    slides = with_cancer(cohort.slides)
    card: Card = {"simulated_outcomes": True}
    with explained(cohort):
        drawn = draw_patients(slides, slide_model, outcomes.patients, seed=config.seed)
        others = draw_patients(slides, slide_model, outcomes.held_out, seed=config.seed + 1)
        patients = drawn.patients
        require_ten_years(patients)
        model = fit_risk_model(patients, card=card, config=config.model, seed=config.seed)
        blind = fit_risk_model(
            patients.without_image(),
            card=card,
            config=replace(config.model, components=0, replicas=2),
            seed=config.seed,
        )
    score = score_on_simulated(model, blind, others)
    return _Fitted(
        model=model,
        patients=patients,
        score=score,
        picture=simulated_figure(model, others, score),
        slides=len(slides),
        remarks=[
            SIMULATED_REMARK,
            f"Held-out patients share their {len(slides)} slides with the others.",
            *cohort.annotation_remarks,
        ],
        data=cohort.data,
        read=cohort.read,
        failed=cohort.failed,
    )


def _write(config: FitRiskConfig, fitted: _Fitted, models: _Models | None) -> FitRiskReport:
    simulated = isinstance(config.outcomes, SimulatedOutcomes)
    missing = _missing(fitted.patients)
    with_image = fitted.model.needs_image
    if models is not None and not with_image:
        fitted.remarks.append("All slide embeddings are alike: the image plays no part.")
    card = _card(config, models, with_image=with_image) | {
        "simulated_outcomes": simulated,
        "data": fitted.data,
        "patients": len(fitted.patients),
        "events": fitted.patients.events(),
        "missing": missing,
        "metrics": asdict(fitted.score),
        "remarks": fitted.remarks,
    }
    saved = save_risk_model(config.out, replace(fitted.model, card={**fitted.model.card, **card}))
    picture = storage.join(config.out, "calibration.png")
    storage.write_bytes(picture, fitted.picture)
    report = FitRiskReport(
        model=storage.as_uri(config.out),
        model_hash=saved.hash,
        simulated_outcomes=simulated,
        slides=fitted.slides,
        patients=len(fitted.patients),
        events=fitted.patients.events(),
        missing=missing,
        score=fitted.score,
        hazard_ratios=saved.hazard_ratios(),
        interaction_p_value=saved.card["interaction_p_value"],
        read=fitted.read,
        failed=fitted.failed,
        remarks=fitted.remarks,
        figures=[picture],
    )
    stored = json.dumps(report.without_names(), indent=1)
    storage.write_bytes(storage.join(config.out, "report.json"), stored.encode())
    track(saved.card)
    return report


def _missing(patients: Patients) -> dict[str, float]:
    """Share of patients without each clinical variable, of those that some lack."""
    counts: dict[str, int] = {}
    for one in patients.covariates:
        for name in one.missing:
            counts[name] = counts.get(name, 0) + 1
    return {name: count / len(patients) for name, count in sorted(counts.items())}


def _card(config: FitRiskConfig, models: _Models | None, *, with_image: bool) -> Card:
    card: Card = {
        "name": "competing hazards of image and clinical variables"
        if with_image
        else "competing hazards of clinical variables",
        "encoder_hash": "",
        "slide_model_hash": "",
        "seed": config.seed,
        "config": asdict(config.model),
        "versions": versions("acinus", "numpy", "scipy"),
    }
    if models is not None:
        _, _, slide_model = models
        card |= {
            "encoder_hash": slide_model.card["encoder_hash"],
            "slide_model_hash": slide_model.hash,
            "spec": slide_model.card["spec"],
        }
    if isinstance(config.outcomes, SimulatedOutcomes):
        card |= {"generator": asdict(Hazards()), "config": card["config"] | asdict(config.outcomes)}
    return card
