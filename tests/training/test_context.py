"""Learning from context: a copy of an encoder learns its teacher's view of the surroundings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipelines.grid import PatchSpec
from training.encoder.architecture import EncoderConfig
from training.encoder.encoder import random_encoder, save_encoder
from training.encoder.vit import ViTConfig
from training.errors import RunError, SpecMismatch
from training.pretrain import checkpoints
from training.pretrain.checkpoints import Position
from training.pretrain.context.config import ContextConfig
from training.pretrain.context.learner import ContextLearner
from training.pretrain.crops import View
from training.pretrain.method import LearnerConfig
from training.pretrain.methods import method_of
from training.pretrain.recipe import Recipe
from training.pretrain.recipes import context, demo
from training.pretrain.schedules import Cosine

NETWORK = ViTConfig(size=32, dim=32, depth=2, heads=2, layer_scale=None)
SPEC = PatchSpec(size=32, mpp=1.0)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Continues from a small ViT of random weights."""
    teacher = tmp_path_factory.mktemp("teacher")
    config = EncoderConfig(network=NETWORK, spec=SPEC)
    save_encoder(str(teacher), random_encoder(config, seed=3, precision="f32"))
    return Recipe(
        name="tiny",
        method=ContextConfig(
            teacher=str(teacher), view=View(size=32, scale=(0.3, 0.6), count=1, aspect=1.1)
        ),
        network=NETWORK,
        steps=40,
        patches_per_step=16,
        learning_rate=Cosine(start=1e-3, end=1e-4, warmup=0.1),
        weight_decay=Cosine(start=0.0, end=0.0),
    )


def _learner(recipe: Recipe, seed: int = 1) -> ContextLearner:
    return ContextLearner(LearnerConfig(recipe=recipe, seed=seed))


def _tissue(step: int) -> torch.Tensor:
    """Patches whose colour varies between patches, and less within."""
    random = torch.Generator().manual_seed(step)
    colour = torch.randint(90, 220, (16, 1, 1, 3), generator=random)
    grain = torch.randint(-20, 20, (16, 48, 48, 3), generator=random)
    return (colour + grain).clamp(0, 255).to(torch.uint8)


def test_the_student_comes_closer_to_its_target_and_the_teacher_stays(recipe: Recipe) -> None:
    learner = _learner(recipe)
    before = {name: value.clone() for name, value in learner.teacher.state_dict().items()}
    losses = [learner.step(_tissue(step))["loss"] for step in range(40)]
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])
    assert all(
        torch.equal(value, before[name]) for name, value in learner.teacher.state_dict().items()
    )
    exported = method_of(recipe).network(recipe, learner.shared_state())
    assert not torch.equal(exported.embed.weight, learner.teacher.network.embed.weight)


def test_a_learner_goes_on_exactly_from_its_checkpoint(recipe: Recipe) -> None:
    whole, first = _learner(recipe), _learner(recipe)
    for step in range(4):
        whole.step(_tissue(step))
    for step in range(2):
        first.step(_tissue(step))
    position = Position(step=2, world_size=1, consumed=(32,))
    with checkpoints.written(
        0, first.shared_state(), first.own_state(), position, [{"loss": 1.0}]
    ) as checkpoint:
        saved = checkpoints.read(checkpoint)
    resumed = _learner(recipe, seed=99)
    resumed.load(saved.shared, saved.own)
    for step in range(2, 4):
        resumed.step(_tissue(step))
    expected = whole.student.state_dict()
    assert expected
    assert all(
        torch.equal(value, expected[name]) for name, value in resumed.student.state_dict().items()
    )


def test_the_encoder_takes_its_teachers_patches_and_learns_from_larger_ones() -> None:
    recipe, method = context(), method_of(context())
    ours = PatchSpec(size=224, mpp=0.5)
    assert method.encoder_spec(recipe, PatchSpec(size=376, mpp=0.5), 16) == ours
    for spec in (ours, PatchSpec(size=376, mpp=1.0)):
        with pytest.raises(SpecMismatch, match="prepare it with patches of 381 px"):
            method.encoder_spec(recipe, spec, 16)


def test_a_teacher_of_another_architecture_is_refused(recipe: Recipe) -> None:
    with pytest.raises(SpecMismatch, match="give the recipe the teacher's architecture"):
        _learner(replace(recipe, network=replace(NETWORK, depth=3)))


def test_dino_refuses_another_network_than_a_vit() -> None:
    mixed = replace(demo(), network=context().network)
    with pytest.raises(RunError, match="not one of a ViT trained by DINO"):
        method_of(mixed).encoder_spec(mixed, PatchSpec(size=224, mpp=0.5), 16)
