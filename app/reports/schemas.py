"""The report as JSON: the source of the PDF, of the API's `result` and of what the CLI prints.

Every share and probability is between 0 and 1; lengths are micrometres unless their name says
otherwise.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.cases.schemas import ClinicalVariables

NOTICE: Final = "Research use only; not a diagnosis"
SIMULATED: Final = "Simulated outcomes"

Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """Base of the report's parts: nothing is silently added or lost."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Specimen(Part):
    """What was looked at."""

    slide_id: str
    """SHA-256 of the de-identified slide, or the identity of a slide read in place."""
    vendor: str
    width_px: int
    height_px: int
    mpp: float
    patches: int
    patch_area_mm2: float
    """Area that the analysed patches cover together."""


class Grading(Part):
    """Gleason patterns by area, and the grade that the rules for biopsies make of them."""

    benign: Share
    gleason_3: Share
    gleason_4: Share
    gleason_5: Share
    tumour_extent: Share
    primary: int | None
    secondary: int | None
    gleason_score: int | None
    grade_group: Annotated[int, Field(ge=0, le=5)]
    percent_pattern_4: float | None
    percent_pattern_5: float | None
    tumour_extent_error: Share | None = None
    """Mean absolute error on slides that were held out of fitting; extents are estimates."""
    percent_pattern_4_error: float | None = None
    """Likewise, in percent of the tumour."""


class Reading(Part):
    """Which grade to read: the pattern areas', the slide model checking it; or none."""

    grade_group: Annotated[int, Field(ge=0, le=5)] | None
    """None where the two are too far apart, or the tissue is too little."""
    reason: str


class Likeness(Part):
    """How much the slide is like those that the models were fitted on."""

    inside: bool
    score: float
    """Distance in deviations from the usual, of the patches or of the tissue's colour."""
    limit: float
    false_alarms: Share
    """Share of slides like those that exceed the limit."""
    reason: str


class SlideModelPrediction(Part):
    """What the slide model says on its own, by attention over all patches: checks the grading."""

    grade_group: Annotated[int, Field(ge=0, le=5)]
    grade_group_probabilities: Annotated[list[Share], Field(min_length=6, max_length=6)]
    cancer_probability: Share
    agrees_with_grading: bool


class Estimate(Part):
    """A risk with its 95 % interval."""

    estimate: Share
    lower: Share
    upper: Share


class RiskCurve(Part):
    """Cumulative incidence over time, with its 95 % interval."""

    years: list[float]
    estimate: list[Share]
    lower: list[Share]
    upper: list[Share]

    @property
    def end(self) -> Estimate:
        """At the last of `years`."""
        return Estimate(estimate=self.estimate[-1], lower=self.lower[-1], upper=self.upper[-1])


class Difference(Part):
    """A ratio or a change with its 95 % interval; a change may be negative."""

    estimate: float
    lower: float
    upper: float


class Benefit(Part):
    """What a treatment changes for this patient, as the model's cohort shows it."""

    treatment: str
    hazard_ratio: Difference
    """Of the endpoint's hazard, with the treatment against without."""
    without_treatment: Estimate
    """10-year risk of the endpoint."""
    with_treatment: Estimate
    reduction: Difference
    """10-year risk without less the risk with it; negative is harm."""
    randomised: bool
    """Whether the cohort's treatment was assigned at random."""


class Verdict(Part):
    """What the patient's numbers say of an option, and the numbers and limits behind it."""

    verdict: Literal["supported", "not supported", "not shown", "guideline only"]
    reason: str


class Option(Verdict):
    """One option that the guideline names for the patient's group."""

    treatment: str
    guideline: str
    """For whom the guideline names it."""
    trials: list[str]
    """What it rests on: name, source and finding of each trial."""


class Recommendation(Part):
    """The guideline's options, and which of them the patient's own numbers support."""

    groups: list[str]
    """NCCN groups that he may belong to: several where what would decide is missing."""
    edition: str
    options: list[Option]
    advice: str | None
    """None where the numbers support no option, or may not be read."""
    withheld: list[str]
    """Why the numbers choose nothing; empty where they may be read."""
    short_term_adt: Verdict


class Risk(Part):
    """Risks by cause, where the other causes compete."""

    endpoint: Literal["distant metastasis", "death of prostate cancer"] = "distant metastasis"
    """What `five_year`, `ten_year`, `curve` and `score` are about."""
    five_year: Estimate
    ten_year: Estimate
    curve: RiskCurve
    curves: dict[str, RiskCurve] = {}
    """Cumulative incidence of each cause, by its words; empty in reports of earlier versions."""
    score: float
    nccn_group: str | None
    """None where PSA, T stage or Gleason is missing."""
    nccn_reasons: list[str] = []
    nccn_missing: list[str] = []
    """What would have been needed to divide the group further."""
    nccn_edition: str = ""
    percentile: float | None
    """Within low, intermediate or high NCCN risk, of the cohort that the model was fitted on."""
    contributions: dict[str, float]
    """Log hazard that image, age, PSA, T stage, Gleason and cores add, compared with the average
    patient. They sum to `score`."""
    no_effect: list[str] = []
    """Contributions whose 95 % interval holds 0: their direction is not to be read."""
    missing: list[str] = []
    """What was not known: the risks are averaged over the values that the rest leaves likely."""
    outside_training_range: list[str]
    gleason_from: Literal["pathologist", "image"] | None
    """None where no Gleason score was known."""
    benefit: Benefit | None = None
    """None where the model's cohort did not compare a treatment."""
    recommendation: Recommendation | None = None
    """None in reports of earlier versions."""


class ModelFacts(Part):
    """One model of the set."""

    name: str
    hash: str
    version: str


class Provenance(Part):
    """What made this report: enough to make it again."""

    model_version: str = ""
    """The model set, by its name in the registry; empty in reports of versions that gave none."""
    encoder: ModelFacts
    slide_model: ModelFacts
    risk_model: ModelFacts
    patch_spec: dict[str, Any]
    patch_spec_hash: str
    software: str


class Report(Part):
    """One analysis of one case."""

    schema_version: Literal[1] = 1
    notice: Literal["Research use only; not a diagnosis"] = NOTICE
    simulated_outcomes: bool
    """Whether the risk model was fitted on outcomes that a generator drew: then nothing in the risk
    is about patients."""
    analysis_id: str
    created_at: datetime
    specimen: Specimen
    clinical: ClinicalVariables
    reading: Reading | None = None
    """None in reports of versions that gave none."""
    likeness: Likeness | None = None
    """None where the models do not know what they were fitted on."""
    grading: Grading
    slide_model: SlideModelPrediction
    risk: Risk | None
    risk_absent_because: str | None
    provenance: Provenance


class RiskReport(Part):
    """The risk of one patient from clinical variables alone, without a slide."""

    schema_version: Literal[1] = 1
    notice: Literal["Research use only; not a diagnosis"] = NOTICE
    simulated_outcomes: bool
    """As in `Report`."""
    clinical: ClinicalVariables
    risk: Risk
    risk_model: ModelFacts
    software: str
