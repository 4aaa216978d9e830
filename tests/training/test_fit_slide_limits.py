"""Cohorts at the limit of what can be learnt from, and beyond it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.hand_made import make_cohort, make_encoder
from training.errors import InsufficientData
from training.slide.fit_slide import FitSlideConfig, fit_slide
from training.slide.labelled_slides import LabelledCohort, load_labelled_slides
from training.slide.slide_model import AttentionConfig

FAST: dict[str, Any] = {
    "attention": AttentionConfig(hidden=8, attention=4, epochs=2),
    "stain_views": 0,
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["4+4", "4+4", "4+4"], r"^3 slides have grade groups \[4\]: two different grade groups"),
        (["3+4"], r"^1 slide has grade groups \[2\]: two different grade groups are needed"),
        (["benign"] * 3, r"^288 labelled patches show \['benign'\]: two patterns are needed"),
        (["3+9", "GG7"], r"no usable labelled slide: .*slide-0.* '3\+9'.*slide-1.* 'GG7'"),
    ],
)
def test_what_nothing_can_be_learnt_from_is_said_and_nothing_written(
    encoder: str, tmp_path: Path, labels: list[str], said: str
) -> None:
    data = make_cohort(tmp_path / "data", encoder, labels)
    out = tmp_path / "model"
    with pytest.raises(InsufficientData, match=said):
        fit_slide(FitSlideConfig(data=data, encoder=encoder, out=str(out), **FAST))
    assert not out.exists()


def test_a_slide_of_one_patch_is_fitted_with_the_others(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*args: Any, **options: Any) -> LabelledCohort:
        """The cohort with one patch of its last slide."""
        cohort = load_labelled_slides(*args, **options)
        [*others, last] = cohort.slides
        bag = replace(
            last.bag, x=last.bag.x[:1], y=last.bag.y[:1], embeddings=last.bag.embeddings[:1]
        )
        return replace(cohort, slides=[*others, replace(last, bag=bag, patterns=last.patterns[:1])])

    monkeypatch.setattr("training.slide.fit_slide.load_labelled_slides", cut)
    data = make_cohort(tmp_path / "data", encoder, ["benign", "3+3", "4+4"] * 2)
    report = fit_slide(
        FitSlideConfig(data=data, encoder=encoder, out=str(tmp_path / "model"), **FAST, folds=2)
    )
    assert report.patches == 5 * 96 + 1
    assert len(report.held_out) == 6
    assert len(report.figures) == 4
