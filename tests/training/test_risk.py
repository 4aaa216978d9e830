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
from training.risk.fitting import DEFAULT_RISK, Patients, fit_risk_model, require_ten_years
from training.risk.hazards import incidence
from training.risk.prediction import CANCER_DEATH, METASTASIS, OTHER_DEATH
from training.risk.risk_model import RiskModel, load_risk_model, save_risk_model
from training.risk.simulated_outcomes import DRAWN_STAGES

CONFIG = replace(DEFAULT_RISK, components=2, replicas=16)
MAN = Covariates(
    age=66, psa=8.0, t_stage="T2a", primary=3, secondary=4, positive_cores=3, total_cores=12
)
CARD = {"simulated_outcomes": True, "encoder_hash": "e" * 64, "slide_model_hash": "s" * 64}


TEN = -1
"""The place of ten years in a curve."""


def registry(seed: int, count: int = 500) -> tuple[Patients, np.ndarray]:
    """Made-up men and their true 10-year risk of metastasis. One image factor counts, and the
    treatment helps where it is large.
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
            positive_cores=int(rng.integers(1, 13)),
            total_cores=12,
        )
        for _ in range(count)
    ]
    encoded = np.array([man.encode() for man in men])
    score = (encoded - encoded.mean(axis=0)) @ [0.1, 0.3, 0.2, 0.5, 0.3, 0.3] + 0.6 * image
    treated = rng.random(count) < 0.5
    hazard, death = 0.02 * np.exp(score), np.full(count, 0.02)
    metastasis = rng.exponential(1 / (hazard * np.exp(treated * (-0.3 - 0.5 * image))))
    times = np.stack([rng.uniform(6, 14, count), metastasis, rng.exponential(1 / death)])
    men_known = Patients(
        covariates=men,
        time=times.min(axis=0),
        cause=np.array([0, 1, 3])[times.argmin(axis=0)],
        embeddings=embeddings,
        treated=treated,
        treatment="short-term ADT",
        randomised=True,
    )
    both = hazard + death
    return men_known, hazard / both * -np.expm1(-10 * both)


def with_gaps(patients: Patients, share: float = 0.3) -> Patients:
    """The same, where PSA and T stage of some men are missing, likelier of the older ones."""
    rng = np.random.default_rng(9)
    ages = np.array([man.age for man in patients.covariates], np.float64)
    likely = share * 2 * (ages - ages.min()) / (ages.max() - ages.min())
    men = [
        replace(
            man,
            psa=None if rng.random() < chance else man.psa,
            t_stage=None if rng.random() < chance else man.t_stage,
        )
        for man, chance in zip(patients.covariates, likely, strict=True)
    ]
    return replace(patients, covariates=men)


@pytest.fixture(scope="module")
def model() -> RiskModel:
    return fit_risk_model(registry(0)[0], card=CARD, config=CONFIG)


def test_risk_is_that_of_the_formula(model: RiskModel) -> None:
    """Hazards that are constant within a quarter, summed up by hand."""
    embedding = np.array([1.0, 1.2, 1.4, 1.6, 1.8, 2.0])
    image = model.image_components @ (embedding - model.image_centre)
    columns = (np.append(image, MAN.encode()) - model.centre) / model.scale
    free, reached = 1.0, np.zeros(2)
    for quarter in range(40):
        hazard = np.exp(model.log_baseline[0, :, quarter] + model.coefficients[0] @ columns)
        falls = free * (1 - np.exp(-hazard.sum() / 4))
        reached += falls * hazard / hazard.sum()
        free -= falls
    found = model.predict(embedding, MAN)
    assert found.ten_year.estimate == pytest.approx(reached[0])
    other = found.ten_year_of(OTHER_DEATH)
    assert other is not None
    assert other.estimate == pytest.approx(reached[1])
    assert found.ten_year_of(CANCER_DEATH) is None  # nobody of the cohort had it first
    assert found.simulated_outcomes


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=3), st.floats(-9, 3))
def test_incidences_and_the_chance_of_no_event_sum_to_one(ratios: list[float], base: float) -> None:
    found = incidence(np.full((3, 40), base), np.array(ratios))
    hazard = np.exp(np.minimum(np.minimum(ratios, 12.0) + np.full(3, base), 12.0)).sum()
    np.testing.assert_allclose(found.sum(axis=0)[-1] + np.exp(-10 * hazard), 1.0, atol=1e-9)
    assert (np.diff(found, axis=1) >= 0).all()


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
    man = replace(MAN, age=age, psa=psa, t_stage=stage, primary=4, secondary=5)
    found = model.predict(np.full(6, image, np.float32), man)
    for curve in found.curves.values():
        for line in (curve.estimate, curve.lower, curve.upper):
            assert line[0] == 0
            assert ((line >= 0) & (line <= 1)).all()
        assert (np.diff(curve.estimate) >= 0).all()
        assert (curve.lower <= curve.estimate + 1e-12).all()
        assert (curve.estimate <= curve.upper + 1e-12).all()
    assert sum(curve.estimate[TEN] for curve in found.curves.values()) <= 1 + 1e-9
    assert found.five_year.estimate <= found.ten_year.estimate
    assert sum(found.contributions.values()) == pytest.approx(found.score)
    names = ["image", "age", "psa", "t_stage", "gleason", "positive_cores"]
    assert list(found.contributions) == names
    assert found.percentile is None or 0 <= found.percentile <= 100


@pytest.mark.parametrize("gaps", [False, True])
def test_the_interval_holds_the_true_risk_of_new_patients(gaps: bool) -> None:
    """Also where a third of the men had no PSA or T stage when the model was fitted."""
    patients, _ = registry(0)
    fitted = with_gaps(patients) if gaps else patients
    model = fit_risk_model(fitted, card=CARD, config=replace(CONFIG, replicas=40))
    men, true = registry(1)
    found, lower, upper = model.ten_year_risks(list(men.embeddings), men.covariates)
    assert ((lower <= true) & (true <= upper)).mean() > 0.85
    assert (upper - lower).mean() < 0.4
    assert np.corrcoef(found, true)[0, 1] > 0.93


def test_what_is_missing_is_averaged_over_given_what_is_known(model: RiskModel) -> None:
    """The risk without PSA is between those with a low and a high one; more is missing, the wider
    the interval or the nearer the average; a cohort of such men is predicted right on average.
    """
    embedding = model.image_centre
    gone = model.predict(embedding, replace(MAN, psa=None))
    low, high = (model.predict(embedding, replace(MAN, psa=psa)) for psa in (2.0, 40.0))
    assert low.ten_year.estimate < gone.ten_year.estimate < high.ten_year.estimate
    assert gone.missing == ("psa",)
    assert gone.nccn is None
    assert gone.percentile is None
    nothing = model.predict(None, Covariates())
    assert nothing.missing == ("image", "age", "psa", "t_stage", "gleason", "positive_cores")
    assert nothing.outside_training_range == []
    men, _ = registry(1)
    every = model.ten_year_risks(list(men.embeddings), men.covariates)[0].mean()
    no_image = model.ten_year_risks([None] * len(men), men.covariates)[0].mean()
    assert no_image == pytest.approx(every, rel=0.05)
    assert nothing.ten_year.estimate == pytest.approx(every, rel=0.1)


def test_coefficients_are_found_where_values_are_missing() -> None:
    """Older men have gaps: means of the others in their place would bend what PSA does."""
    patients, _ = registry(4, 6000)
    complete, gaps = (
        fit_risk_model(each, card=CARD, config=replace(CONFIG, replicas=2)).hazard_ratios()
        for each in (patients, with_gaps(patients))
    )
    assert gaps == pytest.approx(complete, rel=0.05)


def test_a_treatment_s_benefit_is_found_with_what_it_depends_on(model: RiskModel) -> None:
    large = model.image_centre + 1.5 * np.linspace(1, 2, 6)
    small = model.image_centre - 1.5 * np.linspace(1, 2, 6)
    much, little = model.predict(large, MAN).benefit, model.predict(small, MAN).benefit
    assert much is not None
    assert little is not None
    assert much.hazard_ratio.estimate < 1
    assert much.hazard_ratio.estimate < little.hazard_ratio.estimate
    assert much.reduction.estimate == pytest.approx(
        much.without_treatment.estimate - much.with_treatment.estimate
    )
    assert much.reduction.lower > 0
    assert little.reduction.lower < 0
    assert (much.treatment, much.randomised) == ("short-term ADT", True)
    assert model.card["interaction_p_value"] < 0.05


def test_no_benefit_is_stated_where_all_had_the_same_treatment() -> None:
    patients = replace(registry(0)[0], treated=None, treatment="", randomised=False)
    found = fit_risk_model(patients, card=CARD, config=replace(CONFIG, replicas=2))
    assert found.predict(found.image_centre, MAN).benefit is None
    assert found.card["interaction_p_value"] is None


def test_a_cohort_without_metastases_has_cancer_death_as_its_endpoint() -> None:
    patients, _ = registry(0)
    died = replace(patients, cause=np.where(patients.cause == 1, 2, patients.cause))
    found = fit_risk_model(died, card=CARD, config=replace(CONFIG, replicas=2))
    risk = found.predict(found.image_centre, MAN)
    assert risk.endpoint == CANCER_DEATH
    assert risk.ten_year_of(METASTASIS) is None
    assert set(risk.curves) == {CANCER_DEATH, OTHER_DEATH}


def test_a_model_without_image_takes_none(tmp_path: Path) -> None:
    fitted = fit_risk_model(registry(0)[0].without_image(), card=CARD, config=CONFIG)
    save_risk_model(str(tmp_path), fitted)
    model = load_risk_model(str(tmp_path))
    assert not model.needs_image
    found = model.predict(None, replace(MAN, t_stage=None))
    assert found.missing == ("t_stage",)
    assert "image" not in found.contributions


def test_a_variable_that_no_patient_had_plays_no_part() -> None:
    patients, _ = registry(0)
    men = [replace(man, positive_cores=None, total_cores=None) for man in patients.covariates]
    model = fit_risk_model(
        replace(patients, covariates=men), card=CARD, config=replace(CONFIG, replicas=2)
    )
    without = replace(MAN, positive_cores=None, total_cores=None)
    found, same = (model.predict(model.image_centre, man) for man in (MAN, without))
    assert "positive_cores" not in found.contributions
    assert found.missing == same.missing == ()
    assert found.ten_year == same.ten_year


def test_a_contribution_differs_from_none_only_where_outcomes_show_it(model: RiskModel) -> None:
    patients, _ = registry(0)
    order = np.random.default_rng(3).permutation(len(patients))
    shuffled = replace(patients, time=patients.time[order], cause=patients.cause[order])
    chance = fit_risk_model(shuffled, card=CARD, config=CONFIG)
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


def test_an_image_beyond_those_of_training_counts_as_the_farthest_of_them(model: RiskModel) -> None:
    far, farther = (
        model.predict(model.image_centre + step * np.linspace(1, 2, 6), MAN) for step in (20, 2000)
    )
    assert far.ten_year.estimate == pytest.approx(farther.ten_year.estimate)
    assert far.ten_year.estimate < 0.9
    assert "image" in far.outside_training_range
    parts = model.columns([model.image_centre + np.linspace(1, 2, 6)], [MAN])[0]
    np.testing.assert_array_equal(model.held(parts), parts)  # within, nothing moves


def test_the_percentile_is_among_men_of_the_same_nccn_group(model: RiskModel) -> None:
    patients, _ = registry(0)
    embeddings, men = patients.embeddings, patients.covariates
    group = [k for k, man in enumerate(men) if man.nccn is not None and man.nccn.tier == "high"]
    scores = np.array([model.predict(embeddings[k], men[k]).score for k in group])
    middle = group[int(np.argsort(scores)[len(group) // 2])]
    assert model.predict(embeddings[middle], men[middle]).percentile == pytest.approx(50, abs=2)
    few = fit_risk_model(patients, card=CARD, config=replace(CONFIG, replicas=2, min_group=10_000))
    assert few.predict(embeddings[0], men[0]).percentile is None


def test_an_image_that_never_varies_has_no_say() -> None:
    patients = replace(registry(0)[0], embeddings=np.ones((500, 6)))
    blind = fit_risk_model(patients, card=CARD, config=replace(CONFIG, replicas=2))
    assert "image" not in blind.predict(np.ones(6), MAN).contributions
    assert len(blind.image_components) == 0


def test_a_saved_model_predicts_the_same(model: RiskModel, tmp_path: Path) -> None:
    saved = save_risk_model(str(tmp_path), model)
    loaded = load_risk_model(str(tmp_path))
    embedding = np.linspace(-1, 1, 6)
    ours, theirs = model.predict(embedding, MAN), loaded.predict(embedding, MAN)
    np.testing.assert_array_equal(ours.curve.upper, theirs.curve.upper)
    assert replace(ours, curves=theirs.curves) == theirs
    assert saved.hash == loaded.hash
    assert json.loads((tmp_path / "card.json").read_text())["simulated_outcomes"] is True


def test_the_seed_decides_the_interval_and_not_the_estimate() -> None:
    patients, _ = registry(2)
    one, same, other = (
        fit_risk_model(patients, card=CARD, config=replace(CONFIG, replicas=4), seed=seed).predict(
            np.zeros(6), MAN
        )
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


def test_a_model_of_an_earlier_version_is_refused(model: RiskModel, tmp_path: Path) -> None:
    save_risk_model(str(tmp_path), model)
    card = json.loads((tmp_path / "card.json").read_text())
    del card["causes"]
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(BrokenModel, match="causes"):
        load_risk_model(str(tmp_path))


def test_short_follow_up_gives_no_ten_year_risk() -> None:
    patients, _ = registry(0)
    with pytest.raises(InsufficientData, match=r"longest follow-up is 8\.0 years"):
        require_ten_years(replace(patients, time=np.minimum(patients.time, 8.0)))


def test_values_beyond_those_of_training_are_held_at_their_ends(model: RiskModel) -> None:
    ends = [model.predict(model.image_centre, replace(MAN, psa=psa)) for psa in (2000.0, 4000.0)]
    assert ends[0].ten_year == ends[1].ten_year
    assert ends[0].outside_training_range == ["psa"]


def test_events_after_fifteen_years_do_not_count() -> None:
    patients, _ = registry(0)
    late = replace(patients, time=patients.time + 15.0)
    assert late.events() == {}
    with pytest.raises(InsufficientData, match="0 of 500 patients have the event"):
        fit_risk_model(late, card=CARD, config=CONFIG)


def test_an_interaction_is_tested_only_where_events_allow_it() -> None:
    patients, _ = registry(0)
    alone = replace(patients.without_image(), covariates=[MAN] * len(patients))
    found = fit_risk_model(alone, card=CARD, config=replace(CONFIG, replicas=2))
    assert found.card["interaction_p_value"] is None


def test_few_events_are_refused() -> None:
    patients, _ = registry(0)
    events = np.flatnonzero(patients.cause == 1)
    cause = patients.cause.copy()
    cause[events[5:]] = 0
    with pytest.raises(InsufficientData, match="5 of 500 patients have the event distant metast"):
        fit_risk_model(replace(patients, cause=cause), card=CARD, config=CONFIG)
