"""Checkpoints hold all that the next step depends on; the patch stream and the learner go on from
them exactly.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem
from ray.train import Checkpoint

from pipelines.grid import PatchSpec
from pipelines.index import index_slide
from pipelines.patches import fetch_shards
from pipelines.slides.opening import open_slide
from training.background import Background
from training.data_facts import DataFacts
from training.encoder.vit import ViTConfig
from training.errors import BrokenModel, RunError
from training.pretrain import checkpoints
from training.pretrain.checkpoints import Position
from training.pretrain.crops import CropConfig, View
from training.pretrain.dino.config import DinoConfig
from training.pretrain.dino.head import HeadConfig
from training.pretrain.dino.learner import DinoLearner
from training.pretrain.method import LearnerConfig
from training.pretrain.order import PatchOrder
from training.pretrain.patch_stream import ShardIndex, shuffled_batches
from training.pretrain.recipe import Recipe
from training.pretrain.recipes import RECIPES, recipe_named
from training.pretrain.schedules import Cosine

TINY = Recipe(
    name="tiny",
    network=ViTConfig(size=32, dim=32, depth=2, heads=2, drop_path=0.3, layer_scale=None),
    method=DinoConfig(
        head=HeadConfig(hidden=32, bottleneck=16, prototypes=32),
        crops=CropConfig(
            global_views=View(size=32, scale=(0.4, 1.0), count=2),
            local_views=View(size=16, scale=(0.1, 0.4), count=2),
        ),
        momentum=Cosine(start=0.9, end=1.0),
        centring="centre",
    ),
    steps=30,
    patches_per_step=16,
    learning_rate=Cosine(start=2e-3, end=1e-4, warmup=0.1),
)


def _textures(step: int) -> torch.Tensor:
    """Patches of a few kinds that differ in colour and frequency."""
    random = torch.Generator().manual_seed(step)
    kind = torch.randint(0, 4, (16,), generator=random).float()
    phase = torch.rand(16, generator=random)[:, None, None] * 6.28
    ramp = torch.arange(32.0)
    wave = torch.sin(
        ramp[None, None, :] * (0.2 + 0.3 * kind[:, None, None]) + ramp[None, :, None] * 0.1 + phase
    )
    colour = torch.tensor([[150, 80, 150], [200, 150, 190], [120, 60, 140], [220, 190, 210]])[
        kind.long()
    ]
    return (colour[:, None, None] + 25 * wave[..., None]).clamp(0, 255).to(torch.uint8)


def _learner(recipe: Recipe = TINY, seed: int = 1) -> DinoLearner:
    return DinoLearner(LearnerConfig(recipe=recipe, seed=seed))


def test_the_loss_goes_down_and_the_teacher_follows() -> None:
    learner = _learner(replace(TINY, method=replace(TINY.method, centring="sinkhorn"), steps=40))
    metrics = [learner.step(_textures(step)) for step in range(40)]
    assert (
        np.mean([step["dino"] for step in metrics[-5:]])
        < np.log(TINY.method.head.prototypes) - 0.15
    )  # what knowing nothing costs
    assert metrics[0].keys() == {
        "loss",
        "dino",
        "koleo",
        "gradient_norm",
        "learning_rate",
        "momentum",
    }
    student, teacher = (
        learner.pair.student.encoder.embed.weight,
        learner.pair.teacher.encoder.embed.weight,
    )
    assert not torch.equal(student, teacher)
    assert torch.nn.functional.cosine_similarity(student.flatten(), teacher.flatten(), dim=0) > 0.9


def test_a_learner_goes_on_exactly_from_its_checkpoint(tmp_path: Path) -> None:
    whole = _learner()
    for step in range(6):
        whole.step(_textures(step))
    first = (
        _learner()
    )  # one after the other: in a run, each learner has a process and torch's generator to itself
    for step in range(3):
        first.step(_textures(step))
    position = Position(step=3, world_size=1, consumed=(48,))
    with checkpoints.written(
        0, first.shared_state(), first.own_state(), position, [{"loss": 1.0}]
    ) as checkpoint:
        saved = checkpoints.read(checkpoint)
    assert saved.position == position
    assert saved.history == [{"loss": 1.0}]
    resumed = _learner(seed=99)
    resumed.load(saved.shared, saved.own)
    for step in range(3, 6):
        resumed.step(_textures(step))
    expected = whole.pair.state_dict()
    assert all(
        torch.equal(value, expected[name]) for name, value in resumed.pair.state_dict().items()
    )
    assert torch.equal(resumed.centre.mean, whole.centre.mean)


def test_prototypes_stay_while_frozen() -> None:
    learner = _learner()
    learner.method = replace(TINY.method, freeze_prototypes=1.0)
    before = learner.pair.student.head.prototypes.clone()
    learner.step(_textures(0))
    learner.step(_textures(1))
    assert torch.equal(learner.pair.student.head.prototypes, before)


def test_each_rank_keeps_its_own_randomness(tmp_path: Path) -> None:
    position = Position(step=1, world_size=2, consumed=(4, 4))
    with checkpoints.written(1, {}, {"generator": torch.zeros(1)}, position, []) as checkpoint:
        assert [path.name for path in Path(checkpoint.path).iterdir()] == ["rank-1.pt"]
        with pytest.raises(BrokenModel, match=r"lacks shared\.pt"):
            checkpoints.read(checkpoint, rank=1)
    with checkpoints.written(0, {}, {"generator": torch.ones(1)}, position, []) as checkpoint:
        assert checkpoints.read(checkpoint, rank=1).own is None


def test_position_of_a_rank() -> None:
    position = Position(step=10, world_size=2, consumed=(40, 40))
    assert position.of_rank(1, 2, patches_per_step=8) == 40
    assert position.of_rank(1, 4, patches_per_step=8) == 20


def _register(run: Path, steps: list[int]) -> Path:
    """A list of checkpoints as Ray Train writes it."""
    entries = [{"checkpoint_dir_name": f"step-{step}", "metrics": {}} for step in steps]
    listing = run / checkpoints.REGISTER
    listing.write_text(
        json.dumps(
            {
                "checkpoint_results": entries,
                "checkpoint_report_indices": steps,
                "latest_checkpoint_result": entries[-1] if entries else None,
            }
        )
    )
    return listing


def _run_with_checkpoints(run: Path) -> Path:
    """Whole checkpoints of one rank at steps 4 and 8."""
    for step in (4, 8):
        position = Position(step=step, world_size=1, consumed=(step,))
        state = {"step": step, "weights": torch.arange(100.0)}
        with checkpoints.written(0, state, {"generator": torch.ones(1)}, position, []) as made:
            shutil.copytree(made.path, run / f"step-{step}")
    _register(run, [4, 8])
    return run


def test_latest_checkpoint_is_the_registered_one(tmp_path: Path) -> None:
    assert checkpoints.latest(str(tmp_path)) is None
    assert checkpoints.latest_position(str(tmp_path)) == Position()
    _run_with_checkpoints(tmp_path)
    listing = _register(tmp_path, [4])
    assert checkpoints.latest_position(str(tmp_path)) == Position(
        step=4, world_size=1, consumed=(4,)
    )
    for content in ('{"latest_check', "", "[]"):
        listing.write_text(content)
        with pytest.raises(RunError, match=r"checkpoint_manager_snapshot\.json is damaged"):
            checkpoints.latest(str(tmp_path))


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_cut, _empty, Path.unlink])
@pytest.mark.parametrize("part", ["shared.pt", "rank-0.pt", "position.json", "history.json"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, part: str, damage: Callable[[Path], None]
) -> None:
    run = _run_with_checkpoints(tmp_path)
    assert checkpoints.discard_damaged(str(run)) == []
    damage(run / "step-8" / part)
    [sentence] = checkpoints.discard_damaged(str(run))
    assert "step-8" in sentence
    assert part in sentence
    assert checkpoints.latest_position(str(run)).step == 4
    assert not (run / "step-8").exists()
    assert checkpoints.discard_damaged(str(run)) == []


def test_a_checkpoint_whose_folder_is_gone_gives_way_to_the_one_before(tmp_path: Path) -> None:
    run = _run_with_checkpoints(tmp_path)
    shutil.rmtree(run / "step-8")
    [sentence] = checkpoints.discard_damaged(str(run))
    assert sentence == f"checkpoint {run}/step-8 is missing"
    assert checkpoints.latest_position(str(run)).step == 4
    assert checkpoints.discard_damaged(str(run)) == []


def test_a_checkpoint_gone_from_an_object_store_is_broken(tmp_path: Path) -> None:
    """Not on the local disk: Ray downloads the folder first, and raises FileNotFoundError."""
    run = _run_with_checkpoints(tmp_path)
    store = SubTreeFileSystem(str(run), LocalFileSystem())
    assert checkpoints.read(Checkpoint("step-8", store)).position.step == 8
    shutil.rmtree(run / "step-8")
    with pytest.raises(BrokenModel, match="checkpoint step-8 is missing"):
        checkpoints.read(Checkpoint("step-8", store))


def test_a_run_killed_while_a_damaged_checkpoint_is_dropped_keeps_its_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill comes when the new list is on the disk, but not yet in the place of the old one."""
    run = _run_with_checkpoints(tmp_path)
    before = (run / checkpoints.REGISTER).read_bytes()
    _cut(run / "step-8" / "shared.pt")

    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    for name in ("replace", "rename", "fsync"):
        monkeypatch.setattr(os, name, killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.discard_damaged(str(run))
    assert (run / checkpoints.REGISTER).read_bytes() == before
    monkeypatch.undo()
    assert len(checkpoints.discard_damaged(str(run))) == 1


def test_a_whole_checkpoint_is_read_once_whatever_the_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    position = Position(step=4, world_size=3, consumed=(4, 4, 4))
    for rank in range(3):
        with checkpoints.written(rank, {"step": 4}, {"rank": rank}, position, []) as made:
            shutil.copytree(made.path, tmp_path / "step-4", dirs_exist_ok=True)
    _register(tmp_path, [4])
    read: list[str] = []
    read_bytes = Path.read_bytes

    def noted(path: Path) -> bytes:
        read.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    assert checkpoints.discard_damaged(str(tmp_path)) == []
    ranks = ["rank-0.pt", "rank-1.pt", "rank-2.pt"]
    assert sorted(read) == sorted([*ranks, "shared.pt", "position.json", "history.json"])


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_nothing_removed(
    tmp_path: Path,
) -> None:
    run = _run_with_checkpoints(tmp_path)
    _cut(run / "step-4" / "shared.pt")
    _empty(run / "step-8" / "position.json")
    with pytest.raises(RunError, match=r"step-8: position\.json .*step-4: shared\.pt is damaged"):
        checkpoints.discard_damaged(str(run))
    assert (run / "step-8").exists()


@pytest.fixture(scope="module")
def shards(generated_slide: Path) -> pa.Table:
    with open_slide(str(generated_slide)) as slide:
        return index_slide(
            slide, PatchSpec(size=32, mpp=2.0), organisation="local", shard_side=4
        ).shards


def _stream(shards: pa.Table, order: PatchOrder, consumed: int, batches: int) -> list[np.ndarray]:
    index = ShardIndex.of(shards)
    groups = order.until(index.counts, consumed=consumed, wanted=consumed + 10 * batches)
    blocks = (fetch_shards(shards.take(group.shards)) for group in groups)
    return list(
        itertools.islice(
            Background(shuffled_batches(blocks, index, order, groups, size=10), ahead=2), batches
        )
    )


def test_a_stream_goes_on_exactly_from_any_position(shards: pa.Table) -> None:
    order = PatchOrder(seed=0, rank=1, world_size=2, group=2)
    per_epoch = sum(shards["n_patches"].to_pylist()) // 2
    batches = per_epoch // 10 + 4  # into the second epoch
    whole = _stream(shards, order, 0, batches)
    assert all(batch.shape == (10, 32, 32, 3) for batch in whole)
    for behind in (1, 3, batches - 2):
        rest = _stream(shards, order, 10 * behind, batches - behind)
        assert all(np.array_equal(one, two) for one, two in zip(rest, whole[behind:], strict=True))


def test_unexpected_shards_stop_the_stream(shards: pa.Table) -> None:
    order, index = PatchOrder(seed=0, rank=0, world_size=1, group=2), ShardIndex.of(shards)
    groups = order.until(index.counts, consumed=0, wanted=50)
    swapped = fetch_shards(shards.take(groups[0].shards[::-1]))
    with pytest.raises(RunError, match=r"where shard .* was due"):
        next(shuffled_batches([swapped], index, order, groups, size=5))
    with pytest.raises(RunError, match="ended before shard"):
        list(shuffled_batches([], index, order, groups, size=5))


def test_errors_of_the_background_thread_reach_the_consumer() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise RuntimeError("broken tile")

    background = iter(Background(items(), ahead=1))
    assert next(background) == 1
    with pytest.raises(RuntimeError, match="broken tile"):
        next(background)


def test_leaving_early_ends_the_background_thread() -> None:
    background = Background(itertools.count(), ahead=2)
    assert list(itertools.islice(background, 3)) == [0, 1, 2]
    background._thread.join(5.0)
    assert not background._thread.is_alive()


def test_data_facts_depend_on_the_data_alone(shards: pa.Table) -> None:
    facts = DataFacts.of(shards)
    assert facts.slides == 1
    assert facts.patches == sum(shards["n_patches"].to_pylist())
    column = shards.schema.get_field_index("slide_uri")
    moved = shards.set_column(
        column, shards.schema.field(column), pa.array(["s3://elsewhere"] * len(shards))
    )
    assert DataFacts.of(moved.take(list(range(len(shards)))[::-1])) == facts
    assert DataFacts.of(shards.slice(1)).shards_sha256 != facts.shards_sha256


def test_recipes_are_known_by_name() -> None:
    assert {recipe_named(name).name for name in RECIPES} == set(RECIPES)
    with pytest.raises(RunError, match="recipes are demo, vit_small, context"):
        recipe_named("vit_huge")
