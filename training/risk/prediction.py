"""What a risk model says of one patient: risks by cause with intervals, benefit, explanation.

Risks are cumulative incidences: the probability that this event comes first within that many years,
where the other causes compete. With the probability that nothing has happened yet they sum to 1.
This module only holds the words; `risk_model` computes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from training.risk.nccn import NccnGroup

Floats = npt.NDArray[np.float64]

METASTASIS: Final = "distant_metastasis"
CANCER_DEATH: Final = "prostate_cancer_death"
OTHER_DEATH: Final = "other_death"
CAUSES: Final = (METASTASIS, CANCER_DEATH, OTHER_DEATH)
"""What ends follow-up, whichever comes first. A prostate-cancer death is thus one without a
metastasis recorded before it."""

CAUSE_WORDS: Final = {
    METASTASIS: "distant metastasis",
    CANCER_DEATH: "death of prostate cancer",
    OTHER_DEATH: "death of another cause",
}


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its 95 % interval; lower <= estimate <= upper."""

    estimate: float
    lower: float
    upper: float

    @property
    def excludes_zero(self) -> bool:
        """Whether both ends are on the same side of 0."""
        return self.lower > 0 or self.upper < 0


@dataclass(frozen=True, kw_only=True)
class RiskCurve:
    """Cumulative incidence of one cause over `years`, with its 95 % interval; all [41], from 0 to
    10 years.
    """

    years: Floats
    estimate: Floats
    lower: Floats
    upper: Floats

    def at(self, years: float) -> Interval:
        """The risk within a number of years."""
        values = (
            float(np.interp(years, self.years, part))
            for part in (self.estimate, self.lower, self.upper)
        )
        return Interval(**dict(zip(("estimate", "lower", "upper"), values, strict=True)))


@dataclass(frozen=True, kw_only=True)
class TreatmentBenefit:
    """What a treatment changes for this patient.

    Attributes:
        treatment: in words, such as "short-term ADT".
        hazard_ratio: of the endpoint's hazard, with against without the treatment.
        without_treatment: 10-year risk of the endpoint without it.
        with_treatment: 10-year risk of the endpoint with it.
        reduction: 10-year risk without less the risk with it; negative is harm.
        randomised: whether the cohort's treatment was assigned at random. Where it was not, the
            reduction may be that of the men who were chosen for it.
    """

    treatment: str
    hazard_ratio: Interval
    without_treatment: Interval
    with_treatment: Interval
    reduction: Interval
    randomised: bool


@dataclass(frozen=True, kw_only=True)
class RiskPrediction:
    """What the risk model says of one patient, without the treatment whose benefit it states.

    Attributes:
        endpoint: the cause that five_year, ten_year and score are about: distant metastasis, or
            prostate-cancer death where the cohort recorded no metastasis.
        curves: cumulative incidence of each cause that the cohort had, by name, over 10 years.
        score: log hazard of the endpoint against the training cohort's average patient.
        nccn: NCCN risk group with what led to it; None where PSA, T stage or Gleason is missing.
        percentile: share in percent of the cohort's patients of the same NCCN tier with a lower
            score; None if it had too few, or without a group.
        benefit: of the treatment that the cohort compared; None where it had not both.
        contributions: log hazard that each of image, age, psa, t_stage, gleason and positive_cores
            adds against the average patient; sums to score. Of a missing one: what is expected
            given the others.
        no_effect: contributions whose 95 % interval holds 0: their direction is not to be read.
        missing: what was not given, in the words of `contributions`: the risks are averaged over
            the values that the given ones leave likely.
        outside_training_range: what the model has not seen the like of, in the same words.
        simulated_outcomes: whether the cohort's outcomes were drawn by a generator; such a report
            must say so.
    """

    endpoint: str
    curves: dict[str, RiskCurve]
    score: float
    nccn: NccnGroup | None
    percentile: float | None
    benefit: TreatmentBenefit | None
    contributions: dict[str, float]
    no_effect: list[str]
    missing: tuple[str, ...]
    outside_training_range: list[str]
    simulated_outcomes: bool

    @property
    def curve(self) -> RiskCurve:
        """Of the endpoint."""
        return self.curves[self.endpoint]

    @property
    def five_year(self) -> Interval:
        """5-year risk of the endpoint."""
        return self.curve.at(5.0)

    @property
    def ten_year(self) -> Interval:
        """10-year risk of the endpoint."""
        return self.curve.at(10.0)

    def ten_year_of(self, cause: str) -> Interval | None:
        """10-year risk of a cause of CAUSES; None where the cohort had no such event."""
        return self.curves[cause].at(10.0) if cause in self.curves else None
