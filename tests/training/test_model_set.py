"""A model set is refused unless its three models were made for each other."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.hand_made import SPEC, make_encoder
from training.encoder.encoder import load_encoder
from training.errors import BrokenModel, ModelNotFound, SpecMismatch
from training.model_set import ENCODER, RISK_MODEL, SLIDE_MODEL, ModelSet, load_model_set
from training.risk.covariates import T_STAGES, Covariates
from training.risk.fitting import Patients, RiskModelConfig, fit_risk_model
from training.risk.risk_model import save_risk_model
from training.slide.pattern_head import fit_pattern_head
from training.slide.slide_model import AttentionConfig, SlideModel, fit_attention, save_slide_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelSet:
    return fitted(tmp_path_factory.mktemp("set"))


def fitted(folder: Path, encoder_name: str | None = None) -> ModelSet:
    """A tiny set on random embeddings; a named encoder is not in its folder."""
    rng = np.random.default_rng(0)
    encoder = load_encoder(encoder_name or make_encoder(folder / ENCODER))
    bags = [rng.normal(size=(20, encoder.dimension)).astype(np.float32) for _ in range(3)]
    slide_model = SlideModel(
        head=fit_pattern_head(np.concatenate(bags), np.arange(60) % 4),
        attention=fit_attention(bags, [0, 1, 2], AttentionConfig(hidden=4, attention=2, epochs=2)),
        card={"encoder_hash": encoder.hash, "spec": encoder.spec.to_dict()},
    )
    slide_model = save_slide_model(str(folder / SLIDE_MODEL), slide_model)
    men = [
        Covariates(
            age=50 + k % 30, psa=2 + k % 9, t_stage=T_STAGES[k % 6], primary=3 + k % 3, secondary=4
        )
        for k in range(80)
    ]
    card = {
        "encoder_hash": encoder.hash,
        "slide_model_hash": slide_model.hash,
        "simulated_outcomes": True,
    }
    risk_model = fit_risk_model(
        Patients(
            embeddings=rng.normal(size=(80, 8)),
            covariates=men,
            time=rng.uniform(1, 12, 80),
            cause=(rng.random(80) < 0.5).astype(np.int64),
        ),
        card=card,
        config=RiskModelConfig(replicas=2),
    )
    save_risk_model(str(folder / RISK_MODEL), risk_model)
    return load_model_set(str(folder), encoder=encoder_name)


def written(
    models: ModelSet,
    folder: Path,
    *,
    slide: dict[str, object] | None = None,
    risk: dict[str, object] | None = None,
) -> str:
    """The set, with changes to cards."""
    make_encoder(folder / ENCODER)
    save_slide_model(
        str(folder / SLIDE_MODEL),
        replace(models.slide_model, card={**models.slide_model.card, **(slide or {})}),
    )
    save_risk_model(
        str(folder / RISK_MODEL),
        replace(models.risk_model, card={**models.risk_model.card, **(risk or {})}),
    )
    return str(folder)


def test_a_set_that_belongs_together_loads(models: ModelSet, tmp_path: Path) -> None:
    found = load_model_set(written(models, tmp_path))
    assert found.spec == SPEC
    assert found.slide_model.hash == models.slide_model.hash
    assert found.risk_model.hash == models.risk_model.hash


@pytest.mark.parametrize(
    ("change", "said", "remedy"),
    [
        (
            {"slide": {"encoder_hash": "a" * 64}},
            "encoder hash",
            "fit the slide model on this encoder",
        ),
        (
            {"risk": {"encoder_hash": "a" * 64}},
            "encoder hash",
            "fit the risk model on this encoder",
        ),
        (
            {"risk": {"slide_model_hash": "a" * 64}},
            "slide model hash",
            "fit the risk model on this slide model",
        ),
        (
            {"slide": {"spec": {**SPEC.to_dict(), "mpp": 1.0}}},
            "patch specification",
            "prepare the slides",
        ),
    ],
)
def test_a_set_that_does_not_is_refused_with_both_values_and_the_remedy(
    models: ModelSet, tmp_path: Path, change: dict[str, dict[str, object]], said: str, remedy: str
) -> None:
    with pytest.raises(SpecMismatch) as raised:
        load_model_set(written(models, tmp_path, **change))
    assert str(raised.value).startswith(f"{said} differs: ")
    assert raised.value.ours in str(raised.value)
    assert raised.value.theirs in str(raised.value)
    assert raised.value.ours != raised.value.theirs
    assert remedy in str(raised.value)


@pytest.mark.parametrize("part", [ENCODER, SLIDE_MODEL, RISK_MODEL])
def test_a_part_that_is_missing_or_of_another_kind_is_named(
    models: ModelSet, tmp_path: Path, part: str
) -> None:
    uri = written(models, tmp_path)
    other = RISK_MODEL if part != RISK_MODEL else ENCODER
    shutil.rmtree(tmp_path / part)
    with pytest.raises(ModelNotFound, match=f"{part} holds no card.json"):
        load_model_set(uri)
    shutil.copytree(tmp_path / other, tmp_path / part)
    with pytest.raises(ModelNotFound, match="give the folder of one"):
        load_model_set(uri)


def test_weights_that_were_exchanged_are_noticed(models: ModelSet, tmp_path: Path) -> None:
    uri = written(models, tmp_path)
    weights = tmp_path / SLIDE_MODEL / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\7")
    with pytest.raises(BrokenModel, match="copy both files of one model"):
        load_model_set(uri)
