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
from training.errors import InsufficientData, OutcomesError, SpecMismatch
from training.model_set import ENCODER, RISK_MODEL, SLIDE_MODEL, load_model_set
from training.risk.case_embeddings import embed_cases
from training.risk.covariates import Covariates
from training.risk.cross_validation import CrossValidatedScore
from training.risk.fit_risk import (
    FitRiskConfig,
    FitRiskReport,
    ImageSource,
    RealOutcomes,
    SimulatedOutcomes,
    fit_risk,
)
from training.risk.fitting import RiskModelConfig
from training.risk.risk_model import load_risk_model
from training.risk.simulated_patients import SimulatedScore, draw_patients
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


def image(models: Path) -> ImageSource:
    return ImageSource(
        data=str(models / "cohort"),
        encoder=str(models / ENCODER),
        slide_model=str(models / SLIDE_MODEL),
        split="train",
    )


@pytest.fixture(scope="module")
def config(models: Path) -> FitRiskConfig:
    return FitRiskConfig(
        image=image(models),
        out=str(models / RISK_MODEL),
        outcomes=SimulatedOutcomes(patients=2000, held_out=2000),
        model=RiskModelConfig(replicas=10),
    )


@pytest.fixture(scope="module")
def report(config: FitRiskConfig) -> FitRiskReport:
    return fit_risk(config)


def test_known_hazards_are_found_again(report: FitRiskReport) -> None:
    score = report.score
    assert isinstance(score, SimulatedScore)
    assert score.concordance is not None
    assert score.concordance_without_image is not None
    assert score.concordance_of_truth is not None
    assert (report.slides, report.patients, score.patients) == (5, 2000, 2000)
    assert score.concordance > 0.7
    assert score.concordance > score.concordance_of_truth - 0.04
    assert (
        score.concordance > score.concordance_without_image
    )  # these embeddings show the pattern: the image shows it
    assert score.error_ten_years < 0.05
    assert (
        score.coverage_ten_years > 0.7
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
    source = config.image
    assert source is not None
    slides = load_labelled_slides(source.data, load_encoder(source.encoder)).slides
    model = load_slide_model(source.slide_model)
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
    source = config.image
    assert source is not None
    model = load_slide_model(source.slide_model)
    save_slide_model(str(tmp_path), replace(model, card={**model.card, "encoder_hash": "f" * 64}))
    with pytest.raises(
        SpecMismatch, match=r"encoder hash differs: given .* against slide model ffff"
    ):
        fit_risk(replace(config, image=replace(source, slide_model=str(tmp_path))))


def test_slides_without_cancer_give_no_patients(config: FitRiskConfig, tmp_path: Path) -> None:
    source = config.image
    assert source is not None
    data = make_cohort(tmp_path, source.encoder, ["benign", "benign"])
    with pytest.raises(InsufficientData, match="no slide with cancer and annotated regions"):
        fit_risk(replace(config, image=replace(source, data=data)))


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
    source = ImageSource(data="a", encoder="b", slide_model="c")

    def config(*, seed: int = 0, **counts: int) -> FitRiskConfig:
        return FitRiskConfig(image=source, out="d", outcomes=SimulatedOutcomes(**counts), seed=seed)

    with pytest.raises(ValueError, match=re.escape(message)):
        config(**change)


@pytest.mark.parametrize("patients", [1, 3])
def test_too_few_patients_for_a_hazard_are_refused(config: FitRiskConfig, patients: int) -> None:
    with pytest.raises(InsufficientData):
        fit_risk(replace(config, outcomes=SimulatedOutcomes(patients=patients)))


def write_table(path: Path, cases: list[str], *, seed: int = 0) -> str:
    """Outcomes of these cases, PSA of every fifth missing."""
    rng = np.random.default_rng(seed)
    lines = ["case;time;event;treatment;age;psa;t_stage;gleason_primary;gleason_secondary"]
    for k, case in enumerate(cases):
        primary, psa = int(rng.integers(3, 6)), float(np.exp(rng.normal(2, 0.6)))
        years = np.array(
            [
                rng.uniform(60, 160),
                rng.exponential(900 / 2.5 ** (primary - 3)),
                rng.exponential(600),
            ]
        )
        event = ("none", "distant_metastasis", "Other death")[int(years.argmin())]
        shown = "NA" if k % 5 == 0 else f"{psa:.1f}"
        lines.append(
            f"{case};{years.min():.2f};{event};{k % 2};{rng.uniform(50, 80):.0f};{shown};cT2a;"
            f"{primary};4"
        )
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture(scope="module")
def clinical(tmp_path_factory: pytest.TempPathFactory) -> tuple[FitRiskConfig, FitRiskReport]:
    folder = tmp_path_factory.mktemp("clinical")
    config = FitRiskConfig(
        out=str(folder / "risk_model"),
        outcomes=RealOutcomes(
            table=write_table(folder / "outcomes.csv", [f"case{k}" for k in range(400)]),
            unit="months",
            randomised=True,
            folds=4,
        ),
        model=RiskModelConfig(replicas=10),
    )
    return config, fit_risk(config)


def test_outcomes_of_a_table_make_a_model_without_slides(
    clinical: tuple[FitRiskConfig, FitRiskReport],
) -> None:
    config, report = clinical
    model = load_risk_model(config.out)
    assert not report.simulated_outcomes
    assert model.card["simulated_outcomes"] is False
    assert report.missing == {"positive_cores": 1.0, "psa": 0.2}
    assert report.patients == 400
    assert list(report.events) == ["distant_metastasis", "other_death"]
    score = report.score
    assert isinstance(score, CrossValidatedScore)
    assert score.concordance is not None
    assert score.concordance.lower > 0.5  # primary pattern multiplies the hazard by 2.5
    assert score.brier < score.brier_of_average
    assert score.concordance_without_image is None
    assert report.hazard_ratios["gleason_primary"] > 1.3
    man = Covariates(age=66, t_stage="T2a", primary=4, secondary=4)
    found = model.predict(None, man)
    assert found.missing == ("psa",)
    assert found.benefit is not None
    assert found.benefit.randomised
    stored = Path(config.out, "card.json").read_text() + Path(config.out, "report.json").read_text()
    assert "case7" not in stored  # cases stay in the table


def test_the_same_table_gives_the_same_model_in_any_order(
    clinical: tuple[FitRiskConfig, FitRiskReport], tmp_path: Path
) -> None:
    config, report = clinical
    again = fit_risk(replace(config, out=str(tmp_path / "again")))
    assert again.model_hash == report.model_hash


def test_cases_of_a_table_are_joined_to_their_slides(config: FitRiskConfig, tmp_path: Path) -> None:
    source = config.image
    assert source is not None
    encoder = load_encoder(source.encoder)
    slides = load_labelled_slides(source.data, encoder).slides
    found = embed_cases(
        source.data,
        encoder,
        load_slide_model(source.slide_model),
        wanted={slides[1].case, slides[2].case, "not there"},
    )
    assert found.cases == [slides[1].case, slides[2].case]
    model = load_slide_model(source.slide_model)
    for k in (0, 1):
        expected = model.predict(slides[k + 1].bag.embeddings).embedding
        np.testing.assert_allclose(found.embeddings[k], expected, rtol=1e-5, atol=1e-6)
    table = write_table(tmp_path / "table.csv", ["nobody"])
    with pytest.raises(InsufficientData, match="none of the 1 cases with an outcome is in the coh"):
        fit_risk(replace(config, outcomes=RealOutcomes(table=table), image=replace(source)))


def test_simulated_outcomes_need_slides() -> None:
    with pytest.raises(ValueError, match="give a cohort and a slide model"):
        FitRiskConfig(out="a", outcomes=SimulatedOutcomes())


def test_what_too_few_patients_have_plays_no_part(tmp_path: Path) -> None:
    """Completed from a handful, a variable without effect looks as if it had one."""
    cases = [f"case{k}" for k in range(300)]
    lines = Path(write_table(tmp_path / "table.csv", cases)).read_text().splitlines()
    header, rows = lines[0] + ";positive_cores;total_cores", []
    for k, line in enumerate(lines[1:]):
        rows.append(line + (f";{k % 12};12" if k < 20 else ";;"))
    (tmp_path / "table.csv").write_text("\n".join([header, *rows]))
    config = FitRiskConfig(
        out=str(tmp_path / "model"),
        outcomes=RealOutcomes(table=str(tmp_path / "table.csv"), unit="months", folds=2),
        model=RiskModelConfig(replicas=2),
    )
    report = fit_risk(config)
    assert report.hazard_ratios["positive_cores"] == 1.0
    assert any("20 of 300 patients have positive cores" in remark for remark in report.remarks)
    man = Covariates(age=66, psa=8.0, t_stage="T2a", primary=4, secondary=4)
    found = load_risk_model(config.out).predict(None, man)
    assert found.missing == ()
    assert found.outside_training_range == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": "days"}, "longest follow-up is 0"),
        ({"unit": "years"}, "years in line 3; say whether time is in years, months or days"),
        ({"unit": "months", "folds": 500}, "can't be shared among 500 folds; ask for fewer"),
    ],
)
def test_a_cohort_that_cannot_be_fitted_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    table = write_table(tmp_path / "table.csv", [f"case{k}" for k in range(200)])
    outcomes = RealOutcomes(table=table, **change)  # type: ignore[arg-type]
    with pytest.raises((InsufficientData, OutcomesError), match=message):
        fit_risk(FitRiskConfig(out=str(tmp_path / "model"), outcomes=outcomes))
    assert not (tmp_path / "model").exists()
