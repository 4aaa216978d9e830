"""Losses against plain NumPy, and in the direction that matters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.pretrain.losses.dino import Centre, dino_loss, sinkhorn_knopp
from training.pretrain.losses.koleo import koleo_loss

Floats = NDArray[np.float64]


def _softmax(logits: Floats) -> Floats:
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=-1, keepdims=True))


def _random(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=shape)


def test_dino_is_the_mean_cross_entropy_between_different_views() -> None:
    student, targets = _random(5, 3, 7), _softmax(_random(2, 3, 7, seed=1))
    pairs = []
    for s in range(5):
        for t in range(2):
            if s != t:
                log_p = np.log(_softmax(student[s] / 0.1))
                pairs.append(np.mean([-np.sum(targets[t, n] * log_p[n]) for n in range(3)]))
    ours = dino_loss(torch.tensor(student), torch.tensor(targets, dtype=torch.float32), 0.1)
    assert float(ours) == pytest.approx(np.mean(pairs), rel=1e-5)


def test_dino_is_least_where_views_agree_with_the_teacher() -> None:
    targets = torch.tensor(_softmax(_random(1, 6, 9)), dtype=torch.float32).expand(2, -1, -1)
    agreeing = targets.log() * 0.1
    assert dino_loss(agreeing, targets) < dino_loss(agreeing + 0.05 * torch.randn(2, 6, 9), targets)


def test_sinkhorn_balances_prototypes_and_rows() -> None:
    logits = _random(12, 4)
    q = np.exp(logits / 0.05 - (logits / 0.05).max())
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(axis=0, keepdims=True) * q.shape[1]
        q /= q.sum(axis=1, keepdims=True) * q.shape[0]
    q *= q.shape[0]
    ours = sinkhorn_knopp(torch.tensor(logits, dtype=torch.float32), 0.05).numpy()
    np.testing.assert_allclose(ours, q, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(ours.sum(axis=1), 1.0, rtol=1e-5)
    balanced = sinkhorn_knopp(torch.tensor(logits, dtype=torch.float32), 0.5, iterations=50).numpy()
    np.testing.assert_allclose(balanced.sum(axis=0), 12 / 4, rtol=1e-3)


def test_sinkhorn_survives_the_most_extreme_cosines() -> None:
    targets = sinkhorn_knopp(torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]]), 0.04)
    assert torch.isfinite(targets).all()
    assert torch.allclose(targets.sum(dim=1), torch.ones(3), atol=1e-4)


def test_centre_subtracts_the_mean_so_far_and_then_moves() -> None:
    centre, mean = Centre(5, momentum=0.8), np.zeros(5)
    for seed in range(3):
        logits = _random(6, 5, seed=seed)
        targets = centre(torch.tensor(logits, dtype=torch.float32), 0.04).numpy()
        np.testing.assert_allclose(targets, _softmax((logits - mean) / 0.04), rtol=1e-3, atol=1e-6)
        mean = 0.8 * mean + 0.2 * logits.mean(axis=0)
    np.testing.assert_allclose(centre.mean.numpy()[0], mean, rtol=1e-5, atol=1e-6)
    assert set(centre.state_dict()) == {"mean"}


def test_koleo_is_minus_the_mean_log_distance_to_the_nearest_neighbour() -> None:
    embeddings = _random(8, 5)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    nearest = [min(np.linalg.norm(unit[i] - unit[j]) for j in range(8) if j != i) for i in range(8)]
    assert float(koleo_loss(torch.tensor(embeddings))) == pytest.approx(
        -np.mean(np.log(nearest)), rel=1e-4
    )


def test_minimising_koleo_spreads_embeddings() -> None:
    torch.manual_seed(0)
    embeddings = (torch.ones(16, 8) + 0.05 * torch.randn(16, 8)).requires_grad_()

    def mean_distance() -> float:
        unit = torch.nn.functional.normalize(embeddings.detach(), dim=-1)
        return float(torch.pdist(unit).mean())

    before, optimiser = mean_distance(), torch.optim.SGD([embeddings], lr=0.1)
    for _ in range(50):
        optimiser.zero_grad()
        koleo_loss(embeddings).backward()
        optimiser.step()
    assert mean_distance() > 4 * before


def test_koleo_stays_finite_for_equal_embeddings_and_refuses_one() -> None:
    equal = torch.ones(4, 3, requires_grad=True)
    loss = koleo_loss(equal)
    loss.backward()
    assert torch.isfinite(loss)
    assert equal.grad is not None
    assert torch.isfinite(equal.grad).all()
    with pytest.raises(ValueError, match="at least 2"):
        koleo_loss(torch.ones(1, 3))
