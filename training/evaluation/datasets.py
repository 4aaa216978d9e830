"""Published sets of labelled tiles in the folders that they are published in: one row for each.

Classes, parts and resolutions are those of eva (kaiko-ai/eva, `docs/datasets` and
`vision/data/datasets/classification`), so that scores compare with its leaderboard's; only the
resolution of BreakHis is not. A row's reader knows the layout; what it finds is checked against the
row's classes. Sets of whole slides are in `slide_sets`.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import h5py
import numpy as np

from pipelines import storage
from training.errors import InsufficientData
from training.evaluation.slide_sets import SLIDE_SETS, TEST, TRAIN, VALIDATION
from training.evaluation.tiles import Hdf5Tile, TileFolder, TileSource, tile_name


@dataclass(frozen=True, kw_only=True)
class LabelledTile:
    """A tile as the layout describes it.

    Attributes:
        tile: where its pixels are.
        label: as published; None for a published class that eva leaves out.
        part: TRAIN, VALIDATION or TEST.
        group: its patient or core; empty where the layout does not say.
        hidden: whether it is another program's hidden file and no tile.
    """

    tile: TileSource
    label: str | None
    part: str
    group: str = ""
    hidden: bool = False


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A published set.

    Attributes:
        name: that `--dataset` takes.
        title: for people.
        licence: as published.
        mpp: micrometres per pixel of the tiles.
        classes: labels as the layout has them, in eva's order.
        tested: the part that is scored; TRAIN is learnt from, a third part is not read.
        apart: what is known of patients on both sides of the split.
        read: the tiles below a folder that holds the unpacked archive.
    """

    name: str
    title: str
    licence: str
    mpp: float
    classes: tuple[str, ...]
    tested: str
    apart: str
    read: Callable[[Path], Iterator[LabelledTile]]


def dataset(name: str) -> Dataset:
    """The row of this name.

    Raises:
        ValueError: there is none, or it is of whole slides; says what to do.
    """
    if name in SLIDE_SETS:
        raise ValueError(
            f"dataset {name} is of whole slides and has no tiles; `acinus manifest {name}` lists "
            "them for `acinus prepare`"
        )
    if name not in DATASETS:
        raise ValueError(f"dataset {name!r} is not known; choose one of {', '.join(DATASETS)}")
    return DATASETS[name]


def dataset_tiles(row: Dataset, folder: str) -> TileFolder:
    """The tiles of the published set, in the order of its files.

    Args:
        row: the set.
        folder: local, with the unpacked archive as published.

    Raises:
        InsufficientData: a file or folder of the layout is missing or can't be read, there is a
            label that is none of the classes, or a group is on both sides of the split.
    """
    root = storage.local_path(folder)
    if root is None or not root.is_dir():
        raise InsufficientData(
            f"{folder} is not a local folder; give the one with the unpacked {row.title}"
        )
    found = list(row.read(root))
    tiles = [each for each in found if not each.hidden and each.part in (TRAIN, row.tested)]
    kept = [each for each in tiles if each.label is not None]
    for each in kept:
        if each.label not in row.classes:
            raise InsufficientData(
                f"tile {tile_name(each.tile)} of {row.title} has the label {each.label!r}; "
                f"its classes are {', '.join(row.classes)}"
            )
    train = [each.part == TRAIN for each in kept]
    if both := {each.group for each in kept if each.part == TRAIN and each.group} & {
        each.group for each in kept if each.part != TRAIN
    }:
        raise InsufficientData(
            f"{folder} has {len(both)} groups of tiles on both sides of {row.title}'s split; "
            "unpack the published archive again"
        )
    return TileFolder(
        folder=folder,
        paths=[each.tile for each in kept],
        labels=[row.classes.index(each.label) for each in kept if each.label is not None],
        classes=list(row.classes),
        groups=[each.group for each in kept] if any(each.group for each in kept) else None,
        ignored=[tile_name(each.tile) for each in found if each.hidden],
        train=train,
    )


def _inside(root: Path, path: str, title: str) -> Path:
    """A file or folder of the layout; raises InsufficientData where it is missing."""
    if not (place := root / path).exists():
        packed = "".join(
            f"; unpack {name} next to it"
            for name in (f"{place.name}.gz", f"{place.name}.zip")
            if (place.parent / name).exists()
        )
        raise InsufficientData(
            f"{root} has no {path}, where {title} has its tiles; "
            f"give the folder with the unpacked archive{packed}"
        )
    return place


def _bach(root: Path) -> Iterator[LabelledTile]:
    """`ICIAR2018_BACH_Challenge/Photos/CLASS/*.tif`; eva's split goes by position in the sorted
    list of 400, since patients are known for it only.
    """
    photos = _inside(root, "ICIAR2018_BACH_Challenge/Photos", "BACH")
    found = list(_of_class_folders(photos, part=TRAIN))
    tiles = [each for each in found if not each.hidden]
    if len(tiles) != BACH_TILES:
        raise InsufficientData(
            f"{photos} has {len(tiles)} tiles; the split by patients needs all {BACH_TILES} of them"
        )
    yield from (each for each in found if each.hidden)
    for position, each in enumerate(tiles):
        tested = any(position in positions for positions in BACH_VALIDATION)
        yield LabelledTile(tile=each.tile, label=each.label, part=VALIDATION if tested else TRAIN)


def _breakhis(root: Path) -> Iterator[LabelledTile]:
    """`BreaKHis_v1/histology_slides/**/40X/SOB_B_TA-14-PATIENT-40-001.png`."""
    slides = _inside(root, "BreaKHis_v1/histology_slides", "BreakHis")
    for path in sorted(slides.rglob("40X/*.png")):
        if path.name.startswith("."):
            yield LabelledTile(tile=path, label=None, part=TRAIN, hidden=True)
            continue
        parts = path.name.split("-")
        if len(parts) != 5:
            raise InsufficientData(
                f"tile {tile_name(path)} is not named as BreakHis names them, "
                "TYPE-YEAR-PATIENT-MAGNIFICATION-NUMBER; remove it"
            )
        label, patient = parts[0].split("_")[-1], parts[2]
        yield LabelledTile(
            tile=path,
            label=None if label in BREAKHIS_LEFT_OUT else label,
            part=VALIDATION if patient in BREAKHIS_VALIDATION else TRAIN,
            group=patient,
        )


def _crc(root: Path) -> Iterator[LabelledTile]:
    """`NCT-CRC-HE-100K/CLASS/*.tif` to learn from, `CRC-VAL-HE-7K/CLASS/*.tif` to test on."""
    for folder, part in (("NCT-CRC-HE-100K", TRAIN), ("CRC-VAL-HE-7K", VALIDATION)):
        yield from _of_class_folders(_inside(root, folder, "CRC"), part=part)


def _of_class_folders(folder: Path, *, part: str) -> Iterator[LabelledTile]:
    for kind in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in sorted(kind.glob("*.tif")):
            yield LabelledTile(
                tile=path, label=kind.name, part=part, hidden=path.name.startswith(".")
            )


def _gleason(root: Path) -> Iterator[LabelledTile]:
    """`train_validation_patches_750/CORE/CORE_patch_1_class_0.jpg`, the array ZT76 to test on; and
    `test_patches_750/patho_1/CORE/...`, whose labels are the first pathologist's.
    """
    places = (("train_validation_patches_750", TRAIN), ("test_patches_750/patho_1", TEST))
    for place, part in places:
        for path in sorted(_inside(root, place, "Gleason Arvaniti").rglob("*.jpg")):
            if path.name.startswith("."):
                yield LabelledTile(tile=path, label=None, part=part, hidden=True)
                continue
            core, _, rest = path.stem.partition("_patch_")
            number = rest.split("_")[-1]
            array = core.split("_")[0]
            if part == TRAIN and array not in {*GLEASON_TRAIN, GLEASON_VALIDATION}:
                raise InsufficientData(
                    f"tile {tile_name(path)} is of array {array}; "
                    f"{place} has {', '.join(GLEASON_TRAIN)} and {GLEASON_VALIDATION}"
                )
            yield LabelledTile(
                tile=path,
                label=GLEASON_CLASSES.get(number, number),
                part=VALIDATION if array == GLEASON_VALIDATION else part,
                group=core,
            )


def _mhist(root: Path) -> Iterator[LabelledTile]:
    """`images/*.png` and `annotations.csv` with the experts' majority and the part of each."""
    table = _inside(root, "annotations.csv", "MHIST")
    images = _inside(root, "images", "MHIST")
    with table.open(newline="", encoding="utf-8-sig") as stream:
        for line, row in enumerate(csv.DictReader(stream), start=2):
            name, label, part = (row.get(column) or "" for column in MHIST_COLUMNS)
            if not name or not label or part not in (TRAIN, TEST):
                raise InsufficientData(
                    f"{table} has no tile, label or part (train or test) in line {line}; "
                    f"needed are the columns {', '.join(MHIST_COLUMNS)}"
                )
            if not (path := images / name).is_file():
                raise InsufficientData(
                    f"{images} has no {name}, which line {line} of annotations.csv names; "
                    "unpack images.zip again"
                )
            yield LabelledTile(tile=path, label=label, part=part)


def _pcam(root: Path) -> Iterator[LabelledTile]:
    """`camelyonpatch_level_2_split_PART_x.h5` with tiles, `..._y.h5` with their labels."""
    for part in (TRAIN, TEST):
        pixels, labels = (
            _inside(root, f"camelyonpatch_level_2_split_{part}_{which}.h5", "PCam")
            for which in "xy"
        )
        try:
            with h5py.File(pixels) as tiles, h5py.File(labels) as truth:
                shape, kind = tiles["x"].shape, tiles["x"].dtype
                found = np.asarray(truth["y"]).ravel()
        except (OSError, KeyError) as error:
            raise InsufficientData(
                f"{pixels.name} or {labels.name} can't be read ({error}); unpack them again"
            ) from None
        if len(shape) != 4 or shape[0] != len(found) or shape[3] != 3 or kind != np.uint8:
            raise InsufficientData(
                f"{pixels.name} has {kind} {shape} for {len(found)} labels; "
                "needed is one uint8 tile of three colours for each"
            )
        for index, label in enumerate(found):
            yield LabelledTile(
                tile=Hdf5Tile(file=pixels, index=index),
                label=PCAM_CLASSES.get(int(label), str(label)),
                part=part,
            )


BACH_TILES: Final = 400
BACH_VALIDATION: Final = (
    range(41, 59), range(60, 90), range(139, 169), range(240, 258), range(260, 273), range(345, 368)
)  # fmt: skip
BREAKHIS_LEFT_OUT: Final = frozenset({"A", "PT", "LC", "PC"})
"""Classes of fewer than 7 patients."""
BREAKHIS_VALIDATION: Final = frozenset(
    ("18842D", "19979", "15275", "15792", "16875", "3909", "5287", "16716", "2773", "5695",
     "16184CD", "23060CD", "21998CD", "21998EF")
)  # fmt: skip
"""Patients."""
BREAKHIS_MPP: Final = 0.49
"""At 40x, a 4x objective and a 10x ocular: camera pixels of 6.5 um behind a 3.3x relay lens show
6.5 / (4 * 3.3) um (image acquisition of Spanhol et al. 2016, IEEE Trans Biomed Eng 63:1455). eva
writes 0.25, as if 40x were the objective; it scales tiles by their side, not by this number."""
GLEASON_TRAIN: Final = ("ZT111", "ZT199", "ZT204")
GLEASON_VALIDATION: Final = "ZT76"
GLEASON_CLASSES: Final = {"0": "benign", "1": "gleason_3", "2": "gleason_4", "3": "gleason_5"}
MHIST_COLUMNS: Final = ("Image Name", "Majority Vote Label", "Partition")
PCAM_CLASSES: Final = {0: "no_tumor", 1: "tumor"}

APART: Final = "No patient is on both sides of it."

DATASETS: Final = {
    row.name: row
    for row in (
        Dataset(
            name="bach", title="BACH", licence="CC BY-NC-ND 4.0, no commercial use", mpp=0.42,
            classes=("Benign", "InSitu", "Invasive", "Normal"), tested=VALIDATION, apart=APART,
            read=_bach,
        ),
        Dataset(
            name="breakhis", title="BreakHis", licence="CC BY 4.0", mpp=BREAKHIS_MPP,
            classes=("TA", "MC", "F", "DC"), tested=VALIDATION, apart=APART, read=_breakhis,
        ),
        Dataset(
            name="crc", title="CRC", licence="CC BY 4.0", mpp=0.5,
            classes=("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"),
            tested=VALIDATION, apart=APART, read=_crc,
        ),
        # eva finds scores on the test part unstable and recommends the validation part
        Dataset(
            name="gleason_arvaniti", title="Gleason Arvaniti", licence="CC0 1.0", mpp=0.23,
            classes=tuple(GLEASON_CLASSES.values()), tested=VALIDATION,
            apart="No array of cores is on both sides of it.", read=_gleason,
        ),
        Dataset(
            name="mhist", title="MHIST", licence="its own research use agreement", mpp=0.25,
            classes=("SSA", "HP"), tested=TEST,
            apart="Whether patients are on both sides of it is not published.", read=_mhist,
        ),
        Dataset(
            name="pcam", title="PCam", licence="CC0 1.0", mpp=1.0,
            classes=tuple(PCAM_CLASSES.values()), tested=TEST,
            apart="No slide is on both sides of it.", read=_pcam,
        ),
    )
}  # fmt: skip
