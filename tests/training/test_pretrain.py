"""Pretraining on Ray Train: learns, exports, and ends the same however often it was killed."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.grid import PatchSpec
from training.encoder.encoder import load_encoder
from training.encoder.vit import ViTConfig
from training.errors import RunError
from training.precision import precision_for
from training.pretrain import checkpoints
from training.pretrain.crops import CropConfig, View
from training.pretrain.dino.config import DinoConfig
from training.pretrain.dino.head import HeadConfig
from training.pretrain.pretrain import PretrainConfig, PretrainReport, pretrain
from training.pretrain.recipe import Recipe
from training.pretrain.schedules import Cosine

SPEC = PatchSpec(size=32, mpp=2.0)
STEPS = 10
ON_INTERRUPT = signal.getsignal(signal.SIGINT)
"""Of the caller: ignored where the suite runs in the background of a shell."""
TINY = Recipe(
    name="tiny",
    network=ViTConfig(size=32, dim=32, depth=2, heads=2, drop_path=0.2, registers=1),
    method=DinoConfig(
        head=HeadConfig(hidden=32, bottleneck=16, prototypes=64),
        crops=CropConfig(
            global_views=View(size=32, scale=(0.3, 1.0), count=2),
            local_views=View(size=16, scale=(0.1, 0.3), count=2),
        ),
        centring="centre",
    ),
    steps=STEPS,
    patches_per_step=8,
    learning_rate=Cosine(start=1e-3, end=1e-5, warmup=0.2),
    group=2,
)


@pytest.fixture(scope="module")
def prepared(
    ray_session: None, cohort_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The generated cohort, cut into many small shards of tiny patches."""
    from pipelines.prepare import PrepareConfig, prepare

    out = tmp_path_factory.mktemp("prepared")
    report = prepare(
        PrepareConfig(
            manifest=str(cohort_folder / "manifest.csv"), out=str(out), spec=SPEC, shard_side=4
        )
    )
    assert not report.failed
    return str(out)


def _config(prepared: str, out: Path, **changes: object) -> PretrainConfig:
    values = {
        "data": prepared,
        "out": str(out),
        "recipe": TINY,
        "seed": 5,
        "checkpoint_every": 4,
        "report_every": 2,
    }
    return PretrainConfig(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def uninterrupted(
    prepared: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PretrainReport]:
    """A run from beginning to end."""
    out = tmp_path_factory.mktemp("uninterrupted")
    return out, pretrain(_config(prepared, out))


def _final_state(out: Path) -> checkpoints.Saved:
    checkpoint = checkpoints.latest(str(out / "run"))
    assert checkpoint is not None
    return checkpoints.read(checkpoint, rank=1)


def _assert_same_end(out: Path, other: Path) -> None:
    one, two = _final_state(out), _final_state(other)
    assert one.position == two.position
    assert one.shared["pair"].keys() == two.shared["pair"].keys()
    for name, value in one.shared["pair"].items():
        assert torch.equal(value, two.shared["pair"][name]), name
    for key, state in one.shared["optimiser"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, two.shared["optimiser"]["state"][key][name]), (key, name)
    assert torch.equal(one.shared["centre"]["mean"], two.shared["centre"]["mean"])
    assert one.own is not None
    assert two.own is not None
    assert torch.equal(one.own["generator"], two.own["generator"])
    timed = (
        "data_wait",
        "seconds",
        "read_requests",
        "read_fetched",
        "read_needed",
    )  # how much is read ahead of a step is a race
    timeless = [
        [{k: v for k, v in step.items() if k not in timed} for step in end.history]
        for end in (one, two)
    ]
    assert timeless[0] == timeless[1]


def test_a_run_exports_an_encoder_with_its_card(uninterrupted: tuple[Path, PretrainReport]) -> None:
    out, report = uninterrupted
    assert report.steps == STEPS
    assert report.read.requests > 0
    assert report.read.amplification >= 1.0
    assert [step["step"] for step in report.history] == list(range(1, STEPS + 1))
    assert all(np.isfinite(step["loss"]) for step in report.history)
    encoder = load_encoder(report.encoder)
    assert encoder.hash == report.hash
    assert encoder.spec == SPEC
    assert encoder.embed(np.zeros((3, 32, 32, 3), np.uint8)).shape == (3, 64)
    card = json.loads((out / "encoder" / "card.json").read_text())
    assert card["recipe"]["name"] == "tiny"
    assert (card["seed"], card["steps"], card["world_size"]) == (5, STEPS, 2)
    assert card["precision"] == precision_for(torch.device("cpu"))
    assert json.loads((out / "run.json").read_text())["precision"] == card["precision"]
    assert card["data"]["slides"] == 3  # the fourth is of split test
    assert len(card["data"]["slides_sha256"]) == len(card["data"]["shards_sha256"]) == 64
    assert {"acinus", "ray", "torch"} <= card["versions"].keys()
    assert (out / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert str(out) not in json.dumps(card)  # locations can carry patient data


def test_interrupts_are_the_callers_again(uninterrupted: tuple[Path, PretrainReport]) -> None:
    assert signal.getsignal(signal.SIGINT) is ON_INTERRUPT


def test_teacher_is_not_the_student(uninterrupted: tuple[Path, PretrainReport]) -> None:
    pair = _final_state(uninterrupted[0]).shared["pair"]
    name = "encoder.blocks.0.0.branch.qkv.weight"
    assert not torch.equal(pair[f"student.{name}"], pair[f"teacher.{name}"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 0}, "workers is 0; it must be 1 or more"),
        ({"workers": -2}, "workers is -2; it must be 1 or more"),
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"steps": -1}, "steps is -1; it must be 1 or more"),
        ({"seed": -1}, "seed is -1; it must be 0 to 4294967295"),
        ({"threads": 0}, "threads is 0"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"report_every": 0}, "report_every is 0"),
        (
            {"recipe": "vit_huge"},
            "recipe is 'vit_huge'; it must be one of demo, vit_small, context",
        ),
    ],
)
def test_values_that_no_run_can_have_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PretrainConfig(data="a", out="b", **change)  # type: ignore[arg-type]


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    prepared: str, uninterrupted: tuple[Path, PretrainReport], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(uninterrupted[0], out)
    newest = out / "run" / f"step-{STEPS:07d}" / "shared.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    report = pretrain(_config(prepared, out))
    assert report.resumed_from == 8
    assert report.hash == uninterrupted[1].hash
    [sentence] = report.damaged_checkpoints
    assert "shared.pt is damaged" in sentence
    _assert_same_end(uninterrupted[0], out)


def test_a_finished_run_is_not_repeated(
    prepared: str, uninterrupted: tuple[Path, PretrainReport]
) -> None:
    out, report = uninterrupted
    again = pretrain(_config(prepared, out))
    assert (again.hash, again.resumed_from, again.history) == (report.hash, STEPS, report.history)


def test_another_run_at_the_same_place_is_refused(
    prepared: str, uninterrupted: tuple[Path, PretrainReport]
) -> None:
    with pytest.raises(RunError, match="another seed; give another folder"):
        pretrain(_config(prepared, uninterrupted[0], seed=6))
    with pytest.raises(RunError, match="do not divide among 3 workers"):
        pretrain(_config(prepared, uninterrupted[0], workers=3))


def _die_once(marker: str, last_step: int, rank: int, step: int) -> None:
    """Rank 1 kills itself after a step, the first time it gets there."""
    if rank == 1 and step == last_step and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_changes_nothing(
    prepared: str, uninterrupted: tuple[Path, PretrainReport], tmp_path: Path
) -> None:
    marker = tmp_path / "died"
    report = pretrain(
        _config(prepared, tmp_path / "out", on_step=functools.partial(_die_once, str(marker), 6))
    )
    assert marker.exists()
    assert report.hash == uninterrupted[1].hash
    _assert_same_end(uninterrupted[0], tmp_path / "out")


def _dawdle(after: int, rank: int, step: int) -> None:
    """Leave time to be killed."""
    if step > after:
        time.sleep(30.0)


def test_a_killed_driver_changes_nothing(
    prepared: str, uninterrupted: tuple[Path, PretrainReport], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    script = (
        "import sys; from tests.training.test_pretrain import run_and_dawdle; "
        "run_and_dawdle(*sys.argv[1:])"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", script, prepared, str(out)], cwd=Path(__file__).parents[2]
    )
    try:
        deadline = time.monotonic() + 120.0
        while checkpoints.latest_position(str(out / "run")).step < 4:
            assert driver.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "no checkpoint within two minutes"
            time.sleep(0.2)
    finally:
        driver.kill()
        driver.wait()
    report = pretrain(_config(prepared, out))
    assert report.resumed_from == 4
    assert report.hash == uninterrupted[1].hash
    _assert_same_end(uninterrupted[0], out)


def run_and_dawdle(prepared: str, out: str) -> None:
    """What the driver that is killed runs: five steps, then a long wait."""
    pretrain(_config(prepared, Path(out), on_step=functools.partial(_dawdle, 4)))
