"""Encoders: saved and loaded whole, named by what they compute, strict about what they take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.grid import PatchSpec
from training.encoder.architecture import EncoderConfig
from training.encoder.encoder import (
    encoder_spec,
    load_encoder,
    random_encoder,
    random_like,
    save_encoder,
)
from training.encoder.vit import ViTConfig
from training.errors import BrokenModel, ModelNotFound, SpecMismatch

CONFIG = EncoderConfig(
    network=ViTConfig(size=32, dim=32, depth=2, heads=2), spec=PatchSpec(size=48, mpp=1.0)
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _patches(n: int, size: int = 48) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)


def _save(folder: Path, config: EncoderConfig = CONFIG, seed: int = 0) -> str:
    return save_encoder(str(folder), random_encoder(config, seed=seed, precision="f32"))


@pytest.mark.parametrize(("pooling", "dimension"), [("cls", 32), ("cls+mean", 64)])
def test_embeds_any_number_of_patches(pooling: str, dimension: int) -> None:
    encoder = random_encoder(replace(CONFIG, pooling=pooling), precision="f32")
    assert encoder.dimension == dimension
    embeddings = encoder.embed(_patches(70))
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (70, dimension)
    np.testing.assert_allclose(
        encoder.embed(_patches(70)[40:41])[0], embeddings[40], rtol=1e-4, atol=1e-5
    )
    assert encoder.embed(_patches(0)).shape == (0, dimension)


def test_bf16_is_close_to_f32() -> None:
    one, two = (
        random_encoder(CONFIG, precision=precision).embed(_patches(8))
        for precision in ("bf16", "f32")
    )
    cosine = (one * two).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    assert cosine.min() > 0.999


def test_a_saved_encoder_embeds_the_same(tmp_path: Path) -> None:
    saved = _save(tmp_path)
    encoder = load_encoder(str(tmp_path), precision="f32")
    expected = random_encoder(CONFIG, seed=0, mean=MEAN, std=STD, precision="f32")
    np.testing.assert_array_equal(encoder.embed(_patches(3)), expected.embed(_patches(3)))
    assert encoder.hash == saved
    assert encoder.config == CONFIG
    assert encoder.name == "random weights, seed 0"
    assert encoder_spec(str(tmp_path)) == CONFIG.spec


def test_read_only_patches_are_taken() -> None:
    patches = _patches(2)
    patches.setflags(write=False)
    assert random_encoder(CONFIG).embed(patches).shape == (2, 64)


def test_the_hash_covers_weights_and_all_that_decides_what_they_compute(tmp_path: Path) -> None:
    hashes = {
        _save(tmp_path / "a"),
        _save(tmp_path / "b", seed=1),
        _save(tmp_path / "c", replace(CONFIG, pooling="cls")),
        _save(tmp_path / "d", replace(CONFIG, spec=PatchSpec(size=48, mpp=0.5))),
    }
    assert len(hashes) == 4
    assert _save(tmp_path / "again") in hashes


def test_a_card_of_other_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no encoder here"):
        load_encoder(str(tmp_path))
    _save(tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps({**card, "pooling": "cls"}))
    with pytest.raises(BrokenModel, match="not the one that the weights were saved with"):
        load_encoder(str(tmp_path))


def test_other_patches_are_refused() -> None:
    encoder = random_encoder(CONFIG)
    with pytest.raises(ValueError, match="expected uint8"):
        encoder.embed(_patches(1, size=32))
    with pytest.raises(ValueError, match="expected uint8"):
        encoder.embed(_patches(1).astype(np.float32))  # type: ignore[arg-type]
    encoder.require(PatchSpec(size=48, mpp=1.0, overlap=8, min_tissue=0.5))
    with pytest.raises(SpecMismatch, match=r"48 px at 1 um per pixel against 48 px at 0\.5"):
        encoder.require(PatchSpec(size=48, mpp=0.5))
    with pytest.raises(SpecMismatch, match="multiple of the token size"):
        replace(CONFIG, spec=PatchSpec(size=50))


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("model.safetensors", b"", r"model\.safetensors has SHA-256"),
        ("card.json", b"", r"card\.json is not JSON"),
        ("card.json", b'{"kind": "enco', r"card\.json is not JSON"),
        ("card.json", b"\xff\xfe\x00", r"card\.json is not JSON"),
        ("card.json", b"[1, 2]", r"card\.json is not a JSON object"),
    ],
)
def test_a_damaged_part_of_a_model_is_named(
    tmp_path: Path, part: str, content: bytes, message: str
) -> None:
    _save(tmp_path)
    (tmp_path / part).write_bytes(content)
    with pytest.raises(BrokenModel, match=message):
        load_encoder(str(tmp_path))


def test_a_card_without_an_entry_is_refused_by_its_name(tmp_path: Path) -> None:
    _save(tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    del card["spec"], card["pooling"]
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(BrokenModel, match="lacks spec, pooling"):
        load_encoder(str(tmp_path))


def test_the_packaged_encoder_is_saved_under_its_own_hash(tmp_path: Path) -> None:
    encoder = load_encoder("efficientnet_lite0", precision="f32")
    assert encoder.spec == encoder_spec("efficientnet_lite0") == PatchSpec(size=224, mpp=0.5)
    assert encoder.dimension == 112 + 192
    assert save_encoder(str(tmp_path), encoder) == encoder.hash
    patches = _patches(2, size=224)
    embeddings = encoder.embed(patches)
    copy = load_encoder(str(tmp_path), precision="f32")
    np.testing.assert_array_equal(copy.embed(patches), embeddings)
    assert copy.card == encoder.card
    assert not np.allclose(random_like(encoder, seed=0).embed(patches), embeddings, atol=0.1)


def test_rounded_weights_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="load the encoder in f32 to save it"):
        save_encoder(str(tmp_path), random_encoder(CONFIG, precision="bf16"))
    assert not list(tmp_path.iterdir())


def test_an_architecture_of_another_version_is_named(tmp_path: Path) -> None:
    _save(tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps({**card, "architecture": "mamba"}))
    with pytest.raises(BrokenModel, match="knows no architecture 'mamba'; update acinus"):
        load_encoder(str(tmp_path))
