"""Embedding under killed workers: each shard's result exactly once, the same to the byte, and
nothing left for a second run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import patch_source, storage
from pipelines.cohort_shards import load_shards
from pipelines.grid import PatchSpec
from pipelines.prepare import PrepareConfig, prepare
from tests.support.process_tree import killing
from training.encoder.architecture import EncoderConfig
from training.encoder.embed import embed_on_ray, embed_shards
from training.encoder.encoder import load_encoder, random_encoder, save_encoder
from training.encoder.vit import ViTConfig

SPEC = PatchSpec(size=32, mpp=2.0)
CONFIG = EncoderConfig(network=ViTConfig(size=32, dim=32, depth=1, heads=2), spec=SPEC)

_read_task = patch_source._read_task


def read_slowly(shards: pa.Table) -> Iterator[pa.Table]:
    """A read task of a store that answers late, so that its process is met alive."""
    time.sleep(0.5)
    yield from _read_task(shards)


@pytest.fixture(scope="module")
def shards(
    ray_session: None, cohort_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> pa.Table:
    out = tmp_path_factory.mktemp("prepared")
    assert not prepare(
        PrepareConfig(
            manifest=str(cohort_folder / "manifest.csv"), out=str(out), spec=SPEC, shard_side=2
        )
    ).failed
    return load_shards(str(out))


def _store(root: str) -> dict[str, bytes]:
    return {
        uri.removeprefix(storage.as_uri(root)): storage.read_bytes(uri)
        for uri in storage.list_uris(root)
    }


def test_each_shard_exactly_once(
    shards: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, root, alone = (
        str(tmp_path / "encoder"),
        str(tmp_path / "store"),
        str(tmp_path / "alone"),
    )
    save_encoder(encoder, random_encoder(CONFIG, precision="f32"))
    monkeypatch.setattr(patch_source, "_read_task", read_slowly)
    with (
        killing(
            "ray::ReadShards", below=os.getpid(), seed=1, pause=(0.0, 0.1), max_kills=3
        ) as readers,
        killing(
            "ray::MapWorker", below=os.getpid(), seed=2, pause=(0.2, 0.8), max_kills=3
        ) as embedders,
    ):
        made = embed_on_ray(shards, encoder, root)
    assert readers, "no reader was killed"
    assert any("_EmbedWorker" in title for title in embedders.values())
    assert made.shards == len(shards)
    embed_shards(shards, load_encoder(encoder), alone)
    found, expected = _store(root), _store(alone)
    assert len(expected) == len(shards)
    assert found == expected
    assert embed_on_ray(shards, encoder, root).shards == 0
    print(
        f"{len(readers)} readers and {len(embedders)} embedders killed: {len(found)} results of "
        f"{len(shards)} shards"
    )
