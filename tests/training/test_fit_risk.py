"""From a slide model to a risk model: known hazards are found again, and everything says that
outcomes are simulated.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.hand_made import make_cohort, make_encoder
from training.encoder.encoder import load_encoder
from training.errors import InsufficientData, SpecMismatch
from training.model_set import ENCODER, RISK_MODEL, SLIDE_MODEL, load_model_set
from training.risk.covariates import Covariates
from training.risk.fit_risk import FitRiskConfig, FitRiskReport, draw_patients, fit_risk
from training.risk.risk_model import RiskModelConfig, load_risk_model
from training.slide.fit_slide import FitSlideConfig, fit_slide
from training.slide.labelled_slides import load_labelled_slides
from training.slide.slide_model import AttentionConfig, load_slide_model, save_slide_model

LABELS = ["benign", "3+3", "3+4", "4+3", "4+4", "5+4"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cohort, encoder and slide model."""
    folder = tmp_path_factory.mktemp("models")
    encoder = make_encoder(folder / ENCODER)
    data = make_cohort(folder / "cohort", encoder, LABELS)
    attention = AttentionConfig(hidden=8, attention=4, epochs=25, learning_rate=1e-2)
    fit_slide(
        FitSlideConfig(
            data=data,
            encoder=encoder,
            out=str(folder / SLIDE_MODEL),
            attention=attention,
            folds=2,
            stain_views=0,
        )
    )
    return folder


@pytest.fixture(scope="module")
def config(models: Path) -> FitRiskConfig:
    return FitRiskConfig(
        data=str(models / "cohort"),
        encoder=str(models / ENCODER),
        slide_model=str(models / SLIDE_MODEL),
        out=str(models / RISK_MODEL),
        patients=600,
        held_out=600,
        model=RiskModelConfig(replicas=10),
    )


@pytest.fixture(scope="module")
def report(config: FitRiskConfig) -> FitRiskReport:
    return fit_risk(config)


def test_known_hazards_are_found_again(report: FitRiskReport) -> None:
    score = report.score
    assert score.concordance is not None
    assert score.concordance_without_image is not None
    assert score.concordance_of_truth is not None
    assert (report.slides, report.patients, score.patients) == (5, 600, 600)
    assert score.concordance > 0.7
    assert score.concordance > score.concordance_of_truth - 0.04
    assert (
        score.concordance > score.concordance_without_image
    )  # these embeddings show the pattern: the image shows it
    assert score.error_ten_years < 0.05
    assert (
        score.coverage_ten_years > 0.75
    )  # of one cohort: its chance error moves all patients alike
    for group in score.calibration_ten_years:
        assert group.predicted == pytest.approx(group.true, abs=0.08)
    assert report.hazard_ratios["psa"] > 1


def test_everything_says_that_outcomes_are_simulated(
    config: FitRiskConfig, report: FitRiskReport
) -> None:
    model = load_risk_model(config.out)
    man = Covariates(age=66, psa=8.0, t_stage="T2a", primary=3, secondary=4)
    assert report.simulated_outcomes is True
    assert model.card["simulated_outcomes"] is True
    assert model.card["generator"]["image"] == 2.0
    assert "simulated" in report.remarks[0]
    assert model.predict(model.image_centre, man).simulated_outcomes
    assert json.loads(Path(config.out, "report.json").read_text())["simulated_outcomes"] is True
    picture = np.asarray(
        Image.open(io.BytesIO(Path(config.out, "calibration.png").read_bytes())).convert("L")
    )
    assert picture.std() > 10


def test_the_same_config_gives_the_same_model(
    config: FitRiskConfig, report: FitRiskReport, tmp_path: Path
) -> None:
    assert fit_risk(replace(config, out=str(tmp_path))).model_hash == report.model_hash


def test_a_patient_is_seen_through_the_slide_model(config: FitRiskConfig) -> None:
    slides = load_labelled_slides(config.data, load_encoder(config.encoder)).slides
    model = load_slide_model(config.slide_model)
    patients = draw_patients(slides, model, 5, seed=0)
    assert slides[0].score is None  # which patients are not drawn from
    slide = slides[1 + patients.cohort.slide[3]]
    expected = model.predict(slide.bag.embeddings[patients.cohort.bags[3]]).embedding
    np.testing.assert_array_equal(patients.embeddings[3], expected)


def test_the_three_models_make_a_set(models: Path, report: FitRiskReport) -> None:
    found = load_model_set(str(models))
    assert found.risk_model.hash == report.model_hash
    assert found.risk_model.card["slide_model_hash"] == found.slide_model.hash
    assert found.slide_model.card["encoder_hash"] == found.encoder.hash
    assert found.spec == found.encoder.spec


def test_a_slide_model_of_another_encoder_is_refused(config: FitRiskConfig, tmp_path: Path) -> None:
    model = load_slide_model(config.slide_model)
    save_slide_model(str(tmp_path), replace(model, card={**model.card, "encoder_hash": "f" * 64}))
    with pytest.raises(
        SpecMismatch, match=r"encoder hash differs: given .* against slide model ffff"
    ):
        fit_risk(replace(config, slide_model=str(tmp_path)))


def test_slides_without_cancer_give_no_patients(config: FitRiskConfig, tmp_path: Path) -> None:
    data = make_cohort(tmp_path, config.encoder, ["benign", "benign"])
    with pytest.raises(InsufficientData, match="no slide with cancer and annotated regions"):
        fit_risk(replace(config, data=data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patients": 0}, "patients is 0; it must be 1 or more"),
        ({"patients": -5}, "patients is -5; it must be 1 or more"),
        ({"held_out": 0}, "held_out is 0; it must be 1 or more"),
        ({"seed": -1}, "seed is -1; it must be 0 to 4294967294"),
    ],
)
def test_values_that_no_fit_can_have_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        FitRiskConfig(data="a", encoder="b", slide_model="c", out="d", **change)


@pytest.mark.parametrize("patients", [1, 3])
def test_too_few_patients_for_a_hazard_are_refused(config: FitRiskConfig, patients: int) -> None:
    with pytest.raises(InsufficientData):
        fit_risk(replace(config, patients=patients))
