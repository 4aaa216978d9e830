"""Published sets of tiles: tiny look-alikes in each published layout, read as eva reads them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pipelines.grid import PatchSpec
from pipelines.synthetic.tissue import generate_tile
from training.encoder.architecture import EncoderConfig
from training.encoder.encoder import random_encoder, save_encoder
from training.encoder.vit import ViTConfig
from training.errors import InsufficientData
from training.evaluation.datasets import DATASETS, dataset, dataset_tiles
from training.evaluation.probe import ProbeConfig, ProbeReport, probe
from training.evaluation.scores import Folds, few_shots, forest, predictions, score_of
from training.evaluation.slide_sets import SLIDE_SETS
from training.evaluation.tiles import TileFolder, read_tile, tile_name

RANDOM = np.random.default_rng(0)


def _image(path: Path, kind: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (
        RANDOM.integers(0, 255, (8, 8, 3), np.uint8)
        if kind is None
        else generate_tile(kind, RANDOM, side=96)
    )
    Image.fromarray(pixels).save(path)


def bach(root: Path) -> None:
    for prefix, name in (("b", "Benign"), ("is", "InSitu"), ("iv", "Invasive"), ("n", "Normal")):
        for k in range(1, 101):
            _image(root / f"ICIAR2018_BACH_Challenge/Photos/{name}/{prefix}{k:03}.tif")


def breakhis(root: Path) -> None:
    top = root / "BreaKHis_v1/histology_slides/breast"
    for kind, label, patients in (
        ("benign/SOB/tubular_adenoma", "B_TA", ("19854C", "16184CD")),
        ("benign/SOB/adenosis", "B_A", ("22549G",)),
        ("benign/SOB/fibroadenoma", "B_F", ("14134", "23060CD")),
        ("malignant/SOB/mucinous_carcinoma", "M_MC", ("10147", "18842D")),
        ("malignant/SOB/ductal_carcinoma", "M_DC", ("10926", "16716")),
    ):
        for patient in patients:
            slide = top / kind / f"SOB_{label}_14-{patient}"
            for k in range(2):
                _image(slide / f"40X/SOB_{label}-14-{patient}-40-{k:03}.png")
            _image(slide / f"100X/SOB_{label}-14-{patient}-100-001.png")


def crc(root: Path) -> None:
    for name in DATASETS["crc"].classes:
        for k in range(3):
            _image(root / f"NCT-CRC-HE-100K/{name}/{name}-AAA{k}.tif")
        _image(root / f"CRC-VAL-HE-7K/{name}/{name}-TCGA-AAA.tif")


GLEASON_CORES = ("ZT111_4_A_1_12", "ZT111_4_A_1_13", "ZT76_39_A_1_1")


def gleason_arvaniti(root: Path) -> None:
    for label in range(4):
        for core in GLEASON_CORES if label < 2 else GLEASON_CORES[1:]:
            place = root / "train_validation_patches_750" / core
            _image(place / f"{core}_patch_{label}_class_{label}.jpg")
        core = "ZT80_38_A_1_1"
        for reader in ("patho_1", "patho_2"):
            place = root / "test_patches_750" / reader / core
            _image(place / f"{core}_patch_{label}_class_{label}.jpg")


def mhist(root: Path) -> None:
    lines = ["Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7)"]
    lines[0] += ",Partition"
    for k in range(24):
        label, part = ("SSA", "HP")[k % 2], "train" if k < 16 else "test"
        _image(root / f"images/MHIST_{k:03}.png", ("gleason_5", "benign")[k % 2])
        lines.append(f"MHIST_{k:03}.png,{label},{5 - 4 * (k % 2)},{part}")
    (root / "annotations.csv").write_text("\n".join(lines))


def pcam(root: Path) -> None:
    for part, count in (("train", 8), ("test", 4)):
        kinds = [("benign", "gleason_5")[k % 2] for k in range(count)]
        tiles = np.stack([generate_tile(kind, RANDOM, side=96) for kind in kinds])
        labels = np.array([k % 2 for k in range(count)], np.uint8).reshape(-1, 1, 1, 1)
        for which, array in (("x", tiles), ("y", labels)):
            name = f"camelyonpatch_level_2_split_{part}_{which}.h5"
            with h5py.File(root / name, "w") as file:
                file[which] = array


LAYOUTS: dict[str, Callable[[Path], None]] = {
    each.__name__: each for each in (bach, breakhis, crc, gleason_arvaniti, mhist, pcam)
}


def _read(name: str, root: Path) -> TileFolder:
    return dataset_tiles(dataset(name), str(root))


def _lookalike(name: str, root: Path) -> TileFolder:
    LAYOUTS[name](root)
    return _read(name, root)


@pytest.mark.parametrize(
    ("name", "train", "tested", "groups"),
    [
        ("bach", 268, 132, None),
        ("breakhis", 8, 8, 8),
        ("crc", 27, 9, None),
        ("gleason_arvaniti", 6, 4, 3),
        ("mhist", 16, 8, None),
        ("pcam", 8, 4, None),
    ],
)
def test_the_published_layout_gives_tiles_labels_groups_and_the_split(
    name: str, train: int, tested: int, groups: int | None, tmp_path: Path
) -> None:
    tiles = _lookalike(name, tmp_path)
    assert tiles.train is not None
    assert Counter(tiles.train) == {True: train, False: tested}
    assert tiles.classes == list(DATASETS[name].classes)
    assert set(tiles.labels) == set(range(len(tiles.classes)))
    assert (None if tiles.groups is None else len(set(tiles.groups))) == groups
    assert read_tile(tiles.paths[-1]).shape[2] == 3
    assert not tiles.ignored


def test_every_row_has_a_lookalike() -> None:
    assert LAYOUTS.keys() == DATASETS.keys()


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("bach", r"/(\w+)/\w+\.tif$"), ("breakhis", r"/SOB_[BM]_(\w+)-"), ("crc", r"/([A-Z]+)-")],
)
def test_labels_are_those_of_the_files(name: str, pattern: str, tmp_path: Path) -> None:
    tiles = _lookalike(name, tmp_path)
    for path, label in zip(tiles.paths, tiles.labels, strict=True):
        assert isinstance(path, Path)
        named = re.findall(pattern, f"/{path.parent.name}/{path.name}")
        assert named == [tiles.classes[label]]


def test_labels_are_those_of_the_arrays_and_arrays_of_cores(tmp_path: Path) -> None:
    (tmp_path / "pcam").mkdir()
    assert _lookalike("pcam", tmp_path / "pcam").labels == [0, 1] * 6
    (tmp_path / "gleason").mkdir()
    gleason = _lookalike("gleason_arvaniti", tmp_path / "gleason")
    assert gleason.labels == [0, 1, *range(4), *range(4)]
    assert gleason.train == [True] * 6 + [False] * 4
    cores = [Path(tile_name(tile)).parent.name for tile in gleason.paths]
    assert gleason.groups == cores
    assert set(cores) == set(GLEASON_CORES)


def test_the_split_of_bach_is_that_of_eva(tmp_path: Path) -> None:
    tiles = _lookalike("bach", tmp_path)
    assert tiles.train is not None
    tested = {
        tile_name(tile) for tile, learnt in zip(tiles.paths, tiles.train, strict=True) if not learnt
    }
    assert "Benign/b042.tif" in tested  # position 41
    assert "Benign/b041.tif" not in tested
    assert "Normal/n068.tif" in tested  # position 367
    assert "Normal/n069.tif" not in tested


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("bach", "ICIAR2018_BACH_Challenge/Photos", "BACH has its tiles; give the folder"),
        ("bach", "ICIAR2018_BACH_Challenge/Photos/Benign/b001.tif", "399 tiles.* needs all 400"),
        ("breakhis", "BreaKHis_v1/histology_slides", "no BreaKHis_v1/histology_slides"),
        ("crc", "CRC-VAL-HE-7K", "has no CRC-VAL-HE-7K"),
        ("gleason_arvaniti", "test_patches_750", "no test_patches_750/patho_1"),
        ("mhist", "annotations.csv", r"no annotations\.csv"),
        ("mhist", "images/MHIST_003.png", r"no MHIST_003\.png, which line 5 of annotations"),
        ("pcam", "camelyonpatch_level_2_split_test_y.h5", r"no camelyonpatch.*test_y\.h5"),
    ],
)
def test_a_missing_part_of_the_layout_is_named(
    name: str, path: str, message: str, tmp_path: Path
) -> None:
    LAYOUTS[name](tmp_path)
    (tmp_path / path).rename(tmp_path / "elsewhere")
    with pytest.raises(InsufficientData, match=message):
        _read(name, tmp_path)


def _extra(path: str) -> Callable[[Path], None]:
    return lambda root: _image(root / path)


def _annotated(line: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        with (root / "annotations.csv").open("a") as table:
            table.write(f"\n{line}")

    return spoil


def _labelled_two(root: Path) -> None:
    with h5py.File(root / "camelyonpatch_level_2_split_test_y.h5", "r+") as file:
        file["y"][1] = 2


def _fewer_labels(root: Path) -> None:
    with h5py.File(root / "camelyonpatch_level_2_split_test_y.h5", "r+") as file:
        del file["y"]
        file["y"] = np.zeros((3, 1, 1, 1), np.uint8)


def _cut_file(root: Path) -> None:
    file = root / "camelyonpatch_level_2_split_train_x.h5"
    file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("crc", _extra("NCT-CRC-HE-100K/XYZ/1.tif"), "XYZ/1.tif of CRC has the label 'XYZ'"),
        (
            "breakhis",
            _extra("BreaKHis_v1/histology_slides/40X/SOB_M_XX-14-1-40-001.png"),
            "has the label 'XX'; its classes are TA, MC, F, DC",
        ),
        (
            "breakhis",
            _extra("BreaKHis_v1/histology_slides/40X/tile.png"),
            r"40X/tile\.png is not named as BreakHis names them",
        ),
        (
            "gleason_arvaniti",
            _extra("train_validation_patches_750/ZT76_1/ZT76_1_patch_0_class_4.jpg"),
            "has the label '4'; its classes are benign, gleason_3",
        ),
        (
            "gleason_arvaniti",
            _extra("train_validation_patches_750/ZT80_1/ZT80_1_patch_0_class_0.jpg"),
            "is of array ZT80",
        ),
        ("mhist", _annotated("MHIST_000.png,XX,1,train"), "has the label 'XX'"),
        ("mhist", _annotated("MHIST_000.png,HP,1,other"), "part .* in line 26"),
        ("pcam", _labelled_two, r"test_x\.h5\[1\] of PCam has the label '2'"),
        ("pcam", _fewer_labels, r"uint8 \(4, 96, 96, 3\) for 3 labels"),
        ("pcam", _cut_file, "can't be read"),
    ],
)
def test_labels_outside_the_classes_and_broken_files_are_refused(
    name: str, spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    LAYOUTS[name](tmp_path)
    spoil(tmp_path)
    with pytest.raises(InsufficientData, match=message):
        _read(name, tmp_path)


def test_a_packed_file_is_said_to_need_unpacking(tmp_path: Path) -> None:
    (tmp_path / "camelyonpatch_level_2_split_train_x.h5.gz").write_bytes(b"")
    with pytest.raises(InsufficientData, match=r"unpack camelyonpatch.*\.gz"):
        _read("pcam", tmp_path)
    with pytest.raises(InsufficientData, match=r"not a local folder; .* unpacked PCam"):
        _read("pcam", tmp_path / "nowhere")


def test_hidden_files_are_ignored(tmp_path: Path) -> None:
    crc(tmp_path)
    (tmp_path / "NCT-CRC-HE-100K/ADI/._ADI-AAA0.tif").write_bytes(b"Mac OS X")
    tiles = _read("crc", tmp_path)
    assert len(tiles.paths) == 36
    assert tiles.ignored == ["ADI/._ADI-AAA0.tif"]


def test_unknown_sets_and_sets_of_slides_are_refused() -> None:
    with pytest.raises(ValueError, match="dataset 'x' is not known; choose one of bach, breakhis"):
        ProbeConfig(tiles="a", out="b", dataset="x")
    for name in SLIDE_SETS:
        with pytest.raises(ValueError, match=f"whole slides .* `acinus manifest {name}`"):
            ProbeConfig(tiles="a", out="b", dataset=name)


def test_the_resolution_is_the_sets_unless_it_is_given() -> None:
    assert ProbeConfig(tiles="a", out="b").mpp == 0.23
    assert ProbeConfig(tiles="a", out="b", dataset="pcam").mpp == 1.0
    assert ProbeConfig(tiles="a", out="b", dataset="pcam", tile_mpp=0.97).mpp == 0.97


def test_an_official_split_learns_from_one_part_and_scores_the_other() -> None:
    labels = np.arange(40) % 2
    official = np.arange(40) < 24
    folds = Folds(labels=labels, units=np.arange(40), count=1, repeats=1, seed=0, official=official)
    assert [(train.tolist(), test.tolist()) for _, train, test in folds.splits()] == [
        (list(range(24)), list(range(24, 40)))
    ]
    assert all((draw >= 24).all() for draw in folds.draws())
    # the tested part is labelled the other way round: all that was learnt is wrong there
    features = np.where(official, labels, 1 - labels).astype(np.float32)[:, None]
    named = predictions(features, folds, forest(0), [features])[0]
    score = score_of(named, folds)
    assert (score.mean, score.low, score.high) == (0.0, 0.0, 0.0)
    assert set(few_shots(features, folds, forest(0)).values()) == {0.0}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = EncoderConfig(
        network=ViTConfig(size=32, dim=32, depth=1, heads=2, layer_scale=None),
        spec=PatchSpec(size=64, mpp=0.5),
    )
    folder = tmp_path_factory.mktemp("encoder")
    save_encoder(str(folder), random_encoder(config, precision="f32"))
    return str(folder)


def _probe(name: str, encoder: str, tmp_path: Path) -> ProbeReport:
    (tmp_path / "set").mkdir(exist_ok=True)
    LAYOUTS[name](tmp_path / "set")
    return probe(
        ProbeConfig(
            tiles=str(tmp_path / "set"),
            encoders=(encoder,),
            out=str(tmp_path / "out"),
            dataset=name,
        )
    )


@pytest.mark.parametrize(("name", "tested"), [("mhist", 8), ("pcam", 4)])
def test_a_published_set_is_probed_on_its_official_split(
    name: str, tested: int, encoder: str, tmp_path: Path
) -> None:
    report = _probe(name, encoder, tmp_path)
    assert report.tiles == [3 * tested // 2] * 2
    assert f"official split: learnt from {2 * tested} tiles, tested on {tested}" in report.caveat
    assert DATASETS[name].licence in report.caveat
    assert report.dataset == name
    for row in report.rows:
        assert np.sum(row.confusion) == tested
        assert len(row.linear.folds) == 1
    plain = next(row for row in report.rows if row.name == "colour + LBP, forest")
    assert plain.linear.mean > 0.9  # solid sheets against open glands
    assert json.loads((tmp_path / "out" / "probe.json").read_text())["caveat"] == report.caveat


def test_a_part_without_a_class_is_refused(encoder: str, tmp_path: Path) -> None:
    with pytest.raises(
        InsufficientData,
        match=r"to learn from: benign 2, .*gleason_5 1; to test on: benign 1, .*two tiles",
    ):
        _probe("gleason_arvaniti", encoder, tmp_path)
