"""Published sets of whole slides as manifests: tiny look-alikes in the published layout, with the
slides, labels and splits of eva.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.manifest import read_manifest
from training.errors import InsufficientData
from training.evaluation.slide_sets import SLIDE_SETS, slide_set, write_manifest
from training.slide.gleason import grade_group

SCORES = ("negative", "0+0", "3+3", "3+4", "4+3", "4+4", "5+4")
EVA = {
    "train": "190 274 308 570 598 732 785 956",
    "validation": "009 034 146 492 604 788",
    "test": "115 140 221 436 626 679",
}
"""What eva's `stratified_split` (commit 73b61a7, run once) chooses of the look-alike's 133 slides
without noisy labels."""


def panda_small(root: Path, *, spoil: Callable[[dict[str, str]], None] = lambda _row: None) -> None:
    """140 slides in the table, every twentieth with a noisy label; files of the chosen ones only.

    Args:
        root: of the archive.
        spoil: changes a row of the table.
    """
    (root / "train_images").mkdir()
    with (root / "train_with_noisy_labels.csv").open("w", newline="") as stream:
        table = csv.DictWriter(
            stream, ("image_id", "isup_grade", "gleason_score", "noise_ratio_10")
        )
        table.writeheader()
        for k in range(140):
            score = SCORES[k % 7]
            row = {
                "image_id": f"{(k * 7919) % 1000:03}",
                "isup_grade": str(grade_group(score)),
                "gleason_score": score,
                "noise_ratio_10": "0" if k % 20 == 3 else "1",
            }
            spoil(row)
            table.writerow(row)
    for name in " ".join(EVA.values()).split():
        (root / f"train_images/{name}.tiff").touch()


def camelyon16_small(root: Path) -> None:
    """All 399 slides as empty files: a manifest opens none."""
    for label, count in (("normal", 159), ("tumor", 111)):
        (root / "training" / label).mkdir(parents=True)
        for k in range(1, count + 1):
            (root / f"training/{label}/{label}_{k:03}.tif").touch()
    (root / "testing/images").mkdir(parents=True)
    lines = []
    for k in range(1, 130):
        (root / f"testing/images/test_{k:03}.tif").touch()
        lines.append(f"test_{k:03},{'Tumor' if k % 3 == 0 else 'Normal'},IDC,Macro")
    (root / "testing/reference.csv").write_text("\n".join(lines))
    (root / "testing/images/._test_001.tif").touch()


LAYOUTS: dict[str, Callable[[Path], None]] = {
    each.__name__: each for each in (panda_small, camelyon16_small)
}


def test_every_set_has_a_lookalike() -> None:
    assert LAYOUTS.keys() == SLIDE_SETS.keys()


def test_panda_has_the_slides_splits_and_grades_of_eva(tmp_path: Path) -> None:
    panda_small(tmp_path)
    report = write_manifest(
        slide_set("panda_small"), str(tmp_path), str(tmp_path / "out/cohort.csv")
    )
    manifest = read_manifest(report.manifest)
    found = {
        split: " ".join(sorted(Path(row.uri).stem for row in manifest if row.split == split))
        for split in EVA
    }
    assert found == EVA
    assert report.slides == {"train": 8, "validation": 6, "test": 6}
    assert report.left_out == []
    for row in manifest:
        position = next(k for k in range(140) if f"{(k * 7919) % 1000:03}" == Path(row.uri).stem)
        assert row.label == SCORES[position % 7]
    assert {grade_group(label) for label in report.labels} == {0, 1, 2, 3, 4, 5}


def test_a_slide_whose_score_contradicts_its_grade_is_left_out_and_named(tmp_path: Path) -> None:
    def contradict(row: dict[str, str]) -> None:
        if row["image_id"] == "308":
            row["gleason_score"] = "4+4" if row["isup_grade"] != "4" else "3+3"

    panda_small(tmp_path, spoil=contradict)
    report = write_manifest(slide_set("panda_small"), str(tmp_path), str(tmp_path / "cohort.csv"))
    assert report.slides["train"] == 7
    assert len(report.left_out) == 1
    assert report.left_out[0].startswith("308 (train): its Gleason score")


def test_camelyon_has_the_splits_of_eva_and_a_case_for_each_slide(tmp_path: Path) -> None:
    camelyon16_small(tmp_path)
    report = write_manifest(
        slide_set("camelyon16_small"), str(tmp_path), str(tmp_path / "cohort.csv")
    )
    manifest = read_manifest(report.manifest)
    assert report.slides == {"validation": 54, "train": 216, "test": 129}
    assert report.labels == {"normal": 159 + 86, "tumor": 111 + 43}
    rows = {Path(row.uri).stem: row for row in manifest}
    assert (rows["tumor_109"].split, rows["tumor_109"].label) == ("validation", "tumor")
    assert (rows["tumor_110"].split, rows["tumor_110"].label) == ("train", "tumor")
    assert (rows["test_003"].split, rows["test_003"].label) == ("test", "tumor")
    assert (rows["test_004"].split, rows["test_004"].label) == ("test", "normal")
    assert Counter(row.case for row in manifest) == Counter(list(rows))


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("panda_small", "train_with_noisy_labels.csv", "save train.csv of github.com/analokmaus"),
        ("panda_small", "train_images/308.tiff", "lacks 1 of the 20 .* train_images/308.tiff"),
        ("camelyon16_small", "training/tumor", "training/tumor is missing"),
        ("camelyon16_small", "testing/reference.csv", "no reference.csv, the labels of CAMELYON16"),
        ("camelyon16_small", "training/normal/normal_010.tif", "has 216 train, 53 validation, 129"),
    ],
)
def test_a_missing_part_of_the_layout_is_named(
    name: str, path: str, message: str, tmp_path: Path
) -> None:
    (root := tmp_path / "set").mkdir()
    LAYOUTS[name](root)
    (root / path).rename(tmp_path / "elsewhere")
    out = tmp_path / "cohort.csv"
    with pytest.raises(InsufficientData, match=message):
        write_manifest(slide_set(name), str(root), str(out))
    assert not out.exists()


def test_labels_that_are_missing_or_unknown_are_refused(tmp_path: Path) -> None:
    camelyon16_small(tmp_path)
    table, out = tmp_path / "testing/reference.csv", str(tmp_path / "cohort.csv")
    whole = table.read_text()
    for text, message in (
        (whole.replace("test_007,Normal", "test_007,Benign"), r"labels test_007\.tif 'benign'"),
        (whole.replace("test_007,Normal", "test_700,Normal"), r"labels test_007\.tif ''"),
        (whole.replace("test_007,Normal", "test_007,"), "no label in line 7"),
    ):
        table.write_text(text)
        with pytest.raises(InsufficientData, match=message):
            write_manifest(slide_set("camelyon16_small"), str(tmp_path), out)


def test_sets_and_folders_that_there_are_not_are_refused(tmp_path: Path) -> None:
    expected = "slide set 'panda' is not known; choose one of panda_small, camelyon16_small"
    with pytest.raises(ValueError, match=re.escape(expected)):
        slide_set("panda")
    with pytest.raises(InsufficientData, match="not a local folder"):
        write_manifest(slide_set("panda_small"), "s3://bucket/panda", str(tmp_path / "out.csv"))
