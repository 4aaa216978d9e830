"""Attention and the mean behind one interface, and the choice between them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.hand_made import make_cohort, make_encoder
from tests.training.test_slide_model import SMALL, slides
from training.slide import fit_slide as fitting
from training.slide.fit_slide import FitSlideConfig, fit_slide
from training.slide.held_out import FitConfig, HeldOut
from training.slide.slide_model import fit_attention, load_slide_model

MEAN = replace(SMALL, aggregator="mean", epochs=20)


def test_the_mean_weighs_all_patches_the_same_and_learns_the_rest() -> None:
    bags, _, groups = slides(0)
    model = fit_attention(bags, groups, MEAN)
    means = []
    for bag in bags:
        with torch.inference_mode():
            attention, embedding, logits = model(torch.from_numpy(bag))
        np.testing.assert_allclose(attention, 1 / len(bag), rtol=1e-5)
        np.testing.assert_allclose(embedding[:8], embedding[8:], atol=1e-5)
        means.append(float(logits.mean()))
    assert np.corrcoef(means, groups)[0, 1] > 0.8


@pytest.mark.parametrize("better", ["attention", "mean"])
def test_the_better_aggregator_is_taken_and_both_losses_are_in_the_card(
    better: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: dict[str, float] = {}

    def worse(slides: object, fit: FitConfig, *, folds: int) -> HeldOut:
        """The evaluation, with a larger loss of the other aggregator."""
        found = evaluate(slides, fit, folds=folds)  # type: ignore[arg-type]
        assert found.group_calibration is not None
        aggregator = fit.attention.aggregator
        losses[aggregator] = found.group_calibration.loss_after + 5.0 * (aggregator != better)
        calibration = replace(found.group_calibration, loss_after=losses[aggregator])
        return replace(found, group_calibration=calibration)

    evaluate = fitting.evaluate
    monkeypatch.setattr(fitting, "evaluate", worse)
    encoder = make_encoder(tmp_path / "encoder")
    report = fit_slide(
        FitSlideConfig(
            data=make_cohort(tmp_path / "data", encoder, ["benign", "3+3", "4+4"] * 2),
            encoder=encoder,
            out=str(tmp_path / "model"),
            attention=replace(MEAN, aggregator="attention", epochs=3),
            choose_aggregator=True,
            stain_views=0,
            folds=2,
        )
    )
    model = load_slide_model(report.model)
    assert model.card["aggregator"] == better
    assert model.card["aggregator_losses"] == pytest.approx(losses)
    assert f"{better} is taken" in report.remarks[-1]
    assert model.card["config"]["attention"]["aggregator"] == better
    attention = model.predict(np.random.default_rng(0).normal(size=(9, 16)).astype("f4")).attention
    assert (np.ptp(attention) < 1e-6) == (better == "mean")


def test_no_choice_is_claimed_where_nothing_could_be_held_out(tmp_path: Path) -> None:
    encoder = make_encoder(tmp_path / "encoder")
    report = fit_slide(
        FitSlideConfig(
            data=make_cohort(tmp_path / "data", encoder, ["benign", "3+4"]),
            encoder=encoder,
            out=str(tmp_path / "model"),
            attention=replace(MEAN, aggregator="attention", epochs=2),
            choose_aggregator=True,
            stain_views=0,
        )
    )
    assert not any("aggregator" in remark for remark in report.remarks)
    card = load_slide_model(report.model).card
    assert card["aggregator"] == "attention"
    assert card["aggregator_losses"] == {"attention": None, "mean": None}
