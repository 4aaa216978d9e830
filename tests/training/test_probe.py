"""The probe: finds what is there, finds nothing where nothing is, and says what its scores are
worth.
"""

from __future__ import annotations

import html
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipelines.grid import PatchSpec
from pipelines.synthetic.tissue import generate_tile
from training.encoder.architecture import EncoderConfig
from training.encoder.encoder import load_encoder, random_encoder, save_encoder
from training.encoder.stain_views import stained
from training.encoder.vit import ViTConfig
from training.errors import InsufficientData, SpecMismatch
from training.evaluation.attention import Attending
from training.evaluation.page import verdict
from training.evaluation.probe import ProbeConfig, ProbeReport, probe
from training.evaluation.scores import Folds, linear, predictions, score_of
from training.evaluation.stain_choice import choose_stain, named_views
from training.evaluation.subjects import STAIN, Subject, TileFeatures, View, normalised
from training.evaluation.tiles import cut, find_tiles, read_tile, resampled, tile_name
from training.slide.pattern_head import PatternHead
from training.slide.slide_model import GatedAttention, SlideModel, save_slide_model

CONFIG = EncoderConfig(
    network=ViTConfig(size=32, dim=32, depth=1, heads=2, layer_scale=None),
    spec=PatchSpec(size=64, mpp=0.5),
)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("tiles"), np.random.default_rng(0)
    for pattern in ("benign", "gleason_5"):
        (folder / pattern).mkdir()
        for k in range(8):
            Image.fromarray(generate_tile(pattern, rng, side=300)).save(
                folder / pattern / f"{k}.png"
            )
    (folder / "README.txt").write_text("not a tile")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    save_encoder(str(folder), random_encoder(CONFIG, precision="f32"))
    return str(folder)


@pytest.fixture(scope="module")
def slide_model(encoder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A slide model for the encoder, with random weights."""
    random = np.random.default_rng(0)
    head = PatternHead(
        weight=random.normal(size=(4, CONFIG.dimension)).astype(np.float32),
        bias=np.zeros(4, np.float32),
    )
    folder = str(tmp_path_factory.mktemp("slide_model"))
    loaded = load_encoder(encoder)
    card = {"name": "random", "encoder_hash": loaded.hash, "spec": loaded.spec.to_dict()}
    torch.manual_seed(0)
    attention = GatedAttention(CONFIG.dimension, hidden=8, attention=4)
    save_slide_model(folder, SlideModel(head=head, attention=attention.eval(), card=card))
    return folder


@pytest.fixture(scope="module")
def report(
    tiles: Path, encoder: str, slide_model: str, tmp_path_factory: pytest.TempPathFactory
) -> ProbeReport:
    out = tmp_path_factory.mktemp("out")
    return probe(
        ProbeConfig(
            tiles=str(tiles),
            encoders=(encoder, "efficientnet_lite0"),
            out=str(out),
            folds=4,
            shifts=True,
            stains=("reinhard",),
            slide_model=slide_model,
        )
    )


def test_encoders_and_baselines_are_rows_of_one_table(report: ProbeReport, encoder: str) -> None:
    assert report.classes == ["benign", "gleason_5"]
    assert report.tiles == [8, 8]
    rows = {row.name: row for row in report.rows}
    assert list(rows) == sorted(rows, key=lambda name: -rows[name].linear.mean)
    own, theirs = rows["random weights, seed 0"], rows["random weights of random weights, seed 0"]
    assert own.linear == theirs.linear  # the same weights on the same folds
    assert own.knn == theirs.knn
    assert own.not_better_than
    assert "does not beat" in verdict(own)
    assert verdict(theirs) == "baseline"
    assert {
        "efficientnet_lite0",
        "random weights of efficientnet_lite0",
        "colour + LBP, forest",
    } < (rows.keys())
    assert report.best in {encoder, "efficientnet_lite0"}
    assert rows["efficientnet_lite0"].linear.mean > 0.9  # solid sheets against open glands
    assert len(own.linear.folds) == 8
    assert np.sum(own.confusion) == 2 * 16
    assert own.shots.keys() == {1, 2, 4}


def test_report_page_and_picture_are_written(report: ProbeReport) -> None:
    out = Path(report.page.removeprefix("file://")).parent
    assert "optimistic" in json.loads((out / "probe.json").read_text())["caveat"]
    assert (out / "probe.png").read_bytes()[:4] == b"\x89PNG"
    page = (out / "probe.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "http" not in re.sub('base64,[^"]*', "", page)  # letters of a picture spell anything


def test_attention_of_the_slide_model_is_on_the_page(report: ProbeReport) -> None:
    out = Path(report.page.removeprefix("file://")).parent
    assert report.attention is not None
    assert report.attention.keys() == {"benign", "gleason_5"}
    assert sum(report.attention.values()) / 2 == pytest.approx(1.0, abs=1e-5)  # of 8 tiles each
    assert json.loads((out / "probe.json").read_text())["attention"] == report.attention
    assert "What the slide model looks at" in (out / "probe.html").read_text()


def test_attention_is_the_slide_models_share_of_each_tile(encoder: str, slide_model: str) -> None:
    subject = Subject.of(load_encoder(encoder), "own", taken=())
    features = np.random.default_rng(0).normal(size=(6, CONFIG.dimension)).astype(np.float32)
    attending = Attending.of(slide_model, [subject])
    looked = attending.looked(features, np.array([0, 0, 1, 1, 1, 1]))
    shares = attending.model.predict(features).attention
    assert shares.std() > 0
    np.testing.assert_allclose(looked.multiples, 6 * shares, rtol=1e-6)
    found = looked.by_class(["a", "b"])
    assert found["a"] == pytest.approx(3 * shares[:2].sum(), rel=1e-5)
    assert found["b"] == pytest.approx(1.5 * shares[2:].sum(), rel=1e-5)


def test_a_slide_model_of_another_encoder_is_refused(slide_model: str, tmp_path: Path) -> None:
    config = ProbeConfig(tiles="none", out=str(tmp_path / "out"), slide_model=slide_model)
    with pytest.raises(SpecMismatch, match=r"fitted with .* against given .*score its encoder too"):
        probe(config)


def test_shifted_tiles_lower_the_cosine(report: ProbeReport) -> None:
    assert report.rows
    for row in report.rows:
        assert row.shifts.keys() == {"other stains", "10 % larger", "10 % smaller"}
        assert all(0.0 < shift.cosine < 1.0 for shift in row.shifts.values())


def test_the_stain_choice_is_recorded_for_each_encoder(report: ProbeReport, encoder: str) -> None:
    out = Path(report.page.removeprefix("file://")).parent
    saved = {row["name"]: row for row in json.loads((out / "probe.json").read_text())["rows"]}
    page = html.unescape((out / "probe.html").read_text())
    assert saved.keys() == {row.name for row in report.rows} != set()
    for row in report.rows:
        assert (row.stain is None) == (row.encoder is None)
        if row.stain is not None:
            assert list(row.stain.scores) == ["none", "reinhard"]
            assert row.stain.scores["none"].clean == row.linear
            assert row.stain.scores["none"].shifted.mean == row.shifts["other stains"].accuracy
            assert saved[row.name]["stain"]["chosen"] == row.stain.chosen
            assert row.stain.sentence(row.name) in page


def test_normalising_is_chosen_only_where_it_withstands_other_stains_better() -> None:
    """Other stains turn the first feature round; normalised, the second takes its place."""
    labels, random = np.arange(80) % 2, np.random.default_rng(0)
    folds = Folds(labels=labels, units=np.arange(80), count=4, repeats=1, seed=0)
    clean = (labels[:, None] + random.normal(0, 0.1, (80, 1))).astype(np.float32)
    features = {
        View(): clean,
        View(shift=STAIN): 1 - clean,
        View(stain="reinhard"): clean,
        View(shift=STAIN, stain="reinhard"): clean,
        View(stain="macenko"): clean,
        View(shift=STAIN, stain="macenko"): 1 - clean,
    }
    named = named_views(features, folds, linear(1.0))
    choice = choose_stain(named, ("macenko", "reinhard"), folds)
    assert choice.chosen == "reinhard"
    assert choice.scores["none"].clean.mean == choice.scores["reinhard"].shifted.mean == 1.0
    assert choice.scores["none"].shifted.mean == choice.scores["macenko"].shifted.mean == 0.0
    assert choice.sentence("x").startswith("x: prepare slides with --stain reinhard")
    choice = choose_stain(named, ("macenko",), folds)
    assert choice.chosen == "none"
    assert "without stain normalisation" in choice.sentence("x")


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_normalised_tiles_of_two_stains_look_more_alike(tiles: Path, method: str) -> None:
    tile = read_tile(tiles / "gleason_5" / "0.png")
    other = stained(tile[None], 1)[0]
    before = np.abs(tile.mean(axis=(0, 1)) - other.mean(axis=(0, 1))).sum()
    mean, also = (normalised(each, method).mean(axis=(0, 1)) for each in (tile, other))
    assert np.abs(mean - also).sum() < 0.5 * before
    blank = np.full((64, 64, 3), 240, np.uint8)
    np.testing.assert_array_equal(normalised(blank, method), blank)


def _grouped(tiles: Path, folder: Path, lines: list[str]) -> str:
    shutil.copytree(tiles, folder)
    (folder / "groups.csv").write_text("\n".join(["tile,group", *lines]))
    return str(folder)


@pytest.fixture(scope="module")
def damaged_tiles(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiles, with three that can't be read and a hidden file of macOS among them."""
    folder = tmp_path_factory.mktemp("damaged") / "tiles"
    shutil.copytree(tiles, folder)
    whole = (folder / "benign" / "0.png").read_bytes()
    (folder / "benign" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "benign" / "empty.png").write_bytes(b"")
    (folder / "gleason_5" / "text.jpg").write_text("not an image")
    (folder / "gleason_5" / "._0.png").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    return folder


@pytest.fixture(scope="module")
def grouped_report(
    damaged_tiles: Path, encoder: str, tmp_path_factory: pytest.TempPathFactory
) -> ProbeReport:
    """Tiles of four patients, of which three can't be read."""
    folder, out = (tmp_path_factory.mktemp(name) for name in ("grouped", "out"))
    names = sorted(tile_name(path) for path in find_tiles(str(damaged_tiles)).paths)
    lines = [f"{name},patient-{k % 4}" for k, name in enumerate(names)]
    tiles = _grouped(damaged_tiles, folder / "tiles", lines)
    return probe(ProbeConfig(tiles=tiles, encoders=(encoder,), out=str(out), folds=2))


def test_tiles_of_a_group_are_never_on_both_sides(grouped_report: ProbeReport) -> None:
    assert grouped_report.groups == 4
    assert "never on both sides" in grouped_report.caveat
    groups = np.arange(16) % 4
    folds = Folds(labels=np.arange(16) // 8, units=groups, count=4, repeats=2, seed=0)
    splits = list(folds.splits())
    assert len(splits) == 8
    assert not any(set(groups[train]) & set(groups[test]) for _, train, test in splits)


def test_groups_that_are_missing_are_named(tiles: Path, tmp_path: Path) -> None:
    folder = _grouped(tiles, tmp_path / "tiles", ["benign/0.png,a"])
    with pytest.raises(InsufficientData, match=r"no group for 15 of 16 tiles.*benign/1\.png"):
        find_tiles(folder)
    folder = _grouped(tiles, tmp_path / "more", ["benign/0.png,"])
    with pytest.raises(InsufficientData, match="needs the columns tile"):
        find_tiles(folder)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Predictions that are right with a known probability."""
    random, inside = np.random.default_rng(0), 0
    for trial in range(60):
        labels = np.arange(80) % 4
        right = random.random(80) < 0.7
        predicted = np.where(right, labels, (labels + 1) % 4)[None]
        folds = Folds(labels=labels, units=np.arange(80), count=4, repeats=1, seed=trial)
        score = score_of(predicted, folds)
        inside += score.low <= 0.7 <= score.high
    assert 52 <= inside <= 60


def test_shuffled_labels_score_as_chance(tiles: Path, encoder: str) -> None:
    loaded = load_encoder(encoder)
    features = TileFeatures(Subject.of(loaded, "own", taken=()), mpp=0.23, view=View())
    for path in find_tiles(str(tiles)).paths:
        features.add(read_tile(path))
    labels = np.random.default_rng(1).permutation(np.arange(16) // 8)
    folds = Folds(labels=labels, units=np.arange(16), count=4, repeats=4, seed=0)
    found = features.features()
    [named] = predictions(found, folds, linear(30.0), [found])
    assert abs(score_of(named, folds).mean - 0.5) < 0.3


def test_tiles_come_to_the_encoders_resolution(tiles: Path) -> None:
    tile = read_tile(tiles / "benign" / "0.png")
    assert resampled(tile, mpp=0.25, wanted=0.5).shape == (150, 150, 3)
    assert resampled(tile, mpp=0.25, wanted=0.25).shape == (300, 300, 3)
    assert resampled(tile, mpp=0.5, wanted=0.25).shape == (600, 600, 3)


def test_patches_cover_the_tile() -> None:
    tile = np.zeros((150, 70, 3), np.uint8)
    tile[0, 0] = tile[-1, -1] = 255
    patches = cut(tile, size=64)
    assert patches.shape == (3 * 2, 64, 64, 3)
    assert patches[0][0, 0, 0] == 255
    assert patches[-1][-1, -1, 0] == 255
    assert cut(np.ones((40, 64, 3), np.uint8), size=64).shape == (1, 64, 64, 3)


@pytest.mark.parametrize(
    "view",
    [View(), View(shift=STAIN), View(shift="10 % larger"), View(shift=STAIN, stain="reinhard")],
)
def test_tiles_are_embedded_in_full_batches_with_the_same_features(view: View) -> None:
    """Tiles of one, four and six patches in batches of five: a batch holds several tiles' patches,
    and a tile's patches are in several batches.
    """
    encoder, random, passes = random_encoder(CONFIG, precision="f32"), np.random.default_rng(0), []
    subject = Subject.of(encoder, "own", taken=())

    def embed(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        passes.append(len(patches))
        return encoder.embed(patches)

    sides = ((60, 60), (120, 100), (180, 120), (50, 64), (128, 128))
    tiles = [random.integers(0, 255, (*side, 3), np.uint8) for side in sides]
    batched = TileFeatures(replace(subject, batch=5, embed=embed), mpp=0.5, view=view)
    alone = [TileFeatures(subject, mpp=0.5, view=view) for _ in tiles]
    for tile, features in zip(tiles, alone, strict=True):
        batched.add(tile)
        features.add(tile)
    expected = np.concatenate([features.features() for features in alone])
    # a batch of another size is summed in another order: the last bits of float32
    np.testing.assert_allclose(batched.features(), expected, rtol=1e-5, atol=1e-5)
    assert set(passes[:-1]) == {5}


def test_too_few_tiles_are_refused(tiles: Path, encoder: str, tmp_path: Path) -> None:
    config = ProbeConfig(tiles=str(tiles), encoders=(encoder,), out=str(tmp_path / "out"), folds=9)
    with pytest.raises(
        InsufficientData, match="benign 8, gleason_5 8; needed are two classes of at least 9"
    ):
        probe(config)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InsufficientData, match="none"):
        probe(replace(config, tiles=str(tmp_path / "empty"), folds=2))
    with pytest.raises(InsufficientData, match="not a local folder"):
        find_tiles("s3://bucket/tiles")


def test_fewer_tiles_than_neighbours_are_scored_with_fewer(
    tiles: Path, encoder: str, tmp_path: Path
) -> None:
    for name in ("benign", "gleason_5"):
        (tmp_path / "tiles" / name).mkdir(parents=True)
        for k in range(2):
            shutil.copy(tiles / name / f"{k}.png", tmp_path / "tiles" / name)
    config = ProbeConfig(
        tiles=str(tmp_path / "tiles"), encoders=(encoder,), out=str(tmp_path / "out"), folds=2
    )
    assert 0.0 <= probe(config).rows[0].knn.mean <= 1.0


def test_tiles_that_cannot_be_read_are_named_and_in_no_score(grouped_report: ProbeReport) -> None:
    assert grouped_report.tiles == [8, 8]
    assert [sentence.split()[1] for sentence in grouped_report.failed] == [
        "benign/cut.png",
        "benign/empty.png",
        "gleason_5/text.jpg",
    ]
    assert grouped_report.ignored == ["gleason_5/._0.png"]
    saved = Path(grouped_report.page.removeprefix("file://")).parent / "probe.json"
    assert json.loads(saved.read_text())["failed"] == grouped_report.failed


def test_tiles_that_cannot_be_read_are_named_where_the_rest_is_too_little(
    damaged_tiles: Path, encoder: str, tmp_path: Path
) -> None:
    config = ProbeConfig(
        tiles=str(damaged_tiles), encoders=(encoder,), out=str(tmp_path / "out"), folds=9
    )
    with pytest.raises(InsufficientData, match=r"benign 8, gleason_5 8; tile benign/cut\.png"):
        probe(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": 0}, "folds is 0; it must be 2 or more"),
        ({"folds": 1}, "folds is 1; it must be 2 or more"),
        ({"tile_mpp": 0.0}, "tile_mpp is 0.0; it must be 0.05 to 100 micrometres per pixel"),
        ({"tile_mpp": float("nan")}, "tile_mpp is nan; it must be 0.05 to 100"),
        ({"seed": -1}, "seed is -1; it must be 0 to"),
        ({"repeats": 0}, "repeats is 0"),
        ({"neighbours": 0}, "neighbours is 0"),
        (
            {"stains": ("vahadane",)},
            "give each of macenko, reinhard once",
        ),
        ({"encoders": ()}, "give each of one or more once"),
        ({"encoders": ("b", "b")}, "give each of one or more once"),
    ],
)
def test_values_that_no_probe_can_have_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ProbeConfig(tiles="a", **{"encoders": ("b",), "out": "c", **change})  # type: ignore[arg-type]
