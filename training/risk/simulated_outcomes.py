"""Simulated outcomes with known hazards. No open data joins prostate slides with outcomes, so this
module draws them.

What is real: the slides and their embeddings, the grade of each slide, and the patterns of each
patch. What is drawn: age, PSA, T stage and positive cores given the grade, the part of the slide
that each patient's biopsy shows, a randomised treatment, the times to distant metastasis and to
death of another cause, and censoring. Every model that is fitted on such a cohort says "simulated
outcomes", and no metric of it says anything about patients.

Both times are Weibull with proportional hazards: H(t) = (t / scale)^shape * exp(log hazard). The
log hazard of metastasis is linear in the clinical variables and in the share of tissue that is
pattern 4 or 5: the one term that only the image shows, and the one that the treatment's effect
depends on. The true risk is thus known, and what a fitted model says can be compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.annotations import PATTERNS, UNLABELLED
from training.errors import InsufficientData
from training.risk.covariates import ENCODED, Covariates
from training.risk.prediction import CAUSES, METASTASIS, OTHER_DEATH
from training.slide.gleason import GleasonScore

Floats = npt.NDArray[np.float64]

DRAWN_STAGES = ("T1c", "T2a", "T2b", "T2c", "T3a", "T3b")
"""Of cancer that a needle biopsy found."""
TOTAL_CORES = 12
TREATMENT = "short-term ADT"
HIGH_GRADE = (PATTERNS.index("gleason_4"), PATTERNS.index("gleason_5"))


@dataclass(frozen=True, kw_only=True)
class Hazards:
    """The generator's constants: chosen by us, known to tests.

    Shape and scale are set so that the risk of distant metastasis by NCCN group is near what five
    RTOG trials found: 1, 3 and 10 % after 5 years and 3, 6 and 17 % after 10 years in the low,
    intermediate and high group (Tward et al., ASTRO 2022, 5,569 men; JCO Precis Oncol
    2024;8:e2400145 has 1.7 % and 16.6 % after 10 years in the low and high group of 9,787 men).
    Effects of the treatment and deaths of other causes are chosen by us, of plausible size.

    Attributes:
        shape: of the Weibull distribution; above 1, the hazard grows with time.
        scale: in years: the reference man's cumulative hazard reaches 1 then. Reference: 65 years,
            PSA 8, T1c, 3+3, no pattern 4 or 5.
        age: log hazard ratio per 10 years.
        psa: per doubling.
        t_stage: per step of DRAWN_STAGES.
        gleason_primary: per pattern above 3.
        gleason_secondary: per pattern above 3. With the primary: 3+4 has 1.2, 4+3 1.35, 4+4 1.65
            and 5+5 2.7 times the hazard of 3+3, before the image counts.
        positive_cores: for all cores with cancer against none.
        image: for a biopsy that is pattern 4 or 5 throughout against one that is not at all.
        treatment: log hazard ratio of the treatment without any pattern 4 or 5 ...
        treatment_image: ... and what is added to it where all is pattern 4 or 5.
        other_shape: as shape, of death of another cause.
        other_scale: in years, at 65.
        other_age: log hazard ratio of death of another cause per 10 years.
        censoring: years of follow-up are uniform between these two, the same for everyone
            (administrative) ...
        loss: ... unless lost earlier: mean of an exponential time in years.
    """

    shape: float = 1.2
    scale: float = 235.0
    age: float = 0.10
    psa: float = 0.20
    t_stage: float = 0.12
    gleason_primary: float = 0.30
    gleason_secondary: float = 0.20
    positive_cores: float = 0.4
    image: float = 2.0
    treatment: float = -0.2
    treatment_image: float = -0.8
    other_shape: float = 1.4
    other_scale: float = 45.0
    other_age: float = 0.9
    censoring: tuple[float, float] = (6.0, 14.0)
    loss: float = 30.0

    def coefficients(self) -> Floats:
        """[6] in the order of ENCODED."""
        return np.array([getattr(self, name) for name in ENCODED])

    def log_hazard(self, encoded: Floats, image: Floats) -> Floats:
        """Log hazard of metastasis against the reference man, without the treatment, for encoded
        covariates [N, 6] and image shares [N].
        """
        reference = Covariates(
            age=65.0,
            psa=8.0,
            t_stage="T1c",
            primary=3,
            secondary=3,
            positive_cores=0,
            total_cores=TOTAL_CORES,
        )
        return (encoded - reference.encode()) @ self.coefficients() + self.image * image

    def treatment_effect(self, image: Floats) -> Floats:
        """Log hazard ratio of metastasis with against without the treatment, [N]."""
        return self.treatment + self.treatment_image * image

    def other_log_hazard(self, encoded: Floats) -> Floats:
        """Log hazard of death of another cause against a man of 65, [N]."""
        return self.other_age * (encoded[:, ENCODED.index("age")] - 6.5)

    def risk(self, log_hazard: Floats, other: Floats, years: float) -> Floats:
        """True probability [N] of distant metastasis within `years`, before death of another cause:
        the integral of hazard and survival, by the midpoints of 400 steps.
        """
        at = (np.arange(400) + 0.5) * years / 400
        metastasis = np.exp(log_hazard)[:, None] * (at / self.scale) ** self.shape
        death = np.exp(other)[:, None] * (at / self.other_scale) ** self.other_shape
        density = metastasis * self.shape / at * np.exp(-metastasis - death)
        return np.asarray(density.sum(axis=1) * years / 400)

    def draw_times(
        self, log_hazard: Floats, other: Floats, random: np.random.Generator
    ) -> tuple[Floats, Floats]:
        """Years to distant metastasis and to death of another cause, by inverting the survival
        functions.
        """
        drawn = random.exponential(size=(2, len(log_hazard)))
        return (
            self.scale * (drawn[0] * np.exp(-log_hazard)) ** (1.0 / self.shape),
            self.other_scale * (drawn[1] * np.exp(-other)) ** (1.0 / self.other_shape),
        )


@dataclass(frozen=True, kw_only=True)
class GradedSlide:
    """A slide with cancer that patients are drawn from.

    Attributes:
        slide_id: names it in errors.
        score: Gleason score of the slide's label.
        patterns: index into PATTERNS per patch [N], UNLABELLED where no annotation covers the
            patch.
    """

    slide_id: str
    score: GleasonScore
    patterns: npt.NDArray[np.integer]


@dataclass(frozen=True, kw_only=True)
class SimulatedCohort:
    """Patients P with what a registry would know of them, and what only the generator knows.

    Attributes:
        covariates: of each patient.
        slide: index of the slide whose patches the patient's biopsy shows, [P].
        bags: patch indices within that slide, sorted, per patient.
        image: share of pattern 4 or 5 in the bag, [P].
        treated: by chance, half of them, [P].
        time: years to what came first, or to the end of follow-up, [P].
        cause: 0 for none, or the place in CAUSES from 1 on, [P].
        log_hazard: the true one of metastasis without the treatment, [P].
        other: the true one of death of another cause, [P].
        hazards: the generator's constants.
    """

    covariates: list[Covariates]
    slide: npt.NDArray[np.int64]
    bags: list[npt.NDArray[np.int64]]
    image: Floats
    treated: npt.NDArray[np.bool_]
    time: Floats
    cause: npt.NDArray[np.int64]
    log_hazard: Floats
    other: Floats
    hazards: Hazards

    @property
    def oracle(self) -> Floats:
        """Log hazard of metastasis with the treatment that each had, [P]."""
        return self.log_hazard + self.treated * self.hazards.treatment_effect(self.image)

    def true_risk(self, years: float) -> Floats:
        """True probability of distant metastasis within `years` without the treatment, [P]."""
        return self.hazards.risk(self.log_hazard, self.other, years)


def simulate(
    slides: Sequence[GradedSlide],
    patients: int,
    *,
    seed: int,
    bag_size: int = 128,
    hazards: Hazards = Hazards(),
) -> SimulatedCohort:
    """Draw a cohort: each patient's biopsy is a part of a slide that has the patient's grade.

    Args:
        slides: with cancer and with labelled patches; every one is drawn equally often.
        patients: how many.
        seed: the same seed gives the same cohort.
        bag_size: patches in a patient's bag, fewer if the slide has fewer.
        hazards: the generator's constants.

    Raises:
        InsufficientData: no slide, or a slide without labelled patches.
    """
    if not slides:
        raise InsufficientData(
            "no slide with cancer and annotated regions: outcomes can't be drawn; add such slides "
            "to the cohort"
        )
    for slide in slides:
        if not (slide.patterns != UNLABELLED).any():
            raise InsufficientData(
                f"slide {slide.slide_id} has no labelled patch: its annotations cover none of the "
                "patches; check them"
            )
    random = np.random.default_rng(seed)
    chosen = random.integers(len(slides), size=patients)
    covariates = [_draw_covariates(slides[index].score, random) for index in chosen]
    bags = [_draw_bag(slides[index].patterns, bag_size, random) for index in chosen]
    image = np.array(
        [
            np.isin(slides[index].patterns[bag], HIGH_GRADE).mean()
            for index, bag in zip(chosen, bags, strict=True)
        ]
    )
    encoded = np.array([one.encode() for one in covariates])
    log_hazard = hazards.log_hazard(encoded, image)
    other = hazards.other_log_hazard(encoded)
    treated = random.random(patients) < 0.5
    with_treatment = log_hazard + treated * hazards.treatment_effect(image)
    metastasis, death = hazards.draw_times(with_treatment, other, random)
    follow_up = np.minimum(
        random.uniform(*hazards.censoring, size=patients),
        random.exponential(hazards.loss, size=patients),
    )
    times = np.stack([follow_up, metastasis, death])
    causes = np.array([0, CAUSES.index(METASTASIS) + 1, CAUSES.index(OTHER_DEATH) + 1])
    return SimulatedCohort(
        covariates=covariates,
        slide=chosen,
        bags=bags,
        image=image,
        treated=treated,
        time=times.min(axis=0),
        cause=causes[times.argmin(axis=0)],
        log_hazard=log_hazard,
        other=other,
        hazards=hazards,
    )


def _draw_covariates(score: GleasonScore, random: np.random.Generator) -> Covariates:
    """Age, PSA, T stage and positive cores given the grade: higher grades come with more of each,
    as in any series of biopsies.
    """
    group = score.grade_group
    age = np.clip(random.normal(66.0 + 0.8 * group, 6.5), 45.0, 85.0)
    psa = np.clip(np.exp(random.normal(np.log(6.0) + 0.18 * (group - 1), 0.55)), 0.8, 120.0)
    odds = np.exp(
        -np.array([0.0, 0.9, 1.4, 1.6, 2.6, 3.4])
        + 0.18 * (group - 1) * np.arange(len(DRAWN_STAGES))
    )
    stage = DRAWN_STAGES[random.choice(len(DRAWN_STAGES), p=odds / odds.sum())]
    return Covariates(
        age=round(float(age), 1),
        psa=round(float(psa), 1),
        t_stage=stage,
        primary=score.primary,
        secondary=score.secondary,
        positive_cores=max(1, int(random.binomial(TOTAL_CORES, 0.2 + 0.08 * group))),
        total_cores=TOTAL_CORES,
    )


def _draw_bag(
    patterns: npt.NDArray[np.integer], size: int, random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """A part of the slide's labelled patches that holds more or less pattern 4 and 5 than the
    slide: needles miss and hit.
    """
    labelled = np.flatnonzero(patterns != UNLABELLED)
    leaning = random.uniform(-3.0, 3.0)
    weights = np.exp(leaning * np.isin(patterns[labelled], HIGH_GRADE))
    count = min(size, max(1, len(labelled) // 3))
    return np.sort(random.choice(labelled, size=count, replace=False, p=weights / weights.sum()))
