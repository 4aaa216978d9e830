"""Embedding slides: complete, in order, and never twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines import storage
from pipelines.grid import PatchSpec
from pipelines.index import index_slide
from pipelines.patches import decode_patches, fetch_shards
from pipelines.slides.opening import open_slide
from training.encoder.architecture import EncoderConfig
from training.encoder.embed import embed_on_ray, embed_shards, load_bag, load_bags, missing_shards
from training.encoder.encoder import (
    load_encoder,
    random_encoder,
    save_encoder,
)
from training.encoder.vit import ViTConfig
from training.errors import ModelNotFound, SpecMismatch

SPEC = PatchSpec(size=32, mpp=2.0)
CONFIG = EncoderConfig(network=ViTConfig(size=32, dim=32, depth=1, heads=2), spec=SPEC)


@pytest.fixture(scope="module")
def shards(generated_slide: Path) -> pa.Table:
    with open_slide(str(generated_slide)) as slide:
        return index_slide(slide, SPEC, organisation="hospital", shard_side=4).shards


def test_embeddings_are_those_of_the_patches_in_order(shards: pa.Table, tmp_path: Path) -> None:
    encoder = random_encoder(CONFIG, precision="f32")
    reported: list[tuple[int, int]] = []
    made = embed_shards(
        shards, encoder, str(tmp_path), on_shard=lambda done, total: reported.append((done, total))
    )
    assert made.shards == len(shards)
    assert made.read.requests > 0
    assert made.read.needed == sum(sum(lengths) for lengths in shards["tile_length"].to_pylist())
    assert reported == [(k, len(shards)) for k in range(len(shards) + 1)]
    bag = load_bag(shards, encoder.key, str(tmp_path))
    direct = decode_patches(fetch_shards(shards))
    np.testing.assert_array_equal(bag.x, direct["x"])
    np.testing.assert_array_equal(bag.y, direct["y"])
    np.testing.assert_allclose(bag.embeddings, encoder.embed(direct["patch"]), rtol=2e-3, atol=2e-3)
    assert len(bag) == sum(shards["n_patches"].to_pylist())
    assert list(load_bags(shards, encoder.key, str(tmp_path))) == [bag.slide_id]


def test_only_what_is_missing_is_computed(shards: pa.Table, tmp_path: Path) -> None:
    encoder = random_encoder(CONFIG)
    assert embed_shards(shards.slice(0, 2), encoder, str(tmp_path)).shards == 2
    with pytest.raises(ModelNotFound, match="is not embedded"):
        load_bag(shards, encoder.key, str(tmp_path))
    assert embed_shards(shards, encoder, str(tmp_path)).shards == len(shards) - 2
    assert embed_shards(shards, encoder, str(tmp_path)).shards == 0
    first = storage.list_uris(str(tmp_path))[0]
    assert all(part in first for part in ("hospital", SPEC.hash, encoder.key, "/000000-"))


def test_embeddings_in_bf16_and_f32_have_addresses_of_their_own(
    shards: pa.Table, tmp_path: Path
) -> None:
    bags = []
    for precision in ("f32", "bf16"):
        encoder = random_encoder(CONFIG, precision=precision)
        assert embed_shards(shards, encoder, str(tmp_path)).shards == len(shards)
        bags.append(load_bag(shards, encoder.key, str(tmp_path)))
    assert not np.array_equal(bags[0].embeddings, bags[1].embeddings)


def test_on_ray_it_is_the_same(ray_session: None, shards: pa.Table, tmp_path: Path) -> None:
    save_encoder(str(tmp_path / "encoder"), random_encoder(CONFIG, precision="f32"))
    encoder = load_encoder(str(tmp_path / "encoder"))
    assert embed_on_ray(shards, str(tmp_path / "encoder"), str(tmp_path / "ray")).shards == len(
        shards
    )
    assert embed_on_ray(shards, str(tmp_path / "encoder"), str(tmp_path / "ray")).shards == 0
    embed_shards(shards, encoder, str(tmp_path / "here"))
    one, two = (load_bag(shards, encoder.key, str(tmp_path / name)) for name in ("ray", "here"))
    np.testing.assert_array_equal(one.embeddings, two.embeddings)


def test_patches_of_another_resolution_are_refused(shards: pa.Table, tmp_path: Path) -> None:
    other = random_encoder(EncoderConfig(network=CONFIG.network, spec=PatchSpec(size=32, mpp=0.5)))
    with pytest.raises(
        SpecMismatch, match=r"32 px at 2\.01 um per pixel against the encoder's 32 px at 0\.5"
    ):
        embed_shards(shards, other, str(tmp_path))


def test_a_bag_is_one_slide_and_its_own_lattice(shards: pa.Table, tmp_path: Path) -> None:
    encoder = random_encoder(CONFIG)
    embed_shards(shards, encoder, str(tmp_path))
    moved = shards.set_column(
        shards.schema.get_field_index("x"), shards.schema.field("x"), shards["y"]
    )
    stained = shards.set_column(
        shards.schema.get_field_index("stain"),
        shards.schema.field("stain"),
        pa.array([b"{}"] * len(shards)),
    )
    for other in (moved, stained):
        assert len(missing_shards(other, encoder.key, str(tmp_path))) == len(shards)
        with pytest.raises(ModelNotFound, match="not embedded"):
            load_bag(other, encoder.key, str(tmp_path))
    renamed = shards.set_column(
        1, shards.schema.field("slide_id"), pa.array(["other"] * len(shards))
    )
    with pytest.raises(ValueError, match="one slide"):
        load_bag(pa.concat_tables([shards, renamed]), encoder.key, str(tmp_path))
