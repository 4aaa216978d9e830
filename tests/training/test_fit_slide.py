"""From a prepared cohort to a slide model: what is learnt, how it is scored, and what is said where
something is wrong.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from pipelines.cohort import CohortError
from pipelines.grid import PatchSpec
from tests.support.hand_made import SPEC, make_cohort, make_encoder
from training.encoder.embed import Bag
from training.encoder.encoder import load_encoder
from training.errors import InsufficientData, SpecMismatch
from training.slide.figures import attention_figure
from training.slide.fit_slide import FitSlideConfig, FitSlideReport, fit_slide
from training.slide.gleason import parse_label
from training.slide.held_out import (
    FitConfig,
    cases_of_several,
    evaluate,
    folds_by_case,
    held_out_shares,
)
from training.slide.labelled_slides import LabelledSlide, load_labelled_slides
from training.slide.scores import (
    HeldOutSlide,
    confusion_of,
    error_rates,
    score_areas,
    score_patches,
    score_readings,
)
from training.slide.slide_model import AttentionConfig, SlidePrediction, load_slide_model

LABELS = ["benign", "3+3", "3+4", "4+3", "4+4", "5+4", "benign", "3+3", "3+4"]
QUICK = AttentionConfig(hidden=8, attention=4, epochs=25, learning_rate=1e-2)
FAST = {"attention": QUICK, "stain_views": 0}
"""The cohort's slides are embeddings without pixels: they have no stain views."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def config(encoder: str, tmp_path_factory: pytest.TempPathFactory) -> FitSlideConfig:
    folder = tmp_path_factory.mktemp("cohort")
    return FitSlideConfig(
        data=make_cohort(folder / "data", encoder, LABELS),
        encoder=encoder,
        out=str(folder / "model"),
        **FAST,
        folds=3,
    )


@pytest.fixture(scope="module")
def report(config: FitSlideConfig) -> FitSlideReport:
    return fit_slide(config)


def test_held_out_patches_and_slides_are_named_right(report: FitSlideReport) -> None:
    assert (report.slides, report.patches) == (9, 9 * 96)
    assert report.patch_score is not None
    assert report.slide_score is not None
    assert report.patch_score.patches == 9 * 96
    assert report.patch_score.chance == 0.25
    assert (
        report.patch_score.balanced_accuracy > 0.7
    )  # pattern 5 is on one slide only: held out, nothing knows it
    assert report.slide_score.slides == len(report.held_out) == 9
    assert report.slide_score.area_kappa is not None
    assert report.slide_score.area_kappa > 0.8
    assert report.failed == []
    assert report.without_label == {}
    assert "9 held-out slides" in report.remarks[-1]


def test_the_model_card_says_what_it_depends_on(
    config: FitSlideConfig, report: FitSlideReport
) -> None:
    card = load_slide_model(report.model).card
    encoder = load_encoder(config.encoder)
    assert card["encoder_hash"] == encoder.hash
    assert PatchSpec.from_dict(card["spec"]) == SPEC
    assert card["hash"] == report.model_hash
    assert card["data"]["slides"] == 9
    assert len(card["data"]["labels_sha256"]) == 64
    assert report.patch_score is not None
    accuracy = report.patch_score.balanced_accuracy
    assert card["metrics"]["patch"]["balanced_accuracy"] == accuracy
    assert {"acinus", "torch", "scikit-learn"} <= card["versions"].keys()
    text = json.dumps(card)
    assert "slide-0" not in text.replace("slide-model", "")  # no file name of a slide
    assert "/nowhere" not in text


def test_the_card_says_how_probabilities_were_calibrated(report: FitSlideReport) -> None:
    model = load_slide_model(report.model)
    assert report.patch_calibration is not None
    assert report.group_calibration is not None
    assert model.patch_temperature == report.patch_calibration.temperature
    assert model.group_temperature == report.group_calibration.temperature
    stated = model.card["calibration"]
    assert stated["patches"]["answers"] == 9 * 96
    assert stated["grade_groups"]["error_after"] == report.group_calibration.error_after


def test_the_saved_model_knows_what_it_was_fitted_on(
    config: FitSlideConfig, report: FitSlideReport
) -> None:
    model = load_slide_model(report.model)
    [slide, *_] = load_labelled_slides(config.data, load_encoder(config.encoder)).slides
    known = model.likeness(slide.bag.embeddings, None)
    other = model.likeness(slide.bag.embeddings + 30.0, None)
    assert known is not None
    assert other is not None
    assert (known.inside, other.inside) == (True, False)
    assert known.false_alarms == report.false_alarms == pytest.approx(0.1)


def test_the_saved_model_grades_a_slide_it_knows(
    config: FitSlideConfig, report: FitSlideReport
) -> None:
    cohort = load_labelled_slides(config.data, load_encoder(config.encoder), split="train")
    model = load_slide_model(report.model)
    assert len(cohort.slides) == 9
    for slide in cohort.slides:
        assert model.grade(model.predict(slide.bag.embeddings)).grade_group == slide.grade_group


def test_the_same_config_gives_the_same_model(
    config: FitSlideConfig, report: FitSlideReport, tmp_path: Path
) -> None:
    again = fit_slide(replace(config, out=str(tmp_path)))
    assert again.model_hash == report.model_hash
    assert again.held_out == report.held_out


def test_report_and_pictures_are_written_next_to_the_model(
    report: FitSlideReport, config: FitSlideConfig
) -> None:
    stored = json.loads(Path(config.out, "report.json").read_text())
    assert stored["model_hash"] == report.model_hash
    assert [Path(uri).name for uri in report.figures] == [
        "confusion.png",
        "reliability.png",
        "grades.png",
        "attention.png",
    ]
    for name in ("confusion.png", "reliability.png", "grades.png", "attention.png"):
        picture = np.asarray(
            Image.open(io.BytesIO(Path(config.out, name).read_bytes())).convert("L")
        )
        assert min(picture.shape) > 300
        assert picture.std() > 10


def test_nothing_is_embedded_twice(config: FitSlideConfig) -> None:
    """The slides' pixels do not exist: had a stored shard been computed again, this would fail."""
    reported: list[tuple[int, int]] = []
    load_labelled_slides(
        config.data,
        load_encoder(config.encoder),
        on_shard=lambda done, total: reported.append((done, total)),
    )
    assert reported[-1] == (18, 18)


def slides_of(cases: list[tuple[str, str]]) -> list[LabelledSlide]:
    bag = Bag(
        slide_id="s",
        patch_side=32.0,
        x=np.zeros(1, np.int32),
        y=np.zeros(1, np.int32),
        embeddings=np.zeros((1, 2), np.float32),
    )
    return [
        LabelledSlide(
            name=f"{k}",
            case=case,
            score=parse_label(label),
            bag=bag,
            patterns=np.zeros(1, np.int8),
        )
        for k, (case, label) in enumerate(cases)
    ]


def test_patches_far_apart_are_drawn_one_pixel_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """With gaps of 3 and 5 patches, positions do not give the side of a patch."""
    [slide] = slides_of([("a", "3+3")])
    bag = Bag(
        slide_id="s",
        patch_side=32.0,
        x=np.array([0, 96, 256], np.int32),
        y=np.zeros(3, np.int32),
        embeddings=np.zeros((3, 2), np.float32),
    )
    found = SlidePrediction(
        patch_probabilities=np.eye(4, dtype=np.float32)[:3],
        attention=np.full(3, 1 / 3, np.float32),
        embedding=np.zeros(2, np.float32),
        grade_group_probabilities=np.eye(6, dtype=np.float32)[0],
        cancer_probability=0.0,
    )
    drawn: list[np.ma.MaskedArray[Any, Any]] = []
    show = Axes.imshow

    def noted(axes: Axes, picture: Any, **options: Any) -> Any:
        drawn.append(picture)
        return show(axes, picture, **options)

    monkeypatch.setattr(Axes, "imshow", noted)
    slide = replace(slide, bag=bag, patterns=np.array([0, 1, 2], np.int8))
    attention_figure([(slide, found)])
    assert len(drawn) == 3  # annotated, predicted, attention
    for picture in drawn:
        assert picture.shape == (1, 9)
        assert np.flatnonzero(~np.ma.getmaskarray(picture)[0]).tolist() == [0, 3, 8]


def test_folds_keep_a_case_together_and_spread_the_grades() -> None:
    slides = slides_of(
        [
            ("a", "benign"),
            ("a", "4+4"),
            ("b", "4+4"),
            ("c", "benign"),
            ("d", "benign"),
            ("e", "4+4"),
        ]
    )
    folds = folds_by_case(slides, 3)
    assert sorted(k for fold in folds for k in fold) == list(range(6))
    fold_of = {k: number for number, fold in enumerate(folds) for k in fold}
    assert fold_of[0] == fold_of[1]
    assert fold_of[3] != fold_of[4]
    assert len({fold_of[1], fold_of[2], fold_of[5]}) == 3
    assert len(folds_by_case(slides, 50)) == 5
    assert folds_by_case(slides_of([("a", "benign"), ("a", "3+3")]), 5) == []


def test_slides_of_one_case_are_together() -> None:
    slides = slides_of([("a", "benign"), ("b", "3+3"), ("a", "4+4"), ("c", "3+3"), ("a", "3+3")])
    assert cases_of_several(slides) == [[0, 2, 4]]


def test_confusion_and_rates_by_hand() -> None:
    patterns = np.array([0, 0, 1, 2, -1], np.int8)
    probabilities = np.eye(4, dtype=np.float32)[[0, 1, 1, 3, 2]]
    counts = confusion_of(patterns, probabilities)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    score = score_patches([counts, np.zeros((4, 4), np.int64)])
    assert score is not None
    assert (score.patches, score.slides, score.chance) == (4, 1, pytest.approx(1 / 3))
    assert score.balanced_accuracy == pytest.approx((0.5 + 1 + 0) / 3)
    assert score_patches([]) is None
    np.testing.assert_allclose(error_rates([counts])[0], [11 / 12, 1 / 12, 0, 0])
    np.testing.assert_array_equal(error_rates([]), np.eye(4))


def test_a_slides_own_annotations_have_no_say_in_its_held_out_grade() -> None:
    probabilities = np.eye(4, dtype=np.float32)[[0] * 6 + [1] * 4]
    found = SlidePrediction(
        patch_probabilities=probabilities,
        attention=np.full(10, 0.1, np.float32),
        embedding=np.zeros(2, np.float32),
        grade_group_probabilities=np.eye(6, dtype=np.float32)[0],
        cancer_probability=0.0,
    )
    wrong, right = (
        np.array([[600, 400, 0, 0], *np.zeros((3, 4), int)]),
        np.diag([500, 500, 500, 500]),
    )
    shares = held_out_shares({0: found, 1: found}, {0: wrong, 1: right})
    np.testing.assert_allclose(shares[0], [0.6, 0.4, 0, 0], atol=1e-6)
    assert shares[1][0] > 0.95


def test_all_tissue_of_a_benign_slide_is_benign_without_any_annotation(
    encoder: str, tmp_path: Path
) -> None:
    data = make_cohort(tmp_path, encoder, ["3+3", "benign"], annotation="")
    [tumour, benign] = load_labelled_slides(data, load_encoder(encoder)).slides
    assert set(tumour.patterns.tolist()) == {0, 1}
    assert set(benign.patterns.tolist()) == {0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": "GG3"}, "slide-8.svs has an unusable label"),
        ({"annotation": "file:///nowhere/lost.geojson"}, "lost.geojson is not there"),
        (
            {"label": "benign"},
            "slide-8.svs is labelled benign, but 72 patches are annotated as tumour",
        ),
    ],
)
def test_a_bad_slide_is_recorded_and_the_rest_is_used(
    encoder: str, tmp_path: Path, change: dict[str, str], said: str
) -> None:
    data = make_cohort(tmp_path, encoder, LABELS, **change)
    cohort = load_labelled_slides(data, load_encoder(encoder))
    assert len(cohort.slides) == 8
    assert len(cohort.failed) == 1
    assert said in str(cohort.failed[0])


def test_slides_without_label_are_left_out_and_named(encoder: str, tmp_path: Path) -> None:
    cohort = load_labelled_slides(
        make_cohort(tmp_path, encoder, ["benign", "3+3", "3+4"], label=""), load_encoder(encoder)
    )
    assert list(cohort.without_label.values()) == ["slide-2.svs"]
    assert len(cohort.slides) == 2


def test_slides_without_annotation_teach_the_grade_only(encoder: str, tmp_path: Path) -> None:
    data = make_cohort(tmp_path / "data", encoder, LABELS, annotation="")
    report = fit_slide(
        FitSlideConfig(
            data=data,
            encoder=encoder,
            out=str(tmp_path / "model"),
            attention=QUICK,
            stain_views=0,
            folds=2,
        )
    )
    assert report.slides == 9
    assert report.patch_score is not None
    assert report.patch_score.slides == 8
    assert report.slide_score is not None
    assert report.slide_score.slides == 9


def test_two_slides_are_learnt_from_and_no_figure_is_made_up(encoder: str, tmp_path: Path) -> None:
    data = make_cohort(tmp_path / "data", encoder, ["benign", "3+4"])
    report = fit_slide(
        FitSlideConfig(data=data, encoder=encoder, out=str(tmp_path / "model"), **FAST)
    )
    assert report.patch_score is report.slide_score is None
    assert report.held_out == report.figures == []
    assert any("could not be held out" in remark for remark in report.remarks)
    assert load_slide_model(report.model).hash == report.model_hash


def test_another_spec_split_or_grade_is_refused(encoder: str, tmp_path: Path) -> None:
    data = make_cohort(tmp_path / "data", encoder, ["3+3", "3+3"])
    with pytest.raises(InsufficientData, match="two different grade groups are needed"):
        fit_slide(
            FitSlideConfig(
                data=data,
                encoder=encoder,
                out=str(tmp_path / "model"),
                attention=QUICK,
                stain_views=0,
            )
        )
    with pytest.raises(CohortError, match="no slide of split 'test'"):
        fit_slide(
            FitSlideConfig(data=data, encoder=encoder, out=str(tmp_path / "model"), split="test")
        )
    other = make_cohort(
        tmp_path / "other", encoder, ["3+3"], spec=json.dumps(replace(SPEC, mpp=0.5).to_dict())
    )
    with pytest.raises(SpecMismatch, match=r"32 px at 2 um per pixel against 32 px at 0\.5"):
        fit_slide(FitSlideConfig(data=other, encoder=encoder, out=str(tmp_path / "model")))


def test_slides_that_cannot_be_used_are_named_where_the_rest_is_too_little(
    encoder: str, tmp_path: Path
) -> None:
    """One grade is left, because the other slides' labels are unusable: both are reported."""
    data = make_cohort(tmp_path / "data", encoder, ["3+3", "3+3", "high", "3+x"])
    config = FitSlideConfig(data=data, encoder=encoder, out=str(tmp_path / "out"), **FAST)
    with pytest.raises(InsufficientData) as caught:
        fit_slide(config)
    text = str(caught.value)
    assert "two different grade groups are needed" in text
    for slide, label in (("slide-2", "high"), ("slide-3", "3+x")):
        assert f"{slide}.svs has an unusable label" in text
        assert repr(label) in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": 0}, "folds is 0; it must be 2 or more"),
        ({"folds": 1}, "folds is 1; it must be 2 or more"),
        ({"seed": -1}, "seed is -1; it must be 0 to 4294967295"),
        ({"penalty": 0.0}, "penalty is 0.0; it must be 1e-06 or more"),
        ({"penalty": float("nan")}, "penalty is nan"),
    ],
)
def test_values_that_no_fit_can_have_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        FitSlideConfig(data="a", encoder="b", out="c", **change)  # type: ignore[arg-type]


def test_more_folds_than_cases_hold_out_one_case_each(encoder: str, tmp_path: Path) -> None:
    data = make_cohort(tmp_path / "data", encoder, ["benign", "3+3", "4+4", "3+4"])
    config = FitSlideConfig(
        data=data,
        encoder=encoder,
        out=str(tmp_path / "out"),
        **FAST,
        folds=100,
    )
    assert len(fit_slide(config).held_out) == 4


def test_areas_are_scored_slide_by_slide() -> None:
    right = np.diag([50, 25, 25, 0])
    wrong = np.array([[30, 0, 20, 0], [0, 0, 25, 0], [0, 0, 25, 0], [0, 0, 0, 0]])
    found = score_areas({0: right, 1: right})
    assert found is not None
    assert (found.slides, found.tumour_slides) == (2, 2)
    assert found.tumour_extent == pytest.approx(0.0, abs=1e-6)
    assert found.percent_pattern_4 == pytest.approx(0.0, abs=1e-3)
    alone = score_areas({0: wrong})  # no other slide corrects it
    assert alone is not None
    assert alone.tumour_extent == pytest.approx(0.2, abs=1e-3)
    assert alone.percent_pattern_4 == pytest.approx(50.0, abs=0.1)
    benign = score_areas({0: np.diag([50, 0, 0, 0])})
    assert benign is not None
    assert benign.percent_pattern_4 is None
    assert score_areas({0: np.zeros((4, 4), np.int64)}) is None


def test_the_rule_of_reading_is_scored() -> None:
    def slide(label: int, areas: int, attention: int) -> HeldOutSlide:
        return HeldOutSlide(
            slide_id="",
            label="",
            grade_group=label,
            area_grade_group=areas,
            attention_grade_group=attention,
            grade_group_probabilities=[],
            cancer_probability=0.0,
            shares=[],
            attention_lift=None,
        )

    found = score_readings([slide(3, 3, 3), slide(3, 2, 3), slide(5, 3, 3), slide(1, 1, 4)])
    assert found is not None
    assert (found.slides, found.read) == (4, 3)
    assert found.exact == pytest.approx(1 / 3)
    assert found.within_one == pytest.approx(2 / 3)
    assert found.exact_unread == 1.0


def test_a_bag_of_one_patch_is_learnt_from() -> None:
    slides = [
        replace(slide, patterns=np.array([pattern], np.int8))
        for slide, pattern in zip(
            slides_of([("a", "benign"), ("b", "3+3"), ("c", "benign"), ("d", "3+3")]),
            (0, 1, 0, 1),
            strict=True,
        )
    ]
    found = evaluate(
        slides, FitConfig(penalty=1.0, attention=AttentionConfig(epochs=1), seed=0), folds=2
    )
    assert len(found.slides) == 4
    assert found.domain is None
