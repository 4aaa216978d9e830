"""Annotations as people draw them, on their way to the labels of patches: used, or reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

from pipelines import storage
from pipelines.annotations import PATTERNS
from tests.support.hand_made import COLUMNS, SPEC, make_cohort, make_encoder
from training.encoder.encoder import load_encoder
from training.slide.fit_slide import FitSlideConfig, fit_slide
from training.slide.labelled_slides import LabelledCohort, load_labelled_slides
from training.slide.slide_model import AttentionConfig

WIDTH, HEIGHT = COLUMNS * SPEC.size, 12 * SPEC.size


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


def feature(classification: Any, box: tuple[int, int, int, int], **more: Any) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    ring = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"objectType": "annotation", "classification": classification},
        **more,
    }


def load(folder: Path, encoder: str, features: list[dict[str, Any]], **row: Any) -> LabelledCohort:
    """Two slides with labels, the second annotated with these features."""
    uri = storage.as_uri(folder / "drawn.geojson")
    storage.write_bytes(uri, json.dumps(features).encode())
    data = make_cohort(folder / "data", encoder, ["3+3", "4+4"], annotation=uri, **row)
    return load_labelled_slides(data, load_encoder(encoder))


def test_a_derived_class_of_qupath_labels_patches(encoder: str, tmp_path: Path) -> None:
    """QuPath 0.4 and later writes it as `names`, not `name`."""
    drawn = feature({"names": ["gleason_4", "cribriform"]}, (0, 0, WIDTH, HEIGHT))
    cohort = load(tmp_path, encoder, [drawn])
    assert set(cohort.slides[1].patterns.tolist()) == {PATTERNS.index("gleason_4")}
    assert cohort.annotations[1].complete
    assert cohort.annotation_remarks == []


def test_features_that_label_nothing_are_reported(encoder: str, tmp_path: Path) -> None:
    features = [
        feature({"name": "Gleason 4"}, (0, 0, WIDTH, HEIGHT // 2), id="a1"),
        feature(None, (0, 0, WIDTH, HEIGHT), id="b2"),
        feature({"name": "Region*"}, (0, 0, WIDTH, HEIGHT), id="c3"),
    ]
    cohort = load(tmp_path, encoder, features)
    assert str(cohort.annotations[1]) == (
        "slide slide-1.svs: 1 region labels 48 patches, 100% of their area has patches; not used: "
        "feature 2 (id b2) (has no class); "
        "feature 3 (id c3) (has a class that ends in *, which is ignored)"
    )
    [remark] = cohort.annotation_remarks
    assert remark.startswith("annotations of 1 of 2 slides are not wholly used")
    assert "slide-1" not in remark  # it enters the model's card


def test_regions_outside_the_tissue_are_reported(encoder: str, tmp_path: Path) -> None:
    cohort = load(
        tmp_path, encoder, [feature({"name": "gleason_4"}, (-9 * WIDTH, 0, WIDTH, HEIGHT))]
    )
    assert cohort.annotations[1].share == pytest.approx(0.1)
    assert len(cohort.annotation_remarks) == 1


def test_the_report_of_a_fit_lists_annotations(encoder: str, tmp_path: Path) -> None:
    report = fit_slide(_config(tmp_path, encoder))
    assert len(report.annotations) == 6
    stored = json.loads((tmp_path / "model" / "report.json").read_text())
    assert [use["slide_id"] for use in stored["annotations"]] == [f"{k:064x}" for k in range(6)]
    assert stored["annotations"][5]["unused_by_reason"] == {}
    assert stored["annotations"][5]["patches"] == 96


@pytest.mark.parametrize("change", [{"label": "high"}, {"label": ""}, {"label": "4+4"}])
def test_no_name_is_stored_with_a_model(
    encoder: str, tmp_path: Path, change: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slide that fails, one without a label, and one with annotations that are not used."""
    drawn: list[str] = []
    monkeypatch.setattr(Axes, "set_yticks", _noting(Axes.set_yticks, drawn))
    monkeypatch.setattr(Axes, "set_title", _noting(Axes.set_title, drawn))
    titled = feature(None, (0, 0, WIDTH, HEIGHT), id="doe-john")
    titled["properties"]["name"] = "DOE JOHN"
    uri = storage.as_uri(tmp_path / "drawn.geojson")
    used = feature({"name": "gleason_4"}, (0, 0, WIDTH, HEIGHT))
    storage.write_bytes(uri, json.dumps([used, titled]).encode())
    row = {"uri": "file:///slides/DOE%20JOHN.svs", "annotation": uri, **change}
    report = fit_slide(_config(tmp_path, encoder, **row))
    assert len(report.failed) == (change["label"] == "high")
    assert len(report.without_label) == (change["label"] == "")
    assert sum(not use.complete for use in report.annotations) == (change["label"] == "4+4")
    texts = [path.read_text().lower() for path in (tmp_path / "model").glob("*.json")]
    assert len(texts) == 2
    assert drawn
    for text in [*texts, *drawn]:
        assert "doe" not in text
        assert ".svs" not in text


def _config(folder: Path, encoder: str, **row: str) -> FitSlideConfig:
    """A quick fit on six slides; `row` is what differs in the last one's row."""
    labels = ["benign", "3+3", "4+4", "benign", "3+3", "4+4"]
    return FitSlideConfig(
        data=make_cohort(folder / "data", encoder, labels, **row),
        encoder=encoder,
        stain_views=0,
        out=str(folder / "model"),
        attention=AttentionConfig(hidden=8, attention=4, epochs=2, learning_rate=1e-2),
        folds=2,
    )


def _noting(draw: Callable[..., Any], drawn: list[str]) -> Callable[..., Any]:
    """The same drawing function, which notes the texts that it draws."""

    def noted(*args: Any, **options: Any) -> Any:
        drawn.append(str(args[1:]).lower())
        return draw(*args, **options)

    return noted
