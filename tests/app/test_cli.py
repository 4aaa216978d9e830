"""`acinus prepare`: options reach the cohort, wrong ones are refused before anything is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import Result
from typer.testing import CliRunner

from app.cli.application import build
from pipelines.cohort import cohort_spec, load_cohort
from pipelines.cohort_shards import load_shards
from pipelines.patches import decode_patches, fetch_shards
from pipelines.synthetic.tissue import generate_tile
from tests.support.icc_profile import matrix_profile


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One slide with a colour profile, an objective and no mpp."""
    folder = tmp_path_factory.mktemp("slides")
    pixels = np.full((768, 1024, 3), 243, np.uint8)
    pixels[128:640, 128:640] = generate_tile("gleason_4", np.random.default_rng(0), side=512)
    tifffile.imwrite(
        folder / "slide.svs",
        pixels,
        photometric="rgb",
        compression="jpeg",
        tile=(256, 256),
        iccprofile=matrix_profile(),
        description="Aperio Image Library v12.0.0\r\n1024x768 [0,0 1024x768] (256x256)|AppMag = 20",
        metadata=None,
    )
    return folder


def _prepare(*words: object) -> Result:
    return CliRunner().invoke(build(), ["prepare", *map(str, words)])


def test_colour_stain_and_objective_reach_the_patches(
    ray_session: None, folder: Path, tmp_path: Path
) -> None:
    plain, asked = str(tmp_path / "plain"), str(tmp_path / "asked")
    assert _prepare(folder, "--out", plain, "--mpp", 0.5).exit_code == 0
    done = _prepare(folder, "--out", asked, "--icc", "--stain", "macenko", "--mpp-from-objective")
    assert done.exit_code == 0, done.output
    row = load_cohort(asked).to_pylist()[0]
    assert row["mpp"] == 0.5
    assert len(row["icc"]) == 16
    spec = cohort_spec(asked)
    assert (spec.icc, spec.stain) == (True, "macenko")
    assert (cohort_spec(plain).icc, cohort_spec(plain).stain) == (False, "")
    for name in ("icc", "stain"):
        out = str(tmp_path / name)
        assert (
            _prepare(
                folder,
                "--out",
                out,
                "--mpp",
                0.5,
                *(["--icc"] if name == "icc" else ["--stain", "reinhard"]),
            ).exit_code
            == 0
        )
    patches = {name: _patches(str(tmp_path / name)) for name in ("plain", "asked", "icc", "stain")}
    for name in ("asked", "icc", "stain"):
        assert patches[name].shape == patches["plain"].shape
        assert np.abs(patches[name].astype(int) - patches["plain"]).mean() > 1, name


def _patches(out: str) -> np.ndarray:
    return decode_patches(fetch_shards(load_shards(out)))["patch"]


def test_a_slide_with_only_an_objective_is_refused(
    ray_session: None, folder: Path, tmp_path: Path
) -> None:
    done = _prepare(folder, "--out", tmp_path, "--stain", "macenko")
    assert done.exit_code == 1
    failed = json.loads((tmp_path / "report.json").read_text())["failed"]
    assert [outcome["kind"] for outcome in failed] == ["MissingResolution"]
    assert [outcome["code"] for outcome in failed] == ["missing-mpp"]
    assert "--mpp-from-objective" in done.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--stain", "vahadane"], "'vahadane' is none of macenko, reinhard"),
        (["--split", "train=0.7,test=0.7"], "--split"),
        (["--mpp", "half"], "--mpp"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, words: list[str], named: str
) -> None:
    done = _prepare(folder, "--out", tmp_path / "out", *words)
    assert done.exit_code == 2
    assert named in done.stderr
    assert not (tmp_path / "out").exists()
