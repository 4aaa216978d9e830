"""bf16 is computed only where the processor has it; a run keeps its precision, and embeddings of
two precisions stay apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.grid import PatchSpec
from training.data_facts import DataFacts
from training.encoder.architecture import EncoderConfig
from training.encoder.encoder import Encoder, load_encoder, random_encoder
from training.encoder.network import rounded
from training.encoder.vit import ViTConfig
from training.errors import RunError
from training.precision import PrecisionChoice, precision_for
from training.pretrain.dino.learner import DinoLearner
from training.pretrain.method import LearnerConfig
from training.pretrain.recipe import Recipe
from training.pretrain.recipes import demo
from training.pretrain.run_record import open_record, read_record, settle_precision

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
AVX2_ONLY = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
FACTS = DataFacts(slides=1, shards=1, patches=1, slides_sha256="a", shards_sha256="b")


class SeenTypes(TorchDispatchMode):
    """Counts the operations that take or give bfloat16, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.bf16, self.all = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in (*args, result) if isinstance(t, torch.Tensor)]
        self.all += 1
        self.bf16 += any(t.dtype == torch.bfloat16 for t in tensors)
        return result


def count_operations(choice: PrecisionChoice) -> dict[str, int]:
    """Operations of a training step and an embedding of the demo recipe: all, and those in bf16."""
    recipe = demo()
    precision = precision_for(CPU, choice)
    patches = np.zeros((2, 224, 224, 3), np.uint8)
    learner = DinoLearner(LearnerConfig(recipe=recipe, seed=0, precision=precision))
    config = EncoderConfig(network=recipe.network, spec=PatchSpec(size=224, mpp=0.5))
    encoder = random_encoder(config, precision=precision)
    with SeenTypes() as seen:
        learner.step(torch.from_numpy(patches))
        encoder.embed(patches)
    return {"all": seen.all, "bf16": seen.bf16}


def _counted_by_a_process(choice: str, **environment: str) -> dict[str, int]:
    """What `count_operations` returns in a process with this environment: torch reads it once.

    The processor is said to have instructions for bf16, so that the environment alone decides.
    """
    program = (
        "import json, sys, torch; from tests.training.test_precision import count_operations; "
        "torch.cpu._is_avx512_bf16_supported = lambda: True; "
        "print(json.dumps(count_operations(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, choice],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


def test_no_bf16_operation_runs_in_the_demo_recipe_on_a_processor_with_avx2_only() -> None:
    counted = _counted_by_a_process("auto", **AVX2_ONLY)
    assert counted["all"] > 1000
    assert counted["bf16"] == 0


def test_bf16_operations_are_counted_where_bf16_is_asked_for() -> None:
    assert count_operations("bf16")["bf16"] > 100


@pytest.mark.parametrize("variable", AVX2_ONLY)
def test_holding_either_library_to_avx2_is_respected(variable: str) -> None:
    if "AVX512" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("both libraries are held to AVX2 by the processor")
    assert _counted_by_a_process("auto", **{variable: AVX2_ONLY[variable]})["bf16"] == 0


def test_bf16_is_chosen_where_the_processor_has_instructions_for_it() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or any(variable in os.environ for variable in AVX2_ONLY):
        pytest.skip("the processor's instructions are not known here")
    has_bf16 = bool({"avx512_bf16", "amx_bf16"} & set(flags.read_text().split()))
    assert precision_for(CPU) == ("bf16" if has_bf16 else "f32")


def _recipe(choice: PrecisionChoice = "auto") -> Recipe:
    return replace(demo(), precision=choice)


def _new_run(out: Path, choice: PrecisionChoice = "auto") -> None:
    open_record(str(out), recipe=_recipe(choice), seed=0, data=FACTS)


def test_a_run_keeps_its_precision_where_the_processor_would_choose_another(tmp_path: Path) -> None:
    _new_run(tmp_path)
    assert settle_precision(str(tmp_path), _recipe(), CPU, rank=0) == precision_for(CPU)
    record = read_record(str(tmp_path))
    assert record["precision"] == precision_for(CPU)
    other = "f32" if record["precision"] == "bf16" else "bf16"
    (tmp_path / "run.json").write_text(json.dumps({**record, "precision": other}))
    _new_run(tmp_path)  # the same run, continued
    assert settle_precision(str(tmp_path), _recipe(), CPU, rank=0) == other


def test_checkpoints_without_their_record_are_not_continued(tmp_path: Path) -> None:
    """Copied elsewhere without it, they would go on under any recipe, seed or data."""
    _new_run(tmp_path)
    (tmp_path / "run" / "checkpoint_000000").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint_000000" / "shared.pt").write_bytes(b"weights")
    (tmp_path / "run.json").unlink()
    with pytest.raises(RunError, match=r"has checkpoints of a run but no run\.json"):
        _new_run(tmp_path)


@pytest.mark.parametrize("choice", ["bf16", "f32"])
def test_a_recipe_can_fix_the_precision(tmp_path: Path, choice: PrecisionChoice) -> None:
    _new_run(tmp_path, choice)
    assert settle_precision(str(tmp_path), _recipe(choice), CPU, rank=0) == choice


def settle_as_rank(rank: int, meeting: str, out: str, choice: PrecisionChoice) -> None:
    """One of two workers, whose own device computes fast in `choice`."""
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    print(settle_precision(out, _recipe(choice), CPU, rank=rank))
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("choices", "settled"), [(("bf16", "f32"), "f32"), (("bf16", "bf16"), "bf16")]
)
def test_all_ranks_agree_on_what_each_can_compute(
    tmp_path: Path, choices: tuple[str, str], settled: str
) -> None:
    _new_run(tmp_path)
    program = (
        "import sys; from tests.training.test_precision import settle_as_rank; "
        "settle_as_rank(int(sys.argv[1]), *sys.argv[2:])"
    )
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                program,
                str(rank),
                f"file://{tmp_path}/meeting",
                str(tmp_path),
                choice,
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, choice in enumerate(choices)
    ]
    assert [rank.communicate(timeout=120)[0].strip() for rank in ranks] == [settled, settled]
    assert read_record(str(tmp_path))["precision"] == settled


@pytest.mark.parametrize("content", [b"", b'{"recipe": {', b"\xff\xfe"])
def test_a_damaged_run_record_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    _new_run(tmp_path)
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunError, match=r"run\.json is damaged.*give another folder"):
        _new_run(tmp_path)


@pytest.mark.parametrize("network", ["efficientnet_lite0", "vit"])
def test_rounding_after_every_layer_gives_what_bf16_gives(network: str) -> None:
    """Its difference from f32 has the size that bf16's has."""

    def encoder(precision: PrecisionChoice) -> Encoder:
        if network != "vit":
            return load_encoder(network, precision=precision)
        config = ViTConfig(size=64, dim=32, depth=4, heads=2, layer_scale=None)
        spec = PatchSpec(size=64, mpp=0.5)
        return random_encoder(EncoderConfig(network=config, spec=spec), precision=precision)

    coarse = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)
    patches = coarse.repeat(encoder("f32").spec.size // 8, 1).repeat(
        encoder("f32").spec.size // 8, 2
    )
    exact, half = (encoder(each).embed(patches) for each in ("f32", "bf16"))
    other = encoder("f32")
    rounded(other.network)
    found = other.embed(patches)
    assert 0.7 < np.abs(found - exact).mean() / np.abs(half - exact).mean() < 1.5
