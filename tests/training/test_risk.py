"""One patient's risk: from arrays by hand, with an interval that holds, explained by parts that add
up.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.errors import BrokenModel, InsufficientData, ModelNotFound, SpecMismatch
from training.risk.covariates import T_STAGES, Covariates
from training.risk.risk_model import (
    DEFAULT_RISK,
    RiskModel,
    fit_risk_model,
    load_risk_model,
    save_risk_model,
)
from training.risk.simulated_outcomes import DRAWN_STAGES

CONFIG = replace(DEFAULT_RISK, components=2, replicas=12)
MAN = Covariates(age=66, psa=8.0, t_stage="T2a", primary=3, secondary=4)
CARD = {"simulated_outcomes": True, "encoder_hash": "e" * 64, "slide_model_hash": "s" * 64}


def registry(
    seed: int, count: int = 400
) -> tuple[np.ndarray, list[Covariates], np.ndarray, np.ndarray, np.ndarray]:
    """Slide embeddings, clinical variables, times, events and true 10-year risk of made-up men. One
    image factor counts.
    """
    rng = np.random.default_rng(seed)
    image = rng.normal(size=count)
    embeddings = np.outer(image, np.linspace(1, 2, 6)) + 0.1 * rng.normal(size=(count, 6))
    men = [
        Covariates(
            age=float(rng.uniform(50, 80)),
            psa=float(np.exp(rng.normal(2, 0.6))),
            t_stage=DRAWN_STAGES[rng.integers(6)],
            primary=int(rng.integers(3, 6)),
            secondary=int(rng.integers(3, 6)),
        )
        for _ in range(count)
    ]
    encoded = np.array([man.encode() for man in men])
    hazard = 0.02 * np.exp(
        (encoded - encoded.mean(axis=0)) @ [0.1, 0.3, 0.2, 0.5, 0.3] + 0.6 * image
    )
    time = rng.exponential(1 / hazard)
    follow_up = rng.uniform(6, 14, count)
    return embeddings, men, np.minimum(time, follow_up), time < follow_up, -np.expm1(-10 * hazard)


@pytest.fixture(scope="module")
def model() -> RiskModel:
    embeddings, men, time, event, _ = registry(0)
    return fit_risk_model(embeddings, men, time, event, card=CARD, config=CONFIG)


def test_risk_is_that_of_the_formula(model: RiskModel) -> None:
    embedding = np.array([1.0, 1.2, 1.4, 1.6, 1.8, 2.0])
    image = model.image_components @ (embedding - model.image_centre)
    columns = np.append(image, MAN.encode()) / model.scale
    expected = 1 - np.exp(
        -model.baseline[0] * np.exp(model.coefficients[0] @ (columns - model.centre[0]))
    )
    found = model.predict(embedding, MAN)
    np.testing.assert_allclose(found.curve.estimate, expected, rtol=1e-9)
    assert found.five_year.estimate == pytest.approx(expected[20])
    assert found.ten_year.estimate == pytest.approx(expected[40])
    assert found.simulated_outcomes


@settings(max_examples=40, deadline=None)
@given(
    st.floats(30, 100),
    st.floats(0.05, 5000),
    st.sampled_from(T_STAGES),
    st.floats(-1000, 1000),
)
def test_every_patient_gets_a_rising_curve_within_its_interval(
    model: RiskModel, age: float, psa: float, stage: str, image: float
) -> None:
    man = Covariates(age=age, psa=psa, t_stage=stage, primary=4, secondary=5)
    found = model.predict(np.full(6, image, np.float32), man)
    for curve in (found.curve.estimate, found.curve.lower, found.curve.upper):
        assert curve[0] == 0
        assert ((curve >= 0) & (curve <= 1)).all()
    assert (np.diff(found.curve.estimate) >= 0).all()
    assert (found.curve.lower <= found.curve.estimate).all()
    assert (found.curve.estimate <= found.curve.upper).all()
    assert (
        found.curve.upper.max() <= 1.1 * found.curve.upper[-1]
    )  # no wide interval where replicas had no event yet
    assert found.five_year.estimate <= found.ten_year.estimate
    assert sum(found.contributions.values()) == pytest.approx(found.score)
    assert list(found.contributions) == ["image", "age", "psa", "t_stage", "gleason"]
    assert (
        found.curve.upper[1] < 1 or found.five_year.estimate > 0.5
    )  # early years are not undetermined
    assert found.percentile is None or 0 <= found.percentile <= 100


def test_the_interval_holds_the_true_risk_of_new_patients(model: RiskModel) -> None:
    embeddings, men, _, _, true = registry(1)
    found = [
        model.predict(embedding, man).ten_year
        for embedding, man in zip(embeddings, men, strict=True)
    ]
    covered = np.mean(
        [risk.lower <= value <= risk.upper for risk, value in zip(found, true, strict=True)]
    )
    assert covered > 0.85
    assert np.mean([risk.upper - risk.lower for risk in found]) < 0.35
    assert np.corrcoef([risk.estimate for risk in found], true)[0, 1] > 0.93


def test_a_contribution_differs_from_none_only_where_outcomes_show_it(model: RiskModel) -> None:
    embeddings, men, time, event, _ = registry(0)
    order = np.random.default_rng(3).permutation(len(men))
    chance = fit_risk_model(embeddings, men, time[order], event[order], card=CARD, config=CONFIG)
    far = model.image_centre + np.linspace(1, 2, 6)
    assert "image" not in model.predict(far, MAN).no_effect
    assert "image" in chance.predict(far, MAN).no_effect


def test_each_contribution_says_what_its_variable_does(model: RiskModel) -> None:
    embedding = model.image_centre
    base = model.predict(embedding, MAN)
    for change, name in (
        ({"psa": 32.0}, "psa"),
        ({"t_stage": "T3b"}, "t_stage"),
        ({"primary": 5}, "gleason"),
        ({"age": 80}, "age"),
    ):
        changed = model.predict(embedding, replace(MAN, **change))  # type: ignore[arg-type]
        moved = {
            part
            for part in base.contributions
            if changed.contributions[part] != base.contributions[part]
        }
        assert moved == {name}
        assert changed.ten_year.estimate != base.ten_year.estimate
    assert base.contributions["image"] == pytest.approx(0, abs=1e-9)
    assert (
        model.predict(embedding, replace(MAN, psa=64.0)).ten_year.estimate > base.ten_year.estimate
    )


def test_values_outside_the_training_range_are_flagged(model: RiskModel) -> None:
    assert model.predict(model.image_centre, MAN).outside_training_range == []
    old = model.predict(model.image_centre + 1000, replace(MAN, age=99, psa=4000.0))
    assert old.outside_training_range == ["image", "age", "psa"]


def test_the_percentile_is_among_men_of_the_same_nccn_group(model: RiskModel) -> None:
    embeddings, men, *_ = registry(0)
    group = [k for k, man in enumerate(men) if man.nccn.tier == "high"]
    scores = np.array([model.predict(embeddings[k], men[k]).score for k in group])
    middle = group[int(np.argsort(scores)[len(group) // 2])]
    assert model.predict(embeddings[middle], men[middle]).percentile == pytest.approx(50, abs=2)
    few = fit_risk_model(
        *registry(0)[:4],
        card={"simulated_outcomes": True},
        config=replace(CONFIG, replicas=2, min_group=10_000),
    )
    assert few.predict(embeddings[0], men[0]).percentile is None


def test_an_image_that_never_varies_has_no_say() -> None:
    _, men, time, event, _ = registry(0)
    blind = fit_risk_model(
        np.ones((len(men), 6)),
        men,
        time,
        event,
        card={"simulated_outcomes": True},
        config=replace(CONFIG, replicas=2),
    )
    assert blind.predict(np.ones(6), MAN).contributions["image"] == 0
    assert len(blind.image_components) == 0


def test_a_saved_model_predicts_the_same(model: RiskModel, tmp_path: Path) -> None:
    saved = save_risk_model(str(tmp_path), model)
    loaded = load_risk_model(str(tmp_path))
    embedding = np.linspace(-1, 1, 6)
    ours, theirs = model.predict(embedding, MAN), loaded.predict(embedding, MAN)
    np.testing.assert_array_equal(ours.curve.upper, theirs.curve.upper)
    assert replace(ours, curve=theirs.curve) == theirs
    assert saved.hash == loaded.hash
    assert json.loads((tmp_path / "card.json").read_text())["simulated_outcomes"] is True


def test_the_seed_decides_the_interval_and_not_the_estimate() -> None:
    data = registry(2)[:4]
    one, same, other = (
        fit_risk_model(
            *data, card={"simulated_outcomes": True}, config=replace(CONFIG, replicas=4), seed=seed
        ).predict(np.zeros(6), MAN)
        for seed in (0, 0, 1)
    )
    assert one.ten_year == same.ten_year
    assert one.ten_year.estimate == other.ten_year.estimate
    assert one.ten_year.upper != other.ten_year.upper


def test_embeddings_and_files_of_another_model_are_refused(
    model: RiskModel, tmp_path: Path
) -> None:
    with pytest.raises(SpecMismatch, match=r"takes \[6\] against the slide embedding is \[5\]"):
        model.predict(np.zeros(5), MAN)
    with pytest.raises(ValueError, match="not finite"):
        model.predict(np.full(6, np.nan), MAN)
    with pytest.raises(ModelNotFound, match="no risk-model here"):
        load_risk_model(str(tmp_path))
    save_risk_model(str(tmp_path), model)
    card = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps({**card, "hash": "0" * 64}))
    with pytest.raises(BrokenModel, match="its card says"):
        load_risk_model(str(tmp_path))


def test_short_follow_up_gives_no_ten_year_risk() -> None:
    embeddings, men, time, event, _ = registry(0)
    with pytest.raises(InsufficientData, match=r"longest follow-up is 8\.0 years"):
        fit_risk_model(
            embeddings, men, np.minimum(time, 8.0), event, card={"simulated_outcomes": True}
        )
