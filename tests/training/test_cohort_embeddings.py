"""Embeddings of a whole cohort: the same here and on Ray, continued, and readable by TRIDENT and
STAMP.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.cohort import load_cohort
from pipelines.cohort_shards import load_shards
from pipelines.grid import PatchSpec
from pipelines.prepare import PrepareConfig, prepare
from training.encoder.architecture import EncoderConfig
from training.encoder.cohort_embeddings import EmbedConfig, EmbedReport, embed_cohort
from training.encoder.embed import Bag, load_bag
from training.encoder.encoder import load_encoder, random_encoder, save_encoder
from training.encoder.exchange import Format
from training.encoder.vit import ViTConfig
from training.errors import RunError
from training.slide.labelled_slides import load_labelled_slides

SPEC = PatchSpec(size=32, mpp=1.0, min_tissue=0.1)
CONFIG = EncoderConfig(network=ViTConfig(size=32, dim=32, depth=1, heads=2), spec=SPEC)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("encoder"))
    save_encoder(folder, random_encoder(CONFIG, precision="f32"))
    return folder


@pytest.fixture(scope="module")
def prepared(cohort_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two labelled slides that are named after patients."""
    folder = tmp_path_factory.mktemp("prepared")
    with (cohort_folder / "manifest.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))[:2]
    for name, row in zip(("Mueller.svs", "Schmidt.svs"), rows, strict=True):
        shutil.copy(cohort_folder / row["slide"], folder / name)
        row["slide"] = name
        row["annotation"] = str(cohort_folder / row["annotation"])
    with (folder / "manifest.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    out = str(folder / "cohort")
    assert not prepare(
        PrepareConfig(manifest=str(folder / "manifest.csv"), out=out, spec=SPEC)
    ).failed
    return out


@pytest.fixture
def cohort(prepared: str, tmp_path: Path) -> str:
    """A copy without embeddings."""
    return str(shutil.copytree(prepared, tmp_path / "cohort"))


def _bags(cohort: str, encoder: str) -> dict[str, Bag]:
    shards, key = load_shards(cohort), load_encoder(encoder).key
    tables = {
        slide_id: shards.filter(np.array(shards["slide_id"].to_pylist()) == slide_id)
        for slide_id in set(shards["slide_id"].to_pylist())
    }
    return {slide_id: load_bag(own, key, cohort) for slide_id, own in tables.items()}


def _embed(cohort: str, encoder: str, **change: Any) -> EmbedReport:
    return embed_cohort(EmbedConfig(data=cohort, encoder=encoder, **change))


@contextmanager
def _unreadable(cohort: str, folder: Path) -> Iterator[None]:
    """While it lasts, Mueller's slide is in `folder` instead."""
    [row] = [row for row in load_cohort(cohort).to_pylist() if "Mueller" in row["uri"]]
    slide = Path(row["uri"].removeprefix("file://"))
    away = slide.rename(folder / "away.svs")
    try:
        yield
    finally:
        away.rename(slide)


@pytest.fixture(scope="module")
def ray_run(
    ray_session: None, prepared: str, encoder: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, EmbedReport]:
    """A cohort and its report of one run on Ray, whose processes take longest to start: by paths
    relative to the driver's folder, while one slide can't be read.
    """
    folder = tmp_path_factory.mktemp("ray")
    shutil.copytree(encoder, folder / "encoder")
    shutil.copytree(prepared, folder / "cohort")
    with pytest.MonkeyPatch.context() as patch, _unreadable(prepared, folder):
        patch.chdir(folder)
        report = _embed("cohort", "encoder", on_ray=True)
    return str(folder / "cohort"), report


def test_shards_are_counted_as_they_are_embedded(cohort: str, encoder: str) -> None:
    seen: list[tuple[int, int]] = []
    report = embed_cohort(
        EmbedConfig(data=cohort, encoder=encoder),
        on_shard=lambda done, total: seen.append((done, total)),
    )
    assert report.slides == 2
    assert report.shards == len(load_shards(cohort)) == seen[-1][0] == seen[-1][1]


def test_a_slide_that_cannot_be_read_is_reported_and_the_others_are_embedded(
    cohort: str, encoder: str, tmp_path: Path, ray_run: tuple[str, EmbedReport]
) -> None:
    with _unreadable(cohort, tmp_path):
        here = _embed(cohort, encoder)
    for report in (here, ray_run[1]):
        assert report.slides == 1
        assert report.shards > 0
        [sentence] = report.failed
        assert "Mueller" in sentence


def test_ray_computes_the_same_and_the_next_run_only_the_rest(
    ray_run: tuple[str, EmbedReport], cohort: str, encoder: str, tmp_path: Path
) -> None:
    there = str(shutil.copytree(ray_run[0], tmp_path / "there"))
    here = _embed(cohort, encoder)
    rest = _embed(there, encoder)
    assert ray_run[1].shards + rest.shards == here.shards
    assert _embed(there, encoder, on_ray=True).shards == 0
    bags = _bags(cohort, encoder)
    for slide_id, bag in _bags(there, encoder).items():
        np.testing.assert_array_equal(bag.embeddings, bags[slide_id].embeddings)


def test_labelled_slides_embedded_on_ray_are_the_same(
    ray_session: None, cohort: str, encoder: str, tmp_path: Path
) -> None:
    there = str(shutil.copytree(cohort, tmp_path / "there"))
    one = load_labelled_slides(cohort, load_encoder(encoder))
    two = load_labelled_slides(there, load_encoder(encoder), on_ray=encoder)
    assert two.data == one.data
    assert two.read == one.read
    assert len(one.slides) == 2
    for ours, theirs in zip(one.slides, two.slides, strict=True):
        np.testing.assert_array_equal(ours.bag.embeddings, theirs.bag.embeddings)


def _trident(path: Path) -> tuple[NDArray[Any], NDArray[Any], dict[str, Any]]:
    """As TRIDENT's `IO.read_coords` and its slide encoders read a file of features."""
    with h5py.File(path, "r") as file:
        return file["features"][:], file["coords"][:], dict(file["coords"].attrs)


def _stamp(path: Path) -> tuple[NDArray[Any], NDArray[Any], float, int]:
    """As STAMP's `modeling/data.get_coords` reads a file of its current format."""
    with h5py.File(path, "r") as file:
        assert file.attrs.get("tile_size", None) is None
        assert file.attrs["feat_type"] == "tile"
        assert tuple(map(int, file.attrs["stamp_version"].split("."))) <= (2, 1, 0)
        side, pixels = float(file.attrs["tile_size_um"]), int(file.attrs["tile_size_px"])
        return file["feats"][:], file["coords"][:], side, pixels


@pytest.mark.parametrize("form", ["trident", "stamp"])
def test_other_tools_read_what_was_embedded(
    cohort: str, encoder: str, tmp_path: Path, form: Format
) -> None:
    report = _embed(cohort, encoder, format=form, out=str(tmp_path / "h5"))
    rows = {row["slide_id"]: row for row in load_cohort(cohort).to_pylist()}
    bags = _bags(cohort, encoder)
    files = {path.stem: path for path in (tmp_path / "h5").iterdir()}
    assert files.keys() == rows.keys()
    assert len(report.files) == len(files)
    for slide_id, path in files.items():
        bag, row = bags[slide_id], rows[slide_id]
        corners = np.stack([bag.x, bag.y], axis=1)
        if form == "trident":
            features, coords, attributes = _trident(path)
            np.testing.assert_array_equal(features, bag.embeddings)
            np.testing.assert_array_equal(coords, corners)
            assert coords.dtype == np.int64
            assert attributes["patch_size"] == 32
            assert attributes["target_magnification"] == 10
            assert abs(attributes["patch_size_level0"] - 32 / row["mpp"]) < 1  # as it is read
            assert attributes["level0_width"] == row["width"]
            assert attributes["overlap"] == 0
        else:
            features, coords, side, pixels = _stamp(path)
            np.testing.assert_array_equal(features, bag.embeddings.astype(np.float16))
            np.testing.assert_allclose(coords, corners * row["mpp"], rtol=1e-6)
            assert (side, pixels) == (32.0, 32)
        content = path.read_bytes()
        assert b"Mueller" not in content
        assert str(tmp_path).encode() not in content


def test_files_have_the_names_of_slides_only_if_asked(
    cohort: str, encoder: str, tmp_path: Path
) -> None:
    out = tmp_path / "h5"
    _embed(cohort, encoder, format="trident", out=str(out), names=True)
    assert sorted(path.name for path in out.iterdir()) == ["Mueller.h5", "Schmidt.h5"]


def test_two_slides_of_one_name_are_refused_before_anything_is_embedded(
    cohort_folder: Path, encoder: str, tmp_path: Path
) -> None:
    slides = tmp_path / "slides"
    for k, slide in enumerate(sorted(cohort_folder.glob("*.svs"))[:2]):
        (slides / str(k)).mkdir(parents=True)
        shutil.copy(slide, slides / str(k) / "a.svs")
    out = str(tmp_path / "cohort")
    prepare(PrepareConfig(manifest=str(slides), out=out, spec=SPEC))
    with pytest.raises(RunError, match="two slides are called 'a'; name the files by slide id"):
        _embed(out, encoder, format="stamp", out=str(tmp_path / "h5"), names=True)
    assert not (tmp_path / "h5").exists()


def test_a_format_needs_a_folder(encoder: str) -> None:
    with pytest.raises(ValueError, match="format and out belong together"):
        EmbedConfig(data="x", encoder=encoder, format="stamp")
