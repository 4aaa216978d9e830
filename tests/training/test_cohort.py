"""The cohort generator: hazards are the ones that it says, and a patient's biopsy is real tissue of
the patient's grade.
"""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.annotations import UNLABELLED
from training.errors import CovariateError, InsufficientData
from training.risk.covariates import AGE_RANGE, NCCN_GROUPS, PSA_RANGE, T_STAGES, Covariates
from training.risk.hazards import CauseFit, FollowUp, Prior, fit_cause
from training.risk.simulated_outcomes import GradedSlide, Hazards, SimulatedCohort, simulate
from training.risk.survival import Observed, observed_risk
from training.slide.gleason import GleasonScore

MIX = {
    (3, 3): (0.6, 0.4, 0, 0),
    (3, 4): (0.5, 0.35, 0.15, 0),
    (4, 3): (0.4, 0.2, 0.4, 0),
    (4, 4): (0.4, 0, 0.6, 0),
    (4, 5): (0.35, 0, 0.45, 0.2),
}
SERIES = {(3, 3): 33, (3, 4): 30, (4, 3): 15, (4, 4): 12, (4, 5): 10}
"""Grades of a biopsy series in percent."""


def slides() -> list[GradedSlide]:
    rng = np.random.default_rng(0)
    return [
        GradedSlide(
            slide_id=f"slide {grade}",
            score=GleasonScore(*grade),
            patterns=rng.choice(4, size=400, p=MIX[grade]).astype(np.int8),
        )
        for grade, count in SERIES.items()
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def cohort() -> SimulatedCohort:
    return simulate(slides(), 8000, seed=0)


def test_risks_are_plausible_for_each_nccn_group(cohort: SimulatedCohort) -> None:
    """1, 3 and 10 % after 5 years, 3, 6 and 17 % after 10 (Tward et al., ASTRO 2022)."""
    found = [one.nccn for one in cohort.covariates]
    groups = np.array([group.tier for group in found if group is not None])
    for years, published in ((5.0, (0.01, 0.03, 0.10)), (10.0, (0.03, 0.06, 0.17))):
        for group, expected in zip(NCCN_GROUPS, published, strict=True):
            assert cohort.true_risk(years)[groups == group].mean() == pytest.approx(
                expected, rel=0.35
            )


def test_outcomes_follow_the_true_risk(cohort: SimulatedCohort) -> None:
    true, untreated = cohort.true_risk(10.0), np.flatnonzero(~cohort.treated)
    all_of_them = Observed(time=cohort.time, cause=cohort.cause)
    for members in np.array_split(untreated[np.argsort(true[untreated])], 4):
        observed = observed_risk(all_of_them.some(members), 10.0)
        spread = np.sqrt(observed * (1 - observed) / len(members))
        assert observed == pytest.approx(true[members].mean(), abs=4 * spread + 0.005)


def test_known_hazards_are_recovered(cohort: SimulatedCohort) -> None:
    columns = np.column_stack([[one.encode() for one in cohort.covariates], cohort.image])
    untreated = ~cohort.treated
    spread = columns.std(axis=0)
    scaled = (columns - columns.mean(axis=0)) / spread
    fit = fitted(scaled[untreated], cohort.time[untreated], cohort.cause[untreated])
    known = np.append(cohort.hazards.coefficients(), cohort.hazards.image)
    np.testing.assert_allclose(fit.coefficients, known * spread, atol=0.2)
    assert fit.coefficients[-1] > 0.3  # the image adds to the clinical variables


def test_the_treatment_helps_as_stated(cohort: SimulatedCohort) -> None:
    columns = np.column_stack([cohort.log_hazard, cohort.treated, cohort.treated * cohort.image])
    fit = fitted(columns - columns.mean(axis=0), cohort.time, cohort.cause)
    hazards = cohort.hazards
    known = [1.0, hazards.treatment, hazards.treatment_image]
    np.testing.assert_allclose(fit.coefficients, known, atol=0.3)


def fitted(columns: np.ndarray, time: np.ndarray, cause: np.ndarray, of: int = 1) -> CauseFit:
    return fit_cause(columns, FollowUp.of(time, cause), of, Prior.of(np.full(len(columns.T), 10.0)))


def test_censoring_is_independent_of_risk(cohort: SimulatedCohort) -> None:
    censored = cohort.cause == 0
    score = (cohort.log_hazard - cohort.log_hazard.mean()) / cohort.log_hazard.std()
    fit = fitted(score[:, None], cohort.time, censored.astype(int))
    assert abs(fit.coefficients[0]) < 0.05
    low, high = cohort.hazards.censoring
    assert cohort.time.max() <= high
    assert np.median(cohort.time[censored]) > low


def test_a_biopsy_is_a_part_of_a_slide_of_the_patients_grade(cohort: SimulatedCohort) -> None:
    sources = slides()
    for k in range(200):
        slide, bag = sources[cohort.slide[k]], cohort.bags[k]
        assert cohort.covariates[k].gleason == slide.score
        assert len(np.unique(bag)) == len(bag) == 128
        assert cohort.image[k] == pytest.approx(np.isin(slide.patterns[bag], (2, 3)).mean())
    same_slide = cohort.image[cohort.slide == cohort.slide[cohort.image.argmax()]]
    assert same_slide.std() > 0.1  # patients of one slide differ in what their biopsy shows


def test_the_seed_decides_everything() -> None:
    one, same, other = (simulate(slides()[::20], 50, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.time, same.time)
    np.testing.assert_array_equal(one.bags[7], same.bags[7])
    assert one.covariates == same.covariates
    assert not np.array_equal(one.time, other.time)


def test_unlabelled_patches_are_not_drawn() -> None:
    patterns = np.array([UNLABELLED] * 50 + [0, 1, 2] * 10, np.int8)
    cohort = simulate(
        [GradedSlide(slide_id="a", score=GleasonScore(3, 4), patterns=patterns)], 20, seed=0
    )
    assert min(bag.min() for bag in cohort.bags) >= 50


def test_the_risk_is_that_of_the_docstring() -> None:
    hazards = Hazards(shape=2.0, scale=10.0, other_shape=2.0, other_scale=20.0)
    none = np.full(2, -40.0)
    np.testing.assert_allclose(
        hazards.risk(np.array([0.0, np.log(2)]), none, 5.0), 1 - np.exp([-0.25, -0.5]), rtol=1e-5
    )
    competing = hazards.risk(np.zeros(1), np.zeros(1), 5.0)  # a fifth of the events are deaths
    np.testing.assert_allclose(competing, 0.8 * (1 - np.exp(-0.25 - 0.0625)), rtol=1e-5)
    cores = {"positive_cores": 0, "total_cores": 12}
    reference = Covariates(age=65, psa=8, t_stage="T1c", primary=3, secondary=3, **cores)
    worse = Covariates(age=75, psa=16, t_stage="T2b", primary=4, secondary=5, **cores)
    found = hazards.log_hazard(np.array([reference.encode(), worse.encode()]), np.array([0.0, 0.5]))
    expected = (
        hazards.age
        + hazards.psa
        + 2 * hazards.t_stage
        + hazards.gleason_primary
        + 2 * hazards.gleason_secondary
    )
    np.testing.assert_allclose(found, [0, expected + 0.5 * hazards.image], atol=1e-12)


def test_slides_that_cannot_be_drawn_from_are_named() -> None:
    with pytest.raises(InsufficientData, match="no slide with cancer"):
        simulate([], 10, seed=0)
    blank = GradedSlide(
        slide_id="B7.svs", score=GleasonScore(3, 3), patterns=np.full(9, UNLABELLED)
    )
    with pytest.raises(InsufficientData, match=r"B7\.svs has no labelled patch"):
        simulate([blank], 10, seed=0)


GOOD = {"age": 66.0, "psa": 7.2, "t_stage": "T2a", "primary": 3, "secondary": 4}


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("age", 12, "years between 30 and 100"),
        ("age", float("nan"), "years between"),
        ("psa", 0, "ng/mL between 0.05 and 5000"),
        ("psa", "7", "ng/mL between"),
        ("t_stage", "T5", ", ".join(T_STAGES)),
        ("primary", 2, "3, 4 or 5"),
        ("secondary", 6, "3, 4 or 5"),
    ],
)
def test_a_covariate_that_cannot_be_is_named_with_its_value_and_the_remedy(
    field: str, value: object, remedy: str
) -> None:
    with pytest.raises(CovariateError) as raised:
        Covariates(**{**GOOD, field: value})  # type: ignore[arg-type]
    assert raised.value.field == field
    assert repr(value) in str(raised.value)
    assert remedy in str(raised.value)


def test_the_ends_of_the_ranges_are_allowed() -> None:
    for age, psa in zip(AGE_RANGE, PSA_RANGE, strict=True):
        allowed = Covariates(**{**GOOD, "age": age, "psa": psa})  # type: ignore[arg-type]
        assert (allowed.age, allowed.psa) == (age, psa)


@pytest.mark.parametrize(
    ("change", "group"),
    [
        ({"primary": 3, "secondary": 3}, "low"),
        ({"primary": 3, "secondary": 3, "psa": 10.0}, "intermediate"),
        ({"primary": 3, "secondary": 3, "t_stage": "T2b"}, "intermediate"),
        ({}, "intermediate"),
        ({"psa": 20.0}, "intermediate"),
        ({"psa": 20.1}, "high"),
        ({"t_stage": "T3a"}, "high"),
        ({"primary": 4, "secondary": 4}, "high"),
    ],
)
def test_nccn_groups_by_their_definition(change: dict[str, object], group: str) -> None:
    found = Covariates(**{**GOOD, **change}).nccn  # type: ignore[arg-type]
    assert found is not None
    assert found.tier == group


@pytest.mark.parametrize("field", ["age", "psa", "t_stage"])
def test_what_is_missing_is_said_and_never_guessed(field: str) -> None:
    man = Covariates(**{**GOOD, field: None})  # type: ignore[arg-type]
    assert man.missing == (field, "positive_cores")
    assert np.isnan(man.encode()).sum() == 2
    assert (man.nccn is None) == (field != "age")
