"""What a report shows of competing risks, of what is missing, and of the recommendation."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from app.cases.schemas import ClinicalVariables
from app.reports import schemas
from app.reports.findings import AnalysedSlide, Findings, ModelSetFacts
from app.reports.making import doubts_of, make_report
from app.reports.risk import GleasonFrom
from app.reports.schemas import NOTICE, SIMULATED, Report
from app.risks.assess import assess, current_risk_model
from pipelines.grid import PatchSpec
from tests.app.test_cli_report import printed
from tests.app.test_reports import example, pages
from tests.support.clinical_risk import make_clinical_risk_model
from training.risk.hazards import YEARS
from training.risk.prediction import METASTASIS, RiskCurve
from training.slide.domain import Likeness
from training.slide.gleason import grade
from training.slide.reading import Reading
from training.slide.slide_model import SlidePrediction

MAN = {"age": 67, "psa": 14, "t_stage": "T2a", "gleason_primary": 3, "gleason_secondary": 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_clinical_risk_model(str(tmp_path_factory.mktemp("clinical")))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("simulated"))
    return make_clinical_risk_model(folder, simulated_outcomes=True)


def report(models: str, **stated: Any) -> Report:
    clinical = ClinicalVariables.model_validate(stated)
    found = assess(models, clinical)
    return example(risk=found.risk, clinical=clinical, simulated_outcomes=found.simulated_outcomes)


def risk_of(report: Report) -> schemas.Risk:
    assert report.risk is not None
    return report.risk


def recommendation_of(report: Report) -> schemas.Recommendation:
    found = risk_of(report).recommendation
    assert found is not None
    return found


def test_the_third_page_has_options_numbers_and_trials(models: str) -> None:
    made = report(models, **MAN)
    _, second, third = pages(made)
    advised = recommendation_of(made)
    assert [option.treatment for option in advised.options] == [
        "radiotherapy",
        "radiotherapy with short-term ADT (4 to 6 months)",
        "radical prostatectomy",
        "observation",
    ]
    for option in advised.options:
        assert option.guideline in third
        assert option.reason in third
        for trial in option.trials:
            assert trial.split(" (")[0] in third
    assert advised.edition in third
    assert NOTICE in third
    assert "death of another cause, 10 years" in second
    assert "death of prostate cancer, 10 years" in second


def test_what_supports_an_option_is_on_top(models: str) -> None:
    made = report(models, **MAN)
    advised = recommendation_of(made).model_copy(update={"advice": "His numbers support X."})
    risk = risk_of(made).model_copy(update={"recommendation": advised})
    supported = made.model_copy(update={"risk": risk})
    assert "His numbers support X." in pages(supported)[2]
    assert "None by the numbers" not in pages(supported)[2]
    assert "None by the numbers" in pages(made)[2]


def test_every_page_of_simulated_outcomes_says_so_and_chooses_nothing(simulated: str) -> None:
    made = report(simulated, **MAN)
    texts = pages(made)
    assert len(texts) == 3
    for text in texts:
        assert SIMULATED.upper() in text
        assert NOTICE in text
    assert "its numbers say nothing about patients" in texts[2]
    assert "not read: The numbers may not be read." in texts[2]


def test_what_was_missing_is_said_to_be_averaged_over(models: str) -> None:
    made = report(models, age=67, psa="unknown", gleason_primary=3, gleason_secondary=4)
    _, second, third = pages(made)
    assert "Not known: PSA, T stage, Positive cores. The risks are averaged over" in second
    assert "PSA stated as unknown" in second
    assert "Clinical T stage not given" in second
    assert "not known: PSA, T stage and Gleason are needed" in second
    assert "The NCCN group is not known" in third


def test_the_terminal_prints_what_the_pdf_shows(models: str) -> None:
    made = report(models, **MAN)
    text = printed(risk=made.risk, simulated_outcomes=False)
    for option in recommendation_of(made).options:
        assert f"Option: {option.treatment}" in text
    assert "not shown" in text
    assert "positive cores: the risks are averaged over" in text
    assert "10-year risk, death of another cause" in text
    assert recommendation_of(made).edition in text


def test_a_benefit_that_may_not_be_read_is_said_not_to_be(simulated: str) -> None:
    made = report(simulated, **MAN)
    text = printed(risk=made.risk)
    assert "Benefit of short-term ADT" in text
    assert "not read. The numbers may not be read." in text
    assert text.count("No recommendation because") == len(recommendation_of(made).withheld) == 1


MODEL = schemas.ModelFacts(name="test", hash="ab", version="0")
SPEC = PatchSpec(size=64, mpp=0.5)
FACTS = ModelSetFacts(
    version="v",
    spec=SPEC,
    encoder=MODEL,
    slide_model=MODEL,
    risk_model=MODEL,
    simulated_outcomes=False,
    encoder_key="k",
)
SLIDE = AnalysedSlide(
    slide_id="s",
    vendor="aperio",
    width=9000,
    height=9000,
    mpp=0.5,
    patch_side=64.0,
    n_patches=5000,
    n_shards=1,
    version="v",
    encoder_key="k",
)
MADE_AT = datetime(2026, 11, 28, tzinfo=UTC)
LIKE = Likeness(inside=True, score=1.0, limit=2.0, false_alarms=0.05, reason="Like them.")
UNLIKE = replace(LIKE, inside=False, reason="Outside of what the models were fitted on.")
READ, UNREAD = Reading(grade_group=2, reason="."), Reading(grade_group=None, reason=".")


@pytest.mark.parametrize(
    ("likeness", "reading", "gleason_from", "found"),
    [
        (None, READ, "image", []),
        (LIKE, READ, "image", []),
        (LIKE, UNREAD, "pathologist", []),
        (UNLIKE, READ, "pathologist", ["Outside of what the models"]),
        (LIKE, UNREAD, "image", ["no grade to read"]),
        (UNLIKE, UNREAD, "image", ["Outside of what the models", "no grade to read"]),
    ],
)
def test_a_slide_that_may_not_be_relied_on_is_doubted(
    likeness: Likeness | None, reading: Reading, gleason_from: GleasonFrom, found: list[str]
) -> None:
    doubts = doubts_of(likeness, reading, gleason_from)
    assert [any(word in doubt for doubt in doubts) for word in found] == [True] * len(found)
    assert len(doubts) == len(found)


def test_a_report_of_an_unlike_slide_advises_nothing(models: str) -> None:
    """The same man, whose low risk supports surveillance, with two slides."""
    clinical = ClinicalVariables(age=61, psa=4, t_stage="T1c")
    covariates = clinical.covariates(image=(3, 3))
    prediction = current_risk_model(models).predict(None, covariates)
    low = RiskCurve(years=YEARS, estimate=YEARS / 250, lower=YEARS / 500, upper=YEARS / 200)
    prediction = replace(prediction, curves={**prediction.curves, METASTASIS: low})
    shares = np.array([0.4, 0.6, 0.0, 0.0])
    advice = []
    for likeness in (LIKE, UNLIKE):
        findings = Findings(
            x=np.zeros(1, np.int32),
            y=np.zeros(1, np.int32),
            slide=SlidePrediction(
                patch_probabilities=np.array([shares], np.float32),
                attention=np.ones(1, np.float32),
                embedding=np.zeros(1, np.float32),
                grade_group_probabilities=np.array([0, 1, 0, 0, 0, 0], np.float32),
                cancer_probability=1.0,
            ),
            grading=grade(shares),
            area_errors=(None, None),
            likeness=likeness,
            risk=prediction,
            covariates=covariates,
            risk_absent_because=None,
            gleason_from="image",
        )
        made = make_report("a", FACTS, SLIDE, findings, clinical=clinical, made_at=MADE_AT)
        advice.append(recommendation_of(made).advice)
    assert advice == ["His numbers support active surveillance.", None]


def test_a_report_of_an_earlier_version_is_still_read() -> None:
    values = example().model_dump(mode="json")
    for name in ("curves", "missing", "benefit", "recommendation", "no_effect"):
        del values["risk"][name]
    del values["clinical"]["unknown"]
    read = Report.model_validate(values)
    assert risk_of(read).recommendation is None
    assert len(pages(read)) == 2
    assert "Recommendation" not in printed(risk=read.risk)
