"""A table of mistakes over all commands.

Each ends in one sentence and exit code 1, or in a usage message and exit code 2. Words in braces
are replaced by the paths of `paths`. Commands run in this process, through the same boundary as
`acinus`.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from app.cli.application import build
from app.cli.boundary import run
from pipelines import storage
from tests.support.model_set import SPEC


@dataclass(frozen=True)
class Mistake:
    """A command line, and what its sentence must name.

    Attributes:
        line: the words after `acinus`, separated by spaces.
        named: texts that standard error must contain.
        code: exit code; 2 for mistakes that the command line alone shows.
    """

    line: str
    named: tuple[str, ...]
    code: int = 1


def usage(line: str, *named: str) -> Mistake:
    """A mistake that the command line alone shows."""
    return Mistake(line, named, code=2)


def refused(line: str, *named: str) -> Mistake:
    """A mistake that only the files show."""
    return Mistake(line, named)


PREPARE = "prepare {manifest} --out {out}"
PRETRAIN = "pretrain --data {cohort} --out {out}"
PROBE = "probe --tiles {tiles} --encoder {encoder} --out {out}"
FIT_SLIDE = "fit-slide --data {cohort} --encoder {encoder} --out {out}"
FIT_RISK = (
    "fit-risk --simulate --data {cohort} --encoder {encoder} --slide-model {slide_model} "
    "--out {out}"
)
ANALYSE = "analyse {slide} --models {models} --out {out}"

OF_USAGE = [
    usage("", "Usage: acinus"),
    usage("prepair", "prepair", "prepare"),
    usage("manifest panda {empty} --out {out}", "panda_small, camelyon16_small"),
    usage("prepare", "manifest"),
    usage("prepare {manifest}", "--out"),
    usage(f"{PREPARE} --tissue 0.5", "--tissue"),
    usage(f"{PREPARE} extra", "extra"),
    usage(f"{PREPARE} --size many", "--size"),
    usage("synth --out {out} --slides 0", "slides", "0"),
    usage("synth --out {out} --slides -1", "slides", "-1"),
    usage("synth --out {out} --slides 2 --test-slides 3", "test_slides", "3"),
    usage("synth --out {out} --test-slides -1", "test_slides", "-1"),
    usage("synth --out {out} --core-length 0", "core_length", "0"),
    usage("synth --out {out} --seed -1", "seed", "-1"),
    usage("synth --out ''", "--out"),
    usage(f"{PREPARE} --min-tissue 25", "min_tissue", "25"),
    usage(f"{PREPARE} --min-tissue nan", "min_tissue", "nan"),
    usage(f"{PREPARE} --min-tissue -0.1", "min_tissue", "-0.1"),
    usage(f"{PREPARE} --overlap 300", "overlap", "300"),
    usage(f"{PREPARE} --overlap -1", "overlap", "-1"),
    usage(f"{PREPARE} --size 8", "size", "8"),
    usage(f"{PREPARE} --size -224", "size", "-224"),
    usage(f"{PREPARE} --patch-mpp 0", "--patch-mpp", "0"),
    usage(f"{PREPARE} --patch-mpp inf", "--patch-mpp", "inf"),
    usage(f"{PREPARE} --mpp 0", "mpp", "0"),
    usage(f"{PREPARE} --mpp -1", "mpp", "-1"),
    usage(f"{PREPARE} --mpp nan", "mpp", "nan"),
    usage(f"{PREPARE} --mpp half", "--mpp"),
    usage(f"{PREPARE} --stain vahadane", "--stain", "vahadane", "macenko"),
    usage(f"{PREPARE} --split train=0.7,test=0.7", "--split"),
    usage(f"{PREPARE} --split train", "--split"),
    usage(f"{PREPARE} --organisation a/b", "organisation", "a/b"),
    usage(f"{PREPARE} --organisation ''", "organisation"),
    usage("prepare {manifest} --out ''", "out"),
    usage("prepare '' --out {out}", "manifest"),
    usage("prepare {manifest} --out s3://", "--out", "s3://", "bucket"),
    usage("prepare {manifest} --out s3:/bucket/x", "--out", "s3:/bucket/x", "slash"),
    usage("prepare {manifest} --out file:/tmp/x", "--out", "file:/tmp/x", "slash"),
    usage("prepare s3:/bucket/x.csv --out {out}", "s3:/bucket/x.csv", "slash"),
    usage("pretrain --data {cohort} --out s3:///x", "--out", "s3:///x", "bucket"),
    usage("fit-slide --data s3:bucket --encoder {encoder} --out {out}", "--data", "s3:bucket"),
    usage("analyse {slide} --models s3:/bucket/x --out {out}", "--models", "s3:/bucket/x"),
    usage(f"{PRETRAIN} --workers 0", "workers", "0"),
    usage(f"{PRETRAIN} --workers -1", "workers", "-1"),
    usage(f"{PRETRAIN} --steps 0", "steps", "0"),
    usage(f"{PRETRAIN} --steps -1", "steps", "-1"),
    usage(f"{PRETRAIN} --recipe none", "recipe", "none", "demo"),
    usage(f"{PRETRAIN} --seed -1", "seed", "-1"),
    usage("pretrain --data {cohort} --out ''", "out"),
    usage("pretrain --data '' --out {out}", "data"),
    usage(f"{PROBE} --folds 1", "folds", "1"),
    usage(f"{PROBE} --folds 0", "folds", "0"),
    usage(f"{PROBE} --tile-mpp 0", "--tile-mpp", "0"),
    usage(f"{PROBE} --tile-mpp nan", "--tile-mpp", "nan"),
    usage(f"{PROBE} --dataset none", "dataset", "none", "bach"),
    usage(f"{PROBE} --dataset panda_small", "panda_small", "whole slides"),
    usage(f"{PROBE} --seed -1", "seed", "-1"),
    usage("probe --tiles '' --encoder {encoder} --out {out}", "tiles"),
    usage(f"{FIT_SLIDE} --folds 1", "folds", "1"),
    usage(f"{FIT_SLIDE} --folds -5", "folds", "-5"),
    usage(f"{FIT_SLIDE} --seed -1", "seed", "-1"),
    usage("fit-slide --data {cohort} --encoder '' --out {out}", "encoder"),
    usage(f"{FIT_RISK} --patients 0", "patients", "0"),
    usage(f"{FIT_RISK} --patients -3", "patients", "-3"),
    usage(f"{FIT_RISK} --seed -1", "seed", "-1"),
    usage(f"{ANALYSE} --age 400 --psa 5 --t-stage T2", "--age", "400"),
    usage(f"{ANALYSE} --age nan --psa 5 --t-stage T2", "--age", "nan"),
    usage(f"{ANALYSE} --psa 5,2", "--psa", "5,2"),
    usage(f"{ANALYSE} --age 60 --psa 5 --t-stage T9", "--t-stage", "T9", "T2b"),
    usage(f"{ANALYSE} --gleason-primary 3", "gleason_secondary"),
    usage(f"{ANALYSE} --gleason-primary 9 --gleason-secondary 3", "--gleason-primary", "9"),
    usage(f"{ANALYSE} --mpp 0", "mpp", "0"),
    usage(f"{ANALYSE} --mpp -0.5", "mpp", "-0.5"),
    usage(f"{ANALYSE} --mpp nan", "mpp", "nan"),
    usage("analyse '' --models {models} --out {out}", "slide"),
    usage("analyse {slide} --models '' --out {out}", "models"),
    usage("analyse {slide} --models {models} --out ''", "out"),
    usage("serve --port 0", "--port", "0"),
    usage("serve --port 65536", "--port", "65536"),
    usage("serve --port http", "--port"),
    usage("serve --models ''", "models"),
]

OF_INPUT = [
    refused("synth --out {out} --tiles {missing}", "missing"),
    refused("synth --out {out} --tiles {empty}", "empty"),
    refused("manifest panda_small {missing} --out {out}", "missing"),
    refused("manifest camelyon16_small {empty} --out {out}", "training/normal"),
    refused("prepare {missing} --out {out}", "missing"),
    refused("prepare {missing}.csv --out {out}", "missing.csv"),
    refused("prepare {empty} --out {out}", "empty"),
    refused("prepare {text} --out {out}", "text.txt"),
    refused("prepare {zero} --out {out}", "zero.csv"),
    refused("prepare {bytes} --out {out}", "bytes.csv"),
    refused("prepare ftp://host/slides/ --out {out}", "ftp://host/slides"),
    refused("prepare {manifest} --out ftp://host/out", "ftp://host/out"),
    refused("pretrain --data {missing} --out {out}", "missing"),
    refused("pretrain --data {text} --out {out}", "text.txt"),
    refused("pretrain --data {cut_cohort} --out {out}", "cut-cohort"),
    refused("pretrain --data ftp://host/cohort --out {out}", "ftp://host/cohort"),
    refused(f"{PRETRAIN} --split validation", "validation", "train"),
    refused(f"{PRETRAIN} --split ''", "split"),
    refused("probe --tiles {missing} --encoder {encoder} --out {out}", "missing"),
    refused(f"{PROBE} --dataset mhist", "annotations.csv", "MHIST"),
    refused("probe --tiles {empty} --encoder {encoder} --out {out}", "empty"),
    refused("probe --tiles {tiles} --encoder {missing} --out {out}", "missing"),
    refused("probe --tiles {tiles} --encoder {slide_model} --out {out}", "slide_model"),
    refused("probe --tiles {tiles} --encoder {cut_encoder} --out {out}", "cut-encoder"),
    refused("probe --tiles {tiles} --encoder {cut_card} --out {out}", "cut-card"),
    refused("probe --tiles {damaged_tiles} --encoder {encoder} --out {out}", "damaged.png"),
    refused(f"{PROBE} --folds 100", "100"),
    refused("fit-slide --data {missing} --encoder {encoder} --out {out}", "missing"),
    refused("fit-slide --data {cut_cohort} --encoder {encoder} --out {out}", "cut-cohort"),
    refused("fit-slide --data {cohort} --encoder {missing} --out {out}", "missing"),
    refused("fit-slide --data {cohort} --encoder {risk_model} --out {out}", "risk_model"),
    refused("fit-slide --data {cohort} --encoder {cut_encoder} --out {out}", "cut-encoder"),
    refused(f"{FIT_SLIDE} --split none", "none", "train"),
    refused(f"{FIT_SLIDE} --split test", "two different grade groups"),
    refused(
        FIT_RISK.replace("{slide_model}", "{missing}"),
        "missing",
    ),
    refused(
        FIT_RISK.replace("{slide_model}", "{encoder}"),
        "encoder",
    ),
    refused(f"{FIT_RISK} --patients 1", "1"),
    refused("analyse {missing} --models {models} --out {out}", "missing"),
    refused("analyse {empty} --models {models} --out {out}", "empty"),
    refused("analyse {text} --models {models} --out {out}", "text.txt"),
    refused("analyse {zero} --models {models} --out {out}", "zero.csv"),
    refused("analyse {cut_slide} --models {models} --out {out}", "cut.svs"),
    refused("analyse {damaged_slide} --models {models} --out {out}", "damaged.svs"),
    refused("analyse {no_mpp} --models {models} --out {out}", "no-mpp.tiff", "--mpp"),
    refused("analyse {not_utf8} --models {models} --out {out}", ".svs"),
    refused("analyse {slide} --models {missing} --out {out}", "missing"),
    refused("analyse {slide} --models {empty} --out {out}", "empty"),
    refused("analyse {slide} --models {cut_models} --out {out}", "cut-models"),
    refused("analyse ftp://host/slide.svs --models {models} --out {out}", "slide.svs", "s3://"),
    refused("analyse http://host/slide.svs --models {models} --out {out}", "slide.svs", "s3://"),
    refused("serve --models {missing}", "missing"),
    refused("serve --models {empty}", "empty"),
    refused("serve --models {cut_models}", "cut-models"),
]

UNWRITABLE = [
    "synth --out {out} --slides 1 --test-slides 0 --core-length 2",
    "prepare {manifest} --out {out} --size 64",
    "probe --tiles {tiles} --encoder {encoder} --out {out} --folds 2",
    "fit-slide --data {cohort} --encoder {encoder} --out {out}",
    FIT_RISK,
    "analyse {slide} --models {models} --out {out}",
]


@pytest.fixture(scope="session")
def paths(
    cohort_folder: Path,
    model_set: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """What the words in braces stand for: a good cohort and models, and broken ones."""
    folder = tmp_path_factory.mktemp("mistakes")
    models = Path(model_set.removeprefix("file://"))
    found = {
        "manifest": cohort_folder / "manifest.csv",
        "slide": cohort_folder / "slide-003.svs",
        "cohort": _prepared(cohort_folder, folder / "cohort"),
        "models": models,
        "encoder": models / "encoder",
        "slide_model": models / "slide_model",
        "risk_model": models / "risk_model",
        "missing": folder / "missing",
        "tiles": _tiles(folder / "tiles"),
    }
    return {name: str(path) for name, path in {**found, **_broken(folder, found)}.items()}


def _prepared(slides: Path, out: Path) -> Path:
    line = ["prepare", str(slides / "manifest.csv"), "--out", str(out), "--size", str(SPEC.size)]
    assert run(build(), line) == 0
    return out


def _tiles(folder: Path) -> Path:
    for name in ("benign", "gleason_3"):
        (folder / name).mkdir(parents=True)
        for number in range(5):
            shade = 40 * number + 40
            Image.new("RGB", (300, 300), (shade, 40, 90)).save(folder / name / f"{number}.png")
    return folder


def _broken(folder: Path, good: dict[str, Path]) -> dict[str, Path]:
    def cut(path: Path, *, share: float = 0.5) -> None:
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    broken = {
        "empty": folder / "empty",
        "text": folder / "text.txt",
        "zero": folder / "zero.csv",
        "bytes": folder / "bytes.csv",
        "cut_slide": folder / "cut.svs",
        "damaged_slide": folder / "damaged.svs",
        "no_mpp": folder / "no-mpp.tiff",
        "not_utf8": Path(os.fsdecode(bytes(folder) + b"/J\xf6rg.svs")),
        "cut_cohort": shutil.copytree(good["cohort"], folder / "cut-cohort"),
        "cut_encoder": shutil.copytree(good["encoder"], folder / "cut-encoder"),
        "cut_card": shutil.copytree(good["encoder"], folder / "cut-card"),
        "cut_models": shutil.copytree(good["models"], folder / "cut-models"),
        "damaged_tiles": shutil.copytree(good["tiles"], folder / "damaged-tiles"),
    }
    broken["empty"].mkdir()
    broken["text"].write_text("nothing to see")
    broken["zero"].write_bytes(b"")
    broken["bytes"].write_bytes(bytes(range(256)) * 8)
    shutil.copy(good["slide"], broken["cut_slide"])
    cut(broken["cut_slide"])
    damaged = bytearray(good["slide"].read_bytes())
    damaged[2000 : len(damaged) // 2] = os.urandom(len(damaged) // 2 - 2000)
    broken["damaged_slide"].write_bytes(damaged)
    tifffile.imwrite(
        broken["no_mpp"],
        np.full((512, 512, 3), (200, 120, 160), np.uint8),
        photometric="rgb",
        compression="jpeg",
        tile=(256, 256),
        metadata=None,
    )
    cut(broken["cut_cohort"] / "cohort.parquet")
    cut(broken["cut_encoder"] / "model.safetensors")
    (broken["cut_card"] / "card.json").write_bytes(b"")
    cut(broken["cut_models"] / "slide_model" / "model.safetensors")
    (broken["damaged_tiles"] / "benign" / "damaged.png").write_bytes(b"\x89PNG no more")
    return broken


def words_of(line: str, paths: dict[str, str]) -> list[str]:
    """The words of a command line; `''` is an empty one."""
    return ["" if word == "''" else word.format(**paths) for word in line.split(" ") if word]


def check_one_sentence(text: str, mistake: Mistake) -> None:
    """Standard error holds one sentence that names what is wrong, after usage lines if any."""
    lines = [line for line in text.splitlines() if line.strip()]
    assert "Traceback" not in text
    assert "fault of Acinus" not in text
    for named in mistake.named:
        assert named in text
    if mistake.code == 2 and len(mistake.line) > 0:
        assert [line.partition(":")[0] for line in lines[:1]] == ["Usage"]
        assert lines[-1].startswith("Error: ")
        assert len(lines) == 3
    if mistake.code == 1 and not mistake.line.startswith("prepare"):
        assert len(lines) == 1


@pytest.mark.parametrize("mistake", [*OF_USAGE, *OF_INPUT], ids=lambda mistake: mistake.line)
def test_a_mistake_ends_in_one_sentence(
    mistake: Mistake,
    paths: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    code = run(build(), words_of(mistake.line, {**paths, "out": str(tmp_path / "out")}))
    captured = capfd.readouterr()
    assert code == mistake.code, captured.err
    check_one_sentence(captured.err if mistake.line else captured.out + captured.err, mistake)
    if mistake.code == 2:
        assert not (tmp_path / "out").exists()


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """A disk that is full: no file may grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("line", UNWRITABLE)
def test_an_output_that_cannot_be_written_is_named(
    line: str,
    paths: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("mine")
    out = str(tmp_path / "file" / "out")
    code = run(build(), words_of(line, {**paths, "out": out}))
    captured = capfd.readouterr()
    assert code == 1, captured.err
    check_one_sentence(captured.err, refused(line, out))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("line", UNWRITABLE)
def test_a_full_disk_is_named(
    line: str,
    paths: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with files_limited_to(0):
        code = run(build(), words_of(line, {**paths, "out": str(tmp_path / "out")}))
    captured = capsys.readouterr()
    assert code == 1, captured.err
    # Fits keep embeddings in a temporary file before they write.
    full = tempfile.gettempdir() if line.startswith("fit-") else str(tmp_path / "out")
    check_one_sentence(captured.err, refused(line, full))


def test_a_port_in_use_is_refused_before_ray_starts(
    paths: dict[str, str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr("ray.init", lambda *_args, **_options: started.append(_options))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = f"serve --models {{models}} --port {port}"
        code = run(build(), words_of(line, paths))
    text = capfd.readouterr().err
    assert code == 1, text
    check_one_sentence(text, refused(line, str(port)))
    assert not started


@pytest.mark.parametrize(
    "line",
    [
        "prepare s3://bucket/slides/ --out {out}",
        "fit-slide --data s3://bucket/cohort --encoder {encoder} --out {out}",
        "analyse s3://bucket/a.svs --models {models} --out {out}",
        "analyse {slide} --models s3://bucket/models --out {out}",
        "analyse {slide} --models {models} --out s3://bucket/out",
    ],
)
def test_a_store_that_cannot_be_reached_is_named(
    line: str,
    paths: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-test")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setattr("pipelines.storage.s3.PATIENCE", timedelta(milliseconds=100))
    storage.forget_stores()
    code = run(build(), words_of(line, {**paths, "out": str(tmp_path / "out")}))
    storage.forget_stores()
    text = capfd.readouterr().err
    assert code == 1, text
    check_one_sentence(text, refused(line))
    assert "s3://bucket" in text or "a.svs" in text
    assert "secret-of-test" not in text
