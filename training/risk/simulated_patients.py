"""Simulated patients seen through a slide model, and how well a risk model finds their hazards.

Fitted and held-out patients share slides, so that the image is easier here than on new slides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.annotations import UNLABELLED
from training.risk.fitting import Patients
from training.risk.hazards import Floats
from training.risk.risk_model import RiskModel
from training.risk.simulated_outcomes import TREATMENT, GradedSlide, SimulatedCohort, simulate
from training.risk.survival import (
    CalibrationGroup,
    Observed,
    calibration,
    calibration_slope,
    concordance,
)
from training.slide.labelled_slides import LabelledSlide
from training.slide.slide_model import SlideModel
from training.threads import threads_for


@dataclass(frozen=True, kw_only=True)
class SimulatedPatients:
    """Simulated patients and the slide embedding of each one's bag, [P, E]."""

    cohort: SimulatedCohort
    embeddings: npt.NDArray[np.float32]

    @property
    def patients(self) -> Patients:
        """What a registry would know of them."""
        return Patients(
            covariates=self.cohort.covariates,
            time=self.cohort.time,
            cause=self.cohort.cause,
            embeddings=self.embeddings,
            treated=self.cohort.treated,
            treatment=TREATMENT,
            randomised=True,
        )

    def ten_year(self, model: RiskModel) -> Floats:
        """Estimate, lower and upper end of each patient's 10-year risk, [3, P]."""
        return model.ten_year_risks(list(self.embeddings), self.cohort.covariates)


def with_cancer(slides: Sequence[LabelledSlide]) -> list[LabelledSlide]:
    """The slides that patients can be drawn from: those with cancer and annotated patterns."""
    return [
        slide
        for slide in slides
        if slide.score is not None and (slide.patterns != UNLABELLED).any()
    ]


def draw_patients(
    slides: Sequence[LabelledSlide], model: SlideModel, count: int, *, seed: int
) -> SimulatedPatients:
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
    return SimulatedPatients(cohort=cohort, embeddings=embeddings)


@dataclass(frozen=True, kw_only=True)
class SimulatedScore:
    """How good a risk model is on held-out simulated patients.

    Attributes:
        patients: how many.
        events: distant metastases among them.
        concordance: of the model; None without an event, as the two below.
        concordance_without_image: of the same model without the slide embedding.
        concordance_of_truth: of the true hazards: what no model can beat but by luck.
        calibration_slope: of the score; 1 where predictions are as far apart as outcomes are.
        error_ten_years: mean absolute difference between predicted and true 10-year risk.
        coverage_ten_years: share of patients whose 95 % interval of the 10-year risk holds the true
            one, of this one cohort. Below 95 % where the slide embedding does not show all that the
            hazard depends on: the interval is of the model, and cannot know what it can't see.
        calibration_ten_years: groups of patients from low to high predicted 10-year risk.
    """

    patients: int
    events: int
    concordance: float | None
    concordance_without_image: float | None
    concordance_of_truth: float | None
    calibration_slope: float | None
    error_ten_years: float
    coverage_ten_years: float
    calibration_ten_years: list[CalibrationGroup]


def score_on_simulated(
    model: RiskModel, blind: RiskModel, held_out: SimulatedPatients
) -> SimulatedScore:
    """Score a model, and one that is blind to the image, on simulated patients that neither was
    fitted on.
    """
    cohort, images = held_out.cohort, list(held_out.embeddings)
    # Scored on those without the treatment: the risk that the model states is theirs.
    untreated = ~cohort.treated
    observed = Observed(time=cohort.time, cause=cohort.cause).some(untreated)
    scores = model.scores(images, cohort.covariates)[untreated]
    without = blind.scores(images, cohort.covariates)[untreated]
    estimate, lower, upper = held_out.ten_year(model)
    true = cohort.true_risk(10.0)
    return SimulatedScore(
        patients=len(true),
        events=int((cohort.cause == 1).sum()),
        concordance=concordance(observed, scores),
        concordance_without_image=concordance(observed, without),
        concordance_of_truth=concordance(observed, cohort.log_hazard[untreated]),
        calibration_slope=calibration_slope(observed, scores),
        error_ten_years=float(np.abs(estimate - true).mean()),
        coverage_ten_years=float(((lower <= true) & (true <= upper)).mean()),
        calibration_ten_years=calibration(
            observed, estimate[untreated], 10.0, true=true[untreated]
        ),
    )
