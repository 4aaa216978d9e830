"""EfficientNet-Lite0 of the package: the numbers of the plain network, at the border too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.plain_efficientnet import embed, published_weights
from training.encoder.encoder import load_encoder, random_like
from training.encoder.lite0 import load_network
from training.encoder.network import pool
from training.errors import BrokenModel


@pytest.mark.parametrize(("height", "width"), [(224, 224), (96, 160), (75, 101)])
def test_folded_and_plain_networks_agree_on_any_size(height: int, width: int) -> None:
    rng = np.random.default_rng(height)
    images = torch.from_numpy(rng.integers(0, 256, (2, height, width, 3), np.uint8))
    with torch.inference_mode():
        expected = embed(published_weights(), images)
        found = pool(load_network().eval()(images), "cls+mean")
    assert found.shape == (2, 1584)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_embedding_is_the_middle_blocks_alone() -> None:
    encoder = load_encoder("efficientnet_lite0", precision="f32")
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    with torch.inference_mode():
        expected = embed(published_weights(), torch.from_numpy(images))[:, : 112 + 192]
    assert encoder.dimension == 304
    np.testing.assert_allclose(encoder.embed(images), expected, rtol=1e-4, atol=1e-4)


def test_borders_are_padded_with_what_normalises_to_zero() -> None:
    grey = torch.full((1, 64, 64, 3), 127, dtype=torch.uint8)
    network = load_network().eval()
    with torch.inference_mode():
        stem = network.embed(grey.permute(0, 3, 1, 2).float())
    assert network.embed.bias is not None
    torch.testing.assert_close(stem, network.embed.bias[None, :, None, None].expand_as(stem))


def test_bf16_is_close_to_f32_on_tissue() -> None:
    rng = np.random.default_rng(0)
    tissue = np.clip(rng.normal([200, 140, 180], 30, (4, 224, 224, 3)), 0, 255).astype(np.uint8)
    one, two = (
        load_encoder("efficientnet_lite0", precision=precision).embed(tissue)
        for precision in ("bf16", "f32")
    )
    cosine = (one * two).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    assert cosine.min() > 0.99


def test_random_weights_embed_in_a_usable_range() -> None:
    encoder = random_like(load_encoder("efficientnet_lite0", precision="f32"), seed=0)
    images = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
    embeddings = encoder.embed(images)
    assert 0.01 < embeddings.std() < 100
    np.testing.assert_array_equal(random_like(encoder, seed=0).embed(images), embeddings)


def test_weights_of_another_hash_are_refused() -> None:
    with pytest.raises(BrokenModel, match=r"have SHA-256 .*, not 5793.*; install version 0\.1\.0"):
        load_network(b"other weights")
