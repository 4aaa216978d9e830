"""What is recommended: each rule at its edges, and each place where the evidence does not reach."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from training.risk.covariates import T_STAGES, Covariates
from training.risk.evidence import GUIDELINE, LONG_ADT, SHORT_ADT, SURVEILLANCE, TRIALS
from training.risk.nccn import GROUPS, possible_groups
from training.risk.prediction import (
    CANCER_DEATH,
    METASTASIS,
    Interval,
    RiskCurve,
    RiskPrediction,
    TreatmentBenefit,
)
from training.risk.recommendation import Option, Recommendation, recommend

LOW = Covariates(age=64, psa=6.0, t_stage="T1c", primary=3, secondary=3)
FAVOURABLE = replace(LOW, secondary=4, positive_cores=2, total_cores=12)
UNFAVOURABLE = replace(FAVOURABLE, psa=14.0)
UNDIVIDED = replace(LOW, secondary=4)
HIGH = replace(LOW, psa=24.0)
VERY_HIGH = replace(LOW, t_stage="T4")


def interval(estimate: float, lower: float, upper: float) -> Interval:
    return Interval(estimate=estimate, lower=lower, upper=upper)


def curve(estimate: float, lower: float, upper: float) -> RiskCurve:
    """Ends with these after 10 years."""
    years = np.linspace(0, 10, 41)
    parts = {"estimate": estimate, "lower": lower, "upper": upper}
    return RiskCurve(years=years, **{name: value * years / 10 for name, value in parts.items()})


def benefit(lower: float, **changes: Any) -> TreatmentBenefit:
    return replace(
        TreatmentBenefit(
            treatment="short-term ADT",
            hazard_ratio=interval(0.6, 0.4, 0.9),
            without_treatment=interval(0.10, 0.06, 0.15),
            with_treatment=interval(0.06, 0.03, 0.10),
            reduction=interval(0.04, lower, 0.08),
            randomised=True,
        ),
        **changes,
    )


def predicted(covariates: Covariates, **changes: Any) -> RiskPrediction:
    prediction = RiskPrediction(
        endpoint=METASTASIS,
        curves={METASTASIS: curve(0.041, 0.020, 0.081)},
        score=0.0,
        nccn=covariates.nccn,
        percentile=None,
        benefit=benefit(0.01),
        contributions={},
        no_effect=[],
        missing=(),
        outside_training_range=[],
        simulated_outcomes=False,
    )
    return replace(prediction, **changes)


def recommended(covariates: Covariates, **changes: Any) -> Recommendation:
    return recommend(predicted(covariates, **changes), covariates)


def option(found: Recommendation, treatment: str) -> Option:
    [one] = [one for one in found.options if one.treatment == treatment]
    return one


@pytest.mark.parametrize("covariates", [LOW, FAVOURABLE, UNFAVOURABLE, HIGH, VERY_HIGH])
def test_the_options_are_those_of_the_mans_group(covariates: Covariates) -> None:
    assert covariates.nccn is not None
    found = recommended(covariates)
    assert found.groups == (covariates.nccn.name,)
    assert [one.treatment for one in found.options] == list(GUIDELINE[covariates.nccn.name])
    assert found.edition == covariates.nccn.edition


@pytest.mark.parametrize(
    ("risk", "verdict", "words"),
    [
        ((0.041, 0.020, 0.081), "supported", "4.1 % (2.0 to 8.1): below 10 %."),
        ((0.06, 0.04, 0.0999), "supported", "below 10 %."),
        ((0.06, 0.04, 0.10), "not shown", "the interval does not exclude 10 %."),
        ((0.2, 0.10, 0.3), "not shown", "the interval does not exclude 10 %."),
        ((0.2, 0.1001, 0.3), "not supported", "20.0 % (10.0 to 30.0): above 10 %."),
    ],
)
def test_surveillance_is_supported_below_its_limit_only(
    risk: tuple[float, float, float], verdict: str, words: str
) -> None:
    found = option(recommended(LOW, curves={METASTASIS: curve(*risk)}), SURVEILLANCE)
    assert found.verdict == verdict
    assert found.reason.endswith(words)


def test_what_his_numbers_support_is_the_advice() -> None:
    assert recommended(LOW).advice == "His numbers support active surveillance."
    assert recommended(UNFAVOURABLE).advice == f"His numbers support {SHORT_ADT}."
    assert recommended(UNFAVOURABLE, benefit=benefit(-0.01)).advice is None


@pytest.mark.parametrize(
    ("lower", "verdict"), [(0.001, "supported"), (0.0, "not shown"), (-0.02, "not shown")]
)
def test_short_term_adt_is_favoured_only_where_the_interval_excludes_no_benefit(
    lower: float, verdict: str
) -> None:
    found = recommended(UNFAVOURABLE, benefit=benefit(lower))
    assert found.short_term_adt.verdict == verdict
    assert option(found, SHORT_ADT).verdict == verdict
    assert (
        f"absolute benefit 4.0 percentage points ({lower * 100:.1f} to 8.0)"
        in found.short_term_adt.reason
    )
    assert "10.0 % (6.0 to 15.0) without it, 6.0 % (3.0 to 10.0) with it" in (
        found.short_term_adt.reason
    )


def test_in_favourable_risk_a_benefit_does_not_make_an_option_of_the_guideline() -> None:
    found = recommended(FAVOURABLE)
    assert found.short_term_adt.verdict == "supported"
    assert "does not list it in favourable" in found.short_term_adt.reason
    assert SHORT_ADT not in [one.treatment for one in found.options]
    assert found.advice == "His numbers support active surveillance."


@pytest.mark.parametrize("covariates", [LOW, HIGH, VERY_HIGH])
def test_a_benefit_of_short_term_adt_is_read_in_intermediate_risk_only(
    covariates: Covariates,
) -> None:
    found = recommended(covariates)
    assert found.short_term_adt.verdict == "guideline only"
    assert "in intermediate risk only" in found.short_term_adt.reason


@pytest.mark.parametrize(
    ("compared", "reason"),
    [
        (None, "did not compare men with and without it"),
        (benefit(0.01, treatment="another drug"), "compared another treatment: another drug"),
    ],
)
def test_a_cohort_that_did_not_compare_it_shows_no_benefit(
    compared: TreatmentBenefit | None, reason: str
) -> None:
    found = recommended(UNFAVOURABLE, benefit=compared)
    assert found.short_term_adt.verdict == "guideline only"
    assert reason in found.short_term_adt.reason
    assert option(found, SHORT_ADT).verdict == "guideline only"


def test_a_benefit_that_was_not_assigned_at_random_is_not_shown() -> None:
    found = recommended(UNFAVOURABLE, benefit=benefit(0.01, randomised=False))
    assert (found.short_term_adt.verdict, found.advice) == ("not shown", None)
    assert "was not assigned at random" in found.short_term_adt.reason


def test_a_cohort_without_metastases_does_not_choose_surveillance() -> None:
    found = recommended(LOW, endpoint=CANCER_DEATH, curves={CANCER_DEATH: curve(0.01, 0.0, 0.02)})
    assert (option(found, SURVEILLANCE).verdict, found.advice) == ("guideline only", None)
    assert "recorded no distant metastasis" in option(found, SURVEILLANCE).reason


@pytest.mark.parametrize(
    ("covariates", "changes", "words"),
    [
        (LOW, {"simulated_outcomes": True}, "simulated outcomes"),
        (UNFAVOURABLE, {"simulated_outcomes": True}, "simulated outcomes"),
        (LOW, {"outside_training_range": ["psa"]}, "no patient like this one (psa)"),
        (LOW, {"outside_training_range": ["image"]}, "no patient like this one (image)"),
        (UNDIVIDED, {}, "positive cores would decide"),
        (replace(LOW, t_stage="T2"), {}, "letter of the T stage would decide"),
        (HIGH, {}, "In high risk the options are the guideline's"),
        (VERY_HIGH, {}, "In very high risk the options are the guideline's"),
    ],
)
def test_where_the_evidence_does_not_reach_the_numbers_choose_nothing(
    covariates: Covariates, changes: dict[str, Any], words: str
) -> None:
    found = recommended(covariates, **changes)
    assert found.advice is None
    assert [reason for reason in found.withheld if words in reason]
    assert found.options, "the guideline's text is still there"
    assert {one.verdict for one in found.options} == {"guideline only"}
    assert found.short_term_adt.verdict == "guideline only"


def test_a_slide_that_may_not_be_relied_on_chooses_nothing() -> None:
    found = recommend(predicted(LOW), LOW, doubts=["The slide is unlike those of training."])
    assert (found.advice, found.withheld) == (None, ("The slide is unlike those of training.",))
    assert {one.verdict for one in found.options} == {"guideline only"}


def test_every_reason_to_withhold_is_named_once() -> None:
    found = recommended(UNDIVIDED, simulated_outcomes=True, outside_training_range=["age"])
    assert len(found.withheld) == 3
    assert all(reason.endswith(".") for reason in found.withheld)


def test_an_unknown_group_has_no_options() -> None:
    found = recommended(replace(LOW, psa=None))
    assert (found.groups, found.options, found.advice) == ((), (), None)
    assert "PSA, T stage and Gleason score are needed" in found.withheld[0]


def test_options_of_two_possible_groups_name_the_group_that_lists_them() -> None:
    found = recommended(UNDIVIDED)
    assert found.groups == ("favourable intermediate", "unfavourable intermediate")
    assert option(found, SURVEILLANCE).guideline.startswith("in favourable intermediate risk for")
    assert "; in unfavourable intermediate risk" in option(found, "radiotherapy").guideline


def test_a_missing_image_is_allowed() -> None:
    assert recommended(LOW, missing=("image",)).advice == recommended(LOW).advice


def test_each_option_rests_on_the_guideline_and_its_trials() -> None:
    assert set(GUIDELINE) == set(GROUPS)
    for listed in GUIDELINE.values():
        assert set(listed) <= set(TRIALS)
    names = {str(trial).split(" (")[0] for trial in option(recommended(HIGH), LONG_ADT).trials}
    assert names == {"EORTC 22961", "RTOG 9202", "DART 01/05"}


@pytest.mark.parametrize("stage", T_STAGES)
def test_a_man_belongs_to_one_of_his_possible_groups(stage: str) -> None:
    known = {"t_stage": stage, "psa": 7.0, "grade_group": 2, "primary": 3, "positive": 0.2}
    possible = possible_groups(**known)  # type: ignore[arg-type]
    assert replace(FAVOURABLE, t_stage=stage).nccn.name in possible
    assert len(possible) == {"T2": 2, "T3": 2}.get(stage, 1)


def test_what_is_missing_leaves_open_only_what_it_decides() -> None:
    nothing: dict[str, Any] = dict.fromkeys(
        ("t_stage", "psa", "grade_group", "primary", "positive")
    )
    assert possible_groups(**nothing) == GROUPS
    assert possible_groups(**{**nothing, "t_stage": "T4"}) == ("very high",)
    assert possible_groups(**{**nothing, "psa": 25.0}) == ("high", "very high")
    without_psa = {"t_stage": "T1c", "psa": None, "grade_group": 1, "primary": 3, "positive": 0.2}
    assert possible_groups(**without_psa) == (  # type: ignore[arg-type]
        "low",
        "favourable intermediate",
        "high",
    )
