"""Stain views: the same patches under other stains, the same each time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.grid import PatchSpec
from pipelines.synthetic.tissue import generate_tile
from tests.training.test_fit_slide import slides_of
from training.encoder.architecture import EncoderConfig
from training.encoder.encoder import Encoder, random_encoder
from training.encoder.stain_views import StainView, stained
from training.encoder.vit import ViTConfig
from training.slide import held_out
from training.slide.slide_model import AttentionConfig

PATCHES = np.stack([generate_tile("gleason_3", np.random.default_rng(k), side=32) for k in (1, 2)])


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    network = ViTConfig(size=32, dim=32, depth=1, heads=2)
    config = EncoderConfig(network=network, spec=PatchSpec(size=32, mpp=1.0))
    return random_encoder(config, precision="f32")


def test_a_view_is_the_same_each_time_and_other_views_differ() -> None:
    np.testing.assert_array_equal(stained(PATCHES, 1), stained(PATCHES, 1))
    assert np.abs(stained(PATCHES, 1).astype(int) - stained(PATCHES, 2)).mean() > 2
    assert np.abs(stained(PATCHES, 1).astype(int) - PATCHES).mean() > 2


def test_each_patch_of_many_has_a_stain_of_its_own() -> None:
    many = np.repeat(PATCHES[:1], 130, axis=0)
    colours = stained(many, 1).mean(axis=(1, 2))
    assert len(np.unique(colours.round(3), axis=0)) == 130


def test_embeddings_of_a_view_have_an_address_of_their_own(encoder: Encoder) -> None:
    first, second = StainView(encoder, 1), StainView(encoder, 2)
    assert len({encoder.key, first.key, second.key}) == 3
    assert first.hash == encoder.hash
    np.testing.assert_array_equal(first.embed(PATCHES), encoder.embed(stained(PATCHES, 1)))


def test_the_pattern_head_learns_from_views(monkeypatch: pytest.MonkeyPatch) -> None:
    slides = slides_of([("a", "benign"), ("b", "3+3")])
    views = (np.ones((1, 2), np.float32), np.full((1, 2), 2.0, np.float32))
    slides = [replace(slide, stain_views=views) for slide in slides]
    seen: list[tuple[int, int]] = []

    def fit(embeddings: np.ndarray, patterns: np.ndarray, *, penalty: float) -> None:
        seen.append((len(embeddings), len(patterns)))

    monkeypatch.setattr(held_out, "fit_pattern_head", fit)
    config = held_out.FitConfig(penalty=1.0, attention=AttentionConfig(epochs=1), seed=0)
    held_out.fit_parts(slides, config)
    assert seen == [(6, 6)]
