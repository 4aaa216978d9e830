"""Preparing a cohort: every slide attempted, every failure recorded, the same result always."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines import addresses, cohort, cohort_shards, storage
from pipelines.grid import PatchSpec
from pipelines.prepare import PrepareConfig, prepare
from pipelines.slides.errors import NoTissue
from pipelines.tissue import tissue_mask

SPEC = PatchSpec(size=112, mpp=1.0)


def test_good_slides_survive_bad_ones(cohort_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.svs").write_bytes(b"II*\0" + b"\0" * 500)
    lines = (cohort_folder / "manifest.csv").read_text().splitlines()
    rows = [lines[0], "bad.svs,case-bad,train,,", "gone.svs,case-gone,train,,"]
    for line in lines[1:3]:
        slide, *values, annotation = line.split(",")
        row = [str(cohort_folder / slide), *values, str(cohort_folder / annotation)]
        rows.append(",".join(row))
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    seen = []
    report = prepare(
        PrepareConfig(
            manifest=str(tmp_path / "manifest.csv"),
            out=str(tmp_path / "out"),
            spec=SPEC,
            organisation="hospital",
        ),
        on_slide=lambda outcome, total: seen.append((outcome.slide, total)),
    )
    assert [(one.line, one.slide) for one in report.failed] == [(2, "bad.svs"), (3, "gone.svs")]
    assert "BrokenSlide" in report.failed[0].error
    assert "Traceback" in report.failed[0].trace
    assert len(report.prepared) == 2
    assert len(seen) == 4
    table = cohort.load_cohort(str(tmp_path / "out"), split="train")
    assert table["label"].to_pylist() == ["benign", "3+3"]
    shards = cohort_shards.load_shards(str(tmp_path / "out"))
    assert (
        sum(shards["n_patches"].to_pylist())
        == report.n_patches
        == sum(table["n_patches"].to_pylist())
    )
    for slide_id in table["slide_id"].to_pylist():
        picture = addresses.overview("hospital", slide_id, SPEC.hash)
        assert (
            storage.read_bytes(storage.join(str(tmp_path / "out"), *picture.split("/")))[:4]
            == b"\x89PNG"
        )
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(written["failed"]) == 2
    assert written["reading"]["requests"] >= 2
    assert written["reading"]["fetched"] > 100_000
    assert 1 <= written["reading"]["amplification"] < 1.1


def test_same_input_same_bytes(cohort_folder: Path, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        out = tmp_path / name
        prepare(
            PrepareConfig(manifest=str(cohort_folder / "manifest.csv"), out=str(out), spec=SPEC)
        )
        contents.append(
            {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*.parquet"))}
        )
    assert contents[0] == contents[1]
    assert len(contents[0]) == 5


def test_every_row_is_attempted(tmp_path: Path) -> None:
    """More rows than are in flight at a time."""
    (tmp_path / "manifest.csv").write_text(
        "slide\n" + "".join(f"absent-{k}.svs\n" for k in range(30))
    )
    report = prepare(
        PrepareConfig(manifest=str(tmp_path / "manifest.csv"), out=str(tmp_path / "out"), spec=SPEC)
    )
    assert [one.line for one in report.failed] == list(range(2, 32))


def test_unknown_split_is_named(cohort_folder: Path, tmp_path: Path) -> None:
    prepare(
        PrepareConfig(manifest=str(cohort_folder / "manifest.csv"), out=str(tmp_path), spec=SPEC)
    )
    assert cohort.cohort_spec(str(tmp_path)) == SPEC
    with pytest.raises(cohort.CohortError, match="test, train"):
        cohort.load_cohort(str(tmp_path), split="tset")
    with pytest.raises(cohort.CohortError, match="acinus prepare"):
        cohort.load_cohort(str(tmp_path / "nothing"))


def test_tissue_is_found_and_its_absence_told() -> None:
    glass = np.full((400, 300, 3), 243, np.uint8)
    glass[100:300, 100:200] = (205, 120, 180)
    mask = tissue_mask("a", glass, mpp=8.0)
    assert mask[110:290, 110:190].all()
    assert mask.sum() == pytest.approx(200 * 100, rel=0.06)
    with pytest.raises(NoTissue, match="no stained tissue"):
        tissue_mask(
            "a",
            np.random.default_rng(0).integers(238, 246, (300, 300, 3)).astype(np.uint8),
            mpp=8.0,
        )
    with pytest.raises(NoTissue, match="fluorescence"):
        tissue_mask("a", np.full((300, 300, 3), 10, np.uint8), mpp=8.0)
