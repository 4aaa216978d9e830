"""Published sets of whole slides as manifests: which slides, their labels and their splits.

    write_manifest("panda_small", folder, "cohort.csv")     then `acinus prepare cohort.csv`

Slides, labels and splits are those of eva (kaiko-ai/eva, `vision/data/datasets/classification`), so
that scores on the test part compare with its leaderboard's. No slide is opened here.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from pipelines import storage
from training.errors import InsufficientData
from training.slide.gleason import grade_group

TRAIN, VALIDATION, TEST = "train", "validation", "test"
COLUMNS: Final = ("slide", "case", "split", "label")
"""Of the manifest. The resolution is the one that each slide's file records."""


@dataclass(frozen=True, kw_only=True)
class SetSlide:
    """A slide of a published set.

    Attributes:
        path: of its file.
        case: its patient; empty where patients are not published.
        split: TRAIN, VALIDATION or TEST.
        label: as published.
    """

    path: Path
    case: str
    split: str
    label: str


@dataclass(frozen=True, kw_only=True)
class SlideSet:
    """A published set of whole slides.

    Attributes:
        name: that `acinus manifest` takes.
        title: for people.
        licence: as published.
        next: what its labels are good for.
        read: the slides below a folder that holds the unpacked archive, and a sentence for each
            that is left out.
    """

    name: str
    title: str
    licence: str
    next: str
    read: Callable[[Path], tuple[list[SetSlide], list[str]]]


@dataclass(frozen=True, kw_only=True)
class SlideSetReport:
    """What a manifest lists.

    Attributes:
        manifest: its URI.
        slides: number of slides by split.
        labels: number of slides by label.
        left_out: a sentence for each slide of a split that the manifest does not list.
    """

    manifest: str
    slides: dict[str, int]
    labels: dict[str, int]
    left_out: list[str]


def slide_set(name: str) -> SlideSet:
    """The row of this name.

    Raises:
        ValueError: there is none; names those that there are.
    """
    if name not in SLIDE_SETS:
        raise ValueError(f"slide set {name!r} is not known; choose one of {', '.join(SLIDE_SETS)}")
    return SLIDE_SETS[name]


def write_manifest(row: SlideSet, folder: str, out: str) -> SlideSetReport:
    """List the slides of a published set in a manifest that `acinus prepare` takes.

    Args:
        row: the set.
        folder: local, with the unpacked archive as published.
        out: CSV file or URI to write.

    Raises:
        InsufficientData: a file or folder of the layout is missing, or a table can't be read.
    """
    root = storage.local_path(folder)
    if root is None or not root.is_dir():
        raise InsufficientData(
            f"{folder} is not a local folder; give the one with the unpacked {row.title}"
        )
    slides, left_out = row.read(root)
    _require_files(root, slides, row)
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(COLUMNS)
    for each in sorted(slides, key=lambda slide: slide.path):
        table.writerow((each.path.resolve(), each.case, each.split, each.label))
    storage.write_bytes(out, stream.getvalue().encode())
    return SlideSetReport(
        manifest=storage.as_uri(out),
        slides=dict(Counter(slide.split for slide in slides)),
        labels=dict(sorted(Counter(slide.label for slide in slides).items())),
        left_out=left_out,
    )


def _require_files(root: Path, slides: Sequence[SetSlide], row: SlideSet) -> None:
    absent = [slide.path for slide in slides if not slide.path.is_file()]
    if absent:
        raise InsufficientData(
            f"{root} lacks {len(absent)} of the {len(slides)} slides of {row.title}, the first is "
            f"{absent[0].relative_to(root)}; download them again"
        )


def _rows(table: Path, title: str, *, columns: Sequence[str] = ()) -> Sequence[Mapping[str, str]]:
    """Rows of a CSV file: with a header that has these columns, else without a header."""
    if not table.is_file():
        raise InsufficientData(f"{table.parent} has no {table.name}, the labels of {title}")
    with table.open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream, fieldnames=None if columns else ("name", "label")))
    for line, row in enumerate(rows, start=2 if columns else 1):
        if lacking := [name for name in columns or ("name", "label") if not row.get(name)]:
            raise InsufficientData(
                f"{table} has no {lacking[0]} in line {line}; download the table again"
            )
    return rows


def _panda_small(root: Path) -> tuple[list[SetSlide], list[str]]:
    """`train_images/ID.tiff`, and the table of labels that eva takes, which marks noisy ones.

    The labels are Gleason scores, from which the ISUP grades follow. One slide's score contradicts
    its published grade. Only the slides of the three splits need to be there.
    """
    if not (table := root / PANDA_TABLE).exists():
        raise InsufficientData(
            f"{root} has no {PANDA_TABLE}, which marks PANDA's noisy labels; save train.csv of "
            "github.com/analokmaus/kaggle-panda-challenge-public there under this name"
        )
    rows = _rows(table, "PANDA", columns=PANDA_COLUMNS)
    kept = sorted(
        (row for row in rows if row["noise_ratio_10"] != "0"), key=lambda row: row["image_id"]
    )
    slides, left_out = [], []
    for split, position in _stratified([row["isup_grade"] for row in kept], PANDA_SHARES):
        row = kept[position]
        if str(_grade(row["gleason_score"])) != row["isup_grade"]:
            left_out.append(
                f"{row['image_id']} ({split}): its Gleason score {row['gleason_score']} is not of "
                f"ISUP grade {row['isup_grade']}"
            )
            continue
        path = root / "train_images" / f"{row['image_id']}.tiff"
        slides.append(SetSlide(path=path, case="", split=split, label=row["gleason_score"]))
    return slides, left_out


def _grade(label: str) -> int | None:
    try:
        return grade_group(label)
    except ValueError:
        return None


def _stratified(labels: Sequence[str], shares: Mapping[str, float]) -> Iterator[tuple[str, int]]:
    """Split and position of each chosen sample: eva's `stratified_split`, seed 42.

    A share of each label's samples, rounded down, at least one.
    """
    random = np.random.default_rng(42)
    found = np.array(labels)
    for label in sorted(set(labels)):
        members = np.flatnonzero(found == label)
        random.shuffle(members)
        start = 0
        for split, share in shares.items():
            end = start + max(1, int(np.floor(share * len(members))))
            yield from ((split, int(position)) for position in members[start:end])
            start = end


def _camelyon16_small(root: Path) -> tuple[list[SetSlide], list[str]]:
    """`training/normal/*.tif`, `training/tumor/*.tif`, `testing/images/*.tif` and
    `testing/reference.csv` with the labels of the last.

    Each slide is of another patient. eva's Camelyon16Small has the same slides as its Camelyon16
    and takes at most 1,000 patches of each; here all of a slide's patches are taken.
    """
    slides = []
    for label in CAMELYON_CLASSES:
        for path in _tif_files(root / "training" / label):
            split = VALIDATION if path.stem in CAMELYON_VALIDATION else TRAIN
            slides.append(SetSlide(path=path, case=path.stem, split=split, label=label))
    reference = {
        row["name"]: row["label"].strip().lower()
        for row in _rows(root / "testing" / "reference.csv", "CAMELYON16")
    }
    for path in _tif_files(root / "testing" / "images"):
        if (label := reference.get(path.stem, "")) not in CAMELYON_CLASSES:
            raise InsufficientData(
                f"{root}/testing/reference.csv labels {path.name} {label!r}; needed is one of "
                f"{', '.join(CAMELYON_CLASSES)}"
            )
        slides.append(SetSlide(path=path, case=path.stem, split=TEST, label=label))
    if (counts := Counter(slide.split for slide in slides)) != CAMELYON_COUNTS:
        raise InsufficientData(
            f"{root} has {_counted(counts)} slides; CAMELYON16 has {_counted(CAMELYON_COUNTS)}: "
            "download what is missing and remove the others"
        )
    return slides, []


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts.get(split, 0)} {split}" for split in (TRAIN, VALIDATION, TEST))


def _tif_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InsufficientData(
            f"{folder} is missing, where CAMELYON16 has slides; give the folder with the unpacked "
            "archive"
        )
    return sorted(path for path in folder.glob("*.tif") if not path.name.startswith("."))


PANDA_TABLE: Final = "train_with_noisy_labels.csv"
PANDA_COLUMNS: Final = ("image_id", "isup_grade", "gleason_score", "noise_ratio_10")
PANDA_SHARES: Final = {TRAIN: 0.1, VALIDATION: 0.05, TEST: 0.05}
"""952, 475 and 475 of the 9,555 slides without noisy labels; eva's documentation has 955 and 477,
its code these."""
CAMELYON_CLASSES: Final = ("normal", "tumor")
CAMELYON_COUNTS: Final = {TRAIN: 216, VALIDATION: 54, TEST: 129}
CAMELYON_VALIDATION: Final = frozenset(
    [f"normal_{number:03}" for number in (
        10, 13, 16, 17, 19, 20, 25, 30, 31, 32, 52, 56, 57, 67, 76, 79, 85, 95, 98, 99, 101, 102,
        105, 106, 109, 129, 132, 137, 142, 143, 148, 152,
    )]
    + [f"tumor_{number:03}" for number in (
        1, 5, 11, 12, 13, 19, 31, 37, 43, 46, 57, 65, 69, 71, 73, 79, 80, 81, 82, 85, 97, 109,
    )]
)  # fmt: skip
"""The slides of PatchCamelyon's validation part."""

SLIDE_SETS: Final = {
    row.name: row
    for row in (
        SlideSet(
            name="panda_small",
            title="PANDA",
            licence="CC BY-NC-SA 4.0, no commercial use",
            next="acinus prepare, then acinus fit-slide; patients are not published, so slides of "
            "one may be on both sides of a split",
            read=_panda_small,
        ),
        SlideSet(
            name="camelyon16_small",
            title="CAMELYON16",
            licence="CC0 1.0",
            next="acinus prepare, then acinus embed --format trident or stamp for a tool that "
            "learns these labels: acinus fit-slide grades prostates",
            read=_camelyon16_small,
        ),
    )
}
