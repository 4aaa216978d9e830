"""The network: shapes for any crop, tokens in their positions, weights from a seed, normalisation
folded exactly.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from training.encoder.network import half, random_network
from training.encoder.vit import ViTConfig
from training.pretrain.crops import Crops
from training.pretrain.dino.head import DinoHead, HeadConfig
from training.pretrain.dino.student_teacher import StudentTeacher
from training.pretrain.schedules import Cosine, WarmUp

TINY = ViTConfig(size=64, dim=32, depth=2, heads=4, registers=3)


def _images(n: int, side: int) -> torch.Tensor:
    return torch.randn(n, side, side, 3, generator=torch.Generator().manual_seed(side))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 96), (32, 32), (48, 80)])
def test_any_multiple_of_the_token_size_is_taken(height: int, width: int) -> None:
    tokens = random_network(TINY, seed=0)(torch.randn(2, height, width, 3))
    assert tokens.cls.shape == (2, 32)
    assert tokens.patches.shape == (2, height // 16 * (width // 16), 32)


def test_other_sizes_and_layouts_are_refused() -> None:
    network = random_network(TINY, seed=0)
    for shape in ((1, 60, 64, 3), (1, 3, 64, 64)):
        with pytest.raises(ValueError, match="multiples of 16"):
            network(torch.zeros(shape))
    with pytest.raises(ValueError, match="multiple of the token size"):
        ViTConfig(size=100)


def test_tokens_are_squares_in_reading_order() -> None:
    network = random_network(TINY, seed=0)
    image = torch.zeros(1, 64, 64, 3)
    image[:, 16:32, 48:64] = 1.0  # row 1, column 3
    changed = (
        (network.tokens_of(image) - network.tokens_of(torch.zeros_like(image))).abs().sum(dim=-1)[0]
    )
    assert changed.nonzero().flatten().tolist() == [1 * 4 + 3]


def test_stretched_positions_keep_a_smooth_field() -> None:
    network = random_network(TINY, seed=0)
    ramp = torch.linspace(0.0, 1.0, 4)
    with torch.no_grad():
        network.positions[0, 1:] = (ramp[:, None] + torch.zeros(4, 4)).reshape(16, 1)
    stretched = network.positions_for(8, 4)[0, 1:].view(8, 4, 32)
    assert (stretched[1:, 0, 0] - stretched[:-1, 0, 0] > 0).all()
    torch.testing.assert_close(stretched[:, 0], stretched[:, 3])
    assert network.positions_for(4, 4) is network.positions


def test_same_seed_same_weights_and_the_caller_keeps_its_random_state() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two, other = (random_network(TINY, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not torch.equal(one["embed.weight"], other["embed.weight"])


def test_folded_normalisation_takes_raw_pixels() -> None:
    network = random_network(TINY, seed=0)
    mean, std = (0.7, 0.5, 0.6), (0.2, 0.25, 0.22)
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    expected = network((pixels / 255.0 - torch.tensor(mean)) / torch.tensor(std))
    folded = copy.deepcopy(network)
    folded.fold_normalisation(mean, std)
    torch.testing.assert_close(folded(pixels).cls, expected.cls, rtol=1e-3, atol=1e-4)
    halved = half(folded)(pixels).cls.float()
    assert torch.nn.functional.cosine_similarity(halved, expected.cls).min() > 0.999


def test_drop_path_acts_in_training_only() -> None:
    network = random_network(
        ViTConfig(size=32, dim=32, depth=2, heads=4, drop_path=0.9, layer_scale=None), seed=0
    )
    images = _images(4, 32)
    assert torch.equal(network.eval()(images).cls, network(images).cls)
    assert not torch.equal(network.train()(images).cls, network(images).cls)


def test_head_scores_are_cosines() -> None:
    scores = DinoHead(32, HeadConfig(hidden=16, bottleneck=8, prototypes=20))(
        torch.randn(5, 32) * 100
    )
    assert scores.shape == (5, 20)
    assert scores.abs().max() <= 1.0 + 1e-5


def test_teacher_begins_as_the_student_and_follows_it() -> None:
    pair = StudentTeacher(TINY, HeadConfig(hidden=16, bottleneck=8, prototypes=20))
    crops = Crops(
        global_views=torch.randn(2, 3, 64, 64, 3), local_views=torch.randn(4, 3, 32, 32, 3)
    )
    scores, cls = pair.student(crops)
    assert scores.shape == (6, 3, 20)
    assert cls.shape == (2, 3, 32)
    assert not any(value.requires_grad for value in pair.teacher.parameters())
    start = pair.teacher.head.prototypes.clone()
    torch.testing.assert_close(pair.teacher(crops)[0], scores)
    with torch.no_grad():
        pair.student.head.prototypes.add_(1.0)
    pair.ema_update(0.75)
    torch.testing.assert_close(pair.teacher.head.prototypes, start + 0.25)


def test_schedules_begin_and_end_where_they_say() -> None:
    momentum = Cosine(start=0.994, end=1.0)
    values = [momentum.at(step, 100) for step in range(100)]
    assert values[0] == pytest.approx(0.994)
    assert values[-1] == pytest.approx(1.0)
    assert np.all(np.diff(values) >= 0)
    rate = Cosine(start=1.0, end=0.1, warmup=0.2)
    assert [rate.at(step, 10) for step in (0, 1, 2, 9)] == pytest.approx([0.0, 0.5, 1.0, 0.1])
    temperature = WarmUp(start=0.04, end=0.07, share=0.5)
    assert [temperature.at(step, 10) for step in (0, 5, 9)] == pytest.approx([0.04, 0.07, 0.07])


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_class_tokens_and_their_gradients_are_those_of_the_whole_network(drop_path: float) -> None:
    network = random_network(replace(TINY, drop_path=drop_path), seed=0).double().train()
    images = torch.rand(5, 64, 48, 3, dtype=torch.float64)
    found = []
    for encode in (lambda: network(images).cls, lambda: network.class_tokens(images)):
        torch.manual_seed(1)  # of stochastic depth
        network.zero_grad()
        cls = encode()
        cls.sin().sum().backward()
        found.append((cls.detach(), [value.grad for value in network.parameters()]))
    (whole, gradients), (alone, gradients_alone) = found
    torch.testing.assert_close(alone, whole)
    for value, expected in zip(gradients_alone, gradients, strict=True):
        torch.testing.assert_close(value, expected)
