"""Encoders on the command line: by name or folder, with their licence; `prepare` takes their
patches.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from app.cli import options
from app.cli.application import build
from app.cli.boundary import run
from pipelines.cohort_shards import load_shards
from tests.support.hand_made import SPEC, make_encoder
from training.encoder.catalogue import catalogue
from training.encoder.encoder import load_encoder
from training.encoder.lite0 import EFFICIENTNET_LITE0
from training.encoder.published import PUBLISHED


def _acinus(*arguments: str) -> int:
    return run(build(), list(arguments))


def test_the_default_is_the_packaged_one() -> None:
    assert options.DEFAULT_ENCODER == EFFICIENTNET_LITE0


def test_all_encoders_are_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert _acinus("encoders") == 0
    printed = capsys.readouterr().out
    assert len(catalogue()) == len(PUBLISHED) + 1
    for name in (EFFICIENTNET_LITE0, *PUBLISHED):
        assert name in printed
    [virchow2] = [line for line in printed.splitlines() if "virchow2" in line]
    assert "CC-BY-NC-ND-4.0" in virchow2
    assert "2560" in virchow2
    assert " no " in virchow2


def test_prepare_takes_the_patches_of_an_encoder(generated_slide: Path, tmp_path: Path) -> None:
    encoder, out = make_encoder(tmp_path / "encoder"), tmp_path / "out"
    assert _acinus("prepare", str(generated_slide), "--out", str(out), "--encoder", encoder) == 0
    shards = load_shards(str(out))
    assert set(shards["patch_size"].to_pylist()) == {SPEC.size}


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--size", "256", "256 is given"), ("--patch-mpp", "0.25", "0.25"), ("--icc", "", "True")],
)
def test_prepare_refuses_what_contradicts_its_encoder(
    tmp_path: Path,
    generated_slide: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
    said: str,
) -> None:
    arguments = ["prepare", str(generated_slide), "--out", str(tmp_path / "out")]
    given = [option, value] if value else [option]
    assert _acinus(*arguments, "--encoder", EFFICIENTNET_LITE0, *given) == 2
    error = capsys.readouterr().err
    assert option in error
    assert said in error
    assert not (tmp_path / "out").exists()


def test_an_encoder_without_a_folder_after_its_name_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _acinus("fit-slide", "--data", str(tmp_path), "--out", "x", "--encoder", "uni=") == 2
    assert "--encoder" in capsys.readouterr().err


def test_a_saved_encoder_has_the_hash_that_it_has_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _acinus("save-encoder", "--out", str(tmp_path / "encoder")) == 0
    by_name = load_encoder(EFFICIENTNET_LITE0, precision="f32")
    assert by_name.hash[:20] in capsys.readouterr().out.replace("\n", "")
    assert load_encoder(str(tmp_path / "encoder"), precision="f32").hash == by_name.hash
