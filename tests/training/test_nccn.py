"""NCCN risk groups at the edges of their published rules."""

from __future__ import annotations

import re

import pytest

from training.errors import CovariateError
from training.risk.covariates import STAGE_STEPS, Covariates
from training.risk.nccn import EDITION, nccn_group

LOW = {"t_stage": "T1c", "psa": 6.0, "grade_group": 1, "primary": 3, "positive": None}


@pytest.mark.parametrize(
    ("change", "group"),
    [
        ({}, "low"),
        ({"t_stage": "T1a"}, "low"),
        ({"t_stage": "T1b"}, "low"),
        ({"t_stage": "T2a", "psa": 9.99}, "low"),
        ({"t_stage": "T2"}, "low"),
        ({"psa": 10.0}, "intermediate"),
        ({"psa": 20.0}, "intermediate"),
        ({"psa": 20.1}, "high"),
        ({"t_stage": "T2b"}, "intermediate"),
        ({"t_stage": "T2c"}, "intermediate"),
        ({"grade_group": 2}, "intermediate"),
        ({"grade_group": 2, "positive": 0.49}, "favourable intermediate"),
        ({"grade_group": 2, "positive": 0.5}, "unfavourable intermediate"),
        ({"psa": 10.0, "positive": 0.2}, "favourable intermediate"),
        ({"psa": 10.0, "grade_group": 2}, "unfavourable intermediate"),
        ({"psa": 10.0, "grade_group": 2, "positive": 0.1}, "unfavourable intermediate"),
        ({"grade_group": 3, "primary": 4, "positive": 0.1}, "unfavourable intermediate"),
        ({"t_stage": "T3a"}, "high"),
        ({"t_stage": "T3"}, "high"),
        ({"grade_group": 4, "primary": 4}, "high"),
        ({"grade_group": 5, "primary": 4}, "high"),
        ({"grade_group": 5, "primary": 5}, "very high"),
        ({"grade_group": 4, "primary": 5}, "very high"),
        ({"t_stage": "T3b"}, "very high"),
        ({"t_stage": "T4"}, "very high"),
        ({"t_stage": "T3a", "psa": 25.0}, "very high"),
        ({"grade_group": 4, "primary": 4, "psa": 20.1}, "very high"),
    ],
)
def test_groups_at_the_edges_of_the_rules(change: dict[str, object], group: str) -> None:
    assert nccn_group(**{**LOW, **change}).name == group  # type: ignore[arg-type]


def test_reasons_have_the_mans_own_values_and_the_edition_is_named() -> None:
    found = nccn_group(t_stage="T2b", psa=12.5, grade_group=2, primary=3, positive=0.6)
    assert found.reasons == (
        "stage T2b",
        "grade group 2",
        "PSA 12.5 from 10 to 20",
        "60% of the cores positive",
    )
    assert found.edition == EDITION
    assert "version 2.2020" in EDITION
    assert found.tier == "intermediate"


def test_what_would_have_decided_is_named() -> None:
    assert nccn_group(**{**LOW, "psa": 12.0}).missing == ("positive cores",)  # type: ignore[arg-type]
    assert nccn_group(**{**LOW, "t_stage": "T2"}).missing == ("letter of the T stage",)  # type: ignore[arg-type]
    assert nccn_group(**LOW).missing == ()  # type: ignore[arg-type]


def test_stages_are_in_their_order_and_one_without_letter_is_between() -> None:
    lettered = [stage for stage in STAGE_STEPS if len(stage) == 3 and stage[1] > "1"]
    steps = [STAGE_STEPS[stage] for stage in lettered]
    assert lettered == ["T2a", "T2b", "T2c", "T3a", "T3b"]
    assert steps == sorted(steps)
    assert STAGE_STEPS["T2a"] < STAGE_STEPS["T2"] < STAGE_STEPS["T2c"]
    assert STAGE_STEPS["T3a"] < STAGE_STEPS["T3"] < STAGE_STEPS["T3b"] < STAGE_STEPS["T4"]


MAN = {"age": 66.0, "psa": 7.2, "t_stage": "T2a", "primary": 3, "secondary": 4}


@pytest.mark.parametrize(
    ("cores", "message"),
    [
        ((3, None), "give positive_cores and total_cores, or neither"),
        ((None, 12), "give positive_cores and total_cores, or neither"),
        ((13, 12), "positive_cores 13 is not usable; give 0 to 12"),
        ((0, 0), "total_cores 0 is not usable"),
        ((-1, 12), "positive_cores -1 is not usable"),
    ],
)
def test_cores_that_no_biopsy_has_are_refused(
    cores: tuple[int | None, int | None], message: str
) -> None:
    with pytest.raises(CovariateError, match=re.escape(message)):
        Covariates(**MAN, positive_cores=cores[0], total_cores=cores[1])  # type: ignore[arg-type]


def test_cores_divide_the_intermediate_group() -> None:
    few = Covariates(**MAN, positive_cores=2, total_cores=12)  # type: ignore[arg-type]
    many = Covariates(**MAN, positive_cores=6, total_cores=12)  # type: ignore[arg-type]
    assert few.nccn.name == "favourable intermediate"
    assert many.nccn.name == "unfavourable intermediate"


@pytest.mark.parametrize("stage", ["T1a", "T1b", "T1c", "T2", "T2a", "T3", "T3b", "T4"])
def test_stages_found_by_resection_and_without_letter_can_be_entered(stage: str) -> None:
    assert Covariates(**{**MAN, "t_stage": stage}).nccn.name  # type: ignore[arg-type]
