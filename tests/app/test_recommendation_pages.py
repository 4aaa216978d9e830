"""What a report shows of competing risks, of what is missing, and of the recommendation."""

from __future__ import annotations

from typing import Any

import pytest

from app.cases.schemas import ClinicalVariables
from app.reports import schemas
from app.reports.schemas import NOTICE, SIMULATED, Report
from app.risks.assess import assess
from tests.app.test_cli_report import printed
from tests.app.test_reports import example, pages
from tests.support.clinical_risk import make_clinical_risk_model

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


def test_a_report_of_an_earlier_version_is_still_read() -> None:
    values = example().model_dump(mode="json")
    for name in ("curves", "missing", "benefit", "recommendation", "no_effect"):
        del values["risk"][name]
    del values["clinical"]["unknown"]
    read = Report.model_validate(values)
    assert risk_of(read).recommendation is None
    assert len(pages(read)) == 2
    assert "Recommendation" not in printed(risk=read.risk)
